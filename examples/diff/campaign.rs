//! Sequence after sequence, until enough was compared.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
#[cfg(host_kvm)]
use vmexit::kvm::CpuId;
use vmexit::kvm::Kvm;

use crate::compare::Verdict;
use crate::coverage::Coverage;
use crate::generator;
use crate::minimal;
use crate::options::Options;
use crate::pair::{Makers, Other, Pair};
use crate::referee::Referee;
use crate::setting::{SETTINGS, Setting};
use crate::step::Sequence;

/// After so many differences a run ends: something is wrong with the machine as a whole.
const ENOUGH: u64 = 50;

/// What a run came to.
#[derive(Debug, Default)]
pub struct Totals {
    pub same: u64,
    pub different: u64,
    /// Differences that were there once, and not when the sequence ran again on new machines.
    pub unrepeatable: u64,
    pub not_implemented: u64,
    /// Steps that the KVM could not run, by what it said.
    gave_up: BTreeMap<String, u64>,
    /// Steps that a row of the referee's table is about.
    lacking: BTreeMap<&'static str, u64>,
}

/// Compares as many steps as were asked for; reports on stdout.
pub fn run(options: &Options) -> Result<Totals> {
    let settings = generator::settings(&options.settings).map_err(anyhow::Error::msg)?;
    let makers = makers(options)?;
    println!("the software machine and {}", makers.name());
    let mut pairs = pairs(&makers, &settings)?;
    let settings: Vec<Setting> = pairs.iter().map(|pair| pair.setting()).collect();
    let mut totals = Totals::default();
    let mut coverage = Coverage::default();
    let mut progress = Progress::new(options);
    let started = Instant::now();
    let mut number = options.sequence.unwrap_or(0);
    loop {
        // The number alone decides, so that a sequence is the same whatever this KVM can run.
        let sequence = generator::sequence(options.seed, number, &SETTINGS);
        if let Some(pair) = pairs.iter_mut().find(|pair| pair.setting() == sequence.setting) {
            compare(pair, &sequence, (options.seed, number), &mut totals, &mut coverage)?;
            progress.show(totals.same);
        }
        number += 1;
        let done = options.sequence.is_some() || totals.same + totals.different >= options.count;
        if done || totals.different >= ENOUGH {
            break;
        }
    }
    progress.clear();
    if options.table {
        coverage.print(&settings, makers.referee);
    }
    totals.print(number, started.elapsed());
    Ok(totals)
}

/// The machines that there are.
fn makers(options: &Options) -> Result<Makers> {
    let cpuid = |kvm: &Kvm| {
        kvm.get_supported_cpuid(vmexit::kvm::MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")
    };
    if options.itself {
        return Ok(Makers { other: Other::Soft, cpuid: cpuid(&Kvm::soft())?, referee: Referee::Silicon });
    }
    #[cfg(not(host_kvm))]
    bail!("there is no KVM on this system");
    #[cfg(host_kvm)]
    kvm_makers(&cpuid)
}

/// The KVM at hand, unless it is none to compare with.
#[cfg(host_kvm)]
fn kvm_makers(cpuid: &dyn Fn(&Kvm) -> Result<CpuId>) -> Result<Makers> {
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    let referee = Referee::at_hand();
    if referee == Referee::Emulator {
        bail!(
            "this host's KVM runs guests by emulation (its CPU shows neither VT-x nor AMD-V), \
             and an emulator is no referee; use `cargo vmexit diff --amd` or `--intel`"
        );
    }
    crate::alarm::start().context("cannot set a timer")?;
    let device = kvm_ioctls::Kvm::new().context("cannot open /dev/kvm")?;
    Ok(Makers { other: Other::Kvm(device), cpuid: cpuid(&kvm)?, referee })
}

/// A pair for each setting that both machines can run.
fn pairs<'a>(makers: &'a Makers, settings: &[Setting]) -> Result<Vec<Pair<'a>>> {
    let mut pairs = Vec::new();
    for setting in settings {
        let mut pair = Pair::new(makers, *setting)?;
        match pair.prepare_registers() {
            Ok(()) => pairs.push(pair),
            Err(error) => println!("not in {setting}: {error:#}"),
        }
    }
    if pairs.is_empty() {
        bail!("this KVM can run none of the settings");
    }
    Ok(pairs)
}

