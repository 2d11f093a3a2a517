//! A CPU's local APIC in xAPIC mode: interrupts by priority, interrupts between
//! CPUs, and a timer. Intel SDM Vol. 3A, chapter "Advanced Programmable Interrupt
//! Controller (APIC)".

/// Where its registers are after reset, guest-physical.
#[cfg(test)]
pub const ADDRESS: u64 = 0xfee0_0000;

/// An interrupt on its way to a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The vector.
    pub vector: u8,
    /// The delivery mode; see [`mode`].
    pub mode: u8,
    /// The destination is a set of CPUs, not an APIC ID.
    pub logical: bool,
    /// Who gets it.
    pub destination: u8,
    /// Level-triggered: its end is told to the I/O APIC.
    pub level: bool,
}

/// Delivery modes. Intel SDM Vol. 3A, "Local Vector Table".
pub mod mode {
    /// The vector.
    pub const FIXED: u8 = 0;
    /// The vector, to the CPU with the lowest priority.
    pub const LOWEST: u8 = 1;
    /// A non-maskable interrupt.
    pub const NMI: u8 = 4;
    /// The vector comes from the 8259A.
    pub const EXTERNAL: u8 = 7;
}

/// Offsets of registers. Intel SDM Vol. 3A, "Local APIC Register Address Map".
#[rustfmt::skip] // laid out like the manual's table
mod register {
    pub const ID: u64          = 0x020;
    pub const VERSION: u64     = 0x030;
    pub const TPR: u64         = 0x080;
    pub const PPR: u64         = 0x0a0;
    pub const EOI: u64         = 0x0b0;
    pub const LDR: u64         = 0x0d0;
    pub const DFR: u64         = 0x0e0;
    pub const SVR: u64         = 0x0f0;
    pub const ISR: u64         = 0x100; // eight of 32 bits
    pub const TMR: u64         = 0x180;
    pub const IRR: u64         = 0x200;
    pub const ESR: u64         = 0x280;
    pub const ICR_LOW: u64     = 0x300;
    pub const ICR_HIGH: u64    = 0x310;
    pub const LVT_TIMER: u64   = 0x320;
    #[cfg(test)]
    pub const LVT_LINT0: u64   = 0x350;
    pub const LVT_ERROR: u64   = 0x370;
    pub const INITIAL: u64     = 0x380;
    pub const CURRENT: u64     = 0x390;
    pub const DIVIDE: u64      = 0x3e0;
}

const ENABLED: u32 = 1 << 8; // SVR
const MASKED: u32 = 1 << 16; // LVT
const PERIODIC: u32 = 1 << 17; // LVT timer
/// LINT0 among the local vectors.
const LINT0: usize = 3;
/// Six local vectors, of an APIC that is inside the CPU.
const VERSION: u32 = 0x14 | 5 << 16;

/// 256 bits, one a vector.
#[derive(Clone, Copy, Debug, Default)]
struct Vectors([u32; 8]);

impl Vectors {
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }

    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }

    fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] >> (vector & 31) & 1 != 0
    }

    fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|word| *word != 0)?;
        Some((word as u32 * 32 + 31 - self.0[word].leading_zeros()) as u8)
    }
}

/// The controller.
#[derive(Clone, Debug)]
pub struct LocalApic {
    id: u8,
    requested: Vectors,
    served: Vectors,
    level: Vectors,
    task_priority: u8,
    spurious: u32,
    logical: u32,
    format: u32,
    errors: u32,
    command: [u32; 2],
    /// Timer, thermal, performance, LINT0, LINT1, error.
    local: [u32; 6],
    initial: u32,
    divide: u32,
    /// When the timer was started, in nanoseconds; its expirations that were seen since.
    started: u64,
    expired: u64,
    /// A non-maskable interrupt waits to be taken away.
    nmi: bool,
}

impl LocalApic {
    /// After reset: off by software, everything masked. The first CPU's LINT0 lets the 8259A through all
    /// the same, as KVM has it (`KVM_X86_QUIRK_LINT0_REENABLED`): a guest without a BIOS expects it.
    #[must_use]
    pub fn reset(id: u8) -> Self {
        let mut local = [MASKED; 6];
        if id == 0 {
            local[LINT0] = u32::from(mode::EXTERNAL) << 8;
        }
        Self {
            id,
            requested: Vectors::default(),
            served: Vectors::default(),
            level: Vectors::default(),
            task_priority: 0,
            spurious: 0xff,
            logical: 0,
            format: u32::MAX,
            errors: 0,
            command: [0; 2],
            local,
            initial: 0,
            divide: 0,
            started: 0,
            expired: 0,
            nmi: false,
        }
    }

