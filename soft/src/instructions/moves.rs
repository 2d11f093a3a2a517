//! Moving data: MOV, extension, exchange, addresses. Intel SDM Vol. 2, each by its name.

use iced_x86::Mnemonic;

use crate::cpu::{Cpu, gpr};
use crate::flags::{mask, sign_bit, sign_extend};
use crate::op::{Handler, Op, Place};
use crate::stop::{Done, Fault};

pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Mov => mov,
        Mnemonic::Movzx => move_zero_extended,
        Mnemonic::Movsx | Mnemonic::Movsxd => move_sign_extended,
        Mnemonic::Movbe => move_big_endian,
        Mnemonic::Lea => load_effective_address,
        Mnemonic::Xchg => exchange,
        Mnemonic::Bswap => byte_swap,
        Mnemonic::Xlatb => translate_byte,
        Mnemonic::Cbw => |cpu, _| extend_accumulator(cpu, 1),
        Mnemonic::Cwde => |cpu, _| extend_accumulator(cpu, 2),
        Mnemonic::Cdqe => |cpu, _| extend_accumulator(cpu, 4),
        Mnemonic::Cwd => |cpu, _| sign_into_rdx(cpu, 2),
        Mnemonic::Cdq => |cpu, _| sign_into_rdx(cpu, 4),
        Mnemonic::Cqo => |cpu, _| sign_into_rdx(cpu, 8),
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => load_far_pointer,
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Pause
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Lfence
        | Mnemonic::Mfence
        | Mnemonic::Sfence
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw => |_, _| Ok(()),
        _ if conditional_move(mnemonic) => move_if,
        _ => return None,
    })
}

fn conditional_move(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Cmova
            | Mnemonic::Cmovae
            | Mnemonic::Cmovb
            | Mnemonic::Cmovbe
            | Mnemonic::Cmove
            | Mnemonic::Cmovg
            | Mnemonic::Cmovge
            | Mnemonic::Cmovl
            | Mnemonic::Cmovle
            | Mnemonic::Cmovne
            | Mnemonic::Cmovno
            | Mnemonic::Cmovnp
            | Mnemonic::Cmovns
            | Mnemonic::Cmovo
            | Mnemonic::Cmovp
            | Mnemonic::Cmovs
    )
}

fn mov(cpu: &mut Cpu, op: &Op) -> Done {
    match (op.first().place, op.second().place) {
        (Place::Segment, _) => {
            let selector = cpu.get(op, op.second())? as u16;
            cpu.load_segment_register(usize::from(op.first().number), selector)
        }
        (Place::Control | Place::Debug, _) | (_, Place::Control | Place::Debug) => {
            super::control::mov(cpu, op)
        }
        _ => {
            let value = cpu.get(op, op.second())?;
            cpu.set(op, op.first(), value)
        }
    }
}

fn move_zero_extended(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.get(op, op.second())?;
    cpu.set(op, op.first(), value)
}

fn move_sign_extended(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.get(op, op.second())?;
    cpu.set(op, op.first(), sign_extend(op.second().size, value))
}

fn move_big_endian(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.get(op, op.second())?;
    let unused = 64 - 8 * u32::from(op.size());
    cpu.set(op, op.first(), value.swap_bytes() >> unused)
}

fn load_effective_address(cpu: &mut Cpu, op: &Op) -> Done {
    let offset = cpu.offset(op);
    cpu.set(op, op.first(), offset)
}

/// With a memory operand the exchange is locked, prefix or not.
fn exchange(cpu: &mut Cpu, op: &Op) -> Done {
    let a = cpu.get_to_change(op, op.first())?;
    let b = cpu.get_to_change(op, op.second())?;
    cpu.set(op, op.first(), b)?;
    cpu.set(op, op.second(), a)
}

/// Of 16 bits the manual leaves it undefined; the CPUs store zero.
fn byte_swap(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.get(op, op.first())?;
    let swapped = match op.size() {
        8 => value.swap_bytes(),
        4 => u64::from((value as u32).swap_bytes()),
        _ => 0,
    };
    cpu.set(op, op.first(), swapped)
}

/// AL = [BX + AL]
fn translate_byte(cpu: &mut Cpu, op: &Op) -> Done {
    let address = &op.address;
    let offset = cpu.gpr[gpr::RBX].wrapping_add(cpu.accumulator(1)) & address.mask;
    let value = cpu.read_at(usize::from(address.segment), offset, 1)?;
    cpu.set_register(gpr::RAX, 1, value);
    Ok(())
}

fn extend_accumulator(cpu: &mut Cpu, from: u8) -> Done {
    let value = sign_extend(from, cpu.accumulator(from));
    cpu.set_register(gpr::RAX, from * 2, value);
    Ok(())
}

fn sign_into_rdx(cpu: &mut Cpu, size: u8) -> Done {
    let negative = cpu.accumulator(size) >> sign_bit(size) != 0;
    cpu.set_register(gpr::RDX, size, if negative { mask(size) } else { 0 });
    Ok(())
}

fn move_if(cpu: &mut Cpu, op: &Op) -> Done {
    // The source is read, and may fault, either way; and a 32-bit destination loses its upper half.
    let value = cpu.get(op, op.second())?;
    let old = cpu.get(op, op.first())?;
    let value = if cpu.condition(op.condition) { value } else { old };
    cpu.set(op, op.first(), value)
}

/// LDS and the like: an offset, and a selector behind it.
fn load_far_pointer(cpu: &mut Cpu, op: &Op) -> Done {
    if op.second().place != Place::Memory {
        return Err(Fault::INVALID_OPCODE.into());
    }
    let (size, segment) = (op.size(), usize::from(op.address.segment));
    let at = cpu.offset(op);
    let offset = cpu.read_at(segment, at, size)?;
    let selector = cpu.read_at(segment, at.wrapping_add(u64::from(size)) & op.address.mask, 2)? as u16;
    let register = match op.instruction.mnemonic() {
        Mnemonic::Les => crate::cpu::seg::ES,
        Mnemonic::Lss => crate::cpu::seg::SS,
        Mnemonic::Lds => crate::cpu::seg::DS,
        Mnemonic::Lfs => crate::cpu::seg::FS,
        _ => crate::cpu::seg::GS,
    };
    cpu.load_segment_register(register, selector)?;
    cpu.set(op, op.first(), offset)
}
