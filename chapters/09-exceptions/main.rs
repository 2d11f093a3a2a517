//! Chapter 09: exceptions. The guest has an IDT and takes one exception after the
//! other, as the hypervisor asks; none of them is a VM exit. The last one is a
//! triple fault, which is, and the run is played again to find out why.
//!
//! ```text
//! guest-physical   0x01000  the guest: code, GDT, IDT, TSS, two stacks
//!                  0x10000  page tables: PML4, PDPT, PD
//!                  0x13000  the end of memory
//! guest-virtual    the first GiB as guest-physical; nothing at 0x40000000
//! ```

mod replay;

use std::process::ExitCode;

use anyhow::{Context, Result};
use vmexit::chapter::{self, BadInput, Break, Chapter, Flag, GuestFailed};
use vmexit::exception::{Exception, vector};
use vmexit::exit::{Exit, Unexpected};
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{Kvm, Probe, VcpuExit, VcpuFd};
use vmexit::machine::Machine;
use vmexit::mode::{enter_long, enter_protected};
use vmexit::paging;
use vmexit::run::Run;
use vmexit::segment::Descriptor;

const CHAPTER: Chapter = Chapter {
    name: "ch09",
    title: "Exceptions",
    needs: Probe::Exception,
    flags: &[Flag {
        name: "provoke",
        value: "NAME",
        what: "provoke this exception; more may be given: divide, step,\nbreakpoint, opcode, protection, page, injected, double,\ntriple [default: all, in turn]",
    }],
    breaks: &[
        Break {
            name: "no-ist",
            what: "the gate of #DF names no stack of its own",
            why: "the frame of #DF went to the stack that had failed twice already",
        },
        Break {
            name: "no-gate",
            what: "the gate of #DF is not present",
            why: "#DF itself met a gate that is not present, and an exception while #DF is delivered is the third",
        },
        Break {
            name: "idt-limit",
            what: "IDTR's limit ends after #DF",
            why: "vector 13 lies past the limit of the IDT, so #GP could not be delivered, which is #GP again; two \
                  of these make #DF, and that has its gate and its stack",
        },
    ],
};

const MEMORY: usize = 0x13000;
const TABLES: u64 = 0x10000;

/// The guest's ports, as in `guest.s`.
const MENU: u16 = 0x20;
const CAUGHT: u16 = 0x21;
/// The answer to the menu that ends it.
const END: u8 = 0xff;

// ANCHOR: provocations
/// What can be provoked, in the order of the guest's menu, and the exception that the handler should
/// catch; a triple fault is caught by nobody.
const PROVOCATIONS: [(&str, Option<u8>); 9] = [
    ("divide", Some(vector::DE)),
    ("step", Some(vector::DB)),
    ("breakpoint", Some(vector::BP)),
    ("opcode", Some(vector::UD)),
    ("protection", Some(vector::GP)),
    ("page", Some(vector::PF)),
    ("injected", Some(vector::GP)),
    ("double", Some(vector::DF)),
    ("triple", None),
];
const INJECTED: usize = 6;
// ANCHOR_END: provocations

fn main() -> ExitCode {
    chapter::main(&CHAPTER, exceptions)
}

// ANCHOR: chapter
fn exceptions(run: &Run) -> Result<()> {
    let image = Image::elf(vmexit::guest!())?;
    let mut wanted = chosen(run)?.into_iter();
    run.show(&image)?;
    let kvm = Kvm::open(run)?;
    let mut machine = Machine::new(&kvm, Memory::new(MEMORY)?)?;
    machine.load(&image)?;
    break_it(run, &machine, &image)?;
    let cr3 = paging::identity_map(&machine.memory, TABLES)?;
    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    enter_protected(&mut sregs, Descriptor::CODE_64);
    enter_long(&mut sregs, cr3);
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;

    let mut asked = None;
    loop {
        match machine.vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoIn(MENU, answer) => {
                asked = wanted.next();
                answer.fill(asked.map_or(END, |number| number as u8));
                if asked == Some(INJECTED) {
                    inject(&machine.vcpu)?;
                }
            }
            VcpuExit::IoOut(CAUGHT, &[vector]) => caught(run, &machine, &image, asked, vector)?,
            VcpuExit::Hlt => return Ok(()),
            VcpuExit::Shutdown => {
                let (name, exception) = asked.map_or(("start", None), |number| PROVOCATIONS[number]);
                run.say(format_args!("      {name}: {}", replay::last_instruction(run, &image)?));
                let as_asked = asked.is_some() && exception.is_none();
                return if as_asked { Ok(()) } else { Err(Unexpected(Exit::Shutdown).into()) };
            }
            exit => return Err(Unexpected::from(exit).into()),
        }
    }
}
// ANCHOR_END: chapter

