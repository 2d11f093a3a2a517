//! The PC's two 8259A interrupt controllers, the second one behind line 2 of the
//! first. Intel, "8259A Programmable Interrupt Controller", datasheet.
//!
//! ```text
//! IRQ 0, 1, 3..7  ->  first  ->  INTR
//! IRQ 8..15       ->  second ->  its line 2
//! ```

/// The line of the first controller that the second one drives.
const CASCADE: u8 = 2;
/// Which lines may be level-triggered: neither the timer, the keyboard and the cascade, nor the clock and
/// the coprocessor. Intel, "82371AB PCI ISA IDE Xcelerator", "Edge/Level Control Registers".
const MAY_BE_LEVEL: [u8; 2] = [0xf8, 0xde];

/// The pair.
#[derive(Clone, Debug, Default)]
pub struct Pic {
    controllers: [Controller; 2],
}

/// What the next write to the odd port is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expects {
    /// OCW1, the mask.
    #[default]
    Mask,
    /// ICW2, the vectors.
    Vectors,
    /// ICW3, the wiring.
    Cascade,
    /// ICW4, the modes.
    Modes,
}

/// One 8259A.
#[derive(Clone, Debug, Default)]
struct Controller {
    /// Requests: IRR.
    requested: u8,
    /// In service: ISR.
    served: u8,
    /// IMR.
    masked: u8,
    /// The lines, as they are.
    lines: u8,
    /// Which of them are level-triggered: ELCR.
    level: u8,
    /// The vector of its line 0.
    vectors: u8,
    /// The line with the highest priority.
    highest: u8,
    expects: Expects,
    wants_modes: bool,
    alone: bool,
    automatic_end: bool,
    rotates: bool,
    /// A line in service does not hold back lower ones, once it is masked.
    special_mask: bool,
    /// The second controller's lines interrupt each other.
    fully_nested: bool,
    /// The even port reads ISR instead of IRR.
    reads_served: bool,
    /// The next read acknowledges.
    polled: bool,
}

impl Pic {
    /// Raises or lowers IRQ 0 to 15.
    pub fn set_line(&mut self, irq: u8, high: bool) {
        self.controllers[usize::from(irq >> 3 & 1)].set_line(irq & 7, high);
        self.update();
    }

    /// Whether INTR is high.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.controllers[0].next(true).is_some()
    }

    /// INTA: the vector. A request that has gone away is line 7, the spurious one.
    pub fn acknowledge(&mut self) -> u8 {
        const SPURIOUS: u8 = 7;
        let [first, second] = &mut self.controllers;
        let vector = match first.next(true) {
            None => return first.vectors + SPURIOUS,
            Some(CASCADE) => {
                first.begin(CASCADE);
                match second.next(false) {
                    Some(line) => {
                        second.begin(line);
                        second.vectors + line
                    }
                    None => second.vectors + SPURIOUS,
                }
            }
            Some(line) => {
                first.begin(line);
                first.vectors + line
            }
        };
        self.update();
        vector
    }

    /// A read of one of its ports; `None` for another's.
    pub fn read(&mut self, port: u16) -> Option<u8> {
        let value = match port {
            0x20 | 0x21 => self.controllers[0].read(port & 1, true),
            0xa0 | 0xa1 => self.controllers[1].read(port & 1, false),
            0x4d0 | 0x4d1 => self.controllers[usize::from(port & 1)].level,
            _ => return None,
        };
        self.update();
        Some(value)
    }

    /// A write to one of its ports; `None` for another's.
    pub fn write(&mut self, port: u16, value: u8) -> Option<()> {
        match port {
            0x20 | 0x21 => self.controllers[0].write(port & 1, value),
            0xa0 | 0xa1 => self.controllers[1].write(port & 1, value),
            0x4d0 | 0x4d1 => {
                let number = usize::from(port & 1);
                self.controllers[number].level = value & MAY_BE_LEVEL[number];
            }
            _ => return None,
        }
        self.update();
        Some(())
    }

    /// The second controller's output is a line of the first.
    fn update(&mut self) {
        let high = self.controllers[1].next(false).is_some();
        self.controllers[0].set_line(CASCADE, high);
    }
}

impl Controller {
    fn set_line(&mut self, line: u8, high: bool) {
        let bit = 1 << line;
        let rises = high && self.lines & bit == 0;
        self.lines = if high { self.lines | bit } else { self.lines & !bit };
        if self.level & bit != 0 {
            self.requested = self.requested & !bit | self.lines & bit;
        } else if rises {
            // The datasheet wants the line high until the acknowledgement. KVM remembers the edge, and
            // its irqfd lets the line fall at once.
            self.requested |= bit;
        }
    }

    /// How far down a line's priority is; 8 for none.
    fn rank(&self, lines: u8) -> u32 {
        lines.rotate_right(u32::from(self.highest)).trailing_zeros()
    }

    /// The line that would be served next.
    fn next(&self, first: bool) -> Option<u8> {
        let wanted = self.rank(self.requested & !self.masked);
        let mut holding_back = self.served;
        if self.special_mask {
            holding_back &= !self.masked;
        }
        if self.fully_nested && first {
            holding_back &= !(1 << CASCADE);
        }
        (wanted < self.rank(holding_back)).then(|| (wanted as u8 + self.highest) & 7)
    }

    /// The CPU takes the line's interrupt.
    fn begin(&mut self, line: u8) {
        if !self.automatic_end {
            self.served |= 1 << line;
        } else if self.rotates {
            self.highest = (line + 1) & 7;
        }
        if self.level & 1 << line == 0 {
            self.requested &= !(1 << line);
        }
    }

