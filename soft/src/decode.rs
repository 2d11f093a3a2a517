//! Decoding: from bytes, by iced-x86, to an [`Op`] with its operands looked up.

use iced_x86::{ConditionCode, Decoder, DecoderError, DecoderOptions, Instruction, OpKind, Register};

use crate::cpu::{CodeSize, gpr};
use crate::instructions;
use crate::op::{Address, Op, Operand, Place};

/// The longest that an instruction can be. Intel SDM Vol. 2A, "Intel 64 and IA-32 Architectures
/// Instruction Format".
pub const LONGEST: usize = 15;

/// What decoding came to.
#[allow(clippy::large_enum_variant)] // it is taken apart at once
pub enum Decoded {
    /// An instruction.
    Op(Op),
    /// The bytes end before the instruction does.
    Incomplete,
}

/// Decodes the instruction at the start of what is left in `decoder`.
pub fn decode(decoder: &mut Decoder<'_>, size: CodeSize) -> Decoded {
    decoder.set_ip(0);
    let instruction = decoder.decode();
    if instruction.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
        return Decoded::Incomplete;
    }
    Decoded::Op(predecode(&instruction, size))
}

/// A decoder for code of this size. Prefixes are as free as on Intel's CPUs, and LOCK as bound.
pub fn decoder(bytes: &[u8], size: CodeSize) -> Decoder<'_> {
    let bits = match size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    // F3 90 is PAUSE, which does nothing here, but F3 REX.B 90 exchanges R8 like any 90 with REX.B: the
    // decoder's PAUSE would hide that.
    Decoder::with_ip(bits, bytes, 0, DecoderOptions::NO_PAUSE)
}

fn predecode(instruction: &Instruction, size: CodeSize) -> Op {
    let mut op = Op {
        run: instructions::handler(instruction),
        operands: [Operand::NONE; 3],
        address: Address::NONE,
        immediate: 0,
        length: instruction.len() as u8,
        condition: condition(instruction.condition_code()),
        instruction: *instruction,
    };
    for number in 0..instruction.op_count().min(3) {
        op.operands[number as usize] = operand(instruction, number, &mut op, size);
    }
    // An immediate is as wide as what it is combined with.
    let width = op.operands[0].size.max(1);
    for operand in op.operands.iter_mut().filter(|operand| operand.place == Place::Immediate) {
        if operand.size == 0 {
            operand.size = width;
        }
    }
    op
}

fn operand(instruction: &Instruction, number: u32, op: &mut Op, size: CodeSize) -> Operand {
    match instruction.op_kind(number) {
        OpKind::Register => register(instruction.op_register(number)),
        OpKind::NearBranch16 => near_branch(instruction, op, 2),
        OpKind::NearBranch32 => near_branch(instruction, op, 4),
        OpKind::NearBranch64 => near_branch(instruction, op, 8),
        OpKind::FarBranch16 => Operand { place: Place::Immediate, number: 0, size: 2 },
        OpKind::FarBranch32 => Operand { place: Place::Immediate, number: 0, size: 4 },
        // String instructions find their operands by themselves.
        OpKind::MemorySegSI
        | OpKind::MemorySegESI
        | OpKind::MemorySegRSI
        | OpKind::MemorySegDI
        | OpKind::MemorySegEDI
        | OpKind::MemorySegRDI
        | OpKind::MemoryESDI
        | OpKind::MemoryESEDI
        | OpKind::MemoryESRDI => {
            op.address.segment = segment(instruction, Register::None);
            op.address.mask = string_mask(instruction.op_kind(number));
            Operand { place: Place::None, number: 0, size: instruction.memory_size().size() as u8 }
        }
        OpKind::Memory => {
            op.address = address(instruction, size);
            let bytes = instruction.memory_size().size();
            Operand { place: Place::Memory, number: 0, size: bytes.min(255) as u8 }
        }
        _ => {
            op.immediate = instruction.immediate(number);
            Operand { place: Place::Immediate, number: 0, size: 0 }
        }
    }
}

