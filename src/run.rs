//! A run of a chapter: what was asked for, until when, what has happened, and
//! where it is written. Chapter 02.

mod handlers;
pub(crate) mod interrupt;
pub mod options;
pub mod screen;
pub mod terminal;
mod trap_flag;
mod watch;

pub(crate) use watch::Watch;

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::chapter::{Chapter, ListingShown};
use crate::disasm;
use crate::exit::{Exit, Unexpected};
use crate::explain;
use crate::guest::Image;
use crate::kvm::{VcpuExit, VcpuFd};
use crate::mode;
use crate::status::Status;
use crate::trace::{Recorder, Recording};
use options::Options;

/// One run of a chapter. Clones share it.
#[derive(Clone)]
pub struct Run(Arc<Shared>);

struct Shared {
    chapter: &'static Chapter,
    options: Options,
    started: Instant,
    /// How long the guest may run, in milliseconds; [`NO_DEADLINE`] is for ever.
    deadline: AtomicU64,
    /// Whether exits are recorded only where a trace was asked for.
    vms: AtomicU32,
    /// How many entry states `--check` has looked at, and in how many it found something.
    checked: AtomicU64,
    refused: AtomicU64,
    /// Whether this KVM shows RIP after a plain `out`; the probe has seen it.
    out_after: AtomicBool,
    recorder: Mutex<Recorder>,
}

const NO_DEADLINE: u64 = u64::MAX;
/// What a chapter's guest gets where nothing else is said.
const DEADLINE: Duration = Duration::from_secs(10);

/// What ended a run from outside the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Ctrl-C.
    Interrupted,
    /// The guest had its time.
    Deadline,
}

impl Run {
    /// # Errors
    /// When a trace file cannot be made.
    pub fn new(chapter: &'static Chapter, options: Options) -> Result<Self, TraceError> {
        let recorder = Recorder::new(chapter, &options)?;
        let deadline = options.deadline.unwrap_or(DEADLINE);
        Ok(Self(Arc::new(Shared {
            chapter,
            options,
            started: Instant::now(),
            deadline: AtomicU64::new(deadline.as_millis() as u64),
            vms: AtomicU32::new(0),
            checked: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            out_after: AtomicBool::new(false),
            recorder: Mutex::new(recorder),
        })))
    }

