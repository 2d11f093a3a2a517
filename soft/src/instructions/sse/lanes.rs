//! SSE2's integers: the same operation on each of the lanes of two registers.

use iced_x86::Mnemonic;

use super::{combine, get, need_sse};
use crate::cpu::Cpu;
use crate::op::{Handler, Op, Operand, Place};
use crate::paging::Intent;
use crate::stop::{Done, Missing, Stop};

#[rustfmt::skip] // an operation a line
pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Xorps | Mnemonic::Xorpd | Mnemonic::Pxor => |cpu, op| combine(cpu, op, |a, b| a ^ b),
        Mnemonic::Andps | Mnemonic::Andpd | Mnemonic::Pand => |cpu, op| combine(cpu, op, |a, b| a & b),
        Mnemonic::Andnps | Mnemonic::Andnpd | Mnemonic::Pandn => |cpu, op| combine(cpu, op, |a, b| !a & b),
        Mnemonic::Orps | Mnemonic::Orpd | Mnemonic::Por => |cpu, op| combine(cpu, op, |a, b| a | b),
        Mnemonic::Paddb => |cpu, op| each(cpu, op, 8, u64::wrapping_add),
        Mnemonic::Paddw => |cpu, op| each(cpu, op, 16, u64::wrapping_add),
        Mnemonic::Paddd => |cpu, op| each(cpu, op, 32, u64::wrapping_add),
        Mnemonic::Paddq => |cpu, op| each(cpu, op, 64, u64::wrapping_add),
        Mnemonic::Psubb => |cpu, op| each(cpu, op, 8, u64::wrapping_sub),
        Mnemonic::Psubw => |cpu, op| each(cpu, op, 16, u64::wrapping_sub),
        Mnemonic::Psubd => |cpu, op| each(cpu, op, 32, u64::wrapping_sub),
        Mnemonic::Psubq => |cpu, op| each(cpu, op, 64, u64::wrapping_sub),
        Mnemonic::Paddusb => |cpu, op| each(cpu, op, 8, |a, b| (a + b).min(0xff)),
        Mnemonic::Paddusw => |cpu, op| each(cpu, op, 16, |a, b| (a + b).min(0xffff)),
        Mnemonic::Psubusb => |cpu, op| each(cpu, op, 8, u64::saturating_sub),
        Mnemonic::Psubusw => |cpu, op| each(cpu, op, 16, u64::saturating_sub),
        Mnemonic::Paddsb => |cpu, op| each_signed(cpu, op, 8, |a, b| saturate(8, a + b)),
        Mnemonic::Paddsw => |cpu, op| each_signed(cpu, op, 16, |a, b| saturate(16, a + b)),
        Mnemonic::Psubsb => |cpu, op| each_signed(cpu, op, 8, |a, b| saturate(8, a - b)),
        Mnemonic::Psubsw => |cpu, op| each_signed(cpu, op, 16, |a, b| saturate(16, a - b)),
        Mnemonic::Pminub => |cpu, op| each(cpu, op, 8, u64::min),
        Mnemonic::Pmaxub => |cpu, op| each(cpu, op, 8, u64::max),
        Mnemonic::Pminsw => |cpu, op| each_signed(cpu, op, 16, i64::min),
        Mnemonic::Pmaxsw => |cpu, op| each_signed(cpu, op, 16, i64::max),
        Mnemonic::Pavgb => |cpu, op| each(cpu, op, 8, |a, b| (a + b + 1) >> 1),
        Mnemonic::Pavgw => |cpu, op| each(cpu, op, 16, |a, b| (a + b + 1) >> 1),
        Mnemonic::Pmullw => |cpu, op| each(cpu, op, 16, |a, b| a * b),
        Mnemonic::Pmulhw => |cpu, op| each_signed(cpu, op, 16, |a, b| (a * b) >> 16),
        Mnemonic::Pmulhuw => |cpu, op| each(cpu, op, 16, |a, b| (a * b) >> 16),
        Mnemonic::Pmuludq => |cpu, op| each(cpu, op, 64, |a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff)),
        Mnemonic::Pmaddwd => multiply_add,
        Mnemonic::Psadbw => absolute_differences,
        Mnemonic::Maskmovdqu => move_masked,
        Mnemonic::Pcmpeqb => |cpu, op| each(cpu, op, 8, |a, b| all_if(a == b)),
        Mnemonic::Pcmpeqw => |cpu, op| each(cpu, op, 16, |a, b| all_if(a == b)),
        Mnemonic::Pcmpeqd => |cpu, op| each(cpu, op, 32, |a, b| all_if(a == b)),
        Mnemonic::Pcmpgtb => |cpu, op| each_signed(cpu, op, 8, |a, b| -i64::from(a > b)),
        Mnemonic::Pcmpgtw => |cpu, op| each_signed(cpu, op, 16, |a, b| -i64::from(a > b)),
        Mnemonic::Pcmpgtd => |cpu, op| each_signed(cpu, op, 32, |a, b| -i64::from(a > b)),
        Mnemonic::Psllw => |cpu, op| shift(cpu, op, 16, |a, by| a << by),
        Mnemonic::Pslld => |cpu, op| shift(cpu, op, 32, |a, by| a << by),
        Mnemonic::Psllq => |cpu, op| shift(cpu, op, 64, |a, by| a << by),
        Mnemonic::Psrlw => |cpu, op| shift(cpu, op, 16, |a, by| a >> by),
        Mnemonic::Psrld => |cpu, op| shift(cpu, op, 32, |a, by| a >> by),
        Mnemonic::Psrlq => |cpu, op| shift(cpu, op, 64, |a, by| a >> by),
        Mnemonic::Psraw => |cpu, op| shift_signed(cpu, op, 16),
        Mnemonic::Psrad => |cpu, op| shift_signed(cpu, op, 32),
        Mnemonic::Pslldq => |cpu, op| shift_bytes(cpu, op, |a, by| a << by),
        Mnemonic::Psrldq => |cpu, op| shift_bytes(cpu, op, |a, by| a >> by),
        Mnemonic::Punpcklbw => |cpu, op| interleave(cpu, op, 8, 0),
        Mnemonic::Punpcklwd => |cpu, op| interleave(cpu, op, 16, 0),
        Mnemonic::Punpckldq | Mnemonic::Unpcklps => |cpu, op| interleave(cpu, op, 32, 0),
        Mnemonic::Punpcklqdq | Mnemonic::Unpcklpd => |cpu, op| interleave(cpu, op, 64, 0),
        Mnemonic::Punpckhbw => |cpu, op| interleave(cpu, op, 8, 64),
        Mnemonic::Punpckhwd => |cpu, op| interleave(cpu, op, 16, 64),
        Mnemonic::Punpckhdq | Mnemonic::Unpckhps => |cpu, op| interleave(cpu, op, 32, 64),
        Mnemonic::Punpckhqdq | Mnemonic::Unpckhpd => |cpu, op| interleave(cpu, op, 64, 64),
        Mnemonic::Packsswb => |cpu, op| pack(cpu, op, 16, |value| saturate(8, value)),
        Mnemonic::Packssdw => |cpu, op| pack(cpu, op, 32, |value| saturate(16, value)),
        Mnemonic::Packuswb => |cpu, op| pack(cpu, op, 16, |value| value.clamp(0, 0xff)),
        Mnemonic::Pshufd => |cpu, op| shuffle(cpu, op, 32, 0),
        Mnemonic::Pshuflw => |cpu, op| shuffle(cpu, op, 16, 0),
        Mnemonic::Pshufhw => |cpu, op| shuffle(cpu, op, 16, 64),
        Mnemonic::Shufps => shuffle_single,
        Mnemonic::Shufpd => shuffle_double,
        Mnemonic::Pmovmskb => |cpu, op| signs(cpu, op, 8),
        Mnemonic::Movmskps => |cpu, op| signs(cpu, op, 32),
        Mnemonic::Movmskpd => |cpu, op| signs(cpu, op, 64),
        Mnemonic::Pextrw => extract_word,
        Mnemonic::Pinsrw => insert_word,
        _ => return None,
    })
}

