//! Model-specific and debug registers: what they hold at the start of every sequence.

use iced_x86::{Instruction, Mnemonic};

use crate::image::{HLT, KERNEL_STACK, LANDING};
use crate::setting::Setting;

/// Number and value. SYSCALL and SYSENTER lead among `hlt`s, and find their segments in the GDT.
#[rustfmt::skip] // a table
const VALUES: [(u32, u64); 8] = [
    (0xc000_0081, 0x0043_0028 << 32),     // STAR: SYSRET's and SYSCALL's selectors
    (0xc000_0082, LANDING + 0x100),       // LSTAR
    (0xc000_0083, LANDING + 0x200),       // CSTAR
    (0xc000_0084, 0x4700),                // SFMASK: TF, IF, DF and NT
    (0xc000_0102, 0x6000),                // KERNEL_GS_BASE
    (0x174,       0x28),                  // SYSENTER_CS
    (0x175,       KERNEL_STACK + 0x600),  // SYSENTER_ESP
    (0x176,       LANDING + 0x300),       // SYSENTER_EIP
];

/// FXRSTOR brings x87 registers that the software machine lacks: nothing goes on from there.
pub fn ends_sequence(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Fxrstor | Mnemonic::Fxrstor64)
}

/// Whether an instruction changes what [`program`] sets.
pub fn changes(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Wrmsr | Mnemonic::Swapgs | Mnemonic::Int1)
        || ends_sequence(instruction)
        || instruction.op0_register().is_dr()
}

/// A program for ring 0 that sets them, and the debug registers, and halts.
pub fn program(setting: &Setting) -> Vec<u8> {
    const MOV_EAX: u8 = 0xb8;
    const MOV_ECX: u8 = 0xb9;
    const MOV_EDX: u8 = 0xba;
    const OPERAND_SIZE: u8 = 0x66;
    const WRMSR: [u8; 2] = [0x0f, 0x30];
    let mut code = Vec::new();
    for (number, value) in VALUES {
        for (opcode, value) in [(MOV_ECX, number), (MOV_EAX, value as u32), (MOV_EDX, (value >> 32) as u32)] {
            if setting.bits == 16 {
                code.push(OPERAND_SIZE);
            }
            code.push(opcode);
            code.extend(value.to_le_bytes());
        }
        code.extend(WRMSR);
    }
    for (number, value) in [(0, 0u32), (1, 0), (2, 0), (3, 0), (6, 0xffff_0ff0), (7, 0x400)] {
        if setting.bits == 16 {
            code.push(OPERAND_SIZE);
        }
        code.push(MOV_EAX);
        code.extend(value.to_le_bytes());
        code.extend([0x0f, 0x23, 0xc0 | number << 3]); // mov dr, rax
    }
    code.push(HLT);
    code
}
