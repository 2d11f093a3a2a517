//! The instructions, a group a module. Each module's `handler` is its table of
//! contents: which mnemonic is executed by what.

mod alu;
mod bits;
mod branch;
mod control;
mod far;
mod flag;
mod moves;
mod multiply;
mod port;
mod shift;
mod sse;
mod stack;
mod string;
mod system;
mod syscall;
mod tables;
mod x87;

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::decode::LONGEST;
use crate::op::{Handler, Op};
use crate::stop::{Done, Fault, Missing, Stop};

/// What executes an instruction: for one that no CPU has #UD, for one that nobody has written here
/// [`Stop::Missing`].
pub fn handler(instruction: &Instruction) -> Handler {
    if instruction.is_invalid() {
        // The decoder does not say that an instruction is too long, only that it gave up at byte 15.
        return if instruction.len() < LONGEST { invalid } else { too_long };
    }
    let mnemonic = instruction.mnemonic();
    let found = alu::handler(mnemonic)
        .or_else(|| moves::handler(mnemonic))
        .or_else(|| branch::handler(mnemonic))
        .or_else(|| stack::handler(mnemonic))
        .or_else(|| shift::handler(mnemonic))
        .or_else(|| multiply::handler(mnemonic))
        .or_else(|| bits::handler(mnemonic))
        .or_else(|| string::handler(instruction))
        .or_else(|| flag::handler(mnemonic))
        .or_else(|| port::handler(mnemonic))
        .or_else(|| far::handler(mnemonic))
        .or_else(|| system::handler(mnemonic))
        .or_else(|| control::handler(mnemonic))
        .or_else(|| tables::handler(mnemonic))
        .or_else(|| syscall::handler(mnemonic))
        .or_else(|| sse::handler(instruction))
        .or_else(|| x87::handler(instruction));
    match mnemonic {
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => invalid,
        _ => found.unwrap_or(unimplemented),
    }
}

/// Whether the machine executes instructions of this encoding, or has a fault for them: whether it never
/// stops at one with `KVM_EXIT_INTERNAL_ERROR` for want of it. (Some have parts that it lacks: task gates.)
#[must_use]
pub fn executes(code: iced_x86::Code) -> bool {
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    !instruction.is_invalid() && !std::ptr::fn_addr_eq(handler(&instruction), unimplemented as Handler)
}

fn invalid(_: &mut Cpu, _: &Op) -> Done {
    Err(Fault::INVALID_OPCODE.into())
}

/// Intel SDM Vol. 3A, "Interrupt 13—General Protection Exception (#GP)".
fn too_long(_: &mut Cpu, _: &Op) -> Done {
    Err(Fault::general_protection(0).into())
}

fn unimplemented(_: &mut Cpu, _: &Op) -> Done {
    Err(Stop::Missing(Missing::Instruction))
}
