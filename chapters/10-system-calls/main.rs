//! Chapter 10: system calls. The guest is a kernel that runs programs in ring 3,
//! each an ELF file of its own; they ask it for service by `syscall`, and the
//! hypervisor sees nothing of that. It sees what the kernel tells it.
//!
//! ```text
//! guest-physical   0x001000  the kernel: code, GDT, IDT, TSS, page tables, stack
//!                  0x400000  the first program's frame of 2 MiB, the next one's at 0x600000, …
//! guest-virtual    0x000000  as guest-physical, ring 0 alone
//!                  0x400000  the frame of the program that runs, ring 3
//! ```

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use vmexit::abi;
use vmexit::chapter::{self, BadInput, Break, Chapter, Flag, GuestFailed};
use vmexit::exception::Exception;
use vmexit::exit::{Exit, Unexpected};
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{Kvm, Probe, VcpuExit, kvm_regs};
use vmexit::machine::Machine;
use vmexit::mode::{enter_long, enter_protected};
use vmexit::paging::{self, LARGE_PAGE};
use vmexit::run::Run;
use vmexit::segment::Descriptor;

const CHAPTER: Chapter = Chapter {
    name: "ch10",
    title: "System calls",
    needs: Probe::SystemCall,
    flags: &[Flag {
        name: "program",
        value: "NAME",
        what: "run this program, alone; more may be given: hello, errors,\npointer, halt, jump, count [default: all, in turn]",
    }],
    breaks: &[
        Break {
            name: "no-sce",
            what: "EFER.SCE stays clear",
            why: "without EFER.SCE there is no sysretq either: the kernel took #UD at its first way into ring 3",
        },
        Break {
            name: "no-swapgs",
            what: "the system call does not begin with swapgs",
            why: "GS still had the program's base, 0, so the kernel took what lies at address 8 for its stack, 0: \
                  the first push was a page fault, and so was the push of its frame, and there is no other stack",
        },
        Break {
            name: "no-task",
            what: "the task register is not loaded",
            why: "system calls worked, since syscall leaves RSP alone; the first exception in ring 3 took its stack \
                  from a TSS that nobody had written, 0, and could not be delivered, nor could the double fault",
        },
        Break {
            name: "supervisor",
            what: "the PML4's entry stays without its U/S bit",
            why: "a page belongs to ring 3 only if the entries of all levels have U/S set; here every program \
                  died at the fetch of its first instruction",
        },
    ],
};

// ANCHOR: programs
/// The programs, in the order in which they run.
const PROGRAMS: [(&str, &[u8]); 6] = [
    ("hello", vmexit::program!("hello")),
    ("errors", vmexit::program!("errors")),
    ("pointer", vmexit::program!("pointer")),
    ("halt", vmexit::program!("halt")),
    ("jump", vmexit::program!("jump")),
    ("count", vmexit::program!("count")),
];
// ANCHOR_END: programs

/// The first program's frame. Each has one of [`LARGE_PAGE`] bytes.
const FRAMES: u64 = abi::START;
const NOP: u8 = 0x90;
/// What the kernel's table has room for.
const MOST_PROGRAMS: usize = 16;

/// The kernel's ports, as in `guest.s`.
mod port {
    pub const STARTS: u16 = 0x10;
    pub const WRITES: u16 = 0x11;
    pub const EXITED: u16 = 0x12;
    pub const REFUSED: u16 = 0x13;
    pub const KILLED: u16 = 0x14;
    pub const PANIC: u16 = 0x15;
}

fn main() -> ExitCode {
    chapter::main(&CHAPTER, system_calls)
}

// ANCHOR: chapter
fn system_calls(run: &Run) -> Result<()> {
    let kernel = Image::elf(vmexit::guest!())?;
    let programs = chosen(run)?;
    match &programs[..] {
        [alone] => run.show(&kernel.beside(&alone.image))?,
        _ => run.show(&kernel)?,
    }
    let kvm = Kvm::open(run)?;

    let size = FRAMES + programs.len() as u64 * LARGE_PAGE;
    let mut machine = Machine::new(&kvm, Memory::new(size as usize)?)?;
    machine.load(&kernel)?;
    let cr3 = paging::identity_map(&machine.memory, kernel.symbol("pml4")?)?;
    for (number, program) in (0..).zip(&programs) {
        let frame = FRAMES + number * LARGE_PAGE;
        load(&machine.memory, frame, &program.image).with_context(|| program.name)?;
        let entry = [frame, program.image.entry()].map(u64::to_le_bytes).concat();
        machine.memory.write(kernel.symbol("programs")? + number * 16, &entry)?;
    }
    break_it(run, &machine, &kernel)?;

    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    enter_protected(&mut sregs, Descriptor::CODE_64);
    enter_long(&mut sregs, cr3);
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    serve(run, &mut machine, &kernel, &programs)
}
// ANCHOR_END: chapter