fn all_if(condition: bool) -> u64 {
    if condition { u64::MAX } else { 0 }
}

fn mask(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

fn signed(bits: u32, value: u64) -> i64 {
    (value << (64 - bits)) as i64 >> (64 - bits)
}

/// The nearest number that `bits` bits hold.
fn saturate(bits: u32, value: i64) -> i64 {
    value.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
}

/// Lane number `lane` of `bits` bits.
fn lane(value: u128, bits: u32, lane: u32) -> u64 {
    (value >> (bits * lane)) as u64 & mask(bits)
}

/// A register made lane by lane.
fn make(bits: u32, of_lane: impl Fn(u32) -> u64) -> u128 {
    (0..128 / bits).fold(0, |all, lane| all | u128::from(of_lane(lane) & mask(bits)) << (bits * lane))
}

fn each(cpu: &mut Cpu, op: &Op, bits: u32, compute: fn(u64, u64) -> u64) -> Done {
    combine(cpu, op, |a, b| make(bits, |n| compute(lane(a, bits, n), lane(b, bits, n))))
}

fn each_signed(cpu: &mut Cpu, op: &Op, bits: u32, compute: fn(i64, i64) -> i64) -> Done {
    let of = |value, n| signed(bits, lane(value, bits, n));
    combine(cpu, op, |a, b| make(bits, |n| compute(of(a, n), of(b, n)) as u64))
}

/// The count of a shift: an immediate, or the lower half of a register or memory.
fn count(cpu: &mut Cpu, op: &Op) -> Result<u64, Stop> {
    need_sse(cpu)?;
    match op.second().place {
        Place::Immediate => Ok(op.immediate & 0xff),
        _ => Ok(get(cpu, op, op.second(), true)? as u64),
    }
}

fn shift(cpu: &mut Cpu, op: &Op, bits: u32, compute: fn(u64, u64) -> u64) -> Done {
    let by = count(cpu, op)?;
    let a = get(cpu, op, op.first(), true)?;
    let result = if by >= u64::from(bits) { 0 } else { make(bits, |n| compute(lane(a, bits, n), by)) };
    super::set(cpu, op, op.first(), result, true)
}

fn shift_signed(cpu: &mut Cpu, op: &Op, bits: u32) -> Done {
    let by = count(cpu, op)?.min(u64::from(bits) - 1);
    let a = get(cpu, op, op.first(), true)?;
    let result = make(bits, |n| (signed(bits, lane(a, bits, n)) >> by) as u64);
    super::set(cpu, op, op.first(), result, true)
}

fn shift_bytes(cpu: &mut Cpu, op: &Op, compute: fn(u128, u32) -> u128) -> Done {
    let by = count(cpu, op)?;
    let a = get(cpu, op, op.first(), true)?;
    let result = if by > 15 { 0 } else { compute(a, by as u32 * 8) };
    super::set(cpu, op, op.first(), result, true)
}

/// The lanes of two halves, which start at bit `from`, in turn.
fn interleave(cpu: &mut Cpu, op: &Op, bits: u32, from: u32) -> Done {
    combine(cpu, op, |a, b| make(bits, |n| lane(if n & 1 == 0 { a } else { b } >> from, bits, n / 2)))
}

/// Lanes of `bits` bits cut to half of that: those of the first operand, then those of the second.
fn pack(cpu: &mut Cpu, op: &Op, bits: u32, cut: fn(i64) -> i64) -> Done {
    let each = 128 / bits;
    let of = |value, n| cut(signed(bits, lane(value, bits, n))) as u64;
    combine(cpu, op, |a, b| make(bits / 2, |n| if n < each { of(a, n) } else { of(b, n - each) }))
}

/// Four lanes of the second operand, from bit `from` on, each chosen by two bits of the immediate.
fn shuffle(cpu: &mut Cpu, op: &Op, bits: u32, from: u32) -> Done {
    let order = op.immediate;
    combine(cpu, op, |_, b| {
        let chosen = |n: u32| lane(b >> from, bits, (order >> (2 * n) & 3) as u32);
        let four = (0..4).fold(0, |all, n| all | u128::from(chosen(n)) << (bits * n));
        if bits == 32 {
            return four;
        }
        let half = u128::from(u64::MAX) << from;
        b & !half | four << from
    })
}

fn shuffle_single(cpu: &mut Cpu, op: &Op) -> Done {
    let order = op.immediate;
    let chosen = |n: u32| (order >> (2 * n) & 3) as u32;
    combine(cpu, op, |a, b| make(32, |n| lane(if n < 2 { a } else { b }, 32, chosen(n))))
}

fn shuffle_double(cpu: &mut Cpu, op: &Op) -> Done {
    let order = op.immediate;
    combine(cpu, op, |a, b| make(64, |n| lane(if n == 0 { a } else { b }, 64, (order >> n & 1) as u32)))
}

/// The highest bit of each lane.
fn signs(cpu: &mut Cpu, op: &Op, bits: u32) -> Done {
    need_sse(cpu)?;
    let value = get(cpu, op, op.second(), true)?;
    let bit = |n| lane(value, bits, n) >> (bits - 1) << n;
    let result = (0..128 / bits).map(bit).fold(0, |all, bit| all | bit);
    cpu.set(op, op.first(), result)
}

/// Products of words, and sums of two neighbours.
fn multiply_add(cpu: &mut Cpu, op: &Op) -> Done {
    let word = |value, n| signed(16, lane(value, 16, n));
    let product = move |a, b, n| word(a, n) * word(b, n);
    combine(cpu, op, |a, b| make(32, |n| (product(a, b, 2 * n) + product(a, b, 2 * n + 1)) as u64))
}

/// Sums of the differences of eight bytes.
fn absolute_differences(cpu: &mut Cpu, op: &Op) -> Done {
    let difference = |a, b, n| lane(a, 8, n).abs_diff(lane(b, 8, n));
    combine(cpu, op, |a, b| make(64, |half| (0..8).map(|n| difference(a, b, 8 * half + n)).sum()))
}

/// The bytes whose mask has its highest bit, to DS:[RDI].
fn move_masked(cpu: &mut Cpu, op: &Op) -> Done {
    need_sse(cpu)?;
    let register = |operand: Operand| usize::from(operand.number);
    let xmm: Vec<_> = op.operands.iter().filter(|operand| operand.place == Place::Xmm).collect();
    let [value, mask] = xmm[..] else { return Err(Stop::Missing(Missing::Instruction)) };
    let (value, mask) = (cpu.xmm[register(*value)], cpu.xmm[register(*mask)]);
    let (segment, user) = (usize::from(op.address.segment), cpu.user());
    let start = cpu.gpr[crate::cpu::gpr::RDI];
    let chosen = |n: u32| lane(mask, 8, n) >> 7 != 0;
    // Every byte may be written, before any is.
    for writes in [false, true] {
        for number in (0..16).filter(|number| chosen(*number)) {
            let offset = start.wrapping_add(number.into()) & op.address.mask;
            let linear = cpu.linear(segment, offset, 1, Intent::Write)?;
            if writes {
                cpu.write(linear, 1, lane(value, 8, number), user)?;
            } else {
                cpu.probe_write(linear, 1, user)?;
            }
        }
    }
    Ok(())
}

fn extract_word(cpu: &mut Cpu, op: &Op) -> Done {
    need_sse(cpu)?;
    let value = get(cpu, op, op.second(), true)?;
    cpu.set(op, op.first(), lane(value, 16, (op.immediate & 7) as u32))
}

fn insert_word(cpu: &mut Cpu, op: &Op) -> Done {
    need_sse(cpu)?;
    let word = u128::from(cpu.get(op, op.second())? & 0xffff);
    let old = get(cpu, op, op.first(), true)?;
    let at = 16 * (op.immediate & 7) as u32;
    super::set(cpu, op, op.first(), old & !(0xffff << at) | word << at, true)
}
