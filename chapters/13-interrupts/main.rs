//! Chapter 13: interrupts. First the machine has KVM's controllers and timer, and a
//! device that talks to the guest through two eventfds: ticks come, `hlt` waits, and
//! hardly anything exits. Then it has none, and the hypervisor delivers each tick
//! itself, when the guest can take it.
//!
//! ```text
//! guest-physical   0x01000     the guest, its GDT and IDT
//!                  0x10000     page tables: PML4, PDPT, PD, and the PD of the fourth GiB
//!                  0x20000     the end of memory, and of the stack
//!                  0xfee00000  the local APIC's registers, inside KVM
//! ```

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use vmexit::chapter::{self, Break, Chapter};
use vmexit::exit::Unexpected;
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{EventFd, IoEventAddress, Kvm, NoDatamatch, Probe, VcpuExit, VcpuFd};
use vmexit::machine::Machine;
use vmexit::mode::{enter_long, enter_protected};
use vmexit::paging::{self, LARGE_PAGE, PAGE, entry};
use vmexit::run::Run;
use vmexit::segment::Descriptor;

const CHAPTER: Chapter = Chapter {
    name: "ch13",
    title: "Interrupts",
    needs: Probe::Exception,
    flags: &[],
    breaks: &[
        Break {
            name: "no-eoi",
            what: "the tick's handler does not tell the 8259A that it is done",
            why: "line 0 is in service until its end is told, and holds back itself and every lower line: after one \
                  tick there is no other, and a hlt inside KVM waits for ever",
        },
        Break {
            name: "no-irqchip",
            what: "the machine gets no interrupt controllers",
            why: "KVM's 8259As answer ports 0x20 and 0x21 only where KVM_CREATE_IRQCHIP has made them; the guest's \
                  first word to them is an exit that nobody expects",
        },
        Break {
            name: "no-window",
            what: "the hypervisor injects at once, though the guest has interrupts off",
            why: "Intel's CPU does not enter a guest with an external interrupt to deliver and RFLAGS.IF clear; AMD's \
                  delivers it, into code that believed itself undisturbed",
        },
    ],
};

const MEMORY: usize = 0x20000;
const TABLES: u64 = 0x10000;
const LAPIC: u64 = 0xfee0_0000;
/// The guest's ports.
const COUNTED: u16 = 0x10;
const DOORBELL: u64 = 0x11;
const BUSY: u16 = 0x12;
const DONE: u16 = 0x13;
/// The device's interrupt line, and the vector of a tick that we inject.
const DEVICE_LINE: u32 = 4;
const HAND_TICK: u8 = 0x50;

fn main() -> ExitCode {
    chapter::main(&CHAPTER, interrupts)
}

// ANCHOR: chapter
fn interrupts(run: &Run) -> Result<()> {
    let image = Image::elf(vmexit::guest!())?;
    run.show(&image)?;
    let kvm = Kvm::open(run)?;

    run.say("with KVM's controllers and timer");
    let memory = Memory::new(MEMORY)?;
    let mut machine = if run.breaks("no-irqchip") {
        Machine::new(&kvm, memory)?
    } else {
        Machine::with_irqchip(&kvm, memory)?
    };
    enter(run, &machine, &image, image.entry())?;
    let device = if run.breaks("no-irqchip") { None } else { Some(Device::plug_in(&machine)?) };
    with_controllers(run, &mut machine.vcpu)?;
    let rings = device.map_or(Ok(0), Device::unplug)?;
    run.say(format_args!("      the device was rung {rings} times, and no exit told us"));

    run.say("\nwithout: the hypervisor is the controller");
    let mut machine = Machine::new(&kvm, Memory::new(MEMORY)?)?;
    enter(run, &machine, &image, image.symbol("by_hand")?)?;
    by_hand(run, &mut machine.vcpu)
}

/// Runs until the guest says that it is done. It halts many times, and no `hlt` exits.
fn with_controllers(run: &Run, vcpu: &mut VcpuFd) -> Result<()> {
    loop {
        match vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(COUNTED, &[count]) => run.say(format_args!("      {count} interrupts")),
            VcpuExit::IoOut(DONE, _) => return Ok(()),
            exit => return Err(Unexpected::from(exit).into()),
        }
    }
}
// ANCHOR_END: chapter

