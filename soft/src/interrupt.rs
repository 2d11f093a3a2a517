//! Exceptions and interrupts: through the vector table of real mode, the 32-bit
//! IDT or the 64-bit IDT; double and triple faults. Intel SDM Vol. 3A, chapter
//! "Interrupt and Exception Handling".

use crate::cpu::{CodeSize, Cpu, gpr, seg};
use crate::descriptor::{code_of, null_segment};
use crate::registers::{kind, rflags};
use crate::stop::{Done, Fault, Missing, Stop, vector};

/// Why the IDT is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An exception that the CPU found in an instruction, and that returns to it.
    Fault,
    /// A debug trap: it returns to the next instruction.
    Trap,
    /// `int n`, `int3` or `into`.
    Software,
    /// A device.
    External,
    /// A device that cannot be kept waiting.
    NonMaskable,
    /// An exception that the hypervisor injects: it returns where it is told to.
    Injected,
}

/// An event to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its vector.
    pub vector: u8,
    /// The error code that is pushed.
    pub code: Option<u16>,
    /// Why.
    pub source: Source,
}

/// An error code says with bit 0 that something else than the program was the cause, and with bit 1
/// that it names an entry of the IDT. Intel SDM Vol. 3A, "Error Code".
const EXTERNAL: u16 = 1;
const IDT: u16 = 2;

/// The guest died: an exception while a double fault was delivered.
#[derive(Debug, PartialEq, Eq)]
pub struct TripleFault;

/// A delivery that failed, on the way to a triple fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedDelivery {
    /// What was to be delivered.
    pub vector: u8,
    /// The error code that it would have pushed.
    pub error_code: Option<u16>,
    /// The hypervisor or a device sent it, and no instruction of the guest's.
    pub from_outside: bool,
    /// CR2 at that moment: of a page fault, the address.
    pub cr2: u64,
    /// The exception that came up instead.
    pub met: u8,
    /// Its error code.
    pub met_code: Option<u16>,
    /// CR2 after it.
    pub met_cr2: u64,
}

impl Cpu {
    /// Delivers an event; an exception on the way takes its place, or makes a double fault of both.
    ///
    /// # Errors
    /// What the machine cannot do; the inner error is the triple fault.
    pub fn deliver(&mut self, mut event: Event) -> Result<Result<(), TripleFault>, Stop> {
        self.failed_deliveries.clear();
        loop {
            let cr2 = self.cr2;
            match self.all_or_nothing(|cpu| cpu.enter_handler(&event)) {
                Ok(()) => {
                    self.rip = self.next;
                    return Ok(Ok(()));
                }
                Err(Stop::Fault(second)) => {
                    self.failed_deliveries.push(FailedDelivery {
                        vector: event.vector,
                        error_code: event.code,
                        from_outside: !matches!(event.source, Source::Fault | Source::Trap),
                        cr2,
                        met: second.vector,
                        met_code: second.code,
                        met_cr2: self.cr2,
                    });
                    let Some(next) = combine(&event, second) else { return Ok(Err(TripleFault)) };
                    event = next;
                }
                Err(stop) => return Err(stop),
            }
        }
    }

    /// INT and its like: the event is delivered as part of the instruction, whose faults it takes.
    ///
    /// # Errors
    /// What the delivery ran into.
    pub fn interrupt_by_instruction(&mut self, event: Event) -> Done {
        self.all_or_nothing(|cpu| cpu.enter_handler(&event))
    }

    fn enter_handler(&mut self, event: &Event) -> Done {
        self.delivered = true;
        let return_to = if event.source == Source::Fault { self.rip } else { self.next };
        if !self.protected() {
            return self.enter_real_handler(event.vector, return_to);
        }
        let external = if event.source == Source::Software { 0 } else { EXTERNAL };
        let code = u16::from(event.vector) << 3 | IDT | external;
        let gate = self.read_gate(event.vector, code)?;
        if event.source == Source::Software && gate.dpl < self.cpl {
            return Err(Fault::general_protection(code).into());
        }
        if !gate.present {
            return Err(Fault::not_present(code).into());
        }
        self.enter_gate(event, &gate, return_to)
    }

