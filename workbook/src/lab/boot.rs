//! One boot of one machine: it runs its orders and what it reports is passed on.

use std::fs::{self, File};
use std::io::{BufWriter, Read};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use vmexit_lab_init::{Decoder, Ending, Job, Orders, Report, Stdin, Stream};

use super::cache::Lab;
use super::emulator::Emulator;
use super::initramfs::{self, Program};
use super::keyboard::Keyboard;
use super::pty::Pty;
use super::{Machine, bochs, qemu};
use crate::failure::Failure;
use crate::interrupt::Interrupt;

/// How often the machine's files are looked at.
const POLL: Duration = Duration::from_millis(20);

/// Lines of the console that an error shows.
const CONSOLE_TAIL: usize = 15;

/// The files of one boot; all but the kernel are in a folder of its own.
#[derive(Clone, Debug)]
pub struct Files {
    pub folder: PathBuf,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// What the first serial port says: for people.
    pub console: PathBuf,
    /// What the second serial port says: frames.
    pub results: PathBuf,
    /// Where the second serial port reads what the reader types, if anything does.
    pub keyboard: Option<PathBuf>,
    /// What the emulator itself says, where it says anything.
    pub log: PathBuf,
}

/// What happens during a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing yet; the machine has run for so long.
    Waiting(Duration),
    /// The machine is up and has loaded KVM.
    Ready,
    /// This job runs now.
    Started(usize),
    /// This job wrote something.
    Output(usize, Stream, Vec<u8>),
    /// This job is over; and what the emulator said of the VM entries that it
    /// refused meanwhile.
    Finished(usize, Ending, Vec<String>),
}

/// What a boot needs.
pub struct Plan<'a> {
    pub lab: &'a Lab,
    pub machine: Machine,
    /// Whether the AMD machine's CPU has nested paging.
    pub nested_paging: bool,
    /// The static PID 1.
    pub init: PathBuf,
    pub programs: Vec<Program>,
    pub jobs: Vec<Job>,
}

impl Plan<'_> {
    fn wants_keys(&self) -> bool {
        self.jobs.iter().any(|job| job.stdin == Stdin::Keyboard)
    }
}

/// Boots the machine, runs the jobs and passes every event to `watch`.
///
/// # Errors
/// [`Failure`] when the machine does not boot, panics, hangs or says something
/// that cannot be trusted; when the reader interrupts; and whatever `watch` says.
pub fn run(plan: &Plan, interrupt: &Interrupt, watch: &mut dyn FnMut(Event) -> Result<()>) -> Result<()> {
    let temporary: TempDir = tempfile::Builder::new()
        .prefix("vmexit-lab-")
        .tempdir()
        .context("cannot make a temporary folder; set TMPDIR to one that is writable")?;
    let files = prepare(plan, &temporary)?;
    let mut keyboard = files.keyboard.as_deref().map(Keyboard::new).transpose()?;
    let mut boot = Boot::start(plan, files)?;
    while !boot.done {
        interrupt.check()?;
        // Until there is a program to type to, Ctrl-C is the reader's way out.
        if let (Some(_), Some(keyboard)) = (boot.running, &mut keyboard) {
            keyboard.connect()?;
        }
        boot.step(watch)?;
    }
    Ok(())
}

fn prepare(plan: &Plan, temporary: &TempDir) -> Result<Files> {
    let folder = temporary.path().to_path_buf();
    let files = Files {
        kernel: plan.lab.kernel(),
        initramfs: folder.join("initramfs"),
        console: folder.join("console"),
        results: folder.join("results"),
        keyboard: plan.wants_keys().then(|| folder.join("keyboard")),
        log: folder.join("log"),
        folder,
    };
    let modules = plan.lab.modules(plan.machine)?;
    let orders = Orders {
        modules: modules.iter().map(|module| initramfs::module_path(module)).collect(),
        heartbeat: plan.machine == Machine::Intel,
        jobs: plan.jobs.clone(),
    };
    let archive = File::create(&files.initramfs).context("cannot write the initramfs")?;
    initramfs::write(BufWriter::new(archive), &plan.init, &modules, &plan.programs, &orders)?;
    Ok(files)
}

/// A machine that runs.
struct Boot<'a> {
    machine: Machine,
    jobs: &'a [Job],
    emulator: Emulator,
    _terminal: Option<Pty>,
    started: Instant,
    console: Growing,
    results: Growing,
    log: Growing,
    decoder: Decoder,
    /// The job that runs.
    running: Option<usize>,
    /// When the machine last said anything.
    last_sign: Instant,
    done: bool,
}

