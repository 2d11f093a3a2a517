//! The command line.

use lexopt::prelude::*;

pub const HELP: &str = "\
diff: random instructions on two machines, compared

Usage: cargo run --release --example diff -- [OPTIONS]

Options:
  --count N         how many instructions to compare [default: 10000]
  --seed N          where chance begins [default: 1]
  --sequence N      this sequence of the seed alone
  --setting NAME    in this setting only; may be given again
  --itself          compare with a new software machine instead of KVM
  --table           print what was compared in which setting, and what was not and why
  --progress        print a line about the progress now and then, for a program to read
  -h, --help        print this

Exit codes: 0 no difference; 1 some; 2 a machine cannot be had.
";

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    pub count: u64,
    pub seed: u64,
    pub sequence: Option<u64>,
    pub settings: Vec<String>,
    pub itself: bool,
    pub table: bool,
    pub progress: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            count: 10_000,
            seed: 1,
            sequence: None,
            settings: vec![],
            itself: false,
            table: false,
            progress: false,
        }
    }
}

/// Nothing when help was asked for.
pub fn parse() -> Result<Option<Options>, lexopt::Error> {
    let mut options = Options::default();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("count") => options.count = parser.value()?.parse()?,
            Long("seed") => options.seed = parser.value()?.parse()?,
            Long("sequence") => options.sequence = Some(parser.value()?.parse()?),
            Long("setting") => options.settings.push(parser.value()?.string()?),
            Long("itself") => options.itself = true,
            Long("table") => options.table = true,
            Long("progress") => options.progress = true,
            Short('h') | Long("help") => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(options))
}
