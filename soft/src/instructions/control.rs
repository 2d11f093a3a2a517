//! Control and debug registers, and what turns modes on. Intel SDM Vol. 2B, "MOV—Move to/from Control
//! Registers", "MOV—Move to/from Debug Registers", and each other by its name.

use iced_x86::Mnemonic;

use crate::cpu::{Cpu, Pending, seg};
use crate::debug::bits;
use crate::exit::Exit;
use crate::op::{Handler, Op, Place};
use crate::registers::{cr0, cr0_is_valid, cr4, efer};
use crate::stop::{Done, Fault, Stop, vector};

pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Lmsw => load_machine_status,
        Mnemonic::Smsw => store_machine_status,
        Mnemonic::Clts => clear_task_switched,
        Mnemonic::Invlpg => invalidate_page,
        _ => return None,
    })
}

/// MOV with a control or debug register on one side; `super::moves` sends it here.
pub fn mov(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.need_ring_0()?;
    let (to, from) = (op.first(), op.second());
    match (to.place, from.place) {
        (Place::Control, _) => {
            let value = cpu.get(op, from)?;
            cpu.write_control(to.number, value)
        }
        (_, Place::Control) => {
            let value = read_control(cpu, from.number)?;
            cpu.set(op, to, value)
        }
        (Place::Debug, _) => {
            let value = cpu.get(op, from)?;
            write_debug(cpu, to.number, value)
        }
        _ => {
            let number = debug_number(cpu, from.number)?;
            let value = cpu.dr[number];
            cpu.set(op, to, value)
        }
    }
}

fn read_control(cpu: &Cpu, number: u8) -> Result<u64, Stop> {
    Ok(match number {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.cr8,
        _ => return Err(Fault::INVALID_OPCODE.into()),
    })
}

const REFUSED: Stop = Stop::Fault(Fault::general_protection(0));

impl Cpu {
    /// Forgets what the page tables said, and which code is where.
    pub fn flush_translations(&mut self) {
        self.tlb.flush();
        self.leave_block = true;
    }

    fn write_control(&mut self, number: u8, value: u64) -> Done {
        match number {
            0 => self.write_cr0(value),
            2 => {
                self.cr2 = value;
                Ok(())
            }
            3 => self.write_cr3(value),
            4 => self.write_cr4(value),
            8 if value >> 4 == 0 => {
                self.cr8 = value;
                // An interrupt that it held back comes before the next instruction.
                self.leave_block = true;
                Ok(())
            }
            8 => Err(REFUSED),
            _ => Err(Fault::INVALID_OPCODE.into()),
        }
    }

