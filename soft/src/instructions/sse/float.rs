//! SSE's and SSE2's arithmetic, comparisons and conversions. What they compute is in
//! [`crate::float`]; here are their operands, and what becomes of MXCSR's flags.

use iced_x86::Mnemonic;

use super::{get, need_sse};
use crate::cpu::Cpu;
use crate::float::{self, DOUBLE, Environment, Format, Order, SINGLE, mxcsr};
use crate::op::{Handler, Op, Place};
use crate::registers::{cr4, rflags};
use crate::stop::{Done, Fault, Stop};

/// Two numbers to one.
type Compute = fn(&mut Environment, Format, u64, u64) -> u64;

#[rustfmt::skip] // an operation a line
pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Addps => |cpu, op| packed(cpu, op, SINGLE, float::add),
        Mnemonic::Addpd => |cpu, op| packed(cpu, op, DOUBLE, float::add),
        Mnemonic::Addss => |cpu, op| scalar(cpu, op, SINGLE, float::add),
        Mnemonic::Addsd => |cpu, op| scalar(cpu, op, DOUBLE, float::add),
        Mnemonic::Subps => |cpu, op| packed(cpu, op, SINGLE, float::subtract),
        Mnemonic::Subpd => |cpu, op| packed(cpu, op, DOUBLE, float::subtract),
        Mnemonic::Subss => |cpu, op| scalar(cpu, op, SINGLE, float::subtract),
        Mnemonic::Subsd => |cpu, op| scalar(cpu, op, DOUBLE, float::subtract),
        Mnemonic::Mulps => |cpu, op| packed(cpu, op, SINGLE, float::multiply),
        Mnemonic::Mulpd => |cpu, op| packed(cpu, op, DOUBLE, float::multiply),
        Mnemonic::Mulss => |cpu, op| scalar(cpu, op, SINGLE, float::multiply),
        Mnemonic::Mulsd => |cpu, op| scalar(cpu, op, DOUBLE, float::multiply),
        Mnemonic::Divps => |cpu, op| packed(cpu, op, SINGLE, float::divide),
        Mnemonic::Divpd => |cpu, op| packed(cpu, op, DOUBLE, float::divide),
        Mnemonic::Divss => |cpu, op| scalar(cpu, op, SINGLE, float::divide),
        Mnemonic::Divsd => |cpu, op| scalar(cpu, op, DOUBLE, float::divide),
        Mnemonic::Sqrtps => |cpu, op| packed(cpu, op, SINGLE, float::square_root),
        Mnemonic::Sqrtpd => |cpu, op| packed(cpu, op, DOUBLE, float::square_root),
        Mnemonic::Sqrtss => |cpu, op| scalar(cpu, op, SINGLE, float::square_root),
        Mnemonic::Sqrtsd => |cpu, op| scalar(cpu, op, DOUBLE, float::square_root),
        Mnemonic::Rcpps => |cpu, op| packed(cpu, op, SINGLE, reciprocal),
        Mnemonic::Rcpss => |cpu, op| scalar(cpu, op, SINGLE, reciprocal),
        Mnemonic::Rsqrtps => |cpu, op| packed(cpu, op, SINGLE, reciprocal_root),
        Mnemonic::Rsqrtss => |cpu, op| scalar(cpu, op, SINGLE, reciprocal_root),
        Mnemonic::Minps => |cpu, op| packed(cpu, op, SINGLE, float::minimum),
        Mnemonic::Minpd => |cpu, op| packed(cpu, op, DOUBLE, float::minimum),
        Mnemonic::Minss => |cpu, op| scalar(cpu, op, SINGLE, float::minimum),
        Mnemonic::Minsd => |cpu, op| scalar(cpu, op, DOUBLE, float::minimum),
        Mnemonic::Maxps => |cpu, op| packed(cpu, op, SINGLE, float::maximum),
        Mnemonic::Maxpd => |cpu, op| packed(cpu, op, DOUBLE, float::maximum),
        Mnemonic::Maxss => |cpu, op| scalar(cpu, op, SINGLE, float::maximum),
        Mnemonic::Maxsd => |cpu, op| scalar(cpu, op, DOUBLE, float::maximum),
        Mnemonic::Cmpps => |cpu, op| packed(cpu, op, SINGLE, predicate(op)),
        Mnemonic::Cmppd => |cpu, op| packed(cpu, op, DOUBLE, predicate(op)),
        Mnemonic::Cmpss => |cpu, op| scalar(cpu, op, SINGLE, predicate(op)),
        Mnemonic::Cmpsd => |cpu, op| scalar(cpu, op, DOUBLE, predicate(op)),
        Mnemonic::Ucomiss => |cpu, op| compare(cpu, op, SINGLE, false),
        Mnemonic::Ucomisd => |cpu, op| compare(cpu, op, DOUBLE, false),
        Mnemonic::Comiss => |cpu, op| compare(cpu, op, SINGLE, true),
        Mnemonic::Comisd => |cpu, op| compare(cpu, op, DOUBLE, true),
        Mnemonic::Cvtsi2ss => |cpu, op| from_register(cpu, op, SINGLE),
        Mnemonic::Cvtsi2sd => |cpu, op| from_register(cpu, op, DOUBLE),
        Mnemonic::Cvtss2si => |cpu, op| to_register(cpu, op, SINGLE, false),
        Mnemonic::Cvtsd2si => |cpu, op| to_register(cpu, op, DOUBLE, false),
        Mnemonic::Cvttss2si => |cpu, op| to_register(cpu, op, SINGLE, true),
        Mnemonic::Cvttsd2si => |cpu, op| to_register(cpu, op, DOUBLE, true),
        Mnemonic::Cvtss2sd => |cpu, op| scalar_to(cpu, op, SINGLE, DOUBLE),
        Mnemonic::Cvtsd2ss => |cpu, op| scalar_to(cpu, op, DOUBLE, SINGLE),
        Mnemonic::Cvtps2pd => |cpu, op| convert(cpu, op, 32, 64, |env, x| float::to_format(env, SINGLE, DOUBLE, x)),
        Mnemonic::Cvtpd2ps => |cpu, op| convert(cpu, op, 64, 32, |env, x| float::to_format(env, DOUBLE, SINGLE, x)),
        Mnemonic::Cvtdq2ps => |cpu, op| convert(cpu, op, 32, 32, |env, x| float::from_integer(env, SINGLE, signed(x))),
        Mnemonic::Cvtdq2pd => |cpu, op| convert(cpu, op, 32, 64, |env, x| float::from_integer(env, DOUBLE, signed(x))),
        Mnemonic::Cvtps2dq => |cpu, op| convert(cpu, op, 32, 32, |env, x| float::to_integer(env, SINGLE, x, 32, false)),
        Mnemonic::Cvttps2dq => |cpu, op| convert(cpu, op, 32, 32, |env, x| float::to_integer(env, SINGLE, x, 32, true)),
        Mnemonic::Cvtpd2dq => |cpu, op| convert(cpu, op, 64, 32, |env, x| float::to_integer(env, DOUBLE, x, 32, false)),
        Mnemonic::Cvttpd2dq => |cpu, op| convert(cpu, op, 64, 32, |env, x| float::to_integer(env, DOUBLE, x, 32, true)),
        _ => return None,
    })
}

