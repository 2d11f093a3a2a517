//! Runs a program in ring 3 until it exits or is killed.

use core::arch::global_asm;
use core::fmt;

use crate::cpu;
use crate::exceptions::Fault;
use crate::exit;
use crate::global::Global;
use crate::paging::Tables;
use crate::print::println;
use crate::program::{self, BadProgram, STACK_END};
use crate::segments::{USER_CODE, USER_DATA};

global_asm!(include_str!("user.s"), user_data = const USER_DATA, user_code = const USER_CODE);

unsafe extern "C" {
    fn enter_user(entry: u64, stack_end: u64) -> u64;
    fn leave_user(result: u64) -> !;
}

/// Why there is no exit code of the program's.
pub enum Ended {
    NotStarted(BadProgram),
    Killed(Fault),
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
            Self::Killed(fault) => write!(f, "the program was killed: {fault}"),
        }
    }
}

/// Set where a fault ended the program.
static FAULT: Global<Option<Fault>> = Global::new(None);

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
    match FAULT.get().take() {
        Some(fault) => Err(Ended::Killed(fault)),
        None => Ok(code as u8),
    }
}

/// The program asked to end.
pub fn exit(code: u64) -> ! {
    // SAFETY: a program runs, so `enter_user` waits to return.
    unsafe { leave_user(code) }
}

/// The program did what ring 3 may not do.
pub fn kill(fault: Fault) -> ! {
    println!("kernel: {fault}, at {:#x} in ring 3", fault.rip);
    *FAULT.get() = Some(fault);
    // SAFETY: the fault came from ring 3, so `enter_user` waits to return.
    unsafe { leave_user(0) }
}
