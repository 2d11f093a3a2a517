//! `vmexit lab`: real KVM on any machine, inside a small Linux on an emulated
//! CPU that has virtualization.
//!
//! ```text
//! this host
//!   emulator: QEMU's CPU with SVM, or Bochs with VMX        (qemu, bochs)
//!     Linux, from the distribution's package                (cache, setup)
//!       PID 1 from our initramfs                            (initramfs)
//!         kvm_amd or kvm_intel
//!         a chapter: VMX root / SVM host                    (program)
//!           its guest: VMX non-root / SVM guest
//! ```

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::interrupt::Interrupt;
use crate::root;

pub mod machine;
pub mod cache;
pub mod modules;
pub mod packages;
pub mod setup;
pub mod shell;
pub mod program;
pub mod initramfs;
pub mod emulator;
pub mod keyboard;
pub mod pty;
pub mod qemu;
pub mod bochs;
pub mod boot;
pub mod progress;
pub mod single;
pub mod snapshot;
pub mod all;

pub use machine::Machine;

/// What `vmexit lab` was asked for.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct LabArguments {
    #[command(subcommand)]
    setup: Option<LabCommand>,

    #[command(flatten)]
    machines: Choice,

    /// Give the AMD machine's CPU nested paging; QEMU then checks less than silicon
    #[arg(long)]
    nested_paging: bool,

    /// Run every snapshot in tests/snapshots, in one boot a machine
    #[arg(long, conflicts_with = "command")]
    all: bool,

    /// Show what --all would run, and run nothing
    #[arg(long, conflicts_with = "command")]
    list: bool,

    /// Seconds, by the machine's clock, after which a program is killed
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    limit: u64,

    /// A chapter's binary (ch05) or a static program's file, and its arguments
    #[arg(value_name = "CHAPTER|PROGRAM", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Fetch what the lab is made of, into a cache folder
    Setup(setup::SetupArguments),
}

/// Which of the machines.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct Choice {
    /// The AMD machine: kvm_amd on QEMU's software CPU (the default)
    #[arg(long)]
    amd: bool,

    /// The Intel machine: kvm_intel on Bochs
    #[arg(long)]
    intel: bool,

    /// First the AMD machine, then the Intel one
    #[arg(long)]
    both: bool,
}

impl Choice {
    /// The machines that were chosen, if any was.
    pub(crate) fn chosen(&self) -> Option<Vec<Machine>> {
        match (self.amd, self.intel, self.both) {
            (true, _, _) => Some(vec![Machine::Amd]),
            (_, true, _) => Some(vec![Machine::Intel]),
            (_, _, true) => Some(Machine::ALL.to_vec()),
            _ => None,
        }
    }
}

/// What a run in the lab needs to know.
#[derive(Debug)]
pub struct Session {
    /// The workbook's folder.
    pub root: PathBuf,
    /// The machines to run on, in order.
    pub machines: Vec<Machine>,
    /// Whether the AMD machine's CPU has nested paging.
    pub nested_paging: bool,
    /// Seconds that each program has.
    pub limit_seconds: u64,
    /// Whether the reader wants it to end.
    pub interrupt: Interrupt,
}

/// Runs the subcommand; returns the tool's exit code.
///
/// # Errors
/// Whatever keeps the lab from doing what was asked.
pub fn run(arguments: LabArguments) -> Result<u8> {
    let interrupt = Interrupt::listen()?;
    if let Some(LabCommand::Setup(setup)) = arguments.setup {
        return setup::run(&setup, &interrupt);
    }
    let session = Session {
        root: root::find()?,
        machines: arguments.machines.chosen().unwrap_or_else(|| vec![Machine::Amd]),
        nested_paging: arguments.nested_paging,
        limit_seconds: arguments.limit,
        interrupt,
    };
    if arguments.list {
        return all::list(&session);
    }
    if arguments.all {
        return all::run(&session);
    }
    single::run(&session, &arguments.command)
}
