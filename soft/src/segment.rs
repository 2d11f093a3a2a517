//! Segmentation of data accesses: from an offset in a segment to a linear address.
//! Intel SDM Vol. 3A, "Limit Checking", "Type Checking"; in 64-bit code, Vol. 3A,
//! "Segmentation in IA-32e Mode", and Vol. 1, "Canonical Addressing".

use crate::cpu::{Cpu, seg};
use crate::paging::Intent;
use crate::registers::{Segment, kind};
use crate::stop::{Fault, Stop};

/// Whether the upper bits of a linear address all equal bit 47.
#[inline(always)]
#[must_use]
pub fn is_canonical(linear: u64) -> bool {
    ((linear << 16) as i64 >> 16) as u64 == linear
}

impl Segment {
    /// Whether the offsets from `offset` to `offset + size - 1` are inside.
    #[inline(always)]
    pub fn holds(&self, offset: u64, size: u64) -> bool {
        let last = offset.wrapping_add(size - 1);
        if self.s != 0 && self.type_ & (kind::CODE | kind::EXPAND_DOWN) == kind::EXPAND_DOWN {
            // Valid offsets lie above the limit, up to what the size of the segment allows.
            let top = if self.db != 0 { 0xffff_ffff } else { 0xffff };
            return offset > u64::from(self.limit) && last <= top;
        }
        last <= u64::from(self.limit) && offset <= last
    }

    /// Whether the type allows the access.
    #[inline(always)]
    pub fn permits(&self, intent: Intent) -> bool {
        let code = self.type_ & kind::CODE != 0;
        match intent {
            Intent::Write => !code && self.type_ & kind::WRITABLE != 0,
            Intent::Read => !code || self.type_ & kind::READABLE != 0,
            Intent::Fetch => code,
        }
    }
}

impl Cpu {
    /// The linear address of `size` bytes at an offset in a segment, if the segment allows the access.
    ///
    /// # Errors
    /// #GP(0), or #SS(0) where the segment is SS.
    #[inline(always)]
    pub fn linear(&self, segment: usize, offset: u64, size: u64, intent: Intent) -> Result<u64, Stop> {
        if self.in_64_bit() {
            let base = if segment >= seg::FS { self.segments[segment].base } else { 0 };
            let linear = base.wrapping_add(offset);
            // The access must not leave the canonical half that it starts in.
            if is_canonical(linear) && is_canonical(linear.wrapping_add(size - 1)) {
                return Ok(linear);
            }
            return Err(segment_fault(segment));
        }
        let register = &self.segments[segment];
        // In real mode no descriptor was read, and types say nothing.
        let permitted = !self.protected() || register.unusable == 0 && register.permits(intent);
        if permitted && register.holds(offset, size) {
            return Ok(register.base.wrapping_add(offset) & 0xffff_ffff);
        }
        Err(segment_fault(segment))
    }

    /// Reads `size` bytes at an offset in a segment, with this ring's rights.
    #[inline(always)]
    pub fn read_at(&mut self, segment: usize, offset: u64, size: u8) -> Result<u64, Stop> {
        let linear = self.linear(segment, offset, u64::from(size), Intent::Read)?;
        self.check_alignment(linear, u64::from(size))?;
        self.read(linear, usize::from(size), self.user())
    }

    /// Writes `size` bytes at an offset in a segment, with this ring's rights.
    #[inline(always)]
    pub fn write_at(&mut self, segment: usize, offset: u64, size: u8, value: u64) -> Result<(), Stop> {
        let linear = self.linear(segment, offset, u64::from(size), Intent::Write)?;
        self.check_alignment(linear, u64::from(size))?;
        self.write(linear, usize::from(size), value, self.user())
    }

    /// #AC, where ring 3 has asked for it. Intel SDM Vol. 3A, "Interrupt 17—Alignment Check Exception".
    #[inline(always)]
    pub fn check_alignment(&self, linear: u64, size: u64) -> Result<(), Stop> {
        use crate::registers::{cr0, rflags};
        if linear & (size - 1) != 0 && self.cpl == 3 && self.cr0 & cr0::AM != 0 && self.flag(rflags::AC) {
            return Err(Fault::ALIGNMENT_CHECK.into());
        }
        Ok(())
    }
}

#[cold]
fn segment_fault(segment: usize) -> Stop {
    if segment == seg::SS { Fault::stack(0).into() } else { Fault::general_protection(0).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expand_down_segment_holds_what_lies_above_its_limit() {
        let down = Segment { limit: 0xfff, type_: 7, s: 1, present: 1, ..Segment::default() };
        assert!(!down.holds(0xfff, 1) && down.holds(0x1000, 1));
        assert!(down.holds(0xfffe, 2) && !down.holds(0xffff, 2));
        assert!(Segment { db: 1, ..down }.holds(0xffff, 2));
    }

    #[test]
    fn the_limit_is_the_last_byte() {
        let up = Segment { limit: 0xffff, type_: 3, s: 1, present: 1, ..Segment::default() };
        assert!(up.holds(0xffff, 1) && !up.holds(0xffff, 2) && !up.holds(u64::MAX, 2));
    }

    #[test]
    fn code_is_not_written_and_read_only_where_it_may_be() {
        let of_type = |type_| Segment { type_, ..Segment::default() };
        assert!(of_type(11).permits(Intent::Read) && !of_type(9).permits(Intent::Read));
        assert!(!of_type(11).permits(Intent::Write));
        assert!(of_type(3).permits(Intent::Write) && !of_type(1).permits(Intent::Write));
    }

    #[test]
    fn canonical_addresses_repeat_bit_47() {
        assert!(is_canonical(0x7fff_ffff_ffff) && is_canonical(0xffff_8000_0000_0000));
        assert!(!is_canonical(0x8000_0000_0000) && !is_canonical(0xffff_7fff_ffff_ffff));
    }
}
