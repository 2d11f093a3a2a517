//! Paging: from linear to guest-physical addresses, by the tables in the guest's
//! memory. Intel SDM Vol. 3A, chapter "Paging".
//!
//! ```text
//! 32-bit   CR3 -> PD[31:22] -> PT[21:12] -> page        4-byte entries; PS: 4 MiB
//! PAE      PDPTE register [31:30] -> PD[29:21] -> PT[20:12] -> page     PS: 2 MiB
//! 4-level  CR3 -> PML4[47:39] -> PDPT[38:30] -> PD[29:21] -> PT[20:12] -> page
//!                                         PS: 1 GiB        PS: 2 MiB
//! ```

use crate::cpu::Cpu;
use crate::memory::{OFFSET, Page};
use crate::registers::{cr0, cr4, efer};

/// A page-table entry's bits. Intel SDM Vol. 3A, "4-Level Paging and 5-Level Paging".
#[rustfmt::skip] // laid out like the SDM's figure
mod entry {
    pub const PRESENT: u64  = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64     = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64    = 1 << 6;
    pub const LARGE: u64    = 1 << 7; // PS, in a directory's entry
    pub const NX: u64       = 1 << 63;
    pub const ADDRESS: u64  = 0x000f_ffff_ffff_f000;
}

/// A page fault's error code. Intel SDM Vol. 3A, "Interrupt 14—Page-Fault Exception (#PF)".
#[rustfmt::skip] // laid out like the SDM's figure
pub mod error {
    pub const PRESENT: u16  = 1 << 0; // the page is there, and was forbidden
    pub const WRITE: u16    = 1 << 1;
    pub const USER: u16     = 1 << 2; // the access was ring 3's
    pub const RESERVED: u16 = 1 << 3; // an entry sets a bit that must be 0
    pub const FETCH: u16    = 1 << 4; // of an instruction
}

/// What an access is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Data.
    Read,
    /// Data.
    Write,
    /// An instruction.
    Fetch,
}

/// Where a linear address is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// The guest-physical address.
    pub physical: u64,
    /// A write is allowed, to whoever asked.
    pub writable: bool,
    /// The page is ring 3's.
    pub user: bool,
    /// The last table's entry has its dirty bit.
    dirty: bool,
    /// The entries that led here: guest-physical addresses, and the size of each in bytes.
    entries: [u64; 4],
    levels: usize,
    entry_size: usize,
}

/// One of the three forms of paging.
struct Form {
    /// Bytes an entry.
    entry_size: usize,
    /// The lowest bit of each level's index, from the root to the page table.
    shifts: &'static [u32],
    /// Bits of an index.
    index_bits: u32,
}

const LEGACY: Form = Form { entry_size: 4, shifts: &[22, 12], index_bits: 10 };
const PAE: Form = Form { entry_size: 8, shifts: &[21, 12], index_bits: 9 };
const FOUR_LEVEL: Form = Form { entry_size: 8, shifts: &[39, 30, 21, 12], index_bits: 9 };

impl Cpu {
    /// Translates a linear address for an access of ring 3 (`user`) or of another ring, without
    /// changing anything.
    ///
    /// # Errors
    /// The error code of the page fault.
    pub fn walk(&self, linear: u64, intent: Intent, user: bool) -> Result<Mapping, u16> {
        if self.cr0 & cr0::PG == 0 {
            let physical = linear & 0xffff_ffff;
            return Ok(Mapping { physical, writable: true, user: true, dirty: true, ..Mapping::default() });
        }
        let asked = self.asked(intent, user);
        let form = if self.long_mode() {
            FOUR_LEVEL
        } else if self.cr4_has(cr4::PAE) {
            PAE
        } else {
            LEGACY
        };
        let mut table = if form.entry_size == 8 && !self.long_mode() {
            let pdpte = self.pdptes[(linear >> 30 & 3) as usize];
            if pdpte & entry::PRESENT == 0 {
                return Err(asked);
            }
            pdpte & entry::ADDRESS
        } else {
            self.cr3 & if form.entry_size == 8 { entry::ADDRESS } else { 0xffff_f000 }
        };

        let mut mapping = Mapping { entry_size: form.entry_size, ..Mapping::default() };
        // A right holds only if every level gives it.
        let mut all = entry::WRITABLE | entry::USER;
        let mut no_execute = false;
        for &shift in form.shifts {
            let index = linear >> shift & ((1 << form.index_bits) - 1);
            let address = table + index * form.entry_size as u64;
            // A table in a hole holds no present entry; KVM's own walker says the same.
            let value =
                self.slots.page(address).map_or(0, |page| page.read(address & OFFSET, form.entry_size));
            if value & entry::PRESENT == 0 {
                return Err(asked);
            }
            let leaf = shift == 12 || value & entry::LARGE != 0 && self.large_pages(&form, shift);
            if value & self.reserved(&form, shift, leaf) != 0 {
                return Err(asked | error::PRESENT | error::RESERVED);
            }
            all &= value;
            no_execute |= form.entry_size == 8 && value & entry::NX != 0;
            mapping.entries[mapping.levels] = address;
            mapping.levels += 1;
            if leaf {
                mapping.physical = page_address(&form, shift, value) | linear & ((1 << shift) - 1);
                mapping.dirty = value & entry::DIRTY != 0;
                break;
            }
            table = value & if form.entry_size == 8 { entry::ADDRESS } else { 0xffff_f000 };
        }

        mapping.user = all & entry::USER != 0;
        mapping.writable = all & entry::WRITABLE != 0 || !user && self.cr0 & cr0::WP == 0;
        let forbidden = match intent {
            _ if user && !mapping.user => true,
            Intent::Fetch => no_execute || !user && mapping.user && self.cr4_has(cr4::SMEP),
            _ if !user && mapping.user && self.smap() => true,
            Intent::Write => !mapping.writable,
            Intent::Read => false,
        };
        if forbidden { Err(asked | error::PRESENT) } else { Ok(mapping) }
    }