    fn read(&mut self, odd: u16, first: bool) -> u8 {
        if std::mem::take(&mut self.polled) {
            let Some(line) = self.next(first) else { return 0 };
            self.begin(line);
            return 0x80 | line;
        }
        match (odd, self.reads_served) {
            (1, _) => self.masked,
            (_, true) => self.served,
            (_, false) => self.requested,
        }
    }

    fn write(&mut self, odd: u16, value: u8) {
        match (odd, self.expects) {
            (0, _) if value & 0x10 != 0 => self.initialize(value),
            (0, _) if value & 0x08 != 0 => self.operation_3(value),
            (0, _) => self.operation_2(value),
            (_, Expects::Mask) => self.masked = value,
            (_, Expects::Vectors) => {
                self.vectors = value & 0xf8;
                self.expects = if self.alone { self.modes_or_done() } else { Expects::Cascade };
            }
            (_, Expects::Cascade) => self.expects = self.modes_or_done(),
            (_, Expects::Modes) => {
                (self.automatic_end, self.fully_nested) = (value & 0x02 != 0, value & 0x10 != 0);
                self.expects = Expects::Mask;
            }
        }
    }

    fn modes_or_done(&self) -> Expects {
        if self.wants_modes { Expects::Modes } else { Expects::Mask }
    }

    /// ICW1: everything but the lines and their kind starts anew.
    fn initialize(&mut self, value: u8) {
        *self = Self {
            requested: self.requested & self.level,
            lines: self.lines & self.level,
            level: self.level,
            expects: Expects::Vectors,
            wants_modes: value & 0x01 != 0,
            alone: value & 0x02 != 0,
            ..Self::default()
        };
    }

    /// OCW2: the end of an interrupt, and the order of the lines.
    fn operation_2(&mut self, value: u8) {
        let (named, ends, rotates) = (value & 0x40 != 0, value & 0x20 != 0, value & 0x80 != 0);
        let line = match (named, ends) {
            (true, _) => value & 7,
            (false, true) => match self.rank(self.served) {
                8 => return,
                rank => (rank as u8 + self.highest) & 7,
            },
            (false, false) => {
                self.rotates = rotates;
                return;
            }
        };
        if ends {
            self.served &= !(1 << line);
        }
        if rotates {
            self.highest = (line + 1) & 7;
        }
    }

    /// OCW3: what reads answer, and the special mask.
    fn operation_3(&mut self, value: u8) {
        self.polled |= value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.reads_served = value & 0x01 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux's `init_8259A` does it: vectors 0x30 and 0x38, all lines open.
    fn initialized() -> Pic {
        let mut pic = Pic::default();
        let writes = [
            (0x20, 0x11),
            (0x21, 0x30),
            (0x21, 0x04),
            (0x21, 0x01),
            (0xa0, 0x11),
            (0xa1, 0x38),
            (0xa1, 0x02),
            (0xa1, 0x01),
            (0x21, 0x00),
            (0xa1, 0x00),
        ];
        for (port, value) in writes {
            pic.write(port, value).expect("a port of the pair");
        }
        pic
    }

    #[test]
    fn an_edge_interrupts_once_until_its_end() {
        let mut pic = initialized();
        pic.set_line(0, true);
        assert!(pic.is_pending());
        assert_eq!(pic.acknowledge(), 0x30);
        assert!(!pic.is_pending(), "the line is still high, but it was one edge");
        pic.set_line(0, false);
        pic.set_line(0, true);
        assert!(!pic.is_pending(), "the first is in service");
        pic.write(0x20, 0x20);
        assert!(pic.is_pending());
        assert_eq!(pic.acknowledge(), 0x30);
    }

    #[test]
    fn the_second_controller_speaks_through_line_2() {
        let mut pic = initialized();
        pic.set_line(12, true);
        assert_eq!(pic.acknowledge(), 0x3c);
        pic.set_line(3, true);
        assert!(!pic.is_pending(), "line 2 is in service, and 3 is below it");
        pic.write(0xa0, 0x20);
        pic.write(0x20, 0x20);
        assert_eq!(pic.acknowledge(), 0x33);
    }

    #[test]
    fn a_masked_line_waits_and_a_level_that_stays_asks_again() {
        let mut pic = initialized();
        pic.write(0x4d0, 1 << 5);
        pic.write(0x21, 1 << 5);
        pic.set_line(5, true);
        assert!(!pic.is_pending());
        pic.write(0x21, 0);
        assert_eq!(pic.acknowledge(), 0x35);
        pic.write(0x20, 0x65); // the specific end of 5
        assert!(pic.is_pending(), "nobody has served the device");
        pic.set_line(5, false);
        assert!(!pic.is_pending());
    }

    #[test]
    fn a_request_that_has_gone_is_spurious() {
        let mut pic = initialized();
        pic.write(0x4d0, 1 << 4);
        pic.set_line(4, true);
        pic.set_line(4, false);
        assert!(!pic.is_pending());
        assert_eq!(pic.acknowledge(), 0x37);
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), Some(0), "and nothing is in service");
    }

    #[test]
    fn a_higher_line_interrupts_a_lower_one() {
        let mut pic = initialized();
        pic.set_line(4, true);
        assert_eq!(pic.acknowledge(), 0x34);
        pic.set_line(1, true);
        assert_eq!(pic.acknowledge(), 0x31);
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), Some(0b1_0010));
        pic.write(0x20, 0x20);
        assert_eq!(pic.read(0x20), Some(0b1_0000), "the end is that of the higher one");
    }

    #[test]
    fn the_order_rotates_when_it_is_told_to() {
        let mut pic = initialized();
        pic.write(0x20, 0xc0 | 3); // 3 is the lowest now
        pic.set_line(3, true);
        pic.set_line(4, true);
        assert_eq!(pic.acknowledge(), 0x34);
    }
}
