//! Segment descriptors, and the hidden part of a segment register that the CPU
//! loads from one, chapter 05; gates and the task state segment, chapter 07.

mod gate;
mod task;

pub use gate::{Gate, GateKind};
pub use task::{tss32, tss64};

use crate::kvm::kvm_segment;

/// A segment descriptor's bits. Intel SDM Vol. 3A, "Segment Descriptors", and
/// "Code- and Data-Segment Descriptor Types".
#[rustfmt::skip] // laid out like the SDM's figure
mod bits {
    pub const ACCESSED: u64 = 1 << 40; //      the CPU sets it on a load
    pub const WRITABLE: u64 = 1 << 41; // W/R  data: writable; code: readable
    pub const CODE: u64     = 1 << 43; //      0 = data
    pub const S: u64        = 1 << 44; // S    0 = system segment (TSS, LDT, gate)
    pub const RING_3: u64   = 3 << 45; // DPL
    pub const PRESENT: u64  = 1 << 47; // P
    pub const LONG: u64     = 1 << 53; // L    64-bit code
    pub const SIZE_32: u64  = 1 << 54; // D/B  must be 0 when L = 1
    pub const PAGES: u64    = 1 << 55; // G    the limit counts 4 KiB units
}

/// Base 0 and limit 0xfffff, the two fields that the descriptor scatters.
const FLAT: u64 = 0x000f_0000_0000_ffff;
const PRESENT_SEGMENT: u64 = FLAT | bits::PRESENT | bits::S | bits::ACCESSED | bits::WRITABLE;

/// An entry of the GDT.
///
/// ```text
/// 63      56 55 54 53 52 51  48 47 46 45 44 43  40 39     32
/// | base   | G| D| L| - | limit | P| DPL | S| type | base   |
/// | 31:24  |  |  |  |   | 19:16 |  |     |  |      | 23:16  |
/// 31                         16 15                         0
/// | base 15:0                  | limit 15:0                 |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// The null descriptor, entry 0 of every GDT.
    pub const NULL: Self = Self(0);
    /// 4 GiB of 32-bit code at base 0, ring 0.
    pub const CODE_32: Self = Self(PRESENT_SEGMENT | bits::CODE | bits::SIZE_32 | bits::PAGES);
    /// 4 GiB of writable data at base 0, ring 0.
    pub const DATA: Self = Self(PRESENT_SEGMENT | bits::SIZE_32 | bits::PAGES);
    /// 64-bit code, ring 0; base and limit are ignored.
    pub const CODE_64: Self = Self(PRESENT_SEGMENT | bits::CODE | bits::LONG | bits::PAGES);
    /// [`Self::CODE_32`] of ring 3.
    pub const USER_CODE_32: Self = Self(Self::CODE_32.0 | bits::RING_3);
    /// [`Self::DATA`] of ring 3.
    pub const USER_DATA: Self = Self(Self::DATA.0 | bits::RING_3);
    /// [`Self::CODE_64`] of ring 3.
    pub const USER_CODE_64: Self = Self(Self::CODE_64.0 | bits::RING_3);

    /// An available 32-bit TSS, or the lower half of a 64-bit one (the upper half
    /// is bits 63:32 of the base), whose last byte has the offset `limit`. `ltr`
    /// makes it busy. Intel SDM Vol. 3A, "TSS Descriptor".
    ///
    /// # Panics
    /// When the limit has more than 20 bits.
    #[must_use]
    pub const fn task_state(base: u32, limit: u32) -> Self {
        assert!(limit < 1 << 20, "a limit has 20 bits");
        let (base, limit) = (base as u64, limit as u64);
        let low = limit & 0xffff | (base & 0xff_ffff) << 16;
        let high = (limit & 0xf_0000) << 32 | (base & 0xff00_0000) << 32;
        Self(low | high | (AVAILABLE_TSS as u64) << 40 | bits::PRESENT)
    }

    // ANCHOR: load
    /// The segment register after `selector` was loaded and the CPU found this
    /// descriptor there: what `mov ds, ax` fills in, and what `KVM_SET_SREGS`
    /// wants filled in by hand. Limits come out in bytes, as in the VMCS.
    #[must_use]
    pub fn load(self, selector: u16) -> kvm_segment {
        let bit = |number: u32| (self.0 >> number & 1) as u8;
        let raw_limit = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        kvm_segment {
            base: self.0 >> 16 & 0xff_ffff | self.0 >> 32 & 0xff00_0000,
            limit: if bit(55) == 1 { raw_limit << 12 | 0xfff } else { raw_limit },
            selector,
            type_: (self.0 >> 40 & 0xf) as u8,
            present: bit(47),
            dpl: (self.0 >> 45 & 3) as u8,
            db: bit(54),
            s: bit(44),
            l: bit(53),
            g: bit(55),
            avl: bit(52),
            unusable: 0,
            padding: 0,
        }
    }
    // ANCHOR_END: load
}

