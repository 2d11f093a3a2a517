//! What every chapter's `main` is: flags, Ctrl-C, one report of an error, one
//! table of exit codes.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::boot::BadFile;
use crate::boot::linux::{KernelError, LoadError};
use crate::exit::{Exit, Unexpected};
use crate::explain;
use crate::guest::{ImageError, MemoryError};
use crate::kvm::{self, OpenError, Probe};
use crate::run::options::{self, Command, Options};
use crate::run::{Run, Stop, interrupt};
use crate::status::{Status, complain};

/// A chapter, as its flags and its reports name it.
#[derive(Debug)]
pub struct Chapter {
    /// The binary: `ch05`.
    pub name: &'static str,
    /// The page's title in the book.
    pub title: &'static str,
    /// What a machine must be able to run for it.
    pub needs: Probe,
    /// Flags that it has beyond those of every chapter.
    pub flags: &'static [Flag],
    /// Its broken variants, for `--break`.
    pub breaks: &'static [Break],
}

/// A flag of one chapter, which takes a value: `--program NAME`.
#[derive(Debug)]
pub struct Flag {
    /// What it is called, without the dashes.
    pub name: &'static str,
    /// What the help calls its value.
    pub value: &'static str,
    /// What it is for, at most two lines of the help.
    pub what: &'static str,
}

/// A deliberately broken variant of a chapter.
#[derive(Debug)]
pub struct Break {
    /// What `--break` calls it.
    pub name: &'static str,
    /// What it changes.
    pub what: &'static str,
    /// Why it ends as it does, in one sentence.
    pub why: &'static str,
}

/// Runs a chapter: reads its flags, runs `body`, reports what went wrong on
/// stderr, and returns the exit code of [`Status`].
pub fn main(chapter: &'static Chapter, body: fn(&Run) -> anyhow::Result<()>) -> ExitCode {
    interrupt::prepare();
    let backend = std::env::var("VMEXIT_BACKEND").ok();
    let command = Options::parse(chapter, std::env::args_os().skip(1), backend.as_deref());
    let status = match command {
        Ok(Command::Help) => print(&options::help(chapter)),
        Ok(Command::ListVariants) => print(&options::variants(chapter)),
        Ok(Command::Run(options)) => run(chapter, options, body),
        Err(sentence) => {
            complain(format_args!("{}: {sentence}\n\n{}", chapter.name, options::help(chapter)));
            Status::BadInput
        }
    };
    status.into()
}

fn print(text: &str) -> Status {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Status::Success,
        Err(_) => Status::BadInput,
    }
}

fn run(chapter: &'static Chapter, options: Options, body: fn(&Run) -> anyhow::Result<()>) -> Status {
    let run = match Run::new(chapter, options) {
        Ok(run) => run,
        Err(error) => {
            complain(format_args!("{}: {error}", chapter.name));
            return Status::BadInput;
        }
    };
    let result = body(&run);
    let status = match &result {
        Ok(()) => Status::Success,
        Err(error) => report(&run, error),
    };
    if let Some(report) = run.check_report() {
        complain(format_args!("{}: {report}", chapter.name));
    }
    match run.finish(status) {
        Ok(()) => status,
        Err(error) => {
            complain(format_args!("{}: {error}", chapter.name));
            if status == Status::Success { Status::BadInput } else { status }
        }
    }
}

/// Says on stderr what ended the run, and finds the exit code for it.
fn report(run: &Run, error: &anyhow::Error) -> Status {
    if error.is::<ListingShown>() {
        return Status::Success;
    }
    let name = run.chapter().name;
    match run.stopped() {
        Some(Stop::Interrupted) => {
            complain(format_args!("{name}: interrupted"));
            return Status::Interrupted;
        }
        Some(Stop::Deadline) => {
            complain(format_args!("{name}: {}", run.deadline_report()));
            run.stuck_in().iter().for_each(|line| complain(format_args!("  {line}")));
            explain_variant(run);
            return Status::Deadline;
        }
        None => {}
    }
    // The exit that the trace saw carries more than the one that the chapter's loop gave up on.
    let unexpected = error.downcast_ref::<Unexpected>();
    let unexpected = unexpected.map(|given| run.last_exit().map_or(given.clone(), Unexpected));
    if let Some(unexpected) = unexpected {
        complain(format_args!("{name}: {unexpected}"));
        if let Exit::InternalError { suberror: 1, missing } = &unexpected.0
            && let Some(place) = run.last_place(missing.is_none())
        {
            complain(format_args!("  where: {place}"));
        }
        if unexpected.0 == Exit::Shutdown {
            run.post_mortem().iter().for_each(|line| complain(format_args!("  {line}")));
        }
        explain_variant(run);
        return if unexpected.is_the_end() || run.options().variant.is_some() {
            Status::GuestFailed
        } else {
            Status::Bug
        };
    }
    complain(format_args!("{name}: {error:#}{}", explain::way_out(error)));
    explain_variant(run);
    status_of(error)
}

fn status_of(error: &anyhow::Error) -> Status {
    if error.is::<GuestFailed>() {
        return Status::GuestFailed;
    }
    let root = error.root_cause();
    let bad_input = error.is::<OpenError>()
        || error.is::<BadInput>()
        || error.is::<KernelError>()
        || error.is::<LoadError>()
        || error.is::<ImageError>()
        || error.is::<BadFile>()
        || root.is::<MemoryError>()
        || root.is::<kvm::Error>()
        || root.is::<io::Error>();
    if bad_input { Status::BadInput } else { Status::Bug }
}

fn explain_variant(run: &Run) {
    let chapter = run.chapter();
    let planted = chapter.breaks.iter().find(|variant| run.breaks(variant.name));
    if let Some(variant) = planted {
        complain(format_args!("  why: {}", variant.why));
    }
}

/// What the reader gave cannot be used: a sentence. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

/// The guest ended, and not as it should: a sentence. Exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct GuestFailed(pub String);

/// Not an error: `--listing` was given, and the listing has been printed.
#[derive(Debug, thiserror::Error)]
#[error("the listing has been printed")]
pub struct ListingShown;
