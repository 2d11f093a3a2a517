//! What is in the guest: its memory, and the image that is loaded into it.
//! Chapter 01.

mod image;
mod memory;
mod slots;
mod writes;

pub use image::{Image, ImageError, Segment, Symbol};
pub use memory::{Memory, MemoryError};
pub(crate) use slots::Slots;
pub(crate) use writes::Writes;

/// The bytes of a program for ring 3, an ELF file that `build.rs` made from
/// `user/NAME.s` in a chapter's folder: `vmexit::program!("hello")`. What such a
/// program may ask of its kernel is written in [`crate::abi`].
#[macro_export]
macro_rules! program {
    ($name:literal) => {
        include!(concat!(env!("OUT_DIR"), "/user-", $name, ".rs"))
    };
}

/// All programs for ring 3, `&[(name, file)]`, in the order of their names.
#[macro_export]
macro_rules! programs {
    () => {
        include!(concat!(env!("OUT_DIR"), "/programs.rs"))
    };
}

/// The bytes of chapter 11's kernel, an ELF file that `build.rs` made with cargo from
/// the package in the chapter's folder `kernel/`. Where that does not compile, the
/// compiler's message is this binary's compile error.
#[macro_export]
macro_rules! kernel {
    () => {
        include!(concat!(env!("OUT_DIR"), "/kernel.rs"))
    };
}

/// The bytes of this binary's own guest, which `build.rs` made from the
/// chapter's `guest.s`. Where that file does not assemble, the assembler's
/// message is this binary's compile error.
#[macro_export]
macro_rules! guest {
    () => {
        include!(concat!(env!("OUT_DIR"), "/", env!("CARGO_BIN_NAME"), ".rs"))
    };
}
