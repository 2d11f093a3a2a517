//! Every snapshot in one boot a machine.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::Instant;

use anyhow::{Context, Result};
use vmexit::status::Status;
use vmexit_lab_init::{Ending, Stream};

use super::boot::{self, Event, Plan};
use super::cache::{self, Lab};
use super::initramfs::Program;
use super::progress::Progress;
use super::single::{build, check_emulators, is_failed_entry, job};
use super::snapshot::{self, Case};
use super::{Session, program};
use crate::failure::Failure;

/// Where the snapshots are, in the workbook's folder.
const SNAPSHOTS: &str = "tests/snapshots";

/// Shows what [`run`] would run.
///
/// # Errors
/// When the snapshots cannot be read.
pub fn list(session: &Session) -> Result<u8> {
    for case in snapshot::read_all(&session.root.join(SNAPSHOTS))? {
        say(&format!("{:32} {}", case.name, case.command))?;
    }
    Ok(0)
}

/// Runs every snapshot's command on each machine and compares; returns 1 if
/// anything differs.
///
/// # Errors
/// Whatever keeps them from running.
pub fn run(session: &Session) -> Result<u8> {
    let cases = snapshot::read_all(&session.root.join(SNAPSHOTS))?;
    let lab = Lab::open(&cache::folder()?).map_err(Failure::from)?;
    check_emulators(&lab, &session.machines)?;
    let names: BTreeSet<String> = cases.iter().map(|case| case.binary.clone()).collect();
    let names: Vec<String> = names.into_iter().collect();
    let built = build(session, &names)?;
    let programs = names
        .iter()
        .map(|name| {
            let file = built.get(name).cloned().with_context(|| format!("cargo built no {name}"))?;
            Ok(Program { inside: inside(name), file })
        })
        .collect::<Result<Vec<Program>>>()?;
    let mut different = 0;
    for &machine in &session.machines {
        let plan = Plan {
            lab: &lab,
            machine,
            nested_paging: session.nested_paging,
            init: built.get(program::INIT).cloned().context("cargo built no PID 1")?,
            programs: programs.clone(),
            jobs: cases
                .iter()
                .map(|case| job(&inside(&case.binary), &case.arguments, session.limit_seconds))
                .collect(),
        };
        different += run_on(&plan, &cases, session)?;
    }
    Ok(if different == 0 { 0 } else { Status::Bug as u8 })
}

/// Prints a line; a reader that has gone away (`| head`) is no panic.
fn say(line: &str) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("cannot print the results")
}

fn inside(binary: &str) -> String {
    format!("/bin/{binary}")
}

/// What a job has written so far.
#[derive(Default)]
struct Written {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Runs `cases` on one machine; returns how many differ.
fn run_on(plan: &Plan, cases: &[Case], session: &Session) -> Result<usize> {
    let machine = plan.machine;
    say(&format!("{machine}: {} runs on {}", cases.len(), machine.kvm_module()))?;
    let started = Instant::now();
    let progress = Progress::new(machine);
    let mut ready = false;
    let mut failed = 0;
    let mut written = Written::default();
    boot::run(plan, &session.interrupt, &mut |event| {
        match event {
            Event::Waiting(elapsed) if !ready => progress.booting(elapsed),
            Event::Waiting(_) => {}
            Event::Ready => ready = true,
            Event::Started(number) => {
                written = Written::default();
                progress.running(number, cases.len(), &cases[number].name);
            }
            Event::Output(_, Stream::Stdout, bytes) => written.stdout.extend(bytes),
            Event::Output(_, Stream::Stderr, bytes) => written.stderr.extend(bytes),
            Event::Finished(number, ending, verdict) => {
                let case = &cases[number];
                let result = judge(case, plan, &written, &ending);
                failed += usize::from(result.is_err());
                progress.above(|| say(&report(machine.name(), case, result, &verdict, &written)))?;
            }
        }
        Ok(())
    })?;
    progress.clear();
    let passed = cases.len() - failed;
    let seconds = started.elapsed().as_secs_f64();
    say(&format!("{machine}: {passed} passed, {failed} failed, in {seconds:.1} s"))?;
    Ok(failed)
}

fn judge(case: &Case, plan: &Plan, written: &Written, ending: &Ending) -> Result<(), String> {
    let code = match ending {
        Ending::Code(code) => *code,
        Ending::Signal(signal) => return Err(format!("signal {signal} ended it\n")),
        Ending::TimedOut => {
            let limit = plan.jobs.first().map_or(0, |job| job.limit_seconds);
            return Err(format!("it was killed after {limit} s\n"));
        }
        Ending::NotStarted(reason) => return Err(format!("{reason}\n")),
    };
    let stdout = String::from_utf8_lossy(&written.stdout);
    let stderr = String::from_utf8_lossy(&written.stderr);
    case.compare(plan.machine, &stdout, &stderr, code)
}

/// A line, and what is different below it.
fn report(
    machine: &str,
    case: &Case,
    result: Result<(), String>,
    verdict: &[String],
    written: &Written,
) -> String {
    let Err(difference) = result else {
        return format!("  ok       {machine:5}  {}", case.name);
    };
    let mut text = format!("  DIFFERS  {machine:5}  {}", case.name);
    for line in difference.lines() {
        text.push_str("\n    ");
        text.push_str(line);
    }
    let said = [written.stdout.as_slice(), &written.stderr].concat();
    if is_failed_entry(&String::from_utf8_lossy(&said)) {
        for line in verdict {
            text.push_str("\n    bochs: ");
            text.push_str(line);
        }
    }
    text
}
