//! Million guest instructions a second, on six guests of 64-bit code: the software
//! machine and this host's KVM, side by side. Chapter 03.
//!
//! ```text
//! cargo run --release --example mips
//!
//! guest-physical   0x0001000  the guests
//!                  0x0100000  page tables
//!                  0x0200000  what they work on
//!                  0x1000000  16 MiB behind pages of 4 KiB, the rest behind pages of 2 MiB
//! ```
//!
//! The software machine's time stamp counter counts instructions. Two short runs on
//! it say how many a round has; everywhere else rounds are timed.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{Kvm, Msrs, VcpuExit, VcpuFd, kvm_msr_entry};
use vmexit::machine::Machine;
use vmexit::mode::{self, rflags};
use vmexit::paging::{self, LARGE_PAGE, PAGE, entry};
use vmexit::segment::Descriptor;
use vmexit::status::Status;

const MEMORY: usize = 32 << 20;
const STACK: u64 = 0x10_0000;
const TABLES: u64 = 0x10_0000;
const SMALL_TABLES: u64 = TABLES + 3 * PAGE;
const WALK: u64 = 0x100_0000;
/// A measurement takes at least this long, so that a clock's tick is nothing.
const LONG_ENOUGH: Duration = Duration::from_millis(1000);
/// Intel SDM Vol. 4, "Architectural MSRs": IA32_TIME_STAMP_COUNTER.
const TIME_STAMP_COUNTER: u32 = 0x10;
const EINTR: i32 = 4;

/// A guest's symbol, what it is, and the bytes that a round copies by one instruction, if it does.
const GUESTS: [(&str, &str, Option<u64>); 6] = [
    ("register_loop", "register loop", None),
    ("sieve", "sieve", None),
    ("copy_words", "copy by words", None),
    ("copy_bytes", "copy by rep movsb", Some(1 << 20)),
    ("calls", "calls and returns", None),
    ("page_walk", "a page walk a load", None),
];

fn main() -> ExitCode {
    if std::env::args().len() > 1 {
        println!("Usage: cargo run --release --example mips");
        return Status::BadInput.into();
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mips: {error:#}{}", vmexit::explain::way_out(&error));
            Status::BadInput.into()
        }
    }
}

fn measure() -> Result<()> {
    let image = Image::elf(vmexit::guest!())?;
    let soft = Kvm::soft();
    let host = Kvm::new();
    println!("million instructions a second        software machine    this host's KVM");
    for (symbol, name, bytes) in GUESTS {
        let entry = image.symbol(symbol)?;
        let (one, two) = (instructions(&soft, &image, entry, 1)?, instructions(&soft, &image, entry, 2)?);
        let round = two - one;
        let show = |machine: &Kvm| -> Result<String> {
            progress(name);
            let seconds = seconds_a_round(machine, &image, entry)?;
            Ok(match bytes {
                Some(bytes) => format!("{:.0} MB/s", bytes as f64 / seconds / 1e6),
                None => format!("{:.1}", round as f64 / seconds / 1e6),
            })
        };
        let on_soft = show(&soft)?;
        let on_host = match &host {
            Ok(kvm) => show(kvm).unwrap_or_else(|error| format!("{error:#}")),
            Err(error) => format!("none: {error}"),
        };
        progress("");
        println!("{name:<20}{on_soft:>33}{on_host:>19}");
    }
    Ok(())
}

/// The guest that is being measured, on a terminal.
fn progress(name: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "\r\x1b[K{name}");
        let _ = stderr.flush();
    }
}

/// How many instructions `rounds` rounds have, by the software machine's count.
fn instructions(soft: &Kvm, image: &Image, entry: u64, rounds: u64) -> Result<u64> {
    let mut machine = machine(soft, image, entry, rounds)?;
    let before = time_stamp(&machine.vcpu)?;
    until_halt(&mut machine)?;
    Ok(time_stamp(&machine.vcpu)? - before)
}

fn time_stamp(vcpu: &VcpuFd) -> Result<u64> {
    let entry = kvm_msr_entry { index: TIME_STAMP_COUNTER, ..kvm_msr_entry::default() };
    let mut msrs = Msrs::from_entries(&[entry]).context("a list of one MSR")?;
    vcpu.get_msrs(&mut msrs).context("KVM_GET_MSRS")?;
    Ok(msrs.as_slice().first().context("KVM_GET_MSRS gave nothing")?.data)
}

/// Raises the rounds until they take long enough to be timed.
fn seconds_a_round(kvm: &Kvm, image: &Image, entry: u64) -> Result<f64> {
    let mut rounds = 1;
    loop {
        let mut machine = machine(kvm, image, entry, rounds)?;
        let start = Instant::now();
        until_halt(&mut machine)?;
        let took = start.elapsed();
        if took >= LONG_ENOUGH {
            return Ok(took.as_secs_f64() / rounds as f64);
        }
        let factor = LONG_ENOUGH.as_secs_f64() * 1.2 / took.as_secs_f64().max(1e-6);
        rounds = (rounds as f64 * factor.clamp(1.5, 100.0)).ceil() as u64;
        ensure!(rounds < u64::from(u32::MAX), "the guest is too fast to be timed");
    }
}

fn until_halt(machine: &mut Machine) -> Result<()> {
    loop {
        match machine.vcpu.run() {
            Ok(VcpuExit::Hlt) => return Ok(()),
            Ok(exit) => bail!("it came back with {exit:?}"),
            // The software machine comes back now and then, as a signal makes KVM do.
            Err(error) if error.errno() == EINTR => {}
            Err(error) => return Err(error).context("KVM_RUN"),
        }
    }
}

/// A machine in long mode, about to run the guest at `entry`.
fn machine(kvm: &Kvm, image: &Image, guest: u64, rounds: u64) -> Result<Machine> {
    let machine = Machine::new(kvm, Memory::new(MEMORY)?)?;
    machine.memory.load(image)?;
    let cr3 = paging::identity_map(&machine.memory, TABLES)?;
    let present = entry::PRESENT | entry::WRITABLE;
    let directory = TABLES + 2 * PAGE;
    for (number, large) in (WALK..MEMORY as u64).step_by(LARGE_PAGE as usize).enumerate() {
        let table = SMALL_TABLES + number as u64 * PAGE;
        machine.memory.write(directory + large / LARGE_PAGE * 8, &(table | present).to_le_bytes())?;
        for (index, page) in (large..large + LARGE_PAGE).step_by(PAGE as usize).enumerate() {
            machine.memory.write(table + index as u64 * 8, &(page | present).to_le_bytes())?;
        }
    }
    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    mode::enter_protected(&mut sregs, Descriptor::CODE_64);
    mode::enter_long(&mut sregs, cr3);
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let mut regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
    (regs.rip, regs.rsp, regs.r9, regs.rflags) = (guest, STACK, rounds, rflags::FIXED);
    machine.vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
    Ok(machine)
}
