//! The interrupt controllers and the timer of a PC: what KVM_CREATE_IRQCHIP and
//! KVM_CREATE_PIT2 put beside the CPU.
//!
//! ```text
//! PIT ──> line 0 ┐
//! devices ───────┴─> lines 0..15  ──> 8259A pair ──> LINT0 ┐
//!                └─> pins 0..23   ──> I/O APIC   ──────────┴─> local APIC ──> CPU
//! ```
//!
//! Time is a number of nanoseconds that the caller keeps: an instruction is one. So
//! a timer's interrupt comes at the same instruction in every run.

mod ioapic;
mod lapic;
mod pic;
mod pit;

use ioapic::IoApic;
pub use lapic::LocalApic;
use lapic::{Effect, Message};
use pic::Pic;
use pit::Pit;

/// The controllers of one machine.
#[derive(Clone, Debug, Default)]
pub struct Chipset {
    pic: Pic,
    ioapic: IoApic,
    pit: Option<Pit>,
    /// One a CPU, by its number.
    local: Vec<LocalApic>,
}

/// What waits for a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// An interrupt, which RFLAGS.IF holds back.
    Interrupt,
    /// One that nothing but itself holds back.
    NonMaskable,
}

impl Chipset {
    /// Adds the timer: `KVM_CREATE_PIT2`. False where there is one.
    pub fn add_pit(&mut self) -> bool {
        if self.pit.is_some() {
            return false;
        }
        self.pit = Some(Pit::default());
        true
    }

    /// Adds a CPU's local APIC; its number is the APIC ID.
    pub fn add_cpu(&mut self, number: usize) {
        while self.local.len() <= number {
            self.local.push(LocalApic::reset(self.local.len() as u8));
        }
    }

    /// Raises or lowers a global interrupt line: `KVM_IRQ_LINE` with KVM's default routes. Lines 0 to 15
    /// are the 8259As', and the I/O APIC's pins; the rest are pins only.
    pub fn set_line(&mut self, line: u32, high: bool) {
        const OLD_LINES: u32 = 16;
        if line < OLD_LINES {
            self.pic.set_line(line as u8, high);
        }
        let message = self.ioapic.set_line(line as usize, high);
        self.send(message);
    }

    /// Brings a message to every CPU that it is meant for; of those that could take one with the lowest
    /// priority, the first gets it.
    fn send(&mut self, message: Option<Message>) {
        let Some(message) = message else { return };
        for local in &mut self.local {
            if local.receive(&message) && message.mode == lapic::mode::LOWEST {
                break;
            }
        }
    }

    /// Lets the timers run up to `now`.
    pub fn advance(&mut self, cpu: usize, now: u64) {
        if self.pit.as_mut().is_some_and(|pit| pit.has_ticked(now)) {
            self.set_line(0, false);
            self.set_line(0, true);
        }
        if let Some(local) = self.local.get_mut(cpu) {
            local.advance(now);
        }
    }

    /// When a timer has something to do next, in nanoseconds.
    #[must_use]
    pub fn next_event(&self, cpu: usize) -> Option<u64> {
        let tick = self.pit.as_ref().and_then(Pit::next_tick);
        let expiration = self.local.get(cpu).and_then(LocalApic::next_expiration);
        tick.into_iter().chain(expiration).min()
    }

    /// What waits for this CPU.
    #[must_use]
    pub fn waiting(&self, cpu: usize) -> Option<Waiting> {
        let local = self.local.get(cpu)?;
        if local.has_nmi() {
            return Some(Waiting::NonMaskable);
        }
        let external = cpu == 0 && local.passes_external() && self.pic.is_pending();
        (external || local.pending().is_some()).then_some(Waiting::Interrupt)
    }

    /// The CPU takes an interrupt: its vector. The 8259A's come before the local APIC's, as in KVM.
    pub fn acknowledge(&mut self, cpu: usize) -> Option<u8> {
        let local = self.local.get_mut(cpu)?;
        if cpu == 0 && local.passes_external() && self.pic.is_pending() {
            return Some(self.pic.acknowledge());
        }
        let vector = local.pending()?;
        local.acknowledge(vector);
        Some(vector)
    }

    /// The CPU takes a non-maskable interrupt.
    pub fn acknowledge_nmi(&mut self, cpu: usize) {
        if let Some(local) = self.local.get_mut(cpu) {
            local.take_nmi();
        }
    }

    /// A CPU's local APIC.
    pub fn local(&mut self, cpu: usize) -> Option<&mut LocalApic> {
        self.local.get_mut(cpu)
    }

    /// The task priority of a CPU, CR8.
    #[must_use]
    pub fn cr8(&self, cpu: usize) -> u64 {
        self.local.get(cpu).map_or(0, LocalApic::cr8)
    }

    /// Sets it.
    pub fn set_cr8(&mut self, cpu: usize, value: u64) {
        if let Some(local) = self.local.get_mut(cpu) {
            local.set_cr8(value);
        }
    }

