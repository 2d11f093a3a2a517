//! Selectors, and what their descriptors say, bit by bit.

use crate::exception::vector;
use crate::explain::still::{Cause, Still};
use crate::kvm::kvm_segment;
use crate::segment::Descriptor;

/// A descriptor that was found, and a line that shows it.
pub struct Entry {
    pub segment: kvm_segment,
    pub shown: String,
}

/// Whether a selector is one of the four that mean entry 0 of the GDT.
pub fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// A selector as an error code.
pub fn code_of(selector: u16) -> u16 {
    selector & !3
}

/// Reads a selector's descriptor; `fault` is the exception for one outside its table.
///
/// # Errors
/// The exception that the CPU takes.
pub fn find(still: &Still<'_>, selector: u16, fault: u8) -> Result<Entry, Cause> {
    let (number, offset) = (selector >> 3, u64::from(selector & !7));
    let s = &still.sregs;
    let local = selector & 4 != 0;
    let (table, base, limit) = if local {
        ("LDT", s.ldt.base, u64::from(s.ldt.limit))
    } else {
        ("GDT", s.gdt.base, u64::from(s.gdt.limit))
    };
    let refused = |why: String| Cause::new(fault, code_of(selector), why);
    if local && (s.ldt.unusable != 0 || s.ldt.present == 0) {
        return Err(refused(format!("selector {selector:#x} is of the LDT, and LDTR holds none")));
    }
    if offset + 7 > limit {
        let why = format!(
            "selector {selector:#x} is entry {number} of the {table}, bytes {offset:#x} to {:#x}, past {table}R's limit \
             of {limit:#x}",
            offset + 7
        );
        return Err(refused(why).show(format!("{table}R: base {base:#x}, limit {limit:#x}")));
    }
    let linear = still.wrap(base.wrapping_add(offset));
    let value = still.number(linear, 8).map_err(|mut cause| {
        cause.sentence = format!("{table}[{number}] is at {linear:#x}: {}", cause.sentence);
        cause
    })?;
    let segment = Descriptor(value).load(selector);
    Ok(Entry {
        segment,
        shown: format!("{table}[{number}] at {linear:#x} = {value:#018x}: {}", fields(&segment)),
    })
}

/// A segment register's hidden part in a line.
pub fn describe_register(name: &str, segment: &kvm_segment) -> String {
    if segment.unusable != 0 {
        return format!("{name} = {:#x}, unusable", segment.selector);
    }
    format!("{name} = {:#x}: {}", segment.selector, fields(segment))
}

fn fields(s: &kvm_segment) -> String {
    format!(
        "base {:#x}, limit {:#x}, type {} ({}), S {}, DPL {}, P {}, L {}, D/B {}, G {}",
        s.base,
        s.limit,
        s.type_,
        kind(s.s != 0, s.type_),
        s.s,
        s.dpl,
        s.present,
        s.l,
        s.db,
        s.g
    )
}

/// A descriptor's type in words. Intel SDM Vol. 3A, "Code- and Data-Segment Descriptor Types" and
/// "System Descriptor Types".
pub fn kind(segment: bool, type_: u8) -> String {
    if !segment {
        return match type_ {
            1 => "16-bit TSS",
            2 => "LDT",
            3 => "busy 16-bit TSS",
            4 => "16-bit call gate",
            5 => "task gate",
            6 => "16-bit interrupt gate",
            7 => "16-bit trap gate",
            9 => "TSS",
            11 => "busy TSS",
            12 => "call gate",
            14 => "interrupt gate",
            15 => "trap gate",
            _ => "reserved",
        }
        .to_owned();
    }
    let code = type_ & 8 != 0;
    let (bit2, bit1) = if code { ("conforming", "readable") } else { ("expand-down", "writable") };
    let mut words = vec![if code { "code" } else { "data" }];
    for (bit, word) in [(4, bit2), (2, bit1), (1, "accessed")] {
        if type_ & bit != 0 {
            words.push(word);
        }
    }
    words.join(", ")
}

