//! The control registers' bits, and what they say together: which mode the CPU
//! is in, and which ring. Chapter 05.

use std::fmt;

use crate::kvm::{kvm_segment, kvm_sregs};
use crate::segment::{self, Descriptor};

/// CR0. Intel SDM Vol. 3A, "Control Registers".
#[rustfmt::skip] // laid out like the SDM's list
pub mod cr0 {
    pub const PE: u64 = 1 << 0;  // Protection Enable
    pub const MP: u64 = 1 << 1;  // Monitor Coprocessor
    pub const EM: u64 = 1 << 2;  // Emulation: no x87
    pub const TS: u64 = 1 << 3;  // Task Switched
    pub const ET: u64 = 1 << 4;  // Extension Type: always 1
    pub const NE: u64 = 1 << 5;  // Numeric Error: x87 errors as #MF
    pub const WP: u64 = 1 << 16; // Write Protect: binds ring 0 too
    pub const AM: u64 = 1 << 18; // Alignment Mask
    pub const NW: u64 = 1 << 29; // Not Write-through
    pub const CD: u64 = 1 << 30; // Cache Disable
    pub const PG: u64 = 1 << 31; // Paging
}

/// CR4. Intel SDM Vol. 3A, "Control Registers".
#[rustfmt::skip] // laid out like the SDM's list
pub mod cr4 {
    pub const VME: u64        = 1 << 0;  // Virtual-8086 Mode Extensions
    pub const PSE: u64        = 1 << 4;  // Page Size Extensions: 4 MiB pages
    pub const PAE: u64        = 1 << 5;  // Physical Address Extension: 8-byte entries
    pub const MCE: u64        = 1 << 6;  // Machine-Check Enable
    pub const PGE: u64        = 1 << 7;  // Page Global Enable
    pub const OSFXSR: u64     = 1 << 9;  // FXSAVE and SSE
    pub const OSXMMEXCPT: u64 = 1 << 10; // SSE errors as #XM
    pub const LA57: u64       = 1 << 12; // 5-level paging
    pub const VMXE: u64       = 1 << 13; // VMX Enable
    pub const PCIDE: u64      = 1 << 17; // Process-Context Identifiers
    pub const SMEP: u64       = 1 << 20; // ring 0 does not execute ring 3's pages
    pub const SMAP: u64       = 1 << 21; // ring 0 does not touch ring 3's pages
    pub const CET: u64        = 1 << 23; // Control-flow Enforcement
}

/// EFER (MSR 0xC000_0080). Intel SDM Vol. 3A, "Extended Feature Enable Register";
/// AMD APM Vol. 2, "Extended Feature Enable Register (EFER)".
#[rustfmt::skip] // laid out like the manuals' figure
pub mod efer {
    pub const SCE: u64 = 1 << 0;  // System Call Extensions
    pub const LME: u64 = 1 << 8;  // Long Mode Enable
    pub const LMA: u64 = 1 << 10; // Long Mode Active: the CPU sets it
    pub const NXE: u64 = 1 << 11; // No-Execute Enable
}

/// RFLAGS. Intel SDM Vol. 1, "EFLAGS Register".
#[rustfmt::skip] // laid out like the SDM's figure
pub mod rflags {
    pub const CF: u64    = 1 << 0;  // Carry
    pub const FIXED: u64 = 1 << 1;  // always 1
    pub const ZF: u64    = 1 << 6;  // Zero
    pub const TF: u64    = 1 << 8;  // Trap: single step
    pub const IF: u64    = 1 << 9;  // Interrupts enabled
    pub const VM: u64    = 1 << 17; // Virtual-8086 mode
    pub const AC: u64    = 1 << 18; // Alignment Check; with CR4.SMAP, ring 0 may touch ring 3's pages
}

/// The CPU's operating mode, with the size of the code that CS holds. Intel SDM
/// Vol. 1, "Modes of Operation"; in long mode CS.L chooses, Vol. 3A, "IA-32e Mode".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// CR0.PE = 0.
    Real,
    /// CR0.PE = 1, with CS.D = 0.
    Protected16,
    /// CR0.PE = 1, with CS.D = 1.
    Protected32,
    /// EFER.LMA = 1, CS.L = 0, CS.D = 0.
    Compatibility16,
    /// EFER.LMA = 1, CS.L = 0, CS.D = 1.
    Compatibility32,
    /// EFER.LMA = 1, CS.L = 1.
    Long64,
}

impl Mode {
    /// The mode that these registers put the CPU in.
    #[must_use]
    pub fn of(sregs: &kvm_sregs) -> Self {
        let (cs, large) = (&sregs.cs, sregs.cs.db != 0);
        if sregs.cr0 & cr0::PE == 0 {
            Self::Real
        } else if sregs.efer & efer::LMA == 0 {
            if large { Self::Protected32 } else { Self::Protected16 }
        } else if cs.l != 0 {
            Self::Long64
        } else if large {
            Self::Compatibility32
        } else {
            Self::Compatibility16
        }
    }

