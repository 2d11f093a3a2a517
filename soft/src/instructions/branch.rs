//! Near jumps, calls and returns, loops, and conditions. Intel SDM Vol. 2, each by its name.

use iced_x86::{Code, Mnemonic};

use crate::cpu::{Cpu, gpr};
use crate::op::{Handler, Op, Place};
use crate::registers::rflags::{CF, OF, PF, SF, ZF};
use crate::segment::is_canonical;
use crate::stop::{Done, Fault};

pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Jmp => jump,
        Mnemonic::Call => call,
        Mnemonic::Ret => ret,
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => repeat,
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => jump_if_count_is_zero,
        Mnemonic::Ja
        | Mnemonic::Jae
        | Mnemonic::Jb
        | Mnemonic::Jbe
        | Mnemonic::Je
        | Mnemonic::Jg
        | Mnemonic::Jge
        | Mnemonic::Jl
        | Mnemonic::Jle
        | Mnemonic::Jne
        | Mnemonic::Jno
        | Mnemonic::Jnp
        | Mnemonic::Jns
        | Mnemonic::Jo
        | Mnemonic::Jp
        | Mnemonic::Js => jump_if,
        Mnemonic::Seta
        | Mnemonic::Setae
        | Mnemonic::Setb
        | Mnemonic::Setbe
        | Mnemonic::Sete
        | Mnemonic::Setg
        | Mnemonic::Setge
        | Mnemonic::Setl
        | Mnemonic::Setle
        | Mnemonic::Setne
        | Mnemonic::Setno
        | Mnemonic::Setnp
        | Mnemonic::Setns
        | Mnemonic::Seto
        | Mnemonic::Setp
        | Mnemonic::Sets => set_if,
        _ => return None,
    })
}

impl Cpu {
    /// Whether a condition holds. Intel SDM Vol. 2D, "Encoding of Conditional Test (tttn) Field": the
    /// lowest bit turns it round.
    #[inline(always)]
    pub fn condition(&self, code: u8) -> bool {
        let less = self.flag(SF) != self.flag(OF);
        let holds = match code >> 1 {
            0 => self.flag(OF),
            1 => self.flag(CF),
            2 => self.flag(ZF),
            3 => self.flag(CF | ZF),
            4 => self.flag(SF),
            5 => self.flag(PF),
            6 => less,
            _ => less || self.flag(ZF),
        };
        holds != (code & 1 != 0)
    }

    /// Goes to an offset in CS, of which `size` bytes count.
    ///
    /// # Errors
    /// #GP(0) when it is outside the segment, or not canonical.
    #[inline(always)]
    pub fn jump_to(&mut self, target: u64, size: u8) -> Done {
        let target = target & crate::flags::mask(size);
        let inside = if self.in_64_bit() {
            is_canonical(target)
        } else {
            target <= u64::from(self.segments[crate::cpu::seg::CS].limit)
        };
        if !inside {
            return Err(Fault::general_protection(0).into());
        }
        self.next = target;
        Ok(())
    }
}

/// Where a near branch goes.
#[inline(always)]
fn target(cpu: &mut Cpu, op: &Op) -> Result<u64, crate::stop::Stop> {
    match op.first().place {
        Place::Immediate => Ok(cpu.next.wrapping_add(op.immediate)),
        _ => cpu.get(op, op.first()),
    }
}

fn jump(cpu: &mut Cpu, op: &Op) -> Done {
    if far(op) {
        return super::far::jump(cpu, op);
    }
    let target = target(cpu, op)?;
    cpu.jump_to(target, op.size())
}

fn jump_if(cpu: &mut Cpu, op: &Op) -> Done {
    if !cpu.condition(op.condition) {
        return Ok(());
    }
    cpu.jump_to(cpu.next.wrapping_add(op.immediate), op.size())
}

fn set_if(cpu: &mut Cpu, op: &Op) -> Done {
    let value = u64::from(cpu.condition(op.condition));
    cpu.set(op, op.first(), value)
}

fn call(cpu: &mut Cpu, op: &Op) -> Done {
    if far(op) {
        return super::far::call(cpu, op);
    }
    let (target, return_to) = (target(cpu, op)?, cpu.next);
    cpu.jump_to(target, op.size())?;
    cpu.push(op.size(), return_to)
}

fn ret(cpu: &mut Cpu, op: &Op) -> Done {
    let size = match op.instruction.code() {
        Code::Retnw | Code::Retnw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 => 4,
        _ => 8,
    };
    let pointer = cpu.stack_pointer();
    let target = cpu.read_at(crate::cpu::seg::SS, pointer, size)?;
    cpu.jump_to(target, size)?;
    // RET imm16 takes the arguments off the stack too.
    cpu.set_stack_pointer(pointer.wrapping_add(u64::from(size)).wrapping_add(op.immediate));
    Ok(())
}

fn far(op: &Op) -> bool {
    let instruction = &op.instruction;
    instruction.is_jmp_far()
        || instruction.is_jmp_far_indirect()
        || instruction.is_call_far()
        || instruction.is_call_far_indirect()
}

/// LOOP, LOOPE and LOOPNE: the count's size is the address size.
fn repeat(cpu: &mut Cpu, op: &Op) -> Done {
    let size = count_size(op);
    let count = cpu.register(gpr::RCX, size).wrapping_sub(1) & crate::flags::mask(size);
    let again = count != 0
        && match op.instruction.mnemonic() {
            Mnemonic::Loope => cpu.flag(ZF),
            Mnemonic::Loopne => !cpu.flag(ZF),
            _ => true,
        };
    if again {
        cpu.jump_to(cpu.next.wrapping_add(op.immediate), op.size())?;
    }
    cpu.set_register(gpr::RCX, size, count);
    Ok(())
}

fn jump_if_count_is_zero(cpu: &mut Cpu, op: &Op) -> Done {
    if cpu.register(gpr::RCX, count_size(op)) != 0 {
        return Ok(());
    }
    cpu.jump_to(cpu.next.wrapping_add(op.immediate), op.size())
}

/// Bytes of CX, ECX or RCX, which the name ends in: `Loop_rel8_32_CX`, `Jecxz_rel8_64`.
fn count_size(op: &Op) -> u8 {
    match op.instruction.code() {
        Code::Jcxz_rel8_16 | Code::Jcxz_rel8_32 => 2,
        Code::Jecxz_rel8_16 | Code::Jecxz_rel8_32 | Code::Jecxz_rel8_64 => 4,
        Code::Jrcxz_rel8_16 | Code::Jrcxz_rel8_64 => 8,
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX => 2,
        Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX => 8,
        _ => 4,
    }
}
