//! Where the next instruction may lead by an exception, an `int` or a system call.
//!
//! The CPU clears RFLAGS.TF when it delivers one, so a single step ends at no
//! instruction of the handler: it would run on unseen until its `iret`. A
//! breakpoint at the handler's first instruction stops it there. There are four
//! for the whole CPU, so the likeliest handlers get them. Intel SDM Vol. 3B,
//! "Single-Step Exception Condition" and "Debug Registers". `syscall` clears the
//! flags that FMASK names, which a careful kernel lets name TF, and `sysret` takes
//! all flags from R11: a breakpoint waits where they lead, too.
//!
//! QEMU's software CPU, on which the lab's AMD machine runs, loads a guest's
//! breakpoints and does not look at them; nor does its `int3` reach a hypervisor
//! that has asked for it. There `hlt` is put over the first byte of each handler,
//! for as long as the step takes.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::exception::vector;
use crate::kvm::kvm_guest_debug;
use crate::mode::Mode;
use crate::segment::{Descriptor, Gate};
use crate::trace::{Place, State};

/// `include/uapi/asm/kvm.h`.
const ENABLE: u32 = 1 << 0;
const SINGLE_STEP: u32 = 1 << 1;
const HARDWARE_BREAKPOINTS: u32 = 1 << 17;

/// The instruction that ends a step where breakpoints do not: one byte, and always an exit.
pub const HLT: u8 = 0xf4;

/// DR7's fixed bit; its bits 0, 2, 4 and 6 turn a breakpoint on.
const DR7_FIXED: u64 = 1 << 10;

/// How a step is asked for, and the places besides the next instruction at which it ends.
pub struct Stops {
    /// For `KVM_SET_GUEST_DEBUG`.
    pub debug: kvm_guest_debug,
    /// Linear addresses at which [`HLT`] has to stand while the step lasts.
    pub overwritten: Vec<u64>,
}

impl Stops {
    /// No step at all: the guest runs until it exits.
    pub fn none() -> Self {
        Self { debug: kvm_guest_debug::default(), overwritten: Vec::new() }
    }

    /// A single step of the instruction at `place` that also ends where a handler begins. `by_registers`
    /// says that this CPU compares instructions with its debug registers, `lstar` where `syscall` leads.
    pub fn at(
        place: &Place,
        state: &State,
        by_registers: bool,
        lstar: &dyn Fn() -> Option<u64>,
        read: &dyn Fn(u64, usize) -> Vec<u8>,
    ) -> Self {
        let mut step = Self::none();
        step.debug.control = ENABLE | SINGLE_STEP;
        if !by_registers {
            // Where `sysret` leads, ring 3 may not halt; `trap_flag` sees to it and to `syscall`.
            step.overwritten = handlers(place, None, state, read);
            return step;
        }
        let other_ring = place.instruction.as_ref().and_then(|code| other_ring(code, state, lstar));
        let handlers = handlers(place, other_ring, state, read);
        if !handlers.is_empty() {
            step.debug.control |= HARDWARE_BREAKPOINTS;
            step.debug.arch.debugreg[7] = DR7_FIXED;
        }
        for (number, address) in handlers.iter().enumerate() {
            step.debug.arch.debugreg[number] = *address;
            step.debug.arch.debugreg[7] |= 1 << (2 * number);
        }
        step
    }
}

/// Whether this process runs on a CPU whose guests' debug registers stop at instructions.
pub fn cpu_has_breakpoints() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        #[allow(unused_unsafe)] // safe since Rust 1.92
        // SAFETY: every x86-64 CPU has CPUID.
        let (features, hypervisor) = unsafe { (__cpuid(1), __cpuid(0x4000_0000)) };
        !(features.ecx >> 31 != 0 && hypervisor.ebx == u32::from_le_bytes(*b"TCGT"))
    }
    #[cfg(not(target_arch = "x86_64"))]
    true
}

/// The linear addresses of the likeliest handlers, four at most, `first` before them.
fn handlers(
    place: &Place,
    first: Option<u64>,
    state: &State,
    read: &dyn Fn(u64, usize) -> Vec<u8>,
) -> Vec<u64> {
    let instruction = place.linear..place.linear + place.bytes.len().max(1) as u64;
    let by_vector = vectors(place.instruction.as_ref()).into_iter();
    let by_vector = by_vector.filter_map(|vector| handler(vector, state, place.mode, read));
    let mut handlers = Vec::new();
    for address in first.into_iter().chain(by_vector) {
        // A breakpoint where the step begins would end it there.
        if !instruction.contains(&address) && !handlers.contains(&address) && handlers.len() < 4 {
            handlers.push(address);
        }
    }
    handlers
}

