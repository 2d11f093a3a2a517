//! An unmodified Linux kernel, started at its 64-bit entry. Chapter 16.
//!
//! ```text
//! guest-physical
//!   0x00000500  the GDT that the protocol asks for
//!   0x00007000  the zero page: what the kernel is told
//!   0x00009000  page tables: the first GiB, mapped to itself
//!   0x00020000  the command line
//!   0x000a0000  no memory as far as the kernel knows: the hole of every PC
//!   0x000e0000  the ACPI tables
//!   0x00100000  the kernel proper, as it is in the file: it unpacks itself
//!   0x01000000  where it unpacks itself to (`pref_address`), or near
//!   …           the initramfs, as high as it may be
//! ```
//!
//! Linux, Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL".

mod cpu;
pub mod header;
mod zero_page;

use std::io::{self, Read, Seek, SeekFrom};

pub use cpu::{set_cpuid, set_lapic, set_msrs};
use header::{HEAD, SetupHeader};
pub use zero_page::{E820_TABLE, MemoryRange, RangeKind};
use zero_page::{Told, zero_page};

use crate::guest::{Image, ImageError, Memory, MemoryError};
use crate::kvm::kvm_sregs;
use crate::mode;
use crate::paging;
use crate::segment::Descriptor;

const GDT: u64 = 0x500;
const ZERO_PAGE: u64 = 0x7000;
const PAGE_TABLES: u64 = 0x9000;
const COMMAND_LINE: u64 = 0x2_0000;
/// The PC's hole: video memory, option ROMs and firmware.
const HOLE_START: u64 = 0xa_0000;
const HOLE_END: u64 = 0x10_0000;
/// Where a bzImage's kernel proper is loaded.
const LOAD_ADDRESS: u64 = 0x10_0000;
/// The 64-bit entry, from there.
pub const ENTRY_64: u64 = 0x200;
/// The most that fits between the command line and the hole.
const COMMAND_LINE_ROOM: usize = 2047;
/// How high the initramfs of a kernel without a setup header may reach.
const INITRD_ADDRESS_MAX: u64 = 0x7fff_ffff;

/// `__BOOT_CS` and `__BOOT_DS`: the selectors that the protocol names.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

/// Why a file is no kernel that can be started here.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Neither form.
    #[error(
        "this is no Linux kernel: it is no bzImage (which has \"HdrS\" at 0x202) and no ELF file{hint}; name a \
         /boot/vmlinuz-… or a vmlinux"
    )]
    NotAKernel { hint: &'static str },
    /// Shorter than a header.
    #[error("this kernel is cut off: its {size} bytes do not even hold a bzImage's setup header")]
    TooShort { size: u64 },
    /// Shorter than it says.
    #[error("this kernel is cut off: its header promises {promised} bytes and the file has {size}")]
    Truncated { promised: u64, size: u64 },
    /// From before the 64-bit entry.
    #[error(
        "this kernel speaks boot protocol {}.{:02}, and the 64-bit entry came with 2.12 (Linux 3.8): use a newer one",
        version >> 8, version & 0xff
    )]
    TooOld { version: u16 },
    /// A zImage.
    #[error(
        "this kernel is a zImage, made to be loaded below 640 KiB, and only a bzImage has a 64-bit entry"
    )]
    NotLoadedHigh,
    /// For 32-bit CPUs.
    #[error("this kernel has no 64-bit entry (XLF_KERNEL_64 is clear): it was built for 32-bit CPUs")]
    No64BitEntry,
    /// It is ELF, and not one that can be loaded.
    #[error(transparent)]
    Elf(#[from] ImageError),
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
}

impl KernelError {
    fn not_a_kernel(head: &[u8]) -> Self {
        let hint = match head {
            [0x1f, 0x8b, ..] => " (it is compressed by gzip: unpack it first)",
            [0xfd, b'7', b'z', ..] => " (it is compressed by xz: unpack it first)",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => " (it is compressed by zstd: unpack it first)",
            [b'0', b'7', b'0', b'7', ..] => " (it is a cpio archive: an initramfs?)",
            _ => "",
        };
        Self::NotAKernel { hint }
    }
}

