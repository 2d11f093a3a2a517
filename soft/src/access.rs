//! Reading and writing the guest's memory: by linear address, through the TLB,
//! the page tables and the slots; and what becomes of an access to a hole.

use crate::cpu::{Cpu, Pending};
use crate::exit::Exit;
use crate::memory::{OFFSET, PAGE_SIZE, Page};
use crate::paging::Intent;
use crate::stop::{Done, Fault, Missing, Stop};
use crate::tlb::Entry;

/// The most MMIO accesses that one instruction can make: a string input of 1024 bytes.
const MOST: usize = 128;

/// A piece of an access that no slot backs: within a page, and at most 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Guest-physical.
    pub address: u64,
    /// Bytes.
    pub size: u8,
    /// What is written, or was answered.
    pub value: u64,
}

/// MMIO in progress. An instruction that reads a hole leaves the guest in its
/// middle; when the answer is there it is executed again from its start, and
/// finds the answers it has had so far. One that writes to a hole completes
/// first, and its writes leave afterwards. Linux's `arch/x86/kvm/emulate.c` works
/// the same way (`struct read_cache`).
pub struct Mmio {
    answers: [Piece; MOST],
    answered: usize,
    used: usize,
    writes: [Piece; MOST],
    written: usize,
    sent: usize,
}

impl Default for Mmio {
    fn default() -> Self {
        let none = [Piece::default(); MOST];
        Self { answers: none, answered: 0, used: 0, writes: none, written: 0, sent: 0 }
    }
}

impl Mmio {
    /// Before an instruction starts, or starts again.
    #[inline(always)]
    pub fn begin(&mut self) {
        self.used = 0;
    }

    /// The instruction has ended, one way or another: its answers are used up.
    #[inline(always)]
    pub fn end(&mut self) {
        self.answered = 0;
    }

    /// The instruction took an exception: what it wrote was not written.
    pub fn abandon(&mut self) {
        (self.answered, self.written, self.sent) = (0, 0, 0);
    }

    /// The answer to the read that made the vCPU leave.
    pub fn answer(&mut self, piece: Piece) {
        self.answers[self.answered] = piece;
        self.answered += 1;
    }

    /// The next write that the hypervisor has not seen.
    pub fn next_write(&mut self) -> Option<Piece> {
        if self.sent == self.written {
            (self.sent, self.written) = (0, 0);
            return None;
        }
        self.sent += 1;
        Some(self.writes[self.sent - 1])
    }

    /// Whether there is one.
    #[inline(always)]
    pub fn has_writes(&self) -> bool {
        self.sent != self.written
    }
}

/// The two parts of an access: `first` bytes up to the end of a page, and the rest.
struct Parts {
    first: usize,
    physical: [u64; 2],
}

impl Cpu {
    /// Reads `size` bytes (1, 2, 4 or 8) at a linear address.
    #[inline(always)]
    pub fn read(&mut self, linear: u64, size: usize, user: bool) -> Result<u64, Stop> {
        let entry = self.tlb.data(linear, user);
        let offset = linear & OFFSET;
        if entry.read == self.tlb.tag(linear) && offset + size as u64 <= PAGE_SIZE {
            return Ok(entry.page.read(offset, size));
        }
        self.read_slowly(linear, size, user)
    }

    /// Writes `size` bytes (1, 2, 4 or 8) at a linear address.
    #[inline(always)]
    pub fn write(&mut self, linear: u64, size: usize, value: u64, user: bool) -> Done {
        let entry = self.tlb.data(linear, user);
        let offset = linear & OFFSET;
        if entry.write == self.tlb.tag(linear) && offset + size as u64 <= PAGE_SIZE {
            entry.page.write(offset, size, value);
            return Ok(());
        }
        self.write_slowly(linear, size, value, user)
    }

    #[cold]
    fn read_slowly(&mut self, linear: u64, size: usize, user: bool) -> Result<u64, Stop> {
        let parts = self.translate_parts(linear, size, Intent::Read, user)?;
        let mut value = self.read_physical(parts.physical[0], parts.first)?;
        if parts.first < size {
            value |= self.read_physical(parts.physical[1], size - parts.first)? << (8 * parts.first);
        }
        if self.debug.data {
            self.note_data(linear, size, Intent::Read);
        }
        Ok(value)
    }

    #[cold]
    fn write_slowly(&mut self, linear: u64, size: usize, value: u64, user: bool) -> Done {
        let parts = self.translate_parts(linear, size, Intent::Write, user)?;
        self.write_physical(parts.physical[0], parts.first, value)?;
        if parts.first < size {
            self.write_physical(parts.physical[1], size - parts.first, value >> (8 * parts.first))?;
        }
        if self.debug.data {
            self.note_data(linear, size, Intent::Write);
        }
        Ok(())
    }

    /// Makes sure that a write of `size` bytes would be allowed: what an instruction checks that reads,
    /// changes and writes back, and one that must not stop halfway.
    #[inline(always)]
    pub fn probe_write(&mut self, linear: u64, size: usize, user: bool) -> Done {
        if self.tlb.data(linear, user).write == self.tlb.tag(linear)
            && (linear & OFFSET) + size as u64 <= PAGE_SIZE
        {
            return Ok(());
        }
        self.translate_parts(linear, size, Intent::Write, user).map(|_| ())
    }

    /// Translates the page, or both pages, that an access touches.
    fn translate_parts(
        &mut self,
        linear: u64,
        size: usize,
        intent: Intent,
        user: bool,
    ) -> Result<Parts, Stop> {
        let first = size.min((PAGE_SIZE - (linear & OFFSET)) as usize);
        let mut physical = [self.translate(linear, intent, user)?, 0];
        if first < size {
            let mut second = linear.wrapping_add(first as u64);
            if !self.long_mode() {
                second &= 0xffff_ffff;
            }
            physical[1] = self.translate(second, intent, user)?;
        }
        Ok(Parts { first, physical })
    }

