//! The IDT and its handlers: chapter 09. A fault in ring 3 ends the program, one
//! that a test provokes is noted, and any other is a bug of the kernel's.

use core::arch::{asm, global_asm};
use core::fmt;

use crate::cpu;
use crate::global::Global;
use crate::segments::{DOUBLE_FAULT_STACK, KERNEL_CODE, TablePointer};
use crate::user::{self, Reason};

global_asm!(include_str!("exceptions.s"));

unsafe extern "C" {
    static exception_stubs: [[u8; 16]; VECTORS];
    static stack_guard: u8;
    static stack_bottom: u8;
}

const VECTORS: usize = 32;
const DOUBLE_FAULT: usize = 8;
const PAGE_FAULT: u64 = 14;

/// Mnemonics. Intel SDM Vol. 3A, "Exception and Interrupt Reference".
const NAMES: [&str; VECTORS] = [
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "-", "#TS", "#NP", "#SS", "#GP", "#PF",
    "-", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP", "-", "-", "-", "-", "-", "-", "#HV", "#VC", "#SX", "-",
];

/// What `exceptions.s` and the CPU have pushed.
#[repr(C)]
pub struct Frame {
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// An exception, in short.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    /// CR2: meaningful for a page fault.
    pub address: u64,
}

/// A page fault's error code. Intel SDM Vol. 3A, "Page-Fault Exceptions".
pub mod error {
    pub const PRESENT: u64 = 1 << 0; // the page is mapped, its permissions forbid it
    pub const WRITE: u64 = 1 << 1; // 0: a read
    pub const FETCH: u64 = 1 << 4; // of an instruction
}

static IDT: Global<[[u64; 2]; VECTORS]> = Global::new([[0; 2]; VECTORS]);
/// Where a test goes on when it faults; 0 where no test is waiting.
static RECOVERY: Global<u64> = Global::new(0);
static CAUGHT: Global<Option<Fault>> = Global::new(None);

/// Fills and loads the IDT.
pub fn load() {
    for (vector, gate) in IDT.get().iter_mut().enumerate() {
        // SAFETY: the array of stubs is in exceptions.s; only addresses are taken.
        let stub = unsafe { &raw const exception_stubs[vector] } as u64;
        let stack = if vector == DOUBLE_FAULT { u64::from(DOUBLE_FAULT_STACK) } else { 0 };
        // #BP is for ring 3, too. SDM Vol. 3A, "64-Bit Mode IDT".
        let ring = if vector == 3 { 3 << 45 } else { 0 };
        gate[0] = stub & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | stack << 32
            | 0x8e << 40
            | ring
            | (stub >> 16 & 0xffff) << 48;
        gate[1] = stub >> 32;
    }
    let pointer = TablePointer { limit: (VECTORS * 16 - 1) as u16, base: IDT.as_ptr() as u64 };
    // SAFETY: the gates lead to the stubs, in a code segment that the GDT has.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack, preserves_flags)) }
}

/// From now on a fault leads to `rip`, once.
#[unsafe(no_mangle)]
pub extern "C" fn recover_at(rip: u64) {
    *RECOVERY.get() = rip;
}

/// The fault since [`recover_at`], if there was one.
pub fn caught() -> Option<Fault> {
    *RECOVERY.get() = 0;
    CAUGHT.get().take()
}

/// Called from `exceptions.s`.
#[unsafe(no_mangle)]
extern "C" fn exception(frame: &mut Frame) {
    let fault = Fault {
        vector: frame.vector,
        error: frame.error,
        rip: frame.rip,
        address: if frame.vector == PAGE_FAULT { cpu::read_cr2() } else { 0 },
    };
    if frame.cs & 3 == 3 {
        user::kill(Reason::Fault(fault));
    }
    let recovery = core::mem::take(&mut *RECOVERY.get());
    if recovery == 0 {
        if frame.vector == DOUBLE_FAULT as u64 && in_guard_page(cpu::read_cr2()) {
            panic!("{fault}, in the kernel: its stack is full");
        }
        panic!("{fault}, in the kernel");
    }
    *CAUGHT.get() = Some(fault);
    frame.rip = recovery;
}

/// Whether the page fault that became a double fault was at the end of the kernel's stack.
fn in_guard_page(address: u64) -> bool {
    (&raw const stack_guard as u64..&raw const stack_bottom as u64).contains(&address)
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES[self.vector as usize % VECTORS];
        if self.vector == DOUBLE_FAULT as u64 {
            return write!(f, "{name}, an exception that could not be delivered");
        }
        if self.vector != PAGE_FAULT {
            return write!(f, "{name}, error code {:#x}", self.error);
        }
        let has = |bit| self.error & bit != 0;
        let access = match (has(error::FETCH), has(error::WRITE)) {
            (true, _) => "an instruction fetch from",
            (false, true) => "a write to",
            (false, false) => "a read of",
        };
        let why = if has(error::PRESENT) { "which the page forbids" } else { "where no page is" };
        write!(f, "{name}, {access} {:#x}, {why}", self.address)
    }
}
