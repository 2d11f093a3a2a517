//! A terminal for a program that wants one although nobody looks at it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Where a program names its second terminal, if it has one, it does so in its first bytes.
const ENOUGH: usize = 1 << 16;

/// Bochs with a debugger opens a terminal of its own for the guest's screen, and says where. With nobody to
/// read there it stops, after some minutes, when the terminal takes no more.
fn second_terminal(said: &[u8]) -> Option<PathBuf> {
    const SENTENCE: &str = "Bochs connected to screen \"";
    let said = String::from_utf8_lossy(said);
    let (path, _) = said.split_once(SENTENCE)?.1.split_once('"')?;
    Some(PathBuf::from(path))
}

/// Reads and drops what is written to the terminal, until its other side is closed.
fn drain(path: PathBuf) {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let Ok(user) = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()) else { return };
    // Byte by byte: a terminal that waits for the ends of lines fills up, too.
    if let Ok(mut modes) = rustix::termios::tcgetattr(&user) {
        modes.make_raw();
        let _ = rustix::termios::tcsetattr(&user, rustix::termios::OptionalActions::Now, &modes);
    }
    let mut screen = File::from(user);
    thread::spawn(move || {
        let mut dropped = [0; 4096];
        while screen.read(&mut dropped).is_ok_and(|count| count > 0) {}
    });
}

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
            let mut said = Vec::new();
            while let Ok(count) = screen.read(&mut dropped) {
                if count == 0 {
                    break;
                }
                if said.len() < ENOUGH {
                    said.extend_from_slice(&dropped[..count]);
                    if let Some(second) = second_terminal(&said) {
                        drain(second);
                        said = vec![0; ENOUGH];
                    }
                }
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bochs_says_where_its_screen_is() {
        let said = b"\r\nBochs connected to screen \"/dev/pts/7\"\r\n";
        assert_eq!(second_terminal(said), Some(PathBuf::from("/dev/pts/7")));
        assert_eq!(second_terminal(&said[..30]), None, "the rest is still to come");
    }
}
