//! Loading a kernel: its ELF file, the boot information, and the page tables that
//! it starts with. Chapter 11. A Linux kernel, and what it takes for granted of a PC's
//! firmware: [`linux`] and [`acpi`]. Chapter 16.
//!
//! Chapter 11's boot protocol, in short: the kernel's segments are where its ELF file says;
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