    /// Pushes FLAGS, CS and IP. Intel SDM Vol. 3B, "8086 Emulation", "Interrupt and Exception Handling".
    fn enter_real_handler(&mut self, vector: u8, return_to: u64) -> Done {
        let entry = u64::from(vector) * 4;
        if entry + 3 > u64::from(self.idt.limit) {
            return Err(Fault::general_protection(u16::from(vector) << 3 | IDT).into());
        }
        let pointer = self.read(self.idt.base.wrapping_add(entry) & 0xffff_ffff, 4, false)?;
        self.push(2, self.rflags)?;
        self.push(2, u64::from(self.segments[seg::CS].selector))?;
        self.push(2, return_to)?;
        self.rflags &= !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
        self.enter_real_code((pointer >> 16) as u16, pointer & 0xffff)
    }

    fn read_gate(&mut self, vector: u8, code: u16) -> Result<Gate, Stop> {
        let refused = Fault::general_protection(code);
        let size = if self.long_mode() { 16 } else { 8 };
        let offset = u64::from(vector) * size;
        if offset + size - 1 > u64::from(self.idt.limit) {
            return Err(refused.into());
        }
        let address = self.wrap_linear(self.idt.base.wrapping_add(offset));
        let low = self.read(address, 8, false)?;
        let high = if size == 16 { self.read(address.wrapping_add(8), 8, false)? } else { 0 };
        let type_ = (low >> 40 & 0x1f) as u8;
        let item = match (type_, self.long_mode()) {
            (kind::INTERRUPT_GATE | kind::TRAP_GATE, true) => 8,
            (kind::INTERRUPT_GATE | kind::TRAP_GATE, false) => 4,
            (kind::INTERRUPT_GATE_16 | kind::TRAP_GATE_16, false) => 2,
            (kind::TASK_GATE, false) => return Err(Stop::Missing(Missing::Tasks)),
            _ => return Err(refused.into()),
        };
        let offset = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        Ok(Gate {
            selector: (low >> 16) as u16,
            offset: if item == 2 { offset & 0xffff } else { offset },
            item,
            dpl: (low >> 45 & 3) as u8,
            present: low >> 47 & 1 != 0,
            stack: if size == 16 { (low >> 32 & 7) as u8 } else { 0 },
            interrupt: type_ & 1 == 0,
        })
    }

    fn enter_gate(&mut self, event: &Event, gate: &Gate, return_to: u64) -> Done {
        let external = if event.source == Source::Software { 0 } else { EXTERNAL };
        let code = self
            .code_descriptor(gate.selector, Fault::general_protection)
            .map_err(|stop| marked(stop, external))?;
        let refused = Fault::general_protection(code_of(gate.selector) | external);
        if code.dpl() > self.cpl || gate.item == 8 && !code.is_long() {
            return Err(refused.into());
        }
        if !code.is_present() {
            return Err(Fault::not_present(code_of(gate.selector) | external).into());
        }
        let ring = if code.is_conforming() { self.cpl } else { code.dpl() };
        let old_cs = u64::from(self.segments[seg::CS].selector);
        let old_ss = u64::from(self.segments[seg::SS].selector);
        let old_sp = self.gpr[gpr::RSP];
        // A fault returns with RF set, so that an instruction breakpoint does not hit twice. Intel SDM
        // Vol. 3B, "Instruction-Breakpoint Exception Condition".
        let resume = if event.source == Source::Fault { rflags::RF } else { 0 };
        let flags = self.rflags | resume;

        self.use_handler_stack(gate, ring).map_err(|stop| marked(stop, external))?;
        let pushes_stack = gate.item == 8 || ring != self.cpl;
        self.cpl = ring;
        if gate.item == 8 {
            self.code_size = CodeSize::Bits64;
            self.gpr[gpr::RSP] &= !0xf;
        }
        if pushes_stack {
            self.push(gate.item, old_ss)?;
            self.push(gate.item, old_sp)?;
        }
        self.push(gate.item, flags)?;
        self.push(gate.item, old_cs)?;
        self.push(gate.item, return_to)?;
        if let Some(code) = event.code {
            self.push(gate.item, u64::from(code))?;
        }
        self.rflags &= !(rflags::TF | rflags::NT | rflags::RF | rflags::VM);
        if gate.interrupt {
            self.rflags &= !rflags::IF;
        }
        self.enter_code(gate.selector, code, ring, gate.offset).map_err(|stop| marked(stop, external))
    }