/// 1.0
const ONE: u64 = 0x3f80_0000;
/// To nearest, denormals as zeros, both ways; every exception masked.
const APPROXIMATION: u32 = mxcsr::FZ | mxcsr::DAZ | 0x3f << mxcsr::MASKS;

/// CPUs approximate it, each in its own way, to 12 bits; more is allowed. No flag is raised, and MXCSR does
/// not matter. Intel SDM Vol. 2B, "RCPPS—Compute Reciprocals of Packed Single Precision Floating-Point
/// Values".
fn reciprocal(_: &mut Environment, format: Format, _: u64, b: u64) -> u64 {
    float::divide(&mut Environment::new(APPROXIMATION), format, ONE, b)
}

/// The same of the square root.
fn reciprocal_root(_: &mut Environment, format: Format, _: u64, b: u64) -> u64 {
    let mut env = Environment::new(APPROXIMATION);
    let root = float::square_root(&mut env, format, 0, b);
    float::divide(&mut env, format, ONE, root)
}

fn signed(value: u64) -> i64 {
    i64::from(value as u32 as i32)
}

/// MXCSR gets the flags. One that is not masked is #XM, or #UD where CR4.OSXMMEXCPT is not set, and the
/// destination stays; what is found before computing keeps the rest from being found. Intel SDM Vol. 1,
/// "Handling SIMD Floating-Point Exceptions in Software".
fn settle(cpu: &mut Cpu, mut env: Environment) -> Done {
    if env.unmasked() & mxcsr::BEFORE != 0 {
        env.flags &= mxcsr::BEFORE;
    }
    cpu.mxcsr |= env.flags;
    if env.unmasked() == 0 {
        return Ok(());
    }
    let fault = if cpu.cr4_has(cr4::OSXMMEXCPT) { Fault::SIMD } else { Fault::INVALID_OPCODE };
    Err(fault.into())
}

