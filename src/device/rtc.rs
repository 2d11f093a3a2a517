//! The clock that a PC keeps the time with: an MC146818, read through two ports.
//!
//! Motorola MC146818A datasheet, "Address Map" and "Register A" to "Register D".

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Device, Request};

/// The port that selects a register, and behind it the one that reads it.
pub const BASE: u16 = 0x70;

/// Its registers.
#[rustfmt::skip] // laid out like the datasheet's table
mod register {
    pub const SECONDS: u8 = 0x00;
    pub const MINUTES: u8 = 0x02;
    pub const HOURS: u8   = 0x04;
    pub const WEEKDAY: u8 = 0x06; // Sunday is 1
    pub const DAY: u8     = 0x07;
    pub const MONTH: u8   = 0x08;
    pub const YEAR: u8    = 0x09; // of the century
    pub const A: u8       = 0x0a;
    pub const B: u8       = 0x0b;
    pub const D: u8       = 0x0d;
}

/// Register A: the divider for a crystal of 32 kHz; never "update in progress".
const DIVIDER_32_KHZ: u8 = 0x20;
/// Register B: 24 hours a day. Numbers are binary-coded decimals where DM is clear.
const HOURS_24: u8 = 1 << 1;
/// Register D: the battery is good.
const VALID: u8 = 1 << 7;

/// The clock, in UTC. It cannot be set, and never interrupts.
pub struct Rtc {
    selected: u8,
    now: fn() -> u64,
}

impl Default for Rtc {
    fn default() -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { selected: 0, now }
    }
}

impl Device for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(if offset == 1 { self.register() } else { 0xff });
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
        if let (0, Some(index)) = (offset, data.first()) {
            // Bit 7 masks NMIs on a PC, and selects nothing.
            self.selected = index & 0x7f;
        }
        None
    }
}

impl Rtc {
    fn register(&self) -> u8 {
        let seconds = (self.now)();
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = date(days);
        match self.selected {
            register::SECONDS => decimal(second % 60),
            register::MINUTES => decimal(second / 60 % 60),
            register::HOURS => decimal(second / 3600),
            // 1970 began on a Thursday.
            register::WEEKDAY => decimal((days + 4) % 7 + 1),
            register::DAY => decimal(day),
            register::MONTH => decimal(month),
            register::YEAR => decimal(year % 100),
            register::A => DIVIDER_32_KHZ,
            register::B => HOURS_24,
            register::D => VALID,
            _ => 0,
        }
    }
}

/// Two digits, one in each half of the byte.
fn decimal(number: u64) -> u8 {
    (((number / 10) << 4) | (number % 10)) as u8
}

/// Year, month and day, so many days after the first of January 1970.
fn date(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    // Whole cycles of 400 years first, so that no clock however wrong makes this loop for long.
    const CYCLE: u64 = 146_097;
    let mut year = 1970 + days / CYCLE * 400;
    days %= CYCLE;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month as u64 + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: u64, index: u8) -> u8 {
        let now: fn() -> u64 = match time {
            0 => || 0,
            _ => || 1_709_210_096, // date -u -d @1709210096: Thu Feb 29 12:34:56 2024
        };
        let mut rtc = Rtc { selected: 0, now };
        rtc.write(0, &[index | 0x80]);
        let mut value = [0];
        rtc.read(1, &mut value);
        value[0]
    }

    #[test]
    fn a_driver_reads_the_time_in_decimals() {
        let all = [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09].map(|index| at(1, index));
        assert_eq!(all, [0x56, 0x34, 0x12, 0x05, 0x29, 0x02, 0x24]);
        let all = [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09].map(|index| at(0, index));
        assert_eq!(all, [0x00, 0x00, 0x00, 0x05, 0x01, 0x01, 0x70]);
    }

    #[test]
    fn the_clock_is_good_and_never_busy() {
        assert_eq!([at(1, 0x0a) & 0x80, at(1, 0x0d)], [0, 0x80]);
    }

    #[test]
    fn the_calendar_knows_the_rule_of_the_centuries() {
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
        date(u64::MAX / 86_400);
    }
}
