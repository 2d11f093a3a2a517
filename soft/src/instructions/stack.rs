//! The stack: PUSH, POP and their families, ENTER and LEAVE. Intel SDM Vol. 2, each by its name.

use iced_x86::Mnemonic;

use crate::cpu::{CodeSize, Cpu, gpr, seg};
use crate::flags::mask;
use crate::op::{Handler, Op, Place};
use crate::registers::rflags;
use crate::stop::{Done, Fault, Stop};

pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Push => push,
        Mnemonic::Pop => pop,
        Mnemonic::Pusha | Mnemonic::Pushad => push_all,
        Mnemonic::Popa | Mnemonic::Popad => pop_all,
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => push_flags,
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => pop_flags,
        Mnemonic::Enter => enter,
        Mnemonic::Leave => leave,
        _ => return None,
    })
}

impl Cpu {
    /// Pushes the lowest `size` bytes of a value.
    #[inline(always)]
    pub fn push(&mut self, size: u8, value: u64) -> Done {
        let pointer = self.stack_pointer().wrapping_sub(u64::from(size)) & self.stack_mask();
        self.write_at(seg::SS, pointer, size, value)?;
        self.set_stack_pointer(pointer);
        Ok(())
    }

    /// The value `above` bytes above the top of the stack.
    #[inline(always)]
    pub fn peek(&mut self, above: u64, size: u8) -> Result<u64, Stop> {
        let pointer = self.stack_pointer().wrapping_add(above) & self.stack_mask();
        self.read_at(seg::SS, pointer, size)
    }

    /// Takes `bytes` off the stack.
    #[inline(always)]
    pub fn drop_from_stack(&mut self, bytes: u64) {
        self.set_stack_pointer(self.stack_pointer().wrapping_add(bytes));
    }
}

/// What one push or pop moves.
fn item_size(op: &Op) -> u8 {
    op.instruction.stack_pointer_increment().unsigned_abs() as u8
}

fn push(cpu: &mut Cpu, op: &Op) -> Done {
    let size = item_size(op);
    let value = match op.first().place {
        Place::Immediate => op.immediate,
        _ => cpu.get(op, op.first())?,
    };
    if op.first().place == Place::Segment && size != 2 {
        // Intel's CPUs write the selector's two bytes and leave the rest of the item; AMD's write zeros.
        return cpu.push(size, value);
    }
    cpu.push(size, value)
}

fn pop(cpu: &mut Cpu, op: &Op) -> Done {
    let size = item_size(op);
    let value = cpu.peek(0, size)?;
    let old = cpu.gpr[gpr::RSP];
    // A destination in memory is addressed with RSP as it is after the pop.
    cpu.drop_from_stack(u64::from(size));
    let done = match op.first().place {
        Place::Segment => cpu.load_segment_register(usize::from(op.first().number), value as u16),
        _ => cpu.set(op, op.first(), value),
    };
    if done.is_err() {
        cpu.gpr[gpr::RSP] = old;
    }
    done
}

/// AX, CX, DX, BX, SP as it was, BP, SI, DI.
fn push_all(cpu: &mut Cpu, op: &Op) -> Done {
    let size = item_size(op) / 8;
    let mask = cpu.stack_mask();
    let top = cpu.stack_pointer();
    for number in 0..8 {
        let pointer = top.wrapping_sub(u64::from(size) * (number + 1)) & mask;
        let linear = cpu.linear(seg::SS, pointer, u64::from(size), crate::paging::Intent::Write)?;
        cpu.probe_write(linear, usize::from(size), cpu.user())?;
    }
    let values: [u64; 8] = std::array::from_fn(|number| cpu.gpr[number]);
    for value in values {
        cpu.push(size, value)?;
    }
    Ok(())
}

