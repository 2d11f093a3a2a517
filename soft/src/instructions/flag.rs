//! Instructions about single flags. Intel SDM Vol. 2, each by its name.

use iced_x86::Mnemonic;

use crate::cpu::{Cpu, Shadow, gpr};
use crate::op::{Handler, Op};
use crate::registers::rflags::{AC, AF, CF, DF, FIXED, IF, PF, SF, ZF};
use crate::stop::{Done, Fault};

pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Clc => |cpu, _| set(cpu, CF, false),
        Mnemonic::Stc => |cpu, _| set(cpu, CF, true),
        Mnemonic::Cmc => |cpu, _| set(cpu, CF, !cpu.flag(CF)),
        Mnemonic::Cld => |cpu, _| set(cpu, DF, false),
        Mnemonic::Std => |cpu, _| set(cpu, DF, true),
        Mnemonic::Cli => clear_interrupts,
        Mnemonic::Sti => set_interrupts,
        Mnemonic::Lahf => load_ah,
        Mnemonic::Sahf => store_ah,
        Mnemonic::Salc => |cpu, _| {
            let value = if cpu.flag(CF) { 0xff } else { 0 };
            cpu.set_register(gpr::RAX, 1, value);
            Ok(())
        },
        Mnemonic::Clac => |cpu, _| supervisor_access(cpu, false),
        Mnemonic::Stac => |cpu, _| supervisor_access(cpu, true),
        _ => return None,
    })
}

fn set(cpu: &mut Cpu, flag: u64, on: bool) -> Done {
    cpu.set_flag(flag, on);
    Ok(())
}

fn may_change_interrupts(cpu: &Cpu) -> Done {
    if cpu.protected() && cpu.cpl > cpu.iopl() {
        return Err(Fault::general_protection(0).into());
    }
    Ok(())
}

fn clear_interrupts(cpu: &mut Cpu, _: &Op) -> Done {
    may_change_interrupts(cpu)?;
    set(cpu, IF, false)
}

/// Interrupts come after the next instruction only, so that `sti; hlt` misses none.
fn set_interrupts(cpu: &mut Cpu, _: &Op) -> Done {
    may_change_interrupts(cpu)?;
    if !cpu.flag(IF) {
        cpu.shadow = Shadow::Sti;
    }
    cpu.leave_block = true;
    set(cpu, IF, true)
}

/// The five flags that the 8080 had.
const OF_THE_8080: u64 = CF | PF | AF | ZF | SF;

fn load_ah(cpu: &mut Cpu, _: &Op) -> Done {
    let ah = cpu.rflags & OF_THE_8080 | FIXED;
    cpu.gpr[gpr::RAX] = cpu.gpr[gpr::RAX] & !0xff00 | ah << 8;
    Ok(())
}

fn store_ah(cpu: &mut Cpu, _: &Op) -> Done {
    cpu.set_flags(cpu.gpr[gpr::RAX] >> 8, OF_THE_8080);
    Ok(())
}

fn supervisor_access(cpu: &mut Cpu, allowed: bool) -> Done {
    if cpu.cpl != 0 || !cpu.has_cpuid_smap() {
        return Err(Fault::INVALID_OPCODE.into());
    }
    set(cpu, AC, allowed)
}