/// Why a selector is no code segment, if it is none: the checks that every transfer makes.
///
/// # Errors
/// The exception that the CPU takes.
pub fn code_segment(still: &Still<'_>, selector: u16) -> Result<Entry, Cause> {
    if is_null(selector) {
        let why = format!("selector {selector:#x} is null, and code needs a segment");
        return Err(Cause::new(vector::GP, 0, why));
    }
    let entry = find(still, selector, vector::GP)?;
    let s = &entry.segment;
    let refused = |why: String| Err(Cause::new(vector::GP, code_of(selector), why).show(entry.shown.clone()));
    if s.s == 0 || s.type_ & 8 == 0 {
        return refused(format!(
            "selector {selector:#x} leads to a descriptor of no code segment: {}",
            kind(s.s != 0, s.type_)
        ));
    }
    if still.long() && s.l == 1 && s.db == 1 {
        return refused(format!(
            "the code segment of selector {selector:#x} sets both L and D, which is reserved"
        ));
    }
    Ok(entry)
}

/// Whether lower rings may run in this code segment without becoming higher ones.
pub fn conforming(segment: &kvm_segment) -> bool {
    segment.type_ & 0xc == 0xc
}

/// Why SS refuses a selector in a ring, if it does; `fault` is #GP, or #TS where it came from a TSS.
pub fn stack_segment(still: &Still<'_>, selector: u16, ring: u8, fault: u8) -> Option<Cause> {
    if is_null(selector) {
        if still.in_64_bit() && ring != 3 && selector & 3 == u16::from(ring) {
            return None;
        }
        let code = if fault == vector::TS { code_of(selector) } else { 0 };
        return Some(Cause::new(
            fault,
            code,
            format!("selector {selector:#x} is null, and ring {ring} needs a stack segment"),
        ));
    }
    let entry = match find(still, selector, fault) {
        Ok(entry) => entry,
        Err(cause) => return Some(cause),
    };
    let s = &entry.segment;
    let refused =
        |fault, why: String| Some(Cause::new(fault, code_of(selector), why).show(entry.shown.clone()));
    if (selector & 3) as u8 != ring {
        return refused(
            fault,
            format!("selector {selector:#x} asks for ring {}, and the stack is ring {ring}'s", selector & 3),
        );
    }
    if s.s == 0 || s.type_ & 0xa != 2 {
        return refused(
            fault,
            format!("selector {selector:#x} leads to no writable data segment: {}", kind(s.s != 0, s.type_)),
        );
    }
    if s.dpl != ring {
        return refused(
            fault,
            format!(
                "the segment of selector {selector:#x} has DPL {}, and the stack is ring {ring}'s",
                s.dpl
            ),
        );
    }
    if s.present == 0 {
        return refused(vector::SS, format!("the stack segment of selector {selector:#x} is not present"));
    }
    None
}

/// Why DS, ES, FS or GS refuses a selector, if it does. Intel SDM Vol. 2B, "MOV—Move".
pub fn data_segment(still: &Still<'_>, selector: u16) -> Option<Cause> {
    if is_null(selector) {
        return None;
    }
    let entry = match find(still, selector, vector::GP) {
        Ok(entry) => entry,
        Err(cause) => return Some(cause),
    };
    let s = &entry.segment;
    let refused =
        |fault, why: String| Some(Cause::new(fault, code_of(selector), why).show(entry.shown.clone()));
    if s.s == 0 || s.type_ & 0xa == 8 {
        return refused(
            vector::GP,
            format!("selector {selector:#x} leads to nothing that can be read: {}", kind(s.s != 0, s.type_)),
        );
    }
    let (ring, rpl) = (still.ring(), (selector & 3) as u8);
    if !conforming(s) && s.dpl < ring.max(rpl) {
        return refused(
            vector::GP,
            format!(
                "the segment of selector {selector:#x} is ring {}'s, and ring {} asks",
                s.dpl,
                ring.max(rpl)
            ),
        );
    }
    if s.present == 0 {
        return refused(vector::NP, format!("the segment of selector {selector:#x} is not present"));
    }
    None
}
