//! Which physical pages are free: a bit each, for the first GiB.

use crate::boot::Boot;
use crate::global::Global;
use crate::info::{KERNEL_BASE, USABLE};

/// Bytes.
pub const PAGE: u64 = 4096;
/// What the boot protocol's tables map, and so all that this kernel uses.
const LIMIT: u64 = 1 << 30;
/// The first MiB is left alone: boot information and tables, and a PC's firmware.
const LOWEST: u64 = 1 << 20;
const WORDS: usize = (LIMIT / PAGE / 64) as usize;

/// A bit that is 1 is a page that is free.
struct Frames {
    free: [u64; WORDS],
    free_count: u64,
    /// Everything in the words before this one is taken.
    first: usize,
}

static FRAMES: Global<Frames> = Global::new(Frames { free: [0; WORDS], free_count: 0, first: 0 });

unsafe extern "C" {
    static kernel_end: u8;
}

/// The first physical address after the kernel.
pub fn kernel_end_physical() -> u64 {
    &raw const kernel_end as u64 - KERNEL_BASE
}

/// Takes what the memory map says is usable, but for the kernel and the program's file.
pub fn init(boot: &Boot) {
    let mut frames = FRAMES.get();
    for region in boot.regions().iter().filter(|region| region.kind == USABLE) {
        let start = region.address.max(LOWEST).next_multiple_of(PAGE);
        let end = region.address.saturating_add(region.length).min(LIMIT) / PAGE * PAGE;
        frames.mark(start, end, true);
    }
    frames.mark(LOWEST, kernel_end_physical(), false);
    let file = boot.program_file;
    let end = file.address.saturating_add(file.length);
    assert!(end <= LIMIT, "the program's file ends at {end:#x}, and this kernel uses the first GiB alone");
    frames.mark(file.address, end, false);
}

/// A page that was free, with whatever it holds.
pub fn allocate() -> Option<u64> {
    FRAMES.get().allocate()
}

/// Gives a page back.
pub fn free(address: u64) {
    let mut frames = FRAMES.get();
    assert!(!frames.is_free(address), "page {address:#x} is freed twice");
    frames.mark(address, address + PAGE, true);
}

/// How many pages are free.
pub fn free_count() -> u64 {
    FRAMES.get().free_count
}

impl Frames {
    fn mark(&mut self, start: u64, end: u64, free: bool) {
        let (mut page, end) = (start / PAGE, end.div_ceil(PAGE));
        self.first = if free { self.first.min((page / 64) as usize) } else { self.first };
        while page < end {
            let (word, bit) = ((page / 64) as usize, page % 64);
            // As many bits at once as one word has.
            let count = (64 - bit).min(end - page);
            let mask = (u64::MAX >> (64 - count)) << bit;
            let before = self.free[word].count_ones();
            self.free[word] = if free { self.free[word] | mask } else { self.free[word] & !mask };
            let after = self.free[word].count_ones();
            self.free_count = self.free_count + u64::from(after) - u64::from(before);
            page += count;
        }
    }

    fn is_free(&self, address: u64) -> bool {
        self.free[(address / PAGE / 64) as usize] >> (address / PAGE % 64) & 1 == 1
    }

    fn allocate(&mut self) -> Option<u64> {
        while *self.free.get(self.first)? == 0 {
            self.first += 1;
        }
        let bit = u64::from(self.free[self.first].trailing_zeros());
        let address = (self.first as u64 * 64 + bit) * PAGE;
        self.mark(address, address + PAGE, false);
        Some(address)
    }
}
