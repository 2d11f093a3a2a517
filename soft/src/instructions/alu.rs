//! Addition, subtraction, logic and comparison. Intel SDM Vol. 2, each by its name.

use iced_x86::Mnemonic;

use crate::cpu::Cpu;
use crate::flags::{add, mask, of_result, sub};
use crate::op::{Handler, Op, Place};
use crate::registers::rflags::{AF, CF, OF, STATUS, ZF};
use crate::stop::Done;

pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Add => add_without_carry,
        Mnemonic::Adc => add_with_carry,
        Mnemonic::Sub => sub_without_borrow,
        Mnemonic::Sbb => sub_with_borrow,
        Mnemonic::Cmp => compare,
        Mnemonic::And => and,
        Mnemonic::Or => or,
        Mnemonic::Xor => xor,
        Mnemonic::Test => test,
        Mnemonic::Inc => increment,
        Mnemonic::Dec => decrement,
        Mnemonic::Neg => negate,
        Mnemonic::Not => not,
        Mnemonic::Xadd => exchange_add,
        Mnemonic::Cmpxchg => compare_exchange,
        Mnemonic::Cmpxchg8b => compare_exchange_8,
        Mnemonic::Cmpxchg16b => compare_exchange_16,
        Mnemonic::Aaa => decimal::aaa,
        Mnemonic::Aas => decimal::aas,
        Mnemonic::Aam => decimal::aam,
        Mnemonic::Aad => decimal::aad,
        Mnemonic::Daa => decimal::daa,
        Mnemonic::Das => decimal::das,
        _ => return None,
    })
}

/// destination = result of `compute`, which also gives the flags.
#[inline(always)]
fn binary(cpu: &mut Cpu, op: &Op, compute: impl Fn(u8, u64, u64) -> (u64, u64)) -> Done {
    let a = cpu.get_to_change(op, op.first())?;
    let b = cpu.get(op, op.second())?;
    let (result, flags) = compute(op.size(), a, b);
    cpu.set(op, op.first(), result)?;
    cpu.set_flags(flags, STATUS);
    Ok(())
}

fn add_without_carry(cpu: &mut Cpu, op: &Op) -> Done {
    binary(cpu, op, |size, a, b| add(size, a, b, 0))
}

fn add_with_carry(cpu: &mut Cpu, op: &Op) -> Done {
    let carry = cpu.rflags & CF;
    binary(cpu, op, |size, a, b| add(size, a, b, carry))
}

fn sub_without_borrow(cpu: &mut Cpu, op: &Op) -> Done {
    binary(cpu, op, |size, a, b| sub(size, a, b, 0))
}

fn sub_with_borrow(cpu: &mut Cpu, op: &Op) -> Done {
    let borrow = cpu.rflags & CF;
    binary(cpu, op, |size, a, b| sub(size, a, b, borrow))
}

fn and(cpu: &mut Cpu, op: &Op) -> Done {
    binary(cpu, op, |size, a, b| (a & b, of_result(size, a & b)))
}

fn or(cpu: &mut Cpu, op: &Op) -> Done {
    binary(cpu, op, |size, a, b| (a | b, of_result(size, a | b)))
}

fn xor(cpu: &mut Cpu, op: &Op) -> Done {
    binary(cpu, op, |size, a, b| (a ^ b, of_result(size, a ^ b)))
}

fn compare(cpu: &mut Cpu, op: &Op) -> Done {
    let a = cpu.get(op, op.first())?;
    let b = cpu.get(op, op.second())?;
    cpu.set_flags(sub(op.size(), a, b, 0).1, STATUS);
    Ok(())
}

fn test(cpu: &mut Cpu, op: &Op) -> Done {
    let a = cpu.get(op, op.first())?;
    let b = cpu.get(op, op.second())?;
    cpu.set_flags(of_result(op.size(), a & b), STATUS);
    Ok(())
}