    /// What software turns on with SVR.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.spurious & ENABLED != 0
    }

    /// Whether the 8259A's interrupts get through LINT0.
    #[must_use]
    pub fn passes_external(&self) -> bool {
        let lint0 = self.local[LINT0];
        lint0 & MASKED == 0 && (lint0 >> 8 & 7) as u8 == mode::EXTERNAL
    }

    /// A message from the I/O APIC, or another CPU: whether this CPU takes it.
    pub fn receive(&mut self, message: &Message) -> bool {
        if !self.is_meant(message.logical, message.destination) {
            return false;
        }
        match message.mode {
            mode::FIXED | mode::LOWEST => self.request(message.vector, message.level),
            mode::NMI => self.nmi = true,
            _ => {}
        }
        true
    }

    /// Intel SDM Vol. 3A, "Determining IPI Destination".
    fn is_meant(&self, logical: bool, destination: u8) -> bool {
        const BROADCAST: u8 = 0xff;
        if destination == BROADCAST {
            return true;
        }
        if !logical {
            return destination == self.id;
        }
        let own = (self.logical >> 24) as u8;
        match self.format >> 28 {
            // The flat model: a bit a CPU.
            0xf => own & destination != 0,
            // The cluster model: four bits a cluster, and a bit a CPU in it.
            _ => own >> 4 == destination >> 4 && own & destination & 0xf != 0,
        }
    }

    fn request(&mut self, vector: u8, level: bool) {
        const ILLEGAL_VECTOR: u32 = 1 << 6;
        if vector < 16 {
            self.errors |= ILLEGAL_VECTOR;
            return;
        }
        if !self.is_enabled() {
            return;
        }
        self.requested.set(vector);
        if level { self.level.set(vector) } else { self.level.clear(vector) }
    }

    /// The priority that an interrupt must be above: TPR, or what is being served.
    fn processor_priority(&self) -> u8 {
        let served = self.served.highest().unwrap_or(0);
        if self.task_priority >> 4 >= served >> 4 { self.task_priority } else { served & 0xf0 }
    }

    /// The vector that the CPU would take next.
    #[must_use]
    pub fn pending(&self) -> Option<u8> {
        let vector = self.requested.highest()?;
        (self.is_enabled() && vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// The CPU takes it.
    pub fn acknowledge(&mut self, vector: u8) {
        self.requested.clear(vector);
        self.served.set(vector);
    }

    /// Whether a non-maskable interrupt waits.
    #[must_use]
    pub fn has_nmi(&self) -> bool {
        self.nmi
    }

    /// The CPU takes it.
    pub fn take_nmi(&mut self) {
        self.nmi = false;
    }

    /// CR8, which is TPR's upper half. Intel SDM Vol. 3A, "Task Priority in IA-32e Mode".
    #[must_use]
    pub fn cr8(&self) -> u64 {
        u64::from(self.task_priority >> 4)
    }

    /// Sets it.
    pub fn set_cr8(&mut self, value: u64) {
        self.task_priority = (value << 4) as u8;
    }

    /// Nanoseconds a count: the bus runs at 1 GHz, as KVM's does.
    fn divisor(&self) -> u64 {
        match self.divide & 3 | self.divide >> 1 & 4 {
            7 => 1,
            power => 2 << power,
        }
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.divisor()
    }

    fn current(&self, now: u64) -> u32 {
        if self.initial == 0 {
            return 0;
        }
        let elapsed = now.saturating_sub(self.started) / self.divisor();
        let initial = u64::from(self.initial);
        if self.local[0] & PERIODIC != 0 {
            (initial - elapsed % initial) as u32
        } else {
            initial.saturating_sub(elapsed) as u32
        }
    }

    /// When the timer expires next, in nanoseconds.
    #[must_use]
    pub fn next_expiration(&self) -> Option<u64> {
        if self.initial == 0 || self.local[0] & PERIODIC == 0 && self.expired > 0 {
            return None;
        }
        self.period().checked_mul(self.expired + 1)?.checked_add(self.started)
    }

    /// Lets the timer run up to `now`.
    pub fn advance(&mut self, now: u64) {
        while let Some(at) = self.next_expiration().filter(|at| *at <= now) {
            // Expirations that nobody took are one.
            let missed = if self.local[0] & PERIODIC == 0 { 0 } else { (now - at) / self.period() };
            self.expired += 1 + missed;
            if self.local[0] & MASKED == 0 {
                self.request(self.local[0] as u8, false);
            }
        }
    }

    /// All registers, the one at offset `n * 16` in place `n`: `KVM_GET_LAPIC`.
    #[must_use]
    pub fn registers(&self, now: u64) -> [u32; 64] {
        std::array::from_fn(|number| self.read(number as u64 * 16, now))
    }

    /// Sets them: `KVM_SET_LAPIC`.
    pub fn set_registers(&mut self, registers: &[u32; 64], now: u64) {
        let at = |offset: u64| registers[(offset >> 4) as usize];
        let words = |base: u64| Vectors(std::array::from_fn(|word| at(base + 16 * word as u64)));
        (self.served, self.level) = (words(register::ISR), words(register::TMR));
        self.requested = words(register::IRR);
        (self.errors, self.command) = (at(register::ESR), [at(register::ICR_LOW), at(register::ICR_HIGH)]);
        for offset in [register::ID, register::TPR, register::LDR, register::DFR, register::SVR] {
            self.write(offset, at(offset), now);
        }
        self.local = std::array::from_fn(|number| at(register::LVT_TIMER + 16 * number as u64));
        self.write(register::DIVIDE, at(register::DIVIDE), now);
        self.write(register::INITIAL, at(register::INITIAL), now);
    }

    /// A read of four bytes at this offset.
    #[must_use]
    pub fn read(&self, offset: u64, now: u64) -> u32 {
        let word = |vectors: &Vectors, base: u64| vectors.0[(offset - base) as usize >> 4];
        match offset & !0xf {
            register::ID => u32::from(self.id) << 24,
            register::VERSION => VERSION,
            register::TPR => u32::from(self.task_priority),
            register::PPR => u32::from(self.processor_priority()),
            register::LDR => self.logical,
            register::DFR => self.format,
            register::SVR => self.spurious,
            register::ISR..register::TMR => word(&self.served, register::ISR),
            register::TMR..register::IRR => word(&self.level, register::TMR),
            register::IRR..register::ESR => word(&self.requested, register::IRR),
            register::ESR => self.errors,
            register::ICR_LOW => self.command[0],
            register::ICR_HIGH => self.command[1],
            register::LVT_TIMER..=register::LVT_ERROR => self.local[local_vector(offset)],
            register::INITIAL => self.initial,
            register::CURRENT => self.current(now),
            register::DIVIDE => self.divide,
            _ => 0,
        }
    }

    /// A write of four bytes at this offset. What follows for others is returned.
    pub fn write(&mut self, offset: u64, value: u32, now: u64) -> Option<Effect> {
        match offset & !0xf {
            register::ID => self.id = (value >> 24) as u8,
            register::TPR => self.task_priority = value as u8,
            register::EOI => return self.end_of_interrupt(),
            register::LDR => self.logical = value & 0xff00_0000,
            register::DFR => self.format = value | 0x0fff_ffff,
            register::SVR => {
                self.spurious = value & 0x3ff;
                if !self.is_enabled() {
                    self.local.iter_mut().for_each(|local| *local |= MASKED);
                }
            }
            register::ESR => self.errors = 0,
            register::ICR_LOW => {
                self.command[0] = value & !(1 << 12); // it is always delivered already
                return self.send();
            }
            register::ICR_HIGH => self.command[1] = value & 0xff00_0000,
            register::LVT_TIMER..=register::LVT_ERROR => {
                let masked = if self.is_enabled() { 0 } else { MASKED };
                self.local[local_vector(offset)] = value & 0x0003_f7ff | masked;
            }
            register::INITIAL => (self.initial, self.started, self.expired) = (value, now, 0),
            register::DIVIDE => self.divide = value & 0xb,
            _ => {}
        }
        None
    }

    fn end_of_interrupt(&mut self) -> Option<Effect> {
        let vector = self.served.highest()?;
        self.served.clear(vector);
        self.level.has(vector).then_some(Effect::EndOfInterrupt(vector))
    }

    /// ICR: an interrupt to this CPU or to others. Intel SDM Vol. 3A, "Issuing Interprocessor Interrupts".
    fn send(&mut self) -> Option<Effect> {
        let [low, high] = self.command;
        let message = Message {
            vector: low as u8,
            mode: (low >> 8 & 7) as u8,
            logical: low >> 11 & 1 != 0,
            destination: (high >> 24) as u8,
            level: false,
        };
        let everyone = Message { logical: false, destination: 0xff, ..message };
        match low >> 18 & 3 {
            0 if self.receive(&message) && !message.logical && message.destination == self.id => None,
            0 => Some(Effect::Send(message)),
            1 => {
                self.receive(&everyone);
                None
            }
            2 => {
                self.receive(&everyone);
                Some(Effect::Send(everyone))
            }
            _ => Some(Effect::Send(everyone)),
        }
    }
}

/// What a write to a local APIC means for the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A level-triggered interrupt has been served.
    EndOfInterrupt(u8),
    /// For the other CPUs.
    Send(Message),
}

