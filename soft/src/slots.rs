//! Memory slots: which host memory stands behind which guest-physical address.
//! Where no slot is, a data access becomes an MMIO exit.

use std::sync::Arc;

use crate::dirty::DirtyLog;
use crate::errno::Errno;
use crate::memory::{PAGE_SIZE, Page};

/// A memory slot, as `KVM_SET_USER_MEMORY_REGION` describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The slot's number: setting it again replaces the slot.
    pub slot: u32,
    /// Where the guest sees it.
    pub guest_phys_addr: u64,
    /// Bytes; 0 deletes the slot.
    pub memory_size: u64,
    /// Where it is in this process.
    pub userspace_addr: u64,
    /// `KVM_MEM_READONLY`: a write becomes an MMIO exit.
    pub read_only: bool,
    /// `KVM_MEM_LOG_DIRTY_PAGES`: which pages the guest writes is noted.
    pub log_dirty: bool,
}

impl Slot {
    fn end(&self) -> u64 {
        self.guest_phys_addr + self.memory_size
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.guest_phys_addr < other.end() && other.guest_phys_addr < self.end()
    }
}

/// A machine's slots.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    slots: Vec<(Slot, Option<Arc<DirtyLog>>)>,
    /// Counts the changes, and the reads of dirty logs, so that a vCPU notices one.
    pub generation: u64,
}

/// Numbers that a slot may have.
const NUMBERS: u32 = 512;

impl Slots {
    /// Sets or deletes a slot. KVM's API documentation, "KVM_SET_USER_MEMORY_REGION".
    ///
    /// # Errors
    /// `EINVAL` when an address or the size is no multiple of the page size, the range wraps around, or
    /// a slot that is there would get another size, other host memory or become read-only; `EEXIST` when
    /// it overlaps another slot.
    pub fn set(&mut self, slot: Slot) -> Result<(), Errno> {
        let aligned = |address: u64| address.is_multiple_of(PAGE_SIZE);
        let end = slot.guest_phys_addr.checked_add(slot.memory_size);
        let host_end = slot.userspace_addr.checked_add(slot.memory_size);
        if !aligned(slot.guest_phys_addr) || !aligned(slot.memory_size) || !aligned(slot.userspace_addr) {
            return Err(Errno::EINVAL);
        }
        if end.is_none() || host_end.is_none() || slot.slot >= NUMBERS {
            return Err(Errno::EINVAL);
        }
        let known = self.slots.iter().find(|(old, _)| old.slot == slot.slot);
        let mut log = None;
        match known {
            None if slot.memory_size == 0 => return Err(Errno::EINVAL),
            Some((old, old_log)) if slot.memory_size > 0 => {
                let same = (old.memory_size, old.userspace_addr, old.read_only);
                if same != (slot.memory_size, slot.userspace_addr, slot.read_only) {
                    return Err(Errno::EINVAL);
                }
                log.clone_from(old_log);
            }
            _ => {}
        }
        let others = self.slots.iter().filter(|(old, _)| old.slot != slot.slot);
        if others.clone().any(|(old, _)| old.overlaps(&slot)) {
            return Err(Errno::EEXIST);
        }
        self.slots.retain(|(old, _)| old.slot != slot.slot);
        if slot.memory_size > 0 {
            let log =
                slot.log_dirty.then(|| log.unwrap_or_else(|| Arc::new(DirtyLog::new(slot.memory_size))));
            self.slots.push((slot, log));
        }
        self.generation += 1;
        Ok(())
    }

    fn find(&self, physical: u64) -> Option<&(Slot, Option<Arc<DirtyLog>>)> {
        self.slots.iter().find(|(slot, _)| (slot.guest_phys_addr..slot.end()).contains(&physical))
    }

    /// The page that holds a guest-physical address; `None` in a hole.
    pub fn page(&self, physical: u64) -> Option<Page> {
        self.find(physical).map(|(slot, _)| Page::of(slot, physical))
    }

    /// The same, to be written to; `None` also for a read-only slot.
    pub fn writable(&self, physical: u64) -> Option<Page> {
        self.find(physical).filter(|(slot, _)| !slot.read_only).map(|(slot, _)| Page::of(slot, physical))
    }