// ANCHOR: by_hand
/// Each `hlt` is an exit, and the answer is a tick. One tick comes while the guest has
/// interrupts off: it waits for the window.
fn by_hand(run: &Run, vcpu: &mut VcpuFd) -> Result<()> {
    loop {
        match vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(COUNTED, &[count]) => run.say(format_args!("      {count} interrupts")),
            VcpuExit::IoOut(BUSY, _) if run.breaks("no-window") => inject(vcpu, HAND_TICK)?,
            VcpuExit::IoOut(BUSY, _) => vcpu.get_kvm_run().request_interrupt_window = 1,
            VcpuExit::IrqWindowOpen => {
                vcpu.get_kvm_run().request_interrupt_window = 0;
                inject(vcpu, HAND_TICK)?;
            }
            VcpuExit::Hlt => match vcpu.get_kvm_run().if_flag {
                0 => return Ok(()),
                _ => inject(vcpu, HAND_TICK)?,
            },
            exit => return Err(Unexpected::from(exit).into()),
        }
    }
}

/// The next VM entry delivers this interrupt, whether the guest can take it or not.
fn inject(vcpu: &VcpuFd, vector: u8) -> Result<()> {
    let mut events = vcpu.get_vcpu_events().context("KVM_GET_VCPU_EVENTS")?;
    (events.interrupt.injected, events.interrupt.nr) = (1, vector);
    vcpu.set_vcpu_events(&events).context("KVM_SET_VCPU_EVENTS")
}
// ANCHOR_END: by_hand

// ANCHOR: device
/// A device on a thread of its own, as virtio's are: the doorbell wakes it, and its answer
/// is an interrupt. Neither passes through KVM_RUN.
struct Device {
    doorbell: EventFd,
    unplugged: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<u64>>,
}

impl Device {
    fn plug_in(machine: &Machine) -> Result<Self> {
        let (doorbell, line) =
            (EventFd::new(0).context("an eventfd")?, EventFd::new(0).context("an eventfd")?);
        let address = IoEventAddress::Pio(DOORBELL);
        machine.vm.register_ioevent(&doorbell, &address, NoDatamatch).context("KVM_IOEVENTFD")?;
        machine.vm.register_irqfd(&line, DEVICE_LINE).context("KVM_IRQFD")?;
        let unplugged = Arc::new(AtomicBool::new(false));
        let (rings, end) = (doorbell.try_clone().context("an eventfd")?, Arc::clone(&unplugged));
        let thread = thread::spawn(move || {
            let mut answered = 0;
            loop {
                let rung = rings.read()?;
                if end.load(Ordering::Acquire) {
                    return Ok(answered);
                }
                answered += rung;
                line.write(1)?;
            }
        });
        Ok(Self { doorbell, unplugged, thread })
    }

    /// Ends the thread; returns how often the device was rung.
    fn unplug(self) -> Result<u64> {
        self.unplugged.store(true, Ordering::Release);
        self.doorbell.write(1).context("an eventfd")?;
        let rings = self.thread.join().map_err(|_| anyhow!("the device's thread panicked"))?;
        rings.context("the device's eventfds")
    }
}
// ANCHOR_END: device

/// Long mode at `rip`, with the local APIC's page mapped, and uncached as devices are.
fn enter(run: &Run, machine: &Machine, image: &Image, rip: u64) -> Result<()> {
    machine.memory.load(image)?;
    if run.breaks("no-eoi") {
        machine.memory.write(image.symbol("eoi")?, &[0x90; 2])?; // in place of out PIC, al
    }
    let cr3 = paging::identity_map(&machine.memory, TABLES)?;
    let (pdpt, directory) = (TABLES + PAGE, TABLES + 3 * PAGE);
    let table = entry::PRESENT | entry::WRITABLE;
    let page = LAPIC | table | entry::LARGE | entry::CACHE_DISABLE;
    machine.memory.write(pdpt + (LAPIC >> 30) * 8, &(directory | table).to_le_bytes())?;
    machine.memory.write(directory + LAPIC / LARGE_PAGE % 512 * 8, &page.to_le_bytes())?;

    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    enter_protected(&mut sregs, Descriptor::CODE_64);
    enter_long(&mut sregs, cr3);
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    machine.start_at(rip)?;
    let mut regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
    regs.rsp = MEMORY as u64;
    machine.vcpu.set_regs(&regs).context("KVM_SET_REGS")
}
