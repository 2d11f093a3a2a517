//! Between formats, and to and from integers.

use super::{Environment, Format, Rest, Rounding, cut, mxcsr};

/// A number of one format in another.
pub fn to_format(env: &mut Environment, from: Format, to: Format, value: u64) -> u64 {
    let value = env.operand(from, value);
    let sign = if from.is_negative(value) { to.sign() } else { 0 };
    if let Some(nan) = env.nan(from, &[value]) {
        // The fraction keeps its upper bits.
        let fraction = nan & ((1 << from.fraction) - 1);
        let fraction = if to.fraction >= from.fraction {
            fraction << (to.fraction - from.fraction)
        } else {
            fraction >> (from.fraction - to.fraction)
        };
        return sign | to.infinity() | fraction;
    }
    if from.is_infinite(value) {
        return sign | to.infinity();
    }
    env.note_denormals(from, &[value]);
    let (magnitude, power) = from.take_apart(value);
    env.round(to, sign != 0, magnitude, power, false)
}

/// A signed integer as a number.
pub fn from_integer(env: &mut Environment, to: Format, value: i64) -> u64 {
    env.round(to, value < 0, value.unsigned_abs().into(), 0, false)
}

/// The nearest signed integer of `bits` bits in the direction that holds, or towards zero; the most
/// negative one where none fits.
pub fn to_integer(env: &mut Environment, from: Format, value: u64, bits: u32, truncate: bool) -> u64 {
    let value = env.operand(from, value);
    let most_negative = 1u64 << (bits - 1);
    if from.is_nan(value) || from.is_infinite(value) {
        env.raise(mxcsr::INVALID);
        return most_negative;
    }
    let negative = from.is_negative(value);
    let (magnitude, power) = from.take_apart(value);
    if power > 64 {
        env.raise(mxcsr::INVALID);
        return most_negative;
    }
    let (kept, rest) = cut(magnitude, -power, false);
    let direction = Environment { rounding: if truncate { Rounding::Zero } else { env.rounding }, ..*env };
    let kept = kept + u128::from(direction.rounds_up(negative, kept & 1 != 0, rest));
    let limit = u128::from(most_negative) - u128::from(!negative);
    if kept > limit {
        env.raise(mxcsr::INVALID);
        return most_negative;
    }
    if rest != Rest::None {
        env.raise(mxcsr::PRECISION);
    }
    let result = if negative { (kept as u64).wrapping_neg() } else { kept as u64 };
    result & u64::MAX >> (64 - bits)
}