    /// Turning paging on or off enters or leaves long mode where EFER.LME asks for it. Intel SDM Vol. 3A,
    /// "Initializing IA-32e Mode".
    fn write_cr0(&mut self, value: u64) -> Done {
        if !cr0_is_valid(value) {
            return Err(REFUSED);
        }
        // Bits that do not exist stay 0, and ET stays 1.
        let value = value & cr0::ALL | cr0::ET;
        let (old, paging) = (self.cr0, value & cr0::PG != 0);
        let turns_on = paging && old & cr0::PG == 0;
        if turns_on && self.efer & efer::LME != 0 {
            if !self.cr4_has(cr4::PAE) || self.segments[seg::CS].l != 0 {
                return Err(REFUSED);
            }
            self.efer |= efer::LMA;
        } else if paging && !self.long_mode() && self.cr4_has(cr4::PAE) && (turns_on || value ^ old != 0) {
            self.load_pdptes().map_err(|()| REFUSED)?;
        }
        if !paging && old & cr0::PG != 0 && self.long_mode() {
            if self.in_64_bit() {
                return Err(REFUSED);
            }
            self.efer &= !efer::LMA;
        }
        self.cr0 = value;
        if !self.protected() {
            self.cpl = 0;
        }
        self.flush_translations();
        self.update_mode();
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Done {
        let old = self.cr3;
        if self.long_mode() {
            if value >> self.physical_bits != 0 {
                return Err(REFUSED);
            }
            self.cr3 = value;
        } else {
            self.cr3 = value & 0xffff_ffff;
            if self.cr0 & cr0::PG != 0 && self.cr4_has(cr4::PAE) && self.load_pdptes().is_err() {
                self.cr3 = old;
                return Err(REFUSED);
            }
        }
        self.flush_translations();
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Done {
        if value & !cr4::ALL != 0 || self.long_mode() && value & cr4::PAE == 0 {
            return Err(REFUSED);
        }
        let old = std::mem::replace(&mut self.cr4, value);
        let pae_paging = self.cr0 & cr0::PG != 0 && value & cr4::PAE != 0 && !self.long_mode();
        let reloads = (value ^ old) & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0;
        if pae_paging && reloads && self.load_pdptes().is_err() {
            self.cr4 = old;
            return Err(REFUSED);
        }
        self.flush_translations();
        self.update_breakpoints();
        Ok(())
    }
}

/// DR4 and DR5 are DR6 and DR7, unless CR4.DE is set. While DR7.GD is set, touching any is a debug
/// exception, the hypervisor's where the bit is.
fn debug_number(cpu: &mut Cpu, number: u8) -> Result<usize, Stop> {
    let number = match number {
        4 | 5 if cpu.cr4_has(cr4::DE) => return Err(Fault::INVALID_OPCODE.into()),
        4 | 5 => usize::from(number) + 2,
        8.. => return Err(Fault::INVALID_OPCODE.into()),
        _ => usize::from(number),
    };
    let dr7 = cpu.debug.dr7;
    if dr7 & bits::GD == 0 {
        return Ok(number);
    }
    if cpu.debugger.is_some() {
        let (pc, dr6) = (cpu.linear_rip(), bits::DR6_FIXED | bits::BD);
        return cpu.leave(Exit::Debug { exception: vector::DEBUG, pc, dr6, dr7 }, Pending::Nothing);
    }
    cpu.note_debug_exception(bits::BD);
    Err(Fault { vector: vector::DEBUG, code: None }.into())
}

fn write_debug(cpu: &mut Cpu, number: u8, value: u64) -> Done {
    let number = debug_number(cpu, number)?;
    // Fixed bits. Intel SDM Vol. 3B, "Debug Registers".
    cpu.dr[number] = match number {
        6 | 7 if value >> 32 != 0 => return Err(REFUSED),
        6 => value & (bits::HITS | bits::BD | bits::BS | bits::BT) | bits::DR6_FIXED,
        7 => value & bits::DR7 | bits::DR7_FIXED,
        _ => value,
    };
    cpu.update_breakpoints();
    Ok(())
}

/// PE, MP, EM and TS; PE can be set and not cleared.
fn load_machine_status(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.need_ring_0()?;
    let value = cpu.get(op, op.first())? & 0xf;
    let kept = cpu.cr0 & !(cr0::MP | cr0::EM | cr0::TS);
    cpu.write_cr0(kept | value)
}

fn store_machine_status(cpu: &mut Cpu, op: &Op) -> Done {
    if cpu.cr4_has(cr4::UMIP) {
        cpu.need_ring_0()?;
    }
    cpu.set(op, op.first(), cpu.cr0)
}

fn clear_task_switched(cpu: &mut Cpu, _: &Op) -> Done {
    cpu.need_ring_0()?;
    cpu.cr0 &= !cr0::TS;
    Ok(())
}

fn invalidate_page(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.need_ring_0()?;
    let segment = usize::from(op.address.segment);
    let base = if cpu.in_64_bit() && segment < seg::FS { 0 } else { cpu.segments[segment].base };
    let linear = cpu.wrap_linear(base.wrapping_add(cpu.offset(op)));
    cpu.tlb.flush_page(linear);
    cpu.leave_block = true;
    Ok(())
}
