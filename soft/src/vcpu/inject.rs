//! Events from outside the guest, and the delivery of all of them.

use super::Vcpu;
use super::run::EMULATION_FAILED;
use crate::cpu::Shadow;
use crate::events::{Exception, Interrupt};
use crate::exit::Exit;
use crate::interrupt::{Event, Source, TripleFault};
use crate::registers::rflags;
use crate::stop::{Stop, vector};

/// `KVM_INTERNAL_ERROR_DELIVERY_EV`: a table or a stack for an event lies where no memory is.
const DELIVERY_FAILED: u32 = 3;

/// VMX's exit reason for a state that it does not enter, with the bit that says so. Intel SDM Vol. 3C,
/// "VM-Entry Failures During or After Loading Guest State".
const INVALID_GUEST_STATE: u64 = 0x8000_0021;

impl Vcpu {
    /// Whether the guest could take an interrupt now: `ready_for_interrupt_injection`.
    #[must_use]
    pub fn ready_for_interrupt_injection(&self) -> bool {
        let nothing_waits =
            self.events.exception.is_none() && self.events.interrupt.is_none() && !self.events.nmi_injected;
        nothing_waits && self.interruptible()
    }

    fn interruptible(&self) -> bool {
        self.cpu.flag(rflags::IF) && self.cpu.shadow == Shadow::None
    }

    /// Delivers what was injected, before the first instruction. VMX refuses an interrupt that the guest
    /// could not take: Intel SDM Vol. 3C, "Checks on Guest RIP, RFLAGS, and SSP" and "Checks on Guest
    /// Non-Register State".
    pub(super) fn inject(&mut self) -> Option<Exit> {
        let event = if let Some(Exception { vector, error_code }) = self.events.exception.take() {
            let code = error_code.map(|code| code as u16);
            Event { vector, code, source: Source::Injected }
        } else if self.events.nmi_injected {
            self.events.nmi_injected = false;
            self.cpu.nmi_masked = true;
            Event { vector: vector::NMI, code: None, source: Source::NonMaskable }
        } else {
            let Interrupt { vector, soft } = self.events.interrupt?;
            if !soft && !self.interruptible() {
                return Some(Exit::FailEntry { reason: INVALID_GUEST_STATE });
            }
            self.events.interrupt = None;
            let source = if soft { Source::Software } else { Source::External };
            Event { vector, code: None, source }
        };
        (self.cpu.next, self.cpu.shadow) = (self.cpu.rip, Shadow::None);
        match event {
            Event { vector: vector::DEBUG, source: Source::Injected, .. } => self.cpu.note_debug_exception(0),
            // It returns behind the `int3` that RIP is at.
            Event { vector: vector::BREAKPOINT, source: Source::Injected, .. } => {
                self.cpu.next = self.cpu.rip.wrapping_add(1) & self.cpu.ip_mask();
            }
            _ => {}
        }
        self.deliver(event)
    }

    /// Whether something waits until the guest can take it.
    pub(super) fn awaits_its_turn(&self) -> bool {
        let waits = self.events.nmi_pending > 0 || self.waits_on_board().is_some();
        waits && !self.interrupts_blocked || self.window_wanted
    }

    /// Between two instructions: what the guest can take now. The inner `None` is an event that was
    /// delivered.
    pub(super) fn between_instructions(&mut self) -> Option<Option<Exit>> {
        if !self.interrupts_blocked
            && let Some(delivered) = self.take_from_board()
        {
            return Some(delivered);
        }
        let nmi = self.events.nmi_pending > 0 && !self.interrupts_blocked;
        if nmi && !self.cpu.nmi_masked && self.cpu.shadow == Shadow::None {
            self.events.nmi_pending -= 1;
            self.cpu.nmi_masked = true;
            self.cpu.next = self.cpu.rip;
            let event = Event { vector: vector::NMI, code: None, source: Source::NonMaskable };
            return Some(self.deliver(event));
        }
        (self.window_wanted && self.ready_for_interrupt_injection()).then_some(Some(Exit::IrqWindowOpen))
    }

    /// Delivers an event, which may be the guest's end. One that cannot be delivered waits for the next
    /// entry, as KVM puts it back.
    pub(super) fn deliver(&mut self, event: Event) -> Option<Exit> {
        match self.cpu.deliver(event) {
            Ok(Ok(())) if self.single_step => self.after_step(false),
            Ok(Ok(())) => self.mmio_write(),
            Ok(Err(TripleFault)) => Some(Exit::Shutdown),
            Err(Stop::Exit) => {
                self.cpu.pending = crate::cpu::Pending::Nothing;
                self.put_back(event);
                Some(Exit::InternalError { suberror: DELIVERY_FAILED })
            }
            Err(_) => {
                self.missing = Some(format!(
                    "the software machine does not implement task switches, to which the gate of vector {} leads",
                    event.vector
                ));
                Some(Exit::InternalError { suberror: EMULATION_FAILED })
            }
        }
    }

    fn put_back(&mut self, event: Event) {
        let Event { vector, code, source } = event;
        match source {
            Source::External => self.events.interrupt = Some(Interrupt { vector, soft: false }),
            Source::Software => self.events.interrupt = Some(Interrupt { vector, soft: true }),
            Source::NonMaskable => self.events.nmi_injected = true,
            Source::Fault | Source::Trap | Source::Injected => {
                self.events.exception = Some(Exception { vector, error_code: code.map(u32::from) });
            }
        }
    }
}
