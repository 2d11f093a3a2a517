//! The 8254 interval timer: three counters of 16 bits that count down at
//! 1.193182 MHz. Intel, "82C54 CHMOS Programmable Interval Timer", datasheet.
//!
//! Counter 0 drives IRQ 0. Counter 2 and port 0x61 are the speaker; operating
//! systems use them to measure time. Counter 1 refreshed the memory once.

/// Counts a second.
const FREQUENCY: u128 = 1_193_182;
const SECOND: u128 = 1_000_000_000;

/// The three counters.
#[derive(Clone, Debug, Default)]
pub struct Pit {
    counters: [Counter; 3],
    /// Rising edges of counter 0's output that were seen.
    edges_seen: u64,
    /// Port 0x61 bit 1.
    speaker: bool,
}

/// Which byte of a counter is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Access {
    #[default]
    Low,
    High,
    /// The low byte, then the high one.
    Both,
}

#[derive(Clone, Debug)]
struct Counter {
    mode: u8,
    bcd: bool,
    access: Access,
    /// 1 to 65536; `None` until the guest has written one.
    count: Option<u32>,
    /// When it was loaded, in nanoseconds.
    loaded: u64,
    gate: bool,
    /// The low byte of a count, whose high byte is awaited.
    low_byte: Option<u8>,
    reads_high: bool,
    latched: Option<u16>,
    status: Option<u8>,
}

impl Default for Counter {
    fn default() -> Self {
        Self {
            mode: 3,
            bcd: false,
            access: Access::Both,
            count: None,
            loaded: 0,
            gate: true,
            low_byte: None,
            reads_high: false,
            latched: None,
            status: None,
        }
    }
}

fn ticks(nanoseconds: u64) -> u64 {
    (u128::from(nanoseconds) * FREQUENCY / SECOND) as u64
}

/// The first nanosecond at which `ticks` have passed.
fn nanoseconds(ticks: u64) -> u64 {
    u64::try_from((u128::from(ticks) * SECOND).div_ceil(FREQUENCY)).unwrap_or(u64::MAX)
}

impl Counter {
    fn elapsed(&self, now: u64) -> u64 {
        ticks(now).saturating_sub(ticks(self.loaded))
    }

    /// What a read would show. Mode 3 counts down by two.
    fn value(&self, now: u64) -> u16 {
        let Some(count) = self.count else { return 0 };
        let (count, elapsed) = (u64::from(count), self.elapsed(now));
        let value = match self.mode {
            2 => count - elapsed % count,
            3 => (count - 2 * elapsed % count) & !1,
            _ => count.wrapping_sub(elapsed),
        } as u16;
        if self.bcd { to_bcd(value) } else { value }
    }

    fn output(&self, now: u64) -> bool {
        let Some(count) = self.count else { return self.mode != 0 };
        let (count, elapsed) = (u64::from(count), self.elapsed(now));
        match self.mode {
            0 | 1 => elapsed >= count,
            2 => elapsed % count != count - 1,
            3 => elapsed % count < count.div_ceil(2),
            _ => elapsed != count,
        }
    }

    /// How often the output has risen since the count was loaded.
    fn edges(&self, now: u64) -> u64 {
        let Some(count) = self.count else { return 0 };
        let elapsed = self.elapsed(now);
        match self.mode {
            0 => u64::from(elapsed >= u64::from(count)),
            2 | 3 => elapsed / u64::from(count),
            4 => u64::from(elapsed > u64::from(count)),
            // They start when the gate rises, and counter 0's never does.
            _ => 0,
        }
    }

    /// When the output rises for the `number`th time.
    fn edge_at(&self, number: u64) -> Option<u64> {
        let count = u64::from(self.count?);
        let after = match self.mode {
            0 if number == 1 => count,
            2 | 3 => count.checked_mul(number)?,
            4 if number == 1 => count + 1,
            _ => return None,
        };
        Some(nanoseconds(ticks(self.loaded) + after))
    }