/// The bits that a string instruction's SI and DI have.
fn string_mask(kind: OpKind) -> u64 {
    match kind {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => 0xffff,
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// A near branch's operand is how far it goes from the end of the instruction: with the instruction at
/// 0, its target less its length.
fn near_branch(instruction: &Instruction, op: &mut Op, size: u8) -> Operand {
    op.immediate = instruction.near_branch_target().wrapping_sub(instruction.len() as u64);
    Operand { place: Place::Immediate, number: 0, size }
}

fn register(register: Register) -> Operand {
    let size = register.size() as u8;
    let place = if register.is_gpr() {
        match register {
            Register::AH | Register::CH | Register::DH | Register::BH => Place::HighByte,
            _ => Place::Register,
        }
    } else if register.is_segment_register() {
        Place::Segment
    } else if register.is_cr() {
        Place::Control
    } else if register.is_dr() {
        Place::Debug
    } else if register.is_xmm() {
        Place::Xmm
    } else {
        Place::Unknown
    };
    let number = match place {
        Place::HighByte => register.number() as u8 & 3,
        Place::Register if size == 1 => low_byte_number(register),
        Place::Unknown => 0,
        _ => register.number() as u8,
    };
    let size = if place == Place::Segment { 2 } else { size };
    Operand { place, number, size }
}

/// iced-x86 counts AL, CL, DL, BL, AH, CH, DH, BH, SPL, …: SPL to R15L come after the high bytes.
fn low_byte_number(register: Register) -> u8 {
    register.full_register().number() as u8
}

fn address(instruction: &Instruction, size: CodeSize) -> Address {
    let number = |register: Register| match register {
        Register::None | Register::RIP | Register::EIP => gpr::NONE as u8,
        register => register.number() as u8,
    };
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let bytes = match (base, index) {
        (Register::None, Register::None) => match instruction.memory_displ_size() {
            2 => 2,
            4 => 4,
            8 => 8,
            _ => match size {
                CodeSize::Bits16 => 2,
                CodeSize::Bits32 => 4,
                CodeSize::Bits64 => 8,
            },
        },
        (Register::None, index) => index.size(),
        (base, _) => base.size(),
    };
    Address {
        segment: segment(instruction, base),
        base: number(base),
        index: number(index),
        scale: instruction.memory_index_scale().trailing_zeros() as u8,
        from_rip: matches!(base, Register::RIP | Register::EIP),
        displacement: instruction.memory_displacement64(),
        mask: crate::flags::mask(bytes as u8),
    }
}

/// The segment register of a memory operand. In 64-bit mode the prefixes for ES,
/// CS, SS and DS say nothing, and the base register alone chooses between SS and
/// DS: that decides between #SS and #GP. AMD APM Vol. 3, "Segment-Override Prefixes".
fn segment(instruction: &Instruction, base: Register) -> u8 {
    let named = instruction.memory_segment();
    let counts =
        instruction.code_size() != iced_x86::CodeSize::Code64 || matches!(named, Register::FS | Register::GS);
    let register = match base {
        _ if counts => named,
        Register::RSP | Register::RBP | Register::ESP | Register::EBP => Register::SS,
        _ => Register::DS,
    };
    register.number() as u8
}

/// The condition as opcodes encode it. Intel SDM Vol. 2D, "Encoding of Conditional Test (tttn) Field".
#[rustfmt::skip] // laid out like the SDM's table
fn condition(code: ConditionCode) -> u8 {
    match code {
        ConditionCode::None => 0,
        ConditionCode::o  => 0x0,
        ConditionCode::no => 0x1,
        ConditionCode::b  => 0x2,
        ConditionCode::ae => 0x3,
        ConditionCode::e  => 0x4,
        ConditionCode::ne => 0x5,
        ConditionCode::be => 0x6,
        ConditionCode::a  => 0x7,
        ConditionCode::s  => 0x8,
        ConditionCode::ns => 0x9,
        ConditionCode::p  => 0xa,
        ConditionCode::np => 0xb,
        ConditionCode::l  => 0xc,
        ConditionCode::ge => 0xd,
        ConditionCode::le => 0xe,
        ConditionCode::g  => 0xf,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_64_bit_mode_a_prefix_for_es_leaves_the_base_to_choose_the_segment() {
        let segment_of = |bits: u32, code: &[u8]| {
            let instruction = Decoder::new(bits, code, DecoderOptions::NONE).decode();
            segment(&instruction, instruction.memory_base())
        };
        let [es, ss, ds, fs] =
            [Register::ES, Register::SS, Register::DS, Register::FS].map(|r| r.number() as u8);
        // es: mov al, [rsp+rax]; es: mov al, [rax]; fs: mov al, [rsp]
        assert_eq!(segment_of(64, &[0x26, 0x8a, 0x04, 0x04]), ss);
        assert_eq!(segment_of(64, &[0x26, 0x8a, 0x00]), ds);
        assert_eq!(segment_of(64, &[0x64, 0x8a, 0x04, 0x24]), fs);
        // es: mov al, [esp]
        assert_eq!(segment_of(32, &[0x26, 0x8a, 0x04, 0x24]), es);
    }
}
