//! How many exits of which kind a boot takes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vmexit::kvm::VcpuExit;

/// What is counted on its own.
const FIRST: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Out(u16),
    In(u16),
    MmioWrite,
    MmioRead,
    Other,
}

/// Exits by kind: those of the first two seconds, and all.
pub struct Exits {
    started: Instant,
    counts: BTreeMap<Kind, (u64, u64)>,
}

impl Exits {
    pub fn start() -> Self {
        Self { started: Instant::now(), counts: BTreeMap::new() }
    }

    pub fn count(&mut self, exit: &VcpuExit<'_>) {
        let kind = match exit {
            VcpuExit::IoOut(port, _) => Kind::Out(*port),
            VcpuExit::IoIn(port, _) => Kind::In(*port),
            VcpuExit::MmioWrite(..) => Kind::MmioWrite,
            VcpuExit::MmioRead(..) => Kind::MmioRead,
            _ => Kind::Other,
        };
        let early = self.started.elapsed() < FIRST;
        let (first, all) = self.counts.entry(kind).or_default();
        *first += u64::from(early);
        *all += 1;
    }

    /// Writes the table to a file, or to stderr where that is `-`; the most frequent first.
    pub fn write(&self, file: &str) -> Result<()> {
        if file == "-" {
            eprint!("{}", self.table());
            return Ok(());
        }
        std::fs::write(file, self.table()).with_context(|| file.to_owned())
    }

    fn table(&self) -> String {
        let mut rows: Vec<_> = self.counts.iter().collect();
        rows.sort_by_key(|(kind, (_, all))| (std::cmp::Reverse(*all), **kind));
        let mut text = format!("{:<14} {:>10} {:>10}\n", "exit", "first 2 s", "all");
        for (kind, (first, all)) in rows {
            let name = match kind {
                Kind::Out(port) => format!("out {port:#x}"),
                Kind::In(port) => format!("in {port:#x}"),
                Kind::MmioWrite => "MMIO write".to_owned(),
                Kind::MmioRead => "MMIO read".to_owned(),
                Kind::Other => "other".to_owned(),
            };
            writeln!(text, "{name:<14} {first:>10} {all:>10}").expect("a String takes everything");
        }
        let (first, all) =
            self.counts.values().fold((0, 0), |(first, all), row| (first + row.0, all + row.1));
        writeln!(text, "{:<14} {first:>10} {all:>10}", "together").expect("a String takes everything");
        text
    }
}
