//! Whether two outcomes of a case are the same, as far as the manual says what
//! they must be.

use std::fmt::Write;
use std::sync::LazyLock;

use iced_x86::{Mnemonic, RflagsBits};
use vmexit::disasm;
use vmexit::kvm::kvm_regs;

use crate::generator::Case;
use crate::subject::{CpuMode, FIRST_PORT, Outcome, STACK};

pub enum Verdict {
    Same,
    /// A KVM could not run the case: there is nothing to compare.
    GaveUp,
    /// The software machine says that it lacks the instruction.
    NotImplemented,
    Different(String),
}

/// Resume flag: an exception pushes it, and the manual leaves to the CPU when.
const RF: u64 = 1 << 16;

pub fn judge(case: &Case, left: &Outcome, right: &Outcome) -> Verdict {
    if right.gave_up {
        return Verdict::GaveUp;
    }
    if left.gave_up && left.exits.last().is_some_and(|exit| exit == "KVM_EXIT_INTERNAL_ERROR") {
        return Verdict::NotImplemented;
    }
    if undefined_result(case, left) || *ON_QEMU && qemu_lacks(case, left, right) {
        return Verdict::Same;
    }
    let flags = RF | undefined_flags(case);
    let mut masked = (left.clone(), right.clone());
    for outcome in [&mut masked.0, &mut masked.1] {
        outcome.regs.rflags &= !flags;
        mask_pushed_flags(outcome, flags);
        mask_write_of_page_fault(outcome);
    }
    if masked.0 == masked.1 { Verdict::Same } else { Verdict::Different(report(case, left, right)) }
}

/// Whether the KVM at hand runs on QEMU's software CPU, which says so in CPUID.
static ON_QEMU: LazyLock<bool> = LazyLock::new(on_qemu);

#[cfg(target_arch = "x86_64")]
fn on_qemu() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
    (leaf.ebx, leaf.ecx, leaf.edx) == (0x5447_4354, 0x4354_4743, 0x4743_5447) // "TCGTCGTCGTCG"
}

#[cfg(not(target_arch = "x86_64"))]
fn on_qemu() -> bool {
    false // and no KVM that this tester speaks to, either
}

/// What QEMU's software CPU does not do, where the manual is clear. Bochs, the
/// lab's other CPU, does, and is compared without this.
///
/// - A stack address that is not canonical is #SS, and QEMU makes it #GP.
/// - Limits and types of segments are not checked on data accesses.
/// - `enter` is not checked for a stack that cannot be written.
/// - The second encoding of `test` (f6 /1, f7 /1) is #UD.
fn qemu_lacks(case: &Case, soft: &Outcome, kvm: &Outcome) -> bool {
    let raised = |outcome: &Outcome, vector: u16| {
        let port = format!("out {:#x} ", FIRST_PORT + vector);
        outcome.exits.last().is_some_and(|exit| exit.starts_with(&port))
    };
    let segment_fault = raised(soft, 12) || raised(soft, 13);
    match case.mode {
        CpuMode::Long if raised(soft, 12) && raised(kvm, 13) => true,
        CpuMode::Real | CpuMode::Protected if segment_fault => true,
        _ => {
            let mnemonic = case.instruction.mnemonic();
            mnemonic == Mnemonic::Enter || mnemonic == Mnemonic::Test && raised(kvm, 6)
        }
    }
}

/// The flags that the manual leaves undefined: iced-x86's table of them, and what
/// depends on the operands' values.
fn undefined_flags(case: &Case) -> u64 {
    let of = |bits: u32| {
        let pairs = [
            (RflagsBits::CF, 0),
            (RflagsBits::PF, 2),
            (RflagsBits::AF, 4),
            (RflagsBits::ZF, 6),
            (RflagsBits::SF, 7),
            (RflagsBits::OF, 11),
        ];
        pairs.iter().filter(|(bit, _)| bits & bit != 0).fold(0, |flags, (_, shift)| flags | 1u64 << shift)
    };
    let mut flags = of(case.instruction.rflags_undefined());
    let shift = matches!(case.instruction.mnemonic(), Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sal);
    if shift && count(case) >= size_in_bits(case) {
        // SDM Vol. 2B, "SAL/SAR/SHL/SHR": CF is undefined for counts of the operand's size or more.
        flags |= of(RflagsBits::CF);
    }
    let rotate = matches!(
        case.instruction.mnemonic(),
        Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Shld
            | Mnemonic::Shrd
            | Mnemonic::Sar
    );
    if (shift || rotate) && count(case) != 1 {
        // The same page, and "RCL/RCR/ROL/ROR": OF is defined for a count of 1 only.
        flags |= of(RflagsBits::OF);
    }
    flags
}

