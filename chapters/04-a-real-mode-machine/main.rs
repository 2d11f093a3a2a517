//! Chapter 04: a real-mode machine. The hypervisor is the BIOS: `int 0x10` leads
//! through the interrupt vector table to a stub whose `out` is a call to us. And
//! it is the timer: it interrupts the halted guest by hand, as a CPU would.
//!
//! ```text
//! guest-physical   0x000000  interrupt vector table: 256 far pointers
//!                  0x000600  BIOS stubs, segment 0060
//!                  0x001000  the guest
//!                  0x00a000  the top of its stack, SS:SP = 0900:1000
//!                  0x0a0000  the end of memory: 640 KiB
//!                  0x100500  what ffff:0510 means while A20 is on: nothing is there
//! ```

use std::process::ExitCode;

use anyhow::{Context, Result};
use vmexit::chapter::{self, Break, Chapter, GuestFailed};
use vmexit::exit::Unexpected;
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{Kvm, Probe, VcpuExit, kvm_segment};
use vmexit::machine::Machine;
use vmexit::mode::rflags;
use vmexit::run::Run;

const CHAPTER: Chapter = Chapter {
    name: "ch04",
    title: "A real-mode machine",
    needs: Probe::Real,
    flags: &[],
    breaks: &[
        Break {
            name: "no-bios",
            what: "vector 0x10 points to where a PC's BIOS is",
            why: "`int 0x10` jumped to f000:f065, the address that programs of the 1980s knew by heart; a PC has \
                  its ROM there, and this machine no memory, so no instruction can be fetched",
        },
        Break {
            name: "no-sti",
            what: "a nop stands in place of sti",
            why: "with RFLAGS.IF clear a CPU takes no interrupt, and an interrupt is all that ends a hlt",
        },
    ],
};

const MEMORY: usize = 640 << 10;
const STACK: (u16, u64) = (0x0900, 0x1000);
const STUBS: u16 = 0x0060;
const SCREEN: u8 = 0x10;
const KEYBOARD: u8 = 0x16;
const TIMER: u8 = 8;
const KEY: u8 = b'x';

fn main() -> ExitCode {
    chapter::main(&CHAPTER, real_mode_machine)
}

// ANCHOR: chapter
fn real_mode_machine(run: &Run) -> Result<()> {
    let image = Image::elf(vmexit::guest!())?;
    run.show(&image)?;
    let kvm = Kvm::open(run)?;
    let mut machine = Machine::new(&kvm, Memory::new(MEMORY)?)?;
    machine.load(&image)?;
    install_bios(&machine.memory)?;
    break_it(run, &machine, &image)?;

    // `mov ss, …` and `mov sp, …`, from outside.
    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    load(&mut sregs.ss, STACK.0);
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let mut regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
    regs.rsp = STACK.1;
    machine.vcpu.set_regs(&regs).context("KVM_SET_REGS")?;

    let mut screen = Vec::new();
    loop {
        match machine.vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(port, _) if port == u16::from(SCREEN) => screen.push(teletype(&machine)?),
            VcpuExit::IoOut(port, _) if port == u16::from(KEYBOARD) => read_key(&machine)?,
            // With A20 off, address line 20 is always 0, and ffff:0510 is 0000:0500 again.
            VcpuExit::MmioRead(address, data) => {
                data.copy_from_slice(&machine.memory.read(address & !(1 << 20), data.len())?);
            }
            VcpuExit::Hlt => {
                let regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
                if regs.rflags & rflags::IF == 0 {
                    break;
                }
                interrupt(&machine, TIMER)?;
            }
            exit => return Err(Unexpected::from(exit).into()),
        }
    }

    let sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    run.say("\nthe hidden base of each segment register: its selector × 16");
    for (name, segment) in [("CS", sregs.cs), ("DS", sregs.ds), ("ES", sregs.es), ("SS", sregs.ss)] {
        run.say(format_args!("{name}  selector {:#06x}  base {:#07x}", segment.selector, segment.base));
    }
    run.say(format_args!("\nthe screen shows {:?}", String::from_utf8_lossy(&screen)));
    let ticks = machine.memory.read(image.symbol("ticks")?, 1)?[0];
    if ticks < 3 {
        return Err(
            GuestFailed(format!("the guest halted with interrupts off after {ticks} ticks of 3")).into()
        );
    }
    Ok(())
}
// ANCHOR_END: chapter

// ANCHOR: bios
/// A stub for each service, `out VECTOR, al; iret`, and its far pointer in the
/// vector table: the port says which service was called, the registers say what for.
fn install_bios(memory: &Memory) -> Result<()> {
    for vector in [SCREEN, KEYBOARD] {
        let offset = u16::from(vector) * 4;
        memory.write(linear(STUBS, offset), &[0xe6, vector, 0xcf])?;
        set_vector(memory, vector, STUBS, offset)?;
    }
    Ok(())
}

/// int 0x10, AH = 0x0e: the character in AL.
fn teletype(machine: &Machine) -> Result<u8> {
    Ok(machine.vcpu.get_regs().context("KVM_GET_REGS")?.rax as u8)
}

/// int 0x16, AH = 0: the key that was pressed, in AL.
fn read_key(machine: &Machine) -> Result<()> {
    let mut regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
    regs.rax = regs.rax & !0xff | u64::from(KEY);
    machine.vcpu.set_regs(&regs).context("KVM_SET_REGS")
}
// ANCHOR_END: bios

// ANCHOR: interrupt
/// What the CPU does for an interrupt in real mode, by hand: pushes FLAGS, CS and
/// IP, turns interrupts off, and goes where the vector points. Intel SDM Vol. 3B,
/// "8086 Emulation", section "Interrupt and Exception Handling".
fn interrupt(machine: &Machine, vector: u8) -> Result<()> {
    let mut regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    for word in [regs.rflags as u16, sregs.cs.selector, regs.rip as u16] {
        let sp = (regs.rsp as u16).wrapping_sub(2);
        regs.rsp = regs.rsp & !0xffff | u64::from(sp);
        machine.memory.write(sregs.ss.base + u64::from(sp), &word.to_le_bytes())?;
    }
    regs.rflags &= !(rflags::IF | rflags::TF);
    let pointer = machine.memory.read(u64::from(vector) * 4, 4)?;
    regs.rip = u64::from(u16::from_le_bytes([pointer[0], pointer[1]]));
    load(&mut sregs.cs, u16::from_le_bytes([pointer[2], pointer[3]]));
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    machine.vcpu.set_regs(&regs).context("KVM_SET_REGS")
}
// ANCHOR_END: interrupt

/// What loading a segment register does in real mode: the base follows the selector.
fn load(segment: &mut kvm_segment, selector: u16) {
    (segment.selector, segment.base) = (selector, linear(selector, 0));
}

fn linear(segment: u16, offset: u16) -> u64 {
    (u64::from(segment) << 4) + u64::from(offset)
}

fn set_vector(memory: &Memory, vector: u8, segment: u16, offset: u16) -> Result<()> {
    let pointer = [offset.to_le_bytes(), segment.to_le_bytes()].concat();
    Ok(memory.write(u64::from(vector) * 4, &pointer)?)
}

/// What a broken variant changes before the guest runs.
fn break_it(run: &Run, machine: &Machine, image: &Image) -> Result<()> {
    if run.breaks("no-bios") {
        set_vector(&machine.memory, SCREEN, 0xf000, 0xf065)?;
    }
    if run.breaks("no-sti") {
        machine.memory.write(image.symbol("interrupts_on")?, &[0x90])?;
    }
    Ok(())
}
