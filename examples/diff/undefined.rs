//! What the manual leaves to the CPU: flags and results that are not compared.
//!
//! iced-x86's table says which flags each instruction leaves undefined; it was
//! made from "Flags Affected" in Intel SDM Vol. 2. [`RULES`] has what depends on
//! the operands' values. Each row was checked against the page that it names.

use std::fmt;

use iced_x86::{Mnemonic, OpKind, Register, RflagsBits};
use vmexit::kvm::kvm_regs;

use crate::step::Step;

/// What is not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undefined {
    /// These bits of RFLAGS.
    Flags(u64),
    /// These bits of the first operand, a register.
    Bits(u64),
    /// The result, and every flag.
    Result,
}

impl fmt::Display for Undefined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flags(flags) => {
                let names = [("CF", CF), ("PF", PF), ("AF", AF), ("ZF", ZF), ("SF", SF), ("OF", OF)];
                let set: Vec<&str> =
                    names.iter().filter(|(_, flag)| flags & flag != 0).map(|(name, _)| *name).collect();
                f.write_str(&set.join(", "))
            }
            Self::Bits(bits) => write!(f, "bits {bits:#x} of the result"),
            Self::Result => f.write_str("the result and the flags"),
        }
    }
}

/// A row of the table.
pub struct Rule {
    pub mnemonics: &'static [Mnemonic],
    /// When, in words.
    pub when: &'static str,
    pub what: Undefined,
    /// Where the manual says so: Intel SDM.
    pub manual: &'static str,
    /// Whether it is the case for a step, from its registers before and its flags after.
    applies: fn(&Step, &kvm_regs, u64) -> bool,
}

pub const CF: u64 = 1 << 0;
pub const PF: u64 = 1 << 2;
pub const AF: u64 = 1 << 4;
pub const ZF: u64 = 1 << 6;
pub const SF: u64 = 1 << 7;
pub const OF: u64 = 1 << 11;

#[rustfmt::skip] // a table
pub const RULES: &[Rule] = &[
    Rule {
        mnemonics: &[Mnemonic::Shl, Mnemonic::Sal, Mnemonic::Shr],
        when: "the count is the operand's size or more",
        what: Undefined::Flags(CF),
        manual: "Vol. 2B, \"SAL/SAR/SHL/SHR—Shift\"",
        applies: |step, before, _| count(step, before) >= size_in_bits(step),
    },
    Rule {
        mnemonics: &[Mnemonic::Shl, Mnemonic::Sal, Mnemonic::Shr, Mnemonic::Sar],
        when: "the count is more than 1",
        what: Undefined::Flags(OF),
        manual: "Vol. 2B, \"SAL/SAR/SHL/SHR—Shift\"",
        applies: |step, before, _| count(step, before) > 1,
    },
    Rule {
        mnemonics: &[Mnemonic::Rol, Mnemonic::Ror, Mnemonic::Rcl, Mnemonic::Rcr],
        when: "the count, as masked, is more than 1",
        what: Undefined::Flags(OF),
        manual: "Vol. 2B, \"RCL/RCR/ROL/ROR—Rotate\"",
        applies: |step, before, _| count(step, before) > 1,
    },
    Rule {
        mnemonics: &[Mnemonic::Shld, Mnemonic::Shrd],
        when: "the count is more than 1",
        what: Undefined::Flags(OF | AF),
        manual: "Vol. 2B, \"SHLD—Double Precision Shift Left\" and \"SHRD—Double Precision Shift Right\"",
        applies: |step, before, _| count(step, before) > 1,
    },
    Rule {
        mnemonics: &[Mnemonic::Shld, Mnemonic::Shrd],
        when: "the count is more than the operand's size",
        what: Undefined::Result,
        manual: "Vol. 2B, \"SHLD—Double Precision Shift Left\" and \"SHRD—Double Precision Shift Right\"",
        applies: |step, before, _| count(step, before) > size_in_bits(step),
    },
    Rule {
        mnemonics: &[Mnemonic::Bsf, Mnemonic::Bsr],
        when: "the source is 0",
        what: Undefined::Result,
        manual: "Vol. 2A, \"BSF—Bit Scan Forward\" and \"BSR—Bit Scan Reverse\"",
        applies: |_, _, after| after & ZF != 0,
    },
    Rule {
        mnemonics: &[Mnemonic::Lar],
        when: "always",
        what: Undefined::Bits(0xf_0000),
        manual: "Vol. 2A, \"LAR—Load Access Rights Byte\": bits 19:16",
        applies: |_, _, _| true,
    },
    Rule {
        mnemonics: &[Mnemonic::Rcpps, Mnemonic::Rcpss, Mnemonic::Rsqrtps, Mnemonic::Rsqrtss],
        when: "always: an approximation",
        what: Undefined::Result,
        manual: "Vol. 2B, \"RCPPS—Compute Reciprocals\" and the like: a relative error of at most 1.5 × 2^-12",
        applies: |_, _, _| true,
    },
    Rule {
        mnemonics: &[Mnemonic::Bswap],
        when: "the register has 16 bits",
        what: Undefined::Result,
        manual: "Vol. 2A, \"BSWAP—Byte Swap\"",
        applies: |step, _, _| size_in_bits(step) == 16,
    },
];

