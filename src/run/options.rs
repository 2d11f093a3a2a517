//! The flags that every chapter takes.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

use crate::chapter::{Chapter, Flag};

/// Which machine runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The host's KVM device.
    Kvm,
    /// The software machine of this crate.
    Soft,
}

/// A form of the trace, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceTo {
    /// A line an exit, on stdout, among the chapter's own words.
    Text,
    /// JSON Lines, to a file, or alone on stdout.
    Json(Option<PathBuf>),
    /// Chrome trace events, for ui.perfetto.dev.
    Perfetto(PathBuf),
}

/// What the command line asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// The machine that was asked for; `None` leaves the choice to [`crate::kvm::Kvm::open`].
    pub backend: Option<Backend>,
    /// Where each exit is shown; text on stdout goes without saying.
    pub traces: Vec<TraceTo>,
    /// A record for every instruction, too.
    pub steps: bool,
    /// The broken variant to run, one of the chapter's.
    pub variant: Option<&'static str>,
    /// The chapter's own flags, with their values, in the order in which they were given.
    pub own: Vec<(&'static str, String)>,
    /// How long the guest may run; `None` leaves it to the chapter.
    pub deadline: Option<Duration>,
    /// The listing, and no run.
    pub listing_only: bool,
    /// The rules of VM entry at every entry, and not at the first alone.
    pub check: bool,
}

/// What to do: run, or print something and end.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Run the chapter.
    Run(Options),
    /// Print the help.
    Help,
    /// Print the names of the broken variants.
    ListVariants,
}

/// The longest deadline that can be asked for: a day, in seconds.
const LONGEST_DEADLINE: f64 = 86_400.0;

impl Options {
    /// Reads a chapter's command line, without the program's name; `backend` is
    /// the value of `VMEXIT_BACKEND`, which the flag overrides.
    ///
    /// # Errors
    /// A sentence for the reader, when the line cannot be understood.
    pub fn parse(
        chapter: &Chapter,
        arguments: impl IntoIterator<Item = OsString>,
        backend: Option<&str>,
    ) -> Result<Command, String> {
        let mut options = Self::default();
        if let Some(name) = backend.filter(|name| !name.is_empty()) {
            options.backend = Some(parse_backend(name).map_err(|error| format!("VMEXIT_BACKEND: {error}"))?);
        }
        let mut parser = lexopt::Parser::from_args(arguments);
        while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
            match argument {
                Short('h') | Long("help") => return Ok(Command::Help),
                Long("steps") => options.steps = true,
                Long("listing") => options.listing_only = true,
                Long("check") => options.check = true,
                Long("backend") => options.backend = Some(parse_backend(&value(&mut parser)?)?),
                Long("trace") => options.traces.push(parse_trace(&value(&mut parser)?)?),
                Long("deadline") => options.deadline = Some(parse_deadline(&value(&mut parser)?)?),
                Long("break") => {
                    let name = value(&mut parser)?;
                    if name == "list" {
                        return Ok(Command::ListVariants);
                    }
                    let variant = chapter.breaks.iter().find(|variant| variant.name == name);
                    options.variant = Some(variant.ok_or_else(|| unknown_variant(chapter, &name))?.name);
                }
                Long(name) => match chapter.flags.iter().find(|flag| flag.name == name) {
                    Some(flag) => {
                        let value = value(&mut parser)?;
                        options.own.push((flag.name, value));
                    }
                    None => return Err(argument.unexpected().to_string()),
                },
                other => return Err(other.unexpected().to_string()),
            }
        }
        Ok(Command::Run(options))
    }

    /// The values that one of the chapter's own flags was given, in their order.
    pub fn values<'a>(&'a self, flag: &'a str) -> impl Iterator<Item = &'a str> {
        self.own.iter().filter(move |(name, _)| *name == flag).map(|(_, value)| value.as_str())
    }

    /// Whether the chapter's words and the text trace belong on stdout: not
    /// where the JSON trace has it for itself.
    #[must_use]
    pub fn text_on_stdout(&self) -> bool {
        !self.traces.contains(&TraceTo::Json(None))
    }
}

fn value(parser: &mut lexopt::Parser) -> Result<String, String> {
    let value = parser.value().map_err(|error| error.to_string())?;
    value.into_string().map_err(|value| format!("{} is not UTF-8 text", value.display()))
}

fn parse_backend(name: &str) -> Result<Backend, String> {
    match name {
        "kvm" => Ok(Backend::Kvm),
        "soft" => Ok(Backend::Soft),
        _ => Err(format!("there is no backend {name:?}: it is kvm or soft")),
    }
}

fn parse_trace(form: &str) -> Result<TraceTo, String> {
    match form.split_once(':') {
        None if form == "text" => Ok(TraceTo::Text),
        None if form == "json" => Ok(TraceTo::Json(None)),
        Some(("json", file)) if !file.is_empty() => Ok(TraceTo::Json(Some(file.into()))),
        Some(("perfetto", file)) if !file.is_empty() => Ok(TraceTo::Perfetto(file.into())),
        _ => Err(format!("there is no trace {form:?}: it is text, json, json:FILE or perfetto:FILE")),
    }
}

fn parse_deadline(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok();
    let seconds = seconds.filter(|seconds| *seconds >= 0.001 && *seconds <= LONGEST_DEADLINE);
    seconds.map(Duration::from_secs_f64).ok_or_else(|| {
        format!("a deadline is a number of seconds from 0.001 to {LONGEST_DEADLINE}, and {text:?} is none")
    })
}

