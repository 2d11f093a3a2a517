//! What happened: every exit, and with `--steps` every instruction, as text, as
//! JSON Lines and as a timeline. Chapter 02.
//!
//! [`record`] is the schema of the JSON trace, `place` finds the instruction
//! that caused an exit, `recorder` numbers the records and writes them.

mod perfetto;
mod place;
pub mod record;
mod recorder;
mod recording;
mod restore;
mod text;

pub(crate) use place::{Place, View};
pub(crate) use recorder::Recorder;
pub use recording::{Given, Input, Recording};

use crate::kvm::{kvm_regs, kvm_sregs};

/// Which vCPU of which VM of the run, both counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VcpuId {
    pub vm: u32,
    pub vcpu: u64,
}

/// The registers at one moment.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
}
