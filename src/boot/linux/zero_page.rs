//! The page that a Linux kernel finds in RSI when it starts: `struct boot_params`,
//! called the zero page because a boot loader has to zero it first.
//!
//! Linux, Documentation/arch/x86/zero-page.rst.

use super::header::{self, SetupHeader, offset};

/// Its size in bytes.
pub const SIZE: usize = 4096;

/// Where the fields are that are not the setup header's.
#[rustfmt::skip] // laid out like the kernel's table
mod at {
    pub const ACPI_RSDP_ADDR: usize = 0x070; // u64
    pub const E820_ENTRIES: usize   = 0x1e8; // u8
}

/// The memory map: entries of 20 bytes, each a start, a size and a kind.
pub const E820_TABLE: usize = 0x2d0;

/// The most entries that the table holds.
const MOST_RANGES: usize = 128;

/// What a range of guest-physical addresses is. The numbers are those of the BIOS
/// call that the map is named after: INT 15h with AX = E820h. ACPI Specification,
/// "INT 15H, E820H - Query System Address Map".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// Memory for the kernel to use.
    Ram = 1,
    /// Not for the kernel.
    Reserved = 2,
}

/// A range of the memory map, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    pub start: u64,
    pub size: u64,
    pub kind: RangeKind,
}

/// What the loader tells the kernel.
#[derive(Clone, Debug, Default)]
pub struct Told<'a> {
    /// The bzImage's header; an ELF kernel has none.
    pub header: Option<&'a SetupHeader>,
    /// Where the command line is.
    pub command_line: u64,
    /// Where the initramfs is, and its size.
    pub initrd: (u64, u64),
    /// Where the ACPI tables' root pointer is.
    pub acpi: u64,
    pub memory_map: &'a [MemoryRange],
}

/// "Undefined" boot loader: the number that none is registered for.
const SOME_LOADER: u8 = 0xff;
/// The alignment that a kernel without a header is told: what x86-64 asks for.
const ALIGNMENT: u32 = 0x20_0000;

/// Makes the page.
#[must_use]
pub fn zero_page(told: &Told<'_>) -> Vec<u8> {
    let mut page = vec![0; SIZE];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    match told.header {
        Some(header) => put(offset::SETUP_SECTS, &header.bytes),
        None => {
            put(offset::BOOT_FLAG, &header::BOOT_FLAG.to_le_bytes());
            put(offset::HEADER, &header::MAGIC.to_le_bytes());
            put(offset::KERNEL_ALIGNMENT, &ALIGNMENT.to_le_bytes());
        }
    }
    put(offset::TYPE_OF_LOADER, &[SOME_LOADER]);
    let (initrd, size) = told.initrd;
    // Everything is below 4 GiB: the machine has no memory above.
    put(offset::RAMDISK_IMAGE, &(initrd as u32).to_le_bytes());
    put(offset::RAMDISK_SIZE, &(size as u32).to_le_bytes());
    put(offset::CMD_LINE_PTR, &(told.command_line as u32).to_le_bytes());
    put(at::ACPI_RSDP_ADDR, &told.acpi.to_le_bytes());
    let ranges = &told.memory_map[..told.memory_map.len().min(MOST_RANGES)];
    put(at::E820_ENTRIES, &[ranges.len() as u8]);
    for (number, range) in ranges.iter().enumerate() {
        let entry = E820_TABLE + number * 20;
        put(entry, &range.start.to_le_bytes());
        put(entry + 8, &range.size.to_le_bytes());
        put(entry + 16, &(range.kind as u32).to_le_bytes());
    }
    page
}
