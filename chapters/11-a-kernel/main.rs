//! Chapter 11: a kernel. The guest is an ELF file with a boot protocol: it is loaded
//! where it says, told what there is, and from there on it is on its own. It makes
//! its own page tables, allocates memory, and runs a program in ring 3.
//!
//! ```text
//! guest-physical   0x006000  boot information, command line, page tables
//!                  0x100000  the kernel, then the program's file
//!                 0x1000000  the end of memory
//! ```

use std::process::ExitCode;

use anyhow::{Context, Result};
use vmexit::boot::info::{BACKTRACE_PORT, BootInfo, EXIT_PORT, RESET_COMMAND, RESET_PORT};
use vmexit::boot::{Boot, Executable, Start, backtrace};
use vmexit::chapter::{self, Break, Chapter, Flag, GuestFailed};
use vmexit::exit::Unexpected;
use vmexit::guest::Memory;
use vmexit::kvm::{Kvm, Probe, VcpuExit};
use vmexit::machine::Machine;
use vmexit::mode::{enter_long, enter_protected};
use vmexit::run::Run;
use vmexit::segment::Descriptor;

mod choice;
mod console;

use console::Console;

const CHAPTER: Chapter = Chapter {
    name: "ch11",
    title: "A kernel",
    needs: Probe::SystemCall,
    flags: &[
        Flag {
            name: "program",
            value: "NAME",
            what: "the program to run: one of the workbook's, or an ELF\nfile [default: hello]; none for no program",
        },
        Flag {
            name: "cmdline",
            value: "WORDS",
            what: "the kernel's command line; it knows test, panic,\noverflow and reboot",
        },
        Flag { name: "kernel", value: "FILE", what: "boot this kernel, an ELF file" },
    ],
    breaks: &[
        Break {
            name: "no-higher-half",
            what: "the tables that the kernel starts with map the first GiB once only",
            why: "the entry point is in the higher half, where no page is: the first fetch was a page fault, and \
                  the kernel had not yet loaded an IDT",
        },
        Break {
            name: "no-nx",
            what: "the kernel leaves bit 63 of its page-table entries clear, and tests itself",
            why: "a page without NX can be executed, whatever else its entry says: readable data is code",
        },
        Break {
            name: "old-protocol",
            what: "the boot information says version 0",
            why: "two programs that were built at different times meet here; without the number, the kernel would \
                  have taken some other field for its memory map",
        },
    ],
};

const MEMORY: usize = 16 << 20;
const COM1: u16 = 0x3f8;

fn main() -> ExitCode {
    chapter::main(&CHAPTER, kernel)
}

// ANCHOR: chapter
fn kernel(run: &Run) -> Result<()> {
    run.show_exits_if_asked();
    let kernel = choice::kernel(run)?;
    let program = choice::program(run)?;
    choice::name_addresses(run, &kernel, program.as_deref())?;
    let command_line = choice::command_line(run);
    let memory = Memory::new(MEMORY)?;
    let boot = Boot { kernel: &kernel, program: program.as_deref(), command_line: &command_line };
    let start = boot.load(&memory)?;
    break_it(run, &memory, start)?;

    // Without a program there is no system call, which not every KVM runs.
    let needs = if program.is_some() { CHAPTER.needs } else { Probe::Exception };
    let kvm = Kvm::open_for(run, needs)?;
    let mut machine = Machine::new(&kvm, memory)?;
    enter(&machine, start)?;
    serve(run, &mut machine, &kernel)
}

/// The state that the boot protocol promises.
fn enter(machine: &Machine, start: Start) -> Result<()> {
    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    enter_protected(&mut sregs, Descriptor::CODE_64);
    enter_long(&mut sregs, start.cr3);
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    machine.start_at(start.entry)?;
    let mut regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
    regs.rdi = start.info;
    machine.vcpu.set_regs(&regs).context("KVM_SET_REGS")
}
// ANCHOR_END: chapter

// ANCHOR: serve
/// Runs the kernel until it ends the machine.
fn serve(run: &Run, machine: &mut Machine, kernel: &Executable) -> Result<()> {
    let mut console = Console::new(run);
    let mut printed = 0;
    loop {
        match machine.vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(COM1, bytes) => {
                console.write(bytes);
                printed += 1;
            }
            VcpuExit::IoOut(BACKTRACE_PORT, _) => {
                run.say("how it came there, by the frames on its stack:");
                for line in backtrace(machine, kernel.names())? {
                    run.say(format_args!("  {line}"));
                }
            }
            VcpuExit::IoOut(EXIT_PORT, bytes) => {
                let code = bytes.iter().rev().fold(0u32, |code, byte| code << 8 | u32::from(*byte));
                console.finish();
                run.say(format_args!("the console took {printed} exits, one for each byte"));
                return match code {
                    0 => Ok(()),
                    code => Err(GuestFailed(format!("the kernel ended with exit code {code}")).into()),
                };
            }
            VcpuExit::IoOut(RESET_PORT, &[RESET_COMMAND]) => {
                console.finish();
                run.say("the kernel asked for a reset; this machine ends there, as Firecracker's does");
                return Ok(());
            }
            VcpuExit::Hlt => {
                let sentence = "the kernel halted, and there is no interrupt that could wake it";
                return Err(GuestFailed(sentence.to_owned()).into());
            }
            // Where no device is, a PC takes what is written and answers with all ones.
            VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..) => {}
            VcpuExit::IoIn(_, answer) | VcpuExit::MmioRead(_, answer) => answer.fill(0xff),
            exit => return Err(Unexpected::from(exit).into()),
        }
    }
}
// ANCHOR_END: serve

/// What a broken variant changes before the kernel runs.
fn break_it(run: &Run, memory: &Memory, start: Start) -> Result<()> {
    const LAST_ENTRY: u64 = 511 * 8;
    if run.breaks("no-higher-half") {
        memory.write(start.cr3 + LAST_ENTRY, &[0; 8])?;
    }
    if run.breaks("old-protocol") {
        let version = std::mem::offset_of!(BootInfo, version) as u64;
        memory.write(start.info + version, &0u32.to_le_bytes())?;
    }
    Ok(())
}