    /// Translates for a debugger: what any ring could read.
    pub fn walk_for_debugger(&self, linear: u64) -> Option<Mapping> {
        let by = |user| self.walk(linear, Intent::Read, user).ok();
        by(false).or_else(|| by(true))
    }

    /// The part of the error code that the access itself decides.
    fn asked(&self, intent: Intent, user: bool) -> u16 {
        let by_user = if user { error::USER } else { 0 };
        let no_execute = self.efer & efer::NXE != 0 && self.cr4_has(cr4::PAE);
        match intent {
            Intent::Read => by_user,
            Intent::Write => by_user | error::WRITE,
            // The bit is there where fetches can be forbidden at all.
            Intent::Fetch if no_execute || self.cr4_has(cr4::SMEP) => by_user | error::FETCH,
            Intent::Fetch => by_user,
        }
    }

    /// Whether an entry at this level can map a page by itself.
    fn large_pages(&self, form: &Form, shift: u32) -> bool {
        match form.entry_size {
            4 => self.cr4_has(cr4::PSE),
            _ => shift <= 30,
        }
    }

    /// The bits that an entry must not set.
    fn reserved(&self, form: &Form, shift: u32, leaf: bool) -> u64 {
        if form.entry_size == 4 {
            // Bits 20:13 of a 4 MiB page's entry are the address's bits 39:32.
            return if leaf && shift == 22 { 1 << 21 } else { 0 };
        }
        let mut reserved = entry::ADDRESS & u64::MAX << self.physical_bits;
        if self.efer & efer::NXE == 0 {
            reserved |= entry::NX;
        }
        if !self.long_mode() {
            reserved |= 0x7ff << 52;
        }
        match (shift, leaf) {
            (39, _) => reserved | entry::LARGE,
            (30 | 21, true) => reserved | ((1 << shift) - 1) & !0x1fff,
            _ => reserved,
        }
    }

    /// Sets the accessed bits on the way, and for a write the page's dirty bit.
    pub fn mark_accessed(&mut self, mapping: &Mapping, intent: Intent) {
        for level in 0..mapping.levels {
            let address = mapping.entries[level];
            let leaf = level + 1 == mapping.levels;
            let wanted = if leaf && intent == Intent::Write {
                entry::ACCESSED | entry::DIRTY
            } else {
                entry::ACCESSED
            };
            let Some(page) = self.slots.writable(address) else { continue };
            let value = page.read(address & OFFSET, mapping.entry_size);
            if value & wanted != wanted {
                page.write(address & OFFSET, mapping.entry_size, value | wanted);
                self.note_write(address, mapping.entry_size as u64);
                self.slots.mark_dirty(address);
            }
        }
    }

    /// Loads PAE's four pointers from where CR3 points. Intel SDM Vol. 3A, "PDPTE Registers".
    ///
    /// # Errors
    /// A present one sets a reserved bit: #GP(0) for the guest.
    pub fn load_pdptes(&mut self) -> Result<(), ()> {
        let base = self.cr3 & 0xffff_ffe0;
        let mut pdptes = [0; 4];
        for (number, pdpte) in pdptes.iter_mut().enumerate() {
            let address = base + 8 * number as u64;
            *pdpte = self.slots.page(address).map_or(0, |page: Page| page.read(address & OFFSET, 8));
            let reserved = 0x1e6 | u64::MAX << self.physical_bits;
            if *pdpte & entry::PRESENT != 0 && *pdpte & reserved != 0 {
                return Err(());
            }
        }
        self.pdptes = pdptes;
        Ok(())
    }
}

impl Mapping {
    /// Whether a write may go by the TLB: allowed, and the dirty bit is there.
    pub fn write_is_free(&self, intent: Intent) -> bool {
        self.writable && (self.dirty || intent == Intent::Write)
    }
}

/// The address in a leaf's entry.
fn page_address(form: &Form, shift: u32, value: u64) -> u64 {
    match (form.entry_size, shift) {
        (4, 22) => value & 0xffc0_0000 | (value >> 13 & 0xff) << 32,
        (4, _) => value & 0xffff_f000,
        _ => value & entry::ADDRESS & u64::MAX << shift,
    }
}
