//! String instructions, and their repetition. Intel SDM Vol. 2, each by its name, and "REP/REPE/REPZ/
//! REPNE/REPNZ". An exception or an exit leaves the registers as the iterations before it made them, and
//! RIP at the instruction, so that it goes on from there.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{Cpu, Pending, gpr, seg};
use crate::exit::Exit;
use crate::flags::{mask, sub};
use crate::memory::{OFFSET, PAGE_SIZE};
use crate::op::{Handler, Op, Place};
use crate::paging::Intent;
use crate::registers::rflags::{DF, STATUS, ZF};
use crate::stop::{Done, Stop, vector};

/// Iterations until the CPU looks whether anything else wants its attention.
const ITERATIONS: u32 = 4096;

pub fn handler(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsq => |cpu, op| repeat(cpu, op, movs),
        // MOVSD and CMPSD are also the names of SSE instructions.
        Mnemonic::Movsd if instruction.is_string_instruction() => |cpu, op| repeat(cpu, op, movs),
        Mnemonic::Cmpsd if instruction.is_string_instruction() => |cpu, op| repeat(cpu, op, cmps),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsq => |cpu, op| repeat(cpu, op, cmps),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
            |cpu, op| repeat(cpu, op, scas)
        }
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
            |cpu, op| repeat(cpu, op, stos)
        }
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
            |cpu, op| repeat(cpu, op, lods)
        }
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => outs,
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => ins,
        _ => return None,
    })
}

/// Whether a repetition ends here, for another reason than its count.
type Iteration = fn(&mut Cpu, &Op) -> Result<bool, Stop>;

fn repeat(cpu: &mut Cpu, op: &Op, iteration: Iteration) -> Done {
    if !repeats(op) {
        return iteration(cpu, op).map(|_| ());
    }
    let (size, flags) = (count_size(op), cpu.rflags);
    for _ in 0..ITERATIONS {
        let count = cpu.register(gpr::RCX, size);
        if count == 0 {
            return Ok(());
        }
        let done = match iteration(cpu, op) {
            // "The EFLAGS value is restored to the state prior to the execution of the instruction." Intel SDM
            // Vol. 2B, "REP/REPE/REPZ/REPNE/REPNZ—Repeat String Operation Prefix".
            Err(Stop::Fault(fault)) if fault.vector == vector::PAGE_FAULT => {
                cpu.set_flags(flags, STATUS);
                return Err(fault.into());
            }
            done => done?,
        };
        cpu.iterations += 1;
        cpu.set_register(gpr::RCX, size, count - 1);
        cpu.mmio.end();
        cpu.mmio.begin();
        if done || count == 1 {
            return Ok(());
        }
        if cpu.leave_block || cpu.stepping {
            break;
        }
    }
    cpu.next = cpu.rip;
    (cpu.leave_block, cpu.repeats) = (true, true);
    Ok(())
}

fn repeats(op: &Op) -> bool {
    op.instruction.has_rep_prefix() || op.instruction.has_repne_prefix()
}

/// The count is as wide as an address.
fn count_size(op: &Op) -> u8 {
    match op.address.mask {
        0xffff => 2,
        0xffff_ffff => 4,
        _ => 8,
    }
}

/// Bytes an item: the size of the operand that is addressed by SI or DI.
fn item(op: &Op) -> u8 {
    let in_memory = op.operands.iter().filter(|operand| operand.place == Place::None);
    in_memory.map(|operand| operand.size).max().unwrap_or(1)
}

fn source(cpu: &mut Cpu, op: &Op, size: u8) -> Result<u64, Stop> {
    cpu.read_at(usize::from(op.address.segment), cpu.gpr[gpr::RSI] & op.address.mask, size)
}

/// Moves SI or DI on, or back where DF is set.
fn advance(cpu: &mut Cpu, op: &Op, register: usize, bytes: u64) {
    let by = if cpu.flag(DF) { bytes.wrapping_neg() } else { bytes };
    let value = cpu.gpr[register].wrapping_add(by);
    cpu.set_register(register, count_size(op), value);
}

fn movs(cpu: &mut Cpu, op: &Op) -> Result<bool, Stop> {
    let size = item(op);
    let value = source(cpu, op, size)?;
    cpu.write_at(seg::ES, cpu.gpr[gpr::RDI] & op.address.mask, size, value)?;
    advance(cpu, op, gpr::RSI, u64::from(size));
    advance(cpu, op, gpr::RDI, u64::from(size));
    Ok(false)
}

fn stos(cpu: &mut Cpu, op: &Op) -> Result<bool, Stop> {
    let size = item(op);
    cpu.write_at(seg::ES, cpu.gpr[gpr::RDI] & op.address.mask, size, cpu.accumulator(size))?;
    advance(cpu, op, gpr::RDI, u64::from(size));
    Ok(false)
}

