//! The file system that the lab's kernel unpacks into memory when it boots.
//!
//! ```text
//! /init                 PID 1
//! /lab/jobs.json        its orders
//! /lab/modules/*.ko     KVM
//! /bin/*                the programs to run
//! ```

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::NewcBuilder;

use vmexit_lab_init::Orders;
use vmexit_lab_init::job::ORDERS_PATH;

/// A folder: type and permissions, as in Linux' `stat.h`.
pub const FOLDER: u32 = 0o040_755;
/// A file that may be run.
pub const PROGRAM: u32 = 0o100_755;
/// A file that may not.
const DATA: u32 = 0o100_644;

/// A program for the machine, or a file that one reads.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its path inside the machine.
    pub inside: String,
    /// Where it is on this machine.
    pub file: PathBuf,
}

/// Writes the archive to `output`. It is not compressed: the machines read a
/// CD or memory faster than they inflate.
///
/// # Errors
/// When a file cannot be read, or `output` not be written.
pub fn write(
    output: impl Write,
    init: &Path,
    modules: &[PathBuf],
    programs: &[Program],
    orders: &Orders,
) -> Result<()> {
    let mut entries = Vec::new();
    for folder in [
        "bin",
        "dev",
        "lab",
        "lab/files",
        "lab/kept",
        "lab/kept/lab",
        "lab/modules",
        "proc",
        "root",
        "sys",
        "tmp",
    ] {
        entries.push((folder.to_owned(), FOLDER, Vec::new()));
    }
    entries.push(("init".to_owned(), PROGRAM, read(init)?));
    for module in modules {
        entries.push((relative(&module_path(module)), DATA, read(module)?));
    }
    for program in programs {
        entries.push((relative(&program.inside), PROGRAM, read(&program.file)?));
    }
    entries.push((relative(ORDERS_PATH), DATA, serde_json::to_vec(orders)?));
    let inputs = entries
        .into_iter()
        .map(|(path, mode, content)| (NewcBuilder::new(&path).mode(mode), Cursor::new(content)));
    cpio::write_cpio(inputs, output).context("cannot write the initramfs")?;
    Ok(())
}

/// Where a module is inside the machine.
#[must_use]
pub fn module_path(module: &Path) -> String {
    let name = module.file_name().unwrap_or_default().to_string_lossy();
    format!("/lab/modules/{name}")
}

fn relative(path: &str) -> String {
    path.trim_start_matches('/').to_owned()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