    /// Switches the stack for an inner ring, or to one of the interrupt stacks; leaves the ring itself.
    fn use_handler_stack(&mut self, gate: &Gate, ring: u8) -> Done {
        if gate.item == 8 && gate.stack != 0 {
            /// Where a 64-bit TSS has IST1.
            const FIRST_STACK: u64 = 0x24;
            let pointer = self.tss_field(FIRST_STACK + 8 * u64::from(gate.stack - 1), 8)?;
            if ring != self.cpl {
                self.segments[seg::SS] =
                    crate::registers::Segment { dpl: ring, ..null_segment(u16::from(ring)) };
            }
            self.gpr[gpr::RSP] = pointer;
        } else if ring != self.cpl {
            let (segment, pointer) = self.stack_for_ring(ring)?;
            self.segments[seg::SS] = segment;
            self.gpr[gpr::RSP] = pointer;
        }
        Ok(())
    }
}

/// An IDT's gate, taken apart.
struct Gate {
    selector: u16,
    offset: u64,
    /// What is pushed at a time, in bytes: 2, 4 or 8.
    item: u8,
    dpl: u8,
    present: bool,
    /// The interrupt stack, 1 to 7, or 0 for none.
    stack: u8,
    /// An interrupt gate, which turns interrupts off.
    interrupt: bool,
}

/// An exception whose error code says that it came up while something was delivered.
fn marked(stop: Stop, external: u16) -> Stop {
    match stop {
        Stop::Fault(Fault { vector, code: Some(code) }) if vector != vector::PAGE_FAULT => {
            Stop::Fault(Fault { vector, code: Some(code | external) })
        }
        other => other,
    }
}

/// What two exceptions become, one during the other's delivery: the second, a double fault, or (`None`)
/// the end. Intel SDM Vol. 3A, "Interrupt 8—Double Fault Exception (#DF)", table "Conditions for
/// Generating a Double Fault".
fn combine(first: &Event, second: Fault) -> Option<Event> {
    #[derive(PartialEq, PartialOrd)]
    enum Class {
        Benign,
        Contributory,
        Page,
    }
    let class = |number| match number {
        vector::DIVIDE_ERROR
        | vector::INVALID_TSS
        | vector::NOT_PRESENT
        | vector::STACK_FAULT
        | vector::GENERAL_PROTECTION => Class::Contributory,
        vector::PAGE_FAULT => Class::Page,
        _ => Class::Benign,
    };
    let (earlier, later) = (class(first.vector), class(second.vector));
    let earlier =
        if matches!(first.source, Source::Software | Source::External) { Class::Benign } else { earlier };
    if first.vector == vector::DOUBLE_FAULT && matches!(first.source, Source::Fault | Source::Injected) {
        return None;
    }
    let double = match earlier {
        Class::Benign => false,
        Class::Contributory => later == Class::Contributory,
        Class::Page => later != Class::Benign,
    };
    if double {
        return Some(Event { vector: vector::DOUBLE_FAULT, code: Some(0), source: Source::Fault });
    }
    Some(Event { vector: second.vector, code: second.code, source: Source::Fault })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(vector: u8) -> Event {
        Event { vector, code: None, source: Source::Fault }
    }

    #[test]
    fn two_exceptions_make_a_double_fault_as_the_manuals_table_says() {
        let becomes = |first, second| combine(&event(first), second).map(|event| event.vector);
        let (gp, pf, ud) = (Fault::general_protection(0), Fault::page(0), Fault::INVALID_OPCODE);
        assert_eq!(becomes(vector::INVALID_OPCODE, gp), Some(13), "benign, then contributory");
        assert_eq!(becomes(vector::GENERAL_PROTECTION, gp), Some(8));
        assert_eq!(becomes(vector::GENERAL_PROTECTION, pf), Some(14));
        assert_eq!(becomes(vector::PAGE_FAULT, pf), Some(8));
        assert_eq!(becomes(vector::PAGE_FAULT, gp), Some(8));
        assert_eq!(becomes(vector::PAGE_FAULT, ud), Some(6));
        assert_eq!(becomes(vector::DOUBLE_FAULT, gp), None, "the triple fault");
    }

    #[test]
    fn an_interrupt_instruction_is_benign_whatever_its_number() {
        let int_13 = Event { source: Source::Software, ..event(13) };
        let next = combine(&int_13, Fault::general_protection(0)).expect("no triple fault");
        assert_eq!(next.vector, 13);
    }
}
