//! A system call and a VM exit, measured side by side, on the host's KVM and on
//! the software machine. The guest is chapter 10's kernel with the program
//! `measure`; a system call is a round trip, `syscall` and `sysretq`, and a VM
//! exit is one, too: `out`, to this program and back.
//!
//! ```text
//! cargo run --release --example syscall_vs_exit
//! ```
//!
//! Each figure is the median of several rounds.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use vmexit::abi;
use vmexit::explain;
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{Device, Kvm, Probe, VcpuExit};
use vmexit::machine::Machine;
use vmexit::mode::{enter_long, enter_protected};
use vmexit::paging::{self, LARGE_PAGE};
use vmexit::segment::Descriptor;
use vmexit::status::Status;

/// Chapter 10's guest.
const KERNEL: &[u8] = include!(concat!(env!("OUT_DIR"), "/ch10.rs"));

/// In a series of `measure`: short, so that most of them end before another process gets its turn.
const SYSTEM_CALLS: u32 = 1_000;
const EXITS: u32 = 100;
const ROUNDS: usize = 201;

/// The port on which the kernel passes a `write` on.
const WRITES: u16 = 0x11;

fn main() -> ExitCode {
    println!("{:<24}{:>15}{:>12}{:>9}", "", "system call ns", "VM exit ns", "ratio");
    let device = Device::chosen();
    let mut status = Status::Success;
    match on_device(&device) {
        Ok(costs) => report(&format!("kvm, {device}"), &costs),
        Err(reason) => println!("kvm, {device}: {reason}"),
    }
    match measure(&Kvm::soft()) {
        Ok(costs) => report("the software machine", &costs),
        Err(error) => {
            eprintln!("syscall_vs_exit: {error:#}");
            status = Status::Bug;
        }
    }
    status.into()
}

/// What was measured, or why nothing was.
fn on_device(device: &Device) -> Result<Costs, String> {
    let kvm = Kvm::open_device(device).map_err(|error| format!("cannot be opened: {error}"))?;
    if let Err(failure) = Probe::SystemCall.run(&kvm) {
        return Err(format!("cannot run {}: {failure}", Probe::SystemCall));
    }
    measure(&kvm).map_err(|error| format!("{error:#}{}", explain::way_out(&error)))
}

fn report(machine: &str, costs: &Costs) {
    let Costs { system_call, exit } = costs;
    println!("{machine:<24}{system_call:>15.0}{exit:>12.0}{:>9.1}", exit / system_call);
}

/// Nanoseconds, medians.
struct Costs {
    system_call: f64,
    exit: f64,
}

fn measure(kvm: &Kvm) -> Result<Costs> {
    let mut machine = machine(kvm)?;
    let (mut system_calls, mut exits) = (Vec::new(), Vec::new());
    // The first round warms the caches.
    for round in 0..=ROUNDS {
        next_write(&mut machine)?;
        let began = Instant::now();
        next_write(&mut machine)?;
        let called = Instant::now();
        for _ in 0..EXITS {
            next_write(&mut machine)?;
        }
        let written = Instant::now();
        if round > 0 {
            // The series of calls ends in one write, and each write is a system call itself.
            let write = (written - called).as_nanos() as f64 / f64::from(EXITS);
            let call = ((called - began).as_nanos() as f64 - write) / f64::from(SYSTEM_CALLS);
            system_calls.push(call);
            exits.push(write - call);
        }
    }
    Ok(Costs { system_call: median(system_calls), exit: median(exits) })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs to the next `write` of the program.
fn next_write(machine: &mut Machine) -> Result<()> {
    loop {
        match machine.vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(WRITES, _) => return Ok(()),
            VcpuExit::IoOut(0x10, _) => {} // the program starts
            exit => bail!("the guest came back with {exit:?}"),
        }
    }
}

/// Chapter 10's machine, with one program.
fn machine(kvm: &Kvm) -> Result<Machine> {
    let kernel = Image::elf(KERNEL)?;
    let program = Image::elf(vmexit::program!("measure"))?;
    let machine = Machine::new(kvm, Memory::new((abi::START + LARGE_PAGE) as usize)?)?;
    machine.load(&kernel)?;
    let cr3 = paging::identity_map(&machine.memory, kernel.symbol("pml4")?)?;
    machine.memory.load(&program)?; // its frame is where it is linked
    let entry = [abi::START, program.entry()].map(u64::to_le_bytes).concat();
    machine.memory.write(kernel.symbol("programs")?, &entry)?;

    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    enter_protected(&mut sregs, Descriptor::CODE_64);
    enter_long(&mut sregs, cr3);
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    Ok(machine)
}