/// The flags that a step leaves undefined, and whether its result is.
pub fn of(step: &Step, before: &kvm_regs, flags_after: u64) -> (u64, bool) {
    let mnemonic = step.instruction.mnemonic();
    let mut flags = by_iced(step.instruction.rflags_undefined());
    let mut result = false;
    for rule in RULES.iter().filter(|rule| rule.mnemonics.contains(&mnemonic)) {
        if (rule.applies)(step, before, flags_after) {
            match rule.what {
                Undefined::Flags(more) => flags |= more,
                // On the stack that an exception pushed, too.
                Undefined::Bits(_) => {
                    result |= step.instruction.op0_register().full_register() == Register::RSP
                }
                Undefined::Result => result = true,
            }
        }
    }
    (flags, result)
}

/// Whether a step leaves an XMM register different on each machine: the sequence ends there.
pub fn is_approximate(step: &Step) -> bool {
    matches!(
        step.instruction.mnemonic(),
        Mnemonic::Rcpps | Mnemonic::Rcpss | Mnemonic::Rsqrtps | Mnemonic::Rsqrtss
    )
}

/// The bits of a register, by its place in [`crate::compare::named`], that a step leaves undefined.
pub fn bits(step: &Step, place: usize) -> u64 {
    /// By number, where the manual lists the registers as RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8, …
    const PLACES: [usize; 8] = [0, 2, 3, 1, 6, 7, 4, 5];
    let register = step.instruction.op0_register();
    if !register.is_gpr() {
        return 0;
    }
    let number = register.full_register().number();
    if PLACES.get(number).copied().unwrap_or(number) != place {
        return 0;
    }
    let rules = RULES.iter().filter(|rule| rule.mnemonics.contains(&step.instruction.mnemonic()));
    rules.fold(0, |bits, rule| if let Undefined::Bits(more) = rule.what { bits | more } else { bits })
}

/// iced-x86's bits as those of RFLAGS.
fn by_iced(bits: u32) -> u64 {
    let pairs = [
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
        (RflagsBits::AF, AF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::SF, SF),
        (RflagsBits::OF, OF),
    ];
    pairs.iter().filter(|(bit, _)| bits & bit != 0).fold(0, |flags, (_, flag)| flags | flag)
}

/// The count of a shift, as the CPU masks it.
fn count(step: &Step, before: &kvm_regs) -> u64 {
    let instruction = &step.instruction;
    let last = instruction.op_count().saturating_sub(1);
    let count = match instruction.op_kind(last) {
        OpKind::Register => before.rcx,
        _ => instruction.immediate(last),
    };
    count & if size_in_bits(step) == 64 { 0x3f } else { 0x1f }
}

fn size_in_bits(step: &Step) -> u64 {
    let bytes = match step.instruction.op0_register().size() {
        0 => step.instruction.memory_size().size(),
        size => size,
    };
    bytes as u64 * 8
}
