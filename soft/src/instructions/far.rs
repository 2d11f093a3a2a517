//! Far jumps, calls and returns, and IRET. Intel SDM Vol. 2, each by its name; Vol. 3A, "Call Gates".

use iced_x86::{Code, Mnemonic};

use crate::cpu::{Cpu, gpr};
use crate::descriptor::{Descriptor, code_of, is_null, rpl};
use crate::flags::mask;
use crate::op::{Handler, Op, Place};
use crate::registers::{kind, rflags};
use crate::stop::{Done, Fault, Missing, Stop};

pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Retf => ret,
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => interrupt_return,
        _ => return None,
    })
}

/// The selector and offset that an instruction holds or points to, and the offset's size.
fn pointer(cpu: &mut Cpu, op: &Op) -> Result<(u16, u64, u8), Stop> {
    let instruction = &op.instruction;
    if op.first().place != Place::Memory {
        let size = op.size();
        let offset = if size == 2 {
            u64::from(instruction.far_branch16())
        } else {
            u64::from(instruction.far_branch32())
        };
        return Ok((instruction.far_branch_selector(), offset, size));
    }
    let size = match instruction.code() {
        Code::Jmp_m1616 | Code::Call_m1616 => 2,
        Code::Jmp_m1632 | Code::Call_m1632 => 4,
        _ => 8,
    };
    let (segment, at) = (usize::from(op.address.segment), cpu.offset(op));
    let offset = cpu.read_at(segment, at, size)?;
    let selector = cpu.read_at(segment, at.wrapping_add(u64::from(size)) & op.address.mask, 2)?;
    Ok((selector as u16, offset, size))
}

/// JMP to another segment; `super::branch` sends it here.
pub fn jump(cpu: &mut Cpu, op: &Op) -> Done {
    let (selector, offset, _) = pointer(cpu, op)?;
    if !cpu.protected() {
        return cpu.enter_real_code(selector, offset);
    }
    let descriptor = target(cpu, selector)?;
    if descriptor.is_code() {
        check_direct(cpu, selector, descriptor)?;
        let ring = cpu.cpl;
        return cpu.all_or_nothing(|cpu| cpu.enter_code(selector, descriptor, ring, offset));
    }
    let gate = gate(cpu, selector, descriptor)?;
    let code = cpu.code_descriptor(gate.selector, Fault::general_protection)?;
    let same = if code.is_conforming() { code.dpl() <= cpu.cpl } else { code.dpl() == cpu.cpl };
    if !same || gate.size == 8 && !code.is_long() {
        return Err(Fault::general_protection(code_of(gate.selector)).into());
    }
    let ring = cpu.cpl;
    cpu.all_or_nothing(|cpu| cpu.enter_code(gate.selector, code, ring, gate.offset))
}

/// CALL to another segment.
pub fn call(cpu: &mut Cpu, op: &Op) -> Done {
    let (selector, offset, size) = pointer(cpu, op)?;
    let (old_cs, return_to) = (u64::from(cpu.segments[crate::cpu::seg::CS].selector), cpu.next);
    if !cpu.protected() {
        return cpu.all_or_nothing(|cpu| {
            cpu.push(size, old_cs)?;
            cpu.push(size, return_to)?;
            cpu.enter_real_code(selector, offset)
        });
    }
    let descriptor = target(cpu, selector)?;
    if descriptor.is_code() {
        check_direct(cpu, selector, descriptor)?;
        cpu.check_entry(selector, descriptor, offset)?;
        let ring = cpu.cpl;
        return cpu.all_or_nothing(|cpu| {
            cpu.push(size, old_cs)?;
            cpu.push(size, return_to)?;
            cpu.enter_code(selector, descriptor, ring, offset)
        });
    }
    let gate = gate(cpu, selector, descriptor)?;
    cpu.all_or_nothing(|cpu| through_gate(cpu, &gate, old_cs, return_to))
}

