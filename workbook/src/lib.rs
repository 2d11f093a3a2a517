//! The tool beside the workbook, `cargo vmexit`: what its subcommands do.

pub mod failure;
pub mod root;
pub mod chapters;
pub mod book;
pub mod explain;
#[cfg(unix)]
pub mod interrupt;
#[cfg(unix)]
pub mod lab;
#[cfg(unix)]
pub mod diff;
