//! The registers that ACPI switches a machine off and resets it with.
//!
//! ACPI Specification 6.5, "PM1 Event Grouping", "PM1 Control Grouping" and "Reset
//! Register"; the FADT in `boot::acpi` says where they are.

use super::{Device, Request};

/// The first port of all of them, and how many there are.
pub const BASE: u16 = 0x600;
pub const SIZE: u16 = 7;

/// PM1a_EVT_BLK: a status and an enable register of 16 bits each.
pub const EVENT: u16 = BASE;
pub const EVENT_SIZE: u8 = 4;
/// PM1a_CNT_BLK: one register of 16 bits.
pub const CONTROL: u16 = BASE + 4;
pub const CONTROL_SIZE: u8 = 2;
/// The reset register, and what has to be written to it.
pub const RESET: u16 = BASE + 6;
pub const RESET_VALUE: u8 = 1;

const ENABLE: u64 = 2;
const CONTROL_OFFSET: u64 = 4;
const RESET_OFFSET: u64 = 6;

/// PM1 control register. "PM1 Control Registers Fixed Hardware Feature Control Bits".
mod control {
    pub const SCI_EN: u16 = 1 << 0; // the machine is in ACPI mode
    pub const SLP_EN: u16 = 1 << 13; // go to the state that SLP_TYP names, now
    pub const SLP_TYP_SHIFT: u16 = 10; // three bits
}

/// A machine that knows two states: on and off.
#[derive(Debug, Default)]
pub struct Power {
    /// The enable register keeps what the kernel writes; no event ever happens.
    enable: u16,
}

impl Device for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            ENABLE => self.enable,
            CONTROL_OFFSET => control::SCI_EN,
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Request> {
        let value = data.iter().take(2).rev().fold(0u16, |value, byte| value << 8 | u16::from(*byte));
        match offset {
            ENABLE => self.enable = value,
            // ANCHOR: off
            CONTROL_OFFSET => {
                let state = value >> control::SLP_TYP_SHIFT & 7;
                let off = value & control::SLP_EN != 0 && state == u16::from(crate::boot::acpi::OFF);
                return off.then_some(Request::PowerOff);
            }
            // ANCHOR_END: off
            RESET_OFFSET if value as u8 == RESET_VALUE => return Some(Request::Reset),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_switches_the_machine_off_by_sleep_type_five() {
        let mut power = Power::default();
        let mut value = [0; 2];
        power.read(CONTROL_OFFSET, &mut value);
        assert_eq!(value, [1, 0], "in ACPI mode");
        // SLP_TYP alone, SLP_EN with another type, and both.
        assert_eq!(power.write(CONTROL_OFFSET, &(5u16 << 10).to_le_bytes()), None);
        assert_eq!(power.write(CONTROL_OFFSET, &(1u16 << 13 | 3 << 10).to_le_bytes()), None);
        assert_eq!(
            power.write(CONTROL_OFFSET, &(1u16 << 13 | 5 << 10).to_le_bytes()),
            Some(Request::PowerOff)
        );
    }

    #[test]
    fn a_driver_resets_the_machine_and_enables_events_that_never_come() {
        let mut power = Power::default();
        assert_eq!(power.write(ENABLE, &[0x21, 0x01]), None);
        let mut both = [0xff; 4];
        power.read(ENABLE, &mut both);
        assert_eq!(both, [0x21, 0x01, 0, 0]);
        assert_eq!(power.write(RESET_OFFSET, &[0]), None);
        assert_eq!(power.write(RESET_OFFSET, &[RESET_VALUE]), Some(Request::Reset));
        assert_eq!(power.write(0, &[]), None);
    }
}
