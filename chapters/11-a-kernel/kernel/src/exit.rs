//! How the machine ends.

use crate::cpu;
use crate::info::{EXIT_PORT, RESET_COMMAND, RESET_PORT};

/// The kernel's own codes, beside those that the program ends with.
pub const TESTS_FAILED: u32 = 1;
/// There was no program.
pub const NOTHING_TO_RUN: u32 = 120;
/// The program's file cannot be run.
pub const BAD_PROGRAM: u32 = 121;
/// The program was killed.
pub const KILLED: u32 = 122;
/// The kernel panicked.
pub const PANIC: u32 = 123;

/// Ends the machine with an exit code.
pub fn exit(code: u32) -> ! {
    cpu::out32(EXIT_PORT, code);
    cpu::halt() // where nobody listens
}

/// Resets the machine.
pub fn reboot() -> ! {
    cpu::out8(RESET_PORT, RESET_COMMAND);
    cpu::halt()
}
