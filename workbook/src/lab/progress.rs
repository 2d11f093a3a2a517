//! A line on the terminal that moves while a machine boots.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::Machine;

/// The line; on anything but a terminal there is none.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    machine: Machine,
}

impl Progress {
    /// Begins with the boot of `machine`.
    #[must_use]
    pub fn new(machine: Machine) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg}").expect("a template that indicatif knows"),
        );
        Self { bar, machine }
    }

    /// The machine has booted for so long.
    pub fn booting(&self, elapsed: Duration) {
        let usual = match self.machine {
            Machine::Amd => 4,
            Machine::Intel => 13,
        };
        self.bar.set_message(format!(
            "the {} machine boots: {} s, usually about {usual}",
            self.machine,
            elapsed.as_secs()
        ));
        self.bar.tick();
    }

    /// The machine runs number `job` of `jobs` now.
    pub fn running(&self, job: usize, jobs: usize, name: &str) {
        self.bar.set_message(format!("{}: {} of {jobs}, {name}", self.machine, job + 1));
        self.bar.tick();
    }

    /// Takes the line away while `print` prints above it.
    pub fn above<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Takes the line away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