/// Where a system call or the return from one leads. Intel SDM Vol. 2B, "SYSCALL—Fast System Call" and
/// "SYSRET—Return From Fast System Call".
fn other_ring(instruction: &Instruction, state: &State, lstar: &dyn Fn() -> Option<u64>) -> Option<u64> {
    match instruction.mnemonic() {
        Mnemonic::Syscall => lstar(),
        Mnemonic::Sysretq => Some(state.regs.rcx),
        Mnemonic::Sysret => Some(state.regs.rcx & 0xffff_ffff),
        _ => None,
    }
}

/// The vectors that this instruction may raise, the likeliest first.
fn vectors(instruction: Option<&Instruction>) -> Vec<u8> {
    use vector::*;
    let mut vectors = match instruction {
        None => vec![UD],
        Some(instruction) => match instruction.mnemonic() {
            Mnemonic::Int => vec![instruction.immediate8()],
            Mnemonic::Int1 => vec![DB],
            Mnemonic::Int3 => vec![BP],
            Mnemonic::Into => vec![OF],
            Mnemonic::Bound => vec![BR],
            Mnemonic::Div | Mnemonic::Idiv | Mnemonic::Aam => vec![DE],
            Mnemonic::Ltr | Mnemonic::Lldt => vec![NP],
            _ if loads_a_segment(instruction) => vec![NP, TS, SS],
            _ if instruction.flow_control() == FlowControl::Next => Vec::new(),
            _ => vec![UD],
        },
    };
    vectors.extend([GP, PF, DF, UD, SS, NM]);
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
    use crate::kvm::{kvm_dtable, kvm_regs, kvm_sregs};
    use crate::mode::cr0;
    use crate::trace::View;

    const IDT: u64 = 0x1000;
    const GDT: u64 = 0x2000;

    /// A guest with `code` at 0, in protected mode with a flat code segment at selector 8 and these
    /// gates, and RCX 0x600.
    fn guest(code: &[u8], gates: &[(u8, Gate)]) -> (State, Vec<u8>) {
        let mut memory = vec![0; 0x3000];
        memory[..code.len()].copy_from_slice(code);
        memory[GDT as usize + 8..][..8].copy_from_slice(&Descriptor::CODE_32.0.to_le_bytes());
        for (vector, gate) in gates {
            memory[IDT as usize + usize::from(*vector) * 8..][..8]
                .copy_from_slice(&gate.to_32().to_le_bytes());
        }
        let mut sregs = kvm_sregs { cr0: cr0::PE, ..kvm_sregs::default() };
        sregs.cs = Descriptor::CODE_32.load(8);
        sregs.idt = kvm_dtable { base: IDT, limit: 0x7ff, ..kvm_dtable::default() };
        sregs.gdt = kvm_dtable { base: GDT, limit: 0xf, ..kvm_dtable::default() };
        (State { regs: kvm_regs { rcx: 0x600, ..kvm_regs::default() }, sregs }, memory)
    }

    fn step_of(state: &State, memory: &[u8], by_registers: bool) -> Stops {
        let read = |at: u64, length: usize| {
            memory.iter().skip(at as usize).take(length).copied().collect::<Vec<u8>>()
        };
        let place = Place::at(state, 0, &View { read: &read, starts: &|_| false });
        assert!(place.instruction.is_some());
        Stops::at(&place, state, by_registers, &|| Some(0x500), &read)
    }

    fn breakpoints(code: &[u8], gates: &[(u8, Gate)]) -> Vec<u64> {
        let (state, memory) = guest(code, gates);
        let debug = step_of(&state, &memory, true).debug;
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
    fn on_a_cpu_without_breakpoints_the_handlers_are_overwritten() {
        let (state, memory) = guest(&[0x90], &[(13, Gate::interrupt(8, 0x100))]);
        let step = step_of(&state, &memory, false);
        assert_eq!((step.overwritten, step.debug.control), (vec![0x100], ENABLE | SINGLE_STEP));
    }

    #[test]
    fn a_guest_without_gates_gets_a_plain_step() {
        assert_eq!(breakpoints(&[0xcd, 0x80], &[]), [] as [u64; 0]);
    }

    #[test]
    fn a_step_stops_where_a_system_call_and_its_return_lead() {
        let gates = [(13, Gate::interrupt(8, 0x10d))];
        assert_eq!(breakpoints(&[0x0f, 0x05], &gates), [0x500, 0x10d]);
        assert_eq!(breakpoints(&[0x0f, 0x07], &gates), [0x600, 0x10d]);
    }
}
