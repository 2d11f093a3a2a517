//! The software machine: an x86 CPU in software, which takes what KVM takes and
//! returns what KVM returns, where there is no KVM.
//!
//! It executes the guest instruction by instruction: 16-, 32- and 64-bit code,
//! segmentation, paging, rings, exceptions and interrupts, as Intel's *Software
//! Developer's Manual* says, and where that is silent, AMD's *Programmer's Manual*
//! or KVM's emulator. What it does not have ends in [`Exit::InternalError`], as an
//! instruction that KVM cannot emulate does: no wrong result takes its place, and
//! [`Vcpu::missing`] says what it would have needed. It lacks virtual-8086 mode, task
//! switches and task gates, x87 but for its control word, MMX, SSE3 and what came
//! after it, and every instruction with a VEX prefix or newer. Its CPUID says so.
//!
//! Nothing here depends on the host: no files, no threads, no clock. The time
//! stamp counter and the timers count instructions, so a run can be repeated
//! exactly. A machine with interrupt controllers has a PC's: 8259A pair, I/O APIC,
//! a local APIC a CPU, 8254. There `hlt` waits inside, and the time until the next
//! timer's event goes by at once.
//!
//! In reading order:

#![warn(missing_docs)]

mod errno; // The ioctls' errors.
mod exit; // What a run comes back with.
mod registers; // The registers, with KVM's names.
mod memory; // A page of guest memory: the one module with unsafe code.
mod slots; // Which memory is where,
mod dirty; // and which of it was written.
mod machine; // A VM.
mod vcpu; // A vCPU, and the loop that executes.
mod cpu; // The CPU's state.
mod stop; // Exceptions, and other reasons not to complete.
mod fetch; // The bytes at RIP,
mod decode; // what they mean,
mod op; // as an operation,
mod cache; // kept for the next time.
mod operands; // What an operation works on.
mod segment; // From an offset to a linear address,
mod paging; // to a guest-physical address,
mod tlb; // remembered,
mod access; // to memory or a hole.
mod flags; // Arithmetic,
mod float; // and of floating-point numbers.
mod instructions; // What each instruction does.
mod descriptor; // Segment registers in protected mode.
mod transfer; // Going to another code segment.
mod interrupt; // Going to a handler.
mod events; // What waits to be delivered.
mod debug; // Breakpoints.
mod cpuid; // What the CPU says of itself.
mod msr; // Model-specific registers.
mod chipset; // Interrupt controllers and timers.

pub use cpuid::{CpuidEntry, supported as supported_cpuid};
pub use errno::Errno;
pub use events::{Events, Exception, Interrupt};
pub use exit::Exit;
pub use instructions::executes;
pub use machine::Machine;
pub use registers::{Fpu, Regs, Segment, Sregs, Table};
pub use slots::{Slot, Slots};
pub use vcpu::{Translation, Vcpu};
