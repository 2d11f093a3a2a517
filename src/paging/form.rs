//! The forms of paging: how many levels, and what an entry looks like in each.

use crate::kvm::kvm_sregs;
use crate::mode::{cr0, cr4, efer};
use crate::paging::entry;

/// How the CPU reads page tables. Intel SDM Vol. 3A, "Four Paging Modes".
///
/// ```text
/// 32-bit   CR3 -> PD[31:22] -> PT[21:12] -> page                        4-byte entries
/// PAE      CR3 -> PDPT[31:30] -> PD[29:21] -> PT[20:12] -> page         8-byte entries
/// 4-level  CR3 -> PML4[47:39] -> PDPT[38:30] -> PD[29:21] -> PT[20:12] -> page
/// 5-level  CR3 -> PML5[56:48] -> PML4[47:39] -> …
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Two levels of 1024 entries of 4 bytes.
    Bits32,
    /// Three levels, the first of four entries only; entries of 8 bytes.
    Pae,
    /// Long mode's four levels of 512 entries of 8 bytes.
    FourLevel,
    /// Long mode with CR4.LA57.
    FiveLevel,
}

/// A level of the walk: what its table is called, and which bits of the linear
/// address choose the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// The manuals' name for the table.
    pub table: &'static str,
    /// The lowest bit of the index; an entry of this level covers `1 << shift` bytes.
    pub shift: u32,
    /// Bits of the index.
    pub bits: u32,
}

const fn level(table: &'static str, shift: u32, bits: u32) -> Level {
    Level { table, shift, bits }
}

const BITS_32: [Level; 2] = [level("PD", 22, 10), level("PT", 12, 10)];
const PAE: [Level; 3] = [level("PDPT", 30, 2), level("PD", 21, 9), level("PT", 12, 9)];
const FIVE_LEVEL: [Level; 5] = [
    level("PML5", 48, 9),
    level("PML4", 39, 9),
    level("PDPT", 30, 9),
    level("PD", 21, 9),
    level("PT", 12, 9),
];

impl Form {
    /// The form that these registers choose; `None` while paging is off. Intel SDM
    /// Vol. 3A, "Paging-Mode Enabling".
    #[must_use]
    pub fn of(sregs: &kvm_sregs) -> Option<Self> {
        let has = |register: u64, bit: u64| register & bit != 0;
        if !has(sregs.cr0, cr0::PG) {
            None
        } else if has(sregs.efer, efer::LMA) {
            Some(if has(sregs.cr4, cr4::LA57) { Self::FiveLevel } else { Self::FourLevel })
        } else {
            Some(if has(sregs.cr4, cr4::PAE) { Self::Pae } else { Self::Bits32 })
        }
    }

    /// What the manuals call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bits32 => "32-bit paging",
            Self::Pae => "PAE paging",
            Self::FourLevel => "4-level paging",
            Self::FiveLevel => "5-level paging",
        }
    }

    /// The levels, from the table that CR3 points to, to the page table.
    #[must_use]
    pub fn levels(self) -> &'static [Level] {
        match self {
            Self::Bits32 => &BITS_32,
            Self::Pae => &PAE,
            Self::FourLevel => &FIVE_LEVEL[1..],
            Self::FiveLevel => &FIVE_LEVEL,
        }
    }

    /// Bytes of an entry.
    #[must_use]
    pub fn entry_size(self) -> usize {
        if self == Self::Bits32 { 4 } else { 8 }
    }

    /// Bits of a linear address that are translated.
    #[must_use]
    pub fn linear_bits(self) -> u32 {
        self.levels()[0].shift + self.levels()[0].bits
    }

    /// Whether it translates 64-bit addresses: those of long mode.
    #[must_use]
    pub fn is_long(self) -> bool {
        matches!(self, Self::FourLevel | Self::FiveLevel)
    }

    /// Where the first table is.
    #[must_use]
    pub fn root(self, cr3: u64) -> u64 {
        match self {
            Self::Bits32 => cr3 & 0xffff_f000,
            // Four entries need no whole page: SDM Vol. 3A, "PDPTE Registers".
            Self::Pae => cr3 & 0xffff_ffe0,
            Self::FourLevel | Self::FiveLevel => cr3 & entry::ADDRESS,
        }
    }

    /// The address bits of an entry that refers to a table, or to a page of 4 KiB.
    pub(super) fn address(self, value: u64) -> u64 {
        value & if self == Self::Bits32 { 0xffff_f000 } else { entry::ADDRESS }
    }
}

impl Level {
    /// The number of the entry that this linear address takes.
    #[must_use]
    pub fn index(self, linear: u64) -> u64 {
        linear >> self.shift & ((1 << self.bits) - 1)
    }

    /// Bytes that an entry of this level covers.
    #[must_use]
    pub fn reach(self) -> u64 {
        1 << self.shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `arch/x86/include/asm/pgtable_64_types.h` and its 32-bit siblings: PGDIR_SHIFT, P4D_SHIFT,
    /// PUD_SHIFT, PMD_SHIFT, PAGE_SHIFT.
    #[test]
    fn the_shifts_are_those_that_linux_uses() {
        let shifts = |form: Form| form.levels().iter().map(|level| level.shift).collect::<Vec<_>>();
        assert_eq!(shifts(Form::Bits32), [22, 12]);
        assert_eq!(shifts(Form::Pae), [30, 21, 12]);
        assert_eq!(shifts(Form::FourLevel), [39, 30, 21, 12]);
        assert_eq!(shifts(Form::FiveLevel), [48, 39, 30, 21, 12]);
        let widths = [Form::Bits32, Form::Pae, Form::FourLevel, Form::FiveLevel].map(Form::linear_bits);
        assert_eq!(widths, [32, 32, 48, 57]);
    }

    #[test]
    fn the_form_follows_from_pg_pae_lma_and_la57() {
        let mut sregs = kvm_sregs { cr0: cr0::PE, ..kvm_sregs::default() };
        assert_eq!(Form::of(&sregs), None);
        sregs.cr0 |= cr0::PG;
        assert_eq!(Form::of(&sregs), Some(Form::Bits32));
        sregs.cr4 = cr4::PAE;
        assert_eq!(Form::of(&sregs), Some(Form::Pae));
        sregs.efer = efer::LME | efer::LMA;
        assert_eq!(Form::of(&sregs), Some(Form::FourLevel));
        sregs.cr4 |= cr4::LA57;
        assert_eq!(Form::of(&sregs), Some(Form::FiveLevel));
    }
}
