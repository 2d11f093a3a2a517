//! Chapter 07: rings. A kernel in ring 0 starts a program in ring 3, serves its
//! `int 0x80`, and stops it at an instruction that ring 3 may not execute. The
//! hypervisor asks at every exit which ring the guest is in.
//!
//! ```text
//! guest-physical   0x01000  the kernel's code            ring 0
//!                  0x02000  the program's code           ring 3
//!                  0x03000  GDT, TSS                     ring 0
//!                  0x04000  IDT, the kernel's stack      ring 0
//!                  0x07000  the program's stack          ring 3
//!                  0x10000  the page tables, which nobody has mapped
//! ```

use std::process::ExitCode;

use anyhow::{Context, Result};
use vmexit::chapter::{self, Break, Chapter, GuestFailed};
use vmexit::exit::Unexpected;
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{Kvm, Probe, VcpuExit, VcpuFd};
use vmexit::machine::Machine;
use vmexit::mode::{self, cr0, enter_protected};
use vmexit::paging::{Form, PAGE, Tables, describe_error_code, entry};
use vmexit::run::{POST, Run};
use vmexit::segment::{Descriptor, Gate, tss32};

const CHAPTER: Chapter = Chapter {
    name: "ch07",
    title: "Rings",
    needs: Probe::Paging32,
    flags: &[],
    breaks: &[
        Break {
            name: "supervisor-page",
            what: "the program reads the kernel's GDT",
            why: "the GDT's page has no U/S bit, so a read of it by ring 3 is #PF with error code 5: present, and by \
                  ring 3",
        },
        Break {
            name: "gate-dpl",
            what: "the gate of int 0x80 has DPL 0",
            why: "an `int` needs a gate whose DPL is no less than the CPL: #GP, with the gate's vector 0x80 and the bit \
                  that says IDT in its error code",
        },
        Break {
            name: "no-stack",
            what: "the TSS names no stack for ring 0",
            why: "`int 0x80` leads to ring 0, whose stack is SS0:ESP0 of the TSS, and SS0 is a null selector: #TS; any \
                  other exception of ring 3 would need the same stack, so a double fault and then a triple fault",
        },
        Break {
            name: "no-port",
            what: "the TSS's bitmap forbids port 0x80, too",
            why: "the program's IOPL is 0 and the port's bit in the bitmap is 1: `out` is #GP",
        },
    ],
};

const MEMORY: usize = 0x20000;
const TABLES: u64 = 0x10000;
/// Where the kernel reports: vector, error code and EIP, one after the other.
const REPORT: u16 = 0x81;

fn main() -> ExitCode {
    chapter::main(&CHAPTER, rings)
}

// ANCHOR: chapter
fn rings(run: &Run) -> Result<()> {
    let image = Image::elf(vmexit::guest!())?;
    run.show(&image)?;
    let kvm = Kvm::open(run)?;
    let mut machine = Machine::new(&kvm, Memory::new(MEMORY)?)?;
    machine.load(&image)?;
    let cr3 = map(&machine.memory, &image)?;
    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    enter_protected(&mut sregs, Descriptor::CODE_32);
    (sregs.cr3, sregs.cr0) = (cr3, sregs.cr0 | cr0::PG | cr0::WP);
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    break_the_rings(run, &machine, &image)?;

    let [vector, error_code, eip] = until_report(run, &mut machine.vcpu)?;
    let sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    let (name, offset) = image.nearest(eip.into()).unwrap_or(("?", 0));
    let place = if offset == 0 { name.to_owned() } else { format!("{name}+{offset:#x}") };
    let what = match vector {
        14 => format!("#PF, {}, at {:#x}", describe_error_code(error_code), sregs.cr2),
        _ => "#GP".to_owned(),
    };
    run.say(format_args!("the kernel reports: {what}; error code {error_code:#x}, EIP {eip:#x} <{place}>"));
    show_tables(run, &machine, &image)?;
    if vector == 13 && place == "forbidden" {
        return Ok(());
    }
    Err(GuestFailed(format!("the program was to be stopped at <forbidden>, and was at <{place}>")).into())
}
// ANCHOR_END: chapter