    fn write(&mut self, byte: u8, now: u64) {
        let value = match (self.access, self.low_byte.take()) {
            (Access::Low, _) => u16::from(byte),
            (Access::High, _) => u16::from(byte) << 8,
            (Access::Both, Some(low)) => u16::from(low) | u16::from(byte) << 8,
            (Access::Both, None) => {
                self.low_byte = Some(byte);
                return;
            }
        };
        let value = if self.bcd { from_bcd(value) } else { value };
        let all = if self.bcd { 10_000 } else { 0x1_0000 };
        self.count = Some(if value == 0 { all } else { u32::from(value) });
        self.loaded = now;
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let value = self.latched.unwrap_or_else(|| self.value(now));
        let [low, high] = value.to_le_bytes();
        let (byte, last) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::Both => {
                self.reads_high = !self.reads_high;
                if self.reads_high { (low, false) } else { (high, true) }
            }
        };
        if last {
            self.latched = None;
        }
        byte
    }

    fn latch(&mut self, now: u64) {
        self.latched.get_or_insert(self.value(now));
    }

    fn latch_status(&mut self, now: u64) {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        let no_count = u8::from(self.count.is_none());
        let output = u8::from(self.output(now));
        let status = output << 7 | no_count << 6 | access << 4 | self.mode << 1 | u8::from(self.bcd);
        self.status.get_or_insert(status);
    }
}

fn to_bcd(value: u16) -> u16 {
    (0..4).fold(0, |bcd, digit| bcd | (value / 10u16.pow(digit) % 10) << (4 * digit))
}

fn from_bcd(bcd: u16) -> u16 {
    (0..4).fold(0, |value, digit| value + (bcd >> (4 * digit) & 0xf) * 10u16.pow(digit))
}

impl Pit {
    /// Whether counter 0's output has risen since this was last asked.
    pub fn has_ticked(&mut self, now: u64) -> bool {
        let edges = self.counters[0].edges(now);
        std::mem::replace(&mut self.edges_seen, edges) < edges
    }

    /// When it will rise next, in nanoseconds.
    #[must_use]
    pub fn next_tick(&self) -> Option<u64> {
        self.counters[0].edge_at(self.edges_seen + 1)
    }

    /// A read of one of its ports; `None` for another's.
    pub fn read(&mut self, port: u16, now: u64) -> Option<u8> {
        match port {
            0x40..=0x42 => Some(self.counters[usize::from(port & 3)].read(now)),
            0x43 => Some(0),
            0x61 => {
                // Bit 4 shows the memory's refresh, which took turns every 15 us.
                let refresh = (now / 15_000 % 2) as u8;
                let [_, _, counter] = &self.counters;
                let output = u8::from(counter.output(now));
                Some(output << 5 | refresh << 4 | u8::from(self.speaker) << 1 | u8::from(counter.gate))
            }
            _ => None,
        }
    }

    /// A write to one of its ports; `None` for another's.
    pub fn write(&mut self, port: u16, value: u8, now: u64) -> Option<()> {
        match port {
            0x40..=0x42 => {
                let number = usize::from(port & 3);
                self.counters[number].write(value, now);
                if number == 0 {
                    self.edges_seen = 0;
                }
            }
            0x43 => self.command(value, now),
            0x61 => {
                self.speaker = value & 2 != 0;
                let counter = &mut self.counters[2];
                let gate = value & 1 != 0;
                // The rising gate starts modes 1, 2, 3 and 5 anew.
                if gate && !counter.gate && !matches!(counter.mode, 0 | 4) {
                    counter.loaded = now;
                }
                counter.gate = gate;
            }
            _ => return None,
        }
        Some(())
    }

