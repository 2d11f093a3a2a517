//! Gates: the entries of the interrupt descriptor table. Chapter 07.

/// A gate's bits. Intel SDM Vol. 3A, "IDT Descriptors" and "64-Bit Mode IDT".
#[rustfmt::skip] // laid out like the SDM's figure
mod bits {
    pub const INTERRUPT: u64 = 0xe << 40; //   D and type: clears IF on the way in
    pub const TRAP: u64      = 0xf << 40; //   D and type: leaves IF alone
    pub const KINDS: u64     = 0x1f << 40; //  S among them: 0 in every gate
    pub const PRESENT: u64   = 1 << 47;   // P
}

/// What a gate does to RFLAGS.IF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateKind {
    /// Turns interrupts off.
    Interrupt,
    /// Leaves them as they were.
    Trap,
}

/// A gate: where an interrupt or an exception leads, and who may go there by `int`.
///
/// ```text
/// 127                                              96 95                     64
/// | reserved                                         | offset 63:32            |  64-bit code only
/// 63                      48 47 46 45 44 43  40 39 35 34 32
/// | offset 31:16            | P| DPL | 0| type | -   | IST |
/// 31                      16 15                           0
/// | selector                | offset 15:0                 |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    pub kind: GateKind,
    /// The code segment of the handler.
    pub selector: u16,
    /// Its first instruction, in that segment.
    pub offset: u64,
    /// `int n` from a ring above this one is #GP; hardware events do not ask.
    pub dpl: u8,
    /// The stack of the TSS that is taken in long mode, 1 to 7; 0 for none.
    pub ist: u8,
}

impl Gate {
    /// An interrupt gate of ring 0.
    #[must_use]
    pub fn interrupt(selector: u16, offset: u64) -> Self {
        Self { kind: GateKind::Interrupt, selector, offset, dpl: 0, ist: 0 }
    }

    /// The eight bytes outside long mode.
    #[must_use]
    pub fn to_32(self) -> u64 {
        let kind = match self.kind {
            GateKind::Interrupt => bits::INTERRUPT,
            GateKind::Trap => bits::TRAP,
        };
        let offset = self.offset & 0xffff | (self.offset >> 16 & 0xffff) << 48;
        let rights = bits::PRESENT | kind | u64::from(self.dpl & 3) << 45;
        offset | u64::from(self.selector) << 16 | rights
    }

    /// The sixteen bytes in long mode, as two little-endian numbers.
    #[must_use]
    pub fn to_64(self) -> [u64; 2] {
        [self.to_32() | u64::from(self.ist & 7) << 32, self.offset >> 32]
    }

    /// Reads eight bytes; `None` for what is not present, a 16-bit gate, a task
    /// gate, or no gate at all.
    #[must_use]
    pub fn from_32(value: u64) -> Option<Self> {
        let kind = match value & bits::KINDS {
            bits::INTERRUPT => GateKind::Interrupt,
            bits::TRAP => GateKind::Trap,
            _ => return None,
        };
        (value & bits::PRESENT != 0).then_some(Self {
            kind,
            selector: (value >> 16) as u16,
            offset: value & 0xffff | (value >> 48) << 16,
            dpl: (value >> 45 & 3) as u8,
            ist: 0,
        })
    }

    /// Reads sixteen bytes.
    #[must_use]
    pub fn from_64(value: [u64; 2]) -> Option<Self> {
        let gate = Self::from_32(value[0])?;
        Some(Self {
            offset: gate.offset | (value[1] & 0xffff_ffff) << 32,
            ist: (value[0] >> 32 & 7) as u8,
            ..gate
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `arch/x86/include/asm/desc.h`: `pack_gate` for INTG and SYSG (DPL 3) with `__KERNEL_CS`.
    #[test]
    fn a_gate_is_laid_out_as_linux_packs_it() {
        let gate = Gate::interrupt(0x10, 0xffff_ffff_8123_4567);
        assert_eq!(gate.to_64(), [0x8123_8e00_0010_4567, 0xffff_ffff]);
        let system = Gate { dpl: 3, ..gate };
        assert_eq!(system.to_64()[0], 0x8123_ee00_0010_4567);
        let double_fault = Gate { ist: 1, ..gate };
        assert_eq!(double_fault.to_64()[0], 0x8123_8e01_0010_4567);
        assert_eq!(Gate { kind: GateKind::Trap, ..gate }.to_32(), 0x8123_8f00_0010_4567);
    }

    #[test]
    fn a_gate_comes_back_as_it_went_and_what_is_none_does_not() {
        let gate = Gate { dpl: 3, ist: 2, ..Gate::interrupt(8, 0x1234_5678_9abc) };
        assert_eq!(Gate::from_64(gate.to_64()), Some(gate));
        assert_eq!(Gate::from_32(gate.to_32()), Some(Gate { ist: 0, offset: 0x5678_9abc, ..gate }));
        for none in [0, 0x0000_0e00_0008_1000, 0x0000_8500_0008_0000, 0x00cf_9b00_0000_ffff] {
            assert_eq!(Gate::from_32(none), None, "{none:#x}");
        }
    }
}