fn lods(cpu: &mut Cpu, op: &Op) -> Result<bool, Stop> {
    let size = item(op);
    let value = source(cpu, op, size)?;
    cpu.set_register(gpr::RAX, size, value);
    advance(cpu, op, gpr::RSI, u64::from(size));
    Ok(false)
}

fn cmps(cpu: &mut Cpu, op: &Op) -> Result<bool, Stop> {
    let size = item(op);
    let a = source(cpu, op, size)?;
    let b = cpu.read_at(seg::ES, cpu.gpr[gpr::RDI] & op.address.mask, size)?;
    advance(cpu, op, gpr::RSI, u64::from(size));
    advance(cpu, op, gpr::RDI, u64::from(size));
    Ok(compared(cpu, op, size, a, b))
}

fn scas(cpu: &mut Cpu, op: &Op) -> Result<bool, Stop> {
    let size = item(op);
    let b = cpu.read_at(seg::ES, cpu.gpr[gpr::RDI] & op.address.mask, size)?;
    advance(cpu, op, gpr::RDI, u64::from(size));
    Ok(compared(cpu, op, size, cpu.accumulator(size), b))
}

/// REPE ends at a difference, REPNE at an equality.
fn compared(cpu: &mut Cpu, op: &Op, size: u8, a: u64, b: u64) -> bool {
    let flags = sub(size, a & mask(size), b, 0).1;
    cpu.set_flags(flags, STATUS);
    let equal = flags & ZF != 0;
    if op.instruction.has_repne_prefix() { equal } else { !equal }
}

/// One item leaves at a time. KVM's emulator leaves RIP at a repeated one even when its last item has
/// left: the next entry finds the count at 0.
fn outs(cpu: &mut Cpu, op: &Op) -> Done {
    let (size, port) = (item(op), cpu.register(gpr::RDX, 2) as u16);
    // KVM's emulator, Bochs and QEMU ask for the right to the port even where there is nothing to move.
    cpu.check_port(port, size)?;
    if repeats(op) && cpu.register(gpr::RCX, count_size(op)) == 0 {
        return Ok(());
    }
    let value = source(cpu, op, size)?;
    advance(cpu, op, gpr::RSI, u64::from(size));
    if repeats(op) {
        let count = cpu.register(gpr::RCX, count_size(op));
        cpu.set_register(gpr::RCX, count_size(op), count - 1);
    } else {
        cpu.rip = cpu.next;
    }
    cpu.data[..8].copy_from_slice(&value.to_le_bytes());
    cpu.leave(Exit::IoOut { port, size, count: 1 }, Pending::Nothing)
}

/// A repeated one asks for as many items at once as go into the page, and writes them at once where DF
/// is clear, as KVM's emulator does.
fn ins(cpu: &mut Cpu, op: &Op) -> Done {
    let (size, port) = (item(op), cpu.register(gpr::RDX, 2) as u16);
    let bytes = usize::from(size);
    let count = if repeats(op) { cpu.register(gpr::RCX, count_size(op)) } else { 1 };
    // The port is asked before the memory, and before the count: KVM's emulator goes that way.
    cpu.check_port(port, size)?;
    if count == 0 {
        return Ok(());
    }
    let offset = cpu.gpr[gpr::RDI] & op.address.mask;
    let down = cpu.flag(DF);
    if cpu.input.is_empty() {
        let room = if down { offset & OFFSET } else { PAGE_SIZE - (offset & OFFSET) };
        // KVM's emulator takes the bytes of the page for items: `pio_in_emulated`, Linux's arch/x86/kvm/emulate.c.
        let items = room.min(cpu.data.len() as u64 / u64::from(size)).clamp(1, count);
        let pending = Pending::StringInput { bytes: items as usize * bytes };
        return cpu.leave(Exit::IoIn { port, size, count: items as u32 }, pending);
    }
    // Taken out while it is written, and put back as far as it is not.
    let mut input = std::mem::take(&mut cpu.input);
    let now = if down { bytes } else { input.len() };
    let done = cpu
        .linear(seg::ES, offset, now as u64, Intent::Write)
        .and_then(|linear| cpu.write_bytes(linear, &input[..now], cpu.user()));
    if done.is_ok() {
        input.drain(..now);
        advance(cpu, op, gpr::RDI, now as u64);
    }
    cpu.input = input;
    done?;
    if repeats(op) {
        cpu.set_register(gpr::RCX, count_size(op), count - (now / bytes) as u64);
        // The next turn finds the count at 0, or asks for more.
        cpu.next = cpu.rip;
        (cpu.leave_block, cpu.repeats) = (true, true);
    }
    Ok(())
}