/// What was asked for by `--provoke`, or everything.
fn chosen(run: &Run) -> Result<Vec<usize>> {
    let names: Vec<&str> = run.options().values("provoke").collect();
    if names.is_empty() {
        return Ok((0..PROVOCATIONS.len()).collect());
    }
    let number = |name: &str| {
        let found = PROVOCATIONS.iter().position(|(known, _)| *known == name);
        let known = PROVOCATIONS.map(|(known, _)| known).join(", ");
        found.ok_or_else(|| BadInput(format!("{name:?} cannot be provoked: it is one of {known}")).into())
    };
    names.into_iter().map(number).collect()
}

// ANCHOR: inject
/// Lets the next entry deliver #GP, with an error code that no instruction makes.
fn inject(vcpu: &VcpuFd) -> Result<()> {
    let mut events = vcpu.get_vcpu_events().context("KVM_GET_VCPU_EVENTS")?;
    events.exception.injected = 1;
    events.exception.nr = vector::GP;
    events.exception.has_error_code = 1;
    events.exception.error_code = 0xabc0;
    vcpu.set_vcpu_events(&events).context("KVM_SET_VCPU_EVENTS")
}
// ANCHOR_END: inject

// ANCHOR: caught
/// Shows what the guest's handler has in its registers, and whether it is what was provoked.
fn caught(run: &Run, machine: &Machine, image: &Image, asked: Option<usize>, vector: u8) -> Result<()> {
    let regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
    let exception = Exception { vector, error_code: regs.rsi as u32, cr2: regs.rdi };
    let name = |address| match image.nearest(address) {
        Some((name, 0)) => name.to_owned(),
        Some((name, offset)) => format!("{name}+{offset:#x}"),
        None => format!("{address:#x}"),
    };
    // The saved RIP of #DF means nothing. Intel SDM Vol. 3A, "Interrupt 8—Double Fault Exception (#DF)".
    let rip = if vector == vector::DF { String::new() } else { format!(", RIP = {}", name(regs.rdx)) };
    let stack = image.nearest(regs.rsp).map_or("no stack", |(name, _)| name);
    let (provocation, provoked) = asked.map_or(("start", None), |number| PROVOCATIONS[number]);
    run.say(format_args!("      {provocation}: caught {exception}{rip}, on {stack}"));
    if provoked != Some(vector) {
        let provoked = provoked.map_or_else(|| "nothing".to_owned(), Exception::name);
        return Err(GuestFailed(format!("{provoked} was provoked, and the guest caught {exception}")).into());
    }
    Ok(())
}
// ANCHOR_END: caught

/// What a broken variant changes in the guest's tables, before it runs.
fn break_it(run: &Run, machine: &Machine, image: &Image) -> Result<()> {
    /// Of a gate: the byte of IST, and the one of P, DPL and type.
    const IST: u64 = 4;
    const ACCESS: u64 = 5;
    if run.breaks("no-ist") {
        machine.memory.write(image.symbol("double_fault_gate")? + IST, &[0])?;
    }
    if run.breaks("no-gate") {
        machine.memory.write(image.symbol("double_fault_gate")? + ACCESS, &[0x0e])?;
    }
    if run.breaks("idt-limit") {
        machine.memory.write(image.symbol("idtr")?, &(9u16 * 16 - 1).to_le_bytes())?;
    }
    Ok(())
}