fn mask(bits: u32) -> u128 {
    u128::MAX >> (128 - bits)
}

/// Every lane of both operands.
fn packed(cpu: &mut Cpu, op: &Op, format: Format, compute: Compute) -> Done {
    need_sse(cpu)?;
    let a = get(cpu, op, op.first(), true)?;
    let b = get(cpu, op, op.second(), true)?;
    let (bits, mut env) = (format.bits(), Environment::new(cpu.mxcsr));
    let mut result = 0;
    for at in (0..128).step_by(bits as usize) {
        let lane = |value: u128| (value >> at & mask(bits)) as u64;
        result |= u128::from(compute(&mut env, format, lane(a), lane(b))) << at;
    }
    settle(cpu, env)?;
    super::set(cpu, op, op.first(), result, true)
}

/// The lowest lane of the second operand, which in memory is not more than that.
fn low(cpu: &mut Cpu, op: &Op, bits: u32) -> Result<u64, Stop> {
    match op.second().place {
        Place::Xmm => Ok((cpu.xmm[usize::from(op.second().number)] & mask(bits)) as u64),
        _ => cpu.get(op, op.second()),
    }
}

/// Replaces the lowest lane of the first operand.
fn set_low(cpu: &mut Cpu, op: &Op, bits: u32, value: u64) {
    let register = &mut cpu.xmm[usize::from(op.first().number)];
    *register = *register & !mask(bits) | u128::from(value);
}

/// The lowest lanes; the rest of the first operand stays.
fn scalar(cpu: &mut Cpu, op: &Op, format: Format, compute: Compute) -> Done {
    need_sse(cpu)?;
    let (bits, mut env) = (format.bits(), Environment::new(cpu.mxcsr));
    let b = low(cpu, op, bits)?;
    let a = (cpu.xmm[usize::from(op.first().number)] & mask(bits)) as u64;
    let result = compute(&mut env, format, a, b);
    settle(cpu, env)?;
    set_low(cpu, op, bits, result);
    Ok(())
}

