//! SSE's registers, made visible: KVM_RUN does not share them, so they come from
//! memory before a sequence, and a step that changes one stores it.

use iced_x86::{Instruction, Mnemonic};

use crate::image::{CODE, HLT, SCRATCH};
use crate::setting::Setting;
use crate::step::Step;

/// Where the registers come from, 16 bytes each, and MXCSR after them.
const LOADED_FROM: u64 = SCRATCH + 0x200;
pub const CONTROL_FROM: u64 = LOADED_FROM + 0x100;
/// Where a step stores what it changed: memory that is compared after every step.
const STORED_AT: u64 = SCRATCH + 0x10c0 - 0x20;
pub const CONTROL_STORED_AT: u64 = STORED_AT + 0x10;

/// Whether a sequence must start with known registers.
pub fn uses(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|number| instruction.op_register(number).is_xmm())
        || matches!(instruction.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr)
}

/// Code at [`CODE`] that loads all of SSE's registers and halts.
pub fn prelude(setting: &Setting) -> Vec<u8> {
    let count = if setting.is_64_bit() { 16 } else { 8 };
    let mut code = Vec::new();
    for number in 0..count {
        access(&mut code, setting, 0x10, number, LOADED_FROM + u64::from(number) * 16);
    }
    access(&mut code, setting, 0xae, 2, CONTROL_FROM);
    code.push(HLT);
    assert!(code.len() as u64 <= super::FIRST_SLOT * crate::image::SLOT, "it fits before {CODE:#x}'s steps");
    code
}

/// Lets a step store the register that it changes, and MXCSR with it.
pub fn show(step: &mut Step, setting: &Setting) {
    let register = step.instruction.op0_register();
    if register.is_xmm() {
        access(&mut step.code, setting, 0x11, register.number() as u8, STORED_AT);
    }
    if uses(&step.instruction) && step.instruction.mnemonic() != Mnemonic::Ldmxcsr {
        access(&mut step.code, setting, 0xae, 3, CONTROL_STORED_AT);
    }
}

/// An instruction of the 0f map with a register, or an opcode's extension, and an absolute address.
fn access(code: &mut Vec<u8>, setting: &Setting, opcode: u8, number: u8, address: u64) {
    let reg = (number & 7) << 3;
    if number >= 8 {
        code.push(0x44); // REX.R
    }
    code.extend([0x0f, opcode]);
    match setting.bits {
        64 => code.extend([0x04 | reg, 0x25]),
        32 => code.push(0x05 | reg),
        _ => code.push(0x06 | reg),
    }
    let size = if setting.bits == 16 { 2 } else { 4 };
    code.extend_from_slice(&address.to_le_bytes()[..size]);
}