    /// The chapter that runs.
    #[must_use]
    pub fn chapter(&self) -> &'static Chapter {
        self.0.chapter
    }

    /// The flags that it was given.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// Whether the broken variant `name` is to be run.
    #[must_use]
    pub fn breaks(&self, name: &str) -> bool {
        self.0.options.variant == Some(name)
    }

    /// Prints the guest's listing, and lets the trace name the guest's addresses.
    ///
    /// # Errors
    /// [`ListingShown`], which ends the program well, when only the listing was asked for.
    pub fn show(&self, image: &Image) -> Result<(), ListingShown> {
        self.say(format_args!("{}", disasm::listing(image)));
        self.name_addresses(image);
        if self.0.options.listing_only { Err(ListingShown) } else { Ok(()) }
    }

    /// Lets the trace name the guest's addresses by this image from now on.
    pub fn name_addresses(&self, image: &Image) {
        self.recorder().set_image(image.clone());
    }

    /// From now on the text trace is printed only if `--trace text` asked for it: for a guest with
    /// thousands of exits.
    pub fn show_exits_if_asked(&self) {
        if !self.0.options.traces.contains(&options::TraceTo::Text) {
            self.recorder().show_exits(false);
        }
    }

    /// From now on the text trace has the exits again.
    pub fn show_exits_again(&self) {
        self.recorder().show_exits(true);
    }

    /// Prints a line of the chapter's own on stdout, unless the JSON trace is there.
    pub fn say(&self, line: impl Display) {
        self.recorder().say(&line.to_string());
    }

    /// The last exit, with all that kvm_run said of it.
    #[must_use]
    pub fn last_exit(&self) -> Option<Exit> {
        self.recorder().last_exit()
    }

    /// Where KVM's emulator gave up at the last exit, in words; `blame` says that it did so at the
    /// instruction.
    pub(crate) fn last_place(&self, blame: bool) -> Option<String> {
        self.recorder().last_place(blame)
    }

    /// Why the last exit was a shutdown, a line each: the run, played again on the software machine, to
    /// the instruction that died.
    #[must_use]
    pub fn post_mortem(&self) -> Vec<String> {
        let recorder = self.recorder();
        let recording = recorder.last_recording();
        recording.map_or_else(Vec::new, |(recording, vcpus)| {
            explain::post_mortem(recording, vcpus, &|place| recorder.code(place))
        })
    }

    /// What each vCPU started from and was told, in the order of their first entries.
    #[must_use]
    pub fn recordings(&self) -> Vec<Recording> {
        self.recorder().recordings().to_vec()
    }

    /// What has ended the run from outside, if anything has.
    #[must_use]
    pub fn stopped(&self) -> Option<Stop> {
        if interrupt::came() {
            return Some(Stop::Interrupted);
        }
        self.time_left().is_some_and(|left| left.is_zero()).then_some(Stop::Deadline)
    }

    /// Gives the guest another time than 10 s, or all the time in the world, where
    /// the command line names none.
    pub fn set_default_deadline(&self, deadline: Option<Duration>) {
        if self.0.options.deadline.is_none() {
            let milliseconds = deadline.map_or(NO_DEADLINE, |deadline| deadline.as_millis() as u64);
            self.0.deadline.store(milliseconds, Ordering::Relaxed);
        }
    }

    fn deadline(&self) -> Option<Duration> {
        let milliseconds = self.0.deadline.load(Ordering::Relaxed);
        (milliseconds != NO_DEADLINE).then(|| Duration::from_millis(milliseconds))
    }

    /// How long the guest may still run; `None` is for ever.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        Some(self.deadline()?.saturating_sub(self.0.started.elapsed()))
    }

    pub(crate) fn next_vm(&self) -> u32 {
        self.0.vms.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn set_out_after(&self, after: bool) {
        self.0.out_after.store(after, Ordering::Relaxed);
    }

    pub(crate) fn out_after(&self) -> bool {
        self.0.out_after.load(Ordering::Relaxed)
    }

    pub(crate) fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.0.recorder.lock().expect("nobody panics while recording")
    }

    /// `--check` has looked at an entry state.
    pub(crate) fn count_check(&self, refused: bool) {
        self.0.checked.fetch_add(1, Ordering::Relaxed);
        self.0.refused.fetch_add(refused.into(), Ordering::Relaxed);
    }

    /// What `--check` has found, if it was given and a guest was entered.
    pub(crate) fn check_report(&self) -> Option<String> {
        let (checked, refused) =
            (self.0.checked.load(Ordering::Relaxed), self.0.refused.load(Ordering::Relaxed));
        let found = match refused {
            0 => "none breaks a rule of VM entry".to_owned(),
            _ => format!("{refused} break a rule of VM entry"),
        };
        (checked > 0).then(|| format!("--check looked at {checked} entry states: {found}"))
    }

    /// Where the guest was when its time was up.
    pub(crate) fn deadline_report(&self) -> String {
        let seconds = self.deadline().unwrap_or_default().as_secs_f64();
        let place = self.recorder().stuck_at().map_or(String::new(), |at| format!("; it was at {at}"));
        format!("the guest did not end within {seconds} s{place}; --deadline SECONDS gives it longer")
    }

    /// The loop in which it went round, a line each.
    pub(crate) fn stuck_in(&self) -> Vec<String> {
        self.recorder().stuck_in()
    }

    /// Ends the traces.
    pub(crate) fn finish(&self, status: Status) -> Result<(), TraceError> {
        self.recorder().finish(status)
    }
}

/// A trace, or the chapter's own words, could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {to}: {error}")]
pub struct TraceError {
    pub to: String,
    pub error: std::io::Error,
}

/// Where a guest reports how far it has come: the port that PC firmware writes
/// its power-on self-test codes to.
pub const POST: u16 = 0x80;

// ANCHOR: until_halt
/// Runs the guest until it halts. At each progress code that it writes to
/// [`POST`] the run shows the mode and the ring that `KVM_GET_SREGS` reports:
/// what the CPU is in, not what the guest believes.
///
/// # Errors
/// The errno of an ioctl; [`Unexpected`] for any other exit.
pub fn until_halt(run: &Run, vcpu: &mut VcpuFd) -> anyhow::Result<()> {
    loop {
        match vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(POST, &[code]) => {
                let sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
                run.say(format_args!("      {code}: {}", mode::describe(&sregs)));
            }
            VcpuExit::Hlt => return Ok(()),
            exit => return Err(Unexpected::from(exit).into()),
        }
    }
}
// ANCHOR_END: until_halt