/// Why a kernel cannot be put into a guest's memory.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is not enough memory.
    #[error(
        "the kernel needs {needs} MiB of memory to start and the guest has {has}: give it more with --memory"
    )]
    TooLittleMemory { needs: u64, has: u64 },
    /// The initramfs does not fit beside the kernel.
    #[error(
        "the initramfs of {size} bytes does not fit between the kernel's end at {kernel_end:#x} and {limit:#x}: give \
         the guest more memory with --memory, or a smaller initramfs"
    )]
    InitrdDoesNotFit { size: u64, kernel_end: u64, limit: u64 },
    /// The command line is longer than the kernel reads.
    #[error("the command line has {length} bytes and this kernel reads {limit} at most: shorten it")]
    CommandLineTooLong { length: usize, limit: usize },
    /// A zero ends it.
    #[error("the command line has a zero byte in it, which would end it there")]
    CommandLineHasZero,
    /// The file changed, or its disk failed.
    #[error("the {what} cannot be read: {error}")]
    Read { what: &'static str, error: io::Error },
    /// Part of an ELF kernel is outside.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A file that is read where it is needed, and its size in bytes.
pub trait File: Read + Seek {}
impl<T: Read + Seek> File for T {}

/// A kernel that can be started, in one of two forms.
pub struct Kernel<'a>(Form<'a>);

enum Form<'a> {
    /// A kernel that unpacks itself, behind its setup header.
    BzImage { header: SetupHeader, file: &'a mut dyn File },
    /// The unpacked kernel: a `vmlinux`.
    Elf(Image),
}

impl<'a> Kernel<'a> {
    /// Reads what the file says of itself. The file is untrusted.
    ///
    /// # Errors
    /// What keeps it from being started.
    pub fn read(file: &'a mut dyn File) -> Result<Self, KernelError> {
        let size = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        let mut head = Vec::new();
        file.take(HEAD as u64).read_to_end(&mut head)?;
        if head.starts_with(b"\x7fELF") {
            let mut whole = head;
            file.read_to_end(&mut whole)?;
            return Ok(Self(Form::Elf(Image::elf(&whole)?)));
        }
        if head.len() < HEAD {
            return Err(if header::is_there(&head) {
                KernelError::TooShort { size }
            } else {
                KernelError::not_a_kernel(&head)
            });
        }
        Ok(Self(Form::BzImage { header: SetupHeader::parse(&head, size)?, file }))
    }

    /// What it is, in a few words.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.0 {
            Form::BzImage { header, .. } => {
                format!("a bzImage, boot protocol {}.{:02}", header.version >> 8, header.version & 0xff)
            }
            Form::Elf(image) => format!("an ELF kernel, entry {:#x}", image.entry()),
        }
    }

    /// The bytes from the first to behind the last that the kernel occupies until it has read its
    /// memory map.
    fn end(&self) -> u64 {
        match &self.0 {
            Form::BzImage { header, .. } => {
                let runs_at = if header.relocatable {
                    header.preferred_address.max(LOAD_ADDRESS)
                } else {
                    header.preferred_address
                };
                (LOAD_ADDRESS + header.code_size).max(runs_at.saturating_add(header.init_size))
            }
            Form::Elf(image) => {
                let end = |segment: &crate::guest::Segment| segment.address + segment.memory_size as u64;
                image.segments().iter().map(end).max().unwrap_or_default()
            }
        }
    }
}

/// Where the CPU is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The first instruction.
    pub rip: u64,
    /// The zero page: what RSI has to hold.
    pub rsi: u64,
    /// Where the initramfs is, and its size; zero where there is none.
    pub initrd: (u64, u64),
}

/// What is to be booted.
pub struct Boot<'a> {
    pub kernel: Kernel<'a>,
    pub initrd: Option<&'a mut dyn File>,
    pub command_line: &'a str,
    /// Where the ACPI tables' root pointer is.
    pub acpi: u64,
}

impl Boot<'_> {
    // ANCHOR: load
    /// Puts everything into the guest's memory.
    ///
    /// # Errors
    /// What does not fit, or cannot be read.
    pub fn load(self, memory: &Memory) -> Result<Start, LoadError> {
        let size = memory.size() as u64;
        let kernel_end = self.kernel.end();
        if kernel_end > size {
            return Err(LoadError::TooLittleMemory { needs: kernel_end.div_ceil(1 << 20), has: size >> 20 });
        }
        let (limit, initrd_max) = match &self.kernel.0 {
            Form::BzImage { header, .. } => (header.command_line_size, header.initrd_address_max),
            Form::Elf(_) => (COMMAND_LINE_ROOM, INITRD_ADDRESS_MAX),
        };
        write_command_line(memory, self.command_line, limit.min(COMMAND_LINE_ROOM))?;
        let initrd = match self.initrd {
            Some(file) => load_initrd(memory, file, kernel_end, size.min(initrd_max.saturating_add(1)))?,
            None => (0, 0),
        };
        let map = memory_map(size);
        let told =
            Told { command_line: COMMAND_LINE, initrd, acpi: self.acpi, memory_map: &map, header: None };
        let (rip, page) = match self.kernel.0 {
            Form::BzImage { header, file } => {
                let code = Piece { from: header.code_offset, size: header.code_size };
                copy_in(memory, LOAD_ADDRESS, file, code).map_err(|error| error.of("kernel"))?;
                (LOAD_ADDRESS + ENTRY_64, zero_page(&Told { header: Some(&header), ..told }))
            }
            Form::Elf(image) => {
                memory.load(&image)?;
                (image.entry(), zero_page(&told))
            }
        };
        memory.write(ZERO_PAGE, &page)?;
        Ok(Start { rip, rsi: ZERO_PAGE, initrd })
    }
    // ANCHOR_END: load
}

