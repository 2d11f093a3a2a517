//! What a program in ring 3 may ask of its kernel, and how: the system calls that
//! the kernels of chapters 10 and 11 serve.
//!
//! The instruction is `syscall`. The number of the call is in RAX, its arguments
//! are in RDI, RSI and RDX. The result comes back in RAX; from -4095 to -1 it is
//! an error, the negative of its number. RCX and R11 are lost, for `syscall`
//! itself uses them; every other register is as it was.
//!
//! | number | call | arguments | result |
//! |---|---|---|---|
//! | 1 | `write` | 1 (the console), the address of the bytes, how many | how many were written |
//! | 60 | `exit` | the exit code | none: it does not return |
//! | 0x400 | `calls` | none | how many system calls this CPU has served, this one included |
//!
//! The first two have the numbers and the registers that they have in Linux on x86-64.
//! A call that does not exist is -[`ENOSYS`], a `write` to anything but 1
//! -[`EBADF`]. A program that passes memory that it may not read itself, or takes
//! an exception, is killed.
//!
//! A program is an ELF file that is linked at [`START`], where `chapters/user.ld`
//! puts it. It is entered at `_start` in 64-bit code, ring 3, with a stack, RSP a
//! multiple of 16, and zero in all other general-purpose registers: it has no
//! arguments. x87 and SSE are not turned on.
//!
//! This file uses nothing else, so that a guest can be compiled with it.

/// `write(1, address, length)`.
pub const WRITE: u64 = 1;
/// `exit(code)`.
pub const EXIT: u64 = 60;
/// `calls()`.
pub const CALLS: u64 = 0x400;

/// The one file that is open: the console.
pub const CONSOLE: u64 = 1;

/// No such file is open.
pub const EBADF: i64 = 9;
/// There is no such system call.
pub const ENOSYS: i64 = 38;

/// The address that a program is linked at.
pub const START: u64 = 0x40_0000;
