//! `cargo vmexit`: the tool beside the workbook.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use vmexit::status::Status;

use vmexit_workbook::failure::Failure;
use vmexit_workbook::{book, chapters, explain};

/// The tool beside the VM Exit workbook
#[derive(Debug, Parser)]
#[command(name = "cargo vmexit", bin_name = "cargo vmexit", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the chapters
    List,
    /// Build the book and open it
    Book(book::BookArguments),
    /// Run a chapter on real KVM, on an emulated CPU that has virtualization
    #[cfg(unix)]
    Lab(vmexit_workbook::lab::LabArguments),
    /// Hold a guest's state against the rules of VM entry of both vendors
    Explain(explain::ExplainArguments),
    /// Compare the software machine with KVM, instruction by instruction
    #[cfg(unix)]
    Diff(vmexit_workbook::diff::DiffArguments),
    /// Run a chapter on real KVM (not on this system)
    #[cfg(not(unix))]
    Lab {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        _arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("vmexit: {error:#}");
            error.downcast_ref::<Failure>().map_or(Status::Bug, |failure| failure.status).into()
        }
    }
}

fn run(command: Command) -> Result<u8> {
    match command {
        Command::List => chapters::list(),
        Command::Book(arguments) => book::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        #[cfg(unix)]
        Command::Lab(arguments) => vmexit_workbook::lab::run(arguments),
        #[cfg(unix)]
        Command::Diff(arguments) => vmexit_workbook::diff::run(&arguments),
        #[cfg(not(unix))]
        Command::Lab { .. } => {
            let sentence =
                "the lab needs Linux or macOS: on Windows, clone the workbook inside WSL2 and run it there";
            Err(Failure::bad_input(sentence).into())
        }
    }
}
