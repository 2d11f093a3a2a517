//! A small Linux system for chapter 16 to boot: an initramfs with busybox, and an
//! init that starts its shell on the console.

use std::fs::File;
use std::io::{BufWriter, Cursor};
use std::path::Path;

use anyhow::{Context, Result};
use cpio::NewcBuilder;

use super::initramfs::{FOLDER, PROGRAM};

// ANCHOR: init
/// The first program. It says `up` as soon as it runs, so that a boot can be timed.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin HOME=/root TERM=vt100 PS1='# '
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
echo "up: the initramfs runs"
busybox --install -s /bin
if grep -qw once /proc/cmdline; then poweroff -f; fi
echo "busybox's shell; 'exit' or 'poweroff -f' switches the machine off"
setsid cttyhack sh
poweroff -f
"#;
// ANCHOR_END: init

/// Writes the archive to `file`; `busybox` is a static program.
///
/// # Errors
/// When a file cannot be read or written.
pub fn write(busybox: &Path, file: &Path) -> Result<()> {
    let busybox = std::fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut entries = vec![];
    for folder in ["bin", "dev", "proc", "root", "sys", "tmp"] {
        entries.push((folder.to_owned(), FOLDER, Vec::new()));
    }
    entries.push(("init".to_owned(), PROGRAM, INIT.as_bytes().to_vec()));
    entries.push(("bin/busybox".to_owned(), PROGRAM, busybox));
    let inputs = entries
        .into_iter()
        .map(|(path, mode, content)| (NewcBuilder::new(&path).mode(mode), Cursor::new(content)));
    let output = File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
    cpio::write_cpio(inputs, BufWriter::new(output)).context("cannot write the shell's initramfs")?;
    Ok(())
}
