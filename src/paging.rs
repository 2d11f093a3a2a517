//! Page tables: read entry by entry as the CPU does, and built from outside the
//! guest. Chapters 06 and 08.

mod fault;
mod form;
mod rules;
mod tables;
mod walk;

pub use fault::{Cause, PageFault, describe_error_code, error_code};
pub use form::{Form, Level};
pub use rules::{Access, Features, Intent, Paging};
pub use tables::Tables;
pub use walk::{Fault, Mapping, Step, Walk, walk};

use crate::guest::{Memory, MemoryError};

/// A page-table entry's bits. Intel SDM Vol. 3A, "4-Level Paging and 5-Level Paging".
#[rustfmt::skip] // laid out like the SDM's table
pub mod entry {
    pub const PRESENT: u64       = 1 << 0;  // P
    pub const WRITABLE: u64      = 1 << 1;  // R/W
    pub const USER: u64          = 1 << 2;  // U/S  ring 3 may use it
    pub const WRITE_THROUGH: u64 = 1 << 3;  // PWT
    pub const CACHE_DISABLE: u64 = 1 << 4;  // PCD
    pub const ACCESSED: u64      = 1 << 5;  // A    the CPU sets it
    pub const DIRTY: u64         = 1 << 6;  // D    the CPU sets it on a write
    pub const LARGE: u64         = 1 << 7;  // PS   maps a page here, no further table
    pub const GLOBAL: u64        = 1 << 8;  // G    stays in the TLB when CR3 is loaded, with CR4.PGE
    pub const NX: u64            = 1 << 63; // XD   no code here, with EFER.NXE
    /// Where the next table or the page begins, in an entry of 8 bytes.
    pub const ADDRESS: u64       = 0x000f_ffff_ffff_f000;
}

/// Bytes of a page, and of a table of 512 entries.
pub const PAGE: u64 = 4096;
/// Bytes of a large page in a page directory of 8-byte entries.
pub const LARGE_PAGE: u64 = 2 << 20;

// ANCHOR: identity_map
/// Identity-maps the first GiB with 2 MiB pages, in three tables that it writes
/// at `tables`, a guest-physical address on a page boundary; returns the value
/// for CR3.
///
/// ```text
/// tables           + 0x1000        + 0x2000
/// PML4[0]  ->      PDPT[0]  ->     PD[0..512]  ->  2 MiB pages at 0, 2 MiB, …
/// ```
///
/// # Errors
/// When the three tables do not fit into the guest's memory.
pub fn identity_map(memory: &Memory, tables: u64) -> Result<u64, MemoryError> {
    let (pml4, pdpt, pd) = (tables, tables + PAGE, tables + 2 * PAGE);
    let table = entry::PRESENT | entry::WRITABLE;
    memory.write(pml4, &(pdpt | table).to_le_bytes())?;
    memory.write(pdpt, &(pd | table).to_le_bytes())?;
    for number in 0..512 {
        let page = (number * LARGE_PAGE) | table | entry::LARGE;
        memory.write(pd + number * 8, &page.to_le_bytes())?;
    }
    Ok(pml4)
}
// ANCHOR_END: identity_map

// ANCHOR: map_twice
/// Maps the first GiB twice, at its own addresses and at `base`, a multiple of 1 GiB
/// in the last 512 GiB of the address space; returns the value for CR3. `tables` is
/// the guest-physical address of four pages.
///
/// ```text
/// PML4[0]    ->  PDPT[0]     ->  PD[0..512]  ->  2 MiB pages at 0, 2 MiB, …
/// PML4[511]  ->  PDPT'[510]  ->  the same PD         (for base = the last 2 GiB)
/// ```
///
/// # Errors
/// When the four tables do not fit into the guest's memory.
pub fn map_twice(memory: &Memory, tables: u64, base: u64) -> Result<u64, MemoryError> {
    let pml4 = identity_map(memory, tables)?;
    let (pd, high_pdpt) = (tables + 2 * PAGE, tables + 3 * PAGE);
    let table = entry::PRESENT | entry::WRITABLE;
    let index = |shift: u32| (base >> shift & 0x1ff) * 8;
    memory.write(pml4 + index(39), &(high_pdpt | table).to_le_bytes())?;
    memory.write(high_pdpt + index(30), &(pd | table).to_le_bytes())?;
    Ok(pml4)
}
// ANCHOR_END: map_twice

#[cfg(test)]
mod tests {
    use super::*;

    fn entry_at(memory: &Memory, address: u64) -> u64 {
        let bytes = memory.read(address, 8).expect("inside the memory");
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }

    /// `arch/x86/include/asm/pgtable_types.h`: `_PAGE_PRESENT` … `_PAGE_NX`, and
    /// `__PAGE_KERNEL_LARGE_EXEC` without the bits that only the CPU or Linux sets.
    #[test]
    fn the_entry_bits_are_those_that_linux_uses() {
        use entry::{
            ACCESSED, CACHE_DISABLE, DIRTY, GLOBAL, LARGE, NX, PRESENT, USER, WRITABLE, WRITE_THROUGH,
        };
        assert_eq!(
            [PRESENT, WRITABLE, USER, WRITE_THROUGH, CACHE_DISABLE, ACCESSED, DIRTY, LARGE, GLOBAL, NX],
            [0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x40, 0x80, 0x100, 0x8000_0000_0000_0000]
        );
    }

    const ADDRESSES: [u64; 5] = [0, 0x1000, 0x20_0000, 0x1234_5678, 0x3fff_ffff];

    /// Where a linear address leads through three tables to a page of 2 MiB.
    fn physical(memory: &Memory, cr3: u64, linear: u64) -> u64 {
        let walk = |table: u64, shift: u32| {
            let entry = entry_at(memory, (table & !0xfff) + (linear >> shift & 0x1ff) * 8);
            assert_eq!(entry & entry::PRESENT, 1);
            entry
        };
        let large = walk(walk(walk(cr3, 39), 30), 21);
        assert_eq!(large & 0xfff, 0x83);
        (large & !0x1f_ffff) + (linear & 0x1f_ffff)
    }

    #[test]
    fn the_identity_map_leads_every_address_of_the_first_gib_to_itself() {
        let memory = Memory::new(0x8000).expect("32 KiB");
        let cr3 = identity_map(&memory, 0x4000).expect("it fits");
        for address in ADDRESSES {
            assert_eq!(physical(&memory, cr3, address), address);
        }
    }

    #[test]
    fn mapped_twice_the_first_gib_is_at_both_places() {
        let memory = Memory::new(0x8000).expect("32 KiB");
        let base = 0xffff_ffff_8000_0000;
        let cr3 = map_twice(&memory, 0x4000, base).expect("it fits");
        for address in ADDRESSES {
            assert_eq!(physical(&memory, cr3, address), address);
            assert_eq!(physical(&memory, cr3, base + address), address);
        }
        // What the last entry of the PML4 leads to maps nothing else.
        assert_eq!(entry_at(&memory, 0x7000 + 511 * 8), 0);
        assert!(map_twice(&memory, 0x5000, base).is_err());
    }

    #[test]
    fn tables_that_do_not_fit_are_an_error() {
        let memory = Memory::new(0x8000).expect("32 KiB");
        assert!(identity_map(&memory, 0x7000).is_err());
    }
}
