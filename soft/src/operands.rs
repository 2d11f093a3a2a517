//! Reading and writing an instruction's operands.

use crate::cpu::{Cpu, gpr};
use crate::flags::mask;
use crate::op::{Op, Operand, Place};
use crate::paging::Intent;
use crate::stop::{Done, Fault, Missing, Stop};

impl Cpu {
    /// The offset of the memory operand in its segment: LEA's answer.
    #[inline(always)]
    pub fn offset(&self, op: &Op) -> u64 {
        let address = &op.address;
        let base = if address.from_rip { self.rip } else { self.gpr[usize::from(address.base)] };
        let index = self.gpr[usize::from(address.index)] << address.scale;
        base.wrapping_add(index).wrapping_add(address.displacement) & address.mask
    }

    /// The linear address of the memory operand, if its segment allows the access.
    #[inline(always)]
    pub fn operand_address(&self, op: &Op, size: u64, intent: Intent) -> Result<u64, Stop> {
        self.linear(usize::from(op.address.segment), self.offset(op), size, intent)
    }

    /// Reads an operand.
    #[inline(always)]
    pub fn get(&mut self, op: &Op, operand: Operand) -> Result<u64, Stop> {
        match operand.place {
            Place::Register => Ok(self.gpr[usize::from(operand.number)] & mask(operand.size)),
            Place::Immediate => Ok(op.immediate & mask(operand.size)),
            Place::Memory => self.read_at(usize::from(op.address.segment), self.offset(op), operand.size),
            Place::HighByte => Ok(self.gpr[usize::from(operand.number)] >> 8 & 0xff),
            Place::Segment => Ok(u64::from(self.segments[usize::from(operand.number)].selector)),
            _ => Err(Stop::Missing(Missing::Instruction)),
        }
    }

    /// Reads an operand that will be written next: a page that may not be written faults now, as a
    /// write, before anything has changed.
    #[inline(always)]
    pub fn get_to_change(&mut self, op: &Op, operand: Operand) -> Result<u64, Stop> {
        if operand.place == Place::Memory {
            let size = u64::from(operand.size);
            let linear = self.operand_address(op, size, Intent::Write)?;
            self.check_alignment(linear, size)?;
            self.probe_write(linear, usize::from(operand.size), self.user())?;
            return self.read(linear, usize::from(operand.size), self.user());
        }
        self.get(op, operand)
    }

    /// Writes an operand.
    #[inline(always)]
    pub fn set(&mut self, op: &Op, operand: Operand, value: u64) -> Done {
        match operand.place {
            Place::Register => {
                self.set_register(usize::from(operand.number), operand.size, value);
                Ok(())
            }
            Place::Memory => {
                self.write_at(usize::from(op.address.segment), self.offset(op), operand.size, value)
            }
            Place::HighByte => {
                let register = &mut self.gpr[usize::from(operand.number)];
                *register = *register & !0xff00 | (value & 0xff) << 8;
                Ok(())
            }
            _ => Err(Stop::Missing(Missing::Instruction)),
        }
    }

    /// Writes a general-purpose register: 8 and 16 bits leave the rest, 32 bits clear the upper half.
    /// Intel SDM Vol. 1, "General-Purpose Registers in 64-Bit Mode".
    #[inline(always)]
    pub fn set_register(&mut self, number: usize, size: u8, value: u64) {
        let register = &mut self.gpr[number];
        *register = match size {
            8 => value,
            4 => value & 0xffff_ffff,
            2 => *register & !0xffff | value & 0xffff,
            _ => *register & !0xff | value & 0xff,
        };
    }

    /// The lowest `size` bytes of a general-purpose register.
    #[inline(always)]
    pub fn register(&self, number: usize, size: u8) -> u64 {
        self.gpr[number] & mask(size)
    }

    /// The register with the number 0: AL, AX, EAX or RAX.
    #[inline(always)]
    pub fn accumulator(&self, size: u8) -> u64 {
        self.register(gpr::RAX, size)
    }

    /// #GP(0) in every ring but 0.
    pub fn need_ring_0(&self) -> Done {
        if self.cpl == 0 { Ok(()) } else { Err(Fault::general_protection(0).into()) }
    }

    /// #UD in real mode.
    pub fn need_protected(&self) -> Done {
        if self.protected() { Ok(()) } else { Err(Fault::INVALID_OPCODE.into()) }
    }
}