/// Runs a sequence, and again on new machines where it differs.
fn compare(
    pair: &mut Pair,
    sequence: &Sequence,
    (seed, number): (u64, u64),
    totals: &mut Totals,
    coverage: &mut Coverage,
) -> Result<()> {
    let mut difference = None;
    pair.run(sequence, false, &mut |step, verdict| match verdict {
        Verdict::Same => {
            totals.same += 1;
            coverage.note(&sequence.setting, &sequence.steps[step].instruction);
        }
        Verdict::GaveUp(reason) => *totals.gave_up.entry(reason.clone()).or_default() += 1,
        Verdict::NotImplemented => {
            totals.not_implemented += 1;
            coverage.note_missing(&sequence.steps[step].instruction);
        }
        Verdict::Lacking(what) => *totals.lacking.entry(what).or_default() += 1,
        Verdict::Different(lines) => difference = Some((step, lines.clone())),
    })?;
    let Some((step, lines)) = difference else { return Ok(()) };
    let first = pair.take_last();
    pair.renew()?;
    let (mut again, mut explained) = (None, None);
    let at_the_end = step == sequence.steps.len();
    pair.run(sequence, at_the_end, &mut |step, verdict| match verdict {
        Verdict::Different(lines) => again = Some((step, lines.clone())),
        Verdict::Lacking(what) => explained = Some(*what),
        _ => {}
    })?;
    if let (None, Some(what), true) = (&again, explained, at_the_end) {
        // Now that all memory was compared after each step, a row of the table is found to be about one.
        *totals.lacking.entry(what).or_default() += 1;
        return Ok(());
    }
    let second = pair.take_last();
    match again {
        None if step < sequence.steps.len()
            && first.is_some_and(|first| second.is_none_or(|second| !second.differs_on_the_left(&first))) =>
        {
            // The software machine did the same both times; it was the KVM that did not.
            totals.unrepeatable += 1;
            println!("once, and not again, {}", minimal::name(sequence, seed, number, step));
            Ok(())
        }
        None => {
            totals.different += 1;
            println!("differs only after other sequences: {}", minimal::name(sequence, seed, number, step));
            lines.iter().for_each(|line| println!("  {line}"));
            Ok(())
        }
        Some((step, lines)) => {
            totals.different += 1;
            println!("{}", minimal::report(pair, sequence, (seed, number, step), &lines)?);
            Ok(())
        }
    }
}

impl Totals {
    fn print(&self, sequences: u64, elapsed: Duration) {
        let each = self.same as f64 / elapsed.as_secs_f64();
        println!(
            "{} instructions the same, {} different, in {sequences} sequences and {:.0} s ({each:.0} a second)",
            self.same,
            self.different,
            elapsed.as_secs_f64()
        );
        if self.unrepeatable > 0 {
            println!("{} that differed once and not again on new machines", self.unrepeatable);
        }
        if self.not_implemented > 0 {
            println!("{} that the software machine does not have", self.not_implemented);
        }
        for (reason, count) in &self.gave_up {
            println!("{count} that KVM could not run: {reason}");
        }
        for (what, count) in &self.lacking {
            println!("{count} not compared here: {what}");
        }
    }
}

/// How far it is: on a terminal a line that moves, for a program a line now and then.
struct Progress {
    total: u64,
    shown: Instant,
    lines: bool,
}

impl Progress {
    fn new(options: &Options) -> Self {
        Self { total: options.count, shown: Instant::now(), lines: options.progress }
    }

    fn show(&mut self, done: u64) {
        if self.shown.elapsed() < Duration::from_millis(500) {
            return;
        }
        self.shown = Instant::now();
        if self.lines {
            eprintln!("progress {done} {}", self.total);
        } else if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{done} of {}", self.total);
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&self) {
        if !self.lines && std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}
