//! Guest memory, a page at a time: the only module with `unsafe` code.
//!
//! A [`Page`] is made from a memory slot alone. Whoever adds the slot promises
//! that its host memory stays mapped for as long as the machine and its vCPUs
//! live ([`crate::Machine::set_slot`]), and no page leaves this crate. No
//! reference into guest memory is formed: bytes are copied in and out, because
//! the guest's memory may change at any time.
#![allow(unsafe_code)]

use std::ptr;

use crate::slots::Slot;

/// The size of a page, in bytes, and of the smallest memory slot.
pub const PAGE_SIZE: u64 = 4096;
/// The part of an address that says where in its page it is.
pub const OFFSET: u64 = PAGE_SIZE - 1;

/// 4096 bytes of guest memory, wherever they are in this process.
#[derive(Clone, Copy, Debug)]
pub struct Page(*mut u8);

// SAFETY: a page is an address of memory that any thread may copy from and to.
unsafe impl Send for Page {}

impl Page {
    /// A page that nothing may be read from; it fills what is not in use yet.
    pub const NONE: Self = Self(ptr::null_mut());

    /// The page of `slot` that holds the guest-physical address `physical`.
    ///
    /// # Panics
    /// When the address is outside the slot.
    pub fn of(slot: &Slot, physical: u64) -> Self {
        let offset = physical.wrapping_sub(slot.guest_phys_addr) & !OFFSET;
        assert!(offset < slot.memory_size);
        Self((slot.userspace_addr + offset) as *mut u8)
    }

    /// Reads `size` bytes (1, 2, 4 or 8) as a little-endian number.
    ///
    /// # Panics
    /// When they do not all lie in the page.
    #[inline(always)]
    pub fn read(self, offset: u64, size: usize) -> u64 {
        assert!(offset as usize + size <= PAGE_SIZE as usize && !self.0.is_null());
        // SAFETY: the range lies in the page, and a slot's memory is mapped by the promise
        // that `Machine::set_slot` asks for.
        unsafe {
            let from = self.0.add(offset as usize);
            match size {
                1 => u64::from(from.read()),
                2 => u64::from(u16::from_le(from.cast::<u16>().read_unaligned())),
                4 => u64::from(u32::from_le(from.cast::<u32>().read_unaligned())),
                _ => u64::from_le(from.cast::<u64>().read_unaligned()),
            }
        }
    }

    /// Writes the lowest `size` bytes (1, 2, 4 or 8) of `value`, little-endian.
    ///
    /// # Panics
    /// When they do not all lie in the page.
    #[inline(always)]
    pub fn write(self, offset: u64, size: usize, value: u64) {
        assert!(offset as usize + size <= PAGE_SIZE as usize && !self.0.is_null());
        // SAFETY: as in `read`; a page of a read-only slot never gets here (`Slots::writable`).
        unsafe {
            let to = self.0.add(offset as usize);
            match size {
                1 => to.write(value as u8),
                2 => to.cast::<u16>().write_unaligned((value as u16).to_le()),
                4 => to.cast::<u32>().write_unaligned((value as u32).to_le()),
                _ => to.cast::<u64>().write_unaligned(value.to_le()),
            }
        }
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// When they do not all lie in the page.
    pub fn copy_to(self, offset: u64, bytes: &mut [u8]) {
        assert!(offset as usize + bytes.len() <= PAGE_SIZE as usize && !self.0.is_null());
        // SAFETY: as in `read`; `bytes` is not guest memory, into which no reference exists.
        unsafe { ptr::copy_nonoverlapping(self.0.add(offset as usize), bytes.as_mut_ptr(), bytes.len()) }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Guest memory for tests: pages that are never given back.
    pub fn leak(pages: usize) -> u64 {
        #[repr(C, align(4096))]
        #[derive(Clone)]
        struct Aligned([u8; PAGE_SIZE as usize]);
        let memory = vec![Aligned([0; PAGE_SIZE as usize]); pages].leak();
        memory.as_mut_ptr() as u64
    }

    fn page() -> Page {
        let slot = Slot {
            slot: 0,
            guest_phys_addr: 0x1000,
            memory_size: PAGE_SIZE,
            userspace_addr: leak(1),
            ..Slot::default()
        };
        Page::of(&slot, 0x1000)
    }

    #[test]
    fn numbers_are_little_endian_and_may_be_unaligned() {
        let page = page();
        page.write(0xff9, 4, 0xaabb_ccdd_1122_3344);
        assert_eq!(page.read(0xff9, 4), 0x1122_3344);
        assert_eq!(page.read(0xffa, 2), 0x2233);
        assert_eq!(page.read(0xff8, 8), 0x11_2233_4400);
        let mut bytes = [0; 3];
        page.copy_to(0xffa, &mut bytes);
        assert_eq!(bytes, [0x33, 0x22, 0x11]);
    }

    #[test]
    #[should_panic(expected = "PAGE_SIZE")]
    fn nothing_is_read_past_the_page() {
        page().read(0xffd, 4);
    }
}
