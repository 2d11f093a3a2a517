//! The other end of the guest's serial line.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard};

use vmexit::run::Run;

/// What arrives is shown line by line, so that it stands between the exits and not inside them;
/// while a person types, byte by byte. Clones show the same.
#[derive(Clone)]
pub struct Console {
    run: Run,
    shown: Arc<Mutex<Shown>>,
}

#[derive(Default)]
struct Shown {
    line: Vec<u8>,
    at_once: bool,
    /// What was shown at once does not end a line.
    unfinished: bool,
}

/// A guest's line without end is cut after so many bytes.
const LINE: usize = 4096;

impl Console {
    pub fn new(run: &Run) -> Self {
        Self { run: run.clone(), shown: Arc::default() }
    }

    /// From now on every byte is shown as it comes.
    pub fn show_at_once(&self) -> io::Result<()> {
        let mut shown = self.shown();
        shown.at_once = true;
        let begun = std::mem::take(&mut shown.line);
        shown.unfinished = !begun.is_empty();
        self.pass_on(&begun)
    }

    /// What comes next on the terminal is not the guest's.
    pub fn finish(&self) {
        if std::mem::take(&mut self.shown().unfinished) {
            // Nobody is left to hear that it failed.
            let _ = self.pass_on(b"\r\n");
        }
    }

    fn pass_on(&self, bytes: &[u8]) -> io::Result<()> {
        if !self.run.options().text_on_stdout() {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().expect("nobody panics while writing")
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut shown = self.shown();
        if shown.at_once {
            shown.unfinished = bytes.last() != Some(&b'\n');
            self.pass_on(bytes)?;
            return Ok(bytes.len());
        }
        for &byte in bytes {
            shown.line.push(byte);
            if byte == b'\n' || shown.line.len() == LINE {
                let line = std::mem::take(&mut shown.line);
                let text = String::from_utf8_lossy(line.trim_ascii_end());
                self.run.say(format_args!("      | {}", text.escape_debug()));
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