/// Whether the manual leaves the result itself undefined.
fn undefined_result(case: &Case, outcome: &Outcome) -> bool {
    match case.instruction.mnemonic() {
        // SDM Vol. 2A, "BSF" and "BSR": of zero.
        Mnemonic::Bsf | Mnemonic::Bsr => outcome.regs.rflags >> 6 & 1 == 1,
        // Vol. 2B, "SHLD" and "SHRD": by more than the operand's size.
        Mnemonic::Shld | Mnemonic::Shrd => count(case) > size_in_bits(case),
        // Vol. 2A, "BSWAP": of a 16-bit register.
        Mnemonic::Bswap => size_in_bits(case) == 16,
        _ => false,
    }
}

/// The count of a shift, as the CPU masks it.
fn count(case: &Case) -> u64 {
    let last = case.instruction.op_count().saturating_sub(1);
    let count = match case.instruction.op_kind(last) {
        iced_x86::OpKind::Register => case.regs.rcx,
        _ => case.instruction.immediate(last),
    };
    count & if size_in_bits(case) == 64 { 0x3f } else { 0x1f }
}

fn size_in_bits(case: &Case) -> u64 {
    let bytes = match case.instruction.op0_register().size() {
        0 => case.instruction.memory_size().size(),
        size => size,
    };
    bytes as u64 * 8
}

/// A `pushf`, and every exception, pushes flags: undefined ones, too. Which of the
/// pushed words holds them depends on both, so the bits are masked in all.
fn mask_pushed_flags(outcome: &mut Outcome, flags: u64) {
    let pushed = STACK.wrapping_sub(outcome.regs.rsp);
    if outcome.exits.is_empty() || pushed > 64 {
        return;
    }
    for at in (outcome.regs.rsp..STACK).step_by(2) {
        let word = &mut outcome.memory[at as usize..at as usize + 4];
        word.iter_mut().zip((flags as u32).to_le_bytes()).for_each(|(byte, mask)| *byte &= !mask);
    }
}

/// A page fault of an instruction that reads and then writes the same memory is one
/// of a write on silicon and on Bochs; QEMU's software CPU reads first, and says so.
fn mask_write_of_page_fault(outcome: &mut Outcome) {
    const PAGE_FAULT: u16 = 14;
    const WRITE: u8 = 1 << 1;
    let port = format!("out {:#x} ", FIRST_PORT + PAGE_FAULT);
    if outcome.exits.last().is_some_and(|exit| exit.starts_with(&port)) {
        outcome.memory[outcome.regs.rsp as usize] &= !WRITE;
    }
}

fn report(case: &Case, left: &Outcome, right: &Outcome) -> String {
    let mut text = format!(
        "  {}: {}    {}\n",
        case.mode,
        disasm::hex(&case.code),
        disasm::text(&case.instruction, None)
    );
    let mut line = |line: String| writeln!(text, "  {line}").expect("a String takes everything");
    line("before -> software machine | KVM".to_owned());
    line(format!("exits {:?} | {:?}", left.exits, right.exits));
    for ((name, before), ((_, left), (_, right))) in
        named(&case.regs).into_iter().zip(named(&left.regs).into_iter().zip(named(&right.regs)))
    {
        let mark = if left == right { ' ' } else { '*' };
        if left != right || before != left {
            line(format!("{mark} {name:<6} {before:#x} -> {left:#x} | {right:#x}"));
        }
    }
    if left.cr2 != right.cr2 {
        line(format!("* cr2    {:#x} | {:#x}", left.cr2, right.cr2));
    }
    let differs = left.memory.iter().zip(&right.memory).position(|(left, right)| left != right);
    if let Some(at) = differs {
        line(format!("* memory from {at:#x}: {:02x} | {:02x}", left.memory[at], right.memory[at]));
    }
    text
}

#[rustfmt::skip] // as the manual lists them
fn named(r: &kvm_regs) -> [(&'static str, u64); 18] {
    [
        ("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx), ("rdx", r.rdx), ("rsi", r.rsi), ("rdi", r.rdi),
        ("rsp", r.rsp), ("rbp", r.rbp), ("r8", r.r8), ("r9", r.r9), ("r10", r.r10), ("r11", r.r11),
        ("r12", r.r12), ("r13", r.r13), ("r14", r.r14), ("r15", r.r15), ("rip", r.rip), ("rflags", r.rflags),
    ]
}
