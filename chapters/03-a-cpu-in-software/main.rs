//! Chapter 03: a CPU in software. `cpu.rs` runs the guest of chapter 01 and a
//! compute loop, one Rust step an instruction; then the library's machine runs
//! them, and comes back for the same reasons.
//!
//! ```text
//! guest-physical   0x1000  the guest, in either machine
//!                  0x2000  the end of memory
//! ```

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use vmexit::chapter::{self, Break, Chapter, GuestFailed};
use vmexit::exit::Unexpected;
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{Kvm, Probe, VcpuExit};
use vmexit::machine::Machine;
use vmexit::run::Run;

mod cpu;

use cpu::{Cpu, Exit};

const CHAPTER: Chapter = Chapter {
    name: "ch03",
    title: "A CPU in software",
    needs: Probe::Real,
    flags: &[],
    breaks: &[
        Break {
            name: "unknown",
            what: "the loop subtracts instead of adding",
            why: "our CPU knows the instructions that we taught it, and sub is none of them; a real one has hundreds, \
                  each with its flags and its faults",
        },
        Break {
            name: "endless",
            what: "the loop jumps whatever the zero flag says",
            why: "an interpreter can count, so it needs no timer to notice a guest that never comes back",
        },
    ],
};

const LOAD_ADDRESS: u64 = 0x1000;
const MEMORY: usize = 0x2000;
/// Far more instructions than either guest has.
const LIMIT: u64 = 1_000_000;

/// Chapter 01's guest.
const SIXTEEN_BYTES: [u8; 16] =
    [0xb0, 0x02, 0xb3, 0x03, 0x00, 0xd8, 0x04, b'0', 0xba, 0xf8, 0x03, 0xee, 0xb0, b'\n', 0xee, 0xf4];

fn main() -> ExitCode {
    chapter::main(&CHAPTER, in_software)
}

// ANCHOR: chapter
fn in_software(run: &Run) -> Result<()> {
    let compute_loop = Image::elf(vmexit::guest!())?;
    run.show(&compute_loop)?;
    let kvm = Kvm::open(run)?;
    let guests =
        [("sixteen bytes", Image::flat(LOAD_ADDRESS, &SIXTEEN_BYTES)), ("a compute loop", compute_loop)];
    for (name, image) in guests {
        run.name_addresses(&image);
        let memory = Memory::new(MEMORY)?;
        memory.load(&image)?;
        break_it(run, &memory, &image)?;

        run.say(format_args!("{name}, interpreted"));
        let interpreted = interpret(run, &memory.read(0, MEMORY)?, image.entry() as u16)?;

        run.say(format_args!("\n{name}, on the library's machine"));
        let mut machine = Machine::new(&kvm, memory)?;
        machine.start_at(image.entry())?;
        let on_machine = execute(&mut machine)?;
        ensure!(interpreted == on_machine, "the two CPUs differ: AX = {interpreted:#x} and {on_machine:#x}");
        run.say(format_args!("      AX = {on_machine:#x}: the same\n"));
    }
    Ok(())
}

/// The guest on our own CPU; returns AX.
fn interpret(run: &Run, memory: &[u8], entry: u16) -> Result<u16> {
    let mut cpu = Cpu { ip: entry, ..Cpu::default() };
    loop {
        let exit = cpu.run(memory, LIMIT);
        run.say(format_args!("      {exit:x?}"));
        match exit {
            Exit::IoOut(..) => {}
            Exit::Hlt => {
                run.say(format_args!("      {} instructions, AX = {:#x}", cpu.executed, cpu.registers[0]));
                return Ok(cpu.registers[0]);
            }
            Exit::InternalError(reason) => return Err(GuestFailed(reason).into()),
        }
    }
}

/// The guest on the machine that `Kvm::open` chose; returns AX.
fn execute(machine: &mut Machine) -> Result<u16> {
    loop {
        match machine.vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(..) => {}
            VcpuExit::Hlt => return Ok(machine.vcpu.get_regs().context("KVM_GET_REGS")?.rax as u16),
            exit => return Err(Unexpected::from(exit).into()),
        }
    }
}
// ANCHOR_END: chapter

/// What a broken variant changes in the compute loop before it runs.
fn break_it(run: &Run, memory: &Memory, image: &Image) -> Result<()> {
    let Ok(add) = image.symbol("next") else { return Ok(()) };
    if run.breaks("unknown") {
        memory.write(add, &[0x29])?; // sub ax, cx
    }
    if run.breaks("endless") {
        memory.write(image.symbol("again")?, &[0xeb])?; // jmp next
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(code: &[u8]) -> (Cpu, Exit) {
        let mut cpu = Cpu::default();
        let exit = cpu.run(code, 100);
        (cpu, exit)
    }

    #[test]
    fn half_registers_are_halves_of_their_register() {
        // mov ax, 0x1234; mov ah, 0x56; mov al, 0x78; hlt
        let (cpu, exit) = run(&[0xb8, 0x34, 0x12, 0xb4, 0x56, 0xb0, 0x78, 0xf4]);
        assert_eq!((cpu.registers[0], exit), (0x5678, Exit::Hlt));
    }

    #[test]
    fn a_sum_that_does_not_fit_carries_and_a_sum_of_zero_is_zero() {
        // mov al, 0xff; add al, 1; hlt
        let (cpu, _) = run(&[0xb0, 0xff, 0x04, 0x01, 0xf4]);
        assert_eq!((cpu.registers[0], cpu.carry, cpu.zero), (0, true, true));
        // mov ax, 0xff; add ax, 1; hlt
        let (cpu, _) = run(&[0xb8, 0xff, 0x00, 0x83, 0xc0, 0x01, 0xf4]);
        assert_eq!((cpu.registers[0], cpu.carry, cpu.zero), (0x100, false, false));
    }

    #[test]
    fn code_that_is_none_and_code_past_the_end_come_back_in_words() {
        assert!(matches!(run(&[0x0f, 0x0b]).1, Exit::InternalError(reason) if reason.contains("ud2")));
        assert!(matches!(run(&[]).1, Exit::InternalError(_)));
        assert!(matches!(run(&[0xeb, 0xfe]).1, Exit::InternalError(_)));
    }
}
