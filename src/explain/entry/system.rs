//! TR, LDTR, GDTR and IDTR.

use super::Verdict::{Accepts, Refuses};
use super::{EntryState, Rule, SEGMENTS, TABLES, each, long_mode, when};
use crate::explain::selector::kind;
use crate::kvm::kvm_segment;

const INTEL: super::Verdict = Refuses(SEGMENTS);

/// A sentence where LDTR is usable and breaks a rule.
fn local(state: &EntryState, broken: fn(&EntryState, &kvm_segment) -> Option<String>) -> Vec<String> {
    state.local_table().and_then(|ldt| broken(state, ldt)).into_iter().collect()
}

/// TR, and LDTR where it is usable.
fn both(state: &EntryState) -> Vec<(&'static str, &kvm_segment)> {
    let ldt = state.local_table().map(|ldt| ("LDTR", ldt));
    [("TR", &state.sregs.tr)].into_iter().chain(ldt).collect()
}

#[rustfmt::skip] // a rule a paragraph
pub const RULES: &[Rule] = &[
    Rule { name: "tr-unusable", intel: INTEL, amd: Accepts,
        broken: |s| when(s.sregs.tr.unusable != 0, || "TR must not be unusable".to_owned()) },
    Rule { name: "tr-type", intel: INTEL, amd: Accepts,
        broken: |s| {
            let type_ = s.sregs.tr.type_;
            let busy = type_ == 11 || type_ == 3 && !long_mode(s);
            when(!busy, || format!("TR has type {type_} ({}), which is no busy TSS (11)", kind(false, type_)))
        } },
    Rule { name: "ldtr-type", intel: INTEL, amd: Accepts,
        broken: |s| local(s, |_, ldt| (ldt.type_ != 2)
            .then(|| format!("LDTR is usable and has type {} ({}), which is no LDT (2)", ldt.type_, kind(false, ldt.type_)))) },
    Rule { name: "system-table-bit", intel: INTEL, amd: Accepts,
        broken: |s| each(&both(s), |name, segment| (segment.selector & 4 != 0)
            .then(|| format!("{name}'s selector {:#x} points into the LDT", segment.selector))) },
    Rule { name: "system-base", intel: INTEL, amd: Accepts,
        broken: |s| each(&both(s), |name, segment| (!s.canonical(segment.base))
            .then(|| format!("{name}'s base {:#x} is not canonical", segment.base))) },
    Rule { name: "system-s-bit", intel: INTEL, amd: Accepts,
        broken: |s| each(&both(s), |name, segment| (segment.s != 0)
            .then(|| format!("{name}.S is 1: that is a code or data segment"))) },
    Rule { name: "system-present", intel: INTEL, amd: Accepts,
        broken: |s| each(&both(s), |name, segment| (segment.present == 0)
            .then(|| format!("{name} is usable but not present"))) },
    Rule { name: "system-limit-bytes", intel: INTEL, amd: Accepts,
        broken: |s| each(&both(s), |name, segment| (segment.limit & 0xfff != 0xfff && segment.g == 1)
            .then(|| format!("{name}'s limit {:#x} is no whole number of pages, and then G must be 0", segment.limit))) },
    Rule { name: "system-limit-pages", intel: INTEL, amd: Accepts,
        broken: |s| each(&both(s), |name, segment| (segment.limit >> 20 != 0 && segment.g == 0)
            .then(|| format!("{name}'s limit {:#x} needs G = 1", segment.limit))) },
    Rule { name: "table-base", intel: Refuses(TABLES), amd: Accepts,
        broken: |s| {
            let tables = [("GDTR", s.sregs.gdt.base), ("IDTR", s.sregs.idt.base)];
            let broken = tables.iter().filter(|(_, base)| !s.canonical(*base));
            broken.map(|(name, base)| format!("{name}'s base {base:#x} is not canonical")).collect()
        } },
];
