//! Programs for the machines: they must be static, for there is no libc inside.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use elf::ElfBytes;
use elf::abi::{EM_X86_64, PT_INTERP};
use elf::endian::AnyEndian;

use crate::failure::Failure;

const MUSL: &str = "x86_64-unknown-linux-musl";
const GNU: &str = "x86_64-unknown-linux-gnu";

/// PID 1's binary.
pub const INIT: &str = "vmexit-lab-init";

/// Checks that a machine could run `file`.
///
/// # Errors
/// [`Failure`] when it is no static x86-64 ELF program.
pub fn check_static(file: &Path) -> Result<(), Failure> {
    let name = file.display();
    let image =
        fs::read(file).map_err(|error| Failure::bad_input(format!("{name} cannot be read: {error}")))?;
    let elf = ElfBytes::<AnyEndian>::minimal_parse(&image).map_err(|_| {
        Failure::bad_input(format!("{name} is no ELF program, and the lab has no interpreter for it"))
    })?;
    if elf.ehdr.e_machine != EM_X86_64 {
        return Err(Failure::bad_input(format!("{name} is not for x86-64, which the lab's machines are")));
    }
    if elf.segments().is_some_and(|segments| segments.iter().any(|segment| segment.p_type == PT_INTERP)) {
        return Err(Failure::bad_input(format!(
            "{name} is linked dynamically and the lab has no libraries: build it with --target {MUSL}"
        )));
    }
    Ok(())
}

/// Builds PID 1 and the package `vmexit`'s `binaries` statically, with cargo's
/// own words on the terminal; returns where each is, by its name.
///
/// # Errors
/// [`Failure`] when this host cannot build for the machines or cargo does not
/// succeed.
pub fn build(root: &Path, binaries: &[String]) -> Result<BTreeMap<String, PathBuf>> {
    let target = target()?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(root)
        .args(["build", "--message-format", "json-render-diagnostics", "--target", target])
        // A profile of its own: an interpreter runs these programs, from memory.
        .args(["--profile", "lab", "--config", "profile.lab.inherits='dev'"])
        .args(["--config", "profile.lab.opt-level=1", "--config", "profile.lab.strip=true"])
        .args(["--config", "profile.lab.debug=false"])
        .args(["--package", INIT, "--bin", INIT]);
    if !binaries.is_empty() {
        command.args(["--package", "vmexit"]);
    }
    for binary in binaries {
        command.args(["--bin", binary]);
    }
    built(command, target)
}

/// Builds an example of the package `vmexit` statically and optimised; returns where it is.
///
/// # Errors
/// As [`build`].
pub fn build_example(root: &Path, name: &str) -> Result<PathBuf> {
    let target = target()?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(root)
        .args(["build", "--message-format", "json-render-diagnostics", "--target", target])
        .args(["--release", "--package", "vmexit", "--example", name]);
    built(command, target)?.remove(name).with_context(|| format!("cargo built no {name}"))
}

/// Runs a build for `target`, and finds the programs in what cargo says.
fn built(mut command: Command, target: &str) -> Result<BTreeMap<String, PathBuf>> {
    if target == GNU {
        let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
        command.env("RUSTFLAGS", format!("{flags} -C target-feature=+crt-static"));
    } else if !cfg!(target_os = "linux") || !cfg!(target_arch = "x86_64") {
        // The host's own linker makes no Linux programs; Rust's does.
        command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld");
    }
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let messages = child.stdout.take().context("cargo's stdout was piped")?;
    let mut built = BTreeMap::new();
    for line in BufReader::new(messages).lines() {
        if let Some((name, executable)) = artifact(&line.context("cannot read what cargo says")?) {
            built.insert(name, executable);
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!(Failure::bad_input("cargo could not build for the lab: its own words are above"));
    }
    for executable in built.values() {
        check_static(executable)?;
    }
    Ok(built)
}

/// The target that this host can build static programs for.
fn target() -> Result<&'static str> {
    if has_target(MUSL)? {
        return Ok(MUSL);
    }
    if cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")) {
        return Ok(GNU);
    }
    bail!(Failure::bad_input(format!("Rust cannot build for the lab yet: run `rustup target add {MUSL}`")))
}

/// Whether Rust's standard library for `target` is installed.
fn has_target(target: &str) -> Result<bool> {
    let output = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", target])
        .output()
        .context("cannot run rustc")?;
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(output.status.success() && Path::new(&folder).is_dir())
}

/// The program's name and file, if this line of cargo's JSON is about a program.
fn artifact(line: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let name = message["target"]["name"].as_str()?;
    let executable = message["executable"].as_str()?;
    Some((name.to_owned(), PathBuf::from(executable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_refused_with_the_way_out() {
        // A test is linked like any program of its host: on GNU dynamically.
        let this = std::env::current_exe().expect("a test is a file");
        if cfg!(all(
            target_os = "linux",
            target_arch = "x86_64",
            target_env = "gnu",
            not(target_feature = "crt-static")
        )) {
            let error = check_static(&this).expect_err("a dynamic program");
            assert!(error.sentence.contains("--target x86_64-unknown-linux-musl"), "{error}");
        }
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let script = tempfile::NamedTempFile::new().expect("a file");
        fs::write(&script, "#!/bin/sh\n").expect("a script");
        let error = check_static(script.path()).expect_err("a script");
        assert!(error.sentence.contains("is no ELF program"), "{error}");
    }

    #[test]
    fn cargos_messages_name_the_programs() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"ch01"},"executable":"/t/ch01"}"#;
        assert_eq!(artifact(line), Some(("ch01".to_owned(), PathBuf::from("/t/ch01"))));
        let library = r#"{"reason":"compiler-artifact","target":{"name":"vmexit"},"executable":null}"#;
        assert_eq!(artifact(library), None);
    }
}
