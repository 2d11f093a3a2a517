//! Why a far jump, call or return, or a load of TR or LDTR, was refused. Intel SDM
//! Vol. 3A, "Privilege Level Checking When Transferring Program Control Between Code
//! Segments".

use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use crate::exception::vector;
use crate::explain::selector::{code_of, code_segment, conforming, find, is_null, kind, stack_segment};
use crate::explain::still::{Cause, Still};
use crate::segment::canonical;

/// Whether a jump or call names a segment, too.
pub fn is_far(instruction: &Instruction) -> bool {
    instruction.is_jmp_far()
        || instruction.is_call_far()
        || instruction.is_jmp_far_indirect()
        || instruction.is_call_far_indirect()
}

/// A far jump or call to a code segment.
pub fn far(still: &Still<'_>, instruction: &Instruction) -> Option<Cause> {
    let (selector, offset) = target(still, instruction)?;
    if !still.protected() {
        return past_limit(offset, u64::from(still.sregs.cs.limit));
    }
    let entry = match code_segment(still, selector) {
        Ok(entry) => entry,
        Err(cause) => return Some(cause),
    };
    let (s, ring) = (&entry.segment, still.ring());
    let rpl = (selector & 3) as u8;
    let refused = |fault, code, why: String| Some(Cause::new(fault, code, why).show(entry.shown.clone()));
    let allowed = if conforming(s) { s.dpl <= ring } else { rpl <= ring && s.dpl == ring };
    if !allowed {
        let why = format!(
            "the code segment of selector {selector:#x} is ring {}'s, and the guest is in ring {ring}",
            s.dpl
        );
        return refused(vector::GP, code_of(selector), why);
    }
    present_and_inside(still, selector, offset)
}

/// The selector and the offset that the instruction holds, or points to.
fn target(still: &Still<'_>, instruction: &Instruction) -> Option<(u16, u64)> {
    match instruction.op0_kind() {
        OpKind::FarBranch16 => {
            Some((instruction.far_branch_selector(), u64::from(instruction.far_branch16())))
        }
        OpKind::FarBranch32 => {
            Some((instruction.far_branch_selector(), u64::from(instruction.far_branch32())))
        }
        _ => {
            let size = match instruction.code() {
                Code::Jmp_m1616 | Code::Call_m1616 => 2,
                Code::Jmp_m1632 | Code::Call_m1632 => 4,
                _ => 8,
            };
            let mut factory = InstructionInfoFactory::new();
            let used = *factory.info(instruction).used_memory().first()?;
            let at = still.offset(&used);
            let offset = still.number(still.linear(used.segment(), at), size).ok()?;
            let selector =
                still.number(still.linear(used.segment(), at.wrapping_add(size as u64)), 2).ok()?;
            Some((selector as u16, offset))
        }
    }
}

fn past_limit(offset: u64, limit: u64) -> Option<Cause> {
    let why = || format!("the target {offset:#x} lies past the code segment's limit of {limit:#x}");
    (offset > limit).then(|| Cause::new(vector::GP, 0, why()))
}

fn present_and_inside(still: &Still<'_>, selector: u16, offset: u64) -> Option<Cause> {
    let entry = code_segment(still, selector).ok()?;
    let s = &entry.segment;
    if s.present == 0 {
        let why = format!("the code segment of selector {selector:#x} is not present");
        return Some(Cause::new(vector::NP, code_of(selector), why).show(entry.shown));
    }
    if still.long() && s.l == 1 {
        let why = format!("the target {offset:#x} is not canonical");
        return (!canonical(offset)).then(|| Cause::new(vector::GP, 0, why));
    }
    past_limit(offset, u64::from(s.limit)).map(|cause| cause.show(entry.shown))
}

/// IRET and RETF. Intel SDM Vol. 2A, "IRET/IRETD/IRETQ—Interrupt Return"; Vol. 2B, "RET—Return From
/// Procedure".
pub fn back(still: &Still<'_>, instruction: &Instruction) -> Option<Cause> {
    let interrupt = instruction.mnemonic() != Mnemonic::Retf;
    let item: u64 = match instruction.code() {
        Code::Iretw | Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Iretd | Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    };
    let mask = match (still.in_64_bit(), still.sregs.ss.db) {
        (true, _) => u64::MAX,
        (_, 0) => 0xffff,
        _ => 0xffff_ffff,
    };
    let popped = |number: u64| {
        let at = still.regs.rsp.wrapping_add(number * item) & mask;
        still.number(still.linear(Register::SS, at), item as usize).ok()
    };
    let (offset, selector) = (popped(0)?, popped(1)? as u16);
    if !still.protected() {
        return past_limit(offset, u64::from(still.sregs.cs.limit));
    }
    let entry = match code_segment(still, selector) {
        Ok(entry) => entry,
        Err(cause) => return Some(cause),
    };
    let (s, ring, rpl) = (&entry.segment, still.ring(), (selector & 3) as u8);
    let refused =
        |why: String| Some(Cause::new(vector::GP, code_of(selector), why).show(entry.shown.clone()));
    if rpl < ring {
        return refused(format!(
            "it returns to ring {rpl} by selector {selector:#x}, and the guest is in ring {ring}: no return leads inwards"
        ));
    }
    let fits = if conforming(s) { s.dpl <= rpl } else { s.dpl == rpl };
    if !fits {
        return refused(format!(
            "selector {selector:#x} asks for ring {rpl}, and its segment is ring {}'s",
            s.dpl
        ));
    }
    present_and_inside(still, selector, offset).or_else(|| {
        let outer = rpl > ring || interrupt && still.in_64_bit();
        let first = if interrupt { 4 } else { 3 };
        let stack = if outer { popped(first)? as u16 } else { return None };
        let mut cause = stack_segment(still, stack, rpl, vector::GP)?;
        cause.sentence = format!("it returns to a stack, and {}", cause.sentence);
        Some(cause)
    })
}

/// LTR and LLDT.
pub fn system_segment(still: &Still<'_>, instruction: &Instruction) -> Option<Cause> {
    let selector = still.operand(instruction, 0)? as u16;
    let task = instruction.mnemonic() == Mnemonic::Ltr;
    if is_null(selector) {
        return task.then(|| {
            Cause::new(vector::GP, 0, format!("selector {selector:#x} is null, and TR needs a TSS"))
        });
    }
    if selector & 4 != 0 {
        let why = format!("selector {selector:#x} is of the LDT, and system segments are in the GDT");
        return Some(Cause::new(vector::GP, code_of(selector), why));
    }
    let entry = match find(still, selector, vector::GP) {
        Ok(entry) => entry,
        Err(cause) => return Some(cause),
    };
    let s = &entry.segment;
    let wanted = if !task { s.type_ == 2 } else { s.type_ == 9 || s.type_ == 1 && !still.long() };
    let (fault, why) = if s.s == 1 || !wanted {
        let what = if task { "available TSS" } else { "LDT" };
        (vector::GP, format!("selector {selector:#x} leads to no {what}: {}", kind(s.s != 0, s.type_)))
    } else if s.present == 0 {
        (vector::NP, format!("the segment of selector {selector:#x} is not present"))
    } else if still.long() && u64::from(selector & !7) + 15 > u64::from(still.sregs.gdt.limit) {
        (
            vector::GP,
            format!(
                "in long mode this descriptor has 16 bytes, and the second half of selector {selector:#x}'s lies past GDTR's limit"
            ),
        )
    } else {
        return None;
    };
    Some(Cause::new(fault, code_of(selector), why).show(entry.shown))
}