// ANCHOR: memory_map
/// What the kernel may use: all memory but the PC's hole below 1 MiB.
fn memory_map(size: u64) -> [MemoryRange; 3] {
    let range = |start, end, kind| MemoryRange { start, size: end - start, kind };
    [
        range(0, HOLE_START, RangeKind::Ram),
        range(HOLE_START, HOLE_END, RangeKind::Reserved),
        range(HOLE_END, size, RangeKind::Ram),
    ]
}
// ANCHOR_END: memory_map

fn write_command_line(memory: &Memory, text: &str, limit: usize) -> Result<(), LoadError> {
    if text.len() > limit {
        return Err(LoadError::CommandLineTooLong { length: text.len(), limit });
    }
    if text.contains('\0') {
        return Err(LoadError::CommandLineHasZero);
    }
    Ok(memory.write(COMMAND_LINE, &[text.as_bytes(), &[0]].concat())?)
}

/// Puts the initramfs as high as it may be, on a page boundary.
fn load_initrd(
    memory: &Memory,
    file: &mut dyn File,
    kernel_end: u64,
    limit: u64,
) -> Result<(u64, u64), LoadError> {
    let size = file.seek(SeekFrom::End(0)).map_err(|error| Failed::Read(error).of("initramfs"))?;
    let start = limit.checked_sub(size).map(|start| start & !(paging::PAGE - 1));
    let Some(start) = start.filter(|start| *start >= kernel_end) else {
        return Err(LoadError::InitrdDoesNotFit { size, kernel_end, limit });
    };
    copy_in(memory, start, file, Piece { from: 0, size }).map_err(|error| error.of("initramfs"))?;
    Ok((start, size))
}

/// Part of a file.
struct Piece {
    from: u64,
    size: u64,
}

enum Failed {
    Read(io::Error),
    Memory(MemoryError),
}

impl Failed {
    fn of(self, what: &'static str) -> LoadError {
        match self {
            Self::Read(error) => LoadError::Read { what, error },
            Self::Memory(error) => LoadError::Memory(error),
        }
    }
}

/// Copies a piece of a file to the guest-physical `address`, little by little: a
/// hypervisor need not hold a kernel twice.
fn copy_in(memory: &Memory, mut address: u64, file: &mut dyn File, piece: Piece) -> Result<(), Failed> {
    let mut buffer = vec![0; 64 << 10];
    file.seek(SeekFrom::Start(piece.from)).map_err(Failed::Read)?;
    let mut left = piece.size;
    while left > 0 {
        let length = left.min(buffer.len() as u64) as usize;
        file.read_exact(&mut buffer[..length]).map_err(Failed::Read)?;
        memory.write(address, &buffer[..length]).map_err(Failed::Memory)?;
        address += length as u64;
        left -= length as u64;
    }
    Ok(())
}

// ANCHOR: enter_kernel
/// The state that the 64-bit entry wants: long mode with the first GiB mapped to
/// itself, flat segments at the selectors that the protocol names, and a GDT that
/// has them.
///
/// # Errors
/// When the guest's memory does not reach far enough for the tables.
pub fn enter_kernel(memory: &Memory, sregs: &mut kvm_sregs) -> Result<(), MemoryError> {
    let gdt = [Descriptor::NULL, Descriptor::NULL, Descriptor::CODE_64, Descriptor::DATA];
    memory.write(GDT, &gdt.map(|descriptor| descriptor.0.to_le_bytes()).concat())?;
    mode::enter_protected(sregs, Descriptor::CODE_64);
    mode::enter_long(sregs, paging::identity_map(memory, PAGE_TABLES)?);
    let data = Descriptor::DATA.load(BOOT_DS);
    sregs.cs = Descriptor::CODE_64.load(BOOT_CS);
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 4 * 8 - 1);
    Ok(())
}
// ANCHOR_END: enter_kernel

#[cfg(test)]
mod tests;
