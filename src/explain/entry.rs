//! The guest-state rules of VM entry. Intel SDM Vol. 3C, chapter "VM Entries",
//! "Checks on the Guest State Area".
//!
//! A state is judged as the CPU would judge it, before KVM mends anything, and
//! for a CPU with "unrestricted guest" as well as for one without: there KVM
//! runs real mode as virtual-8086 code, whose rules are the stricter ones.

use std::fmt;

use crate::kvm::{kvm_regs, kvm_segment, kvm_sregs};
use crate::mode::{cr0, cr4, efer, rflags};
use crate::segment::canonical;

/// A rule that a state breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong, with the values.
    pub sentence: String,
    /// The section of the Intel SDM, Vol. 3C, that has the rule.
    pub section: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (Intel SDM Vol. 3C, \"{}\")", self.sentence, self.section)
    }
}

const CONTROL: &str = "Checks on Guest Control Registers, Debug Registers, and MSRs";
const SEGMENTS: &str = "Checks on Guest Segment Registers";
const TABLES: &str = "Checks on Guest Descriptor-Table Registers";
const RIP_RFLAGS: &str = "Checks on Guest RIP, RFLAGS, and SSP";

/// All rules that this state breaks; empty for a state that every CPU enters.
#[must_use]
pub fn entry_findings(regs: &kvm_regs, sregs: &kvm_sregs) -> Vec<Finding> {
    let mut check = Check { section: CONTROL, findings: Vec::new() };
    control_registers(&mut check, sregs);
    check.section = SEGMENTS;
    if sregs.cr0 & cr0::PE == 0 {
        real_mode_segments(&mut check, sregs);
    } else {
        segments(&mut check, sregs);
    }
    task_and_ldt(&mut check, sregs);
    check.section = TABLES;
    for (name, table) in [("GDTR", &sregs.gdt), ("IDTR", &sregs.idt)] {
        check.require(canonical(table.base), || format!("{name}'s base {:#x} is not canonical", table.base));
    }
    check.section = RIP_RFLAGS;
    rip_and_rflags(&mut check, regs, sregs);
    check.findings
}

struct Check {
    section: &'static str,
    findings: Vec<Finding>,
}

impl Check {
    fn require(&mut self, holds: bool, sentence: impl FnOnce() -> String) {
        if !holds {
            self.findings.push(Finding { sentence: sentence(), section: self.section });
        }
    }
}

fn long_mode(sregs: &kvm_sregs) -> bool {
    sregs.efer & efer::LMA != 0
}

fn control_registers(check: &mut Check, sregs: &kvm_sregs) {
    let (cr0, cr4, efer) = (sregs.cr0, sregs.cr4, sregs.efer);
    let paging = cr0 & cr0::PG != 0;
    check.require(cr0 >> 32 == 0, || format!("CR0 = {cr0:#x} has bits above 31"));
    check.require(!paging || cr0 & cr0::PE != 0, || "CR0.PG is set without CR0.PE".to_owned());
    check.require(cr3_fits(sregs.cr3), || {
        format!("CR3 = {:#x} is wider than any physical address", sregs.cr3)
    });
    check.require(cr4 >> 32 == 0, || format!("CR4 = {cr4:#x} has bits above 31"));
    check.require(cr4 & cr4::CET == 0 || cr0 & cr0::WP != 0, || "CR4.CET is set without CR0.WP".to_owned());
    check.require(cr4 & cr4::PCIDE == 0 || long_mode(sregs), || {
        "CR4.PCIDE is set outside long mode".to_owned()
    });
    let known = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    check.require(efer & !known == 0, || format!("EFER = {efer:#x} has reserved bits"));
    let (lme, lma) = (efer & efer::LME != 0, efer & efer::LMA != 0);
    check.require(!paging || lme == lma, || "with paging on, EFER.LMA and EFER.LME must be alike".to_owned());
    check.require(!lma || paging, || "EFER.LMA is set without CR0.PG".to_owned());
    check.require(!lma || cr4 & cr4::PAE != 0, || "EFER.LMA is set without CR4.PAE".to_owned());
}

/// CR3 holds at most the 52 bits of the widest physical address.
fn cr3_fits(cr3: u64) -> bool {
    cr3 >> 52 == 0
}

const AS_8086: &str = "older Intel CPUs run real mode as virtual-8086 code, and then ask for it";