impl<'a> Boot<'a> {
    fn start(plan: &'a Plan, files: Files) -> Result<Self> {
        let stamp = &plan.lab.stamp;
        let (mut command, terminal) = match plan.machine {
            Machine::Amd => {
                let program = qemu::program(stamp.qemu.as_ref());
                (qemu::command(&program, &files, plan.nested_paging), None)
            }
            Machine::Intel => {
                let pty = Pty::open().map_err(|error| {
                    Failure::bad_input(format!(
                        "Bochs needs a pseudo-terminal and the system has none: {error}"
                    ))
                })?;
                (bochs::command(&bochs::program(stamp.bochs.as_ref()), plan.lab, &files, &pty)?, Some(pty))
            }
        };
        if plan.machine == Machine::Amd {
            let log = File::create(&files.log).context("cannot write QEMU's log")?;
            match &files.keyboard {
                Some(keyboard) => {
                    // Opened anew, for both directions: QEMU makes its end one that does not wait.
                    let keys = File::options().read(true).write(true).open(keyboard);
                    let results = File::create(&files.results).context("cannot write the results")?;
                    command
                        .stdin(keys.context("cannot open the keyboard's pipe")?)
                        .stdout(results)
                        .stderr(log);
                }
                None => {
                    command.stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log);
                }
            }
        }
        let emulator = Emulator::start(&mut command).map_err(|error| {
            let program = command.get_program().to_string_lossy();
            Failure::bad_input(format!("{program} does not start: {error}; run `cargo vmexit lab setup`"))
        })?;
        let now = Instant::now();
        Ok(Self {
            machine: plan.machine,
            jobs: &plan.jobs,
            emulator,
            _terminal: terminal,
            started: now,
            console: Growing::new(files.console),
            results: Growing::new(files.results),
            log: Growing::new(files.log),
            decoder: Decoder::default(),
            running: None,
            last_sign: now,
            done: false,
        })
    }

    /// Takes in what the machine said since the last step.
    fn step(&mut self, watch: &mut dyn FnMut(Event) -> Result<()>) -> Result<()> {
        // Asked first, so that what it wrote before it ended is read below.
        let ended = self.emulator.ended().context("cannot wait for the emulator")?;
        let said = self.results.grown()?;
        let console_grew = !self.console.grown()?.is_empty();
        if console_grew || !said.is_empty() {
            self.last_sign = Instant::now();
        }
        let reports = match self.decoder.push(&said) {
            Ok(reports) => reports,
            Err(damage) => {
                return Err(self.failure(&format!("said something that cannot be trusted: {damage}")));
            }
        };
        for report in reports {
            self.take(report, watch)?;
        }
        if self.done {
            return Ok(());
        }
        if console_grew && self.console.text().contains("Kernel panic - not syncing") {
            return Err(self.failure("had a kernel panic"));
        }
        if let Some(status) = ended {
            return Err(self.failure(&format!("stopped before its work was done (its emulator: {status})")));
        }
        self.check_patience()?;
        watch(Event::Waiting(self.started.elapsed()))?;
        thread::sleep(POLL);
        Ok(())
    }

    fn take(&mut self, report: Report, watch: &mut dyn FnMut(Event) -> Result<()>) -> Result<()> {
        match report {
            Report::Ready { .. } => watch(Event::Ready),
            Report::Started { job } => {
                self.running = Some(job);
                self.log.grown()?;
                watch(Event::Started(job))
            }
            Report::Output { job, stream, bytes } => watch(Event::Output(job, stream, bytes.0)),
            Report::Finished { job, ending } => {
                self.running = None;
                let log = String::from_utf8_lossy(&self.log.grown()?).into_owned();
                let verdict = bochs::refused_entries(&log).into_iter().map(str::to_owned).collect();
                watch(Event::Finished(job, ending, verdict))
            }
            Report::Done => {
                self.done = true;
                Ok(())
            }
            Report::Failed { reason } => Err(self.failure(&format!("cannot run KVM: {reason}"))),
        }
    }

    fn check_patience(&self) -> Result<()> {
        let silence = self.last_sign.elapsed();
        // A job may be silent until its own limit, by a clock that may be slower.
        let job = self.running.map_or(0, |job| self.jobs[job].limit_seconds);
        let patience = self.machine.patience().max(Duration::from_secs(job + 30));
        if silence < patience {
            return Ok(());
        }
        let seconds = patience.as_secs();
        let sentence = format!("gave no sign of life for {seconds} s and was switched off");
        bail!(Failure::deadline(self.with_console(&sentence)))
    }

    fn failure(&self, what: &str) -> anyhow::Error {
        Failure::bad_input(self.with_console(what)).into()
    }

    /// A sentence about the machine, and under it what its console and its
    /// emulator said last.
    fn with_console(&self, what: &str) -> String {
        let mut text = format!("the {} machine {what}", self.machine);
        let console = self.console.text();
        let lines: Vec<&str> = console.lines().filter(|line| !line.trim().is_empty()).collect();
        if lines.is_empty() {
            text.push_str("; its console is empty");
        } else {
            text.push_str("; the end of its console:");
        }
        for line in &lines[lines.len().saturating_sub(CONSOLE_TAIL)..] {
            text.push_str("\n  | ");
            text.push_str(line);
        }
        let log = self.log.text();
        let emulator: Vec<&str> = match self.machine {
            Machine::Amd => log.lines().filter(|line| !line.contains("warning: ")).collect(),
            Machine::Intel => bochs::panics(&log),
        };
        for line in emulator {
            text.push_str("\n  emulator: ");
            text.push_str(line);
        }
        text
    }
}

/// A file that somebody else appends to.
struct Growing {
    path: PathBuf,
    file: Option<File>,
}

impl Growing {
    const fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// What was appended since the last call. The file need not exist yet.
    fn grown(&mut self) -> Result<Vec<u8>> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let mut bytes = Vec::new();
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut bytes).with_context(|| format!("cannot read {}", self.path.display()))?;
        }
        Ok(bytes)
    }

    /// All of it, from the beginning.
    fn text(&self) -> String {
        fs::read(&self.path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}
