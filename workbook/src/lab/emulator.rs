//! A running emulator, which never outlives this program.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};

use rustix::process::{Pid, Signal, kill_process_group};

/// An emulator's process group; it is killed when this is dropped.
#[derive(Debug)]
pub struct Emulator {
    child: Child,
}

impl Emulator {
    /// Starts `command` in a process group of its own, out of reach of the
    /// terminal's Ctrl-C: this program decides when it ends.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        command.process_group(0);
        die_with_the_parent(command);
        Ok(Self { child: command.spawn()? })
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }
}

/// Asks Linux to kill the emulator even if this program is killed the hard way.
#[cfg(target_os = "linux")]
fn die_with_the_parent(command: &mut Command) {
    let set = || Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed;
    // `set` makes one system call, prctl, and neither allocates nor locks.
    unsafe { command.pre_exec(set) };
}

#[cfg(not(target_os = "linux"))]
fn die_with_the_parent(_: &mut Command) {}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Both fail only when it is gone already, which is what is wanted.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulator_is_gone_once_it_is_dropped() {
        let emulator = Emulator::start(Command::new("sleep").arg("600")).expect("sleep starts");
        let pid = Pid::from_child(&emulator.child);
        assert!(rustix::process::test_kill_process(pid).is_ok());
        drop(emulator);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
