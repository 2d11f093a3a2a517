//! MXCSR, FXSAVE and FXRSTOR. Intel SDM Vol. 2A, "FXSAVE—Save x87 FPU, MMX Technology, and SSE State".

use crate::cpu::{CodeSize, Cpu};
use crate::memory::OFFSET;
use crate::op::Op;
use crate::paging::Intent;
use crate::stop::{Done, Fault, Missing, Stop};

/// The bits of MXCSR that exist.
const MXCSR: u64 = 0xffff;
/// Where FXSAVE's image has them.
const CONTROL_WORD: u64 = 0;
const MXCSR_AT: u64 = 24;
const MXCSR_MASK_AT: u64 = 28;
const XMM0_AT: u64 = 160;
const IMAGE: u64 = 512;
/// x87's status, and which of its registers are in use.
const X87_STATUS_AND_TAGS: u64 = 2;

pub fn load_control(cpu: &mut Cpu, op: &Op) -> Done {
    super::need_sse(cpu)?;
    let value = cpu.get(op, op.first())?;
    if value & !MXCSR != 0 {
        return Err(Fault::general_protection(0).into());
    }
    cpu.mxcsr = value as u32;
    Ok(())
}

pub fn store_control(cpu: &mut Cpu, op: &Op) -> Done {
    super::need_sse(cpu)?;
    cpu.set(op, op.first(), u64::from(cpu.mxcsr))
}

/// The image must be aligned to 16 bytes.
fn image(cpu: &Cpu, op: &Op, intent: Intent) -> Result<u64, Stop> {
    use crate::registers::cr0;
    if cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(Fault::DEVICE_NOT_AVAILABLE.into());
    }
    let linear = cpu.operand_address(op, IMAGE, intent)?;
    if linear & 0xf != 0 {
        return Err(Fault::general_protection(0).into());
    }
    Ok(linear)
}

/// Registers that the code's size can name.
fn registers(cpu: &Cpu) -> usize {
    if cpu.code_size == CodeSize::Bits64 { 16 } else { 8 }
}

pub fn save(cpu: &mut Cpu, op: &Op) -> Done {
    let (linear, user) = (image(cpu, op, Intent::Write)?, cpu.user());
    cpu.probe_write(linear, 8, user)?;
    let last_page = (linear + IMAGE - 1) & !OFFSET;
    if last_page > linear {
        // A page fault names the first byte of the page that is missing.
        cpu.probe_write(last_page, 1, user)?;
    }
    // What is not written here is zero: empty x87 registers.
    for offset in (0..XMM0_AT).step_by(8) {
        cpu.write(linear + offset, 8, 0, user)?;
    }
    cpu.write(linear + CONTROL_WORD, 2, cpu.fcw.into(), user)?;
    cpu.write(linear + MXCSR_AT, 4, u64::from(cpu.mxcsr), user)?;
    cpu.write(linear + MXCSR_MASK_AT, 4, MXCSR, user)?;
    for number in 0..registers(cpu) {
        cpu.write_128(linear + XMM0_AT + 16 * number as u64, cpu.xmm[number], user)?;
    }
    Ok(())
}

pub fn restore(cpu: &mut Cpu, op: &Op) -> Done {
    let (linear, user) = (image(cpu, op, Intent::Read)?, cpu.user());
    // From its start on, so that this is where a page fault says that it was.
    cpu.read(linear, 1, user)?;
    let control = cpu.read(linear + MXCSR_AT, 4, user)?;
    if control & !MXCSR != 0 {
        return Err(Fault::general_protection(0).into());
    }
    let x87 = cpu.read(linear + CONTROL_WORD, 2, user)? as u16;
    if cpu.read(linear + X87_STATUS_AND_TAGS, 4, user)? & 0x00ff_ffff != 0 {
        // Registers that are in use, which this CPU has not.
        return Err(Stop::Missing(Missing::Instruction));
    }
    let mut values = cpu.xmm;
    for (number, value) in values.iter_mut().enumerate().take(registers(cpu)) {
        *value = cpu.read_128(linear + XMM0_AT + 16 * number as u64, user)?;
    }
    (cpu.xmm, cpu.mxcsr, cpu.fcw) = (values, control as u32, x87);
    Ok(())
}
