//! Arithmetic and its flags, as pure functions: operands in, result and the
//! status flags out. Intel SDM Vol. 1, "Status Flags", and each instruction's
//! "Flags Affected" in Vol. 2.
//!
//! Operands come without bits above their size, and results go that way.

use crate::registers::rflags::{AF, CF, OF, PF, SF, STATUS, ZF};

/// All ones in the lowest `size` bytes (1, 2, 4 or 8).
#[inline(always)]
#[must_use]
pub fn mask(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(size))
}

/// The number of the highest bit.
#[inline(always)]
#[must_use]
pub fn sign_bit(size: u8) -> u32 {
    8 * u32::from(size) - 1
}

/// The value with its sign carried into all 64 bits.
#[inline(always)]
#[must_use]
pub fn sign_extend(size: u8, value: u64) -> u64 {
    let unused = 64 - 8 * u32::from(size);
    ((value << unused) as i64 >> unused) as u64
}

/// `flag` if `bit` is 1.
#[inline(always)]
fn when(bit: u64, flag: u64) -> u64 {
    (bit & 1).wrapping_neg() & flag
}

/// ZF, SF and PF, which say what the result is.
#[inline(always)]
#[must_use]
pub fn of_result(size: u8, result: u64) -> u64 {
    // Bit n of 0x9669 is 1 when n has an even number of ones.
    let parity = 0x9669 >> ((result ^ result >> 4) & 0xf);
    when(u64::from(result == 0), ZF) | when(result >> sign_bit(size), SF) | when(parity, PF)
}

/// a + b + carry (0 or 1).
#[inline(always)]
#[must_use]
pub fn add(size: u8, a: u64, b: u64, carry: u64) -> (u64, u64) {
    let result = a.wrapping_add(b).wrapping_add(carry) & mask(size);
    let carries = a & b | (a | b) & !result;
    let overflow = (a ^ result) & (b ^ result);
    let sign = sign_bit(size);
    let flags = when(carries >> sign, CF) | when(carries >> 3, AF) | when(overflow >> sign, OF);
    (result, flags | of_result(size, result))
}

/// a - b - borrow (0 or 1).
#[inline(always)]
#[must_use]
pub fn sub(size: u8, a: u64, b: u64, borrow: u64) -> (u64, u64) {
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
    let borrows = !a & b | (!a | b) & result;
    let overflow = (a ^ b) & (a ^ result);
    let sign = sign_bit(size);
    let flags = when(borrows >> sign, CF) | when(borrows >> 3, AF) | when(overflow >> sign, OF);
    (result, flags | of_result(size, result))
}

/// A shift or rotation's result, the flags that it has changed, and which they are.
pub struct Shifted {
    /// The result.
    pub result: u64,
    /// The values of the flags in `changed`.
    pub flags: u64,
    /// The flags that were written; none when the count is 0.
    pub changed: u64,
}

impl Shifted {
    fn nothing(value: u64) -> Self {
        Self { result: value, flags: 0, changed: 0 }
    }
}

/// The bits of a shift count that the CPU looks at: five, or six for 64-bit operands.
#[must_use]
pub fn count(size: u8, count: u64) -> u32 {
    (count & if size == 8 { 0x3f } else { 0x1f }) as u32
}

/// SHL. For counts above 1, where the manual leaves OF undefined, it is what the rule for 1 says, as
/// on the vendors' CPUs.
#[must_use]
pub fn shl(size: u8, value: u64, by: u64) -> Shifted {
    let by = count(size, by);
    if by == 0 {
        return Shifted::nothing(value);
    }
    let wide = u128::from(value) << by;
    let result = wide as u64 & mask(size);
    let carry = (wide >> (sign_bit(size) + 1)) as u64 & 1;
    let overflow = result >> sign_bit(size) ^ carry;
    Shifted { result, flags: when(carry, CF) | when(overflow, OF) | of_result(size, result), changed: STATUS }
}

/// SHR. OF is the sign that the operand had.
#[must_use]
pub fn shr(size: u8, value: u64, by: u64) -> Shifted {
    let by = count(size, by);
    if by == 0 {
        return Shifted::nothing(value);
    }
    let result = value >> by;
    let carry = value >> (by - 1);
    // For a count of 1 the operand's sign; the same rule for more.
    let overflow = (result << 1 ^ result) >> sign_bit(size);
    Shifted { result, flags: when(carry, CF) | when(overflow, OF) | of_result(size, result), changed: STATUS }
}

/// SAR. OF is 0.
#[must_use]
pub fn sar(size: u8, value: u64, by: u64) -> Shifted {
    let by = count(size, by);
    if by == 0 {
        return Shifted::nothing(value);
    }
    let signed = sign_extend(size, value) as i64;
    let result = (signed >> by) as u64 & mask(size);
    Shifted {
        result,
        flags: when((signed >> (by - 1)) as u64, CF) | of_result(size, result),
        changed: STATUS,
    }
}