/// Ones where the predicate holds: EQ, LT, LE, UNORD and their opposites. LT and LE, and their opposites,
/// find a quiet NaN invalid. Intel SDM Vol. 2A, "CMPPS—Compare Packed Single Precision Floating-Point
/// Values".
fn predicate(op: &Op) -> Compute {
    fn holds(env: &mut Environment, format: Format, orders: &[Order], signals: bool, a: u64, b: u64) -> u64 {
        let order = float::compare(env, format, a, b, signals);
        if orders.contains(&order) { u64::MAX >> (64 - format.bits()) } else { 0 }
    }
    use Order::{Equal, Greater, Less, Unordered};
    match op.immediate & 7 {
        0 => |env, format, a, b| holds(env, format, &[Equal], false, a, b),
        1 => |env, format, a, b| holds(env, format, &[Less], true, a, b),
        2 => |env, format, a, b| holds(env, format, &[Less, Equal], true, a, b),
        3 => |env, format, a, b| holds(env, format, &[Unordered], false, a, b),
        4 => |env, format, a, b| holds(env, format, &[Less, Greater, Unordered], false, a, b),
        5 => |env, format, a, b| holds(env, format, &[Equal, Greater, Unordered], true, a, b),
        6 => |env, format, a, b| holds(env, format, &[Greater, Unordered], true, a, b),
        _ => |env, format, a, b| holds(env, format, &[Less, Equal, Greater], false, a, b),
    }
}

/// To ZF, PF and CF; the other flags of arithmetic become 0.
fn compare(cpu: &mut Cpu, op: &Op, format: Format, signals: bool) -> Done {
    need_sse(cpu)?;
    let (bits, mut env) = (format.bits(), Environment::new(cpu.mxcsr));
    let b = low(cpu, op, bits)?;
    let a = (cpu.xmm[usize::from(op.first().number)] & mask(bits)) as u64;
    let order = float::compare(&mut env, format, a, b, signals);
    settle(cpu, env)?;
    let flags = match order {
        Order::Greater => 0,
        Order::Less => rflags::CF,
        Order::Equal => rflags::ZF,
        Order::Unordered => rflags::ZF | rflags::PF | rflags::CF,
    };
    cpu.set_flags(flags, rflags::STATUS);
    Ok(())
}

/// From a general-purpose register or memory.
fn from_register(cpu: &mut Cpu, op: &Op, format: Format) -> Done {
    need_sse(cpu)?;
    let mut env = Environment::new(cpu.mxcsr);
    let value = crate::flags::sign_extend(op.second().size, cpu.get(op, op.second())?) as i64;
    let result = float::from_integer(&mut env, format, value);
    settle(cpu, env)?;
    set_low(cpu, op, format.bits(), result);
    Ok(())
}

/// To a general-purpose register.
fn to_register(cpu: &mut Cpu, op: &Op, format: Format, truncate: bool) -> Done {
    need_sse(cpu)?;
    let mut env = Environment::new(cpu.mxcsr);
    let value = low(cpu, op, format.bits())?;
    let result = float::to_integer(&mut env, format, value, u32::from(op.size()) * 8, truncate);
    settle(cpu, env)?;
    cpu.set(op, op.first(), result)
}

/// The lowest lane from one format to the other.
fn scalar_to(cpu: &mut Cpu, op: &Op, from: Format, to: Format) -> Done {
    need_sse(cpu)?;
    let mut env = Environment::new(cpu.mxcsr);
    let value = low(cpu, op, from.bits())?;
    let result = float::to_format(&mut env, from, to, value);
    settle(cpu, env)?;
    set_low(cpu, op, to.bits(), result);
    Ok(())
}

/// Lanes of `from` bits to as many of `to`, from the lowest on; what is above them becomes 0.
fn convert(cpu: &mut Cpu, op: &Op, from: u32, to: u32, compute: fn(&mut Environment, u64) -> u64) -> Done {
    need_sse(cpu)?;
    let lanes = 128 / from.max(to);
    // Two lanes of 32 bits are 8 bytes of memory, aligned or not.
    let value = match op.second().place {
        Place::Memory if lanes * from == 64 => cpu.get(op, op.second())?.into(),
        _ => get(cpu, op, op.second(), true)?,
    };
    let mut env = Environment::new(cpu.mxcsr);
    let mut result = 0;
    for number in 0..lanes {
        let lane = (value >> (from * number) & mask(from)) as u64;
        result |= u128::from(compute(&mut env, lane)) << (to * number);
    }
    settle(cpu, env)?;
    super::set(cpu, op, op.first(), result, true)
}
