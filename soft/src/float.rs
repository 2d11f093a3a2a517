//! Floating-point numbers as SSE computes with them, in integers: every result is
//! exact first and rounded once, in the direction that MXCSR asks for, and every
//! flag says what the rounding found. Intel SDM Vol. 1, chapter "Programming with
//! Intel Streaming SIMD Extensions", "SIMD Floating-Point Exceptions"; IEEE 754.

mod arithmetic;
mod convert;

pub use arithmetic::{Order, add, compare, divide, maximum, minimum, multiply, square_root, subtract};
pub use convert::{from_integer, to_format, to_integer};

/// MXCSR. Intel SDM Vol. 1, "MXCSR Control and Status Register".
#[rustfmt::skip] // laid out like the SDM's figure
pub mod mxcsr {
    pub const INVALID: u32     = 1 << 0;
    pub const DENORMAL: u32    = 1 << 1;
    pub const DIVIDE: u32      = 1 << 2;  // by zero
    pub const OVERFLOW: u32    = 1 << 3;
    pub const UNDERFLOW: u32   = 1 << 4;
    pub const PRECISION: u32   = 1 << 5;
    pub const DAZ: u32         = 1 << 6;  // Denormals Are Zeros
    pub const MASKS: u32       = 7;       // where the masks start, as a shift
    pub const ROUNDING: u32    = 13;      // the two bits of the rounding control, as a shift
    pub const FZ: u32          = 1 << 15; // Flush to Zero
    /// The exceptions that are found before anything is computed.
    pub const BEFORE: u32      = INVALID | DENORMAL | DIVIDE;
}

/// A format: bits of the fraction and of the exponent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    fraction: u32,
    exponent: u32,
}

/// 32 bits.
pub const SINGLE: Format = Format { fraction: 23, exponent: 8 };
/// 64 bits.
pub const DOUBLE: Format = Format { fraction: 52, exponent: 11 };

impl Format {
    /// All of its bits.
    pub const fn bits(self) -> u32 {
        1 + self.exponent + self.fraction
    }

    const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// The largest exponent as it is stored: infinities and NaNs.
    const fn special(self) -> u64 {
        (1 << self.exponent) - 1
    }

    const fn infinity(self) -> u64 {
        self.special() << self.fraction
    }

    /// The highest bit of a NaN's fraction.
    const fn quiet(self) -> u64 {
        1 << (self.fraction - 1)
    }

    /// What an invalid operation gives: "QNaN floating-point indefinite".
    const fn indefinite(self) -> u64 {
        self.sign() | self.infinity() | self.quiet()
    }

    /// The power of two that the lowest bit of the smallest numbers stands for.
    const fn lowest(self) -> i32 {
        1 - ((1 << (self.exponent - 1)) - 1) - self.fraction as i32
    }

    fn is_nan(self, value: u64) -> bool {
        value & !self.sign() > self.infinity()
    }

    fn is_signaling(self, value: u64) -> bool {
        self.is_nan(value) && value & self.quiet() == 0
    }

    fn is_infinite(self, value: u64) -> bool {
        value & !self.sign() == self.infinity()
    }

    fn is_zero(self, value: u64) -> bool {
        value & !self.sign() == 0
    }

    fn is_denormal(self, value: u64) -> bool {
        let magnitude = value & !self.sign();
        magnitude != 0 && magnitude < 1 << self.fraction
    }

    fn is_negative(self, value: u64) -> bool {
        value & self.sign() != 0
    }

    /// A finite number's magnitude: an integer, and the power of two that it counts.
    fn take_apart(self, value: u64) -> (u128, i32) {
        let fraction = value & ((1 << self.fraction) - 1);
        let exponent = (value & !self.sign()) >> self.fraction;
        if exponent == 0 {
            return (fraction.into(), self.lowest());
        }
        ((fraction | 1 << self.fraction).into(), self.lowest() + exponent as i32 - 1)
    }
}

/// How results are rounded: MXCSR's rounding control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, and of two to the even one.
    Nearest,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
    /// Towards zero.
    Zero,
}

/// What MXCSR asks for, and the flags that were raised under it.
#[derive(Clone, Copy, Debug)]
pub struct Environment {
    /// The direction.
    pub rounding: Rounding,
    denormals_are_zeros: bool,
    flushes_to_zero: bool,
    masks: u32,
    /// Raised so far.
    pub flags: u32,
}

impl Environment {
    /// As MXCSR says, with no flag raised.
    pub fn new(control: u32) -> Self {
        let masks = control >> mxcsr::MASKS & 0x3f;
        Self {
            rounding: match control >> mxcsr::ROUNDING & 3 {
                0 => Rounding::Nearest,
                1 => Rounding::Down,
                2 => Rounding::Up,
                _ => Rounding::Zero,
            },
            denormals_are_zeros: control & mxcsr::DAZ != 0,
            // It works only where underflow is masked.
            flushes_to_zero: control & mxcsr::FZ != 0 && masks & mxcsr::UNDERFLOW != 0,
            masks,
            flags: 0,
        }
    }

