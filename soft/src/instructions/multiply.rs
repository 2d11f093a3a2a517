//! Multiplication and division. Intel SDM Vol. 2, each by its name. The flags that the manual leaves
//! undefined stay as they are after a division, and say what the result is after a multiplication.

use iced_x86::Mnemonic;

use crate::cpu::{Cpu, gpr};
use crate::flags::{mask, of_result, sign_extend};
use crate::op::{Handler, Op, Place};
use crate::registers::rflags::{CF, OF, STATUS};
use crate::stop::{Done, Fault};

pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Mul => multiply,
        Mnemonic::Imul => multiply_signed,
        Mnemonic::Div => divide,
        Mnemonic::Idiv => divide_signed,
        _ => return None,
    })
}

/// Writes the double-sized result of an operation on the accumulator: AX, or DX:AX and wider.
fn set_wide(cpu: &mut Cpu, size: u8, low: u64, high: u64) {
    if size == 1 {
        cpu.set_register(gpr::RAX, 2, low & 0xff | (high & 0xff) << 8);
    } else {
        cpu.set_register(gpr::RAX, size, low);
        cpu.set_register(gpr::RDX, size, high);
    }
}

/// The double-sized operand: AX, or DX:AX and wider.
fn wide(cpu: &Cpu, size: u8) -> u128 {
    if size == 1 {
        return u128::from(cpu.register(gpr::RAX, 2));
    }
    u128::from(cpu.register(gpr::RDX, size)) << (8 * size) | u128::from(cpu.register(gpr::RAX, size))
}

fn multiply(cpu: &mut Cpu, op: &Op) -> Done {
    let size = op.size();
    let b = cpu.get(op, op.first())?;
    let product = u128::from(cpu.accumulator(size)) * u128::from(b);
    let (low, high) = (product as u64 & mask(size), (product >> (8 * size)) as u64);
    set_wide(cpu, size, low, high);
    let overflow = if high != 0 { CF | OF } else { 0 };
    cpu.set_flags(of_result(size, low) | overflow, STATUS);
    Ok(())
}

/// One operand: into the double-sized accumulator. Two or three: into a register, cut to its size.
fn multiply_signed(cpu: &mut Cpu, op: &Op) -> Done {
    let size = op.size();
    let signed = |value| i128::from(sign_extend(size, value) as i64);
    let (a, b) = match (op.second().place, op.operands[2].place) {
        (Place::None, _) => (cpu.accumulator(size), cpu.get(op, op.first())?),
        (_, Place::None) => (cpu.get(op, op.first())?, cpu.get(op, op.second())?),
        _ => (cpu.get(op, op.second())?, cpu.get(op, op.operands[2])?),
    };
    let product = signed(a) * signed(b);
    let (low, high) = (product as u64 & mask(size), (product >> (8 * size)) as u64);
    if op.second().place == Place::None {
        set_wide(cpu, size, low, high);
    } else {
        cpu.set(op, op.first(), low)?;
    }
    let overflow = if signed(low) != product { CF | OF } else { 0 };
    cpu.set_flags(of_result(size, low) | overflow, STATUS);
    Ok(())
}

/// #DE for a divisor of 0, and for a quotient that does not fit.
fn divide(cpu: &mut Cpu, op: &Op) -> Done {
    let size = op.size();
    let divisor = u128::from(cpu.get(op, op.first())?);
    let dividend = wide(cpu, size);
    let quotient = dividend.checked_div(divisor).filter(|quotient| *quotient <= u128::from(mask(size)));
    let Some(quotient) = quotient else { return Err(Fault::DIVIDE_ERROR.into()) };
    set_wide(cpu, size, quotient as u64, (dividend % divisor) as u64);
    Ok(())
}

fn divide_signed(cpu: &mut Cpu, op: &Op) -> Done {
    let size = op.size();
    let divisor = i128::from(sign_extend(size, cpu.get(op, op.first())?) as i64);
    let unused = 128 - 16 * u32::from(size);
    let dividend = (wide(cpu, size) << unused) as i128 >> unused;
    let fits = |quotient: &i128| i128::from(sign_extend(size, *quotient as u64) as i64) == *quotient;
    let Some(quotient) = dividend.checked_div(divisor).filter(fits) else {
        return Err(Fault::DIVIDE_ERROR.into());
    };
    set_wide(cpu, size, quotient as u64, (dividend % divisor) as u64);
    Ok(())
}