    fn command(&mut self, value: u8, now: u64) {
        const READ_BACK: u8 = 3;
        let which = value >> 6;
        if which == READ_BACK {
            for (number, counter) in self.counters.iter_mut().enumerate() {
                if value >> (number + 1) & 1 == 0 {
                    continue;
                }
                if value & 0x20 == 0 {
                    counter.latch(now);
                }
                if value & 0x10 == 0 {
                    counter.latch_status(now);
                }
            }
            return;
        }
        let counter = &mut self.counters[usize::from(which)];
        let access = match value >> 4 & 3 {
            0 => return counter.latch(now),
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        // 6 and 7 are 2 and 3 again.
        let mode = match value >> 1 & 7 {
            mode @ 6.. => mode - 4,
            mode => mode,
        };
        *counter = Counter { mode, bcd: value & 1 != 0, access, gate: counter.gate, ..Counter::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_hertz_ticks_a_hundred_times_a_second() {
        let mut pit = Pit::default();
        pit.write(0x43, 0x34, 0); // counter 0, both bytes, mode 2
        let [low, high] = 11932u16.to_le_bytes();
        pit.write(0x40, low, 0);
        pit.write(0x40, high, 0);
        let mut ticks = 0;
        while let Some(at) = pit.next_tick().filter(|at| *at <= 1_000_000_000) {
            assert!(!pit.has_ticked(at - 1));
            assert!(pit.has_ticked(at));
            ticks += 1;
        }
        assert_eq!(ticks, 99, "11932 counts are a little more than 10 ms");
    }

    #[test]
    fn a_one_shot_ticks_once() {
        let mut pit = Pit::default();
        pit.write(0x43, 0x30, 1000);
        pit.write(0x40, 0x00, 1000);
        pit.write(0x40, 0x01, 1000);
        let at = pit.next_tick().expect("it counts");
        assert_eq!(ticks(at) - ticks(1000), 256);
        assert!(pit.has_ticked(at));
        assert_eq!(pit.next_tick(), None);
    }

    #[test]
    fn a_latched_count_stays_while_it_counts_on() {
        let mut pit = Pit::default();
        pit.write(0x43, 0x34, 0);
        pit.write(0x40, 0xff, 0);
        pit.write(0x40, 0xff, 0);
        pit.write(0x43, 0x00, 1_000_000);
        let low = pit.read(0x40, 2_000_000).expect("a port");
        let high = pit.read(0x40, 3_000_000).expect("a port");
        assert_eq!(u16::from_le_bytes([low, high]), 0xffff - 1193);
    }

    /// Linux's `pit_calibrate_tsc`: counter 2 in mode 0, and port 0x61 bit 5 until it is over.
    #[test]
    fn counter_2_tells_by_port_61_that_its_time_is_over() {
        let mut pit = Pit::default();
        pit.write(0x61, 0x01, 0);
        pit.write(0x43, 0xb0, 0);
        pit.write(0x42, 0xa9, 0); // 1193 counts: 1 ms
        pit.write(0x42, 0x04, 0);
        let over = |pit: &mut Pit, now| pit.read(0x61, now).expect("a port") & 0x20 != 0;
        assert!(!over(&mut pit, 990_000));
        assert!(over(&mut pit, 1_000_000));
    }

    #[test]
    fn the_read_back_command_shows_mode_and_output() {
        let mut pit = Pit::default();
        pit.write(0x43, 0x36, 0);
        pit.write(0x40, 0x10, 0);
        pit.write(0x40, 0x00, 0);
        pit.write(0x43, 0xe2, 0); // the status of counter 0
        assert_eq!(pit.read(0x40, 0), Some(0x80 | 0x36));
    }

    #[test]
    fn decimal_counts_are_decimal() {
        assert_eq!((to_bcd(1234), from_bcd(0x9876)), (0x1234, 9876));
        let mut pit = Pit::default();
        pit.write(0x43, 0x35, 0); // counter 0, both bytes, mode 2, decimal
        pit.write(0x40, 0, 0);
        pit.write(0x40, 0, 0); // 0 is all of them: 10000
        assert_eq!(pit.next_tick().map(ticks), Some(10_000));
    }
}
