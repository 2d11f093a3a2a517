//! Where in the guest an exit comes from: the instruction, although RIP may
//! stand at it or after it.
//!
//! At the exit of an `out`, RIP still points at the instruction where the CPU
//! itself raised the exit, and after it where KVM's instruction emulator ran
//! the whole of it. So both are read, and the one that fits what the exit
//! carried is taken: direction, port, size.

use std::fmt;

use iced_x86::{Code, FlowControl, Instruction, Mnemonic, Register};

use crate::disasm::{self, LONGEST};
use crate::exit::Exit;
use crate::mode::{Mode, ring};
use crate::trace::State;

/// The guest's code, as far as it can be seen.
pub struct View<'a> {
    /// Reads up to so many bytes at a linear address.
    pub read: &'a dyn Fn(u64, usize) -> Vec<u8>,
    /// Whether the guest's listing has an instruction that starts at this address.
    pub starts: &'a dyn Fn(u64) -> bool,
}

/// A point of the guest's code: the address, and the instruction if there is one.
#[derive(Clone, Debug)]
pub struct Place {
    pub mode: Mode,
    pub ring: u8,
    pub cs: u16,
    pub rip: u64,
    /// CS base plus RIP, before paging.
    pub linear: u64,
    pub bytes: Vec<u8>,
    pub instruction: Option<Instruction>,
}

impl Place {
    /// The place at `rip` in this state.
    pub fn at(state: &State, rip: u64, view: &View<'_>) -> Self {
        let mode = Mode::of(&state.sregs);
        let linear = linear(state, mode, rip);
        let mut bytes = (view.read)(linear, LONGEST);
        let instruction = disasm::decode(mode.code_bits(), rip, &bytes);
        bytes.truncate(instruction.map_or(0, |instruction| instruction.len()));
        let ring = ring(&state.sregs);
        Self { mode, ring, cs: state.sregs.cs.selector, rip, linear, bytes, instruction }
    }

    /// The instruction that caused this exit; `out_after` says whether this KVM
    /// shows RIP after a plain `out`, for the case that RIP stands between two of
    /// the same kind.
    pub fn of_exit(exit: &Exit, state: &State, out_after: bool, view: &View<'_>) -> Self {
        let here = Self::at(state, state.regs.rip, view);
        match exit {
            Exit::Hlt => Self::ending_at(state, view, &|hlt| hlt.mnemonic() == Mnemonic::Hlt),
            Exit::MmioWrite { data, .. } => {
                Self::ending_at(state, view, &|write| writes_memory(write, data.len()))
            }
            Exit::IoOut { port, size, .. } => {
                let caused = |out: &Instruction| writes_port(out, *port, *size, state);
                let fits = here.instruction.as_ref().is_some_and(caused);
                let before = Self::ending_at(state, view, &caused);
                // Both fit where the same `out` stands twice. A string one was emulated whole.
                let string = before.instruction.is_some_and(|out| out.is_string_instruction());
                let both = fits && before.instruction.is_some();
                if fits && !(both && (out_after || string)) { here } else { before }
            }
            _ => here,
        }
    }

    /// The instruction that ends where RIP stands and `fits`. To decode backwards
    /// is to guess, so one that the listing knows is taken before all others; the
    /// others only if they are `out`s or `hlt`, whose fits cannot differ in more
    /// than a meaningless prefix. Otherwise the place has no instruction.
    fn ending_at(state: &State, view: &View<'_>, fits: &dyn Fn(&Instruction) -> bool) -> Self {
        let mut guess = None;
        for length in 1..=LONGEST as u64 {
            let place = Self::at(state, state.regs.rip.wrapping_sub(length), view);
            let Some(instruction) = &place.instruction else { continue };
            if instruction.len() as u64 != length || !fits(instruction) {
                continue;
            }
            if (view.starts)(place.linear) {
                return place;
            }
            let sure = writes_port_or_halts(instruction);
            guess = guess.or(sure.then_some(place));
        }
        guess.unwrap_or_else(|| {
            let here = Self::at(state, state.regs.rip, view);
            Self { bytes: Vec::new(), instruction: None, ..here }
        })
    }

    /// Where the instruction ends.
    pub fn end(&self) -> u64 {
        self.rip.wrapping_add(self.bytes.len() as u64)
    }

    /// Whether the CPU, asked to step this instruction, has gone on to another one that exited with
    /// this RIP: it held the trap back, or went to a handler.
    pub fn ran_on_to(&self, rip: u64) -> bool {
        self.shadows_the_next() || rip != self.rip && rip != self.end()
    }

    pub fn is_hlt(&self) -> bool {
        self.instruction.is_some_and(|instruction| instruction.mnemonic() == Mnemonic::Hlt)
    }

    /// Whether the instruction can have run although no register tells: `jmp $`.
    pub fn may_jump_to_itself(&self) -> bool {
        self.instruction.is_some_and(|jump| match jump.flow_control() {
            FlowControl::Next => false,
            FlowControl::IndirectBranch | FlowControl::IndirectCall => true,
            _ => jump.near_branch_target() == self.rip,
        })
    }

    /// Whether the CPU holds single-step traps back until after the next
    /// instruction. Intel SDM Vol. 3A, "Masking Exceptions and Interrupts When
    /// Switching Stacks".
    pub fn shadows_the_next(&self) -> bool {
        self.instruction.is_some_and(|instruction| {
            matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Pop)
                && instruction.op0_register() == Register::SS
        })
    }
}

