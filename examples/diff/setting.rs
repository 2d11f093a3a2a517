//! What a sequence runs in: mode, size of the code, ring and paging.

use std::fmt;

use vmexit::kvm::{kvm_segment, kvm_sregs};
use vmexit::mode::{cr0, cr4, efer};

use crate::image::{GDT, IDT, LDT, TABLE_LIMIT, TABLES, TSS, TSS_LIMIT, descriptor_at};

/// How linear addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    Off,
    /// Two levels, 4-byte entries.
    Bits32,
    /// Three levels, 8-byte entries.
    Pae,
    /// Long mode's four.
    Levels4,
}

/// What a sequence runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    pub name: &'static str,
    pub protected: bool,
    /// 16, 32 or 64.
    pub bits: u32,
    pub ring: u8,
    pub paging: Paging,
}

const fn setting(name: &'static str, bits: u32, ring: u8, paging: Paging) -> Setting {
    Setting { name, protected: true, bits, ring, paging }
}

/// Every setting, in the order of the table of coverage.
#[rustfmt::skip] // a table
pub const SETTINGS: [Setting; 12] = [
    Setting { protected: false, ..setting("real", 16, 0, Paging::Off) },
    setting("prot16",          16, 0, Paging::Off),
    setting("prot32",          32, 0, Paging::Off),
    setting("prot32-paged",    32, 0, Paging::Bits32),
    setting("prot32-pae",      32, 0, Paging::Pae),
    setting("prot16-ring3",    16, 3, Paging::Pae),
    setting("prot32-ring3",    32, 3, Paging::Bits32),
    setting("compat32",        32, 0, Paging::Levels4),
    setting("compat16-ring3",  16, 3, Paging::Levels4),
    setting("compat32-ring3",  32, 3, Paging::Levels4),
    setting("long",            64, 0, Paging::Levels4),
    setting("long-ring3",      64, 3, Paging::Levels4),
];

impl Setting {
    /// Whether long mode is active: 64-bit code, or a compatibility mode.
    pub fn is_long(&self) -> bool {
        self.paging == Paging::Levels4
    }

    pub fn is_64_bit(&self) -> bool {
        self.bits == 64
    }

    pub fn number(&self) -> usize {
        SETTINGS.iter().position(|setting| setting == self).expect("there are no others")
    }

    /// The same mode in ring 0, for what only ring 0 may prepare.
    pub fn in_ring_0(&self) -> Self {
        Self { ring: 0, ..*self }
    }

    pub fn code_selector(&self) -> u16 {
        match (self.bits, self.ring) {
            (64, 0) => 0x28,
            (32, 0) => 0x30,
            (_, 0) => 0x38,
            (64, _) => 0x53,
            (32, _) => 0x43,
            _ => 0x4b,
        }
    }

    pub fn data_selector(&self) -> u16 {
        if self.ring == 0 { 0x10 } else { 0x23 }
    }

    pub fn stack_selector(&self) -> u16 {
        match (self.bits, self.ring) {
            (16, 0) => 0xe8,
            (16, _) => 0xe3,
            _ => self.data_selector(),
        }
    }

    /// The system registers that every sequence starts with. Segments are complete, as VMX asks.
    pub fn sregs(&self, reset: &kvm_sregs) -> kvm_sregs {
        let mut sregs = *reset;
        if !self.protected {
            vmexit::mode::enter_real(&mut sregs);
            let at = |selector: u16| kvm_segment { selector, base: u64::from(selector) << 4, ..sregs.ds };
            (sregs.es, sregs.fs, sregs.gs) = (at(0x400), at(0x600), at(0x7c0));
            (sregs.idt.base, sregs.idt.limit) = (0, 0x3ff);
            (sregs.gdt.base, sregs.gdt.limit) = (GDT, TABLE_LIMIT);
            sregs.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT;
            sregs.cr0 = cr0::ET | cr0::NE;
            return sregs;
        }
        let load = |selector: u16| descriptor_at(self, selector).load(selector);
        sregs.cs = load(self.code_selector());
        sregs.ss = load(self.stack_selector());
        let data = load(self.data_selector());
        (sregs.ds, sregs.es) = (data, data);
        if self.is_64_bit() {
            (sregs.fs, sregs.gs) =
                (kvm_segment { base: 0x6000, ..data }, kvm_segment { base: 0x7000, ..data });
        } else {
            let small = kvm_segment { type_: 3, ..load(0x60 | u16::from(self.ring)) };
            (sregs.fs, sregs.gs) = (small, data);
        }
        sregs.tr = kvm_segment {
            base: TSS,
            limit: TSS_LIMIT,
            selector: 0xa0,
            type_: vmexit::segment::BUSY_TSS,
            present: 1,
            ..kvm_segment::default()
        };
        sregs.ldt = kvm_segment {
            base: LDT,
            limit: 0x1f,
            selector: 0x90,
            type_: 2,
            present: 1,
            ..kvm_segment::default()
        };
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, TABLE_LIMIT);
        (sregs.idt.base, sregs.idt.limit) = (IDT, 0x1ff);
        sregs.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::WP;
        sregs.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT;
        if self.paging != Paging::Off {
            sregs.cr0 |= cr0::PG;
            sregs.cr3 = TABLES;
        }
        match self.paging {
            Paging::Off | Paging::Bits32 => {}
            Paging::Pae => {
                sregs.cr4 |= cr4::PAE;
                sregs.efer |= efer::NXE;
            }
            Paging::Levels4 => {
                sregs.cr4 |= cr4::PAE;
                sregs.efer |= efer::NXE | efer::LME | efer::LMA | efer::SCE;
            }
        }
        sregs
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}
