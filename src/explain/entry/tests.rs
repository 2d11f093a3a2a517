//! For every rule a state that breaks it and nothing else, and one beside it that
//! breaks nothing.

use super::*;
use crate::mode::{cr0, cr4, rflags};
use crate::segment::{Descriptor, idle_task, unusable};

/// 64-bit code in ring 0, as chapter 08 enters it.
fn long() -> EntryState {
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
    EntryState::new(&regs, &sregs)
}

/// The same in 32-bit code with PAE paging.
fn pae() -> EntryState {
    let mut state = long();
    (state.sregs.efer, state.sregs.cs) = (0, Descriptor::CODE_32.load(8));
    state.pointers = [0x5001, 0, 0, 0];
    state
}

/// Real mode at 0x1000 with all segments at 0.
fn real() -> EntryState {
    let mut state = long();
    let data = kvm_segment { limit: 0xffff, type_: 3, present: 1, s: 1, ..kvm_segment::default() };
    let s = &mut state.sregs;
    (s.cs, s.ds, s.es, s.fs, s.gs, s.ss) = (kvm_segment { type_: 11, ..data }, data, data, data, data, data);
    s.ldt = kvm_segment { limit: 0xffff, type_: 2, present: 1, ..kvm_segment::default() };
    (s.cr0, s.cr4, s.efer) = (cr0::ET, 0, 0);
    state
}

