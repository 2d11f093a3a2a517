//! Single bits and counts of bits. Intel SDM Vol. 2, each by its name.

use iced_x86::Mnemonic;

use crate::cpu::Cpu;
use crate::flags::{mask, of_result, sign_extend};
use crate::op::{Handler, Op, Operand, Place};
use crate::registers::rflags::{CF, OF, SF, STATUS, ZF};
use crate::stop::{Done, Stop};

pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Bt => test,
        Mnemonic::Bts => |cpu, op| change(cpu, op, |value, bit| value | bit),
        Mnemonic::Btr => |cpu, op| change(cpu, op, |value, bit| value & !bit),
        Mnemonic::Btc => |cpu, op| change(cpu, op, |value, bit| value ^ bit),
        Mnemonic::Bsf => |cpu, op| scan(cpu, op, |value, _| u64::from(value.trailing_zeros())),
        Mnemonic::Bsr => |cpu, op| scan(cpu, op, |value, _| 63 - u64::from(value.leading_zeros())),
        Mnemonic::Tzcnt => {
            |cpu, op| count(cpu, op, |value, bits| u64::from(value.trailing_zeros()).min(bits))
        }
        Mnemonic::Lzcnt => {
            |cpu, op| count(cpu, op, |value, bits| u64::from(value.leading_zeros()) - (64 - bits))
        }
        Mnemonic::Popcnt => population,
        _ => return None,
    })
}

/// A bit's number reaches past its operand where that is memory and the number is in a register: then
/// it counts bits, up or down, from the operand's address.
struct Bit {
    address: Option<(usize, u64)>,
    bit: u64,
}

fn find(cpu: &mut Cpu, op: &Op) -> Result<Bit, Stop> {
    let (size, number) = (op.size(), cpu.get(op, op.second())?);
    let bit = 1 << (number & (8 * u64::from(size) - 1));
    if op.first().place != Place::Memory {
        return Ok(Bit { address: None, bit });
    }
    let offset = cpu.offset(op);
    let items = if op.second().place == Place::Immediate {
        0
    } else {
        let shift = size.trailing_zeros() + 3;
        (sign_extend(size, number) as i64 >> shift) as u64
    };
    let offset = offset.wrapping_add(items.wrapping_mul(u64::from(size))) & op.address.mask;
    Ok(Bit { address: Some((usize::from(op.address.segment), offset)), bit })
}

fn test(cpu: &mut Cpu, op: &Op) -> Done {
    let found = find(cpu, op)?;
    let value = match found.address {
        Some((segment, offset)) => cpu.read_at(segment, offset, op.size())?,
        None => cpu.get(op, op.first())?,
    };
    cpu.set_flag(CF, value & found.bit != 0);
    Ok(())
}

fn change(cpu: &mut Cpu, op: &Op, to: impl Fn(u64, u64) -> u64) -> Done {
    let found = find(cpu, op)?;
    let size = op.size();
    let old = match found.address {
        Some((segment, offset)) => {
            let linear = cpu.linear(segment, offset, u64::from(size), crate::paging::Intent::Write)?;
            cpu.check_alignment(linear, u64::from(size))?;
            cpu.probe_write(linear, usize::from(size), cpu.user())?;
            let old = cpu.read(linear, usize::from(size), cpu.user())?;
            cpu.write(linear, usize::from(size), to(old, found.bit), cpu.user())?;
            old
        }
        None => {
            let old = cpu.get(op, op.first())?;
            cpu.set(op, op.first(), to(old, found.bit))?;
            old
        }
    };
    cpu.set_flag(CF, old & found.bit != 0);
    Ok(())
}

/// Of zero, the destination stays as it is: AMD's rule, and what Intel's CPUs do. AMD APM Vol. 3, "BSF".
fn scan(cpu: &mut Cpu, op: &Op, find: impl Fn(u64, u64) -> u64) -> Done {
    let value = cpu.get(op, op.second())?;
    if value != 0 {
        cpu.set(op, op.first(), find(value, 0))?;
    }
    cpu.set_flag(ZF, value == 0);
    Ok(())
}

/// TZCNT and LZCNT: CF says that there was no bit, ZF that the count is 0.
fn count(cpu: &mut Cpu, op: &Op, find: impl Fn(u64, u64) -> u64) -> Done {
    let value = cpu.get(op, op.second())?;
    let result = find(value, 8 * u64::from(op.size()));
    cpu.set(op, op.first(), result)?;
    cpu.set_flag(CF, value == 0);
    cpu.set_flag(ZF, result == 0);
    Ok(())
}

fn population(cpu: &mut Cpu, op: &Op) -> Done {
    let source: Operand = op.second();
    let value = cpu.get(op, source)? & mask(source.size);
    cpu.set(op, op.first(), u64::from(value.count_ones()))?;
    cpu.set_flags(of_result(8, value) & !(SF | OF) & ZF, STATUS);
    Ok(())
}
