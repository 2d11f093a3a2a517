//! The instructions that made x86 unvirtualizable, run where every user program
//! runs: in ring 3, of this CPU and of the software machine. A privileged
//! instruction should fault there, so that a hypervisor that put its guest's
//! kernel into ring 3 could step in. Most of these do not: they answer with the
//! host's state, or do nothing and say nothing. Chapter 03.
//!
//! ```text
//! cargo run --example ring3
//! ```

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod cpu;
mod software;

use std::process::ExitCode;

use anyhow::Result;
use vmexit::status::Status;

use software::{Ending, GDT, IDT};

/// An instruction, what it means in ring 0, and how it comes to RAX.
struct Trial {
    name: &'static str,
    meaning: &'static str,
    /// 64-bit code that leaves what the instruction showed in RAX.
    code: &'static [u8],
    /// What RAX says then.
    reading: fn(u64) -> String,
}

#[rustfmt::skip] // an instruction a line
const TRIALS: [Trial; 8] = [
    Trial { name: "cli", meaning: "turn interrupts off", reading: |_| "runs".to_owned(), code: &[
        0xfa, // cli
    ] },
    Trial { name: "hlt", meaning: "wait for an interrupt", reading: |_| "runs".to_owned(), code: &[
        0xf4, // hlt
    ] },
    Trial { name: "popf", meaning: "load RFLAGS, IF among it", reading: interrupt_flag, code: &[
        0x9c, 0x58,                   // pushfq; pop rax
        0x48, 0x0f, 0xba, 0xf0, 0x09, // btr rax, 9
        0x50, 0x9d,                   // push rax; popfq
        0x9c, 0x58,                   // pushfq; pop rax
    ] },
    Trial { name: "smsw", meaning: "read the low half of CR0", reading: |value| format!("{value:#x}{ITS_OWN}"), code: &[
        0x48, 0x0f, 0x01, 0xe0, // smsw rax
    ] },
    Trial { name: "sgdt", meaning: "read GDTR", reading: |value| format!("base {value:#x}{ITS_OWN}"), code: &[
        0x0f, 0x01, 0x04, 0x25, 0x00, 0x20, 0x00, 0x00, // sgdt [0x2000]
        0x48, 0x8b, 0x04, 0x25, 0x02, 0x20, 0x00, 0x00, // mov rax, [0x2002]
    ] },
    Trial { name: "sidt", meaning: "read IDTR", reading: |value| format!("base {value:#x}{ITS_OWN}"), code: &[
        0x0f, 0x01, 0x0c, 0x25, 0x00, 0x20, 0x00, 0x00, // sidt [0x2000]
        0x48, 0x8b, 0x04, 0x25, 0x02, 0x20, 0x00, 0x00, // mov rax, [0x2002]
    ] },
    Trial { name: "sldt", meaning: "read LDTR", reading: |value| format!("selector {value:#x}{ITS_OWN}"), code: &[
        0x48, 0x0f, 0x00, 0xc0, // sldt rax
    ] },
    Trial { name: "mov cs", meaning: "read CS, and the ring in it", reading: ring, code: &[
        0x48, 0x8c, 0xc8, // mov rax, cs
    ] },
];

const ITS_OWN: &str = ": no fault, and the value is the machine's";

fn interrupt_flag(rflags: u64) -> String {
    match rflags >> 9 & 1 {
        1 => "no fault, and IF is still 1: silently ignored".to_owned(),
        _ => "no fault, and IF is 0".to_owned(),
    }
}

fn ring(selector: u64) -> String {
    format!(
        "no fault: selector {selector:#x}, ring {}: a kernel would see that it is not in ring 0",
        selector & 3
    )
}

fn main() -> ExitCode {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    if let Some(outcome) = std::env::args().nth(1).and_then(|name| cpu::run(&name)) {
        println!("{outcome}");
        return ExitCode::SUCCESS;
    }
    match show() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ring3: {error:#}");
            Status::BadInput.into()
        }
    }
}

fn show() -> Result<()> {
    on_this_cpu()?;
    println!("\n{:<8} {:<29} in ring 3 of the software machine", "", "in ring 0");
    for trial in &TRIALS {
        let outcome = match software::run(trial.code)? {
            Ending::Fault => "faults (#GP): a hypervisor could step in".to_owned(),
            Ending::Value(value) => (trial.reading)(value),
        };
        println!("{:<8} {:<29} {outcome}", trial.name, trial.meaning);
    }
    println!(
        "\nA fault can be caught and emulated. What answers without one cannot: Popek and Goldberg's condition"
    );
    println!("fails, and VT-x and AMD-V were built. A CPU with UMIP makes some of them fault at last.");
    println!("The software machine's tables are at {GDT:#x} and {IDT:#x}.");
    Ok(())
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn on_this_cpu() -> Result<()> {
    use anyhow::Context;
    println!("{:<8} {:<29} in ring 3 of this CPU", "", "in ring 0");
    for trial in &TRIALS {
        let outcome = cpu::outcome(trial.name).context("cannot run itself again")?;
        println!("{:<8} {:<29} {outcome}", trial.name, trial.meaning);
    }
    Ok(())
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn on_this_cpu() -> Result<()> {
    println!("This host is no x86-64 Linux, and its CPU cannot run them. The software machine can.");
    Ok(())
}
