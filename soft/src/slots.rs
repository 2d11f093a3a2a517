//! Memory slots: which host memory stands behind which guest-physical address.
//! Where no slot is, a data access becomes an MMIO exit.

use crate::errno::Errno;
use crate::memory::{PAGE_SIZE, Page};

/// A memory slot, as `KVM_SET_USER_MEMORY_REGION` describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    slots: Vec<Slot>,
    /// Counts the changes, so that a vCPU notices one.
    pub generation: u64,
}

impl Slots {
    /// Sets or deletes a slot. KVM's API documentation, "KVM_SET_USER_MEMORY_REGION".
    ///
    /// # Errors
    /// `EINVAL` when an address or the size is no multiple of the page size or the range wraps
    /// around, `EEXIST` when it overlaps another slot.
    pub fn set(&mut self, slot: Slot) -> Result<(), Errno> {
        let aligned = |address: u64| address.is_multiple_of(PAGE_SIZE);
        let end = slot.guest_phys_addr.checked_add(slot.memory_size);
        let host_end = slot.userspace_addr.checked_add(slot.memory_size);
        if !aligned(slot.guest_phys_addr) || !aligned(slot.memory_size) || !aligned(slot.userspace_addr) {
            return Err(Errno::EINVAL);
        }
        if end.is_none() || host_end.is_none() {
            return Err(Errno::EINVAL);
        }
        let known = self.slots.iter().any(|old| old.slot == slot.slot);
        if slot.memory_size == 0 && !known {
            return Err(Errno::EINVAL);
        }
        if self.slots.iter().any(|old| old.slot != slot.slot && old.overlaps(&slot)) {
            return Err(Errno::EEXIST);
        }
        self.slots.retain(|old| old.slot != slot.slot);
        if slot.memory_size > 0 {
            self.slots.push(slot);
        }
        self.generation += 1;
        Ok(())
    }

    fn find(&self, physical: u64) -> Option<&Slot> {
        self.slots.iter().find(|slot| (slot.guest_phys_addr..slot.end()).contains(&physical))
    }

    /// The page that holds a guest-physical address; `None` in a hole.
    pub fn page(&self, physical: u64) -> Option<Page> {
        self.find(physical).map(|slot| Page::of(slot, physical))
    }

    /// The same, to be written to; `None` also for a read-only slot.
    pub fn writable(&self, physical: u64) -> Option<Page> {
        self.find(physical).filter(|slot| !slot.read_only).map(|slot| Page::of(slot, physical))
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
            read_only: false,
        }
    }

    #[test]
    fn a_slot_that_overlaps_another_is_eexist() {
        let mut slots = Slots::default();
        assert_eq!(slots.set(slot(0, 0x1000, 2)), Ok(()));
        assert_eq!(slots.set(slot(1, 0x2000, 1)), Err(Errno::EEXIST));
        assert_eq!(slots.set(slot(1, 0x3000, 1)), Ok(()));
        // The slot itself may be set again, here larger and elsewhere.
        assert_eq!(slots.set(slot(0, 0x4000, 4)), Ok(()));
        assert!(slots.page(0x1000).is_none() && slots.page(0x7fff).is_some());
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
}