    /// The size that instructions are decoded with: 16, 32 or 64 bits.
    #[must_use]
    pub fn code_bits(self) -> u32 {
        match self {
            Self::Real | Self::Protected16 | Self::Compatibility16 => 16,
            Self::Protected32 | Self::Compatibility32 => 32,
            Self::Long64 => 64,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Real => "real mode",
            Self::Protected16 => "protected mode, 16-bit code",
            Self::Protected32 => "protected mode, 32-bit code",
            Self::Compatibility16 => "long mode, 16-bit compatibility code",
            Self::Compatibility32 => "long mode, 32-bit compatibility code",
            Self::Long64 => "long mode, 64-bit code",
        })
    }
}

/// The current privilege level, 0 to 3: the DPL of SS. Intel SDM Vol. 3C,
/// "Guest Register State": VMX keeps no other copy of the CPL, and KVM fills
/// `ss.dpl` from the VMCB's CPL field on AMD.
#[must_use]
pub fn ring(sregs: &kvm_sregs) -> u8 {
    if sregs.cr0 & cr0::PE == 0 { 0 } else { sregs.ss.dpl }
}

/// The names of the bits that are set in CR0, CR4 and EFER, in the order of the
/// bits: `CR0 = PE|ET, CR4 = 0, EFER = 0`. Bits without a name here are left out.
#[must_use]
pub fn control_bits(sregs: &kvm_sregs) -> String {
    let cr0 = [("PE", cr0::PE), ("ET", cr0::ET), ("NE", cr0::NE), ("WP", cr0::WP), ("PG", cr0::PG)];
    let cr4 = [("PSE", cr4::PSE), ("PAE", cr4::PAE), ("PGE", cr4::PGE)];
    let efer = [("SCE", efer::SCE), ("LME", efer::LME), ("LMA", efer::LMA), ("NXE", efer::NXE)];
    format!(
        "CR0 = {}, CR4 = {}, EFER = {}",
        names(sregs.cr0, &cr0),
        names(sregs.cr4, &cr4),
        names(sregs.efer, &efer)
    )
}

// ANCHOR: enter_real
/// Real mode as after reset, but for CS, which moves to selector 0: every
/// segment complete, as VMX asks. A new vCPU of kvm_amd lacks the accessed bits,
/// which only Intel's CPUs look at.
pub fn enter_real(sregs: &mut kvm_sregs) {
    let data = kvm_segment { limit: 0xffff, type_: 3, present: 1, s: 1, ..kvm_segment::default() };
    sregs.cs = kvm_segment { type_: 11, ..data };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr0 &= !cr0::PE;
}
// ANCHOR_END: enter_real

// ANCHOR: enter_protected
/// Protected mode with flat segments, as a guest would leave it behind after its
/// far jump and its `mov`s to the data segment registers: `code` at selector 8,
/// data at selector 0x10, ring 0.
pub fn enter_protected(sregs: &mut kvm_sregs, code: Descriptor) {
    let data = Descriptor::DATA.load(DATA_SELECTOR);
    sregs.cs = code.load(CODE_SELECTOR);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment::idle_task();
    sregs.ldt = segment::unusable();
    sregs.cr0 |= cr0::PE;
}
// ANCHOR_END: enter_protected

// ANCHOR: enter_long
/// Long mode, on top of [`enter_protected`] with a 64-bit code segment: 4-level
/// paging with the tables at `cr3`. LMA is set by hand here; when a guest turns
/// paging on, the CPU sets it. Intel SDM Vol. 3A, "Initializing IA-32e Mode".
pub fn enter_long(sregs: &mut kvm_sregs, cr3: u64) {
    sregs.cr3 = cr3;
    sregs.cr4 |= cr4::PAE;
    sregs.efer |= efer::LME | efer::LMA;
    sregs.cr0 |= cr0::PE | cr0::PG;
}
// ANCHOR_END: enter_long

/// The selector of entry 1 of the GDT, ring 0.
pub const CODE_SELECTOR: u16 = 1 << 3;
/// The selector of entry 2 of the GDT, ring 0.
pub const DATA_SELECTOR: u16 = 2 << 3;

/// Mode, ring and control bits in one line: `real mode, ring 0; CR0 = ET, CR4 = 0, EFER = 0`.
#[must_use]
pub fn describe(sregs: &kvm_sregs) -> String {
    format!("{}, ring {}; {}", Mode::of(sregs), ring(sregs), control_bits(sregs))
}

