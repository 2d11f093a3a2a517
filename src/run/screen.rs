//! What a guest says on its serial line, on its way to stdout: whether it waits
//! for a command, and whether it has panicked. Chapter 16.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How a Linux kernel's panic begins and, where it does not reset the machine
/// after it, ends: `kernel/panic.c`. There is no other way for a kernel to tell a
/// hypervisor that it knows nothing of.
const PANIC: &[u8] = b"Kernel panic - not syncing";
const END_OF_PANIC: &[u8] = b"---[ end Kernel panic";

/// A shell's line editor asks the terminal where the cursor is, behind its prompt.
const CURSOR_QUESTION: &[u8] = b"\x1b[6n";

/// So much of a line is looked at, in bytes.
const LINE: usize = 4096;

/// A prompt is one if nothing follows it for so long.
const QUIET: Duration = Duration::from_millis(200);

/// The screen. Clones show the same one.
#[derive(Clone, Default)]
pub struct Screen(Arc<(Mutex<Shown>, Condvar)>);

#[derive(Default)]
struct Shown {
    line: Vec<u8>,
    /// How many bytes have come.
    count: u64,
    panicked: bool,
    ended: bool,
}

impl Screen {
    /// Whether the kernel has panicked.
    #[must_use]
    pub fn panicked(&self) -> bool {
        self.shown().panicked
    }

    /// Whether it has, and has said its last words.
    #[must_use]
    pub fn panic_ended(&self) -> bool {
        self.shown().ended
    }

    /// Waits until a shell's prompt stands there for a while, and more has come
    /// than `after` bytes; returns how many have.
    pub(crate) fn wait_for_prompt(&self, after: u64) -> u64 {
        let mut shown = self.shown();
        loop {
            let count = shown.count;
            let ready = count > after && is_prompt(&shown.line);
            let wait = if ready { QUIET } else { Duration::from_secs(1) };
            shown = self.0.1.wait_timeout(shown, wait).expect("nobody panics while writing").0;
            if ready && shown.count == count {
                return count;
            }
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.0.0.lock().expect("nobody panics while writing")
    }
}

impl Shown {
    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.count += 1;
            if byte == b'\n' {
                let line = without_time(&self.line);
                self.panicked |= line.starts_with(PANIC);
                self.ended |= self.panicked && line.starts_with(END_OF_PANIC);
                self.line.clear();
            } else if byte != b'\r' && self.line.len() < LINE {
                self.line.push(byte);
            }
        }
    }
}

/// A kernel's line behind its `[    1.234567] `.
fn without_time(line: &[u8]) -> &[u8] {
    let end = line.iter().position(|&byte| byte == b']').filter(|_| line.starts_with(b"["));
    end.map_or(line, |end| line[end + 1..].trim_ascii_start())
}

/// `# ` or `$ ` at the end of a line.
fn is_prompt(line: &[u8]) -> bool {
    let line = line.strip_suffix(CURSOR_QUESTION).unwrap_or(line);
    line.ends_with(b"# ") || line.ends_with(b"$ ")
}

/// What comes is shown at once.
impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()?;
        self.shown().take(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_at_the_end_of_an_unfinished_line() {
        for (line, expected) in [
            (b"# ".as_slice(), true),
            (b"/root # \x1b[6n", true),
            (b"user@host:~$ ", true),
            (b"# ls", false),
            (b"", false),
        ] {
            assert_eq!(is_prompt(line), expected, "{line:?}");
        }
    }

    #[test]
    fn a_panic_is_told_from_talk_of_one() {
        let mut shown = Shown::default();
        shown.take(b"# dmesg | grep 'Kernel panic - not syncing'\r\n");
        assert!(!shown.panicked);
        shown.take(b"[    1.0] Kernel panic - not sync");
        shown.take(b"ing: VFS\r\n");
        assert!(shown.panicked && !shown.ended, "it goes on to say where");
        // The early console writes its line ends the other way round.
        shown.take(b"\r[    1.1] ---[ end Kernel panic - not syncing: VFS ]---\n\r");
        assert!(shown.ended);
    }

    #[test]
    fn a_line_without_end_takes_no_memory_without_end() {
        let mut shown = Shown::default();
        shown.take(&vec![b'a'; 3 * LINE]);
        assert_eq!((shown.line.len(), shown.count), (LINE, 3 * LINE as u64));
    }
}
