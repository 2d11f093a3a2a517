//! What VM entry looks at.

use crate::kvm::{kvm_regs, kvm_segment, kvm_sregs};
use crate::mode::cr0;

/// A guest's state as the rules of VM entry see it. What `KVM_SET_REGS` and
/// `KVM_SET_SREGS` do not hold starts as a CPU has it after reset.
#[derive(Clone, Debug)]
pub struct EntryState {
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    /// Bits of a linear address: 48, or 57 on a CPU with 5-level paging.
    pub linear_bits: u32,
    /// Bits of a physical address: at most 52.
    pub physical_bits: u32,
    pub dr6: u64,
    pub dr7: u64,
    /// IA32_DEBUGCTL.
    pub debug_control: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_BNDCFGS.
    pub bounds: u64,
    /// IA32_S_CET.
    pub shadow_stack_control: u64,
    /// SSP, the shadow stack's pointer.
    pub shadow_stack: u64,
    /// IA32_INTERRUPT_SSP_TABLE_ADDR.
    pub shadow_stack_table: u64,
    /// 0 active, 1 HLT, 2 shutdown, 3 wait-for-SIPI.
    pub activity: u32,
    /// Bit 0 blocking by STI, 1 by MOV SS, 2 by SMI, 3 by NMI, 4 enclave interruption.
    pub interruptibility: u32,
    /// Pending debug exceptions.
    pub pending_debug: u64,
    /// The type of the event that the entry injects: 0 external interrupt, 2 NMI, 3 hardware exception …
    pub injects: Option<u8>,
    /// PAE's four pointers.
    pub pointers: [u64; 4],
}

impl EntryState {
    /// The state that these registers make.
    #[must_use]
    pub fn new(regs: &kvm_regs, sregs: &kvm_sregs) -> Self {
        Self {
            regs: *regs,
            sregs: *sregs,
            linear_bits: 48,
            physical_bits: 52,
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            debug_control: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: 0x0007_0406_0007_0406,
            bounds: 0,
            shadow_stack_control: 0,
            shadow_stack: 0,
            shadow_stack_table: 0,
            activity: 0,
            interruptibility: 0,
            pending_debug: 0,
            injects: None,
            pointers: [0; 4],
        }
    }

    /// Whether the upper bits of an address are copies of its highest translated one.
    pub(super) fn canonical(&self, address: u64) -> bool {
        let unused = 64 - self.linear_bits;
        ((address << unused) as i64 >> unused) as u64 == address
    }

    pub(super) fn protected(&self) -> bool {
        self.sregs.cr0 & cr0::PE != 0
    }

    /// CS, SS, DS, ES, FS, GS.
    pub(super) fn six(&self) -> [(&'static str, &kvm_segment); 6] {
        let s = &self.sregs;
        [("CS", &s.cs), ("SS", &s.ss), ("DS", &s.ds), ("ES", &s.es), ("FS", &s.fs), ("GS", &s.gs)]
    }

    /// CS, and of the others those that are usable.
    pub(super) fn in_use(&self) -> Vec<(&'static str, &kvm_segment)> {
        self.six().into_iter().filter(|(name, segment)| *name == "CS" || segment.unusable == 0).collect()
    }

    /// DS, ES, FS and GS, as far as they are usable.
    pub(super) fn data(&self) -> Vec<(&'static str, &kvm_segment)> {
        self.in_use().into_iter().filter(|(name, _)| !matches!(*name, "CS" | "SS")).collect()
    }

    /// SS, if it is usable.
    pub(super) fn stack(&self) -> Option<&kvm_segment> {
        (self.sregs.ss.unusable == 0).then_some(&self.sregs.ss)
    }

    /// LDTR, if it is usable.
    pub(super) fn local_table(&self) -> Option<&kvm_segment> {
        (self.sregs.ldt.unusable == 0).then_some(&self.sregs.ldt)
    }
}
