//! Starting an operating system: what a boot loader and the firmware would have left
//! in memory. Our own kernel's ELF file, boot information and page tables (chapter
//! 11); Linux's boot protocol and the tables that it expects ([`linux`], [`acpi`];
//! chapter 16).
//!
//! Our own boot protocol, in short: the kernel's segments are where its ELF file says;
//! the CPU is in 64-bit mode, ring 0, interrupts off; page tables map the first GiB
//! twice, at its own addresses and at [`info::KERNEL_BASE`]; RDI is the address of
//! [`info::BootInfo`]. No other register means anything, and there is no stack.

pub mod acpi;
mod backtrace;
mod executable;
pub mod info;
pub mod kept;
pub mod linux;
mod load;

pub use backtrace::backtrace;
pub use executable::{Executable, FileError, Loadable};
pub use load::{BadFile, Boot, Start};