fn target(cpu: &mut Cpu, selector: u16) -> Result<Descriptor, Stop> {
    if is_null(selector) {
        return Err(Fault::general_protection(0).into());
    }
    let descriptor = cpu.descriptor(selector, Fault::general_protection)?;
    if descriptor.is_code() {
        return cpu.code_descriptor(selector, Fault::general_protection);
    }
    Ok(descriptor)
}

/// A code segment that is named directly must be of this ring, or conforming and of an inner one.
fn check_direct(cpu: &Cpu, selector: u16, descriptor: Descriptor) -> Done {
    let allowed = if descriptor.is_conforming() {
        descriptor.dpl() <= cpu.cpl
    } else {
        rpl(selector) <= cpu.cpl && descriptor.dpl() == cpu.cpl
    };
    if allowed { Ok(()) } else { Err(Fault::general_protection(code_of(selector)).into()) }
}

/// A call gate, taken apart.
struct Gate {
    selector: u16,
    offset: u64,
    /// What is pushed at a time, in bytes: 2, 4 or 8.
    size: u8,
    /// Items to copy from the caller's stack.
    parameters: u8,
}

/// Reads the call gate behind a selector. A task gate or a TSS would switch tasks: not implemented.
fn gate(cpu: &mut Cpu, selector: u16, descriptor: Descriptor) -> Result<Gate, Stop> {
    let refused = Fault::general_protection(code_of(selector));
    if descriptor.is_segment() {
        return Err(refused.into());
    }
    let size = match (descriptor.kind(), cpu.long_mode()) {
        (kind::CALL_GATE, true) => 8,
        (kind::CALL_GATE, false) => 4,
        (kind::CALL_GATE_16, false) => 2,
        (kind::TASK_GATE | kind::TSS | kind::TSS_16, false) => return Err(Stop::Missing(Missing::Tasks)),
        _ => return Err(refused.into()),
    };
    if descriptor.dpl() < cpu.cpl.max(rpl(selector)) {
        return Err(refused.into());
    }
    let mut offset = descriptor.0 & 0xffff | descriptor.0 >> 32 & 0xffff_0000;
    if size == 8 {
        let Some(address) = cpu.descriptor_address(selector, 16) else { return Err(refused.into()) };
        let high = cpu.read(address.wrapping_add(8), 8, false)?;
        if high >> 40 & 0x1f != 0 {
            return Err(refused.into());
        }
        offset |= high << 32;
    }
    if !descriptor.is_present() {
        return Err(Fault::not_present(code_of(selector)).into());
    }
    Ok(Gate {
        selector: (descriptor.0 >> 16) as u16,
        offset: if size == 2 { offset & 0xffff } else { offset },
        size,
        parameters: (descriptor.0 >> 32 & 0x1f) as u8,
    })
}

fn through_gate(cpu: &mut Cpu, gate: &Gate, old_cs: u64, return_to: u64) -> Done {
    let refused = Fault::general_protection(code_of(gate.selector));
    let code = cpu.code_descriptor(gate.selector, Fault::general_protection)?;
    if code.dpl() > cpu.cpl || gate.size == 8 && (!code.is_long() || code.is_big()) {
        return Err(refused.into());
    }
    cpu.check_entry(gate.selector, code, gate.offset)?;
    let inner = !code.is_conforming() && code.dpl() < cpu.cpl;
    let ring = if inner { code.dpl() } else { cpu.cpl };
    if inner {
        let count = if gate.size == 8 { 0 } else { u64::from(gate.parameters) };
        let mut parameters = [0; 31];
        for number in 0..count {
            parameters[number as usize] = cpu.peek(number * u64::from(gate.size), gate.size)?;
        }
        let old_ss = u64::from(cpu.segments[crate::cpu::seg::SS].selector);
        let old_sp = cpu.gpr[gpr::RSP];
        let (stack, pointer) = cpu.stack_for_ring(ring)?;
        cpu.use_stack(ring, stack, pointer);
        if gate.size == 8 {
            // The pushes are 64-bit code's already.
            cpu.code_size = crate::cpu::CodeSize::Bits64;
        }
        cpu.push(gate.size, old_ss)?;
        cpu.push(gate.size, old_sp)?;
        for parameter in parameters[..count as usize].iter().rev() {
            cpu.push(gate.size, *parameter)?;
        }
    } else if gate.size == 8 {
        cpu.code_size = crate::cpu::CodeSize::Bits64;
    }
    cpu.push(gate.size, old_cs)?;
    cpu.push(gate.size, return_to)?;
    cpu.enter_code(gate.selector, code, ring, gate.offset)
}

