//! Chapter 16: an unmodified Linux, from the distribution's package to a shell on
//! the serial port. The memory map is in `src/boot/linux.rs`.

mod exits;
mod kept;
mod variants;

use std::fs::File;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use vmexit::boot::acpi;
use vmexit::boot::linux::{self, Boot, Kernel, Start};
use vmexit::chapter::{self, BadInput, Chapter, Flag, GuestFailed};
use vmexit::device::serial::{self, Serial};
use vmexit::device::{Bus, Request, pc};
use vmexit::exit::Unexpected;
use vmexit::guest::Memory;
use vmexit::kvm::{EventFd, Kvm, Probe, VcpuExit};
use vmexit::machine::Machine;
use vmexit::mode::rflags;
use vmexit::run::screen::Screen;
use vmexit::run::{Run, terminal};

const CHAPTER: Chapter = Chapter {
    name: "ch16",
    title: "Linux",
    needs: Probe::X87,
    flags: &[
        Flag { name: "kernel", value: "FILE", what: "a bzImage, or an ELF vmlinux [default: the lab's]" },
        Flag {
            name: "initrd",
            value: "FILE",
            what: "an initramfs [default: a shell, beside the lab's kernel]",
        },
        Flag {
            name: "cmdline",
            value: "TEXT",
            what: "the kernel's command line\n[default: console=ttyS0 earlyprintk=serial panic=-1]",
        },
        Flag { name: "memory", value: "SIZE", what: "such as 512M or 1G [default: 256M]" },
        Flag {
            name: "exits",
            value: "FILE",
            what: "write there how many exits of which kind it took;\n- is stderr",
        },
    ],
    breaks: variants::ALL,
};

/// A guest that nobody watches has this long.
const PATIENCE: Duration = Duration::from_secs(600);
/// The kernel's words on COM1 from the first one on; after a panic it resets at once.
const COMMAND_LINE: &str = "console=ttyS0 earlyprintk=serial panic=-1";

fn main() -> ExitCode {
    chapter::main(&CHAPTER, boot_linux)
}

// ANCHOR: chapter
fn boot_linux(run: &Run) -> Result<()> {
    let interactive = terminal::is_interactive();
    run.show_exits_if_asked();
    run.set_default_deadline((!interactive).then_some(PATIENCE));
    if run.options().listing_only {
        return Err(
            BadInput("there is no listing: this guest is a kernel that others wrote".to_owned()).into()
        );
    }
    let asked = |flag| run.options().values(flag).last();
    let (kernel, initrd) = kept::files(asked("kernel"), asked("initrd"))?;
    let size = kept::memory_size(asked("memory").unwrap_or("256M"))?;

    let command_line = variants::command_line(run, asked("cmdline").unwrap_or(COMMAND_LINE));
    let memory = Memory::new(size)?;
    let mut kernel_file = open(&kernel)?;
    let mut initrd_file = initrd.as_deref().map(open).transpose()?;
    let boot = Boot {
        kernel: Kernel::read(&mut kernel_file).with_context(|| kernel.display().to_string())?,
        initrd: initrd_file.as_mut().map(|file| file as _),
        command_line: &command_line,
        acpi: acpi::RSDP,
    };
    let mut start = boot.load(&memory)?;
    acpi::write_tables(&memory)?;
    variants::apply(run, &memory, &mut start)?;

    let kvm = Kvm::open(run)?;
    let irqchip = !run.breaks("no-irqchip");
    let mut machine =
        if irqchip { Machine::with_irqchip(&kvm, memory)? } else { Machine::new(&kvm, memory)? };
    enter(&kvm, &machine, start)?;
    if irqchip {
        linux::set_lapic(&machine.vcpu)?;
    }

    let screen = Screen::default();
    let interrupt = if irqchip { serial_interrupt(&machine)? } else { Box::new(|| Ok(())) };
    let port = Arc::new(Mutex::new(Serial::new(interrupt, screen.clone())));
    let mut ports = pc::ports(Arc::clone(&port));

    let raw = terminal::Raw::enter();
    match raw {
        Some(_) => terminal::type_keys(Arc::clone(&port)),
        None => terminal::type_lines(Arc::clone(&port), screen.clone()),
    }
    let mut exits = exits::Exits::start();
    let ending = run_until_it_ends(&mut machine, &mut ports, &screen, &mut exits);
    drop(raw);
    if let Some(file) = asked("exits") {
        exits.write(file)?;
    }
    if let Some(error) = port.lock().expect("no thread panics while holding the port").take_error() {
        return Err(anyhow::Error::from(error).context("the serial port"));
    }
    ending
}
// ANCHOR_END: chapter

// ANCHOR: run
/// A kernel that switches the machine off, or resets it, ends as it should; one
/// that panics does not.
fn run_until_it_ends(
    machine: &mut Machine,
    ports: &mut Bus,
    screen: &Screen,
    exits: &mut exits::Exits,
) -> Result<()> {
    loop {
        let exit = machine.vcpu.run().context("KVM_RUN")?;
        exits.count(&exit);
        let request = match exit {
            VcpuExit::IoOut(port, data) => ports.write(port.into(), data),
            VcpuExit::IoIn(port, data) => {
                ports.read(port.into(), data);
                None
            }
            // No device of this machine is in memory; KVM's own never exit.
            VcpuExit::MmioWrite(..) => None,
            VcpuExit::MmioRead(_, data) => {
                data.fill(0xff);
                None
            }
            exit => return Err(Unexpected::from(exit).into()),
        };
        let ended = matches!(request, Some(Request::PowerOff | Request::Reset));
        if ended && screen.panicked() || screen.panic_ended() {
            return Err(GuestFailed("the kernel panicked: its last words are above".to_owned()).into());
        }
        if ended {
            return Ok(());
        }
    }
}
// ANCHOR_END: run

// ANCHOR: enter
/// The CPU at the kernel's 64-bit entry.
fn enter(kvm: &Kvm, machine: &Machine, start: Start) -> Result<()> {
    let vcpu = &machine.vcpu;
    linux::set_cpuid(kvm, vcpu)?;
    linux::set_msrs(vcpu)?;
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    linux::enter_kernel(&machine.memory, &mut sregs)?;
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let mut regs = vcpu.get_regs().context("KVM_GET_REGS")?;
    (regs.rip, regs.rsi, regs.rflags) = (start.rip, start.rsi, rflags::FIXED);
    vcpu.set_regs(&regs).context("KVM_SET_REGS")
}
// ANCHOR_END: enter

// ANCHOR: serial
/// COM1's interrupt is a write to an eventfd, and KVM makes an edge of IRQ 4 of each.
fn serial_interrupt(machine: &Machine) -> Result<serial::Interrupt> {
    let event = EventFd::new(0).context("eventfd")?;
    machine.vm.register_irqfd(&event, serial::COM1_IRQ).context("KVM_IRQFD")?;
    Ok(Box::new(move || event.write(1)))
}
// ANCHOR_END: serial

fn open(path: &std::path::Path) -> Result<File> {
    File::open(path).with_context(|| path.display().to_string())
}
