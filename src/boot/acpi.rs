//! ACPI tables: how a kernel that knows nothing of this machine finds its
//! interrupt controllers, and how to switch it off. Chapter 16.
//!
//! ```text
//! RSDP -> XSDT -+-> FADT -+-> DSDT: the package \_S5, "off"
//!               |         +-> FACS
//!               +-> MADT: the local APIC and the I/O APIC
//! ```
//!
//! ACPI Specification 6.5, chapter "ACPI Software Programming Model".

use crate::device::power;
use crate::guest::{Memory, MemoryError};

/// Where the tables are, in the hole that the memory map reserves: a kernel that
/// is not told looks for the RSDP there. "Finding the RSDP on IA-PC Systems".
pub const RSDP: u64 = 0xe_0000;
const XSDT: u64 = 0xe_0040;
const FACS: u64 = 0xe_0080;
const FADT: u64 = 0xe_0100;
const MADT: u64 = 0xe_0240;
const DSDT: u64 = 0xe_02c0;

/// Where every PC has its interrupt controllers, and KVM's irqchip too. Intel SDM
/// Vol. 3A, "Relocating the Local APIC Registers"; 82093AA datasheet.
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;

/// The interrupt by which a machine tells its kernel of power buttons: none here,
/// but the table has to name one.
const SCI: u8 = 9;

/// What `\_S5` holds: SLP_TYP, the number that the kernel writes to switch off.
pub const OFF: u8 = 5;

/// Writes the tables; their root pointer is at [`RSDP`].
///
/// # Errors
/// When the guest's memory ends below 1 MiB.
pub fn write_tables(memory: &Memory) -> Result<(), MemoryError> {
    memory.write(DSDT, &dsdt())?;
    memory.write(FACS, &facs())?;
    memory.write(FADT, &fadt())?;
    memory.write(MADT, &madt())?;
    memory.write(XSDT, &xsdt())?;
    memory.write(RSDP, &rsdp())
}

/// A table behind the header that all of them share. "System Description Table Header".
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    /// Bytes.
    const HEADER: usize = 36;
    const CHECKSUM: usize = 9;
    let mut table = Vec::with_capacity(HEADER + body.len());
    table.extend(signature);
    table.extend(((HEADER + body.len()) as u32).to_le_bytes());
    table.extend([revision, 0]);
    table.extend(*b"VMEXIT");
    table.extend(*b"WORKBOOK");
    table.extend(1u32.to_le_bytes());
    table.extend(*b"VMEX");
    table.extend(1u32.to_le_bytes());
    table.extend(body);
    table[CHECKSUM] = checksum(&table);
    table
}

/// What makes all bytes add up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

/// "Root System Description Pointer (RSDP)".
fn rsdp() -> Vec<u8> {
    let mut rsdp = Vec::new();
    rsdp.extend(*b"RSD PTR ");
    rsdp.extend([0]); // checksum of the first 20 bytes
    rsdp.extend(*b"VMEXIT");
    rsdp.extend([2]); // revision
    rsdp.extend(0u32.to_le_bytes()); // no RSDT, the table with 32-bit pointers
    rsdp[8] = checksum(&rsdp);
    rsdp.extend(36u32.to_le_bytes());
    rsdp.extend(XSDT.to_le_bytes());
    rsdp.extend([0; 4]); // checksum of all bytes, and three reserved ones
    rsdp[32] = checksum(&rsdp);
    rsdp
}

/// "Extended System Description Table (XSDT)".
fn xsdt() -> Vec<u8> {
    table(*b"XSDT", 1, &[FADT, MADT].map(u64::to_le_bytes).concat())
}

