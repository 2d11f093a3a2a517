//! VM Exit: build a hypervisor on KVM, one exit at a time.
//!
//! The chapters under `chapters/` are the ladder; this library is what they
//! have taught so far, one idea a module. In reading order, with the chapter
//! that each comes from:

pub mod host; // 00: what this machine can do.
pub mod kvm; // 01: KVM by kvm-ioctls' names, over more than one backend.
pub mod guest; // 01: guest memory and guest images.
pub mod machine; // 01: a VM with its memory and one CPU, put together.
pub mod exit; // 02: what KVM_RUN came back with, by all its names.
pub mod run; // 02: a run with its deadline, Ctrl-C and single steps.
pub mod trace; // 02: what happened, as text, JSON Lines and a timeline.
pub mod disasm; // 02: instructions as text.
pub mod explain; // 02: why it failed, in words.
pub mod mode; // 05: control registers, mode and ring.
pub mod segment; // 05: descriptors and segment registers.
pub mod paging; // 06: page tables, walked and built.
pub mod exception; // 09: exceptions by name, with their error codes.
pub mod abi; // 10: what a program in ring 3 may ask of its kernel.
pub mod boot; // 11: a kernel's ELF file and its boot information; 16: Linux's.
pub mod device; // 12: a bus, and the devices on it.
pub mod chapter; // All: what every chapter's `main` is.
pub mod status; // All: the exit codes.
pub mod transcript; // All: a run as the tests, the lab and the book show it.