    /// Whether a write to this page goes to a log.
    pub fn is_logged(&self, physical: u64) -> bool {
        self.find(physical).is_some_and(|(_, log)| log.is_some())
    }

    /// This page is written.
    pub fn mark_dirty(&self, physical: u64) {
        if let Some((slot, Some(log))) = self.find(physical) {
            log.mark(physical - slot.guest_phys_addr);
        }
    }

    /// A slot's dirty log, which starts over: a bit for each page. `KVM_GET_DIRTY_LOG`.
    ///
    /// # Errors
    /// `EINVAL` for a number that no slot can have, `ENOENT` for a slot that is not there or has no log.
    pub fn take_dirty_log(&mut self, number: u32) -> Result<Vec<u64>, Errno> {
        if number >= NUMBERS {
            return Err(Errno::EINVAL);
        }
        let found = self.slots.iter().find(|(slot, _)| slot.slot == number);
        let log = found.and_then(|(_, log)| log.as_ref()).ok_or(Errno::ENOENT)?;
        self.generation += 1;
        Ok(log.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(slot: u32, guest_phys_addr: u64, pages: u64) -> Slot {
        Slot {
            slot,
            guest_phys_addr,
            memory_size: pages * PAGE_SIZE,
            userspace_addr: 0x7000_0000,
            ..Slot::default()
        }
    }

    #[test]
    fn a_slot_that_overlaps_another_is_eexist() {
        let mut slots = Slots::default();
        assert_eq!(slots.set(slot(0, 0x1000, 2)), Ok(()));
        assert_eq!(slots.set(slot(1, 0x2000, 1)), Err(Errno::EEXIST));
        assert_eq!(slots.set(slot(1, 0x3000, 1)), Ok(()));
        // The slot itself may be set again, here elsewhere; but not with another size.
        assert_eq!(slots.set(slot(0, 0x4000, 2)), Ok(()));
        assert!(slots.page(0x1000).is_none() && slots.page(0x5fff).is_some());
        assert_eq!(slots.set(slot(0, 0x4000, 3)), Err(Errno::EINVAL));
    }

    #[test]
    fn a_slot_is_whole_pages_at_page_addresses() {
        let mut slots = Slots::default();
        assert_eq!(slots.set(Slot { memory_size: 100, ..slot(0, 0, 1) }), Err(Errno::EINVAL));
        assert_eq!(slots.set(Slot { guest_phys_addr: 8, ..slot(0, 0, 1) }), Err(Errno::EINVAL));
        assert_eq!(slots.set(Slot { userspace_addr: 8, ..slot(0, 0, 1) }), Err(Errno::EINVAL));
        assert_eq!(slots.set(Slot { guest_phys_addr: !0xfff, ..slot(0, 0, 2) }), Err(Errno::EINVAL));
        assert_eq!(slots.set(slot(0, 0, 0)), Err(Errno::EINVAL), "there is no slot to delete");
    }

    #[test]
    fn size_zero_deletes_a_slot_and_a_read_only_one_cannot_be_written() {
        let mut slots = Slots::default();
        assert_eq!(slots.set(Slot { read_only: true, ..slot(0, 0, 1) }), Ok(()));
        assert!(slots.page(0xfff).is_some() && slots.writable(0xfff).is_none());
        assert_eq!(slots.set(slot(0, 0, 0)), Ok(()));
        assert!(slots.page(0).is_none());
    }

    #[test]
    fn a_log_is_there_where_the_slot_asks_for_one() {
        let mut slots = Slots::default();
        assert_eq!(slots.set(slot(0, 0x1000, 2)), Ok(()));
        slots.mark_dirty(0x1000);
        assert_eq!(slots.take_dirty_log(0), Err(Errno::ENOENT));
        assert_eq!(slots.take_dirty_log(7), Err(Errno::ENOENT));
        assert_eq!(slots.take_dirty_log(1 << 16), Err(Errno::EINVAL));
        assert_eq!(slots.set(Slot { log_dirty: true, ..slot(0, 0x1000, 2) }), Ok(()));
        slots.mark_dirty(0x2000);
        assert_eq!(slots.take_dirty_log(0), Ok(vec![2]));
    }
}