/// Real mode: with "unrestricted guest" nearly everything is let in, without it
/// the segments must be what virtual-8086 mode makes of their selectors.
fn real_mode_segments(check: &mut Check, sregs: &kvm_sregs) {
    for (name, segment) in all_six(sregs) {
        let base = match (name, segment.selector) {
            // After reset CS is the exception: SDM Vol. 3A, "First Instruction Executed".
            ("CS", 0xf000) if segment.base == 0xffff_0000 => segment.base,
            (_, selector) => u64::from(selector) << 4,
        };
        check.require(segment.base == base, || {
            format!(
                "in real mode {name}'s base must be its selector × 16 = {base:#x}, and is {:#x}",
                segment.base
            )
        });
        check.require(segment.limit == 0xffff, || {
            format!("{name}'s limit must be 0xffff, and is {:#x}; {AS_8086}", segment.limit)
        });
        check.require(segment.present == 1 && segment.s == 1 && segment.unusable == 0, || {
            format!("in real mode {name} must be a usable, present segment")
        });
    }
    check.require(sregs.ss.dpl == 0, || format!("in real mode SS.DPL must be 0, and is {}", sregs.ss.dpl));
    let cs = &sregs.cs;
    check.require(matches!(cs.type_, 3 | 9 | 11 | 13 | 15), || {
        format!("CS has type {}, which is neither accessed code nor accessed writable data", cs.type_)
    });
    check.require(cs.type_ != 3 || cs.dpl == 0, || {
        format!("CS has type 3, and then its DPL is 0, not {}", cs.dpl)
    });
    for (name, segment) in all_six(sregs).into_iter().skip(1) {
        check.require(segment.type_ & 1 == 1, || {
            format!("{name}'s type {} lacks the accessed bit", segment.type_)
        });
        granularity(check, name, segment);
    }
}

fn segments(check: &mut Check, sregs: &kvm_sregs) {
    let (cs, ss) = (&sregs.cs, &sregs.ss);
    check.require(cs.unusable == 0, || "CS must not be unusable".to_owned());
    check.require(matches!(cs.type_, 3 | 9 | 11 | 13 | 15), || {
        format!("CS has type {}, which is no accessed code segment", cs.type_)
    });
    check.require(cs.s == 1, || "CS.S is 0: that is a system descriptor".to_owned());
    check.require(cs.present == 1, || "CS is not present".to_owned());
    check.require(cs.base >> 32 == 0, || format!("CS's base {:#x} has bits above 31", cs.base));
    check.require(!long_mode(sregs) || cs.l == 0 || cs.db == 0, || {
        "CS.L and CS.D are both set in long mode".to_owned()
    });
    let dpl_fits = match cs.type_ {
        3 => cs.dpl == 0,
        9 | 11 => cs.dpl == ss.dpl,
        13 | 15 => cs.dpl <= ss.dpl,
        _ => true, // already reported
    };
    check.require(dpl_fits, || {
        format!("CS (type {}) has DPL {}, which does not fit SS.DPL = {}", cs.type_, cs.dpl, ss.dpl)
    });
    check.require(cs.selector & 3 == ss.selector & 3, || {
        format!("CS's selector {:#x} and SS's {:#x} differ in their RPL", cs.selector, ss.selector)
    });
    check.require(ss.dpl == (ss.selector & 3) as u8, || {
        format!("SS.DPL is {} and its selector's RPL {}", ss.dpl, ss.selector & 3)
    });
    check.require(cs.type_ != 3 || ss.dpl == 0, || {
        format!("CS has type 3, and then SS.DPL is 0, not {}", ss.dpl)
    });
    granularity(check, "CS", cs);
    for (name, segment) in all_six(sregs).into_iter().skip(1) {
        if segment.unusable == 0 {
            data_segment(check, name, segment);
        }
    }
    for (name, segment) in [("FS", &sregs.fs), ("GS", &sregs.gs)] {
        check.require(canonical(segment.base), || {
            format!("{name}'s base {:#x} is not canonical", segment.base)
        });
    }
}

