//! The I/O APIC: 24 pins, each with an entry that says which CPU gets which vector.
//! Intel, "82093AA I/O Advanced Programmable Interrupt Controller (IOAPIC)", datasheet.

use super::lapic::Message;

/// Pins.
pub const PINS: usize = 24;
/// Where its registers are, guest-physical.
pub const ADDRESS: u64 = 0xfec0_0000;

/// A redirection entry's bits.
#[rustfmt::skip] // laid out like the datasheet's table
mod entry {
    pub const VECTOR: u64      = 0xff;
    pub const MODE: u32        = 8;       // three bits
    pub const LOGICAL: u64     = 1 << 11;
    pub const STATUS: u64      = 1 << 12; // read-only
    pub const REMOTE_IRR: u64  = 1 << 14; // read-only: a level is being served
    pub const LEVEL: u64       = 1 << 15;
    pub const MASKED: u64      = 1 << 16;
    pub const DESTINATION: u32 = 56;      // eight bits
}

/// The controller.
#[derive(Clone, Debug)]
pub struct IoApic {
    entries: [u64; PINS],
    lines: u32,
    /// Edges that came while the entry was masked are not lost to KVM.
    edges: u32,
    id: u8,
    selected: u8,
}

impl Default for IoApic {
    fn default() -> Self {
        Self { entries: [entry::MASKED; PINS], lines: 0, edges: 0, id: 0, selected: 0 }
    }
}

impl IoApic {
    /// Raises or lowers a pin; what is to be sent, if something is.
    pub fn set_line(&mut self, pin: usize, high: bool) -> Option<Message> {
        let bit = 1u32.checked_shl(pin as u32).filter(|_| pin < PINS)?;
        let rises = high && self.lines & bit == 0;
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
        if rises {
            self.edges |= bit;
        }
        self.send(pin)
    }

    /// What this pin has to send now.
    fn send(&mut self, pin: usize) -> Option<Message> {
        let (bit, value) = (1 << pin, self.entries[pin]);
        if value & entry::MASKED != 0 {
            return None;
        }
        let level = value & entry::LEVEL != 0;
        if level {
            if self.lines & bit == 0 || value & entry::REMOTE_IRR != 0 {
                return None;
            }
            self.entries[pin] |= entry::REMOTE_IRR;
        } else if self.edges & bit == 0 {
            return None;
        }
        self.edges &= !bit;
        Some(Message {
            vector: (value & entry::VECTOR) as u8,
            mode: (value >> entry::MODE & 7) as u8,
            logical: value & entry::LOGICAL != 0,
            destination: (value >> entry::DESTINATION) as u8,
            level,
        })
    }

    /// A CPU has ended the interrupt of a level; a line that is still high asks again.
    pub fn end_of_interrupt(&mut self, vector: u8) -> Vec<Message> {
        let mut again = Vec::new();
        for pin in 0..PINS {
            let value = self.entries[pin];
            let served = entry::LEVEL | entry::REMOTE_IRR;
            if value & entry::VECTOR == u64::from(vector) && value & served == served {
                self.entries[pin] &= !entry::REMOTE_IRR;
                again.extend(self.send(pin));
            }
        }
        again
    }

    /// A read of four bytes at this offset.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        const VERSION: u32 = 0x11 | (PINS as u32 - 1) << 16;
        match (offset & 0xff, self.selected) {
            (0x00, selected) => u32::from(selected),
            (0x10, 0 | 2) => u32::from(self.id) << 24,
            (0x10, 1) => VERSION,
            (0x10, selected @ 0x10..0x40) => {
                let value = self.entries[usize::from(selected - 0x10) / 2];
                (value >> (32 * (selected & 1))) as u32
            }
            _ => 0,
        }
    }

    /// A write of four bytes at this offset; what is to be sent, if something is.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<Message> {
        match (offset & 0xff, self.selected) {
            (0x00, _) => self.selected = value as u8,
            (0x10, 0) => self.id = (value >> 24) as u8 & 0xf,
            (0x10, selected @ 0x10..0x40) => {
                let pin = usize::from(selected - 0x10) / 2;
                let shift = 32 * (selected & 1);
                let read_only = entry::STATUS | entry::REMOTE_IRR;
                let old = self.entries[pin];
                let new = old & !(0xffff_ffff << shift) | u64::from(value) << shift;
                self.entries[pin] = new & !read_only | old & read_only;
                if self.entries[pin] & entry::LEVEL == 0 {
                    self.entries[pin] &= !entry::REMOTE_IRR;
                }
                return self.send(pin);
            }
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_entry(ioapic: &mut IoApic, pin: u32, value: u64) -> Option<Message> {
        ioapic.write(0x00, 0x11 + 2 * pin);
        ioapic.write(0x10, (value >> 32) as u32);
        ioapic.write(0x00, 0x10 + 2 * pin);
        ioapic.write(0x10, value as u32)
    }

    #[test]
    fn an_edge_is_sent_once_for_each_rise() {
        let mut ioapic = IoApic::default();
        write_entry(&mut ioapic, 4, 0x0100_0000_0000_0034);
        let message = ioapic.set_line(4, true).expect("the pin is open");
        assert_eq!((message.vector, message.destination, message.level), (0x34, 1, false));
        assert!(ioapic.set_line(4, true).is_none());
        assert!(ioapic.set_line(4, false).is_none());
        assert!(ioapic.set_line(4, true).is_some());
    }

    #[test]
    fn a_level_is_sent_again_after_its_end_while_it_is_high() {
        let mut ioapic = IoApic::default();
        write_entry(&mut ioapic, 10, 0x8050);
        assert!(ioapic.set_line(10, true).is_some());
        assert!(ioapic.set_line(10, false).is_none());
        assert!(ioapic.set_line(10, true).is_none(), "it is being served");
        assert_eq!(ioapic.end_of_interrupt(0x50).len(), 1);
        ioapic.set_line(10, false);
        assert!(ioapic.end_of_interrupt(0x50).is_empty());
    }

    #[test]
    fn a_masked_edge_is_sent_when_the_mask_goes() {
        let mut ioapic = IoApic::default();
        assert!(ioapic.set_line(1, true).is_none());
        let sent = write_entry(&mut ioapic, 1, 0x31).expect("the edge was remembered");
        assert_eq!(sent.vector, 0x31);
    }

    #[test]
    fn it_has_24_pins_and_says_so() {
        let mut ioapic = IoApic::default();
        ioapic.write(0x00, 1);
        assert_eq!(ioapic.read(0x10), 0x0017_0011);
        assert!(ioapic.set_line(24, true).is_none());
        ioapic.write(0x00, 0x3f);
        ioapic.write(0x10, 0xff00_0000);
        assert_eq!(ioapic.read(0x10), 0xff00_0000, "the last pin's destination");
        ioapic.write(0x00, 0xff);
        assert_eq!(ioapic.read(0x10), 0);
    }
}
