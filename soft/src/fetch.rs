//! Finding the instruction at RIP: limits of CS, page tables, memory.

use crate::cache::Wanted;
use crate::cpu::{Cpu, seg};
use crate::memory::OFFSET;
use crate::paging::Intent;
use crate::segment::is_canonical;
use crate::stop::{Fault, Missing, Stop};

impl Cpu {
    /// The memory at RIP.
    ///
    /// # Errors
    /// #GP(0) outside CS, #PF; [`Stop::Missing`] where no memory is, which KVM cannot execute either.
    #[inline(always)]
    pub fn fetch(&mut self) -> Result<Wanted, Stop> {
        let inside = if self.in_64_bit() {
            is_canonical(self.rip)
        } else {
            self.rip <= u64::from(self.segments[seg::CS].limit)
        };
        if !inside {
            return Err(Fault::general_protection(0).into());
        }
        self.fetch_at(self.linear_rip())
    }

    /// The memory at a linear address, to be executed.
    ///
    /// # Errors
    /// As [`Cpu::fetch`].
    #[inline(always)]
    pub fn fetch_at(&mut self, linear: u64) -> Result<Wanted, Stop> {
        let user = self.user();
        let mut entry = self.tlb.code(linear, user);
        if entry.execute != self.tlb.tag(linear) {
            self.translate(linear, Intent::Fetch, user)?;
            entry = self.tlb.code(linear, user);
            if entry.execute != self.tlb.tag(linear) {
                return Err(Stop::Missing(Missing::Memory));
            }
        }
        let physical = entry.physical | linear & OFFSET;
        Ok(Wanted { physical, page: entry.page, size: self.code_size })
    }

    /// Whether `bytes` of code at RIP are inside CS.
    #[inline(always)]
    pub fn code_holds(&self, bytes: u64) -> bool {
        self.in_64_bit() || self.rip + bytes - 1 <= u64::from(self.segments[seg::CS].limit)
    }
}