/// CF stays as it is.
fn increment(cpu: &mut Cpu, op: &Op) -> Done {
    let a = cpu.get_to_change(op, op.first())?;
    let (result, flags) = add(op.size(), a, 1, 0);
    cpu.set(op, op.first(), result)?;
    cpu.set_flags(flags, STATUS & !CF);
    Ok(())
}

fn decrement(cpu: &mut Cpu, op: &Op) -> Done {
    let a = cpu.get_to_change(op, op.first())?;
    let (result, flags) = sub(op.size(), a, 1, 0);
    cpu.set(op, op.first(), result)?;
    cpu.set_flags(flags, STATUS & !CF);
    Ok(())
}

fn negate(cpu: &mut Cpu, op: &Op) -> Done {
    let a = cpu.get_to_change(op, op.first())?;
    let (result, flags) = sub(op.size(), 0, a, 0);
    cpu.set(op, op.first(), result)?;
    cpu.set_flags(flags, STATUS);
    Ok(())
}

/// No flags.
fn not(cpu: &mut Cpu, op: &Op) -> Done {
    let a = cpu.get_to_change(op, op.first())?;
    cpu.set(op, op.first(), !a & mask(op.size()))
}

fn exchange_add(cpu: &mut Cpu, op: &Op) -> Done {
    let a = cpu.get_to_change(op, op.first())?;
    let b = cpu.get(op, op.second())?;
    let (result, flags) = add(op.size(), a, b, 0);
    // Where both operands are one register, the sum stays.
    if op.first().place == Place::Memory {
        cpu.set(op, op.first(), result)?;
        cpu.set(op, op.second(), a)?;
    } else {
        cpu.set(op, op.second(), a)?;
        cpu.set(op, op.first(), result)?;
    }
    cpu.set_flags(flags, STATUS);
    Ok(())
}

/// Memory is written either way: with the source, or with itself. A register that is not equal stays
/// whole, its upper half too.
fn compare_exchange(cpu: &mut Cpu, op: &Op) -> Done {
    let (size, old) = (op.size(), cpu.get_to_change(op, op.first())?);
    let new = cpu.get(op, op.second())?;
    let expected = cpu.accumulator(size);
    let flags = sub(size, expected, old, 0).1;
    if flags & ZF != 0 {
        cpu.set(op, op.first(), new)?;
    } else {
        if op.first().place == Place::Memory {
            cpu.set(op, op.first(), old)?;
        }
        cpu.set_register(crate::cpu::gpr::RAX, size, old);
    }
    cpu.set_flags(flags, STATUS);
    Ok(())
}

/// EDX:EAX with 8 bytes of memory, ECX:EBX into it.
fn compare_exchange_8(cpu: &mut Cpu, op: &Op) -> Done {
    use crate::cpu::gpr::{RAX, RBX, RCX, RDX};
    let old = cpu.get_to_change(op, op.first())?;
    let pair = |cpu: &Cpu, high, low| cpu.register(high, 4) << 32 | cpu.register(low, 4);
    let equal = pair(cpu, RDX, RAX) == old;
    let new = if equal { pair(cpu, RCX, RBX) } else { old };
    cpu.set(op, op.first(), new)?;
    if !equal {
        cpu.set_register(RAX, 4, old);
        cpu.set_register(RDX, 4, old >> 32);
    }
    cpu.set_flag(ZF, equal);
    Ok(())
}

/// RDX:RAX with 16 bytes of memory, which must be aligned: #GP(0) otherwise.
fn compare_exchange_16(cpu: &mut Cpu, op: &Op) -> Done {
    use crate::cpu::gpr::{RAX, RBX, RCX, RDX};
    let linear = cpu.operand_address(op, 16, crate::paging::Intent::Write)?;
    if linear & 0xf != 0 {
        return Err(crate::stop::Fault::general_protection(0).into());
    }
    let user = cpu.user();
    cpu.probe_write(linear, 8, user)?;
    let old = cpu.read_128(linear, user)?;
    let pair =
        |cpu: &Cpu, high: usize, low: usize| u128::from(cpu.gpr[high]) << 64 | u128::from(cpu.gpr[low]);
    let equal = pair(cpu, RDX, RAX) == old;
    let new = if equal { pair(cpu, RCX, RBX) } else { old };
    cpu.write_128(linear, new, user)?;
    if !equal {
        (cpu.gpr[RAX], cpu.gpr[RDX]) = (old as u64, (old >> 64) as u64);
    }
    cpu.set_flag(ZF, equal);
    Ok(())
}

