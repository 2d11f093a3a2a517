//! How a program of the workbook ends: one table of exit codes for all of them.

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
    Success = 0,
    Bug = 1,
    BadInput = 2,
    GuestFailed = 3,
    Deadline = 4,
    Interrupted = 130,
}
// ANCHOR_END: status

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}
