//! Runs a program in ring 3 until it exits or is killed.

use core::arch::global_asm;
use core::fmt;

use crate::cpu;
use crate::exceptions::Fault;
use crate::exit;
use crate::global::Global;
use crate::paging::Tables;
use crate::program::{self, BadProgram, STACK_END};
use crate::segments::{USER_CODE, USER_DATA};

global_asm!(
    include_str!("user.s"),
    user_data = const USER_DATA,
    user_code = const USER_CODE,
    sse = const cfg!(target_feature = "sse") as u32,
);

unsafe extern "C" {
    fn enter_user(entry: u64, stack_end: u64) -> u64;
    fn leave_user(result: u64) -> !;
}

/// Why there is no exit code of the program's.
pub enum Ended {
    NotStarted(BadProgram),
    Killed(Reason),
}

/// What a program is killed for.
pub enum Reason {
    /// An exception.
    Fault(Fault),
    /// A system call with memory that the program may not read itself.
    BadPointer { address: u64, length: u64 },
}

impl Ended {
    /// The machine's exit code.
    pub fn code(&self) -> u32 {
        match self {
            Self::NotStarted(_) => exit::BAD_PROGRAM,
            Self::Killed(_) => exit::KILLED,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(why) => write!(f, "the program cannot be run: {why}"),
            Self::Killed(Reason::Fault(fault)) => {
                write!(f, "the program was killed at {:#x}: {fault}", fault.rip)
            }
            Self::Killed(Reason::BadPointer { address, length }) => {
                write!(
                    f,
                    "the program was killed: it passed {length} bytes at {address:#x}, which are not its own"
                )
            }
        }
    }
}

/// Set where the kernel ended the program.
static KILLED: Global<Option<Reason>> = Global::new(None);

// ANCHOR: run
/// Runs the program in this ELF file; its exit code.
pub fn run(file: &[u8]) -> Result<u8, Ended> {
    let program = program::load(file).map_err(Ended::NotStarted)?;
    // SAFETY: the tables map the kernel as its own do; the program's entry and stack are mapped
    // for ring 3, and what it does there the page tables and exceptions keep in bounds.
    let code = unsafe {
        cpu::write_cr3(program.tables.pml4);
        let code = enter_user(program.entry, STACK_END);
        cpu::write_cr3(Tables::kernel().pml4);
        code
    };
    match KILLED.get().take() {
        Some(reason) => Err(Ended::Killed(reason)),
        None => Ok(code as u8),
    }
}
// ANCHOR_END: run

/// The program asked to end.
pub fn exit(code: u64) -> ! {
    // SAFETY: a program runs, so `enter_user` waits to return.
    unsafe { leave_user(code) }
}

/// The program did what it may not do.
pub fn kill(reason: Reason) -> ! {
    *KILLED.get() = Some(reason);
    // SAFETY: the reason came from a program that runs, so `enter_user` waits to return.
    unsafe { leave_user(0) }
}
