//! The way back from the trace's records to KVM's structs.

use crate::kvm::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use crate::trace::record::{Registers, SegmentRecord, SystemRegisters, TableRecord};

impl From<&Registers> for kvm_regs {
    #[rustfmt::skip] // four a line
    fn from(r: &Registers) -> Self {
        Self {
            rax: r.rax.0, rbx: r.rbx.0, rcx: r.rcx.0, rdx: r.rdx.0,
            rsi: r.rsi.0, rdi: r.rdi.0, rsp: r.rsp.0, rbp: r.rbp.0,
            r8:  r.r8.0,  r9:  r.r9.0,  r10: r.r10.0, r11: r.r11.0,
            r12: r.r12.0, r13: r.r13.0, r14: r.r14.0, r15: r.r15.0,
            rip: r.rip.0, rflags: r.rflags.0,
        }
    }
}

impl From<&SystemRegisters> for kvm_sregs {
    fn from(s: &SystemRegisters) -> Self {
        Self {
            cr0: s.cr0.0,
            cr2: s.cr2.0,
            cr3: s.cr3.0,
            cr4: s.cr4.0,
            cr8: s.cr8.0,
            efer: s.efer.0,
            apic_base: s.apic_base.0,
            cs: (&s.cs).into(),
            ds: (&s.ds).into(),
            es: (&s.es).into(),
            fs: (&s.fs).into(),
            gs: (&s.gs).into(),
            ss: (&s.ss).into(),
            tr: (&s.tr).into(),
            ldt: (&s.ldt).into(),
            gdt: (&s.gdt).into(),
            idt: (&s.idt).into(),
            ..Self::default()
        }
    }
}

impl From<&SegmentRecord> for kvm_segment {
    fn from(s: &SegmentRecord) -> Self {
        Self {
            selector: s.selector,
            base: s.base.0,
            limit: s.limit,
            type_: s.type_,
            s: s.s,
            dpl: s.dpl,
            present: s.present,
            l: s.l,
            db: s.db,
            g: s.g,
            avl: s.avl,
            unusable: s.unusable,
            padding: 0,
        }
    }
}

impl From<&TableRecord> for kvm_dtable {
    fn from(table: &TableRecord) -> Self {
        Self { base: table.base.0, limit: table.limit, ..Self::default() }
    }
}
