//! Shifts and rotations. Intel SDM Vol. 2, "SAL/SAR/SHL/SHR", "RCL/RCR/ROL/ROR", "SHLD", "SHRD".

use iced_x86::Mnemonic;

use crate::cpu::Cpu;
use crate::flags::{self, Shifted};
use crate::op::{Handler, Op};
use crate::registers::rflags::CF;
use crate::stop::Done;

pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Shl | Mnemonic::Sal => |cpu, op| shift(cpu, op, flags::shl),
        Mnemonic::Shr => |cpu, op| shift(cpu, op, flags::shr),
        Mnemonic::Sar => |cpu, op| shift(cpu, op, flags::sar),
        Mnemonic::Rol => |cpu, op| shift(cpu, op, flags::rol),
        Mnemonic::Ror => |cpu, op| shift(cpu, op, flags::ror),
        Mnemonic::Rcl => |cpu, op| through_carry(cpu, op, flags::rcl),
        Mnemonic::Rcr => |cpu, op| through_carry(cpu, op, flags::rcr),
        Mnemonic::Shld => |cpu, op| double(cpu, op, flags::shld),
        Mnemonic::Shrd => |cpu, op| double(cpu, op, flags::shrd),
        _ => return None,
    })
}

#[inline(always)]
fn shift(cpu: &mut Cpu, op: &Op, compute: impl Fn(u8, u64, u64) -> Shifted) -> Done {
    let value = cpu.get_to_change(op, op.first())?;
    let by = cpu.get(op, op.second())?;
    finish(cpu, op, &compute(op.size(), value, by))
}

fn through_carry(cpu: &mut Cpu, op: &Op, compute: impl Fn(u8, u64, u64, u64) -> Shifted) -> Done {
    let carry = cpu.rflags & CF;
    shift(cpu, op, |size, value, by| compute(size, value, by, carry))
}

fn double(cpu: &mut Cpu, op: &Op, compute: impl Fn(u8, u64, u64, u64) -> Shifted) -> Done {
    let value = cpu.get_to_change(op, op.first())?;
    let filler = cpu.get(op, op.second())?;
    let by = cpu.get(op, op.operands[2])?;
    finish(cpu, op, &compute(op.size(), value, filler, by))
}

#[inline(always)]
fn finish(cpu: &mut Cpu, op: &Op, shifted: &Shifted) -> Done {
    cpu.set(op, op.first(), shifted.result)?;
    cpu.set_flags(shifted.flags, shifted.changed);
    Ok(())
}
