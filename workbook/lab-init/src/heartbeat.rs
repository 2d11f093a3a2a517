//! A non-maskable interrupt four times a second, for the Intel machine.
//!
//! With "external-interrupt exiting", which KVM always sets, an interrupt ends
//! VMX non-root operation whatever the guest's RFLAGS.IF says (SDM Vol. 3C,
//! "Other Causes of VM Exits"). Bochs 2.7 forgets this at a VM entry into a
//! guest with IF = 0: it masks interrupts as IF asks and looks no further, so a
//! guest that spins there is never left again, nor is it ever killed. An NMI
//! gets through; KVM then takes in every interrupt that waited.
//!
//! ```text
//! HPET timer 0 --(legacy replacement: IRQ 0)--> I/O APIC pin 2 --NMI--> CPU 0
//! ```
//! Linux used this wire to boot and leaves it alone once the local APIC ticks.

use std::fs::{self, File};
use std::ptr;

use anyhow::{Context, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Where a PC has them.
const IO_APIC: u64 = 0xfec0_0000;
const HPET: u64 = 0xfed0_0000;

/// Each one's registers fit in a page.
const PAGE: usize = 4096;

/// I/O APIC registers (82093AA datasheet): which register, and its value.
const SELECT: usize = 0x00;
const WINDOW: usize = 0x10;

/// The redirection entry of pin 2 and its bits.
const PIN_2_LOW: u32 = 0x10 + 2 * 2;
const PIN_2_HIGH: u32 = PIN_2_LOW + 1;
const DELIVER_NMI: u32 = 0b100 << 8; // edge-triggered, not masked
const TO_CPU_0: u32 = 0;

/// HPET registers (IA-PC HPET specification) and bits of timer 0.
const PERIOD: usize = 0x004; // femtoseconds that the counter needs for 1
const CONFIGURATION: usize = 0x010;
const LEGACY_REPLACEMENT: u32 = 1 << 1;
const COUNTER: usize = 0x0f0;
const TIMER_0: usize = 0x100;
const COMPARATOR_0: usize = 0x108;
const INTERRUPTS: u32 = 1 << 2;
const PERIODIC: u32 = 1 << 3;
const SET_VALUE: u32 = 1 << 6;

/// Femtoseconds between two beats.
const BEAT: u64 = 250_000_000_000_000;

/// Starts the beat. The kernel must have been booted with `iomem=relaxed`.
pub fn start() -> Result<()> {
    // Linux would report each beat as an NMI for no reason, and the console
    // would never fall silent, which is how a hang is noticed. The price is
    // that a kernel panic ends the machine without its words.
    fs::write("/proc/sys/kernel/printk", "0").context("cannot silence the console")?;
    let hpet = Registers::map(HPET)?;
    let period = u64::from(hpet.read(PERIOD));
    ensure!(period != 0, "the machine has no HPET to beat with");
    ensure!(
        hpet.read(CONFIGURATION) & LEGACY_REPLACEMENT != 0,
        "Linux does not use the HPET in place of the PIT"
    );
    let ticks = u32::try_from(BEAT / period).context("the HPET is too fast")?;
    let io_apic = Registers::map(IO_APIC)?;
    for (register, value) in [(PIN_2_HIGH, TO_CPU_0), (PIN_2_LOW, DELIVER_NMI)] {
        io_apic.write(SELECT, register);
        io_apic.write(WINDOW, value);
    }
    hpet.write(TIMER_0, INTERRUPTS | PERIODIC | SET_VALUE);
    // First the time of the first beat, then the time between two.
    hpet.write(COMPARATOR_0, hpet.read(COUNTER).wrapping_add(ticks));
    hpet.write(COMPARATOR_0, ticks);
    Ok(())
}

/// A device's page of 32-bit registers.
struct Registers(*mut u8);

impl Registers {
    fn map(address: u64) -> Result<Self> {
        let memory =
            File::options().read(true).write(true).open("/dev/mem").context("cannot open /dev/mem")?;
        // SAFETY: a new mapping, placed by the kernel, takes nothing from Rust.
        // It is never unmapped, so it outlives every `Registers`.
        let page = unsafe {
            mmap(
                ptr::null_mut(),
                PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &memory,
                address,
            )
        }
        .with_context(|| format!("cannot map the registers at {address:#x}"))?;
        Ok(Self(page.cast()))
    }

    fn at(&self, offset: usize) -> *mut u32 {
        assert!(offset + 4 <= PAGE && offset.is_multiple_of(4));
        // SAFETY: `offset` lies inside the page that was mapped.
        unsafe { self.0.add(offset).cast() }
    }

    fn read(&self, offset: usize) -> u32 {
        // SAFETY: `at` gives an aligned address inside the mapped page.
        unsafe { ptr::read_volatile(self.at(offset)) }
    }

    fn write(&self, offset: usize, value: u32) {
        // SAFETY: as in `read`; and the device is nobody else's, see the top.
        unsafe { ptr::write_volatile(self.at(offset), value) }
    }
}
