//! One program in the lab: what it writes is what the reader sees, and its exit
//! code is the tool's.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use vmexit::boot::kept;
use vmexit::status::Status;
use vmexit_lab_init::job::Bytes;
use vmexit_lab_init::{Ending, Job, Stdin, Stream};

use super::boot::{self, Event, Plan};
use super::cache::{self, Lab};
use super::initramfs::Program;
use super::progress::Progress;
use super::{Machine, Session, bochs, program, qemu};
use crate::failure::Failure;

/// Runs `command`, a chapter's binary or a program's file with its arguments,
/// on each machine; returns the first exit code that is not 0.
///
/// # Errors
/// Whatever keeps it from running.
pub fn run(session: &Session, command: &[String]) -> Result<u8> {
    let Some((name, arguments)) = command.split_first() else {
        bail!(Failure::bad_input(
            "name a chapter, as in `cargo vmexit lab ch05`, or a static program's file; --all runs every snapshot"
        ));
    };
    // Readers are used to `cargo run --bin ch05 -- FLAGS`.
    let arguments = arguments.strip_prefix(&["--".to_owned()]).unwrap_or(arguments);
    let lab = Lab::open(&cache::folder()?).map_err(Failure::from)?;
    check_emulators(&lab, &session.machines)?;
    let (init, file) = executable(session, name)?;
    let inside = format!("/bin/{}", file.file_name().unwrap_or_default().to_string_lossy());
    let (arguments, mut files) = with_files(arguments);
    let mut job = job(&inside, &arguments, session.limit_seconds);
    files.push(Program { inside: inside.clone(), file: file.clone() });
    if name == BOOTS_LINUX {
        files.extend(kept(&lab));
        job.environment.push(("VMEXIT_CACHE".to_owned(), KEPT.to_owned()));
        job.limit_seconds = job.limit_seconds.max(LINUX_LIMIT);
        job.stdin = stdin(&session.machines)?;
    }
    let mut code = 0;
    for &machine in &session.machines {
        if session.machines.len() > 1 {
            println!("=== {machine}: {} ===", machine.kvm_module());
        }
        let plan = Plan {
            lab: &lab,
            machine,
            // A kernel's own page tables are slow to shadow, and it leaves long mode never.
            nested_paging: session.nested_paging || name == BOOTS_LINUX,
            init: init.clone(),
            programs: files.clone(),
            jobs: vec![job.clone()],
        };
        let ended = run_on(&plan, session)?;
        code = if code == 0 { ended } else { code };
    }
    Ok(code)
}

/// The chapter that boots what setup has put aside.
const BOOTS_LINUX: &str = "ch16";
/// Seconds that it has at least: a day, for there may be somebody at its shell.
const LINUX_LIMIT: u64 = 86_400;
/// Where that is inside a machine: the cache's folder, as the program sees it.
pub const KEPT: &str = "/lab/kept";
/// Where the files are that a program is given.
const FILES: &str = "/lab/files";

/// The kernel and the shell that chapter 16 boots, for a machine.
#[must_use]
pub fn kept(lab: &Lab) -> Vec<Program> {
    let mut files = vec![(kept::KERNEL, lab.kernel())];
    files.extend(lab.shell().map(|shell| (kept::SHELL, shell)));
    files.into_iter().map(|(name, file)| Program { inside: format!("{KEPT}/lab/{name}"), file }).collect()
}

/// What chapter 16 reads: a terminal's keys as they are typed, else all of stdin.
fn stdin(machines: &[Machine]) -> Result<Stdin> {
    let mut stdin = io::stdin();
    if stdin.is_terminal() {
        if machines != [Machine::Amd] {
            bail!(Failure::bad_input(
                "only the AMD machine has a keyboard: give the Intel one its lines on stdin, as in \
                 `echo uname -a | cargo vmexit lab --intel ch16`"
            ));
        }
        return Ok(Stdin::Keyboard);
    }
    let mut bytes = Vec::new();
    stdin.read_to_end(&mut bytes).context("cannot read stdin")?;
    Ok(Stdin::Bytes(Bytes(bytes)))
}

/// Arguments that name a file of this host by a path with a slash in it name a
/// copy inside; returns those copies too.
fn with_files(arguments: &[String]) -> (Vec<String>, Vec<Program>) {
    let mut files = Vec::new();
    let arguments = arguments.iter().map(|argument| {
        let (flag, path) = match argument.split_once('=') {
            Some((flag, path)) if flag.starts_with("--") => (format!("{flag}="), path),
            _ => (String::new(), argument.as_str()),
        };
        let file = Path::new(path);
        if !path.contains('/') || !file.is_file() {
            return argument.clone();
        }
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let inside = format!("{FILES}/{}-{name}", files.len());
        files.push(Program { inside: inside.clone(), file: file.to_path_buf() });
        format!("{flag}{inside}")
    });
    (arguments.collect(), files)
}

