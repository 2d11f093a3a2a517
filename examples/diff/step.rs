//! A sequence: instructions that run one after another, each from what the last
//! one left, and what is changed in between.

use iced_x86::{Instruction, OpKind, Register};
use vmexit::kvm::{kvm_regs, kvm_sregs};

use crate::setting::Setting;

/// One instruction, and what is put in its way.
#[derive(Clone, Debug)]
pub struct Step {
    pub instruction: Instruction,
    pub code: Vec<u8>,
    /// Registers by number that get a value first, RSP among them.
    pub registers: Vec<(u8, u64)>,
    pub rflags: u64,
    /// Bytes that are written first where its memory operand is.
    pub operand: Option<Vec<u8>>,
    /// Bytes that are written first where the stack's top is.
    pub stack: Option<Vec<u8>>,
    /// Whether segment registers stay as the last step left them.
    pub keeps_segments: bool,
}

/// What runs in one setting, from one memory.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub setting: Setting,
    /// The first step's, but for what it changes itself.
    pub regs: kvm_regs,
    /// The two scratch pages and, before them, the stack's.
    pub scratch: Vec<u8>,
    pub steps: Vec<Step>,
}

/// A general-purpose register by its number, as instructions encode it.
pub fn register(regs: &mut kvm_regs, number: u8) -> &mut u64 {
    match number {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        4 => &mut regs.rsp,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        _ => &mut regs.r15,
    }
}

/// The linear address of the memory operand.
pub fn operand_address(instruction: &Instruction, regs: &kvm_regs, sregs: &kvm_sregs) -> Option<u64> {
    let operand =
        (0..instruction.op_count()).find(|number| instruction.op_kind(*number) == OpKind::Memory)?;
    let mut regs = *regs;
    instruction.virtual_address(operand, 0, |name, _, _| {
        Some(match name {
            Register::FS => sregs.fs.base,
            Register::GS => sregs.gs.base,
            Register::ES => sregs.es.base,
            Register::DS => sregs.ds.base,
            Register::SS => sregs.ss.base,
            Register::CS => sregs.cs.base,
            name => {
                let whole = *register(&mut regs, name.full_register().number() as u8);
                match name.size() {
                    2 => whole & 0xffff,
                    4 => whole & 0xffff_ffff,
                    _ => whole,
                }
            }
        })
    })
}