/// A program and its name.
struct Program {
    name: &'static str,
    image: Image,
}

/// The programs that were asked for, or all.
fn chosen(run: &Run) -> Result<Vec<Program>> {
    let all = || PROGRAMS.map(|(name, _)| name);
    let mut names: Vec<&str> = run.options().values("program").collect();
    if names.is_empty() {
        names.extend(all());
    }
    if names.len() > MOST_PROGRAMS {
        let sentence = format!(
            "{} programs are more than the {MOST_PROGRAMS} that the kernel has room for",
            names.len()
        );
        return Err(BadInput(sentence).into());
    }
    let program = |wanted: &str| {
        let known = PROGRAMS.iter().find(|(name, _)| *name == wanted);
        let (name, file) = known.ok_or_else(|| {
            BadInput(format!("there is no program {wanted:?}: it is one of {}", all().join(", ")))
        })?;
        Ok(Program { name, image: Image::elf(file)? })
    };
    names.into_iter().map(program).collect()
}

// ANCHOR: load
/// Loads a program that is linked at 4 MiB into its frame, wherever that is.
fn load(memory: &Memory, frame: u64, program: &Image) -> Result<()> {
    for segment in program.segments() {
        let offset = segment.address.checked_sub(abi::START);
        let fits = |offset: &u64| offset + segment.memory_size as u64 <= LARGE_PAGE;
        let Some(offset) = offset.filter(fits) else {
            let sentence = format!(
                "the program wants {:#x} bytes at {:#x}, and a program has {LARGE_PAGE:#x} at {:#x}",
                segment.memory_size,
                segment.address,
                abi::START
            );
            return Err(BadInput(sentence).into());
        };
        memory.write(frame + offset, &segment.bytes)?;
    }
    Ok(())
}
// ANCHOR_END: load

// ANCHOR: serve
/// Runs the kernel, and shows what it tells of its programs.
fn serve(run: &Run, machine: &mut Machine, kernel: &Image, programs: &[Program]) -> Result<()> {
    let (mut name, mut exits, mut ended) = ("", 0, 0);
    loop {
        exits += 1;
        let (port, value) = match machine.vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(port, &[value]) => (port, value),
            VcpuExit::Hlt => break,
            exit => return Err(Unexpected::from(exit).into()),
        };
        let regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
        let told = match port {
            port::STARTS => {
                let program = programs
                    .get(usize::from(value))
                    .context("the kernel starts a program that it has not")?;
                run.name_addresses(&kernel.beside(&program.image));
                name = program.name;
                "starts".to_owned()
            }
            port::WRITES => format!("writes {:?}", text(machine, regs.rsi, regs.rdx)?),
            port::EXITED => {
                ended += 1;
                format!("ends with code {value}")
            }
            port::REFUSED => format!(
                "is killed: it passed {} bytes at {:#x} to write, which are not all its own",
                regs.rdx, regs.rsi
            ),
            port::KILLED => format!("is killed: {}", exception(value, &regs)),
            port::PANIC => {
                let what = exception(value, &regs);
                return Err(GuestFailed(format!("the kernel itself took an exception: {what}")).into());
            }
            _ => return Err(Unexpected(Exit::IoOut { port, size: 1, data: vec![value] }).into()),
        };
        run.say(format_args!("      {name} {told}"));
    }
    let served = machine.vcpu.get_regs().context("KVM_GET_REGS")?.rax;
    run.say(format_args!("\n{served} system calls, {exits} exits"));
    ensure!(ended > 0, GuestFailed("no program came to its exit".to_owned()));
    Ok(())
}
// ANCHOR_END: serve

// ANCHOR: text
/// The bytes that a program wrote: its address, through the guest's tables.
fn text(machine: &Machine, address: u64, length: u64) -> Result<String> {
    let found = machine.vcpu.translate_gva(address).context("KVM_TRANSLATE")?;
    ensure!(
        found.valid == 1,
        GuestFailed(format!("the kernel passed on {address:#x}, which it has not mapped"))
    );
    let bytes = machine.memory.read(found.physical_address, length as usize)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
// ANCHOR_END: text

/// An exception as the kernel's handler has it in its registers.
fn exception(vector: u8, regs: &kvm_regs) -> String {
    let exception = Exception { vector, error_code: regs.rsi as u32, cr2: regs.rdi };
    format!("{exception}, at {:#x}", regs.rdx)
}

/// What a broken variant takes out of the kernel's code, before it runs.
fn break_it(run: &Run, machine: &Machine, kernel: &Image) -> Result<()> {
    let variants = [
        ("no-sce", "set_sce", 3),
        ("no-swapgs", "system_call", 3),
        ("no-task", "load_task", 3),
        ("supervisor", "open_to_ring_3", 8),
    ];
    for (variant, instruction, length) in variants {
        if run.breaks(variant) {
            machine.memory.write(kernel.symbol(instruction)?, &vec![NOP; length])?;
        }
    }
    Ok(())
}
