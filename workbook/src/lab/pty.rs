//! A terminal for a program that wants one although nobody looks at it.
//!
//! Debian's Bochs, the debugger build, wants two: it draws the machine's screen on
//! one that it makes itself, and says which it is on the first.

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
        let written = File::from(controller.try_clone()?);
        thread::spawn(move || drop_what_is_written(written));
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

/// Reads until the last user of the terminal is gone. Where the program says that it has a screen on
/// another terminal, that one is read, too: its buffer holds ten minutes of a blinking cursor, and a
/// program that writes more would wait for ever.
fn drop_what_is_written(mut terminal: File) {
    let (mut piece, mut said) = ([0; 4096], Vec::new());
    let mut screen_known = false;
    while let Ok(count @ 1..) = terminal.read(&mut piece) {
        if screen_known || said.len() > MOST_SAID_BEFORE {
            continue;
        }
        said.extend_from_slice(&piece[..count]);
        let Some(path) = screen(&String::from_utf8_lossy(&said)) else { continue };
        screen_known = true;
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        if let Ok(screen) = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()) {
            let mut screen = File::from(screen);
            thread::spawn(move || while screen.read(&mut piece).is_ok_and(|count| count > 0) {});
        }
    }
}

/// Bochs names its screen before anything else of length, in bytes.
const MOST_SAID_BEFORE: usize = 64 << 10;

/// The terminal in `Bochs connected to screen "/dev/pts/3"`.
fn screen(said: &str) -> Option<PathBuf> {
    let (_, rest) = said.split_once("connected to screen \"")?;
    let (path, _) = rest.split_once('"')?;
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn the_screens_name_is_known_when_it_was_said_whole() {
        let whole = "c\nBochs connected to screen \"/dev/pts/3\"\n";
        assert_eq!(screen(whole), Some(PathBuf::from("/dev/pts/3")));
        assert_eq!(screen(&whole[..30]), None);
        assert_eq!(screen(&whole[..38]), None);
    }

    #[test]
    fn a_program_never_waits_for_a_reader_of_its_own_screen() {
        let pty = Pty::open().expect("a terminal");
        // What Bochs does: a terminal of its own, named on the one that it was given.
        let own = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("another terminal");
        grantpt(&own).expect("ours");
        unlockpt(&own).expect("ours");
        let mut settings = rustix::termios::tcgetattr(&own).expect("a terminal has settings");
        settings.make_raw();
        rustix::termios::tcsetattr(&own, rustix::termios::OptionalActions::Now, &settings)
            .expect("a terminal takes settings");
        let name = ptsname(&own, Vec::new()).expect("a name");
        let mut given = File::options().write(true).open(&pty.path).expect("the user's side");
        writeln!(given, "Bochs connected to screen \"{}\"", name.to_string_lossy()).expect("it is read");
        let (done, wait) = mpsc::channel();
        thread::spawn(move || {
            let mut own = File::from(own);
            let written = (0..1000).all(|_| own.write_all(&[b'x'; 1000]).is_ok());
            done.send(written)
        });
        assert_eq!(wait.recv_timeout(Duration::from_secs(20)), Ok(true));
    }
}
