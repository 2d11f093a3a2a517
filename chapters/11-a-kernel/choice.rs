//! What is booted: the workbook's own files, or the reader's.

use std::borrow::Cow;

use anyhow::{Context, Result};
use vmexit::boot::{BadFile, Executable};
use vmexit::chapter::{BadInput, ListingShown};
use vmexit::guest::Image;
use vmexit::run::Run;

/// The kernel of this chapter.
const KERNEL: &[u8] = vmexit::kernel!();
/// The programs for ring 3 of this chapter and the one before.
const PROGRAMS: &[(&str, &[u8])] = vmexit::programs!();
const DEFAULT: &str = "hello";

/// The kernel that was asked for, or ours.
pub fn kernel(run: &Run) -> Result<Executable> {
    let file = match run.options().values("kernel").last() {
        Some(path) => Cow::Owned(read(path)?),
        None => Cow::Borrowed(KERNEL),
    };
    Ok(Executable::parse(&file).map_err(BadFile::Kernel)?)
}

/// The file of the program that was asked for, if there is to be one.
pub fn program(run: &Run) -> Result<Option<Cow<'static, [u8]>>> {
    let name = run.options().values("program").last().unwrap_or(DEFAULT);
    // No broken variant gets as far as a program.
    if name == "none" || run.options().variant.is_some() {
        return Ok(None);
    }
    if let Some((_, file)) = PROGRAMS.iter().find(|(known, _)| *known == name) {
        return Ok(Some(Cow::Borrowed(*file)));
    }
    let known: Vec<&str> = PROGRAMS.iter().map(|(name, _)| *name).collect();
    match read(name) {
        Ok(file) => Ok(Some(Cow::Owned(file))),
        Err(error) => {
            let known = known.join(", ");
            Err(BadInput(format!("{error:#}; the workbook's own programs are {known}")).into())
        }
    }
}

/// The words of the kernel's command line; a broken variant adds its own.
pub fn command_line(run: &Run) -> String {
    let given = run.options().values("cmdline");
    let added = run.breaks("no-nx").then_some("no-nx test");
    given.chain(added).collect::<Vec<_>>().join(" ")
}

fn read(path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{path} cannot be read"))
}

/// Lets the trace name the kernel's and the program's addresses; prints the kernel's
/// listing, which is long, only when that is all that was asked for.
pub fn name_addresses(run: &Run, kernel: &Executable, program: Option<&[u8]>) -> Result<(), ListingShown> {
    if run.options().listing_only {
        return run.show(kernel.names());
    }
    let names = kernel.names().clone();
    run.name_addresses(&match program.map(Image::linked) {
        Some(Ok(program)) => names.beside(&program),
        _ => names,
    });
    Ok(())
}
