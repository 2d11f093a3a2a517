//! Chapter 12 at a terminal: every key is the guest's, one is ours, and the terminal is as it was
//! however the program ends.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};

/// A pair of ends: a person's, and the program's.
fn terminal() -> (File, File) {
    let (mut person, mut program) = (-1, -1);
    let nothing = std::ptr::null_mut();
    // SAFETY: both places are valid for the call, and the other arguments may be null.
    let made = unsafe {
        libc::openpty(&raw mut person, &raw mut program, nothing, std::ptr::null(), std::ptr::null())
    };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: openpty succeeded: both are open, and nobody else's.
    unsafe { (File::from_raw_fd(person), File::from_raw_fd(program)) }
}

/// The flags of a terminal's settings: input, output, control, local.
fn settings(terminal: &File) -> [u32; 4] {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: `settings` is valid for the call.
    let got = unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) };
    assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: tcgetattr succeeded, so it has written the settings.
    let settings: libc::termios = unsafe { settings.assume_init() };
    [settings.c_iflag, settings.c_oflag, settings.c_cflag, settings.c_lflag]
}

/// Runs chapter 12, does something once it reads the terminal; returns how it ended and what it
/// showed from its question on.
fn at_the_question(act: impl FnOnce(&mut File, &Child)) -> (ExitStatus, String) {
    let (mut person, program) = terminal();
    let before = settings(&program);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ch12"))
        .args(["--backend", "soft", "--deadline", "30"])
        .env_remove("VMEXIT_BACKEND")
        .stdin(program.try_clone().expect("a descriptor"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("cargo has built it");
    let mut output = child.stdout.take().expect("it is piped");
    let (mut shown, mut byte) = (Vec::new(), [0]);
    while !shown.ends_with(b"Type a line: ") {
        assert_eq!(output.read(&mut byte).expect("a pipe"), 1, "{}", String::from_utf8_lossy(&shown));
        shown.push(byte[0]);
    }
    while settings(&program) == before {
        std::thread::yield_now();
        assert!(child.try_wait().expect("a child").is_none(), "it ended, and the terminal was never raw");
    }
    act(&mut person, &child);
    let status = child.wait().expect("a child");
    assert_eq!(settings(&program), before, "the terminal is not as it was: {status}");
    let mut rest = Vec::new();
    output.read_to_end(&mut rest).expect("a pipe");
    (status, String::from_utf8_lossy(&rest).into_owned())
}

#[test]
fn keys_are_the_guests_and_so_is_ctrl_c() {
    let (status, shown) = at_the_question(|person, _| person.write_all(b"a\x03b\r").expect("a terminal"));
    assert_eq!(status.code(), Some(0), "{shown}");
    assert!(shown.starts_with("a\x03b\r\n      5 bytes sent"), "{shown:?}");
}

#[test]
fn the_escape_key_ends_the_guest() {
    let (status, shown) = at_the_question(|person, _| person.write_all(b"\x01x").expect("a terminal"));
    assert_eq!((status.code(), shown.as_str()), (Some(130), "\r\n"));
}

#[test]
fn a_signal_that_ends_the_program_gives_the_terminal_back_first() {
    let (status, _) = at_the_question(|_, child| {
        // SAFETY: no pointers; the child has not been waited for, so the number is its own.
        unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    });
    assert_eq!(status.signal(), Some(libc::SIGTERM));
}
