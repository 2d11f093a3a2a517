//! The instructions in ring 3 of this CPU, each in a process of its own, because
//! some faults end it.

use std::arch::asm;
use std::io::Error;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

/// Runs the trial `name` in a process of its own, and tells how it ended.
///
/// # Errors
/// When this program cannot be started again.
pub fn outcome(name: &str) -> Result<String, Error> {
    let output = Command::new(std::env::current_exe()?).arg(name).output()?;
    Ok(match output.status.signal() {
        Some(libc::SIGSEGV) => "faults (#GP): a hypervisor could step in".to_owned(),
        Some(signal) => format!("ends in signal {signal}"),
        None => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    })
}

/// In that process: runs it here and now. `None` where there is no such trial.
pub fn run(name: &str) -> Option<String> {
    match name {
        "cli" => Some(cli()),
        "hlt" => Some(hlt()),
        "popf" => Some(popf()),
        "smsw" => Some(smsw()),
        "sgdt" => Some(sgdt()),
        "sidt" => Some(sidt()),
        "sldt" => Some(sldt()),
        "mov cs" => Some(mov_cs()),
        _ => None,
    }
}

fn cli() -> String {
    // SAFETY: in ring 3 the instruction faults or, with IOPL 3, does nothing to this process's memory.
    unsafe { asm!("cli", "sti", options(nomem, nostack)) };
    "runs".to_owned()
}

fn hlt() -> String {
    // SAFETY: in ring 3 the instruction faults and touches nothing.
    unsafe { asm!("hlt", options(nomem, nostack)) };
    "runs".to_owned()
}

fn popf() -> String {
    let after: u64;
    // SAFETY: pushes and pops balance; IF is the only bit that is asked to change.
    unsafe {
        asm!(
            "pushfq", "pop {flags}", "btr {flags}, 9", "push {flags}", "popfq", "pushfq", "pop {flags}",
            flags = out(reg) after
        );
    }
    match after >> 9 & 1 {
        1 => "no fault, and IF is still 1: silently ignored".to_owned(),
        _ => "no fault, and IF is 0".to_owned(),
    }
}

fn smsw() -> String {
    let value: u64;
    // SAFETY: writes the named register only.
    unsafe { asm!("smsw {}", out(reg) value, options(nomem, nostack)) };
    format!("{value:#x}{}", whose())
}

fn sgdt() -> String {
    let mut table = [0u8; 10];
    // SAFETY: the instruction writes ten bytes, and `table` has them.
    unsafe { asm!("sgdt [{}]", in(reg) &raw mut table, options(nostack)) };
    table_text(table)
}

fn sidt() -> String {
    let mut table = [0u8; 10];
    // SAFETY: the instruction writes ten bytes, and `table` has them.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut table, options(nostack)) };
    table_text(table)
}

/// A limit of two bytes, then a base of eight.
fn table_text(table: [u8; 10]) -> String {
    let mut base = [0; 8];
    base.copy_from_slice(&table[2..]);
    let limit = u16::from_le_bytes([table[0], table[1]]);
    format!("base {:#x}, limit {limit:#x}{}", u64::from_le_bytes(base), whose())
}

/// With UMIP (Intel SDM Vol. 3A, "Control Registers", CR4.UMIP) the store instructions fault in
/// ring 3; Linux then answers them itself, with values that mean nothing.
fn whose() -> &'static str {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if cpuinfo.split_whitespace().any(|flag| flag == "umip") {
        ": it faulted, by UMIP, and Linux made this value up"
    } else {
        ": no fault, and the value is the host's"
    }
}

fn sldt() -> String {
    let selector: u64;
    // SAFETY: writes the named register only.
    unsafe { asm!("sldt {0:r}", out(reg) selector, options(nomem, nostack)) };
    format!("selector {selector:#x}{}", whose())
}

fn mov_cs() -> String {
    let selector: u64;
    // SAFETY: writes the named register only.
    unsafe { asm!("mov {0:r}, cs", out(reg) selector, options(nomem, nostack)) };
    format!(
        "no fault: selector {selector:#x}, ring {}: a kernel would see that it is not in ring 0",
        selector & 3
    )
}
