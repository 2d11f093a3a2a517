//! The kernel's own page tables: chapter 08's, with permissions.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::boot::Boot;
use crate::cpu::{self, cr0, efer};
use crate::frames::{self, PAGE};
use crate::info::{KERNEL_BASE, USABLE};

/// A page-table entry's bits. Intel SDM Vol. 3A, "4-Level Paging and 5-Level Paging".
pub mod entry {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2; // ring 3 may use it
    pub const LARGE: u64 = 1 << 7; // a page of 2 MiB in a page directory
    pub const NX: u64 = 1 << 63; // no code here
}

/// The address bits of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const LARGE_PAGE: u64 = 2 << 20;
/// Where all memory is mapped once more.
const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// The kernel's half: the upper 256 entries of a PML4.
const KERNEL_HALF: core::ops::Range<u64> = 256..512;

/// Where memory is reached: at first as the boot protocol maps it.
static WINDOW: AtomicU64 = AtomicU64::new(KERNEL_BASE);
/// The PML4 that every program's is a copy of.
static KERNEL_PML4: AtomicU64 = AtomicU64::new(0);
/// Whether entries get their NX bit.
static NO_EXECUTE: AtomicBool = AtomicBool::new(true);

unsafe extern "C" {
    static text_start: u8;
    static rodata_start: u8;
    static data_start: u8;
    static stack_guard: u8;
    static stack_bottom: u8;
    static kernel_end: u8;
}

/// No page was free.
#[derive(Clone, Copy, Debug)]
pub struct OutOfMemory;

/// Where the kernel reaches guest-physical memory below 1 GiB.
pub fn direct(physical: u64) -> *mut u8 {
    (WINDOW.load(Ordering::Relaxed) + physical) as *mut u8
}

/// Makes the kernel's tables and switches to them.
pub fn init(boot: &Boot) {
    assert!(cpu::has_nx(), "this CPU has no NX bit in its page tables, and the kernel does not do without");
    NO_EXECUTE.store(!boot.has_word("no-nx"), Ordering::Relaxed);
    // SAFETY: entries with NX are there only from the next CR3 on, and nothing is written that the
    // boot protocol's tables map read-only.
    unsafe {
        cpu::write_msr(efer::NUMBER, cpu::read_msr(efer::NUMBER) | efer::NXE);
        cpu::write_cr0(cpu::read_cr0() | cr0::WP);
    }
    let mut tables = Tables::new().expect("memory for the kernel's page tables");
    map_all(&mut tables, boot).expect("memory for the kernel's page tables");
    KERNEL_PML4.store(tables.pml4, Ordering::Relaxed);
    // SAFETY: text, data and stack are mapped where they were.
    unsafe { cpu::write_cr3(tables.pml4) };
    WINDOW.store(DIRECT_MAP, Ordering::Relaxed);
    core::mem::forget(tables); // they stay for ever
}

// ANCHOR: map_all
fn map_all(tables: &mut Tables, boot: &Boot) -> Result<(), OutOfMemory> {
    let sections = [
        (&raw const text_start, &raw const rodata_start, 0),
        (&raw const rodata_start, &raw const data_start, entry::NX),
        (&raw const data_start, &raw const stack_guard, entry::WRITABLE | entry::NX),
        (&raw const stack_bottom, &raw const kernel_end, entry::WRITABLE | entry::NX),
    ];
    for (start, end, flags) in sections {
        tables.map(start as u64, start as u64 - KERNEL_BASE, end as u64 - start as u64, flags)?;
    }
    // All memory as data; the kernel in it read-only, or its text could be changed from here.
    let kernel = &raw const text_start as u64 - KERNEL_BASE..frames::kernel_end_physical();
    for region in boot.regions().iter().filter(|region| region.kind == USABLE) {
        let (start, end) = (region.address, region.address + region.length);
        let pieces = [
            (start, end.min(kernel.start), entry::WRITABLE | entry::NX),
            (start.max(kernel.start), end.min(kernel.end), entry::NX),
            (start.max(kernel.end), end, entry::WRITABLE | entry::NX),
        ];
        for (start, end, flags) in pieces.into_iter().filter(|(start, end, _)| start < end) {
            let (start, end) = (start.next_multiple_of(PAGE), end.min(1 << 30) / PAGE * PAGE);
            tables.map(DIRECT_MAP + start, start, end.saturating_sub(start), flags)?;
        }
    }
    Ok(())
}
// ANCHOR_END: map_all

/// What the kernel's sections may do, in words.
pub fn describe() -> &'static str {
    if NO_EXECUTE.load(Ordering::Relaxed) {
        "text R-X, rodata R--, data RW-"
    } else {
        "text R-X, rodata R-X, data RWX"
    }
}

/// Four levels of tables; dropped, they and the pages of the user's half are free again.
pub struct Tables {
    pub pml4: u64,
}

