//! Chapter 12: a serial port. The machine has a 16550 at a PC's first serial port, by
//! rust-vmm's vm-superio, and a bus that finds it. The guest sends a line by polling and
//! a line by interrupts, then reads what is typed. Every byte is counted in exits.
//!
//! ```text
//! guest-physical   0x01000     the guest, its GDT and IDT
//!                  0x10000     page tables: PML4, PDPT, PD
//!                  0x20000     the end of memory, and of the stack
//! ports            0x3f8..0x400  the 16550, at interrupt line 4
//! ```

mod console;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context, Result};
use vmexit::chapter::{self, BadInput, Break, Chapter, Flag};
use vmexit::device::Bus;
use vmexit::device::serial::{COM1, COM1_IRQ, Interrupt, SIZE, Serial};
use vmexit::exit::Unexpected;
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{EventFd, Kvm, Probe, VcpuExit};
use vmexit::machine::Machine;
use vmexit::mode::{enter_long, enter_protected};
use vmexit::paging;
use vmexit::run::{Run, terminal};
use vmexit::segment::Descriptor;

use console::Console;

const CHAPTER: Chapter = Chapter {
    name: "ch12",
    title: "A serial port",
    needs: Probe::Exception,
    flags: &[Flag {
        name: "type",
        value: "TEXT",
        what: "what is typed, and then Enter, in place of a terminal\n[default: hello, or the keys of a terminal]",
    }],
    breaks: &[
        Break {
            name: "no-irq",
            what: "the port's interrupt line is connected to nothing",
            why: "the port has a byte's room and says so in IIR, but nothing raises line 4; the guest sleeps until an \
                  interrupt that never comes",
        },
        Break {
            name: "no-eoi",
            what: "the handler does not tell the 8259A that it is done",
            why: "line 4 stays in service, and holds back its own next interrupt: one byte is sent, and no second one",
        },
        Break {
            name: "dlab",
            what: "the guest leaves DLAB set after it has set the speed",
            why: "with DLAB set, the ports of the data and of IER are the two bytes of the divisor: the polled line \
                  went there, and so did the permission to interrupt",
        },
    ],
};

const MEMORY: usize = 0x20000;
const TABLES: u64 = 0x10000;
/// The serial port's last port.
const LAST: u16 = COM1 + SIZE - 1;
/// The guest's own ports, and the last of its drivers.
const BEGIN: u16 = 0x10;
const DONE: u16 = 0x11;
const READING: u8 = 3;
/// So many exits of each driver are shown.
const SHOWN: u32 = 6;
/// The guest has room for so many typed bytes, and Enter.
const LONGEST: usize = 200;

fn main() -> ExitCode {
    chapter::main(&CHAPTER, serial_port)
}

// ANCHOR: chapter
fn serial_port(run: &Run) -> Result<()> {
    let text = typed(run)?;
    let image = Image::elf(vmexit::guest!())?;
    run.show(&image)?;
    let kvm = Kvm::open(run)?;
    let mut machine = Machine::with_irqchip(&kvm, Memory::new(MEMORY)?)?;
    enter(run, &machine, &image)?;

    let raised = Arc::new(AtomicU32::new(0));
    let interrupt = interrupt_line(run, &machine, Arc::clone(&raised))?;
    let console = Console::new(run);
    let port = Arc::new(Mutex::new(Serial::new(interrupt, console.clone())));
    let mut ports = Bus::default();
    ports.insert(COM1.into()..u64::from(COM1 + SIZE), Arc::clone(&port));

    let mut keyboard = None;
    let (mut driver, mut exits) = (0, 0);
    loop {
        match machine.vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(address @ COM1..=LAST, data) => {
                ports.write(address.into(), data);
                count(run, &mut exits);
            }
            VcpuExit::IoIn(address @ COM1..=LAST, data) => {
                ports.read(address.into(), data);
                count(run, &mut exits);
            }
            VcpuExit::IoOut(BEGIN, &[number]) => {
                (driver, exits) = (number, 0);
                raised.store(0, Ordering::Relaxed);
                run.say(format_args!("\n{}", name(driver)));
                run.show_exits_again();
                match &text {
                    Some(text) if driver == READING => lock(&port).send(text),
                    None if driver == READING => keyboard = Some(plug_in(run, &port, &console)?),
                    _ => {}
                }
            }
            VcpuExit::IoOut(DONE, &[bytes]) => {
                let each = f64::from(exits) / f64::from(bytes.max(1));
                run.say(format_args!(
                    "      {bytes} bytes sent, {exits} exits, {each:.2} a byte; line 4 raised {} times",
                    raised.load(Ordering::Relaxed)
                ));
                run.show_exits_if_asked();
                if driver == READING {
                    break;
                }
            }
            exit => return Err(Unexpected::from(exit).into()),
        }
    }
    drop(keyboard);
    let failed = lock(&port).take_error();
    failed.map_or(Ok(()), |error| Err(anyhow::Error::from(error).context("the serial port")))
}

