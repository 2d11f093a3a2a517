//! Where the next instruction may lead by an exception or an `int`.
//!
//! The CPU clears RFLAGS.TF when it delivers one, so a single step ends at no
//! instruction of the handler: it would run on unseen until its `iret`. A
//! breakpoint at the handler's first instruction stops it there. There are four
//! for the whole CPU, so the likeliest handlers get them. Intel SDM Vol. 3B,
//! "Single-Step Exception Condition" and "Debug Registers".

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::kvm::kvm_guest_debug;
use crate::mode::Mode;
use crate::segment::{Descriptor, Gate};
use crate::trace::{Place, State};

/// `include/uapi/asm/kvm.h`.
const ENABLE: u32 = 1 << 0;
const SINGLE_STEP: u32 = 1 << 1;
const HARDWARE_BREAKPOINTS: u32 = 1 << 17;

/// DR7's fixed bit; its bits 0, 2, 4 and 6 turn a breakpoint on.
const DR7_FIXED: u64 = 1 << 10;

/// Vectors of exceptions. Intel SDM Vol. 3A, "Exception and Interrupt Reference".
#[rustfmt::skip] // a vector a line
mod vector {
    pub const DIVIDE_ERROR: u8       = 0;
    pub const DEBUG: u8              = 1;
    pub const BREAKPOINT: u8         = 3;
    pub const OVERFLOW: u8           = 4;
    pub const BOUND: u8              = 5;
    pub const INVALID_OPCODE: u8     = 6;
    pub const DEVICE: u8             = 7;
    pub const DOUBLE_FAULT: u8       = 8;
    pub const INVALID_TSS: u8        = 10;
    pub const NOT_PRESENT: u8        = 11;
    pub const STACK: u8              = 12;
    pub const GENERAL_PROTECTION: u8 = 13;
    pub const PAGE_FAULT: u8         = 14;
}

/// A single step of the instruction at `place`, which also stops where a handler begins.
pub fn step(place: &Place, state: &State, read: &dyn Fn(u64, usize) -> Vec<u8>) -> kvm_guest_debug {
    let mut debug = kvm_guest_debug { control: ENABLE | SINGLE_STEP, ..kvm_guest_debug::default() };
    let mut handlers = Vec::new();
    for vector in vectors(place.instruction.as_ref()) {
        let handler = handler(vector, state, place.mode, read);
        // A breakpoint where the step begins would end it there.
        if let Some(address) = handler.filter(|address| *address != place.linear)
            && !handlers.contains(&address)
            && handlers.len() < 4
        {
            handlers.push(address);
        }
    }
    if !handlers.is_empty() {
        debug.control |= HARDWARE_BREAKPOINTS;
        debug.arch.debugreg[7] = DR7_FIXED;
    }
    for (number, address) in handlers.iter().enumerate() {
        debug.arch.debugreg[number] = *address;
        debug.arch.debugreg[7] |= 1 << (2 * number);
    }
    debug
}

/// The vectors that this instruction may raise, the likeliest first.
fn vectors(instruction: Option<&Instruction>) -> Vec<u8> {
    use vector::*;
    let mut vectors = match instruction {
        None => vec![INVALID_OPCODE],
        Some(instruction) => match instruction.mnemonic() {
            Mnemonic::Int => vec![instruction.immediate8()],
            Mnemonic::Int1 => vec![DEBUG],
            Mnemonic::Int3 => vec![BREAKPOINT],
            Mnemonic::Into => vec![OVERFLOW],
            Mnemonic::Bound => vec![BOUND],
            Mnemonic::Div | Mnemonic::Idiv | Mnemonic::Aam => vec![DIVIDE_ERROR],
            Mnemonic::Ltr | Mnemonic::Lldt => vec![NOT_PRESENT],
            _ if loads_a_segment(instruction) => vec![NOT_PRESENT, INVALID_TSS, STACK],
            _ if instruction.flow_control() == FlowControl::Next => Vec::new(),
            _ => vec![INVALID_OPCODE],
        },
    };
    vectors.extend([GENERAL_PROTECTION, PAGE_FAULT, DOUBLE_FAULT, INVALID_OPCODE, STACK, DEVICE]);
    vectors
}

fn loads_a_segment(instruction: &Instruction) -> bool {
    use Mnemonic::{Iret, Iretd, Iretq, Retf};
    let far = [OpKind::FarBranch16, OpKind::FarBranch32].contains(&instruction.op0_kind());
    let segments = [Register::ES, Register::CS, Register::SS, Register::DS, Register::FS, Register::GS];
    let register =
        instruction.op0_kind() == OpKind::Register && segments.contains(&instruction.op0_register());
    far || register || matches!(instruction.mnemonic(), Iret | Iretd | Iretq | Retf)
}