/// The type of a 32-bit or 64-bit TSS that no task register holds. Intel SDM Vol. 3A, "System
/// Descriptor Types".
pub const AVAILABLE_TSS: u8 = 9;
/// The type of one that `ltr` has loaded.
pub const BUSY_TSS: u8 = 11;

/// A task register that VM entry accepts and the guest never uses: no selector,
/// a present, busy TSS of the smallest legal limit at base 0. VMX refuses an
/// entry without one: SDM Vol. 3C, "Checks on Guest Segment Registers".
#[must_use]
pub fn idle_task() -> kvm_segment {
    kvm_segment { limit: 0x67, type_: BUSY_TSS, present: 1, ..kvm_segment::default() }
}

/// A segment register that holds nothing: what loading selector 0 leaves behind.
/// SDM Vol. 3C, "Guest Register State", the "unusable" bit.
#[must_use]
pub fn unusable() -> kvm_segment {
    kvm_segment { unusable: 1, ..kvm_segment::default() }
}

/// Whether bits 63:47 of a linear address are all alike. Intel SDM Vol. 1, "Canonical Addressing".
#[must_use]
pub fn canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `arch/x86/kernel/cpu/common.c`, the GDT of a Linux kernel, with the accessed bit.
    #[test]
    fn the_descriptors_are_those_that_linux_uses() {
        assert_eq!(Descriptor::CODE_32.0, 0x00cf_9b00_0000_ffff);
        assert_eq!(Descriptor::DATA.0, 0x00cf_9300_0000_ffff);
        assert_eq!(Descriptor::CODE_64.0, 0x00af_9b00_0000_ffff);
        assert_eq!(Descriptor::USER_CODE_32.0, 0x00cf_fb00_0000_ffff);
        assert_eq!(Descriptor::USER_DATA.0, 0x00cf_f300_0000_ffff);
        assert_eq!(Descriptor::USER_CODE_64.0, 0x00af_fb00_0000_ffff);
    }

    /// `arch/x86/include/asm/desc.h`: `set_tssldt_descriptor` with DESC_TSS.
    #[test]
    fn a_tss_descriptor_scatters_base_and_limit_and_is_no_code_or_data() {
        let descriptor = Descriptor::task_state(0x1234_5678, 0x67);
        assert_eq!(descriptor.0, 0x1200_8934_5678_0067);
        let task = descriptor.load(0x28);
        assert_eq!((task.base, task.limit, task.type_), (0x1234_5678, 0x67, AVAILABLE_TSS));
        assert_eq!((task.present, task.s, task.dpl), (1, 0, 0));
    }

    #[test]
    fn loading_a_descriptor_gathers_its_scattered_fields() {
        let segment = Descriptor(0x12cf_fb34_5678_9abc).load(0x1b);
        assert_eq!(segment.base, 0x1234_5678);
        assert_eq!(segment.limit, 0xf_9abc << 12 | 0xfff);
        assert_eq!((segment.selector, segment.type_, segment.dpl), (0x1b, 11, 3));
        assert_eq!((segment.present, segment.s, segment.db, segment.l, segment.g), (1, 1, 1, 0, 1));
        assert_eq!(Descriptor(0x0000_9200_0000_0fff).load(8).limit, 0xfff);
    }
}