fn local_vector(offset: u64) -> usize {
    ((offset - register::LVT_TIMER) >> 4) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled() -> LocalApic {
        let mut apic = LocalApic::reset(0);
        apic.write(register::SVR, 0x1ff, 0);
        apic
    }

    fn fixed(vector: u8) -> Message {
        Message { vector, mode: mode::FIXED, logical: false, destination: 0, level: false }
    }

    #[test]
    fn the_highest_vector_comes_first_and_holds_back_its_class() {
        let mut apic = enabled();
        apic.receive(&fixed(0x31));
        apic.receive(&fixed(0x45));
        assert_eq!(apic.pending(), Some(0x45));
        apic.acknowledge(0x45);
        assert_eq!(apic.pending(), None);
        assert_eq!(apic.read(register::PPR, 0), 0x40);
        apic.receive(&fixed(0x51));
        assert_eq!(apic.pending(), Some(0x51));
        apic.write(register::EOI, 0, 0);
        apic.acknowledge(0x51);
        apic.write(register::EOI, 0, 0);
        assert_eq!(apic.pending(), Some(0x31));
    }

    #[test]
    fn the_task_priority_holds_back_too() {
        let mut apic = enabled();
        apic.receive(&fixed(0x31));
        apic.set_cr8(3);
        assert_eq!(apic.pending(), None);
        apic.write(register::TPR, 0x20, 0);
        assert_eq!((apic.pending(), apic.cr8()), (Some(0x31), 2));
    }

    #[test]
    fn a_one_shot_timer_expires_once_and_a_periodic_one_goes_on() {
        let mut apic = enabled();
        apic.write(register::DIVIDE, 0b1011, 0); // by 1
        apic.write(register::LVT_TIMER, 0x40, 0);
        apic.write(register::INITIAL, 1000, 500);
        assert_eq!(apic.read(register::CURRENT, 700), 800);
        assert_eq!(apic.next_expiration(), Some(1500));
        apic.advance(1499);
        assert_eq!(apic.pending(), None);
        apic.advance(1500);
        assert_eq!((apic.pending(), apic.next_expiration()), (Some(0x40), None));

        apic.write(register::LVT_TIMER, 0x40 | PERIODIC, 0);
        apic.write(register::DIVIDE, 0b0000, 0); // by 2
        apic.write(register::INITIAL, 1000, 0);
        apic.advance(9000);
        assert_eq!(apic.next_expiration(), Some(10_000), "those that were missed are one");
    }

    #[test]
    fn an_apic_that_is_off_lets_the_8259a_through_and_nothing_else() {
        let mut apic = LocalApic::reset(0);
        assert!(apic.passes_external());
        assert!(!LocalApic::reset(1).passes_external());
        assert!(apic.receive(&fixed(0x31)));
        assert_eq!(apic.pending(), None);
        apic.write(register::SVR, 0x1ff, 0);
        apic.write(register::LVT_LINT0, 0x1_0700, 0);
        assert!(!apic.passes_external(), "LINT0 is masked");
    }

    #[test]
    fn only_a_level_is_told_to_the_io_apic_at_its_end() {
        let mut apic = enabled();
        apic.receive(&Message { level: true, ..fixed(0x50) });
        apic.acknowledge(0x50);
        assert_eq!(apic.write(register::EOI, 0, 0), Some(Effect::EndOfInterrupt(0x50)));
        apic.receive(&fixed(0x50));
        apic.acknowledge(0x50);
        assert_eq!(apic.write(register::EOI, 0, 0), None);
    }

    #[test]
    fn a_logical_destination_is_a_set() {
        let mut apic = enabled();
        apic.write(register::LDR, 0x0100_0000, 0);
        let to = |destination| Message { logical: true, destination, ..fixed(0x31) };
        assert!(apic.receive(&to(0x03)));
        assert!(!apic.receive(&to(0x02)));
    }

    #[test]
    fn an_interrupt_to_itself_is_taken_at_once() {
        let mut apic = enabled();
        assert_eq!(apic.write(register::ICR_LOW, 0x4_0061, 0), None);
        assert_eq!(apic.pending(), Some(0x61));
        assert!(matches!(apic.write(register::ICR_LOW, 0xc_0062, 0), Some(Effect::Send(_))));
    }

    #[test]
    fn a_vector_below_16_is_an_error() {
        let mut apic = enabled();
        apic.receive(&fixed(5));
        assert_eq!(apic.read(register::ESR, 0), 1 << 6);
    }
}
