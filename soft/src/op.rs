//! An instruction, decoded: what the CPU's loop executes.

use iced_x86::Instruction;

use crate::cpu::{Cpu, gpr};
use crate::stop::Done;

/// What executes an instruction. It reads everything that can fault before it
/// changes anything, so that after an exception, or an MMIO read that makes the
/// vCPU leave, the instruction can be executed again from its start.
pub type Handler = fn(&mut Cpu, &Op) -> Done;

/// Where an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// There is no such operand.
    None,
    /// A general-purpose register, from its lowest byte.
    Register,
    /// AH, CH, DH or BH: the second byte of RAX to RBX.
    HighByte,
    /// In the instruction.
    Immediate,
    /// At the instruction's address.
    Memory,
    /// ES to GS.
    Segment,
    /// CR0 to CR8.
    Control,
    /// DR0 to DR7.
    Debug,
    /// XMM0 to XMM15.
    Xmm,
    /// A kind of register that this CPU lacks.
    Unknown,
}

/// An operand.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// Where it is.
    pub place: Place,
    /// The register's number.
    pub number: u8,
    /// Bytes.
    pub size: u8,
}

impl Operand {
    /// None at all.
    pub const NONE: Self = Self { place: Place::None, number: 0, size: 0 };
}

/// The address of a memory operand: segment:[base + index × 2^scale + displacement].
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// The segment register's number.
    pub segment: u8,
    /// The base register's number, or [`gpr::NONE`].
    pub base: u8,
    /// The index register's number, or [`gpr::NONE`].
    pub index: u8,
    /// How far the index is shifted.
    pub scale: u8,
    /// The displacement counts from RIP.
    pub from_rip: bool,
    /// Added.
    pub displacement: u64,
    /// The bits that an address has: 16, 32 or 64 of them.
    pub mask: u64,
}

impl Address {
    /// No memory operand.
    pub const NONE: Self = Self {
        segment: 0,
        base: gpr::NONE as u8,
        index: gpr::NONE as u8,
        scale: 0,
        from_rip: false,
        displacement: 0,
        mask: u64::MAX,
    };
}

/// A decoded instruction.
#[derive(Clone, Copy)]
pub struct Op {
    /// What executes it.
    pub run: Handler,
    /// The operands in the manual's order; the first is mostly the destination.
    pub operands: [Operand; 3],
    /// Of the memory operand.
    pub address: Address,
    /// The immediate operand, extended as the instruction wants it; for a near branch, how far it jumps.
    pub immediate: u64,
    /// Bytes.
    pub length: u8,
    /// The condition of Jcc, SETcc and CMOVcc, as the opcode encodes it.
    pub condition: u8,
    /// What iced-x86 found, for those who need more.
    pub instruction: Instruction,
}

impl Op {
    /// The first operand.
    #[inline(always)]
    pub fn first(&self) -> Operand {
        self.operands[0]
    }

    /// The second operand.
    #[inline(always)]
    pub fn second(&self) -> Operand {
        self.operands[1]
    }

    /// The size of the first operand, in bytes.
    #[inline(always)]
    pub fn size(&self) -> u8 {
        self.operands[0].size
    }
}
