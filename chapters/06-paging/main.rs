//! Chapter 06: paging. The guest builds its own page tables and reaches a page by
//! two addresses; the hypervisor walks the same tables and says where each address
//! leads, from guest-virtual to guest-physical to the host's memory.
//!
//! ```text
//! guest-virtual             guest-physical       host
//! 0x000000 .. 0x010000  ->  0x00000 .. 0x10000   slot 0: the guest, its tables, its page
//! 0x403000              ->  0x05000 (`page`)     slot 0
//! 0x404000              ->  0x200000             no slot: a hole
//! 0x405000              ->  not present
//! ```

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use vmexit::chapter::{self, BadInput, Break, Chapter, Flag};
use vmexit::exit::Unexpected;
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{Kvm, Probe, VcpuExit, VcpuFd};
use vmexit::machine::Machine;
use vmexit::mode::{self, enter_protected};
use vmexit::paging::Access;
use vmexit::run::{POST, Run};
use vmexit::segment::Descriptor;

const CHAPTER: Chapter = Chapter {
    name: "ch06",
    title: "Paging",
    needs: Probe::Paging32,
    flags: &[Flag {
        name: "walk",
        value: "ADDRESS",
        what: "walk the guest's tables for this address of the guest, too; with\n,host behind it, say where it is in this process",
    }],
    breaks: &[
        Break {
            name: "no-identity",
            what: "the directory's entry 0 stays zero",
            why: "paging went on, and the next instruction could not be fetched: entry 0 of the page directory is not \
                  present, #PF; no gate can be read through these tables either, so a triple fault",
        },
        Break {
            name: "read-only",
            what: "the remapped page's entry lacks R/W",
            why: "CR0.WP binds ring 0 to the R/W bit: the write to a page without it is #PF with error code 3, and \
                  with no interrupt gate to deliver it through, a double fault and then a triple fault",
        },
        Break {
            name: "lost-directory",
            what: "CR3 points past the end of the memory",
            why: "the page directory is where no slot is: what is read there is no present entry, #PF at the next \
                  fetch; and no gate can be found through such tables either",
        },
    ],
};

const MEMORY: usize = 0x10000;
/// What the hypervisor answers for the device that the guest believes in.
const ANSWER: u8 = 0xca;
const ADDRESSES: [(&str, u64); 4] =
    [("identity", 0x5000), ("remapped", 0x40_3000), ("a hole", 0x40_4000), ("absent", 0x40_5000)];

fn main() -> ExitCode {
    chapter::main(&CHAPTER, paging)
}

// ANCHOR: chapter
fn paging(run: &Run) -> Result<()> {
    let asked = run.options().values("walk").map(parse_walk).collect::<Result<Vec<_>>>()?;
    let image = Image::elf(vmexit::guest!())?;
    run.show(&image)?;
    let kvm = Kvm::open(run)?;
    let mut machine = Machine::new(&kvm, Memory::new(MEMORY)?)?;
    machine.load(&image)?;
    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    enter_protected(&mut sregs, Descriptor::CODE_32);
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    break_the_tables(run, &machine, &image)?;

    until_halt(run, &mut machine.vcpu)?;
    let regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
    run.say(format_args!("EBX = {:#x}, ECX = {:#x}, EDX = {:#x}", regs.rbx, regs.rcx, regs.rdx));

    for (name, address) in ADDRESSES {
        run.say(format_args!("\n{name}:"));
        show_walk(run, &machine, address, false)?;
    }
    for (address, with_host) in asked {
        run.say(format_args!("\n--walk {address:#x}:"));
        show_walk(run, &machine, address, with_host)?;
    }

    run.say("\nand the guest touches the absent page:");
    match machine.vcpu.run().context("KVM_RUN")? {
        VcpuExit::Shutdown => Ok(()),
        exit => Err(Unexpected::from(exit).into()),
    }
}
// ANCHOR_END: chapter

// ANCHOR: run
/// Runs the guest until it halts, and plays the device at the hole.
fn until_halt(run: &Run, vcpu: &mut VcpuFd) -> Result<()> {
    loop {
        match vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(POST, &[code]) => {
                let sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
                run.say(format_args!("      {code}: {}", mode::describe(&sregs)));
            }
            VcpuExit::MmioRead(_, data) => data.fill(ANSWER),
            VcpuExit::Hlt => return Ok(()),
            exit => return Err(Unexpected::from(exit).into()),
        }
    }
}
// ANCHOR_END: run

// ANCHOR: show_walk
/// Prints a walk from guest-virtual to host, and holds it against `KVM_TRANSLATE`.
fn show_walk(run: &Run, machine: &Machine, address: u64, with_host: bool) -> Result<()> {
    let walk = machine.walk(address, Access::READ)?;
    run.say(&walk);
    let found = walk.outcome.as_ref().ok().map(|mapping| mapping.physical);
    if let Some(physical) = found {
        run.say(format_args!("  {}", host(machine, physical, with_host)));
    }
    let kvm = machine.vcpu.translate_gva(address).context("KVM_TRANSLATE")?;
    let kvm = (kvm.valid != 0).then_some(kvm.physical_address);
    ensure!(kvm == found, "KVM_TRANSLATE says {kvm:x?}, and the walk found {found:x?}");
    run.say("  KVM_TRANSLATE says the same");
    Ok(())
}

/// Where the host has a guest-physical address: the last step, by the memory slots.
fn host(machine: &Machine, physical: u64, with_host: bool) -> String {
    if physical >= machine.memory.size() as u64 {
        return "host: in no slot; an access exits to the hypervisor".to_owned();
    }
    match with_host {
        true => format!("host: slot 0 + {physical:#x} = {:#x}", machine.memory.host_address() + physical),
        false => format!("host: slot 0 + {physical:#x}"),
    }
}
// ANCHOR_END: show_walk

/// `0x403000`, or `0x403000,host`.
fn parse_walk(text: &str) -> Result<(u64, bool)> {
    let (number, with_host) = text.strip_suffix(",host").map_or((text, false), |number| (number, true));
    let address = match number.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => number.parse().ok(),
    };
    let address = address.filter(|address| *address <= 0xffff_ffff);
    let complain =
        || BadInput(format!("--walk takes an address of 32 bits, such as 0x403000, and {text:?} is none"));
    Ok((address.ok_or_else(complain)?, with_host))
}

/// What a broken variant changes in the guest's code, before it runs.
fn break_the_tables(run: &Run, machine: &Machine, image: &Image) -> Result<()> {
    /// A `mov dword ptr [address], value` of ten bytes, whose value is the last four.
    const VALUE: u64 = 6;
    if run.breaks("no-identity") {
        machine.memory.write(image.symbol("map_low")? + VALUE, &[0; 4])?;
    }
    if run.breaks("read-only") {
        let entry = image.symbol("page")? as u32 | 1;
        machine.memory.write(image.symbol("map_page")? + VALUE, &entry.to_le_bytes())?;
    }
    if run.breaks("lost-directory") {
        // `mov eax, value` of five bytes.
        machine.memory.write(image.symbol("load_cr3")? + 1, &(MEMORY as u32).to_le_bytes())?;
    }
    Ok(())
}
