//! A terminal for a program that wants one although nobody looks at it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A pseudo-terminal. What is written to it is read and dropped, so that the
/// program never waits for a reader.
#[derive(Debug)]
pub struct Pty {
    path: PathBuf,
    _controller: OwnedFd,
}

impl Pty {
    /// Opens one of 100 columns by 40 lines: room for a text-mode screen.
    ///
    /// # Errors
    /// If the system has none to give.
    pub fn open() -> io::Result<Self> {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        // The program gets the user side only.
        rustix::io::fcntl_setfd(&controller, rustix::io::FdFlags::CLOEXEC)?;
        grantpt(&controller)?;
        unlockpt(&controller)?;
        let size = Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&controller, size)?;
        let name = ptsname(&controller, Vec::new())?;
        let path = PathBuf::from(name.to_string_lossy().into_owned());
        let mut screen = File::from(controller.try_clone()?);
        // Ends by itself: the read fails once the last user of the terminal is gone.
        thread::spawn(move || {
            let mut dropped = [0; 4096];
            while screen.read(&mut dropped).is_ok_and(|count| count > 0) {}
        });
        Ok(Self { path, _controller: controller })
    }

    /// The terminal's user side, for one of a program's three streams.
    ///
    /// # Errors
    /// If the terminal cannot be opened.
    pub fn stdio(&self) -> io::Result<Stdio> {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let user = rustix::fs::open(&self.path, flags, rustix::fs::Mode::empty())?;
        Ok(Stdio::from(user))
    }
}