fn names(value: u64, bits: &[(&str, u64)]) -> String {
    let set: Vec<&str> = bits.iter().filter(|(_, bit)| value & bit != 0).map(|(name, _)| *name).collect();
    if set.is_empty() { "0".to_owned() } else { set.join("|") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::entry_findings;
    use crate::kvm::kvm_regs;

    /// Values of Linux's `arch/x86/include/uapi/asm/processor-flags.h` and `msr-index.h`.
    #[test]
    fn the_bits_are_those_that_linux_uses() {
        assert_eq!(
            [cr0::PE, cr0::MP, cr0::EM, cr0::TS, cr0::ET, cr0::NE, cr0::WP, cr0::AM],
            [0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x1_0000, 0x4_0000]
        );
        assert_eq!([cr0::NW, cr0::CD, cr0::PG], [0x2000_0000, 0x4000_0000, 0x8000_0000]);
        assert_eq!(
            [cr4::VME, cr4::PSE, cr4::PAE, cr4::MCE, cr4::PGE, cr4::OSFXSR, cr4::OSXMMEXCPT],
            [0x1, 0x10, 0x20, 0x40, 0x80, 0x200, 0x400]
        );
        assert_eq!([cr4::LA57, cr4::VMXE, cr4::PCIDE, cr4::CET], [0x1000, 0x2000, 0x2_0000, 0x80_0000]);
        assert_eq!([cr4::SMEP, cr4::SMAP], [0x10_0000, 0x20_0000]);
        assert_eq!([efer::SCE, efer::LME, efer::LMA, efer::NXE], [0x1, 0x100, 0x400, 0x800]);
        assert_eq!(
            [rflags::CF, rflags::FIXED, rflags::ZF, rflags::TF, rflags::IF, rflags::VM, rflags::AC],
            [0x1, 0x2, 0x40, 0x100, 0x200, 0x2_0000, 0x4_0000]
        );
    }

    #[test]
    fn the_mode_follows_from_pe_lma_and_the_code_segment() {
        let mut sregs = kvm_sregs::default();
        assert_eq!(Mode::of(&sregs), Mode::Real);
        sregs.cs.db = 1;
        assert_eq!(Mode::of(&sregs), Mode::Real);
        sregs.cr0 = cr0::PE;
        assert_eq!(Mode::of(&sregs), Mode::Protected32);
        sregs.cr0 |= cr0::PG;
        sregs.efer = efer::LME | efer::LMA;
        assert_eq!(Mode::of(&sregs), Mode::Compatibility32);
        (sregs.cs.db, sregs.cs.l) = (0, 1);
        assert_eq!(Mode::of(&sregs), Mode::Long64);
        assert_eq!(control_bits(&sregs), "CR0 = PE|PG, CR4 = 0, EFER = LME|LMA");
    }

    #[test]
    fn every_state_that_is_set_from_outside_passes_the_checks_of_vm_entry() {
        let regs = kvm_regs { rip: 0x1000, rflags: rflags::FIXED, ..kvm_regs::default() };
        // TR, LDTR and CR0 as after reset. SDM Vol. 3A, "IA-32 and Intel 64 Processor States
        // Following Power-up, Reset, or INIT".
        let mut sregs = kvm_sregs {
            tr: kvm_segment { limit: 0xffff, type_: 11, present: 1, ..kvm_segment::default() },
            ldt: kvm_segment { limit: 0xffff, type_: 2, present: 1, ..kvm_segment::default() },
            cr0: cr0::CD | cr0::NW | cr0::ET,
            ..kvm_sregs::default()
        };
        enter_real(&mut sregs);
        assert_eq!(entry_findings(&regs, &sregs), [], "chapters 01, 02 and 04");
        enter_protected(&mut sregs, Descriptor::CODE_32);
        assert_eq!(entry_findings(&regs, &sregs), [], "chapter 05");
        assert_eq!(describe(&sregs), "protected mode, 32-bit code, ring 0; CR0 = PE|ET, CR4 = 0, EFER = 0");
        enter_protected(&mut sregs, Descriptor::CODE_64);
        enter_long(&mut sregs, 0x4000);
        assert_eq!(entry_findings(&regs, &sregs), [], "chapter 08");
        assert_eq!(
            describe(&sregs),
            "long mode, 64-bit code, ring 0; CR0 = PE|ET|PG, CR4 = PAE, EFER = LME|LMA"
        );
    }

    #[test]
    fn the_ring_is_the_privilege_level_of_ss() {
        let mut sregs = kvm_sregs { cr0: cr0::PE, ..kvm_sregs::default() };
        sregs.ss.dpl = 3;
        assert_eq!(ring(&sregs), 3);
        sregs.cr0 = 0;
        assert_eq!(ring(&sregs), 0);
    }
}
