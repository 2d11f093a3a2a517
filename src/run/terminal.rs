//! The reader's terminal as the other end of a guest's serial line: every key goes
//! to the guest, Ctrl-C too, and an escape key brings the reader back. Chapter 12.
//!
//! The terminal's settings are restored whatever happens: at the end, in a panic,
//! and when a signal ends the program.

use std::io::{BufRead, IsTerminal, Read};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::device::serial::Serial;
use crate::run::interrupt::ThisThread;
use crate::run::screen::Screen;
use crate::status::complain;

#[cfg(host_kvm)]
pub use host::{Raw, restore};
#[cfg(not(host_kvm))]
pub use portable::{Raw, restore};

/// Ctrl-A, as in QEMU.
const ESCAPE: u8 = 0x01;

/// What the keys after an escape ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Quit,
    Help,
}

/// Tells what is typed for the guest from what is typed for us.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    /// The bytes that are for the guest, and what was asked for first.
    fn take(&mut self, typed: &[u8]) -> (Vec<u8>, Option<Asked>) {
        let (mut guest, mut asked) = (Vec::new(), None);
        for &byte in typed {
            if !std::mem::take(&mut self.escaped) {
                if byte == ESCAPE {
                    self.escaped = true;
                } else {
                    guest.push(byte);
                }
                continue;
            }
            match byte {
                b'x' => asked = asked.or(Some(Asked::Quit)),
                b'h' | b'?' => asked = asked.or(Some(Asked::Help)),
                // Twice sends one; what means nothing is dropped.
                ESCAPE => guest.push(ESCAPE),
                _ => {}
            }
        }
        (guest, asked)
    }
}

/// What the escape key offers.
pub const HELP: &str = "Ctrl-A x ends the guest, Ctrl-A Ctrl-A sends Ctrl-A, Ctrl-A h shows this";

/// Whether a person types on stdin.
#[must_use]
pub fn is_interactive() -> bool {
    std::io::stdin().is_terminal()
}

/// So much may wait for the guest before we stop reading, in bytes.
const MOST: usize = 4096;
/// Ctrl-D: the end of a terminal's input.
const END: u8 = 0x04;

/// Sends what a person types to the guest, from a thread of its own, for as long
/// as the program runs.
pub fn type_keys(port: Arc<Mutex<Serial>>) {
    let vcpu = ThisThread::get();
    std::thread::spawn(move || {
        let (mut keys, mut buffer) = (Keys::default(), [0; 256]);
        loop {
            let typed = match std::io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => &buffer[..count],
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let (guest, asked) = keys.take(typed);
            match asked {
                Some(Asked::Quit) => return vcpu.interrupt(),
                Some(Asked::Help) => complain(HELP),
                None => {}
            }
            send(&port, &guest);
        }
    });
}

/// Sends the lines of stdin to the guest, each when its shell waits for one, and
/// at their end Ctrl-D, which ends a shell.
pub fn type_lines(port: Arc<Mutex<Serial>>, screen: Screen) {
    std::thread::spawn(move || {
        let (mut lines, mut seen) = (std::io::stdin().lock().lines(), 0);
        loop {
            seen = screen.wait_for_prompt(seen);
            match lines.next() {
                Some(Ok(line)) => send(&port, format!("{line}\r").as_bytes()),
                Some(Err(_)) | None => send(&port, &[END]),
            }
        }
    });
}

fn send(port: &Mutex<Serial>, bytes: &[u8]) {
    loop {
        let mut port = port.lock().expect("no thread panics while holding a device");
        if port.waiting() < MOST {
            return port.send(bytes);
        }
        drop(port);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(host_kvm)]
mod host {
    use std::cell::UnsafeCell;
    use std::mem::MaybeUninit;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// The settings to go back to, and whether there are any.
    struct Saved(UnsafeCell<MaybeUninit<libc::termios>>);

    // SAFETY: written once, before `IS_RAW` is set, and only read after it was seen to be set.
    unsafe impl Sync for Saved {}

    static SAVED: Saved = Saved(UnsafeCell::new(MaybeUninit::uninit()));
    static IS_RAW: AtomicBool = AtomicBool::new(false);
    static EVER: AtomicBool = AtomicBool::new(false);

    /// The terminal hands over every key as it is typed; when this is dropped it
    /// is as it was.
    pub struct Raw(());

    impl Raw {
        /// `None` where stdin is no terminal, or has been made raw before.
        pub fn enter() -> Option<Self> {
            if EVER.swap(true, Ordering::AcqRel) {
                return None;
            }
            let mut settings = MaybeUninit::uninit();
            // SAFETY: `settings` is valid for the call.
            if unsafe { libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) } != 0 {
                return None;
            }
            // SAFETY: tcgetattr succeeded, so it has written the settings.
            let mut settings: libc::termios = unsafe { settings.assume_init() };
            // SAFETY: this happens once, and nobody reads before `IS_RAW` is set below.
            unsafe { (*SAVED.0.get()).write(settings) };
            IS_RAW.store(true, Ordering::Release);
            for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
                // SAFETY: `end` is async-signal-safe: tcsetattr, signal and raise.
                unsafe { libc::signal(signal, end as *const () as libc::sighandler_t) };
            }
            // SAFETY: `settings` is valid for both calls.
            unsafe {
                let output = settings.c_oflag;
                libc::cfmakeraw(&raw mut settings);
                // Our own lines still begin at the left.
                settings.c_oflag = output;
                libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const settings);
            }
            Some(Self(()))
        }
    }

    impl Drop for Raw {
        fn drop(&mut self) {
            restore();
        }
    }

    /// Gives the terminal back as it was. A signal handler may call it.
    pub fn restore() {
        if IS_RAW.swap(false, Ordering::AcqRel) {
            // SAFETY: `IS_RAW` was set, so the settings were written before; tcsetattr is
            // async-signal-safe.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, (*SAVED.0.get()).as_ptr()) };
        }
    }

    extern "C" fn end(signal: libc::c_int) {
        restore();
        // SAFETY: both may be called from a signal handler; the default action ends the program
        // with the signal that it was sent.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}

#[cfg(not(host_kvm))]
mod portable {
    /// Where there is no KVM there is no guest to type to.
    pub struct Raw(());

    impl Raw {
        pub fn enter() -> Option<Self> {
            None
        }
    }

    pub fn restore() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key_asks_and_every_other_key_is_the_guests() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"ls\r\x03"), (b"ls\r\x03".to_vec(), None));
        assert_eq!(keys.take(b"a\x01h"), (b"a".to_vec(), Some(Asked::Help)));
        assert_eq!(keys.take(b"\x01\x01b"), (b"\x01b".to_vec(), None));
        // The two keys may come apart.
        assert_eq!(keys.take(b"\x01"), (vec![], None));
        assert_eq!(keys.take(b"x"), (vec![], Some(Asked::Quit)));
        assert_eq!(keys.take(b"x\x01q"), (b"x".to_vec(), None));
    }
}