fn data_segment(check: &mut Check, name: &str, segment: &kvm_segment) {
    let (kind, dpl, rpl) = (segment.type_, segment.dpl, (segment.selector & 3) as u8);
    if name == "SS" {
        check.require(matches!(kind, 3 | 7), || {
            format!("SS has type {kind}, which is no accessed, writable data segment")
        });
    } else {
        check.require(kind & 1 == 1, || format!("{name}'s type {kind} lacks the accessed bit"));
        check.require(kind & 8 == 0 || kind & 2 != 0, || {
            format!("{name} has type {kind}, code that cannot be read")
        });
        check.require(kind > 11 || dpl >= rpl, || {
            format!("{name}'s DPL {dpl} is below its selector's RPL {rpl}")
        });
    }
    check.require(segment.s == 1, || format!("{name}.S is 0: that is a system descriptor"));
    check.require(segment.present == 1, || format!("{name} is usable but not present"));
    if matches!(name, "SS" | "DS" | "ES") {
        check.require(segment.base >> 32 == 0, || {
            format!("{name}'s base {:#x} has bits above 31", segment.base)
        });
    }
    granularity(check, name, segment);
}

fn task_and_ldt(check: &mut Check, sregs: &kvm_sregs) {
    let tr = &sregs.tr;
    check.require(tr.unusable == 0, || "TR must not be unusable".to_owned());
    check.require(tr.selector & 4 == 0, || format!("TR's selector {:#x} points into the LDT", tr.selector));
    check.require(canonical(tr.base), || format!("TR's base {:#x} is not canonical", tr.base));
    let busy = if long_mode(sregs) { tr.type_ == 11 } else { matches!(tr.type_, 3 | 11) };
    check.require(busy, || format!("TR has type {}, which is no busy TSS (11)", tr.type_));
    check.require(tr.s == 0, || "TR.S is 1: that is a code or data segment".to_owned());
    check.require(tr.present == 1, || "TR is not present".to_owned());
    granularity(check, "TR", tr);

    let ldt = &sregs.ldt;
    if ldt.unusable == 1 {
        return;
    }
    check.require(ldt.selector & 4 == 0, || {
        format!("LDTR's selector {:#x} points into the LDT", ldt.selector)
    });
    check.require(canonical(ldt.base), || format!("LDTR's base {:#x} is not canonical", ldt.base));
    check.require(ldt.type_ == 2, || {
        format!("LDTR is usable and has type {}, which is no LDT (2)", ldt.type_)
    });
    check.require(ldt.s == 0, || "LDTR.S is 1: that is a code or data segment".to_owned());
    check.require(ldt.present == 1, || "LDTR is usable but not present".to_owned());
    granularity(check, "LDTR", ldt);
}

/// A limit in bytes must be one that the descriptor's 20 bits can say with this G.
fn granularity(check: &mut Check, name: &str, segment: &kvm_segment) {
    let limit = segment.limit;
    check.require(limit & 0xfff == 0xfff || segment.g == 0, || {
        format!("{name}'s limit {limit:#x} is no whole number of pages, and then G must be 0")
    });
    check.require(limit >> 20 == 0 || segment.g == 1, || format!("{name}'s limit {limit:#x} needs G = 1"));
}

fn rip_and_rflags(check: &mut Check, regs: &kvm_regs, sregs: &kvm_sregs) {
    let (rip, flags) = (regs.rip, regs.rflags);
    if long_mode(sregs) && sregs.cs.l == 1 {
        check.require(canonical(rip), || format!("RIP = {rip:#x} is not canonical"));
    } else {
        check.require(rip >> 32 == 0, || format!("RIP = {rip:#x} has bits above 31 outside 64-bit code"));
    }
    let reserved = !0 << 22 | 1 << 15 | 1 << 5 | 1 << 3;
    check.require(flags & reserved == 0, || format!("RFLAGS = {flags:#x} has reserved bits"));
    check.require(flags & rflags::FIXED != 0, || {
        format!("RFLAGS = {flags:#x} lacks bit 1, which is always 1")
    });
    check.require(flags & rflags::VM == 0 || (!long_mode(sregs) && sregs.cr0 & cr0::PE != 0), || {
        "RFLAGS.VM is set in long mode or without CR0.PE".to_owned()
    });
}