/// `0008:1018`
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.cs, self.rip)
    }
}

fn linear(state: &State, mode: Mode, rip: u64) -> u64 {
    match mode {
        Mode::Long64 => rip,
        // Outside 64-bit mode, addresses are 32 bits wide. SDM Vol. 3A, "Segmentation in IA-32e Mode".
        _ => state.sregs.cs.base.wrapping_add(rip) & 0xffff_ffff,
    }
}

/// Whether this instruction is an `out` or `outs` to `port` with items of `size` bytes.
fn writes_port(out: &Instruction, port: u16, size: u8, state: &State) -> bool {
    let (wanted, immediate) = match out.code() {
        Code::Out_imm8_AL => (1, true),
        Code::Out_imm8_AX => (2, true),
        Code::Out_imm8_EAX => (4, true),
        Code::Out_DX_AL | Code::Outsb_DX_m8 => (1, false),
        Code::Out_DX_AX | Code::Outsw_DX_m16 => (2, false),
        Code::Out_DX_EAX | Code::Outsd_DX_m32 => (4, false),
        _ => return false,
    };
    let to = if immediate { u16::from(out.immediate8()) } else { state.regs.rdx as u16 };
    size == wanted && port == to
}

fn writes_port_or_halts(instruction: &Instruction) -> bool {
    use Mnemonic::{Hlt, Out, Outsb, Outsd, Outsw};
    matches!(instruction.mnemonic(), Hlt | Out | Outsb | Outsw | Outsd)
}

/// Whether this instruction writes `size` bytes of memory.
fn writes_memory(write: &Instruction, size: usize) -> bool {
    let mut factory = iced_x86::InstructionInfoFactory::new();
    let memory = factory.info(write).used_memory();
    memory.iter().any(|used| {
        use iced_x86::OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
        matches!(used.access(), Write | CondWrite | ReadWrite | ReadCondWrite)
            && used.memory_size().size() == size
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::{kvm_regs, kvm_sregs};

    const COM1: u16 = 0x3f8;

    fn real_mode(rip: u64) -> State {
        let regs = kvm_regs { rip, rdx: u64::from(COM1), ..kvm_regs::default() };
        State { regs, sregs: kvm_sregs::default() }
    }

    /// The place of an exit in `code`, which starts at 0; the listing knows `starts`.
    fn of_exit(exit: &Exit, rip: u64, out_after: bool, code: &[u8], starts: &[u64]) -> Place {
        let read = |address: u64, length: usize| -> Vec<u8> {
            code.iter().skip(address as usize).take(length).copied().collect()
        };
        let view = View { read: &read, starts: &|address| starts.contains(&address) };
        Place::of_exit(exit, &real_mode(rip), out_after, &view)
    }

    fn out(port: u16, size: u8) -> Exit {
        Exit::IoOut { port, size, data: vec![0; usize::from(size)] }
    }

    /// nop; out dx, al; nop
    #[test]
    fn an_out_is_found_whether_rip_is_at_it_or_after_it() {
        for rip in [1, 2] {
            for out_after in [false, true] {
                let place = of_exit(&out(COM1, 1), rip, out_after, &[0x90, 0xee, 0x90], &[]);
                assert_eq!((place.rip, place.bytes), (1, vec![0xee]));
            }
        }
    }

    /// out dx, al; out dx, al
    #[test]
    fn between_two_outs_the_habit_of_this_kvm_decides() {
        for (out_after, rip) in [(false, 1), (true, 0)] {
            assert_eq!(of_exit(&out(COM1, 1), 1, out_after, &[0xee, 0xee, 0x90], &[]).rip, rip);
        }
    }

    /// out 0x80, al; the bytes of another `out` lie inside it.
    #[test]
    fn port_and_size_tell_one_out_from_another() {
        let code = [0xe6, 0x80, 0xee];
        let place = of_exit(&out(0x80, 1), 2, false, &code, &[]);
        assert_eq!((place.rip, place.bytes), (0, vec![0xe6, 0x80]));
        assert!(of_exit(&out(0x81, 1), 2, false, &code, &[]).instruction.is_none());
    }

    /// mov al, 0x2e; out dx, al: the immediate looks like a prefix of the `out`.
    #[test]
    fn a_byte_before_an_out_is_not_taken_for_its_prefix() {
        assert_eq!(of_exit(&out(COM1, 1), 3, true, &[0xb0, 0x2e, 0xee], &[]).rip, 2);
    }

    /// mov [0x3000], al. Its last two bytes are `add [bx+si], dh`, which writes a byte too.
    #[test]
    fn a_write_is_found_by_the_listing_and_never_guessed() {
        let (code, write) = ([0xa2, 0x00, 0x30], Exit::MmioWrite { address: 0x3000, data: vec![1] });
        assert_eq!(of_exit(&write, 3, false, &code, &[0]).rip, 0);
        assert!(of_exit(&write, 3, false, &code, &[]).instruction.is_none());
    }

    #[test]
    fn a_hlt_ends_where_rip_stands() {
        assert_eq!(of_exit(&Exit::Hlt, 2, false, &[0x90, 0xf4], &[]).rip, 1);
    }

    #[test]
    fn code_in_no_memory_is_a_place_without_an_instruction() {
        let place = of_exit(&Exit::InternalError { suberror: 1, missing: None }, 0x9000, false, &[], &[]);
        assert!(place.instruction.is_none() && place.bytes.is_empty());
        assert_eq!(place.to_string(), "0000:9000");
    }
}
