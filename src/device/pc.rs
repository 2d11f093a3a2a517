//! The devices of a PC that are in no interrupt controller's family: what a kernel
//! finds at their ports. Chapter 16.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::serial::{self, Serial};
use super::{Bus, keyboard, power, rtc};

/// COM1, the clock, the reset line, and the registers for power-off.
#[must_use]
pub fn ports(com1: Arc<Mutex<Serial>>) -> Bus {
    let mut ports = Bus::default();
    ports.insert(range(serial::COM1, serial::SIZE), com1);
    ports.insert(range(rtc::BASE, rtc::SIZE), rtc::Rtc::default());
    ports.insert(range(keyboard::COMMAND, 1), keyboard::Commands);
    ports.insert(range(power::BASE, power::SIZE), power::Power::default());
    ports
}

fn range(first: u16, count: u16) -> Range<u64> {
    first.into()..u64::from(first) + u64::from(count)
}