/// The other way round; the popped SP is thrown away.
fn pop_all(cpu: &mut Cpu, op: &Op) -> Done {
    let size = item_size(op) / 8;
    let mut values = [0; 8];
    for (number, value) in values.iter_mut().enumerate() {
        *value = cpu.peek(u64::from(size) * number as u64, size)?;
    }
    for (number, value) in values.into_iter().rev().enumerate() {
        if number != gpr::RSP {
            cpu.set_register(number, size, value);
        }
    }
    cpu.drop_from_stack(u64::from(size) * 8);
    Ok(())
}

/// VM and RF are pushed as 0.
fn push_flags(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.push(item_size(op), cpu.rflags & !(rflags::VM | rflags::RF))
}

fn pop_flags(cpu: &mut Cpu, op: &Op) -> Done {
    let size = item_size(op);
    let value = cpu.peek(0, size)?;
    cpu.drop_from_stack(u64::from(size));
    cpu.load_flags(value, size);
    Ok(())
}

impl Cpu {
    /// What POPF and IRET may change: IOPL in ring 0 only, IF where IOPL allows it, never VM, VIF and
    /// VIP; RF becomes 0. Intel SDM Vol. 2B, "POPF/POPFD/POPFQ".
    pub fn load_flags(&mut self, value: u64, size: u8) {
        let mut changed = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;
        changed |= rflags::AC | rflags::ID;
        if self.cpl == 0 {
            changed |= rflags::IOPL;
        }
        if self.cpl <= self.iopl() {
            changed |= rflags::IF;
        }
        self.set_flags(value, changed & mask(size));
        self.rflags &= !rflags::RF;
        self.leave_block = true;
    }
}

/// A frame of `bytes`, with the frame pointers of `level` enclosing ones.
fn enter(cpu: &mut Cpu, op: &Op) -> Done {
    let size = match (cpu.code_size, op.instruction.code()) {
        (_, iced_x86::Code::Enterw_imm16_imm8) => 2,
        (CodeSize::Bits64, _) => 8,
        _ => 4,
    };
    let (bytes, level) = (u64::from(op.instruction.immediate16()), op.instruction.immediate8_2nd() & 0x1f);
    let old = cpu.gpr[gpr::RSP];
    let done = build_frame(cpu, size, bytes, level);
    if done.is_err() {
        cpu.gpr[gpr::RSP] = old;
    }
    done
}

fn build_frame(cpu: &mut Cpu, size: u8, bytes: u64, level: u8) -> Done {
    let mask = cpu.stack_mask();
    cpu.push(size, cpu.gpr[gpr::RBP])?;
    let frame = cpu.stack_pointer();
    for above in 1..level {
        let pointer = cpu.gpr[gpr::RBP].wrapping_sub(u64::from(size) * u64::from(above)) & mask;
        let value = cpu.read_at(seg::SS, pointer, size)?;
        cpu.push(size, value)?;
    }
    if level > 0 {
        cpu.push(size, frame)?;
    }
    let pointer = cpu.stack_pointer().wrapping_sub(bytes) & mask;
    // The new top must be writable, although nothing is written there yet.
    let linear = cpu.linear(seg::SS, pointer, u64::from(size), crate::paging::Intent::Write)?;
    cpu.probe_write(linear, usize::from(size), cpu.user())?;
    cpu.set_stack_pointer(pointer);
    cpu.set_register(gpr::RBP, size, frame);
    Ok(())
}

fn leave(cpu: &mut Cpu, op: &Op) -> Done {
    let size = match op.instruction.code() {
        iced_x86::Code::Leavew => 2,
        iced_x86::Code::Leaved => 4,
        iced_x86::Code::Leaveq => 8,
        _ => return Err(Fault::INVALID_OPCODE.into()),
    };
    let pointer = cpu.gpr[gpr::RBP] & cpu.stack_mask();
    let frame = cpu.read_at(seg::SS, pointer, size)?;
    cpu.set_stack_pointer(pointer.wrapping_add(u64::from(size)));
    cpu.set_register(gpr::RBP, size, frame);
    Ok(())
}
