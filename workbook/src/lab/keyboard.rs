//! The reader's keyboard, on its way to a program in a machine.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The machine's end of the second serial port reads from this pipe.
#[derive(Debug)]
pub struct Keyboard {
    pipe: File,
    /// How the reader's terminal was, once its keys are the program's.
    before: Option<Termios>,
}

impl Keyboard {
    /// Makes the pipe at `path`. It is opened for both directions, so that the
    /// emulator neither waits for a writer nor ever sees the end.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn new(path: &Path) -> Result<Self> {
        rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .with_context(|| format!("cannot make the pipe {}", path.display()))?;
        let pipe = File::options().read(true).write(true).open(path);
        Ok(Self { pipe: pipe.with_context(|| format!("cannot open {}", path.display()))?, before: None })
    }

    /// From now on every key goes to the program, Ctrl-C too, until this is dropped.
    ///
    /// # Errors
    /// When stdin is no terminal.
    pub fn connect(&mut self) -> Result<()> {
        if self.before.is_some() {
            return Ok(());
        }
        let stdin = io::stdin();
        let settings = tcgetattr(&stdin).context("stdin is no terminal")?;
        let mut raw = settings.clone();
        raw.make_raw();
        // Our own lines still begin at the left.
        raw.output_modes = settings.output_modes;
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).context("cannot set up the terminal")?;
        self.before = Some(settings);
        let mut pipe = self.pipe.try_clone().context("cannot write to the pipe")?;
        thread::spawn(move || {
            let mut buffer = [0; 256];
            while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
                if pipe.write_all(&buffer[..count]).is_err() {
                    return;
                }
            }
        });
        Ok(())
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // It fails only when the terminal is gone.
            let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, before);
        }
    }
}
