//! Snapshots: what a program is expected to say, and how to say it differs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use similar::TextDiff;
use vmexit::transcript;

use super::Machine;
use crate::failure::Failure;

/// One run that has a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The snapshot's name: `ch05--break-gdt-limit`.
    pub name: String,
    /// The command as the reader types it: `cargo run --bin ch05 -- --break gdt-limit`.
    pub command: String,
    /// The binary: `ch05`.
    pub binary: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// The transcript that every backend gives.
    expected: String,
    /// The transcripts of the machines that end differently.
    by_machine: Vec<(Machine, String)>,
}

/// Reads every snapshot in `folder`, by name.
///
/// # Errors
/// [`Failure`] when there is none, or one is not written as a snapshot is.
pub fn read_all(folder: &Path) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let entries = fs::read_dir(folder)
        .map_err(|error| Failure::bad_input(format!("{} cannot be read: {error}", folder.display())))?;
    for entry in entries {
        let path = entry.context("cannot list the snapshots")?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".snap")) else {
            continue;
        };
        // `NAME@backend.snap` belongs to `NAME.snap`.
        if name.contains('@') {
            continue;
        }
        let mut case = parse(name, &read(&path)?)
            .ok_or_else(|| Failure::bad_input(format!("{} is not a snapshot of a run", path.display())))?;
        for machine in Machine::ALL {
            let own = folder.join(format!("{name}@{}.snap", machine.name()));
            if own.exists() {
                let text = read(&own)?;
                let body = body(&text)
                    .ok_or_else(|| Failure::bad_input(format!("{} is not a snapshot", own.display())))?;
                case.by_machine.push((machine, body.to_owned()));
            }
        }
        cases.push(case);
    }
    if cases.is_empty() {
        bail!(Failure::bad_input(format!("there are no snapshots in {}", folder.display())));
    }
    cases.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(cases)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What follows insta's header, which stands between two lines `---`.
fn body(text: &str) -> Option<&str> {
    let (_, body) = text.strip_prefix("---\n")?.split_once("\n---\n")?;
    Some(body)
}

fn parse(name: &str, text: &str) -> Option<Case> {
    let body = body(text)?;
    let command = body.lines().next()?.strip_prefix("$ ")?;
    let (binary, arguments) = parse_command(command)?;
    Some(Case {
        name: name.to_owned(),
        command: command.to_owned(),
        binary,
        arguments,
        expected: body.to_owned(),
        by_machine: Vec::new(),
    })
}

/// The binary and the arguments of `cargo run [--bin NAME] [-- ARGUMENTS]`.
fn parse_command(command: &str) -> Option<(String, Vec<String>)> {
    let words = shlex::split(command)?;
    let (cargo, arguments) = match words.iter().position(|word| word == "--") {
        Some(at) => (&words[..at], words[at + 1..].to_vec()),
        None => (&words[..], Vec::new()),
    };
    match cargo.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // The package's default binary.
        ["cargo", "run"] => Some(("ch01".to_owned(), arguments)),
        ["cargo", "run", "--bin", binary] => Some((binary.to_owned(), arguments)),
        _ => None,
    }
}

impl Case {
    /// Compares a run on `machine` with the snapshot.
    ///
    /// # Errors
    /// The difference, as a unified diff.
    pub fn compare(&self, machine: Machine, stdout: &str, stderr: &str, code: i32) -> Result<(), String> {
        let actual = transcript::render(&self.command, stdout, stderr, code);
        let own = self.by_machine.iter().find(|(of, _)| *of == machine);
        let expected = own.map_or(&self.expected, |(_, text)| text);
        // insta keeps one newline at the end of its file, whatever the text had.
        let (expected, actual) = (format!("{}\n", expected.trim_end()), format!("{}\n", actual.trim_end()));
        if expected == actual {
            return Ok(());
        }
        let diff = TextDiff::from_lines(&expected, &actual);
        Err(diff.unified_diff().header("snapshot", machine.name()).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNAPSHOT: &str = "---\nsource: tests/chapters.rs\n---\n$ cargo run --bin ch05 -- --break gdt-limit\nout\n[exit code 3]\n";

    #[test]
    fn a_snapshots_first_line_gives_the_binary_and_its_arguments() {
        let case = parse("ch05--break-gdt-limit", SNAPSHOT).expect("a snapshot");
        assert_eq!(case.binary, "ch05");
        assert_eq!(case.arguments, ["--break", "gdt-limit"]);
        assert_eq!(parse_command("cargo run"), Some(("ch01".to_owned(), vec![])));
        assert_eq!(
            parse_command("cargo run -- --steps"),
            Some(("ch01".to_owned(), vec!["--steps".to_owned()]))
        );
        assert_eq!(parse_command("cargo test"), None);
    }

    #[test]
    fn a_file_without_insta_header_or_command_is_no_snapshot() {
        assert_eq!(parse("x", "$ cargo run\n"), None);
        assert_eq!(parse("x", "---\nsource: x\n---\nno command\n"), None);
    }

    #[test]
    fn the_same_run_is_the_same_and_another_is_shown_as_a_diff() {
        let case = parse("ch05", SNAPSHOT).expect("a snapshot");
        assert_eq!(case.compare(Machine::Amd, "out\n", "backend: kvm\n", 3), Ok(()));
        let diff = case.compare(Machine::Amd, "else\n", "", 3).expect_err("a difference");
        assert!(diff.contains("-out\n+else\n"), "{diff}");
    }

    #[test]
    fn a_machines_own_snapshot_wins_on_that_machine_only() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a file");
        write("a.snap", "---\nsource: x\n---\n$ cargo run\nboth\n");
        write("a@intel.snap", "---\nsource: x\n---\n$ cargo run\nintel\n");
        write("a@soft.snap", "---\nsource: x\n---\nignored\n");
        let cases = read_all(folder.path()).expect("two snapshots");
        assert_eq!(cases.len(), 1);
        assert_eq!(cases[0].compare(Machine::Amd, "both\n", "", 0), Ok(()));
        assert_eq!(cases[0].compare(Machine::Intel, "intel\n", "", 0), Ok(()));
    }
}