/// A rule's name, a good state, what breaks it, and what beside that does not.
type Case = (&'static str, fn() -> EntryState, fn(&mut EntryState), fn(&mut EntryState));

#[rustfmt::skip] // a case a line
const CASES: &[Case] = &[
    ("cr0-upper-half", long, |s| s.sregs.cr0 |= 1 << 32, |s| s.sregs.cr0 |= 1 << 16),
    ("paging-unprotected", real, |s| s.sregs.cr0 |= cr0::PG, |s| s.sregs.cr0 |= cr0::CD),
    ("long-unprotected", real, |s| (s.sregs.cr0, s.sregs.cr4, s.sregs.efer) = (cr0::PG, cr4::PAE, efer::LME | efer::LMA), |s| s.sregs.efer = efer::LME),
    ("not-write-through", long, |s| s.sregs.cr0 |= cr0::NW, |s| s.sregs.cr0 |= cr0::NW | cr0::CD),
    ("cr3-width", long, |s| s.sregs.cr3 = 1 << 52, |s| s.sregs.cr3 = 1 << 51),
    ("cr4-reserved", long, |s| s.sregs.cr4 |= 1 << 15, |s| s.sregs.cr4 |= 1 << 16),
    ("cet-without-wp", long, |s| s.sregs.cr4 |= cr4::CET, |s| (s.sregs.cr4, s.sregs.cr0) = (s.sregs.cr4 | cr4::CET, s.sregs.cr0 | cr0::WP)),
    ("pcide-outside-long-mode", real, |s| s.sregs.cr4 |= cr4::PCIDE, |s| s.sregs.cr4 |= cr4::PGE),
    ("lma-without-paging", long, |s| s.sregs.cr0 &= !cr0::PG, |s| s.sregs.cr0 |= cr0::NE),
    ("long-without-pae", long, |s| s.sregs.cr4 = 0, |s| s.sregs.cr4 = cr4::PAE | cr4::PSE),
    ("lma-is-lme", long, |s| s.sregs.efer = efer::LMA, |s| s.sregs.efer |= efer::SCE),
    ("efer-reserved", long, |s| s.sregs.efer |= 1 << 1, |s| s.sregs.efer |= efer::NXE),
    ("efer-of-amd", long, |s| s.sregs.efer |= 1 << 12, |s| s.sregs.efer |= efer::SCE),
    ("dr6-upper-half", long, |s| s.dr6 |= 1 << 32, |s| s.dr6 |= 1 << 14),
    ("dr7-upper-half", long, |s| s.dr7 |= 1 << 32, |s| s.dr7 |= 1),
    ("debugctl-reserved", long, |s| s.debug_control = 1 << 5, |s| s.debug_control = 1 << 1),
    ("sysenter-esp", long, |s| s.sysenter_esp = 1 << 47, |s| s.sysenter_esp = !0 << 47),
    ("sysenter-eip", long, |s| s.sysenter_eip = 1 << 47, |s| s.sysenter_eip = (1 << 47) - 1),
    ("pat-type", long, |s| s.pat = 0x0007_0406_0007_0402, |s| s.pat = 0x0505_0505_0505_0505),
    ("bndcfgs", long, |s| s.bounds = 1 << 2, |s| s.bounds = 0x1000 | 3),
    ("s-cet", long, |s| s.shadow_stack_control = 0xc00, |s| s.shadow_stack_control = 0x400),
    ("ssp-table", long, |s| s.shadow_stack_table = 1 << 50, |s| s.shadow_stack_table = 1 << 46),
    ("l-and-d", long, |s| s.sregs.cs.db = 1, |s| (s.sregs.cs.l, s.sregs.cs.db) = (0, 1)),
    ("cs-unusable", long, |s| s.sregs.cs.unusable = 1, |s| s.sregs.ds.unusable = 1),
    ("cs-type", long, |s| s.sregs.cs.type_ = 10, |s| s.sregs.cs.type_ = 9),
    ("cs-data", long, |s| s.sregs.cs.type_ = 3, |s| s.sregs.cs.type_ = 11),
    ("cs-data-dpl", real, |s| (s.sregs.cs.type_, s.sregs.cs.dpl) = (3, 3), |s| s.sregs.cs.type_ = 3),
    ("cs-dpl", long, |s| s.sregs.cs.dpl = 3, |s| s.sregs.cs.type_ = 15),
    ("cs-conforming-dpl", long, |s| (s.sregs.cs.type_, s.sregs.cs.dpl) = (15, 1), ring_3_in_conforming_code),
    ("cs-base", long, |s| s.sregs.cs.base = 1 << 32, |s| s.sregs.cs.base = 1 << 31),
    ("rpl", long, |s| s.sregs.cs.selector = 0xb, |s| s.sregs.cs.selector = 0x18),
    ("ss-dpl-is-rpl", long, |s| (s.sregs.ss.selector, s.sregs.cs.selector) = (0x13, 0xb), ring_3),
    ("ss-dpl-0", real, |s| (s.sregs.ss.dpl, s.sregs.cs.dpl) = (3, 3), |s| s.sregs.ds.dpl = 3),
    ("ss-type", long, |s| s.sregs.ss.type_ = 1, |s| s.sregs.ss.type_ = 7),
    ("accessed", long, |s| s.sregs.ds.type_ = 2, |s| s.sregs.ds.type_ = 1),
    ("readable", long, |s| s.sregs.es.type_ = 9, |s| s.sregs.es.type_ = 11),
    ("data-dpl", long, |s| s.sregs.fs.selector = 0x13, |s| (s.sregs.fs.selector, s.sregs.fs.type_) = (0x13, 15)),
    ("s-bit", long, |s| s.sregs.gs.s = 0, |s| (s.sregs.gs.s, s.sregs.gs.unusable) = (0, 1)),
    ("present", long, |s| s.sregs.ss.present = 0, |s| (s.sregs.ss.present, s.sregs.ss.unusable) = (0, 1)),
    ("data-base", long, |s| s.sregs.ds.base = 1 << 40, |s| s.sregs.fs.base = 1 << 40),
    ("fs-gs-base", long, |s| s.sregs.fs.base = 1 << 47, |s| s.sregs.fs.base = !0 << 47),
    ("limit-bytes", long, |s| s.sregs.es.limit = 0xf_fff0, |s| (s.sregs.es.limit, s.sregs.es.g) = (0xf_fff0, 0)),
    ("limit-pages", long, |s| s.sregs.cs.g = 0, |s| (s.sregs.cs.g, s.sregs.cs.limit) = (0, 0xf_ffff)),
    ("real-base", real, |s| s.sregs.ds.selector = 1, |s| (s.sregs.ds.selector, s.sregs.ds.base) = (1, 0x10)),
    ("real-limit", real, |s| s.sregs.es.limit = 0xf_ffff, |s| s.sregs.ldt.limit = 0xf_ffff),
    ("real-unusable", real, |s| s.sregs.gs.unusable = 1, |s| s.sregs.ldt.unusable = 1),
    ("tr-unusable", long, |s| s.sregs.tr.unusable = 1, |s| s.sregs.tr.limit = 0xff),
    ("tr-type", long, |s| s.sregs.tr.type_ = 3, |s| { *s = real(); s.sregs.tr.type_ = 3; }),
    ("ldtr-type", real, |s| s.sregs.ldt.type_ = 3, |s| (s.sregs.ldt.type_, s.sregs.ldt.unusable) = (3, 1)),
    ("system-table-bit", long, |s| s.sregs.tr.selector = 4, |s| s.sregs.tr.selector = 0x18),
    ("system-base", real, |s| s.sregs.ldt.base = 1 << 50, |s| s.sregs.ldt.base = 1 << 46),
    ("system-s-bit", long, |s| s.sregs.tr.s = 1, |s| s.sregs.tr.dpl = 3),
    ("system-present", real, |s| s.sregs.ldt.present = 0, |s| (s.sregs.ldt.present, s.sregs.ldt.unusable) = (0, 1)),
    ("system-limit-bytes", long, |s| s.sregs.tr.g = 1, |s| (s.sregs.tr.g, s.sregs.tr.limit) = (1, 0xfff)),
    ("system-limit-pages", real, |s| s.sregs.ldt.limit = 0x10_0000, |s| s.sregs.ldt.limit = 0xf_fff0),
    ("table-base", long, |s| s.sregs.gdt.base = 1 << 48, |s| s.sregs.gdt.base = !0 << 47),
    ("rip-upper-half", real, |s| s.regs.rip = 1 << 32, |s| s.regs.rip = 1 << 31),
    ("rip-width", long, |s| s.regs.rip = 1 << 48, |s| s.regs.rip = 1 << 47),
    ("rflags-reserved", long, |s| s.regs.rflags |= 1 << 3, |s| s.regs.rflags |= 1 << 2),
    ("rflags-fixed", long, |s| s.regs.rflags = 0, |s| s.regs.rflags |= rflags::CF),
    ("rflags-vm", long, |s| s.regs.rflags |= rflags::VM, |s| s.regs.rflags |= rflags::AC),
    ("rflags-if", long, |s| s.injects = Some(0), |s| s.injects = Some(3)),
    ("ssp", long, |s| s.shadow_stack = 2, |s| s.shadow_stack = 0x1000),
    ("activity", long, |s| s.activity = 4, |s| s.activity = 3),
    ("hlt-ring", long, |s| { ring_3(s); s.activity = 1; }, |s| s.activity = 1),
    ("blocking-active", long, |s| { s.regs.rflags |= rflags::IF; (s.activity, s.interruptibility) = (2, 1); }, |s| s.activity = 2),
    ("interruptibility-reserved", long, |s| s.interruptibility = 1 << 5, |s| s.interruptibility = 1 << 3),
    ("sti-and-mov-ss", long, |s| { s.regs.rflags |= rflags::IF; s.interruptibility = 3; }, |s| s.interruptibility = 2),
    ("sti-without-if", long, |s| s.interruptibility = 1, |s| { s.regs.rflags |= rflags::IF; s.interruptibility = 1; }),
    ("injected-while-blocked", long, |s| (s.injects, s.interruptibility) = (Some(2), 2), |s| (s.injects, s.interruptibility) = (Some(3), 2)),
    ("pending-debug-reserved", long, |s| s.pending_debug = 1 << 4, |s| s.pending_debug = 1 << 12),
    ("pending-single-step", long, |s| { s.regs.rflags |= rflags::TF; s.interruptibility = 2; }, |s| { s.regs.rflags |= rflags::TF; (s.interruptibility, s.pending_debug) = (2, 1 << 14); }),
    ("pae-pointers", pae, |s| s.pointers[1] = 0x6003, |s| s.pointers[1] = 0x6002),
];

fn ring_3(state: &mut EntryState) {
    let s = &mut state.sregs;
    s.cs = Descriptor::USER_CODE_64.load(0xb);
    s.ss = Descriptor::USER_DATA.load(0x13);
}

fn ring_3_in_conforming_code(state: &mut EntryState) {
    ring_3(state);
    (state.sregs.cs.type_, state.sregs.cs.dpl) = (15, 1);
}

#[test]
fn every_rule_is_broken_alone_by_one_state_and_kept_by_another_beside_it() {
    for (name, base, breaks, beside) in CASES {
        let mut state = base();
        breaks(&mut state);
        let findings = check(&state);
        let broken: Vec<&str> = findings.iter().map(|finding| finding.rule).collect();
        assert_eq!(broken, [*name], "{findings:#?}");
        let mut state = base();
        beside(&mut state);
        assert_eq!(check(&state), [], "beside {name}");
    }
}

#[test]
fn every_rule_has_a_case_and_a_name_of_its_own() {
    let names: Vec<&str> = rules().map(|rule| rule.name).collect();
    for name in &names {
        let cases = CASES.iter().filter(|(case, ..)| case == name).count();
        assert_eq!(cases, 1, "cases of {name}");
        assert_eq!(names.iter().filter(|other| *other == name).count(), 1, "rules called {name}");
    }
    assert_eq!(names.len(), CASES.len());
}

#[test]
fn good_states_break_no_rule() {
    for state in [long(), pae(), real()] {
        assert_eq!(check(&state), []);
    }
}

#[test]
fn an_unusable_data_segment_may_hold_anything() {
    let mut state = long();
    state.sregs.ds = kvm_segment { unusable: 1, type_: 0, dpl: 2, ..kvm_segment::default() };
    assert_eq!(check(&state), []);
}

#[test]
fn after_reset_the_code_segment_is_an_exception() {
    let mut state = real();
    (state.sregs.cs.selector, state.sregs.cs.base) = (0xf000, 0xffff_0000);
    assert_eq!(check(&state), []);
    state.sregs.cs.selector = 0;
    assert_eq!(check(&state).len(), 1);
}

#[test]
fn a_finding_says_what_each_vendor_makes_of_it() {
    let said = |base: fn() -> EntryState, breaks: fn(&mut EntryState)| {
        let mut state = base();
        breaks(&mut state);
        check(&state)[0].to_string()
    };
    assert_eq!(
        said(long, |s| s.sregs.ds.present = 0),
        "DS is usable but not present; Intel refuses that (SDM Vol. 3C, \"Checks on Guest Segment Registers\"), AMD \
         accepts it"
    );
    assert_eq!(
        said(long, |s| s.sregs.cr0 |= cr0::NW),
        "CR0 = 0xa0000001 has NW (bit 29) without CD (bit 30); Intel accepts that, AMD refuses it (APM Vol. 2, \
         \"Canonicalization and Consistency Checks\")"
    );
    assert!(
        said(real, |s| s.sregs.ds.limit = 0xfff)
            .contains("; Intel without unrestricted guest refuses that (")
    );
}
