//! The memory slots of a VM, as the trace sees them.

use std::sync::Arc;

use crate::guest::Writes;
use crate::kvm::kvm_userspace_memory_region;

const ZEROS: [u8; 4096] = [0; 4096];

/// What `KVM_SET_USER_MEMORY_REGION` was told, so that the trace can read the
/// guest's code and tables without the chapter's help.
#[derive(Default)]
pub struct Slots {
    regions: Vec<kvm_userspace_memory_region>,
    /// The logs of the hypervisor's writes to them.
    writes: Vec<Arc<Writes>>,
    gap: Option<&'static str>,
}

impl Slots {
    /// Notes a slot; size 0 deletes it, as in KVM.
    ///
    /// # Safety
    /// The region's host memory stays mapped for as long as `self` lives.
    pub unsafe fn set(&mut self, region: kvm_userspace_memory_region) {
        self.regions.retain(|old| old.slot != region.slot);
        if region.memory_size > 0 {
            self.regions.push(region);
        }
    }

    /// The log of the hypervisor's writes to one of the slots.
    pub fn log(&mut self, writes: Arc<Writes>) {
        self.writes.push(writes);
    }

    /// The VM has something whose doings no recording holds: why, as the end of a sentence.
    pub fn set_gap(&mut self, gap: &'static str) {
        self.gap = Some(gap);
    }

    /// What [`Self::set_gap`] was told.
    pub fn gap(&self) -> Option<&'static str> {
        self.gap
    }

    /// The logs of all slots.
    pub fn logs(&self) -> &[Arc<Writes>] {
        &self.writes
    }

    /// Copies as many bytes as there are from the guest-physical `address`,
    /// `length` at most and none past the end of the slot.
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let Some((slot, offset)) = self.regions.iter().find_map(|slot| {
            let offset = address.checked_sub(slot.guest_phys_addr)?;
            (offset < slot.memory_size).then_some((slot, offset))
        }) else {
            return Vec::new();
        };
        let length = (slot.memory_size - offset).min(length as u64) as usize;
        let mut bytes = vec![0; length];
        let from = (slot.userspace_addr + offset) as *const u8;
        // SAFETY: `from` to `from + length` is inside the slot, whose host memory is mapped by the
        // promise made to `set`; no vCPU of this VM runs while its watch reads.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), length) };
        bytes
    }

    /// Writes a byte at the guest-physical `address`, if a slot is there that the guest may write.
    pub fn write(&self, address: u64, byte: u8) {
        /// `KVM_MEM_READONLY`: the host's memory may be read-only, too.
        const READ_ONLY: u32 = 1 << 1;
        let offset = |slot: &kvm_userspace_memory_region| address.checked_sub(slot.guest_phys_addr);
        let inside =
            |slot: &&kvm_userspace_memory_region| offset(slot).is_some_and(|at| at < slot.memory_size);
        if let Some(slot) = self.regions.iter().find(inside).filter(|slot| slot.flags & READ_ONLY == 0) {
            let to = (slot.userspace_addr + (address - slot.guest_phys_addr)) as *mut u8;
            // SAFETY: `to` is inside the slot, whose host memory is mapped by the promise made to
            // `set`; no vCPU of this VM runs while its watch writes.
            unsafe { to.write_volatile(byte) };
        }
    }

    /// The pages that are not all zero, with their guest-physical addresses:
    /// enough to make the same memory again.
    pub fn pages(&self) -> Vec<(u64, Vec<u8>)> {
        let mut pages = Vec::new();
        for slot in &self.regions {
            for offset in (0..slot.memory_size).step_by(4096) {
                let page = self.read(slot.guest_phys_addr + offset, 4096);
                if page != ZEROS {
                    pages.push((slot.guest_phys_addr + offset, page));
                }
            }
        }
        pages
    }

    /// Each slot's guest-physical address and size in bytes.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        self.regions.iter().map(|slot| (slot.guest_phys_addr, slot.memory_size)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_stops_at_the_end_of_its_slot_and_finds_nothing_outside() {
        let host: &'static mut [u8] = Box::leak(vec![7u8; 4096].into_boxed_slice());
        let mut slots = Slots::default();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0x1000,
            memory_size: 4096,
            userspace_addr: host.as_mut_ptr() as u64,
        };
        // SAFETY: the host memory was leaked and lives for ever.
        unsafe { slots.set(region) };
        assert_eq!(slots.read(0x1ffe, 15), [7, 7]);
        assert!(slots.read(0xfff, 1).is_empty() && slots.read(0x2000, 1).is_empty());
        slots.write(0x2000, 9);
        slots.write(0x1fff, 9);
        assert_eq!(slots.read(0x1ffe, 15), [7, 9]);
        slots.write(0x1fff, 7);
        assert_eq!(slots.pages().len(), 1);
        // SAFETY: as above.
        unsafe { slots.set(kvm_userspace_memory_region { memory_size: 0, ..region }) };
        assert!(slots.read(0x1000, 1).is_empty());
    }
}