fn ret(cpu: &mut Cpu, op: &Op) -> Done {
    let size = match op.instruction.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    };
    let (item, more) = (u64::from(size), op.immediate);
    let offset = cpu.peek(0, size)?;
    let selector = cpu.peek(item, size)? as u16;
    cpu.all_or_nothing(|cpu| {
        if !cpu.protected() {
            cpu.drop_from_stack(2 * item + more);
            return cpu.enter_real_code(selector, offset);
        }
        let outer = if rpl(selector) > cpu.cpl {
            let pointer = cpu.peek(2 * item + more, size)?;
            let stack = cpu.peek(3 * item + more, size)? as u16;
            // The parameters were on both stacks.
            Some((stack, pointer.wrapping_add(more)))
        } else {
            None
        };
        if outer.is_none() {
            cpu.drop_from_stack(2 * item + more);
        }
        cpu.return_to(selector, offset, outer)
    })
}

fn interrupt_return(cpu: &mut Cpu, op: &Op) -> Done {
    let size = match op.instruction.code() {
        Code::Iretw => 2,
        Code::Iretd => 4,
        _ => 8,
    };
    cpu.nmi_masked = false;
    cpu.all_or_nothing(
        |cpu| if cpu.protected() { protected_return(cpu, size) } else { real_return(cpu, size) },
    )
}

fn real_return(cpu: &mut Cpu, size: u8) -> Done {
    let item = u64::from(size);
    let offset = cpu.peek(0, size)?;
    let selector = cpu.peek(item, size)? as u16;
    let flags = cpu.peek(2 * item, size)?;
    cpu.drop_from_stack(3 * item);
    cpu.enter_real_code(selector, offset)?;
    load_flags(cpu, flags, size, 0);
    Ok(())
}

fn protected_return(cpu: &mut Cpu, size: u8) -> Done {
    if cpu.flag(rflags::NT) {
        // To the task that was interrupted; long mode has no tasks.
        let fault = Fault::general_protection(0);
        return Err(if cpu.long_mode() { fault.into() } else { Stop::Missing(Missing::Tasks) });
    }
    let item = u64::from(size);
    let offset = cpu.peek(0, size)?;
    let selector = cpu.peek(item, size)? as u16;
    let flags = cpu.peek(2 * item, size)?;
    if flags & rflags::VM & mask(size) != 0 && cpu.cpl == 0 && !cpu.long_mode() {
        return Err(Stop::Missing(Missing::Virtual8086));
    }
    let old_ring = cpu.cpl;
    let outer = if cpu.in_64_bit() || rpl(selector) > cpu.cpl {
        Some((cpu.peek(4 * item, size)? as u16, cpu.peek(3 * item, size)?))
    } else {
        None
    };
    if outer.is_none() {
        cpu.drop_from_stack(3 * item);
    }
    cpu.return_to(selector, offset, outer)?;
    load_flags(cpu, flags, size, old_ring);
    Ok(())
}

/// As POPF with the rights of the ring that returns, and RF too; ring 0 of protected mode returns with VIF and VIP. Intel SDM
/// Vol. 2A, "IRET/IRETD/IRETQ—Interrupt Return".
fn load_flags(cpu: &mut Cpu, flags: u64, size: u8, ring: u8) {
    let new_ring = std::mem::replace(&mut cpu.cpl, ring);
    cpu.load_flags(flags, size);
    cpu.cpl = new_ring;
    cpu.set_flags(flags, rflags::RF & mask(size));
    if ring == 0 && cpu.protected() {
        cpu.set_flags(flags, (rflags::VIF | rflags::VIP) & mask(size));
    }
}
