//! Chapter 05: protected mode, reached twice. First the guest switches itself,
//! and KVM_GET_SREGS shows each step; then a second machine is put into the same
//! state from outside, with KVM_SET_SREGS.
//!
//! ```text
//! guest-physical   0x01000  the guest: code, GDT, GDTR's six bytes
//!                  0x20000  the top of its stack, and the end of memory
//! ```

use std::process::ExitCode;

use anyhow::{Context, Result};
use vmexit::chapter::{self, Break, Chapter};
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{Kvm, Probe, kvm_segment, kvm_sregs};
use vmexit::machine::Machine;
use vmexit::mode::enter_protected;
use vmexit::run::{self, Run};
use vmexit::segment::Descriptor;

const CHAPTER: Chapter = Chapter {
    name: "ch05",
    title: "Protected mode",
    needs: Probe::Protected,
    flags: &[],
    breaks: &[
        Break {
            name: "gdt-limit",
            what: "GDTR's limit ends after the null descriptor",
            why: "the far jump's selector 8 lies past GDTR's limit of 7: #GP, and with no interrupt gate to deliver \
                  it through, a double fault and then a triple fault",
        },
        Break {
            name: "not-present",
            what: "the code descriptor's P bit is clear",
            why: "the far jump finds a code descriptor that is not present: #NP, and with no interrupt gate to \
                  deliver it through, a double fault and then a triple fault",
        },
        Break {
            name: "read-only-stack",
            what: "the data descriptor is not writable",
            why: "`mov ss, ax` wants a writable data segment: #GP, and with no interrupt gate to deliver it \
                  through, a double fault and then a triple fault",
        },
    ],
};

const MEMORY: usize = 0x20000;

fn main() -> ExitCode {
    chapter::main(&CHAPTER, protected_mode)
}

// ANCHOR: chapter
fn protected_mode(run: &Run) -> Result<()> {
    let image = Image::elf(vmexit::guest!())?;
    run.show(&image)?;
    let kvm = Kvm::open(run)?;

    run.say("from inside: the guest switches itself");
    let mut machine = Machine::new(&kvm, Memory::new(MEMORY)?)?;
    machine.load(&image)?;
    break_descriptors(run, &machine, &image)?;
    run::until_halt(run, &mut machine.vcpu)?;
    let inside = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;

    run.say("\nfrom outside: KVM_SET_SREGS");
    let mut machine = Machine::new(&kvm, Memory::new(MEMORY)?)?;
    machine.load(&image)?;
    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    enter_protected(&mut sregs, Descriptor::CODE_32);
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    machine.start_at(image.symbol("flat")?)?;
    run::until_halt(run, &mut machine.vcpu)?;
    let outside = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;

    run.say("\nthe hidden parts of the segment registers, from inside and from outside");
    for (name, inside, outside) in side_by_side(&inside, &outside) {
        run.say(format_args!("{name}  {}", hidden_part(inside)));
        run.say(format_args!("    {}", hidden_part(outside)));
    }
    Ok(())
}
// ANCHOR_END: chapter

/// What a broken variant changes in the guest's descriptors, before it runs.
fn break_descriptors(run: &Run, machine: &Machine, image: &Image) -> Result<()> {
    /// Byte 5 of a descriptor: P, DPL, S and the type.
    const ACCESS: u64 = 5;
    if run.breaks("gdt-limit") {
        machine.memory.write(image.symbol("gdtr")?, &7u16.to_le_bytes())?;
    }
    if run.breaks("not-present") {
        machine.memory.write(image.symbol("code")? + ACCESS, &[0x1b])?;
    }
    if run.breaks("read-only-stack") {
        machine.memory.write(image.symbol("data")? + ACCESS, &[0x91])?;
    }
    Ok(())
}

fn side_by_side<'a>(
    inside: &'a kvm_sregs,
    outside: &'a kvm_sregs,
) -> [(&'static str, &'a kvm_segment, &'a kvm_segment); 3] {
    [("CS", &inside.cs, &outside.cs), ("DS", &inside.ds, &outside.ds), ("SS", &inside.ss, &outside.ss)]
}

fn hidden_part(s: &kvm_segment) -> String {
    format!(
        "selector {:#04x}  base {:#x}  limit {:#x}  type {:2}  S {}  DPL {}  P {}  D/B {}  L {}  G {}",
        s.selector, s.base, s.limit, s.type_, s.s, s.dpl, s.present, s.db, s.l, s.g
    )
}