    /// A read of an I/O port; `None` where the port is no one's here.
    pub fn read_port(&mut self, port: u16, now: u64) -> Option<u8> {
        self.pic.read(port).or_else(|| self.pit.as_mut()?.read(port, now))
    }

    /// A write to an I/O port; `None` where the port is no one's here.
    pub fn write_port(&mut self, port: u16, value: u8, now: u64) -> Option<()> {
        self.pic.write(port, value).or_else(|| self.pit.as_mut()?.write(port, value, now))
    }

    /// A read of four aligned bytes; `None` where the address is no one's here. `apic_base` is the CPU's
    /// register of that name.
    #[must_use]
    pub fn read_memory(&self, cpu: usize, apic_base: u64, address: u64, now: u64) -> Option<u32> {
        match self.owner(apic_base, address)? {
            Owner::IoApic(offset) => Some(self.ioapic.read(offset)),
            Owner::Local(offset) => Some(self.local.get(cpu)?.read(offset, now)),
        }
    }

    /// A write of four aligned bytes; `None` where the address is no one's here.
    pub fn write_memory(
        &mut self,
        cpu: usize,
        apic_base: u64,
        address: u64,
        value: u32,
        now: u64,
    ) -> Option<()> {
        match self.owner(apic_base, address)? {
            Owner::IoApic(offset) => {
                let message = self.ioapic.write(offset, value);
                self.send(message);
            }
            Owner::Local(offset) => match self.local.get_mut(cpu)?.write(offset, value, now) {
                None => {}
                Some(Effect::EndOfInterrupt(vector)) => {
                    for message in self.ioapic.end_of_interrupt(vector) {
                        self.send(Some(message));
                    }
                }
                Some(Effect::Send(message)) => {
                    let others = self.local.iter_mut().enumerate().filter(|(number, _)| *number != cpu);
                    for (_, local) in others {
                        local.receive(&message);
                    }
                }
            },
        }
        Some(())
    }

    fn owner(&self, apic_base: u64, address: u64) -> Option<Owner> {
        /// IA32_APIC_BASE bit 11. Intel SDM Vol. 3A, "Enabling or Disabling the Local APIC".
        const ON: u64 = 1 << 11;
        const PAGE: u64 = 0xfff;
        let base = apic_base & !PAGE;
        if apic_base & ON != 0 && address & !PAGE == base {
            return Some(Owner::Local(address & PAGE));
        }
        (address & !0xff == ioapic::ADDRESS).then_some(Owner::IoApic(address & 0xff))
    }
}

/// Whose register an address is, and its offset there.
enum Owner {
    Local(u64),
    IoApic(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    const APIC_BASE: u64 = lapic::ADDRESS | 0x900;

    fn chipset() -> Chipset {
        let mut chipset = Chipset::default();
        assert!(chipset.add_pit());
        assert!(!chipset.add_pit());
        chipset.add_cpu(0);
        chipset
    }

    #[test]
    fn a_tick_goes_through_the_8259a_while_the_apic_is_off() {
        let mut chipset = chipset();
        let writes = [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe)];
        let timer = [(0x43, 0x34), (0x40, 0x00), (0x40, 0x10)];
        for (port, value) in writes.into_iter().chain(timer) {
            chipset.write_port(port, value, 0).expect("a port of the PC");
        }
        let at = chipset.next_event(0).expect("the timer runs");
        chipset.advance(0, at - 1);
        assert_eq!(chipset.waiting(0), None);
        chipset.advance(0, at);
        assert_eq!(chipset.waiting(0), Some(Waiting::Interrupt));
        assert_eq!(chipset.acknowledge(0), Some(0x20));
        assert_eq!(chipset.waiting(0), None);
    }

    #[test]
    fn a_line_goes_through_the_io_apic_to_the_local_one() {
        let mut chipset = chipset();
        let memory = |chipset: &mut Chipset, address, value| {
            chipset.write_memory(0, APIC_BASE, address, value, 0).expect("a register");
        };
        chipset.write_port(0x21, 0xff, 0).expect("the 8259A's mask");
        memory(&mut chipset, lapic::ADDRESS + 0xf0, 0x1ff);
        memory(&mut chipset, ioapic::ADDRESS, 0x10 + 2 * 4);
        memory(&mut chipset, ioapic::ADDRESS + 0x10, 0x34);
        chipset.set_line(4, true);
        assert_eq!(chipset.acknowledge(0), Some(0x34));
        assert_eq!(chipset.read_memory(0, APIC_BASE, lapic::ADDRESS + 0x110, 0), Some(1 << 20));
        memory(&mut chipset, lapic::ADDRESS + 0xb0, 0);
        assert_eq!(chipset.read_memory(0, APIC_BASE, lapic::ADDRESS + 0x110, 0), Some(0));
    }

    #[test]
    fn an_apic_that_is_turned_off_leaves_its_page_alone() {
        let chipset = chipset();
        assert_eq!(chipset.read_memory(0, APIC_BASE & !0x800, lapic::ADDRESS, 0), None);
        assert_eq!(chipset.read_memory(0, APIC_BASE, 0x1000, 0), None);
    }
}
