//! How a program of the workbook ends: one table of exit codes for all of them.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

// ANCHOR: status
/// The exit codes.
///
/// | code | meaning |
/// |---|---|
/// | 0 | the guest ended as it should |
/// | 1 | a bug of ours |
/// | 2 | bad input, or this host cannot; one sentence says which |
/// | 3 | the guest failed: crash, panic, its own failure code |
/// | 4 | the deadline passed |
/// | 130 | Ctrl-C |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The guest ended as it should.
    Success = 0,
    /// A bug of ours.
    Bug = 1,
    /// Bad input, or a host that cannot run this.
    BadInput = 2,
    /// The guest crashed, or ended with its own failure code.
    GuestFailed = 3,
    /// The guest had its time.
    Deadline = 4,
    /// Ctrl-C.
    Interrupted = 130,
}
// ANCHOR_END: status

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// Writes a line to stderr in one piece, so that no other stream's output falls
/// into it. Where nobody listens, nobody is told.
pub(crate) fn complain(line: impl Display) {
    let _ = std::io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}
