//! The differential tester: runs random instructions from random states on two
//! machines and compares what they leave: registers, flags, memory, exits and
//! exceptions. Everything follows from the seed.
//!
//! ```text
//! cargo run --release --example diff -- --count 100000
//! ```

mod compare;
mod generator;
mod subject;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lexopt::prelude::*;
use vmexit::kvm::Kvm;
use vmexit::status::Status;

use compare::Verdict;
use generator::Random;
use subject::{CPU_MODES, CpuMode, Subject};

const HELP: &str = "\
diff: random instructions on two machines, compared

Usage: cargo run --release --example diff -- [OPTIONS]

Options:
  --count N   how many instructions [default: 10000]
  --seed N    where chance begins [default: 1]
  -h, --help  print this

Exit codes: 0 no difference; 1 some; 2 a machine cannot be had.
";

struct Options {
    count: u64,
    seed: u64,
}

fn main() -> ExitCode {
    let options = match parse() {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("diff: {error}\n\n{HELP}");
            return Status::BadInput.into();
        }
    };
    match run(&options) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => Status::Bug.into(),
        Err(error) => {
            eprintln!("diff: {error:#}{}", vmexit::explain::way_out(&error));
            Status::BadInput.into()
        }
    }
}

fn parse() -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options { count: 10_000, seed: 1 };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("count") => options.count = parser.value()?.parse()?,
            Long("seed") => options.seed = parser.value()?.parse()?,
            Short('h') | Long("help") => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(options))
}

/// Returns how many cases differ.
fn run(options: &Options) -> Result<u64> {
    let (left, right) = machines()?;
    let mut pairs = Vec::new();
    for mode in CPU_MODES {
        pairs.push((mode, Subject::new(&left, mode)?, Subject::new(&right, mode)?));
    }
    let mut random = Random::new(options.seed);
    let mut mnemonics: BTreeMap<String, u64> = BTreeMap::new();
    let (mut compared, mut gave_up, mut lacking, mut differ) = (0, 0, 0, 0);
    let mut progress = Progress::new(options.count);
    for number in 0..options.count {
        progress.show(number);
        let case = generator::case(&mut random);
        let (_, left, right) =
            pairs.iter_mut().find(|(mode, ..)| *mode == case.mode).context("every mode is there")?;
        match compare::judge(&case, &left.run(&case)?, &right.run(&case)?) {
            Verdict::Same => compared += 1,
            Verdict::GaveUp => gave_up += 1,
            Verdict::NotImplemented => lacking += 1,
            Verdict::Different(report) => {
                differ += 1;
                progress.clear();
                println!("case {number} of seed {}:\n{report}", options.seed);
            }
        }
        *mnemonics.entry(format!("{:?}", case.instruction.mnemonic())).or_default() += 1;
    }
    progress.clear();
    println!("{} mnemonics in {} modes", mnemonics.len(), CPU_MODES.len());
    println!(
        "{compared} the same, {differ} different; {gave_up} that KVM could not run, {lacking} that are not implemented"
    );
    Ok(differ)
}

/// The software machine, and the KVM at hand.
fn machines() -> Result<(Kvm, Kvm)> {
    Ok((Kvm::soft(), Kvm::new().context("/dev/kvm")?))
}

/// A line on stderr, on a terminal, now and then.
struct Progress {
    total: u64,
    shown: Instant,
}

impl Progress {
    fn new(total: u64) -> Self {
        Self { total, shown: Instant::now() }
    }

    fn show(&mut self, done: u64) {
        if self.shown.elapsed() > Duration::from_millis(500) && std::io::stderr().is_terminal() {
            self.shown = Instant::now();
            eprint!("\r\x1b[K{done} of {}", self.total);
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&self) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

/// The mode's name in a report.
impl std::fmt::Display for CpuMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Real => "real mode",
            Self::Protected => "protected mode, 32-bit",
            Self::Long => "long mode, 64-bit",
        })
    }
}
