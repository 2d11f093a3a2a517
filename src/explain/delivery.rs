//! Why an exception or an interrupt could not be delivered: the checks on the way to
//! its handler, one after the other. Intel SDM Vol. 3A, "Interrupt and Exception
//! Handling"; in real mode Vol. 3B, "8086 Emulation".

use iced_x86::Register;

use crate::exception::{Exception, vector};
use crate::explain::selector::{code_of, code_segment, conforming, kind, stack_segment};
use crate::explain::still::{Cause, Still};
use crate::paging::{Access, Intent};
use crate::segment::canonical;

/// The first check that the delivery of a vector does not pass; `by_instruction` says that it is of
/// `int n`, whose ring must be allowed to use the gate.
pub fn refusal(still: &Still<'_>, number: u8, by_instruction: bool) -> Option<Cause> {
    if !still.protected() {
        return real_mode(still, number);
    }
    match gate(still, number, by_instruction) {
        Ok(gate) => handler(still, number, &gate).err(),
        Err(cause) => Some(cause),
    }
}

/// An IDT's gate, taken apart, and a line that shows it.
struct Gate {
    selector: u16,
    offset: u64,
    /// What is pushed at a time, in bytes.
    item: u64,
    stack: u8,
    shown: String,
}

fn real_mode(still: &Still<'_>, number: u8) -> Option<Cause> {
    let (idt, entry) = (&still.sregs.idt, u64::from(number) * 4);
    if entry + 3 > u64::from(idt.limit) {
        let why = format!(
            "vector {number}'s entry of the interrupt vector table, bytes {entry:#x} to {:#x}, lies past IDTR's limit of {:#x}",
            entry + 3,
            idt.limit
        );
        let shown = format!("IDTR: base {:#x}, limit {:#x}", idt.base, idt.limit);
        return Some(Cause::new(vector::GP, u16::from(number) << 3 | 2, why).show(shown));
    }
    let at = (idt.base + entry) & 0xffff_ffff;
    let pointer = still.number(at, 4).ok()?;
    let (segment, offset) = (pointer >> 16, pointer & 0xffff);
    let shown = format!("vector {number}'s entry at {at:#x}: {segment:04x}:{offset:04x}");
    for push in 1..=3 {
        let sp = still.regs.rsp.wrapping_sub(2 * push) & 0xffff;
        if let Some(cause) = still.outside(Register::SS, sp, 2, Intent::Write) {
            return Some(cause.show(shown));
        }
    }
    let limit = u64::from(still.sregs.cs.limit);
    let why = || format!("the handler is at {offset:#x}, past CS's limit of {limit:#x}");
    (offset > limit).then(|| Cause::new(vector::GP, 0, why()).show(shown))
}

fn gate(still: &Still<'_>, number: u8, by_instruction: bool) -> Result<Gate, Cause> {
    let idt = &still.sregs.idt;
    let size = if still.long() { 16 } else { 8 };
    let (offset, code) = (u64::from(number) * size, u16::from(number) << 3 | 2);
    if offset + size - 1 > u64::from(idt.limit) {
        let why = format!(
            "vector {number}'s gate, bytes {offset:#x} to {:#x} of the IDT, lies past IDTR's limit of {:#x}",
            offset + size - 1,
            idt.limit
        );
        let shown = format!("IDTR: base {:#x}, limit {:#x}", idt.base, idt.limit);
        return Err(Cause::new(vector::GP, code, why).show(shown));
    }
    let at = still.wrap(idt.base.wrapping_add(offset));
    let read = |at: u64| {
        still.number(at, 8).map_err(|mut cause| {
            cause.sentence = format!("vector {number}'s gate is at {at:#x}: {}", cause.sentence);
            cause
        })
    };
    let low = read(at)?;
    let high = if size == 16 { read(at.wrapping_add(8))? } else { 0 };
    let (type_, dpl, present) = ((low >> 40 & 0x1f) as u8, (low >> 45 & 3) as u8, low >> 47 & 1);
    let target = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
    let selector = (low >> 16) as u16;
    let stack = if size == 16 { (low >> 32 & 7) as u8 } else { 0 };
    let words = kind(type_ & 0x10 != 0, type_ & 0xf);
    let value = if size == 16 { format!("{high:#018x}_{low:016x}") } else { format!("{low:#018x}") };
    let ist = if size == 16 { format!(", IST {stack}") } else { String::new() };
    let shown = format!(
        "IDT[{number}] at {at:#x} = {value}: selector {selector:#x}, offset {target:#x}, type {type_} ({words}), \
         DPL {dpl}, P {present}{ist}"
    );
    let refused = |fault, why: String| Err(Cause::new(fault, code, why).show(shown.clone()));
    let item = match (type_, still.long()) {
        (14 | 15, true) => 8,
        (14 | 15, false) => 4,
        (6 | 7, false) => 2,
        _ => {
            return refused(
                vector::GP,
                format!(
                    "vector {number}'s entry of the IDT is no interrupt or trap gate: its type is {type_} ({words})"
                ),
            );
        }
    };
    if by_instruction && dpl < still.ring() {
        return refused(
            vector::GP,
            format!("vector {number}'s gate has DPL {dpl}, and ring {} may not use it by int", still.ring()),
        );
    }
    if present == 0 {
        return refused(vector::NP, format!("vector {number}'s gate is not present"));
    }
    let offset = if item == 2 { target & 0xffff } else { target };
    Ok(Gate { selector, offset, item, stack, shown })
}