fn unknown_variant(chapter: &Chapter, name: &str) -> String {
    let known: Vec<&str> = chapter.breaks.iter().map(|variant| variant.name).collect();
    format!("{} has no variant {name:?}: it is {}, or list", chapter.name, known.join(", "))
}

/// What `--break list` prints.
#[must_use]
pub fn variants(chapter: &Chapter) -> String {
    let width = chapter.breaks.iter().map(|variant| variant.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for variant in chapter.breaks {
        writeln!(text, "{:width$}  {}", variant.name, variant.what).expect("a String takes everything");
    }
    text
}

/// What `--help` prints.
#[must_use]
pub fn help(chapter: &Chapter) -> String {
    let name = chapter.name;
    format!(
        "{name}: {}

Usage: cargo run --bin {name} -- [OPTIONS]

Options:
  --backend kvm|soft      the machine that runs the guest: the host's KVM device or
                          the software machine [default: the device, if it can run
                          this chapter; VMEXIT_BACKEND says it too]
  --trace FORM            where each exit is shown; more than one may be given:
                            text           a line an exit, on stdout [default, where the
                                           chapter shows its exits]
                            json[:FILE]    JSON Lines, on stdout (and nothing else) or in FILE
                            perfetto:FILE  a timeline for ui.perfetto.dev
  --steps                 single-step, and show every instruction too
  --break NAME            run a broken variant of this chapter; list names them
  --deadline SECONDS      give up on the guest after this long [default: 10, where the
                          chapter says no other]
  --listing               print the guest's code and stop
  --check                 hold the guest's state against the rules of VM entry, at every entry
{}  -h, --help              print this

Exit codes: 0 the guest ended as it should; 1 a bug of VM Exit; 2 bad input, or this
host cannot; 3 the guest failed; 4 the deadline passed; 130 Ctrl-C.
",
        chapter.title,
        chapter.flags.iter().map(own_flag).collect::<String>()
    )
}

/// A flag of the chapter's own, in the columns of the help.
fn own_flag(flag: &Flag) -> String {
    let mut text = String::new();
    let mut left = format!("--{} {}", flag.name, flag.value);
    for line in flag.what.lines() {
        writeln!(text, "  {left:<22}  {line}").expect("a String takes everything");
        left.clear();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chapter::Break;
    use crate::kvm::Probe;

    const CHAPTER: Chapter = Chapter {
        name: "ch99",
        title: "A test",
        needs: Probe::Real,
        flags: &[Flag { name: "program", value: "NAME", what: "runs it\nagain" }],
        breaks: &[Break { name: "it", what: "breaks it", why: "it is broken" }],
    };

    fn parse(line: &str) -> Result<Command, String> {
        Options::parse(&CHAPTER, line.split_whitespace().map(OsString::from), None)
    }

    #[test]
    fn the_flags_are_understood() {
        let Ok(Command::Run(options)) = parse(
            "--backend=kvm --trace json:a --trace perfetto:b --steps --break it --deadline 0.5 --listing --check",
        ) else {
            panic!("a run");
        };
        assert_eq!(options.backend, Some(Backend::Kvm));
        assert_eq!(options.traces, [TraceTo::Json(Some("a".into())), TraceTo::Perfetto("b".into())]);
        assert!(options.steps && options.listing_only && options.check && options.text_on_stdout());
        assert_eq!((options.variant, options.deadline), (Some("it"), Some(Duration::from_millis(500))));
        assert_eq!(parse("--steps -h"), Ok(Command::Help));
        assert_eq!(parse("--break list"), Ok(Command::ListVariants));
    }

    #[test]
    fn a_flag_of_the_chapters_own_takes_a_value_each_time() {
        let Ok(Command::Run(options)) = parse("--program hello --steps --program=count") else {
            panic!("a run");
        };
        assert_eq!(options.values("program").collect::<Vec<_>>(), ["hello", "count"]);
        assert_eq!(options.values("other").count(), 0);
        let help = help(&CHAPTER);
        assert!(
            help.contains("\n  --program NAME          runs it\n                          again\n"),
            "{help}"
        );
    }

    #[test]
    fn what_cannot_be_understood_is_one_sentence() {
        for line in [
            "--wat",
            "extra",
            "--backend",
            "--backend xen",
            "--trace xml",
            "--trace json:",
            "--trace perfetto",
            "--break never",
            "--deadline soon",
            "--deadline 0",
            "--deadline NaN",
            "--deadline 1e9",
            "--steps=3",
            "--program",
            "--programs x",
        ] {
            let error = parse(line).expect_err(line);
            assert!(!error.is_empty() && !error.contains('\n'), "{line}: {error}");
        }
    }

    #[test]
    fn the_environment_names_a_backend_and_the_flag_overrides_it() {
        let parse =
            |line: &[&str], backend| Options::parse(&CHAPTER, line.iter().map(OsString::from), Some(backend));
        let of = |command| match command {
            Ok(Command::Run(options)) => options.backend,
            other => panic!("{other:?}"),
        };
        assert_eq!(of(parse(&[], "soft")), Some(Backend::Soft));
        assert_eq!(of(parse(&["--backend", "kvm"], "soft")), Some(Backend::Kvm));
        assert_eq!(of(parse(&[], "")), None);
        assert!(parse(&[], "xen").is_err());
    }
}