/// ROL: CF is the bit that came round to the bottom.
#[must_use]
pub fn rol(size: u8, value: u64, by: u64) -> Shifted {
    let by = count(size, by);
    if by == 0 {
        return Shifted::nothing(value);
    }
    let bits = sign_bit(size) + 1;
    let turn = by % bits;
    let result = if turn == 0 { value } else { (value << turn | value >> (bits - turn)) & mask(size) };
    let overflow = result >> sign_bit(size) ^ result;
    Shifted { result, flags: when(result, CF) | when(overflow, OF), changed: CF | OF }
}

/// ROR: CF is the bit that came round to the top.
#[must_use]
pub fn ror(size: u8, value: u64, by: u64) -> Shifted {
    let by = count(size, by);
    if by == 0 {
        return Shifted::nothing(value);
    }
    let bits = sign_bit(size) + 1;
    let turn = by % bits;
    let result = if turn == 0 { value } else { (value >> turn | value << (bits - turn)) & mask(size) };
    let top = result >> sign_bit(size);
    let overflow = top ^ result >> (sign_bit(size) - 1);
    Shifted { result, flags: when(top, CF) | when(overflow, OF), changed: CF | OF }
}

/// RCL: a rotation of the operand with CF above it. The count is taken modulo the size plus one bit.
#[must_use]
pub fn rcl(size: u8, value: u64, by: u64, carry: u64) -> Shifted {
    let bits = sign_bit(size) + 2;
    let by = count(size, by) % bits;
    if by == 0 {
        return Shifted::nothing(value);
    }
    let whole = u128::from(value) | u128::from(carry) << (bits - 1);
    let turned = whole << by | whole >> (bits - by);
    through_carry(size, turned, true)
}

/// RCR: the other way round.
#[must_use]
pub fn rcr(size: u8, value: u64, by: u64, carry: u64) -> Shifted {
    let bits = sign_bit(size) + 2;
    let by = count(size, by) % bits;
    if by == 0 {
        return Shifted::nothing(value);
    }
    let whole = u128::from(value) | u128::from(carry) << (bits - 1);
    let turned = whole >> by | whole << (bits - by);
    through_carry(size, turned, false)
}

fn through_carry(size: u8, turned: u128, left: bool) -> Shifted {
    let result = turned as u64 & mask(size);
    let carry = (turned >> (sign_bit(size) + 1)) as u64 & 1;
    let top = result >> sign_bit(size);
    let overflow = if left { top ^ carry } else { top ^ result >> (sign_bit(size) - 1) };
    Shifted { result, flags: when(carry, CF) | when(overflow, OF), changed: CF | OF }
}

/// SHLD: shifts left, and fills from the top of `filler`.
#[must_use]
pub fn shld(size: u8, value: u64, filler: u64, by: u64) -> Shifted {
    let (by, bits) = (count(size, by), sign_bit(size) + 1);
    if by == 0 {
        return Shifted::nothing(value);
    }
    // A 16-bit operand and a count above 16 are undefined; here the pair is shifted as a whole,
    // the operand once more below it, as Intel's and AMD's CPUs do.
    let pair = (u128::from(value) << bits | u128::from(filler)) << bits | u128::from(value);
    let shifted = if bits == 64 {
        let pair = u128::from(value) << 64 | u128::from(filler);
        (pair << by >> 64) as u64
    } else {
        (pair << by >> (2 * bits)) as u64 & mask(size)
    };
    let carry = if by <= bits { value >> (bits - by) } else { filler >> (2 * bits - by) };
    let overflow = (shifted ^ value) >> sign_bit(size);
    Shifted {
        result: shifted,
        flags: when(carry, CF) | when(overflow, OF) | of_result(size, shifted),
        changed: STATUS,
    }
}

/// SHRD: shifts right, and fills from the bottom of `filler`.
#[must_use]
pub fn shrd(size: u8, value: u64, filler: u64, by: u64) -> Shifted {
    let (by, bits) = (count(size, by), sign_bit(size) + 1);
    if by == 0 {
        return Shifted::nothing(value);
    }
    let pair = if bits == 64 {
        u128::from(filler) << 64 | u128::from(value)
    } else {
        (u128::from(value) << bits | u128::from(filler)) << bits | u128::from(value)
    };
    let result = (pair >> by) as u64 & mask(size);
    let carry = (pair >> (by - 1)) as u64;
    let overflow = (result ^ value) >> sign_bit(size);
    // For a count of 1, OF says that the sign changed.
    Shifted { result, flags: when(carry, CF) | when(overflow, OF) | of_result(size, result), changed: STATUS }
}
