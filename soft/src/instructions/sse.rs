//! SSE and SSE2, as far as they use no MMX register: moves, logic, integers, floating-point numbers, and
//! the state's saving. Intel SDM Vol. 2, each by its name.

mod float;
mod lanes;
mod state;

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::op::{Handler, Op, Operand, Place};
use crate::paging::Intent;
use crate::registers::{cr0, cr4};
use crate::stop::{Done, Fault, Missing, Stop};

pub fn handler(instruction: &Instruction) -> Option<Handler> {
    let mnemonic = instruction.mnemonic();
    Some(match mnemonic {
        Mnemonic::Movaps | Mnemonic::Movapd | Mnemonic::Movdqa => move_aligned,
        Mnemonic::Movntps | Mnemonic::Movntpd | Mnemonic::Movntdq => move_aligned,
        Mnemonic::Movups | Mnemonic::Movupd | Mnemonic::Movdqu => move_unaligned,
        Mnemonic::Movss => |cpu, op| move_scalar(cpu, op, 4),
        Mnemonic::Movsd => |cpu, op| move_scalar(cpu, op, 8),
        Mnemonic::Movd | Mnemonic::Movq => move_low,
        Mnemonic::Movnti => |cpu, op| {
            let value = cpu.get(op, op.second())?;
            cpu.set(op, op.first(), value)
        },
        Mnemonic::Movlps | Mnemonic::Movlpd => |cpu, op| move_half(cpu, op, 0),
        Mnemonic::Movhps | Mnemonic::Movhpd => |cpu, op| move_half(cpu, op, 64),
        Mnemonic::Movhlps => |cpu, op| combine(cpu, op, |a, b| a & !u128::from(u64::MAX) | b >> 64),
        Mnemonic::Movlhps => |cpu, op| combine(cpu, op, |a, b| a & u128::from(u64::MAX) | b << 64),
        Mnemonic::Ldmxcsr => state::load_control,
        Mnemonic::Stmxcsr => state::store_control,
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => state::save,
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => state::restore,
        _ => return lanes::handler(mnemonic).or_else(|| float::handler(mnemonic)),
    })
}

/// Whether SSE is on. Intel SDM Vol. 2A, "Type 4 Class Exception Conditions" and, for legacy SSE, Vol. 3A,
/// "Providing Operating System Support for SSE Extensions".
///
/// # Errors
/// #UD where CR0.EM is set or CR4.OSFXSR is not, #NM where CR0.TS is set.
fn need_sse(cpu: &Cpu) -> Done {
    if cpu.cr0 & cr0::EM != 0 || !cpu.cr4_has(cr4::OSFXSR) {
        return Err(Fault::INVALID_OPCODE.into());
    }
    if cpu.cr0 & cr0::TS != 0 {
        return Err(Fault::DEVICE_NOT_AVAILABLE.into());
    }
    Ok(())
}

/// The 16 bytes of an operand; in memory they are aligned, or #GP(0).
fn get(cpu: &mut Cpu, op: &Op, operand: Operand, aligned: bool) -> Result<u128, Stop> {
    match operand.place {
        Place::Xmm => Ok(cpu.xmm[usize::from(operand.number)]),
        Place::Memory => {
            let linear = address(cpu, op, Intent::Read, aligned)?;
            cpu.read_128(linear, cpu.user())
        }
        // An MMX register.
        _ => Err(Stop::Missing(Missing::Instruction)),
    }
}

fn set(cpu: &mut Cpu, op: &Op, operand: Operand, value: u128, aligned: bool) -> Done {
    match operand.place {
        Place::Xmm => {
            cpu.xmm[usize::from(operand.number)] = value;
            Ok(())
        }
        Place::Memory => {
            let linear = address(cpu, op, Intent::Write, aligned)?;
            cpu.write_128(linear, value, cpu.user())
        }
        _ => Err(Stop::Missing(Missing::Instruction)),
    }
}

fn address(cpu: &Cpu, op: &Op, intent: Intent, aligned: bool) -> Result<u64, Stop> {
    let linear = cpu.operand_address(op, 16, intent)?;
    if aligned && linear & 0xf != 0 {
        return Err(Fault::general_protection(0).into());
    }
    if !aligned {
        cpu.check_alignment(linear, 16)?;
    }
    Ok(linear)
}

/// The first operand, a register, becomes what `compute` makes of both.
fn combine(cpu: &mut Cpu, op: &Op, compute: impl Fn(u128, u128) -> u128) -> Done {
    need_sse(cpu)?;
    let a = get(cpu, op, op.first(), true)?;
    let b = get(cpu, op, op.second(), true)?;
    set(cpu, op, op.first(), compute(a, b), true)
}

fn move_aligned(cpu: &mut Cpu, op: &Op) -> Done {
    need_sse(cpu)?;
    let value = get(cpu, op, op.second(), true)?;
    set(cpu, op, op.first(), value, true)
}

fn move_unaligned(cpu: &mut Cpu, op: &Op) -> Done {
    need_sse(cpu)?;
    let value = get(cpu, op, op.second(), false)?;
    set(cpu, op, op.first(), value, false)
}

/// The lowest `size` bytes. Between registers the rest stays, from memory it becomes 0.
fn move_scalar(cpu: &mut Cpu, op: &Op, size: u8) -> Done {
    need_sse(cpu)?;
    let mask = u128::from(crate::flags::mask(size));
    match (op.first().place, op.second().place) {
        (Place::Xmm, Place::Xmm) => {
            let value = cpu.xmm[usize::from(op.second().number)] & mask;
            let register = &mut cpu.xmm[usize::from(op.first().number)];
            *register = *register & !mask | value;
            Ok(())
        }
        (Place::Xmm, _) => {
            let value = cpu.get(op, op.second())?;
            cpu.xmm[usize::from(op.first().number)] = u128::from(value);
            Ok(())
        }
        _ => {
            let value = cpu.xmm[usize::from(op.second().number)] & mask;
            cpu.set(op, op.first(), value as u64)
        }
    }
}

/// MOVD and MOVQ: 4 or 8 bytes, and zeros above them in a register.
fn move_low(cpu: &mut Cpu, op: &Op) -> Done {
    need_sse(cpu)?;
    let value = match op.second().place {
        Place::Xmm => cpu.xmm[usize::from(op.second().number)] as u64,
        Place::Unknown => return Err(Stop::Missing(Missing::Instruction)),
        _ => cpu.get(op, op.second())?,
    };
    match op.first().place {
        Place::Xmm => {
            cpu.xmm[usize::from(op.first().number)] = u128::from(value);
            Ok(())
        }
        Place::Unknown => Err(Stop::Missing(Missing::Instruction)),
        _ => cpu.set(op, op.first(), value),
    }
}

/// 8 bytes of memory with the half of a register that starts at bit `at`.
fn move_half(cpu: &mut Cpu, op: &Op, at: u32) -> Done {
    need_sse(cpu)?;
    if op.first().place != Place::Xmm {
        let value = cpu.xmm[usize::from(op.second().number)] >> at;
        return cpu.set(op, op.first(), value as u64);
    }
    let value = u128::from(cpu.get(op, op.second())?);
    let register = &mut cpu.xmm[usize::from(op.first().number)];
    *register = *register & !(u128::from(u64::MAX) << at) | value << at;
    Ok(())
}
