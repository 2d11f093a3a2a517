//! CS, SS, DS, ES, FS and GS of a guest that is not in virtual-8086 mode; what only
//! a CPU without "unrestricted guest" asks applies in protected mode alone, because
//! there it has real mode run as virtual-8086 code.

use super::Verdict::{Accepts, Refuses, RefusesWithoutUnrestricted};
use super::{Rule, SEGMENTS, each, when};
use crate::explain::selector::kind;

const INTEL: super::Verdict = Refuses(SEGMENTS);
const OLD_INTEL: super::Verdict = RefusesWithoutUnrestricted(SEGMENTS);

#[rustfmt::skip] // a rule a paragraph
pub const RULES: &[Rule] = &[
    Rule { name: "cs-unusable", intel: INTEL, amd: Accepts,
        broken: |s| when(s.sregs.cs.unusable != 0, || "CS must not be unusable".to_owned()) },
    Rule { name: "cs-type", intel: INTEL, amd: Accepts,
        broken: |s| when(!matches!(s.sregs.cs.type_, 3 | 9 | 11 | 13 | 15), || {
            let type_ = s.sregs.cs.type_;
            format!("CS has type {type_} ({}), which is neither accessed code nor accessed writable data", kind(true, type_))
        }) },
    Rule { name: "cs-data", intel: OLD_INTEL, amd: Accepts,
        broken: |s| when(s.protected() && s.sregs.cs.type_ == 3, || "CS has type 3, which is data".to_owned()) },
    Rule { name: "cs-data-dpl", intel: INTEL, amd: Accepts,
        broken: |s| when(s.sregs.cs.type_ == 3 && s.sregs.cs.dpl != 0,
            || format!("CS has type 3, and then its DPL is 0, not {}", s.sregs.cs.dpl)) },
    Rule { name: "cs-dpl", intel: INTEL, amd: Accepts,
        broken: |s| {
            let (cs, ss) = (&s.sregs.cs, &s.sregs.ss);
            when(matches!(cs.type_, 9 | 11) && cs.dpl != ss.dpl,
                || format!("CS (type {}, not conforming) has DPL {}, and SS has DPL {}", cs.type_, cs.dpl, ss.dpl))
        } },
    Rule { name: "cs-conforming-dpl", intel: INTEL, amd: Accepts,
        broken: |s| {
            let (cs, ss) = (&s.sregs.cs, &s.sregs.ss);
            when(matches!(cs.type_, 13 | 15) && cs.dpl > ss.dpl,
                || format!("CS (type {}, conforming) has DPL {}, above SS.DPL = {}", cs.type_, cs.dpl, ss.dpl))
        } },
    Rule { name: "cs-base", intel: INTEL, amd: Accepts,
        broken: |s| when(s.sregs.cs.base >> 32 != 0, || format!("CS's base {:#x} has bits above 31", s.sregs.cs.base)) },
    Rule { name: "rpl", intel: OLD_INTEL, amd: Accepts,
        broken: |s| {
            let (cs, ss) = (s.sregs.cs.selector, s.sregs.ss.selector);
            when(s.protected() && (cs ^ ss) & 3 != 0, || format!("CS's selector {cs:#x} and SS's {ss:#x} differ in their RPL"))
        } },
    Rule { name: "ss-dpl-is-rpl", intel: OLD_INTEL, amd: Accepts,
        broken: |s| {
            let ss = &s.sregs.ss;
            when(s.protected() && u16::from(ss.dpl) != ss.selector & 3,
                || format!("SS.DPL is {} and its selector's RPL {}", ss.dpl, ss.selector & 3))
        } },
    Rule { name: "ss-dpl-0", intel: INTEL, amd: Accepts,
        broken: |s| when(s.sregs.ss.dpl != 0 && (s.sregs.cs.type_ == 3 || !s.protected()),
            || format!("in real mode, and with CS of type 3, SS.DPL must be 0, and is {}", s.sregs.ss.dpl)) },
    Rule { name: "ss-type", intel: INTEL, amd: Accepts,
        broken: |s| s.stack().map_or_else(Vec::new, |ss| when(!matches!(ss.type_, 3 | 7),
            || format!("SS has type {} ({}), which is no accessed, writable data segment", ss.type_, kind(true, ss.type_)))) },
    Rule { name: "accessed", intel: INTEL, amd: Accepts,
        broken: |s| each(&s.data(), |name, segment| (segment.type_ & 1 == 0)
            .then(|| format!("{name}'s type {} ({}) lacks the accessed bit", segment.type_, kind(true, segment.type_)))) },
    Rule { name: "readable", intel: INTEL, amd: Accepts,
        broken: |s| each(&s.data(), |name, segment| (segment.type_ & 0xa == 8)
            .then(|| format!("{name} has type {}, code that cannot be read", segment.type_))) },
    Rule { name: "data-dpl", intel: OLD_INTEL, amd: Accepts,
        broken: |s| each(&s.data(), |name, segment| {
            let rpl = (segment.selector & 3) as u8;
            (s.protected() && segment.type_ <= 11 && segment.dpl < rpl)
                .then(|| format!("{name}'s DPL {} is below its selector's RPL {rpl}", segment.dpl))
        }) },
    Rule { name: "s-bit", intel: INTEL, amd: Accepts,
        broken: |s| each(&s.in_use(), |name, segment| (segment.s == 0)
            .then(|| format!("{name}.S is 0: that is a system descriptor"))) },
    Rule { name: "present", intel: INTEL, amd: Accepts,
        broken: |s| each(&s.in_use(), |name, segment| (segment.present == 0)
            .then(|| format!("{name} is usable but not present"))) },
    Rule { name: "data-base", intel: INTEL, amd: Accepts,
        broken: |s| each(&s.in_use(), |name, segment| (matches!(name, "SS" | "DS" | "ES") && segment.base >> 32 != 0)
            .then(|| format!("{name}'s base {:#x} has bits above 31", segment.base))) },
    Rule { name: "fs-gs-base", intel: INTEL, amd: Accepts,
        broken: |s| each(&s.six()[4..], |name, segment| (!s.canonical(segment.base))
            .then(|| format!("{name}'s base {:#x} is not canonical", segment.base))) },
    Rule { name: "limit-bytes", intel: INTEL, amd: Accepts,
        broken: |s| each(&s.in_use(), |name, segment| (segment.limit & 0xfff != 0xfff && segment.g == 1)
            .then(|| format!("{name}'s limit {:#x} is no whole number of pages, and then G must be 0", segment.limit))) },
    Rule { name: "limit-pages", intel: INTEL, amd: Accepts,
        broken: |s| each(&s.in_use(), |name, segment| (segment.limit >> 20 != 0 && segment.g == 0)
            .then(|| format!("{name}'s limit {:#x} needs G = 1", segment.limit))) },
];