    /// The flags that were raised and are not masked.
    pub fn unmasked(&self) -> u32 {
        self.flags & !self.masks
    }

    fn raise(&mut self, flags: u32) {
        self.flags |= flags;
    }

    fn invalid(&mut self, format: Format) -> u64 {
        self.raise(mxcsr::INVALID);
        format.indefinite()
    }

    /// An operand as it counts: a denormal is a zero where MXCSR says so.
    fn operand(&self, format: Format, value: u64) -> u64 {
        let flush = self.denormals_are_zeros && format.is_denormal(value);
        if flush { value & format.sign() } else { value }
    }

    /// Of operands that are no NaNs.
    fn note_denormals(&mut self, format: Format, values: &[u64]) {
        if values.iter().any(|value| format.is_denormal(*value)) {
            self.raise(mxcsr::DENORMAL);
        }
    }

    /// The result where an operand is a NaN: the first that is one, quiet.
    fn nan(&mut self, format: Format, values: &[u64]) -> Option<u64> {
        let nan = *values.iter().find(|value| format.is_nan(**value))?;
        if values.iter().any(|value| format.is_signaling(*value)) {
            self.raise(mxcsr::INVALID);
        }
        Some(nan | format.quiet())
    }

    /// Whether the magnitude grows by one, with `rest` cut off from below it: less than, equal to or more
    /// than a half.
    fn rounds_up(&self, negative: bool, odd: bool, rest: Rest) -> bool {
        match self.rounding {
            Rounding::Nearest => rest == Rest::More || rest == Rest::Half && odd,
            Rounding::Down => negative && rest != Rest::None,
            Rounding::Up => !negative && rest != Rest::None,
            Rounding::Zero => false,
        }
    }

    /// `magnitude` × 2^`power`, and a little more where `sticky` says so, as a number of the format.
    fn round(&mut self, format: Format, negative: bool, magnitude: u128, power: i32, sticky: bool) -> u64 {
        let sign = if negative { format.sign() } else { 0 };
        if magnitude == 0 && !sticky {
            return sign;
        }
        let digits = format.fraction as i32 + 1;
        let length = 128 - magnitude.leading_zeros() as i32;
        let normal = power + length - digits;
        let tiny = normal < format.lowest() && {
            // As if there were no smallest exponent: rounded up to a power of two, it may be just large enough.
            let (kept, rest) = cut(magnitude, normal - power, sticky);
            let rounded = kept + u128::from(self.rounds_up(negative, kept & 1 != 0, rest));
            rounded >> digits == 0 || normal + 1 < format.lowest()
        };
        if tiny && self.flushes_to_zero {
            self.raise(mxcsr::UNDERFLOW | mxcsr::PRECISION);
            return sign;
        }
        let unit = normal.max(format.lowest());
        let (kept, rest) = cut(magnitude, unit - power, sticky);
        let kept = kept as u64 + u64::from(self.rounds_up(negative, kept & 1 != 0, rest));
        if rest != Rest::None {
            self.raise(mxcsr::PRECISION);
        }
        if tiny && (rest != Rest::None || self.masks & mxcsr::UNDERFLOW == 0) {
            self.raise(mxcsr::UNDERFLOW);
        }
        let hidden = 1u64 << format.fraction;
        let exponent = if kept < hidden { 0 } else { (unit - format.lowest()) as u64 + 1 };
        if exponent < format.special() {
            // A carry out of the fraction is one more in the exponent, as it should be.
            let bits = (exponent << format.fraction) + kept - if exponent == 0 { 0 } else { hidden };
            if bits < format.infinity() {
                return sign | bits;
            }
        }
        self.raise(mxcsr::OVERFLOW);
        if self.masks & mxcsr::OVERFLOW != 0 {
            self.raise(mxcsr::PRECISION);
        }
        let to_infinity = match self.rounding {
            Rounding::Nearest => true,
            Rounding::Down => negative,
            Rounding::Up => !negative,
            Rounding::Zero => false,
        };
        sign | if to_infinity { format.infinity() } else { format.infinity() - 1 }
    }
}

/// What is cut off below a number's last digit, in halves of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    None,
    Less,
    Half,
    More,
}

/// Cuts off the lowest `shift` bits, or adds some where it is negative.
fn cut(magnitude: u128, shift: i32, sticky: bool) -> (u128, Rest) {
    if shift <= 0 {
        let rest = if sticky { Rest::Less } else { Rest::None };
        return (magnitude << -shift, rest);
    }
    let length = 128 - magnitude.leading_zeros() as i32;
    if shift > length {
        return (0, if magnitude == 0 && !sticky { Rest::None } else { Rest::Less });
    }
    let kept = magnitude.checked_shr(shift as u32).unwrap_or(0);
    let half = 1u128 << (shift - 1);
    let below = magnitude & (half - 1) != 0 || sticky;
    let rest = match (magnitude & half != 0, below) {
        (false, false) => Rest::None,
        (false, true) => Rest::Less,
        (true, false) => Rest::Half,
        (true, true) => Rest::More,
    };
    (kept, rest)
}
