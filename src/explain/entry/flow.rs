//! RIP, RFLAGS and SSP, what holds events back, and PAE's pointers.

use super::Verdict::{Accepts, Refuses};
use super::{EntryState, NON_REGISTER, POINTERS, RIP_RFLAGS, Rule, long_mode, when};
use crate::mode::{cr0, cr4, rflags};

const BY_STI: u32 = 1 << 0;
const BY_MOV_SS: u32 = 1 << 1;
const HLT: u32 = 1;
const EXTERNAL: u8 = 0;
const NMI: u8 = 2;
/// IA32_DEBUGCTL.BTF: a single step ends at branches.
const BRANCH_TRAP: u64 = 1 << 1;
/// Pending debug exceptions: the single step's.
const SINGLE_STEP: u64 = 1 << 14;

fn in_64_bit(s: &EntryState) -> bool {
    long_mode(s) && s.sregs.cs.l == 1
}

/// Whether something holds events back until after the next instruction, or the CPU halts.
fn holds_back(s: &EntryState) -> bool {
    s.interruptibility & (BY_STI | BY_MOV_SS) != 0 || s.activity == HLT
}

#[rustfmt::skip] // a rule a paragraph
pub const RULES: &[Rule] = &[
    Rule { name: "rip-upper-half", intel: Refuses(RIP_RFLAGS), amd: Accepts,
        broken: |s| when(!in_64_bit(s) && s.regs.rip >> 32 != 0,
            || format!("RIP = {:#x} has bits above 31 outside 64-bit code", s.regs.rip)) },
    // Bits 63:N alike, and not 63:N-1: an RIP that is just past the canonical ones enters, and then faults.
    Rule { name: "rip-width", intel: Refuses(RIP_RFLAGS), amd: Accepts,
        broken: |s| {
            let upper = s.regs.rip as i64 >> s.linear_bits;
            when(in_64_bit(s) && upper != 0 && upper != -1,
                || format!("RIP = {:#x}: bits 63 to {} must be alike", s.regs.rip, s.linear_bits))
        } },
    Rule { name: "rflags-reserved", intel: Refuses(RIP_RFLAGS), amd: Accepts,
        broken: |s| {
            let reserved = s.regs.rflags & (!0 << 22 | 1 << 15 | 1 << 5 | 1 << 3);
            when(reserved != 0, || format!("RFLAGS = {:#x} sets {reserved:#x}, which is reserved", s.regs.rflags))
        } },
    Rule { name: "rflags-fixed", intel: Refuses(RIP_RFLAGS), amd: Accepts,
        broken: |s| when(s.regs.rflags & rflags::FIXED == 0,
            || format!("RFLAGS = {:#x} lacks bit 1, which is always 1", s.regs.rflags)) },
    Rule { name: "rflags-vm", intel: Refuses(RIP_RFLAGS), amd: Accepts,
        broken: |s| when(s.regs.rflags & rflags::VM != 0 && (long_mode(s) || !s.protected()),
            || format!("RFLAGS = {:#x} has VM (bit 17) in long mode or without CR0.PE", s.regs.rflags)) },
    Rule { name: "rflags-if", intel: Refuses(RIP_RFLAGS), amd: Accepts,
        broken: |s| when(s.injects == Some(EXTERNAL) && s.regs.rflags & rflags::IF == 0,
            || format!("an external interrupt is injected and RFLAGS = {:#x} lacks IF (bit 9)", s.regs.rflags)) },
    Rule { name: "ssp", intel: Refuses(RIP_RFLAGS), amd: Accepts,
        broken: |s| when(s.shadow_stack & 3 != 0 || if in_64_bit(s) { !s.canonical(s.shadow_stack) } else { s.shadow_stack >> 32 != 0 },
            || format!("SSP = {:#x} is no multiple of 4, or too wide", s.shadow_stack)) },
    Rule { name: "activity", intel: Refuses(NON_REGISTER), amd: Accepts,
        broken: |s| when(s.activity > 3, || format!("the activity state {} is none: they are 0 to 3", s.activity)) },
    Rule { name: "hlt-ring", intel: Refuses(NON_REGISTER), amd: Accepts,
        broken: |s| when(s.activity == HLT && s.sregs.ss.dpl != 0,
            || format!("the CPU halts in ring {}", s.sregs.ss.dpl)) },
    Rule { name: "blocking-active", intel: Refuses(NON_REGISTER), amd: Accepts,
        broken: |s| when(s.activity != 0 && s.activity <= 3 && s.interruptibility & (BY_STI | BY_MOV_SS) != 0,
            || format!("events are blocked by STI or MOV SS (interruptibility {:#x}), and the CPU is not active", s.interruptibility)) },
    Rule { name: "interruptibility-reserved", intel: Refuses(NON_REGISTER), amd: Accepts,
        broken: |s| when(s.interruptibility >> 5 != 0,
            || format!("the interruptibility state {:#x} sets reserved bits", s.interruptibility)) },
    Rule { name: "sti-and-mov-ss", intel: Refuses(NON_REGISTER), amd: Accepts,
        broken: |s| when(s.interruptibility & (BY_STI | BY_MOV_SS) == BY_STI | BY_MOV_SS,
            || "events are blocked by both STI and MOV SS".to_owned()) },
    Rule { name: "sti-without-if", intel: Refuses(NON_REGISTER), amd: Accepts,
        broken: |s| when(s.interruptibility & (BY_STI | BY_MOV_SS) == BY_STI && s.regs.rflags & rflags::IF == 0,
            || "events are blocked by STI, and RFLAGS.IF is 0".to_owned()) },
    Rule { name: "injected-while-blocked", intel: Refuses(NON_REGISTER), amd: Accepts,
        broken: |s| {
            let blocks = match s.injects {
                Some(EXTERNAL) => BY_STI | BY_MOV_SS,
                Some(NMI) => BY_MOV_SS,
                _ => 0,
            };
            when(s.interruptibility & blocks != 0, || "what is injected is blocked by STI or MOV SS".to_owned())
        } },
    Rule { name: "pending-debug-reserved", intel: Refuses(NON_REGISTER), amd: Accepts,
        broken: |s| when(s.pending_debug & (0xaff0 | !0 << 17) != 0,
            || format!("the pending debug exceptions {:#x} set reserved bits", s.pending_debug)) },
    Rule { name: "pending-single-step", intel: Refuses(NON_REGISTER), amd: Accepts,
        broken: |s| {
            let steps = s.regs.rflags & rflags::TF != 0 && s.debug_control & BRANCH_TRAP == 0;
            when(holds_back(s) && steps != (s.pending_debug & SINGLE_STEP != 0),
                || format!("an instruction that holds traps back was stepped: BS (bit 14) of the pending debug exceptions {:#x} \
                            must say what RFLAGS.TF and IA32_DEBUGCTL.BTF do", s.pending_debug))
        } },
    Rule { name: "pae-pointers", intel: Refuses(POINTERS), amd: Accepts,
        broken: |s| {
            let pae = s.sregs.cr0 & cr0::PG != 0 && s.sregs.cr4 & cr4::PAE != 0 && !long_mode(s);
            let reserved = 0x1e6 | u64::MAX << s.physical_bits;
            let bad = s.pointers.iter().enumerate().filter(|(_, entry)| pae && *entry & 1 != 0 && *entry & reserved != 0);
            bad.map(|(number, entry)| format!("PDPTE{number} = {entry:#x} sets {:#x}, which is reserved", entry & reserved)).collect()
        } },
];