/// The handler's segment, its stack, and the frame.
fn handler(still: &Still<'_>, number: u8, gate: &Gate) -> Result<(), Cause> {
    let of_gate = |cause: Cause| cause.show(gate.shown.clone());
    let code = code_segment(still, gate.selector).map_err(of_gate)?;
    let (s, selector) = (&code.segment, gate.selector);
    let refused = |fault, why: String| {
        Err(Cause::new(fault, code_of(selector), why).show(code.shown.clone()).show(gate.shown.clone()))
    };
    if s.dpl > still.ring() {
        return refused(
            vector::GP,
            format!("the handler's segment is ring {}'s, and the guest is in ring {}", s.dpl, still.ring()),
        );
    }
    if gate.item == 8 && s.l == 0 {
        return refused(vector::GP, "the handler's segment is no 64-bit code: its L is 0".to_owned());
    }
    if s.present == 0 {
        return refused(vector::NP, "the handler's segment is not present".to_owned());
    }
    let ring = if conforming(s) { still.ring() } else { s.dpl };
    let changes = ring != still.ring();
    let pushed = if gate.item == 8 || changes { 5 } else { 3 } + u64::from(Exception::has_error_code(number));
    stack(still, gate, ring, pushed).map_err(of_gate)?;
    let inside =
        if s.l == 1 && still.long() { canonical(gate.offset) } else { gate.offset <= u64::from(s.limit) };
    if !inside {
        let why = format!("the handler's offset {:#x} lies outside its segment", gate.offset);
        return Err(Cause::new(vector::GP, 0, why).show(code.shown).show(gate.shown.clone()));
    }
    Ok(())
}

/// The stack that the frame goes to. Intel SDM Vol. 3A, "Stack Switching in IA-32e Mode" and "Interrupt
/// Stack Table".
fn stack(still: &Still<'_>, gate: &Gate, ring: u8, pushed: u64) -> Result<(), Cause> {
    let changes = ring != still.ring();
    let (from, mut pointer, mut base, mut mask) = if still.long() && gate.stack != 0 {
        let offset = 0x24 + 8 * u64::from(gate.stack - 1);
        (format!("IST{} of the TSS", gate.stack), task_field(still, offset, 8)?, 0, u64::MAX)
    } else if changes && still.long() {
        (format!("RSP{ring} of the TSS"), task_field(still, 4 + 8 * u64::from(ring), 8)?, 0, u64::MAX)
    } else if changes {
        let field = 4 + 8 * u64::from(ring);
        let pointer = task_field(still, field, 4)?;
        let selector = task_field(still, field + 4, 2)? as u16;
        if let Some(mut cause) = stack_segment(still, selector, ring, vector::TS) {
            cause.sentence =
                format!("the stack of ring {ring} is SS{ring}:ESP{ring} of the TSS, and {}", cause.sentence);
            return Err(cause.show(task(still)));
        }
        let base = crate::explain::selector::find(still, selector, vector::TS)?.segment.base;
        (format!("ESP{ring} of the TSS"), pointer, base, 0xffff_ffff)
    } else {
        ("the stack as it was".to_owned(), still.regs.rsp, still.sregs.ss.base, u64::MAX)
    };
    if still.long() {
        (pointer, base) = (pointer & !0xf, 0);
    } else if !changes {
        mask = if still.sregs.ss.db != 0 { 0xffff_ffff } else { 0xffff };
    }
    for number in 1..=pushed {
        let at = pointer.wrapping_sub(number * gate.item) & mask;
        let linear = still.wrap(base.wrapping_add(at));
        let whose = |mut cause: Cause| {
            cause.sentence =
                format!("the frame goes to {from}, and its push to {linear:#x} fails: {}", cause.sentence);
            if changes || gate.stack != 0 { cause.show(task(still)) } else { cause }
        };
        if still.long() && !canonical(linear) {
            return Err(whose(Cause::new(vector::SS, 0, "the address is not canonical")));
        }
        if !still.long()
            && !changes
            && let Some(cause) = still.outside(Register::SS, at, gate.item, Intent::Write)
        {
            return Err(whose(cause));
        }
        let access = Access { intent: Intent::Write, user: ring == 3 };
        if let Some(cause) = still.refused(linear, gate.item as usize, access) {
            return Err(whose(cause));
        }
    }
    Ok(())
}

/// The task register in a line.
fn task(still: &Still<'_>) -> String {
    crate::explain::selector::describe_register("TR", &still.sregs.tr)
}

/// A field of the task state segment.
fn task_field(still: &Still<'_>, offset: u64, size: usize) -> Result<u64, Cause> {
    let tr = &still.sregs.tr;
    let last = offset + size as u64 - 1;
    if tr.unusable != 0 || last > u64::from(tr.limit) {
        let why = format!(
            "the stack is in bytes {offset:#x} to {last:#x} of the TSS, past TR's limit of {:#x}",
            tr.limit
        );
        return Err(Cause::new(vector::TS, code_of(tr.selector), why).show(task(still)));
    }
    let linear = still.wrap(tr.base.wrapping_add(offset));
    still.number(linear, size).map_err(|mut cause| {
        cause.sentence = format!("the stack is in the TSS at {linear:#x}: {}", cause.sentence);
        cause.show(task(still))
    })
}