// ANCHOR: map
/// Maps the guest to itself, for ring 3 only its program and its stack.
fn map(memory: &Memory, image: &Image) -> Result<u64> {
    let mut tables = Tables::new(memory, Form::Bits32, TABLES)?;
    let page_of = |name| image.symbol(name).map(|address| address & !(PAGE - 1));
    let of_ring_3 = [page_of("user")?, page_of("user_stack")?];
    for page in (0..TABLES).step_by(PAGE as usize) {
        let user = if of_ring_3.contains(&page) { entry::USER } else { 0 };
        tables.map(page, page, entry::WRITABLE | user)?;
    }
    Ok(tables.cr3())
}
// ANCHOR_END: map

// ANCHOR: run
/// Runs the guest until its kernel has reported and halts.
fn until_report(run: &Run, vcpu: &mut VcpuFd) -> Result<[u32; 3]> {
    let mut report = Vec::new();
    loop {
        match vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(POST, &[_]) => {}
            VcpuExit::IoOut(REPORT, &[a, b, c, d]) => report.push(u32::from_le_bytes([a, b, c, d])),
            VcpuExit::Hlt => {
                let said = report.try_into();
                return said.map_err(|_| GuestFailed("the kernel halted without a report".to_owned()).into());
            }
            exit => return Err(Unexpected::from(exit).into()),
        }
        let sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
        let regs = vcpu.get_regs().context("KVM_GET_REGS")?;
        let (ring, cs, ss) = (mode::ring(&sregs), sregs.cs.selector, sregs.ss.selector);
        run.say(format_args!("      ring {ring}; CS {cs:#04x}, SS {ss:#04x}, ESP {:#x}", regs.rsp));
    }
}
// ANCHOR_END: run

// ANCHOR: show_tables
/// What the CPU went by: the gate of `int 0x80`, and the TSS that TR holds.
fn show_tables(run: &Run, machine: &Machine, image: &Image) -> Result<()> {
    let sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    let number = |address: u64, bytes: usize| -> Result<u64> {
        let bytes = machine.memory.read(address, bytes)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    let gate = Gate::from_32(number(sregs.idt.base + 0x80 * 8, 8)?);
    if let Some(Gate { selector, offset, dpl, .. }) = gate {
        let (name, _) = image.nearest(offset).unwrap_or(("?", 0));
        run.say(format_args!("gate 0x80: DPL {dpl}, {selector:04x}:{offset:04x} <{name}>"));
    }
    let (task, ss0) = (sregs.tr.base, number(sregs.tr.base + tss32::SS0, 2)?);
    let (esp0, map) = (number(task + tss32::ESP0, 4)?, task + number(task + tss32::IO_MAP, 2)?);
    let post = number(map + u64::from(POST) / 8, 1)? >> (POST % 8) & 1;
    run.say(format_args!(
        "TSS at {task:#x}: SS0:ESP0 = {ss0:04x}:{esp0:04x}, the bit of port {POST:#x} is {post}"
    ));
    Ok(())
}
// ANCHOR_END: show_tables

/// What a broken variant changes in the guest, before it runs.
fn break_the_rings(run: &Run, machine: &Machine, image: &Image) -> Result<()> {
    let write = |name: &str, offset: u64, bytes: &[u8]| -> Result<()> {
        Ok(machine.memory.write(image.symbol(name)? + offset, bytes)?)
    };
    if run.breaks("supervisor-page") {
        // `mov ecx, [address]`: two bytes, then the address.
        write("touch", 2, &(image.symbol("gdt")? as u32).to_le_bytes())?;
    }
    if run.breaks("gate-dpl") {
        // `mov dword ptr [gate + 4], value`: six bytes, then the value.
        write("set_gate", 6, &0x8e00u32.to_le_bytes())?;
    }
    if run.breaks("no-stack") {
        // ESP0, then SS0.
        write("tss", tss32::ESP0, &[0; 8])?;
    }
    if run.breaks("no-port") {
        write("post_bit", 0, &[0xff])?;
    }
    Ok(())
}