/// After the first exits of a driver the others are only counted.
fn count(run: &Run, exits: &mut u32) {
    *exits += 1;
    if *exits == SHOWN {
        run.show_exits_if_asked();
    }
}
// ANCHOR_END: chapter

fn name(driver: u8) -> &'static str {
    match driver {
        1 => "polled: the first exits",
        2 => "by interrupts: the first exits",
        _ => "read by interrupts, and sent back",
    }
}

// ANCHOR: interrupt
/// The port's interrupt: an edge of line 4, through an eventfd.
fn interrupt_line(run: &Run, machine: &Machine, raised: Arc<AtomicU32>) -> Result<Interrupt> {
    let line = EventFd::new(0).context("an eventfd")?;
    if !run.breaks("no-irq") {
        machine.vm.register_irqfd(&line, COM1_IRQ).context("KVM_IRQFD")?;
    }
    Ok(Box::new(move || {
        raised.fetch_add(1, Ordering::Relaxed);
        line.write(1)
    }))
}
// ANCHOR_END: interrupt

// ANCHOR: keyboard
/// What is typed, and Enter; `None` where a person is going to type.
fn typed(run: &Run) -> Result<Option<Vec<u8>>> {
    let text = match run.options().values("type").last() {
        None if terminal::is_interactive() => return Ok(None),
        None => "hello",
        Some(text) => text,
    };
    if text.len() > LONGEST || text.contains(['\r', '\n']) {
        let given = match text.len() {
            0..=LONGEST => "the text has a line end in it".to_owned(),
            length => format!("the text has {length}"),
        };
        return Err(BadInput(format!("--type takes one line of at most {LONGEST} bytes; {given}")).into());
    }
    Ok(Some(format!("{text}\r").into_bytes()))
}

/// The reader's terminal is at the other end of the line from now on, until the value is dropped.
fn plug_in(run: &Run, port: &Arc<Mutex<Serial>>, console: &Console) -> Result<Keyboard> {
    run.set_default_deadline(None);
    run.show_exits_if_asked();
    run.say(format_args!("      {}", terminal::HELP));
    console.show_at_once()?;
    let raw = terminal::Raw::enter();
    terminal::type_keys(Arc::clone(port));
    Ok(Keyboard { _raw: raw, console: console.clone() })
}

struct Keyboard {
    _raw: Option<terminal::Raw>,
    console: Console,
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        self.console.finish();
    }
}
// ANCHOR_END: keyboard

fn lock(port: &Mutex<Serial>) -> MutexGuard<'_, Serial> {
    port.lock().expect("no thread panics while holding the port")
}

fn enter(run: &Run, machine: &Machine, image: &Image) -> Result<()> {
    machine.memory.load(image)?;
    if run.breaks("no-eoi") {
        machine.memory.write(image.symbol("eoi")?, &[0x90; 2])?; // in place of out PIC, al
    }
    if run.breaks("dlab") {
        machine.memory.write(image.symbol("form")?, &[0xb0, 0x83])?; // mov al, DLAB | EIGHT
    }
    let cr3 = paging::identity_map(&machine.memory, TABLES)?;
    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    enter_protected(&mut sregs, Descriptor::CODE_64);
    enter_long(&mut sregs, cr3);
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    machine.start_at(image.entry())?;
    let mut regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
    regs.rsp = MEMORY as u64;
    machine.vcpu.set_regs(&regs).context("KVM_SET_REGS")
}
