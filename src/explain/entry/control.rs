//! Control registers, debug registers and MSRs.

use super::Verdict::{Accepts, Refuses};
use super::{CONTROL, Rule, VMRUN, long_mode, when};
use crate::mode::{cr0, cr4, efer};

/// All bits that a CR4 of today's CPUs has. Intel SDM Vol. 3A, "Control Registers".
const CR4_BITS: u64 = 0x1_1bff_7fff;
/// Bits of IA32_DEBUGCTL. Intel SDM Vol. 4, "Architectural MSRs".
const DEBUG_CONTROL_BITS: u64 = 0xffc7;
/// EFER's bits at both vendors, and AMD's own: SVME, LMSLE, FFXSR, TCE, MCOMMIT, INTWB, UAIE, AIBRSE.
const EFER_BITS: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE;
const EFER_BITS_AMD: u64 = EFER_BITS | 0x36_f000;

#[rustfmt::skip] // a rule a paragraph
pub const RULES: &[Rule] = &[
    Rule { name: "cr0-upper-half", intel: Refuses(CONTROL), amd: Refuses(VMRUN),
        broken: |s| when(s.sregs.cr0 >> 32 != 0, || format!("CR0 = {:#x} has bits above 31", s.sregs.cr0)) },
    Rule { name: "paging-unprotected", intel: Refuses(CONTROL), amd: Accepts,
        broken: |s| when(s.sregs.cr0 & cr0::PG != 0 && !s.protected() && s.sregs.efer & efer::LME == 0,
            || format!("CR0 = {:#x} has PG (bit 31) without PE (bit 0)", s.sregs.cr0)) },
    Rule { name: "long-unprotected", intel: Refuses(CONTROL), amd: Refuses(VMRUN),
        broken: |s| when(s.sregs.cr0 & cr0::PG != 0 && !s.protected() && s.sregs.efer & efer::LME != 0,
            || format!("EFER.LME and CR0.PG are set without CR0.PE: CR0 = {:#x}, EFER = {:#x}", s.sregs.cr0, s.sregs.efer)) },
    Rule { name: "not-write-through", intel: Accepts, amd: Refuses(VMRUN),
        broken: |s| when(s.sregs.cr0 & cr0::NW != 0 && s.sregs.cr0 & cr0::CD == 0,
            || format!("CR0 = {:#x} has NW (bit 29) without CD (bit 30)", s.sregs.cr0)) },
    Rule { name: "cr3-width", intel: Refuses(CONTROL), amd: Refuses(VMRUN),
        broken: |s| when(s.sregs.cr3 >> s.physical_bits != 0,
            || format!("CR3 = {:#x} is wider than the {} bits of a physical address", s.sregs.cr3, s.physical_bits)) },
    Rule { name: "cr4-reserved", intel: Refuses(CONTROL), amd: Refuses(VMRUN),
        broken: |s| when(s.sregs.cr4 & !CR4_BITS != 0,
            || format!("CR4 = {:#x} sets {:#x}, which no CPU has", s.sregs.cr4, s.sregs.cr4 & !CR4_BITS)) },
    Rule { name: "cet-without-wp", intel: Refuses(CONTROL), amd: Refuses(VMRUN),
        broken: |s| when(s.sregs.cr4 & cr4::CET != 0 && s.sregs.cr0 & cr0::WP == 0,
            || "CR4.CET (bit 23) is set without CR0.WP (bit 16)".to_owned()) },
    Rule { name: "pcide-outside-long-mode", intel: Refuses(CONTROL), amd: Accepts,
        broken: |s| when(s.sregs.cr4 & cr4::PCIDE != 0 && !long_mode(s),
            || "CR4.PCIDE (bit 17) is set outside long mode".to_owned()) },
    Rule { name: "lma-without-paging", intel: Refuses(CONTROL), amd: Accepts,
        broken: |s| when(long_mode(s) && s.sregs.cr0 & cr0::PG == 0,
            || format!("EFER.LMA (bit 10) is set without CR0.PG (bit 31): CR0 = {:#x}", s.sregs.cr0)) },
    Rule { name: "long-without-pae", intel: Refuses(CONTROL), amd: Refuses(VMRUN),
        broken: |s| when((long_mode(s) || s.sregs.efer & efer::LME != 0 && s.sregs.cr0 & cr0::PG != 0) && s.sregs.cr4 & cr4::PAE == 0,
            || format!("long mode's paging needs CR4.PAE (bit 5): CR4 = {:#x}", s.sregs.cr4)) },
    Rule { name: "lma-is-lme", intel: Refuses(CONTROL), amd: Accepts,
        broken: |s| when(s.sregs.cr0 & cr0::PG != 0 && long_mode(s) != (s.sregs.efer & efer::LME != 0),
            || format!("with paging on, EFER.LMA (bit 10) and EFER.LME (bit 8) must be alike: EFER = {:#x}", s.sregs.efer)) },
    Rule { name: "efer-reserved", intel: Refuses(CONTROL), amd: Refuses(VMRUN),
        broken: |s| when(s.sregs.efer & !EFER_BITS_AMD != 0,
            || format!("EFER = {:#x} sets {:#x}, which is reserved", s.sregs.efer, s.sregs.efer & !EFER_BITS_AMD)) },
    Rule { name: "efer-of-amd", intel: Refuses(CONTROL), amd: Accepts,
        broken: |s| when(s.sregs.efer & EFER_BITS_AMD & !EFER_BITS != 0,
            || format!("EFER = {:#x} sets {:#x}, bits that only AMD has", s.sregs.efer, s.sregs.efer & EFER_BITS_AMD & !EFER_BITS)) },
    Rule { name: "dr6-upper-half", intel: Accepts, amd: Refuses(VMRUN),
        broken: |s| when(s.dr6 >> 32 != 0, || format!("DR6 = {:#x} has bits above 31", s.dr6)) },
    Rule { name: "dr7-upper-half", intel: Refuses(CONTROL), amd: Refuses(VMRUN),
        broken: |s| when(s.dr7 >> 32 != 0, || format!("DR7 = {:#x} has bits above 31", s.dr7)) },
    Rule { name: "debugctl-reserved", intel: Refuses(CONTROL), amd: Accepts,
        broken: |s| when(s.debug_control & !DEBUG_CONTROL_BITS != 0,
            || format!("IA32_DEBUGCTL = {:#x} sets reserved bits", s.debug_control)) },
    Rule { name: "sysenter-esp", intel: Refuses(CONTROL), amd: Accepts,
        broken: |s| when(!s.canonical(s.sysenter_esp),
            || format!("IA32_SYSENTER_ESP = {:#x} is not canonical", s.sysenter_esp)) },
    Rule { name: "sysenter-eip", intel: Refuses(CONTROL), amd: Accepts,
        broken: |s| when(!s.canonical(s.sysenter_eip),
            || format!("IA32_SYSENTER_EIP = {:#x} is not canonical", s.sysenter_eip)) },
    Rule { name: "pat-type", intel: Refuses(CONTROL), amd: Refuses("Nested Paging and VMRUN/#VMEXIT"),
        broken: |s| when(s.pat.to_le_bytes().iter().any(|kind| !matches!(kind, 0 | 1 | 4 | 5 | 6 | 7)),
            || format!("IA32_PAT = {:#x} has an entry that is no memory type: 0, 1, 4, 5, 6 or 7", s.pat)) },
    Rule { name: "bndcfgs", intel: Refuses(CONTROL), amd: Accepts,
        broken: |s| when(s.bounds & 0xffc != 0 || !s.canonical(s.bounds & !0xfff),
            || format!("IA32_BNDCFGS = {:#x} sets reserved bits, or holds an address that is not canonical", s.bounds)) },
    Rule { name: "s-cet", intel: Refuses(CONTROL), amd: Refuses(VMRUN),
        broken: |s| when(s.shadow_stack_control & 0x3c0 != 0 || s.shadow_stack_control & 0xc00 == 0xc00,
            || format!("IA32_S_CET = {:#x} sets reserved bits, or both SUPPRESS (bit 10) and TRACKER (bit 11)", s.shadow_stack_control)) },
    Rule { name: "ssp-table", intel: Refuses(CONTROL), amd: Accepts,
        broken: |s| when(!s.canonical(s.shadow_stack_table),
            || format!("IA32_INTERRUPT_SSP_TABLE_ADDR = {:#x} is not canonical", s.shadow_stack_table)) },
    Rule { name: "l-and-d", intel: Refuses(super::SEGMENTS), amd: Refuses(VMRUN),
        broken: |s| when(long_mode(s) && s.sregs.cs.l == 1 && s.sregs.cs.db == 1,
            || "CS.L and CS.D are both set in long mode".to_owned()) },
];
