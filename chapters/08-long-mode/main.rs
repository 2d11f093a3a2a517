//! Chapter 08: long mode, reached twice. First the guest climbs by itself, real →
//! protected → PAE → EFER.LME → paging → 64-bit code, and KVM_GET_SREGS shows each
//! step; then a second machine starts there, with KVM_SET_SREGS.
//!
//! ```text
//! guest-physical   0x01000  the guest: code, GDT, its own three page tables
//!                  0x10000  the tables of the second machine: PML4, PDPT, PD
//!                  0x13000  the end of memory
//! ```

use std::process::ExitCode;

use anyhow::{Context, Result};
use vmexit::chapter::{self, Break, Chapter};
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{Kvm, Probe};
use vmexit::machine::Machine;
use vmexit::mode::{efer, enter_long, enter_protected};
use vmexit::paging;
use vmexit::run::{self, Run};
use vmexit::segment::Descriptor;

const CHAPTER: Chapter = Chapter {
    name: "ch08",
    title: "Long mode",
    needs: Probe::Long,
    flags: &[],
    breaks: &[
        Break {
            name: "no-lme",
            what: "EFER.LME stays clear",
            why: "without EFER.LME, paging with CR4.PAE is 32-bit PAE paging: what CR3 points to is a table of four \
                  pointers in which bit 1 is reserved, and the guest's entry sets it; the fault finds no interrupt \
                  gate, so a double fault and then a triple fault",
        },
        Break {
            name: "no-page",
            what: "the page directory's entry 0 stays zero",
            why: "paging went on, and the very next instruction could not be fetched: entry 0 of the page directory \
                  is not present, #PF; no gate can be read through these tables either, so a triple fault",
        },
        Break {
            name: "no-lma",
            what: "from outside, EFER.LME is set without EFER.LMA",
            why: "in a running CPU with paging on, LMA equals LME; KVM refuses to load a state that no CPU reaches",
        },
    ],
};

const MEMORY: usize = 0x13000;
const TABLES: u64 = 0x10000;
const NOP: u8 = 0x90;

fn main() -> ExitCode {
    chapter::main(&CHAPTER, long_mode)
}

// ANCHOR: chapter
fn long_mode(run: &Run) -> Result<()> {
    let image = Image::elf(vmexit::guest!())?;
    run.show(&image)?;
    let kvm = Kvm::open(run)?;

    run.say("from inside: the guest climbs by itself");
    let mut machine = Machine::new(&kvm, Memory::new(MEMORY)?)?;
    machine.load(&image)?;
    break_the_climb(run, &machine, &image)?;
    run::until_halt(run, &mut machine.vcpu)?;
    show_r15(run, &machine)?;

    run.say("\nfrom outside: KVM_SET_SREGS");
    let mut machine = Machine::new(&kvm, Memory::new(MEMORY)?)?;
    machine.load(&image)?;
    let cr3 = paging::identity_map(&machine.memory, TABLES)?;
    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    enter_protected(&mut sregs, Descriptor::CODE_64);
    enter_long(&mut sregs, cr3);
    if run.breaks("no-lma") {
        sregs.efer &= !efer::LMA;
    }
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    machine.start_at(image.symbol("long")?)?;
    run::until_halt(run, &mut machine.vcpu)?;
    show_r15(run, &machine)
}
// ANCHOR_END: chapter

fn show_r15(run: &Run, machine: &Machine) -> Result<()> {
    let regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
    run.say(format_args!("R15 = {:#x}", regs.r15));
    Ok(())
}

/// What a broken variant takes out of the guest's code, before it runs.
fn break_the_climb(run: &Run, machine: &Machine, image: &Image) -> Result<()> {
    let variants = [("no-lme", "set_lme", 5), ("no-page", "map_page", 10)];
    for (variant, instruction, length) in variants {
        if run.breaks(variant) {
            machine.memory.write(image.symbol(instruction)?, &vec![NOP; length])?;
        }
    }
    Ok(())
}