/// A job as every program in the lab gets it.
#[must_use]
pub fn job(inside: &str, arguments: &[String], limit_seconds: u64) -> Job {
    let environment = [("PATH", "/bin"), ("HOME", "/root"), ("VMEXIT_BACKEND", "kvm")];
    Job {
        program: inside.to_owned(),
        arguments: arguments.to_vec(),
        environment: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        limit_seconds,
        stdin: Stdin::Empty,
    }
}

/// Checks the emulators of `machines` before anything is built for them.
///
/// # Errors
/// [`Failure`] with what is missing.
pub fn check_emulators(lab: &Lab, machines: &[Machine]) -> Result<()> {
    for &machine in machines {
        lab.modules(machine)?;
        match machine {
            Machine::Amd => qemu::check(&qemu::program(lab.stamp.qemu.as_ref()))?,
            Machine::Intel => bochs::check(&bochs::program(lab.stamp.bochs.as_ref()))?,
        }
    }
    Ok(())
}

/// PID 1 and the program: a file that is there, or else a binary of the workbook.
fn executable(session: &Session, name: &str) -> Result<(PathBuf, PathBuf)> {
    let file = Path::new(name);
    let binaries = if file.is_file() {
        program::check_static(file)?;
        vec![]
    } else if name.contains('/') {
        bail!(Failure::bad_input(format!("there is no program {name}")));
    } else {
        vec![name.to_owned()]
    };
    let built = build(session, &binaries)?;
    let find = |name: &str| built.get(name).cloned().with_context(|| format!("cargo built no {name}"));
    let program = if binaries.is_empty() { file.to_path_buf() } else { find(name)? };
    Ok((find(program::INIT)?, program))
}

/// Builds PID 1 and `binaries`. Ctrl-C ends cargo too; that is no failure of it.
///
/// # Errors
/// As [`program::build`], or [`Failure::interrupted`].
pub fn build(session: &Session, binaries: &[String]) -> Result<BTreeMap<String, PathBuf>> {
    let built = program::build(&session.root, binaries);
    session.interrupt.check()?;
    built
}

fn run_on(plan: &Plan, session: &Session) -> Result<u8> {
    let progress = Progress::new(plan.machine);
    let mut ready = false;
    let mut said = Vec::new();
    let mut code = Status::Bug as u8;
    boot::run(plan, &session.interrupt, &mut |event| {
        match event {
            Event::Waiting(elapsed) if !ready => progress.booting(elapsed),
            Event::Waiting(_) | Event::Started(_) => {}
            Event::Ready => {
                ready = true;
                progress.clear();
            }
            Event::Output(_, stream, bytes) => {
                said.extend_from_slice(&bytes);
                match stream {
                    Stream::Stdout => write(&mut io::stdout(), &bytes)?,
                    Stream::Stderr => write(&mut io::stderr(), &bytes)?,
                }
            }
            Event::Finished(_, ending, verdict) => {
                if is_failed_entry(&String::from_utf8_lossy(&said)) {
                    for line in verdict {
                        eprintln!("bochs: {line}");
                    }
                }
                code = exit_code(&ending, plan.jobs[0].limit_seconds);
            }
        }
        Ok(())
    })?;
    Ok(code)
}

fn write(output: &mut impl Write, bytes: &[u8]) -> Result<()> {
    output.write_all(bytes).and_then(|()| output.flush()).context("cannot pass on the program's output")
}

/// Whether a program reports that the CPU refused to enter its guest.
#[must_use]
pub fn is_failed_entry(output: &str) -> bool {
    output.contains("FAIL_ENTRY") || output.contains("FailEntry") || output.contains("0x80000021")
}

/// The tool's exit code for a program's end; one that is no exit code is said.
fn exit_code(ending: &Ending, limit_seconds: u64) -> u8 {
    match ending {
        Ending::Code(code) => u8::try_from(*code).unwrap_or(Status::Bug as u8),
        Ending::Signal(signal) => {
            eprintln!("vmexit: signal {signal} ended the program");
            u8::try_from(128 + signal).unwrap_or(Status::Bug as u8)
        }
        Ending::TimedOut => {
            eprintln!(
                "vmexit: the program was killed after {limit_seconds} s; --limit SECONDS gives it more"
            );
            Status::Deadline as u8
        }
        Ending::NotStarted(reason) => {
            eprintln!("vmexit: {reason}");
            Status::BadInput as u8
        }
    }
}
