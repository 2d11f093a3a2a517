//! `vmexit diff`: the software machine against KVM, instruction by instruction,
//! on this host's KVM or on the lab's machines. The comparing is done by the
//! workbook's example of the same name; this builds it, carries it to where it
//! runs and shows how far it is.

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use vmexit::status::Status;
use vmexit_lab_init::{Ending, Stream};

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::lab::boot::{self, Event, Plan};
use crate::lab::cache::{self, Lab};
use crate::lab::initramfs::Program;
use crate::lab::{Choice, Machine, program, single};
use crate::root;

/// The example that compares.
const EXAMPLE: &str = "diff";

/// What `vmexit diff` was asked for.
#[derive(Debug, Args)]
pub struct DiffArguments {
    #[command(flatten)]
    machines: Choice,

    /// How many instructions to compare, on each machine
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    count: u64,

    /// Where chance begins: the same seed, the same instructions
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// This sequence of the seed alone, as a difference names it
    #[arg(long, value_name = "N")]
    sequence: Option<u64>,

    /// In this setting only (real, prot32, long-ring3, …); may be given again
    #[arg(long, value_name = "NAME")]
    setting: Vec<String>,

    /// Print what was compared in which setting, and what was not and why
    #[arg(long)]
    table: bool,

    /// Seconds, by the machine's clock, after which the lab's run is killed
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    limit: u64,
}

impl DiffArguments {
    /// The example's command line.
    fn for_example(&self) -> Vec<String> {
        let mut arguments: Vec<String> =
            ["--progress", "--count", &self.count.to_string(), "--seed", &self.seed.to_string()]
                .map(str::to_owned)
                .to_vec();
        if let Some(sequence) = self.sequence {
            arguments.extend(["--sequence".to_owned(), sequence.to_string()]);
        }
        for setting in &self.setting {
            arguments.extend(["--setting".to_owned(), setting.clone()]);
        }
        if self.table {
            arguments.push("--table".to_owned());
        }
        arguments
    }
}

/// Compares; returns the tool's exit code: 0 without a difference, 1 with one, 2 where a machine
/// cannot be had.
///
/// # Errors
/// Whatever keeps it from comparing.
pub fn run(arguments: &DiffArguments) -> Result<u8> {
    let interrupt = Interrupt::listen()?;
    let root = root::find()?;
    let Some(machines) = arguments.machines.chosen() else {
        return on_this_host(&root, arguments, &interrupt);
    };
    let lab = Lab::open(&cache::folder()?).map_err(Failure::from)?;
    single::check_emulators(&lab, &machines)?;
    let init = program::build(&root, &[])?.remove(program::INIT).context("cargo built no PID 1")?;
    let example = program::build_example(&root, EXAMPLE)?;
    interrupt.check()?;
    let mut code = 0;
    for machine in machines {
        let ended = on(machine, &lab, (&init, &example), arguments, &interrupt)?;
        code = if code == 0 { ended } else { code };
    }
    Ok(code)
}

/// On this host's KVM, by cargo.
fn on_this_host(root: &Path, arguments: &DiffArguments, interrupt: &Interrupt) -> Result<u8> {
    let mut child = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["run", "--quiet", "--release", "--package", "vmexit", "--example", EXAMPLE, "--"])
        .args(arguments.for_example())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let said = child.stderr.take().context("cargo's stderr was piped")?;
    let mut screen = Screen::new("this host");
    for line in BufReader::new(said).split(b'\n') {
        let mut line = line.context("cannot read what the comparison says")?;
        line.push(b'\n');
        screen.stderr(&line)?;
    }
    let status = child.wait().context("cannot wait for cargo")?;
    // Ctrl-C went to cargo and the example, too.
    interrupt.check()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(Status::Bug as u8))
}

/// In a boot of a machine of the lab.
fn on(
    machine: Machine,
    lab: &Lab,
    (init, example): (&Path, &PathBuf),
    arguments: &DiffArguments,
    interrupt: &Interrupt,
) -> Result<u8> {
    let inside = format!("/bin/{EXAMPLE}");
    let plan = Plan {
        lab,
        machine,
        nested_paging: false,
        init: init.to_path_buf(),
        programs: vec![Program { inside: inside.clone(), file: example.clone() }],
        jobs: vec![single::job(&inside, &arguments.for_example(), arguments.limit)],
    };
    let mut screen = Screen::new(&format!("the {machine} machine"));
    let mut code = Status::Bug as u8;
    boot::run(&plan, interrupt, &mut |event| {
        match event {
            Event::Output(_, Stream::Stdout, bytes) => screen.stdout(&bytes)?,
            Event::Output(_, Stream::Stderr, bytes) => screen.stderr(&bytes)?,
            Event::Finished(_, ending, _) => code = exit_code(&ending, arguments.limit),
            Event::Waiting(_) => screen.bar.tick(),
            Event::Ready | Event::Started(_) => {}
        }
        Ok(())
    })?;
    Ok(code)
}

fn exit_code(ending: &Ending, limit: u64) -> u8 {
    match ending {
        Ending::Code(code) => u8::try_from(*code).unwrap_or(Status::Bug as u8),
        Ending::Signal(signal) => {
            eprintln!("vmexit: signal {signal} ended the comparison");
            Status::Bug as u8
        }
        Ending::TimedOut => {
            eprintln!("vmexit: the comparison was killed after {limit} s; --limit SECONDS gives it more");
            Status::Deadline as u8
        }
        Ending::NotStarted(reason) => {
            eprintln!("vmexit: {reason}");
            Status::BadInput as u8
        }
    }
}

/// The terminal: a bar that moves below what is printed.
struct Screen {
    bar: ProgressBar,
    /// The beginning of a line on stderr whose end is still to come.
    unfinished: Vec<u8>,
}

impl Screen {
    fn new(place: &str) -> Self {
        let bar = ProgressBar::new(0);
        let style =
            ProgressStyle::with_template("{prefix}: {wide_bar} {pos} of {len}, {per_sec}, {eta} left");
        bar.set_style(style.expect("a template that indicatif knows"));
        bar.set_prefix(place.to_owned());
        Self { bar, unfinished: Vec::new() }
    }

    fn stdout(&self, bytes: &[u8]) -> Result<()> {
        self.bar.suspend(|| {
            let mut stdout = io::stdout();
            stdout.write_all(bytes).and_then(|()| stdout.flush()).context("cannot print the results")
        })
    }

    /// Takes the lines about the progress for the bar, and passes on the others.
    fn stderr(&mut self, bytes: &[u8]) -> Result<()> {
        self.unfinished.extend_from_slice(bytes);
        while let Some(end) = self.unfinished.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unfinished.drain(..=end).collect();
            match progress(&String::from_utf8_lossy(&line)) {
                Some((done, total)) => {
                    self.bar.set_length(total);
                    self.bar.set_position(done);
                }
                None => {
                    self.bar.suspend(|| io::stderr().write_all(&line)).context("cannot pass on a message")?
                }
            }
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// How far the example is, if the line says so: `progress DONE TOTAL`.
fn progress(line: &str) -> Option<(u64, u64)> {
    let (done, total) = line.trim().strip_prefix("progress ")?.split_once(' ')?;
    Some((done.parse().ok()?, total.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_about_the_progress_is_told_from_others() {
        assert_eq!(progress("progress 17 500\n"), Some((17, 500)));
        assert_eq!(progress("progress is slow\n"), None);
        assert_eq!(progress("diff: cannot open /dev/kvm\n"), None);
    }
}