/// "Firmware ACPI Control Structure (FACS)": for sleep states that this machine has not.
fn facs() -> Vec<u8> {
    let mut facs = vec![0; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[4] = 64;
    facs[32] = 2; // version
    facs
}

/// "Fixed ACPI Description Table (FADT)".
fn fadt() -> Vec<u8> {
    const SIZE: usize = 276;
    const HEADER: usize = 36;
    let mut body = vec![0; SIZE - HEADER];
    let mut put =
        |at: usize, bytes: &[u8]| body[at - HEADER..at - HEADER + bytes.len()].copy_from_slice(bytes);
    put(36, &(FACS as u32).to_le_bytes());
    put(40, &(DSDT as u32).to_le_bytes());
    put(46, &u16::from(SCI).to_le_bytes());
    put(56, &u32::from(power::EVENT).to_le_bytes()); // PM1a_EVT_BLK
    put(64, &u32::from(power::CONTROL).to_le_bytes()); // PM1a_CNT_BLK
    put(88, &[power::EVENT_SIZE, power::CONTROL_SIZE]);
    // Longer than 100 us and 1000 us: there are no power states C2 and C3.
    put(96, &101u16.to_le_bytes());
    put(98, &1001u16.to_le_bytes());
    put(109, &boot_flags::LEGACY_DEVICES.to_le_bytes());
    put(112, &flags::ALL.to_le_bytes());
    put(116, &port(power::RESET, 1));
    put(128, &[power::RESET_VALUE]);
    put(140, &DSDT.to_le_bytes());
    put(148, &port(power::EVENT, power::EVENT_SIZE));
    put(172, &port(power::CONTROL, power::CONTROL_SIZE));
    table(*b"FACP", 6, &body)
}

/// "IA-PC Boot Architecture Flags": no bit for a keyboard controller (8042), so
/// that no kernel waits for one.
mod boot_flags {
    pub const LEGACY_DEVICES: u16 = 1 << 0; // devices on an ISA bus: the serial port
}

/// "Fixed ACPI Description Table Fixed Feature Flags".
#[rustfmt::skip] // laid out like the specification's table
mod flags {
    const WBINVD: u32          = 1 << 0;
    const PROC_C1: u32         = 1 << 2;  // every CPU can hlt
    const NO_PWR_BUTTON: u32   = 1 << 4;
    const NO_SLP_BUTTON: u32   = 1 << 5;
    const NO_FIX_RTC: u32      = 1 << 6;
    const RESET_REG_SUP: u32   = 1 << 10;
    pub const ALL: u32 =
        WBINVD | PROC_C1 | NO_PWR_BUTTON | NO_SLP_BUTTON | NO_FIX_RTC | RESET_REG_SUP;
}

/// An I/O port of so many bytes. "Generic Address Structure (GAS)".
fn port(port: u16, bytes: u8) -> [u8; 12] {
    const SYSTEM_IO: u8 = 1;
    let mut address = [0; 12];
    (address[0], address[1], address[3]) = (SYSTEM_IO, bytes * 8, bytes.min(2));
    address[4..6].copy_from_slice(&port.to_le_bytes());
    address
}

/// "Multiple APIC Description Table (MADT)".
fn madt() -> Vec<u8> {
    const PCAT_COMPAT: u32 = 1; // there is a pair of 8259s too
    const ENABLED: u32 = 1;
    let mut body = Vec::new();
    body.extend(LOCAL_APIC.to_le_bytes());
    body.extend(PCAT_COMPAT.to_le_bytes());
    // Processor Local APIC: type, length, processor, APIC ID, flags.
    body.extend([0, 8, 0, 0]);
    body.extend(ENABLED.to_le_bytes());
    // I/O APIC: type, length, ID, reserved, address, first interrupt.
    body.extend([1, 12, 0, 0]);
    body.extend(IO_APIC.to_le_bytes());
    body.extend(0u32.to_le_bytes());
    // Interrupt Source Override: the SCI is level-triggered and active high. All others of an ISA
    // bus keep their numbers, the timer's too: KVM's routes lead IRQ 0 to pin 0.
    const LEVEL_ACTIVE_HIGH: u16 = 0b1101;
    body.extend([2, 10, 0, SCI]);
    body.extend(u32::from(SCI).to_le_bytes());
    body.extend(LEVEL_ACTIVE_HIGH.to_le_bytes());
    // Local APIC NMI: type, length, all processors, flags, LINT1.
    body.extend([4, 6, 0xff, 0, 0, 1]);
    table(*b"APIC", 5, &body)
}

/// "Differentiated System Description Table (DSDT)", in AML, a byte code:
/// `Name (\_S5, Package () { 5, 5, 0, 0 })`. Chapter "ACPI Machine Language (AML) Specification".
fn dsdt() -> Vec<u8> {
    const NAME: u8 = 0x08;
    const PACKAGE: u8 = 0x12;
    const BYTE: u8 = 0x0a;
    let package = [BYTE, OFF, BYTE, OFF, 0, 0];
    let mut aml = vec![NAME];
    aml.extend(*b"_S5_");
    // The length counts itself and the number of elements.
    aml.extend([PACKAGE, package.len() as u8 + 2, 4]);
    aml.extend(package);
    table(*b"DSDT", 2, &aml)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(memory: &Memory, address: u64, bytes: usize) -> u64 {
        let bytes = memory.read(address, bytes).expect("inside");
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// The table at an address, whose signature and sum are checked as a kernel does.
    fn check(memory: &Memory, address: u64, signature: &[u8; 4]) -> u64 {
        assert_eq!(memory.read(address, 4).expect("inside"), signature);
        let length = number(memory, address + 4, 4);
        let bytes = memory.read(address, length as usize).expect("inside");
        assert_eq!(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "{signature:?}");
        address + length
    }

    #[test]
    fn a_kernel_that_follows_the_pointers_finds_every_table_whole() {
        let memory = Memory::new(1 << 20).expect("1 MiB");
        write_tables(&memory).expect("they fit");
        for length in [20, 36] {
            let bytes = memory.read(RSDP, length).expect("inside");
            assert_eq!(bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        }
        let xsdt = number(&memory, RSDP + 24, 8);
        let end = check(&memory, xsdt, b"XSDT");
        assert_eq!((end - xsdt - 36) / 8, 2);
        let (fadt, madt) = (number(&memory, xsdt + 36, 8), number(&memory, xsdt + 44, 8));
        let ends = [check(&memory, fadt, b"FACP"), check(&memory, madt, b"APIC")];
        let dsdt = number(&memory, fadt + 140, 8);
        assert_eq!(dsdt, number(&memory, fadt + 40, 4));
        check(&memory, dsdt, b"DSDT");
        assert_eq!(memory.read(number(&memory, fadt + 36, 4), 4).expect("inside"), b"FACS");
        assert!(ends[0] <= madt && ends[1] <= dsdt, "no table lies in another");
    }

    #[test]
    fn the_structures_of_the_madt_fill_it_exactly() {
        let madt = madt();
        let (mut at, mut kinds) = (44, vec![]);
        while at < madt.len() {
            kinds.push(madt[at]);
            at += usize::from(madt[at + 1]);
        }
        assert_eq!((at, kinds), (madt.len(), vec![0, 1, 2, 4]));
    }

    /// What `iasl` makes of `Name (\\_S5, Package () { 0x05, 0x05, 0x00, 0x00 })`.
    #[test]
    fn the_byte_code_says_how_to_switch_off() {
        let aml = [0x08, 0x5f, 0x53, 0x35, 0x5f, 0x12, 0x08, 0x04, 0x0a, 0x05, 0x0a, 0x05, 0x00, 0x00];
        assert_eq!(dsdt()[36..], aml);
    }

    #[test]
    fn a_guest_without_the_first_mebibyte_is_an_error() {
        assert!(write_tables(&Memory::new(0xe_0000).expect("896 KiB")).is_err());
    }
}