impl Tables {
    /// Nothing is mapped.
    pub fn new() -> Result<Self, OutOfMemory> {
        Ok(Self { pml4: zeroed_frame()? })
    }

    /// The kernel's half, and nothing in the user's.
    pub fn for_program() -> Result<Self, OutOfMemory> {
        let tables = Self::new()?;
        let kernel = KERNEL_PML4.load(Ordering::Relaxed);
        for number in KERNEL_HALF {
            write_entry(tables.pml4, number, read_entry(kernel, number));
        }
        Ok(tables)
    }

    /// The kernel's own, in use.
    pub fn kernel() -> core::mem::ManuallyDrop<Self> {
        core::mem::ManuallyDrop::new(Self { pml4: KERNEL_PML4.load(Ordering::Relaxed) })
    }

    // ANCHOR: map
    /// Maps `length` bytes at `linear` to `physical`, all multiples of the page's
    /// size, in large pages where they fit.
    pub fn map(&mut self, linear: u64, physical: u64, length: u64, flags: u64) -> Result<(), OutOfMemory> {
        let flags = if NO_EXECUTE.load(Ordering::Relaxed) { flags } else { flags & !entry::NX };
        let mut done = 0;
        while done < length {
            let (linear, physical) = (linear + done, physical + done);
            let large = (linear | physical).is_multiple_of(LARGE_PAGE) && length - done >= LARGE_PAGE;
            // A table's own flags are generous: every level has to allow what is done.
            let above = entry::PRESENT | entry::WRITABLE | flags & entry::USER;
            let mut table = self.pml4;
            let levels: &[u32] = if large { &[39, 30] } else { &[39, 30, 21] };
            for shift in levels {
                table = next_table(table, index(linear, *shift), above)?;
            }
            if large {
                write_entry(table, index(linear, 21), physical | flags | entry::PRESENT | entry::LARGE);
                done += LARGE_PAGE;
            } else {
                write_entry(table, index(linear, 12), physical | flags | entry::PRESENT);
                done += PAGE;
            }
        }
        Ok(())
    }
    // ANCHOR_END: map

    /// Takes the page at `linear` out, and returns where it was.
    pub fn unmap(&mut self, linear: u64) -> Option<u64> {
        let (table, number) = self.find(linear)?;
        let old = read_entry(table, number);
        write_entry(table, number, 0);
        cpu::invalidate(linear);
        Some(old & ADDRESS)
    }

    /// The entry that maps `linear`, if one does. Its address is the page's.
    pub fn walk(&self, linear: u64) -> Option<u64> {
        let (table, number) = self.find(linear)?;
        Some(read_entry(table, number))
    }

    /// The table and the place in it of the entry that maps `linear`.
    fn find(&self, linear: u64) -> Option<(u64, u64)> {
        let mut table = self.pml4;
        for shift in [39, 30, 21, 12] {
            let (number, found) = (index(linear, shift), read_entry(table, index(linear, shift)));
            if found & entry::PRESENT == 0 {
                return None;
            }
            if shift == 12 || found & entry::LARGE != 0 {
                return Some((table, number));
            }
            table = found & ADDRESS;
        }
        None
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        for number in 0..KERNEL_HALF.start {
            free_below(read_entry(self.pml4, number), 3);
        }
        frames::free(self.pml4);
    }
}

/// Frees the table or page that an entry leads to, and everything below.
fn free_below(found: u64, levels: u32) {
    if found & entry::PRESENT == 0 {
        return;
    }
    let address = found & ADDRESS;
    if levels > 0 {
        for number in 0..512 {
            free_below(read_entry(address, number), levels - 1);
        }
    }
    frames::free(address);
}

fn index(linear: u64, shift: u32) -> u64 {
    linear >> shift & 0x1ff
}

fn next_table(table: u64, number: u64, flags: u64) -> Result<u64, OutOfMemory> {
    let found = read_entry(table, number);
    if found & entry::PRESENT != 0 {
        return Ok(found & ADDRESS);
    }
    let new = zeroed_frame()?;
    write_entry(table, number, new | flags);
    Ok(new)
}

/// A page that was free, all zero.
pub fn zeroed_frame() -> Result<u64, OutOfMemory> {
    let frame = frames::allocate().ok_or(OutOfMemory)?;
    // SAFETY: the page was free, so it is nobody else's.
    unsafe { direct(frame).write_bytes(0, PAGE as usize) };
    Ok(frame)
}

fn read_entry(table: u64, number: u64) -> u64 {
    // SAFETY: `table` is a page of tables of ours, and `number` is below 512.
    unsafe { direct(table).cast::<u64>().add(number as usize).read() }
}

fn write_entry(table: u64, number: u64, value: u64) {
    // SAFETY: as in `read_entry`; what the entry maps is the caller's to decide.
    unsafe { direct(table).cast::<u64>().add(number as usize).write(value) }
}
