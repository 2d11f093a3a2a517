//! The smallest case that still differs: one instruction, few registers, little
//! memory, as text that a person can start from.

use std::fmt::Write;

use anyhow::Result;
use vmexit::disasm;
use vmexit::kvm::kvm_regs;

use crate::compare::{Verdict, named};
use crate::generator::address_of;
use crate::image::{CODE, LANDING, PAGE, STACK_PAGE, TABLES};
use crate::pair::{Pair, Start};
use crate::step::{Sequence, Step, register};

/// What names a step: `long seed 1 sequence 7 step 3: 90   nop`.
pub fn name(sequence: &Sequence, seed: u64, number: u64, step: usize) -> String {
    let text = sequence.steps.get(step).map_or("memory at its end".to_owned(), text);
    format!("{}, seed {seed}, sequence {number}, step {step}: {text}", sequence.setting)
}

fn text(step: &Step) -> String {
    format!("{}   {}", disasm::hex(&step.code), disasm::text(&step.instruction, None))
}

/// The difference, what it takes to see it, and how to run it again.
pub fn report(
    pair: &mut Pair,
    sequence: &Sequence,
    (seed, number, step): (u64, u64, usize),
    lines: &[String],
) -> Result<String> {
    let mut report = format!("DIFFERENT: {}\n", name(sequence, seed, number, step));
    report.push_str("  software machine | KVM\n");
    for line in lines {
        let _ = writeln!(report, "  {line}");
    }
    let again = format!("  again: cargo run --release --example diff -- --seed {seed} --sequence {number}");
    let Some(case) = sequence.steps.get(step) else {
        report.push_str(&again);
        return Ok(report);
    };
    let start = pair.start_of(sequence, step)?;
    if matches!(pair.run_from(&start, case)?, Verdict::Different(_)) {
        let smaller = smallest(pair, start, case)?;
        let _ = writeln!(report, "  alone, from:");
        fragment(&mut report, sequence, step, case, &smaller);
    } else {
        let _ = writeln!(report, "  only after the steps before it:");
        for step in &sequence.steps[..step] {
            let _ = writeln!(report, "    {}", text(step));
        }
    }
    report.push_str(&again);
    Ok(report)
}

/// Takes away registers and memory as long as it differs.
fn smallest(pair: &mut Pair, mut start: Start, step: &Step) -> Result<Start> {
    const RSP: u8 = 4;
    let differs = |pair: &mut Pair, start: &Start| -> Result<bool> {
        Ok(matches!(pair.run_from(start, step)?, Verdict::Different(_)))
    };
    for number in (0..16).filter(|number| *number != RSP) {
        let mut less = start.clone();
        if std::mem::take(register(&mut less.regs, number)) != 0 && differs(pair, &less)? {
            start = less;
        }
    }
    let mut less = start.clone();
    less.regs.rflags = 2;
    if differs(pair, &less)? {
        start = less;
    }
    // Halves, quarters, … of the memory that is not the machine's own.
    let mut size = (TABLES - STACK_PAGE) as usize;
    while size >= 64 {
        for at in (STACK_PAGE as usize..TABLES as usize).step_by(size) {
            let mut less = start.clone();
            less.memory[at..at + size].fill(0);
            if less.memory != start.memory && differs(pair, &less)? {
                start = less;
            }
        }
        size /= 4;
    }
    Ok(start)
}

/// A piece of a `guest.s` that makes the state, as far as ring 0 can, and the instruction.
fn fragment(report: &mut String, sequence: &Sequence, number: usize, step: &Step, start: &Start) {
    let setting = &sequence.setting;
    let mut line = |text: String| {
        let _ = writeln!(report, "    {text}");
    };
    line(format!("        .code{}              # {setting}, ring {}", setting.bits, setting.ring));
    for at in (STACK_PAGE as usize..TABLES as usize).step_by(16) {
        let bytes = &start.memory[at..at + 16];
        if bytes.iter().any(|byte| *byte != 0) {
            let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:#04x}")).collect();
            line(format!("        # .org {at:#x}: .byte {}", bytes.join(", ")));
        }
    }
    let wide = setting.is_64_bit();
    let regs: &kvm_regs = &start.regs;
    for (name, value) in named(regs).into_iter().filter(|(name, value)| *value != 0 && *name != "rip") {
        if wide {
            line(format!("        movabs  {name}, {value:#x}"));
        } else if !name.starts_with("r1") && name != "r8" && name != "r9" {
            line(format!("        mov     e{}, {value:#x}", &name[1..]));
        }
    }
    line(format!("        # RFLAGS {:#x}", regs.rflags));
    let bytes: Vec<String> = step.code.iter().map(|byte| format!("{byte:#04x}")).collect();
    line(format!(
        "        .byte   {}    # {} at {:#x}",
        bytes.join(", "),
        disasm::text(&step.instruction, None),
        address_of(number)
    ));
    line(format!(
        "        hlt                     # as is all from {CODE:#x} and {LANDING:#x} to the ends of their pages of {PAGE:#x}"
    ));
}
