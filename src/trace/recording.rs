//! What a replay needs: all that a vCPU started from, and all that it was told since.

use crate::kvm::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_fpu, kvm_guest_debug, kvm_regs, kvm_sregs, kvm_vcpu_events,
};

/// A guest with more RAM than this is not kept for a replay, in bytes.
pub(super) const KEPT_MEMORY: u64 = 16 << 20;

/// A vCPU that was told more than this is not kept for a replay, in bytes.
const KEPT_INPUTS: usize = 16 << 20;

/// All that a vCPU started from and was told: enough to run the same guest again.
#[derive(Clone, Debug)]
pub struct Recording {
    pub vm: u32,
    pub vcpu: u64,
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    /// Each memory slot's guest-physical address and size in bytes.
    pub slots: Vec<(u64, u64)>,
    /// Every page that was not all zero, with its address; empty for a large guest.
    pub pages: Vec<(u64, Vec<u8>)>,
    /// The rest of the state that was set before the first entry, in order.
    pub setup: Vec<Input>,
    /// What crossed from the host to the guest since, in order.
    pub inputs: Vec<Given>,
    /// How often it has exited.
    pub exits: u64,
    /// Why this is not all, as the end of a sentence.
    pub gap: Option<&'static str>,
    /// What the inputs take, in bytes.
    pub(super) size: usize,
}

/// An input, and when it came.
#[derive(Clone, Debug)]
pub struct Given {
    /// After so many exits.
    pub after: u64,
    pub input: Input,
}

/// Something that the host told the guest.
#[derive(Clone, Debug)]
pub enum Input {
    /// The answer to an `in` or an MMIO read.
    Answer(Vec<u8>),
    /// General-purpose registers, set by the hypervisor.
    Regs(Box<kvm_regs>),
    /// Segment, table and control registers, set by the hypervisor.
    Sregs(Box<kvm_sregs>),
    /// What `cpuid` answers.
    Cpuid(Vec<kvm_cpuid_entry2>),
    /// Model-specific registers, each with its value.
    Msrs(Vec<(u32, u64)>),
    /// The registers of the FPU and of SSE.
    Fpu(Box<kvm_fpu>),
    /// Exceptions and interrupts to deliver.
    Events(Box<kvm_vcpu_events>),
    /// A non-maskable interrupt.
    Nmi,
    /// Debug registers.
    DebugRegs(Box<kvm_debugregs>),
    /// Single-stepping and breakpoints from outside.
    GuestDebug(Box<kvm_guest_debug>),
    /// kvm_run's `request_interrupt_window`, where it changed.
    InterruptWindow(bool),
    /// Bytes that the hypervisor wrote to the guest's memory, and their guest-physical address.
    Memory(u64, Vec<u8>),
}

impl Recording {
    /// Notes an input, unless there are too many of them.
    pub(super) fn give(&mut self, input: Input) {
        if self.gap.is_some() {
            return;
        }
        self.size += size_of::<Given>() + input.size();
        if self.size > KEPT_INPUTS {
            self.inputs = Vec::new();
            self.gap = Some("the guest was told more than the 16 MiB that are kept of it");
            return;
        }
        self.inputs.push(Given { after: self.exits, input });
    }
}

impl Input {
    /// What it holds beyond itself, in bytes.
    fn size(&self) -> usize {
        match self {
            Self::Answer(bytes) | Self::Memory(_, bytes) => bytes.len(),
            Self::Regs(_) => size_of::<kvm_regs>(),
            Self::Sregs(_) => size_of::<kvm_sregs>(),
            Self::Cpuid(entries) => size_of_val(&entries[..]),
            Self::Msrs(msrs) => size_of_val(&msrs[..]),
            Self::Fpu(_) => size_of::<kvm_fpu>(),
            Self::Events(_) => size_of::<kvm_vcpu_events>(),
            Self::DebugRegs(_) => size_of::<kvm_debugregs>(),
            Self::GuestDebug(_) => size_of::<kvm_guest_debug>(),
            Self::Nmi | Self::InterruptWindow(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_that_grows_too_large_is_given_up_and_says_so() {
        let mut recording = Recording {
            vm: 0,
            vcpu: 0,
            regs: kvm_regs::default(),
            sregs: kvm_sregs::default(),
            slots: Vec::new(),
            pages: Vec::new(),
            setup: Vec::new(),
            inputs: Vec::new(),
            exits: 7,
            gap: None,
            size: 0,
        };
        recording.give(Input::Answer(vec![1]));
        assert_eq!((recording.inputs.len(), recording.inputs[0].after), (1, 7));
        recording.give(Input::Memory(0, vec![0; KEPT_INPUTS]));
        assert!(recording.inputs.is_empty() && recording.gap.is_some());
    }
}