/// The decimal adjustments, as the manual's "Operation" sections put them.
mod decimal {
    use super::*;
    use crate::cpu::gpr::RAX;
    use crate::stop::Fault;

    fn al(cpu: &Cpu) -> u64 {
        cpu.register(RAX, 1)
    }

    pub fn aaa(cpu: &mut Cpu, _: &Op) -> Done {
        let adjust = al(cpu) & 0xf > 9 || cpu.flag(AF);
        let ax = cpu.register(RAX, 2);
        finish_ascii(cpu, if adjust { ax.wrapping_add(0x106) } else { ax }, adjust);
        Ok(())
    }

    pub fn aas(cpu: &mut Cpu, _: &Op) -> Done {
        let adjust = al(cpu) & 0xf > 9 || cpu.flag(AF);
        let ax = cpu.register(RAX, 2);
        // AX less 6, then AH less 1.
        finish_ascii(cpu, if adjust { ax.wrapping_sub(6).wrapping_sub(0x100) } else { ax }, adjust);
        Ok(())
    }

    fn finish_ascii(cpu: &mut Cpu, ax: u64, adjusted: bool) {
        cpu.set_register(RAX, 2, ax & 0xff0f);
        let flags = if adjusted { AF | CF } else { 0 };
        cpu.set_flags(flags, AF | CF);
    }

    pub fn aam(cpu: &mut Cpu, op: &Op) -> Done {
        let base = op.immediate & 0xff;
        if base == 0 {
            return Err(Fault::DIVIDE_ERROR.into());
        }
        let al = al(cpu);
        let (tens, ones) = (al / base, al % base);
        cpu.set_register(RAX, 2, tens << 8 | ones);
        cpu.set_flags(of_result(1, ones), STATUS);
        Ok(())
    }

    pub fn aad(cpu: &mut Cpu, op: &Op) -> Done {
        let ax = cpu.register(RAX, 2);
        let result = (ax >> 8).wrapping_mul(op.immediate & 0xff).wrapping_add(ax) & 0xff;
        cpu.set_register(RAX, 2, result);
        cpu.set_flags(of_result(1, result), STATUS);
        Ok(())
    }

    pub fn daa(cpu: &mut Cpu, _: &Op) -> Done {
        let (old, low, high) = digits(cpu);
        let result = old + if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
        finish_decimal(cpu, result, low, high);
        Ok(())
    }

    pub fn das(cpu: &mut Cpu, _: &Op) -> Done {
        let (old, low, high) = digits(cpu);
        let result = old.wrapping_sub(if low { 6 } else { 0 }).wrapping_sub(if high { 0x60 } else { 0 });
        // The low digit's adjustment may borrow too.
        finish_decimal(cpu, result, low, high || low && old < 6);
        Ok(())
    }

    /// AL, and whether its low and its high digit must be adjusted.
    fn digits(cpu: &Cpu) -> (u64, bool, bool) {
        let old = al(cpu);
        (old, old & 0xf > 9 || cpu.flag(AF), old > 0x99 || cpu.flag(CF))
    }

    fn finish_decimal(cpu: &mut Cpu, result: u64, low: bool, carry: bool) {
        cpu.set_register(RAX, 1, result);
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        cpu.set_flags(of_result(1, result & 0xff) | flag(low, AF) | flag(carry, CF), STATUS & !OF);
    }
}
