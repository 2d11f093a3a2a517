//! Sums, products, quotients, roots and comparisons. NaNs first, then what is
//! invalid, then denormals: Intel SDM Vol. 1, "Exception Priority".

use super::{Environment, Format, Rounding, mxcsr};

/// a + b
pub fn add(env: &mut Environment, format: Format, a: u64, b: u64) -> u64 {
    let (a, b) = (env.operand(format, a), env.operand(format, b));
    if let Some(nan) = env.nan(format, &[a, b]) {
        return nan;
    }
    if format.is_infinite(a) && format.is_infinite(b) && a != b {
        return env.invalid(format);
    }
    env.note_denormals(format, &[a, b]);
    if format.is_infinite(a) || format.is_infinite(b) {
        return if format.is_infinite(a) { a } else { b };
    }
    sum(env, format, a, b)
}

/// a - b
pub fn subtract(env: &mut Environment, format: Format, a: u64, b: u64) -> u64 {
    if format.is_nan(b) { add(env, format, a, b) } else { add(env, format, a, b ^ format.sign()) }
}

/// Of finite numbers.
fn sum(env: &mut Environment, format: Format, a: u64, b: u64) -> u64 {
    /// So far apart, the smaller number is no more than a direction to round in.
    const FAR: i32 = 70;
    let parts = |value| (format.take_apart(value), format.is_negative(value));
    let (mut larger, mut smaller) = (parts(a), parts(b));
    // By exponent, and a zero never counts as the larger.
    if larger.0.0 == 0 || smaller.0.0 != 0 && larger.0.1 < smaller.0.1 {
        std::mem::swap(&mut larger, &mut smaller);
    }
    let (((large, power), negative), ((small, small_power), small_negative)) = (larger, smaller);
    if large == 0 {
        // Two zeros: of unlike ones, the sum's sign is the rounding's.
        let minus = if negative == small_negative { negative } else { env.rounding == Rounding::Down };
        return if minus { format.sign() } else { 0 };
    }
    if small == 0 {
        return env.round(format, negative, large, power, false);
    }
    let apart = power - small_power;
    if apart > FAR {
        let shifted = large << FAR;
        let (magnitude, power) =
            (if negative == small_negative { shifted } else { shifted - 1 }, power - FAR);
        return env.round(format, negative, magnitude, power, true);
    }
    let shifted = large << apart;
    if negative == small_negative {
        return env.round(format, negative, shifted + small, small_power, false);
    }
    if shifted == small {
        return if env.rounding == Rounding::Down { format.sign() } else { 0 };
    }
    let flips = small > shifted;
    env.round(format, negative ^ flips, shifted.abs_diff(small), small_power, false)
}

/// a × b
pub fn multiply(env: &mut Environment, format: Format, a: u64, b: u64) -> u64 {
    let (a, b) = (env.operand(format, a), env.operand(format, b));
    if let Some(nan) = env.nan(format, &[a, b]) {
        return nan;
    }
    let infinite = format.is_infinite(a) || format.is_infinite(b);
    if infinite && (format.is_zero(a) || format.is_zero(b)) {
        return env.invalid(format);
    }
    env.note_denormals(format, &[a, b]);
    let negative = format.is_negative(a ^ b);
    if infinite {
        return (a ^ b) & format.sign() | format.infinity();
    }
    let ((x, x_power), (y, y_power)) = (format.take_apart(a), format.take_apart(b));
    env.round(format, negative, x * y, x_power + y_power, false)
}

/// a ÷ b
pub fn divide(env: &mut Environment, format: Format, a: u64, b: u64) -> u64 {
    let (a, b) = (env.operand(format, a), env.operand(format, b));
    if let Some(nan) = env.nan(format, &[a, b]) {
        return nan;
    }
    let both = |test: fn(Format, u64) -> bool| test(format, a) && test(format, b);
    if both(Format::is_zero) || both(Format::is_infinite) {
        return env.invalid(format);
    }
    let sign = (a ^ b) & format.sign();
    if format.is_zero(b) && !format.is_infinite(a) {
        env.raise(mxcsr::DIVIDE);
        return sign | format.infinity();
    }
    env.note_denormals(format, &[a, b]);
    if format.is_infinite(a) {
        return sign | format.infinity();
    }
    if format.is_infinite(b) || format.is_zero(a) {
        return sign;
    }
    let ((x, x_power), (y, y_power)) = (format.take_apart(a), format.take_apart(b));
    // As many digits as there is room for.
    let shift = x.leading_zeros() as i32;
    let (quotient, rest) = ((x << shift) / y, (x << shift) % y);
    env.round(format, sign != 0, quotient, x_power - shift - y_power, rest != 0)
}

/// √b; the first operand is the destination's, and says nothing.
pub fn square_root(env: &mut Environment, format: Format, _: u64, b: u64) -> u64 {
    let b = env.operand(format, b);
    if let Some(nan) = env.nan(format, &[b]) {
        return nan;
    }
    if format.is_zero(b) {
        return b;
    }
    if format.is_negative(b) {
        return env.invalid(format);
    }
    env.note_denormals(format, &[b]);
    if format.is_infinite(b) {
        return b;
    }
    let (x, power) = format.take_apart(b);
    // An even power of two, and as many digits as there is room for.
    let room = x.leading_zeros() as i32;
    let shift = room - ((power - room) & 1);
    let wide = x << shift;
    let root = wide.isqrt();
    env.round(format, false, root, (power - shift) / 2, root * root != wide)
}

/// How two numbers compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// a < b
    Less,
    /// a = b
    Equal,
    /// a > b
    Greater,
    /// One is a NaN.
    Unordered,
}

/// Compares. A quiet NaN is invalid only where `signals` says so.
pub fn compare(env: &mut Environment, format: Format, a: u64, b: u64, signals: bool) -> Order {
    let (a, b) = (env.operand(format, a), env.operand(format, b));
    if env.nan(format, &[a, b]).is_some() {
        if signals {
            env.raise(mxcsr::INVALID);
        }
        return Order::Unordered;
    }
    env.note_denormals(format, &[a, b]);
    // As two's complement numbers they are in order.
    let key = |value: u64| {
        let magnitude = (value & !format.sign()) as i64;
        if format.is_negative(value) { -magnitude } else { magnitude }
    };
    match key(a).cmp(&key(b)) {
        std::cmp::Ordering::Less => Order::Less,
        std::cmp::Ordering::Equal => Order::Equal,
        std::cmp::Ordering::Greater => Order::Greater,
    }
}

/// The smaller; the second where they are equal or a NaN is among them.
pub fn minimum(env: &mut Environment, format: Format, a: u64, b: u64) -> u64 {
    let order = compare(env, format, a, b, true);
    env.operand(format, if order == Order::Less { a } else { b })
}

/// The larger; the second where they are equal or a NaN is among them.
pub fn maximum(env: &mut Environment, format: Format, a: u64, b: u64) -> u64 {
    let order = compare(env, format, a, b, true);
    env.operand(format, if order == Order::Greater { a } else { b })
}