/// The linear address of the handler that the guest has for a vector, if it has one.
fn handler(vector: u8, state: &State, mode: Mode, read: &dyn Fn(u64, usize) -> Vec<u8>) -> Option<u64> {
    let (idt, long) =
        (&state.sregs.idt, matches!(mode, Mode::Long64 | Mode::Compatibility16 | Mode::Compatibility32));
    let size = match mode {
        Mode::Real => 4,
        _ if long => 16,
        _ => 8,
    };
    let offset = u64::from(vector) * size;
    if offset + size - 1 > u64::from(idt.limit) {
        return None;
    }
    let mut entry = [0; 16];
    let bytes = read(idt.base.wrapping_add(offset), size as usize);
    entry.get_mut(..bytes.len())?.copy_from_slice(&bytes);
    let number = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap_or_default());
    if mode == Mode::Real {
        // Offset and segment; zeros are an entry that nobody has filled in.
        let (at, segment) = (number(0) & 0xffff, number(0) >> 16 & 0xffff);
        return (at | segment != 0).then_some(segment * 16 + at);
    }
    if long {
        return Some(Gate::from_64([number(0), number(8)])?.offset);
    }
    let gate = Gate::from_32(number(0))?;
    Some(base_of(gate.selector, state, read).wrapping_add(gate.offset) & 0xffff_ffff)
}

/// Where the segment of a selector begins, by the GDT.
fn base_of(selector: u16, state: &State, read: &dyn Fn(u64, usize) -> Vec<u8>) -> u64 {
    let bytes = read(state.sregs.gdt.base + u64::from(selector & !7), 8);
    bytes.try_into().map_or(0, |bytes| Descriptor(u64::from_le_bytes(bytes)).load(selector).base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disasm;
    use crate::kvm::{kvm_dtable, kvm_regs, kvm_sregs};
    use crate::mode::cr0;
    use crate::trace::View;

    const IDT: u64 = 0x1000;
    const GDT: u64 = 0x2000;

    /// The breakpoints for `code` at 0, in protected mode with a flat code segment at selector 8 and
    /// these gates.
    fn breakpoints(code: &[u8], gates: &[(u8, Gate)]) -> Vec<u64> {
        let mut memory = vec![0; 0x3000];
        memory[..code.len()].copy_from_slice(code);
        memory[GDT as usize + 8..][..8].copy_from_slice(&Descriptor::CODE_32.0.to_le_bytes());
        for (vector, gate) in gates {
            memory[IDT as usize + usize::from(*vector) * 8..][..8]
                .copy_from_slice(&gate.to_32().to_le_bytes());
        }
        let read = |at: u64, length: usize| memory.iter().skip(at as usize).take(length).copied().collect();
        let mut sregs = kvm_sregs { cr0: cr0::PE, ..kvm_sregs::default() };
        sregs.cs = Descriptor::CODE_32.load(8);
        sregs.idt = kvm_dtable { base: IDT, limit: 0x7ff, ..kvm_dtable::default() };
        sregs.gdt = kvm_dtable { base: GDT, limit: 0xf, ..kvm_dtable::default() };
        let state = State { regs: kvm_regs::default(), sregs };
        let place = Place::at(&state, 0, &View { read: &read, starts: &|_| false });
        assert!(disasm::decode(32, 0, code).is_some());
        let debug = step(&place, &state, &read);
        let set = (0..4).filter(|number| debug.arch.debugreg[7] >> (2 * number) & 1 == 1);
        set.map(|number| debug.arch.debugreg[number]).collect()
    }

    #[test]
    fn a_step_stops_at_the_handler_of_an_int_and_of_the_likeliest_faults() {
        let gates = [0x80, 13, 14].map(|vector| (vector, Gate::interrupt(8, 0x100 + u64::from(vector))));
        assert_eq!(breakpoints(&[0xcd, 0x80], &gates), [0x180, 0x10d, 0x10e]);
        assert_eq!(breakpoints(&[0x90], &gates), [0x10d, 0x10e]);
    }

    #[test]
    fn a_handler_that_serves_many_vectors_takes_one_breakpoint_and_none_where_the_step_begins() {
        let gates = [0, 6, 8, 12, 13, 14].map(|vector| (vector, Gate::interrupt(8, 0x100)));
        assert_eq!(breakpoints(&[0x90], &gates), [0x100]);
        let at_itself = [(13, Gate::interrupt(8, 0)), (14, Gate::interrupt(8, 0x20))];
        assert_eq!(breakpoints(&[0x90], &at_itself), [0x20]);
    }

    #[test]
    fn a_guest_without_gates_gets_a_plain_step() {
        assert_eq!(breakpoints(&[0xcd, 0x80], &[]), [] as [u64; 0]);
    }
}
