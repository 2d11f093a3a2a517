//! Page tables, built from outside the guest. Chapter 08.

use crate::guest::{Memory, MemoryError};

/// A page-table entry's bits. Intel SDM Vol. 3A, "4-Level Paging and 5-Level Paging".
#[rustfmt::skip] // laid out like the SDM's table
pub mod entry {
    pub const PRESENT: u64  = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64     = 1 << 2;  // ring 3 may use it
    pub const ACCESSED: u64 = 1 << 5;  // the CPU sets it
    pub const DIRTY: u64    = 1 << 6;  // the CPU sets it on a write
    pub const LARGE: u64    = 1 << 7;  // PS: maps a page here, no further table
    pub const NX: u64       = 1 << 63; // no code here, with EFER.NXE
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
        use entry::{ACCESSED, DIRTY, LARGE, NX, PRESENT, USER, WRITABLE};
        assert_eq!(
            [PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE, NX],
            [0x1, 0x2, 0x4, 0x20, 0x40, 0x80, 0x8000_0000_0000_0000]
        );
    }

    #[test]
    fn the_identity_map_leads_every_address_of_the_first_gib_to_itself() {
        let memory = Memory::new(0x8000).expect("32 KiB");
        let cr3 = identity_map(&memory, 0x4000).expect("it fits");
        for address in [0u64, 0x1000, 0x20_0000, 0x1234_5678, 0x3fff_ffff] {
            let walk = |table: u64, shift: u32| {
                let entry = entry_at(&memory, (table & !0xfff) + (address >> shift & 0x1ff) * 8);
                assert_eq!(entry & entry::PRESENT, 1);
                entry
            };
            let large = walk(walk(walk(cr3, 39), 30), 21);
            assert_eq!(large & 0xfff, 0x83);
            assert_eq!((large & !0x1f_ffff) + (address & 0x1f_ffff), address);
        }
    }

    #[test]
    fn tables_that_do_not_fit_are_an_error() {
        let memory = Memory::new(0x8000).expect("32 KiB");
        assert!(identity_map(&memory, 0x7000).is_err());
    }
}
