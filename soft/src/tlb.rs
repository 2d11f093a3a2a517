//! The translation look-aside buffer: linear pages whose translation, rights and
//! host memory are known. Like a CPU's, it may hold what the page tables no
//! longer say until the guest flushes it (Intel SDM Vol. 3A, "Caching Translation
//! Information"), and it may forget anything at any time.

use crate::memory::{OFFSET, Page};

/// Entries for each kind of access: data and code, by ring 3 and by the others.
const ENTRIES: usize = 1024;
const KINDS: usize = 4;
/// Tags hold the generation in an address's lowest bits.
const GENERATIONS: u64 = OFFSET;

/// A page that was translated. A right that is not there, or not yet known
/// (a page that was never written has no dirty bit yet), has the tag 0.
#[derive(Clone, Copy)]
pub struct Entry {
    /// The linear page and the generation, if it may be read.
    pub read: u64,
    /// The same, if it may be written.
    pub write: u64,
    /// The same, if it may be executed; only in the entries for code.
    pub execute: u64,
    /// Where the page is in guest-physical memory.
    pub physical: u64,
    /// Its memory.
    pub page: Page,
}

const EMPTY: Entry = Entry { read: 0, write: 0, execute: 0, physical: 0, page: Page::NONE };

/// The TLB.
pub struct Tlb {
    entries: Vec<Entry>,
    generation: u64,
}

impl Default for Tlb {
    fn default() -> Self {
        Self { entries: vec![EMPTY; KINDS * ENTRIES], generation: 1 }
    }
}

impl Tlb {
    /// What marks an entry for this linear address as valid.
    #[inline(always)]
    pub fn tag(&self, linear: u64) -> u64 {
        linear & !OFFSET | self.generation
    }

    #[inline(always)]
    fn index(linear: u64, user: bool, code: bool) -> usize {
        // Arrays that lie a power of two apart must not push each other out.
        let page = linear >> 12;
        let place = (page ^ page >> 10 ^ page >> 20) as usize % ENTRIES;
        (usize::from(code) * 2 + usize::from(user)) * ENTRIES + place
    }

    /// The entry that data at this linear address would be in.
    #[inline(always)]
    pub fn data(&self, linear: u64, user: bool) -> &Entry {
        &self.entries[Self::index(linear, user, false)]
    }

    /// The entry that code at this linear address would be in.
    #[inline(always)]
    pub fn code(&self, linear: u64, user: bool) -> &Entry {
        &self.entries[Self::index(linear, user, true)]
    }

    /// Notes a translation, with the rights that `entry`'s tags give; rights that were known of the
    /// same page stay.
    pub fn note(&mut self, linear: u64, user: bool, code: bool, entry: Entry) {
        let tag = self.tag(linear);
        let old = &mut self.entries[Self::index(linear, user, code)];
        let keep = |known: u64, new: u64| if known == tag { known } else { new };
        // The page tables may say another page now: then nothing that was known holds.
        let same = old.physical == entry.physical;
        *old = Entry {
            read: if same { keep(old.read, entry.read) } else { entry.read },
            write: if same { keep(old.write, entry.write) } else { entry.write },
            ..entry
        };
    }

    /// Forgets everything.
    pub fn flush(&mut self) {
        self.generation += 1;
        if self.generation > GENERATIONS {
            self.entries.fill(EMPTY);
            self.generation = 1;
        }
    }

    /// Forgets one page: INVLPG.
    pub fn flush_page(&mut self, linear: u64) {
        for (user, code) in [(false, false), (false, true), (true, false), (true, true)] {
            self.entries[Self::index(linear, user, code)] = EMPTY;
        }
    }

    /// The guest-physical pages that may be written without being translated first.
    pub fn writable(&self) -> impl Iterator<Item = u64> {
        let valid = |entry: &&Entry| entry.write & OFFSET == self.generation;
        self.entries.iter().filter(valid).map(|entry| entry.physical)
    }

    /// Makes the next write to this guest-physical page come by the page tables again.
    pub fn forget_writable(&mut self, physical: u64) {
        for entry in self.entries.iter_mut().filter(|entry| entry.physical == physical) {
            entry.write = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(tlb: &mut Tlb, user: bool) {
        let entry = Entry { read: tlb.tag(0x5000), ..EMPTY };
        tlb.note(0x5000, user, false, entry);
    }

    #[test]
    fn a_flush_forgets_every_page_even_when_the_generations_start_over() {
        let mut tlb = Tlb::default();
        readable(&mut tlb, false);
        assert_eq!(tlb.data(0x5fff, false).read, tlb.tag(0x5fff));
        for _ in 0..=GENERATIONS {
            tlb.flush();
            assert_ne!(tlb.data(0x5000, false).read, tlb.tag(0x5000));
        }
    }

    #[test]
    fn ring_3_has_entries_of_its_own_and_invlpg_forgets_them_too() {
        let mut tlb = Tlb::default();
        readable(&mut tlb, true);
        assert_ne!(tlb.data(0x5000, false).read, tlb.tag(0x5000));
        assert_eq!(tlb.data(0x5000, true).read, tlb.tag(0x5000));
        tlb.flush_page(0x5000);
        assert_ne!(tlb.data(0x5000, true).read, tlb.tag(0x5000));
    }

    #[test]
    fn a_page_may_gain_the_right_to_be_written_and_lose_it() {
        let mut tlb = Tlb::default();
        readable(&mut tlb, false);
        let tag = tlb.tag(0x5000);
        tlb.note(0x5000, false, false, Entry { write: tag, ..EMPTY });
        assert_eq!((tlb.data(0x5000, false).read, tlb.data(0x5000, false).write), (tag, tag));
        tlb.forget_writable(0);
        assert_eq!((tlb.data(0x5000, false).read, tlb.data(0x5000, false).write), (tag, 0));
    }
}
