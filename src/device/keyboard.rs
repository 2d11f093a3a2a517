//! As much of the keyboard controller (8042) as a PC is reset with: no keyboard.
//!
//! IBM PC AT Technical Reference, "Keyboard Controller": its output port's bit 0
//! is wired to the CPU's reset pin, and command 0xfe pulses it.

use super::{Device, Request};

/// Its port for commands and status; the one for data, 0x60, has nothing to say.
pub const COMMAND: u16 = 0x64;

const PULSE_RESET: u8 = 0xfe;

/// The command port.
#[derive(Debug, Default)]
pub struct Commands;

impl Device for Commands {
    /// The status: nothing to be read, ready to be written.
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _: u64, data: &[u8]) -> Option<Request> {
        data.contains(&PULSE_RESET).then_some(Request::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_waits_for_the_controller_need_not_and_resets_the_machine() {
        let mut commands = Commands;
        let mut status = [0xff];
        commands.read(0, &mut status);
        assert_eq!(status, [0]);
        assert_eq!(commands.write(0, &[0xd1]), None);
        assert_eq!(commands.write(0, &[0xfe]), Some(Request::Reset));
    }
}