fn all_six(sregs: &kvm_sregs) -> [(&'static str, &kvm_segment); 6] {
    [
        ("CS", &sregs.cs),
        ("SS", &sregs.ss),
        ("DS", &sregs.ds),
        ("ES", &sregs.es),
        ("FS", &sregs.fs),
        ("GS", &sregs.gs),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{Descriptor, idle_task, unusable};

    /// 64-bit code in ring 0, as chapter 08 enters it.
    fn long() -> (kvm_regs, kvm_sregs) {
        let data = Descriptor::DATA.load(0x10);
        let sregs = kvm_sregs {
            cs: Descriptor::CODE_64.load(8),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: idle_task(),
            ldt: unusable(),
            cr0: cr0::PE | cr0::PG,
            cr3: 0x4000,
            cr4: cr4::PAE,
            efer: efer::LME | efer::LMA,
            ..kvm_sregs::default()
        };
        let regs = kvm_regs { rip: 0x1000, rflags: rflags::FIXED, ..kvm_regs::default() };
        (regs, sregs)
    }

    fn real() -> (kvm_regs, kvm_sregs) {
        let data = kvm_segment { limit: 0xffff, type_: 3, present: 1, s: 1, ..kvm_segment::default() };
        let sregs = kvm_sregs {
            cs: kvm_segment { type_: 11, ..data },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: kvm_segment { limit: 0xffff, type_: 11, present: 1, ..kvm_segment::default() },
            ldt: kvm_segment { limit: 0xffff, type_: 2, present: 1, ..kvm_segment::default() },
            cr0: cr0::ET,
            ..kvm_sregs::default()
        };
        (kvm_regs { rip: 0x1000, rflags: rflags::FIXED, ..kvm_regs::default() }, sregs)
    }

    #[test]
    fn a_right_state_breaks_nothing() {
        let (regs, mut after_reset) = real();
        (after_reset.cs.selector, after_reset.cs.base) = (0xf000, 0xffff_0000);
        for (regs, sregs) in [long(), real(), (regs, after_reset)] {
            assert_eq!(entry_findings(&regs, &sregs), []);
        }
    }

    /// A state that breaks a rule and, but for what follows from it, nothing else.
    fn broken(
        base: fn() -> (kvm_regs, kvm_sregs),
        change: impl Fn(&mut kvm_regs, &mut kvm_sregs),
        words: &str,
    ) {
        let (mut regs, mut sregs) = base();
        change(&mut regs, &mut sregs);
        let findings = entry_findings(&regs, &sregs);
        let named = findings.iter().any(|finding| finding.sentence.contains(words));
        assert!(named, "{words:?} is not among {findings:#?}");
        assert!(findings.len() <= 2, "{words:?} brings false alarms: {findings:#?}");
    }

    #[test]
    fn every_rule_on_control_registers_is_checked() {
        broken(long, |_, s| s.cr0 |= 1 << 32, "CR0 = 0x180000001 has bits above 31");
        broken(real, |_, s| s.cr0 |= cr0::PG, "PG is set without CR0.PE");
        broken(long, |_, s| s.cr3 = 1 << 52, "CR3");
        broken(long, |_, s| s.cr4 |= 1 << 32, "CR4 = ");
        broken(long, |_, s| s.cr4 |= cr4::CET, "CET");
        broken(real, |_, s| s.cr4 |= cr4::PCIDE, "PCIDE");
        broken(long, |_, s| s.efer |= 1 << 1, "reserved bits");
        broken(long, |_, s| s.efer &= !efer::LME, "must be alike");
        broken(long, |_, s| s.cr0 &= !cr0::PG, "LMA is set without CR0.PG");
        broken(long, |_, s| s.cr4 &= !cr4::PAE, "without CR4.PAE");
    }

    #[test]
    fn every_rule_on_code_segments_is_checked() {
        broken(long, |_, s| s.cs.unusable = 1, "CS must not be unusable");
        broken(long, |_, s| s.cs.type_ = 10, "CS has type 10");
        broken(long, |_, s| s.cs.s = 0, "CS.S is 0");
        broken(long, |_, s| s.cs.present = 0, "CS is not present");
        broken(long, |_, s| s.cs.base = 1 << 32, "CS's base");
        broken(long, |_, s| s.cs.db = 1, "CS.L and CS.D");
        broken(long, |_, s| s.cs.dpl = 3, "does not fit SS.DPL");
        broken(long, |_, s| (s.cs.type_, s.cs.dpl) = (15, 1), "does not fit SS.DPL");
        broken(long, |_, s| s.cs.selector = 0xb, "differ in their RPL");
        broken(long, |_, s| s.cs.g = 0, "CS's limit 0xffffffff needs G = 1");
        broken(long, |_, s| s.cs.limit = 0xfff0, "CS's limit 0xfff0");
    }

    #[test]
    fn every_rule_on_data_segments_is_checked() {
        broken(long, |_, s| s.ss.dpl = 3, "SS.DPL is 3");
        broken(long, |_, s| s.ss.type_ = 1, "SS has type 1");
        broken(long, |_, s| s.ss.present = 0, "SS is usable but not present");
        broken(long, |_, s| s.ds.type_ = 2, "DS's type 2 lacks the accessed bit");
        broken(long, |_, s| s.es.type_ = 9, "ES has type 9, code that cannot be read");
        broken(long, |_, s| s.fs.selector = 0x13, "FS's DPL 0 is below");
        broken(long, |_, s| s.gs.s = 0, "GS.S is 0");
        broken(long, |_, s| s.ds.base = 1 << 40, "DS's base");
        broken(long, |_, s| s.fs.base = 1 << 47, "FS's base 0x800000000000 is not canonical");
        broken(long, |_, s| s.es.limit = 0x10_0000 - 0x10, "ES's limit");
    }

    #[test]
    fn an_unusable_data_segment_may_hold_anything() {
        let (regs, mut sregs) = long();
        sregs.ds = kvm_segment { unusable: 1, type_: 0, dpl: 2, ..kvm_segment::default() };
        assert_eq!(entry_findings(&regs, &sregs), []);
    }

    #[test]
    fn every_rule_on_the_task_register_and_the_ldt_is_checked() {
        broken(long, |_, s| s.tr.unusable = 1, "TR must not be unusable");
        broken(long, |_, s| s.tr.selector = 4, "TR's selector");
        broken(long, |_, s| s.tr.base = 1 << 63, "TR's base");
        broken(long, |_, s| s.tr.type_ = 9, "no busy TSS");
        broken(long, |_, s| s.tr.type_ = 3, "no busy TSS");
        broken(long, |_, s| s.tr.s = 1, "TR.S is 1");
        broken(long, |_, s| s.tr.present = 0, "TR is not present");
        broken(long, |_, s| s.tr.g = 1, "TR's limit");
        broken(real, |_, s| s.ldt.selector = 4, "LDTR's selector");
        broken(real, |_, s| s.ldt.base = 1 << 50, "LDTR's base");
        broken(real, |_, s| s.ldt.type_ = 3, "no LDT");
        broken(real, |_, s| s.ldt.s = 1, "LDTR.S is 1");
        broken(real, |_, s| s.ldt.present = 0, "LDTR is usable but not present");
        broken(real, |_, s| s.ldt.limit = 0x10_0000, "LDTR's limit");
    }

    #[test]
    fn every_rule_on_real_mode_segments_is_checked() {
        broken(real, |_, s| s.cs.base = 0xffff_0000, "CS's base must be its selector × 16 = 0x0, and");
        broken(real, |_, s| s.ds.selector = 1, "DS's base must be its selector × 16 = 0x10");
        broken(real, |_, s| s.es.limit = 0xffff_ffff, "ES's limit must be 0xffff");
        broken(real, |_, s| s.fs.present = 0, "FS must be a usable, present segment");
        broken(real, |_, s| s.ss.dpl = 1, "SS.DPL must be 0");
        broken(real, |_, s| s.cs.type_ = 2, "CS has type 2");
        broken(real, |_, s| (s.cs.type_, s.cs.dpl) = (3, 3), "CS has type 3");
        broken(real, |_, s| s.gs.type_ = 2, "GS's type 2 lacks");
    }

    #[test]
    fn every_rule_on_tables_rip_and_rflags_is_checked() {
        broken(long, |_, s| s.gdt.base = 1 << 48, "GDTR's base");
        broken(long, |_, s| s.idt.base = 1 << 48, "IDTR's base");
        broken(long, |r, _| r.rip = 1 << 47, "RIP = 0x800000000000 is not canonical");
        broken(real, |r, _| r.rip = 1 << 32, "RIP = 0x100000000 has bits above 31");
        broken(long, |r, _| r.rflags |= 1 << 3, "RFLAGS = 0xa has reserved bits");
        broken(long, |r, _| r.rflags = 0, "lacks bit 1");
        broken(long, |r, _| r.rflags |= rflags::VM, "RFLAGS.VM");
    }
}
