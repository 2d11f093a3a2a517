//! As much of x87 as sets itself up: its control word, and registers that stay empty. What would fill one
//! is not there. Intel SDM Vol. 2, each by its name.

use iced_x86::{CpuidFeature, Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::op::{Handler, Op};
use crate::registers::cr0;
use crate::stop::{Done, Fault, Missing, Stop};

/// The control word after FNINIT: every exception masked.
const INITIAL: u16 = 0x37f;
/// Bit 6 is always 1, and the highest three are 0.
const FIXED: u16 = 0x40;
const EXISTING: u16 = 0x1fff;

pub fn handler(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Fninit => |cpu, _| {
            need_x87(cpu)?;
            cpu.fcw = INITIAL;
            Ok(())
        },
        Mnemonic::Fnclex => |cpu, _| need_x87(cpu),
        Mnemonic::Fnstcw => |cpu, op| {
            need_x87(cpu)?;
            cpu.set(op, op.first(), cpu.fcw.into())
        },
        Mnemonic::Fldcw => |cpu, op| {
            need_x87(cpu)?;
            cpu.fcw = cpu.get(op, op.first())? as u16 & EXISTING | FIXED;
            Ok(())
        },
        // Nothing has happened, and nothing is on top.
        Mnemonic::Fnstsw => |cpu, op| {
            need_x87(cpu)?;
            cpu.set(op, op.first(), 0)
        },
        Mnemonic::Wait => wait,
        _ if instruction.cpuid_features().contains(&CpuidFeature::FPU) => |cpu, _| {
            need_x87(cpu)?;
            Err(Stop::Missing(Missing::Instruction))
        },
        _ => return None,
    })
}

/// #NM where CR0 says that there is no x87, or that another task used it last.
fn need_x87(cpu: &Cpu) -> Done {
    if cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(Fault::DEVICE_NOT_AVAILABLE.into());
    }
    Ok(())
}

/// There is no exception to wait for.
fn wait(cpu: &mut Cpu, _: &Op) -> Done {
    if cpu.cr0 & cr0::MP != 0 && cpu.cr0 & cr0::TS != 0 {
        return Err(Fault::DEVICE_NOT_AVAILABLE.into());
    }
    Ok(())
}