    /// Translates a linear address, sets the bits that say so in the page tables, and notes it in the TLB.
    pub fn translate(&mut self, linear: u64, intent: Intent, user: bool) -> Result<u64, Stop> {
        let mapping = self.walk(linear, intent, user).map_err(|code| {
            self.cr2 = linear;
            Fault::page(code)
        })?;
        self.mark_accessed(&mapping, intent);
        let physical = mapping.physical;
        if intent == Intent::Write {
            self.slots.mark_dirty(physical);
        }
        let tag = self.tlb.tag(linear);
        let right = |given: bool| if given { tag } else { 0 };
        // Where SMAP may forbid an access, or allow it again, and where a breakpoint is, each one asks anew.
        let code = intent == Intent::Fetch;
        let smap = mapping.user && !user && self.cr4_has(crate::registers::cr4::SMAP);
        let asks_anew = !code && (smap || self.debug.watches_page(linear));
        if let Some(page) = self.slots.page(physical)
            && !asks_anew
        {
            let writable = mapping.write_is_free(intent)
                && self.slots.writable(physical).is_some()
                && !self.code_pages.holds_code(physical)
                && (intent == Intent::Write || !self.slots.is_logged(physical));
            let entry = Entry {
                read: right(!code),
                write: right(!code && writable),
                execute: right(code),
                physical: physical & !OFFSET,
                page,
            };
            self.tlb.note(linear, user, code, entry);
        }
        Ok(physical)
    }

    /// Reads up to 8 bytes within a guest-physical page.
    fn read_physical(&mut self, physical: u64, size: usize) -> Result<u64, Stop> {
        let Some(page) = self.slots.page(physical) else {
            return self.read_hole(physical, size as u8);
        };
        Ok(read_any(page, physical & OFFSET, size))
    }

    /// Writes up to 8 bytes within a guest-physical page.
    fn write_physical(&mut self, physical: u64, size: usize, value: u64) -> Done {
        let Some(page) = self.slots.writable(physical) else {
            return self.write_hole(physical, size as u8, value);
        };
        if size.is_power_of_two() {
            page.write(physical & OFFSET, size, value);
        } else {
            for byte in 0..size as u64 {
                page.write((physical & OFFSET) + byte, 1, value >> (8 * byte));
            }
        }
        self.note_write(physical, size as u64);
        Ok(())
    }

    fn read_hole(&mut self, address: u64, size: u8) -> Result<u64, Stop> {
        let mmio = &mut self.mmio;
        if mmio.used < mmio.answered {
            let answer = mmio.answers[mmio.used];
            if (answer.address, answer.size) == (address, size) {
                mmio.used += 1;
                return Ok(answer.value);
            }
            // The hypervisor has changed what the instruction does: its answers are for another.
            mmio.answered = mmio.used;
        }
        if mmio.answered == MOST {
            return Err(Stop::Missing(Missing::Accesses));
        }
        self.leave(Exit::MmioRead { address, size }, Pending::MmioRead { address, size })
    }

    fn write_hole(&mut self, address: u64, size: u8, value: u64) -> Done {
        let mmio = &mut self.mmio;
        if mmio.written == MOST {
            return Err(Stop::Missing(Missing::Accesses));
        }
        mmio.writes[mmio.written] = Piece { address, size, value };
        mmio.written += 1;
        self.leave_block = true;
        Ok(())
    }

    /// Guest-physical memory was written: code that was decoded from its page is no longer good.
    #[inline]
    pub fn note_write(&mut self, physical: u64, size: u64) {
        if self.code_pages.written(physical, size) {
            self.leave_block = true;
        }
    }

    /// Writes bytes at a linear address, eight at a time. The first page's part is written even where the next
    /// page faults, as by KVM's emulator.
    pub fn write_bytes(&mut self, linear: u64, bytes: &[u8], user: bool) -> Done {
        let in_page = (PAGE_SIZE - (linear & OFFSET)) as usize;
        let mut at = linear;
        for part in [&bytes[..in_page.min(bytes.len())], &bytes[in_page.min(bytes.len())..]] {
            if part.is_empty() {
                continue;
            }
            self.probe_write(at, 1, user)?;
            for eight in part.chunks(8) {
                let value = eight.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
                self.write_slowly(at, eight.len(), value, user)?;
                at = self.wrap_linear(at.wrapping_add(eight.len() as u64));
            }
        }
        Ok(())
    }

    /// Reads 16 bytes at a linear address.
    pub fn read_128(&mut self, linear: u64, user: bool) -> Result<u128, Stop> {
        let low = self.read(linear, 8, user)?;
        let high = self.read(linear.wrapping_add(8), 8, user)?;
        Ok(u128::from(low) | u128::from(high) << 64)
    }

    /// Writes 16 bytes at a linear address, all or none.
    pub fn write_128(&mut self, linear: u64, value: u128, user: bool) -> Done {
        self.probe_write(linear, 8, user)?;
        self.probe_write(linear.wrapping_add(8), 8, user)?;
        self.write(linear, 8, value as u64, user)?;
        self.write(linear.wrapping_add(8), 8, (value >> 64) as u64, user)
    }
}

/// Reads any number of bytes up to 8.
fn read_any(page: Page, offset: u64, size: usize) -> u64 {
    if size.is_power_of_two() {
        return page.read(offset, size);
    }
    (0..size as u64).fold(0, |value, byte| value | page.read(offset + byte, 1) << (8 * byte))
}
