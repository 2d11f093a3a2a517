//! Chapter 02: why did it come back? One of every exit that a guest causes on
//! purpose, each answered, and what Intel, AMD and KVM call it. The broken
//! variants end in the exits that nobody wants.
//!
//! ```text
//! guest-physical   0x01000  the guest
//!                  0x10000  the end of memory
//!                  0xb8000  a PC has its screen here, and this machine nothing: MMIO
//! ```

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use vmexit::chapter::{self, Break, Chapter};
use vmexit::exit::{Names, Unexpected};
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{Kvm, Probe, VcpuExit};
use vmexit::machine::Machine;
use vmexit::mode::enter_protected;
use vmexit::run::Run;
use vmexit::segment::Descriptor;

const CHAPTER: Chapter = Chapter {
    name: "ch02",
    title: "Why did it come back?",
    needs: Probe::Real,
    flags: &[],
    breaks: &[
        Break {
            name: "shutdown",
            what: "the guest starts in protected mode, without an interrupt table, at a ud2",
            why: "ud2 is #UD, and has no gate: #GP; neither has that: a double fault; nor has that: shutdown",
        },
        Break {
            name: "internal-error",
            what: "the guest jumps to where no memory is",
            why: "KVM can emulate a data access to a hole, and cannot fetch an instruction from one",
        },
        Break {
            name: "fail-entry",
            what: "from outside, DS gets a limit of 4 GiB and keeps G = 0",
            why: "a limit above 1 MiB counts pages, so its G bit must be 1; Intel's CPUs check that at VM entry, AMD's \
                  do not look at the bit",
        },
    ],
};

const MEMORY: usize = 0x10000;
const OUT_PORT: u16 = 0x10;
const IN_PORT: u16 = 0x11;
const STRING_PORT: u16 = 0x12;
const SCREEN: u64 = 0xb8000;

fn main() -> ExitCode {
    chapter::main(&CHAPTER, every_exit)
}

// ANCHOR: chapter
fn every_exit(run: &Run) -> Result<()> {
    let image = Image::elf(vmexit::guest!())?;
    run.show(&image)?;
    let kvm = Kvm::open(run)?;
    let mut machine = Machine::new(&kvm, Memory::new(MEMORY)?)?;
    machine.load(&image)?;
    break_it(run, &machine, &image)?;
    do_not_enter(run, &mut machine)?;

    let mut answers = [b'V', b'M'].into_iter().cycle();
    let mut seen = Vec::new();
    loop {
        let exit = machine.vcpu.run().context("KVM_RUN")?;
        seen.extend(run.last_exit().and_then(|exit| exit.names()));
        match exit {
            // The guest tells: the bytes are in kvm_run, and it goes on without an answer.
            VcpuExit::IoOut(OUT_PORT | STRING_PORT, _) | VcpuExit::MmioWrite(SCREEN.., _) => {}
            // The guest asks: it goes on with what lies in kvm_run when it is entered again.
            VcpuExit::IoIn(IN_PORT, data) | VcpuExit::MmioRead(SCREEN.., data) => {
                data.iter_mut().zip(&mut answers).for_each(|(byte, answer)| *byte = answer);
            }
            VcpuExit::Hlt => break,
            exit => return Err(Unexpected::from(exit).into()),
        }
    }

    let memory = machine.memory.read(image.symbol("answer")?, 3)?;
    run.say(format_args!("\nthe guest was answered {:?}", String::from_utf8_lossy(&memory[..2])));
    ensure!(memory[2] != 0, "KVM answered the guest's cpuid with no leaf at all");
    run.say("its cpuid was answered too, and no exit of it came here\n");
    show_names(run, &seen);
    Ok(())
}
// ANCHOR_END: chapter

// ANCHOR: immediate_exit
/// With `immediate_exit` set, KVM_RUN comes back before it has entered the guest:
/// no exit, but the error EINTR.
fn do_not_enter(run: &Run, machine: &mut Machine) -> Result<()> {
    const EINTR: i32 = 4;
    machine.vcpu.set_kvm_immediate_exit(1);
    match machine.vcpu.run() {
        Err(error) if error.errno() == EINTR && run.stopped().is_none() => {
            run.say("immediate_exit: KVM_RUN returned EINTR, and the guest has not run");
        }
        Err(error) => return Err(error).context("KVM_RUN"),
        Ok(exit) => return Err(Unexpected::from(exit).into()),
    }
    machine.vcpu.set_kvm_immediate_exit(0);
    Ok(())
}
// ANCHOR_END: immediate_exit

/// What each of the exits that were seen is called, and how often it came.
fn show_names(run: &Run, seen: &[Names]) {
    run.say("times  KVM                Intel                  AMD");
    let mut shown: Vec<Names> = Vec::new();
    for names in seen {
        if shown.contains(names) {
            continue;
        }
        shown.push(*names);
        let times = seen.iter().filter(|other| *other == names).count();
        let (kvm, number) = names.kvm;
        let vendor = |name: Option<(&'static str, u32)>| name.unwrap_or(("-", 0));
        let ((intel, reason), (amd, code)) = (vendor(names.intel), vendor(names.amd));
        let (kvm, intel) = (format!("{kvm} ({number})"), format!("{intel} ({reason})"));
        run.say(format_args!("{times:>5}  {kvm:<17}  {intel:<21}  {amd} ({code:#x})"));
    }
}

/// What a broken variant changes before the guest runs.
fn break_it(run: &Run, machine: &Machine, image: &Image) -> Result<()> {
    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    if run.breaks("shutdown") {
        machine.memory.write(image.entry(), &[0x0f, 0x0b])?; // ud2
        enter_protected(&mut sregs, Descriptor::CODE_32);
        sregs.idt.limit = 0;
    }
    if run.breaks("internal-error") {
        machine.memory.write(image.symbol("crash")?, &[0xea, 0x00, 0x00, 0x00, 0xb8])?; // jmp far 0xb800:0
    }
    if run.breaks("fail-entry") {
        (sregs.ds.limit, sregs.ds.g) = (0xffff_ffff, 0);
    }
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")
}
