//! A kernel, put into a guest's memory as the boot protocol says.

use super::executable::{Executable, FileError};
use super::info::{BootInfo, KERNEL_BASE, MAGIC, MAX_REGIONS, Piece, RESERVED, Region, USABLE, VERSION};
use crate::guest::{Memory, MemoryError};
use crate::kvm::IDENTITY_MAP_ADDRESS;
use crate::paging::{self, PAGE};

/// Guest-physical: where the boot information is, and what belongs to it.
const INFO: u64 = 0x6000;
const COMMAND_LINE: u64 = 0x7000;
const TABLES: u64 = 0x8000;
/// What a kernel may be loaded from.
const LOWEST: u64 = 1 << 20;
/// Bytes: a page's worth.
const LONGEST_COMMAND_LINE: usize = PAGE as usize;
/// Linear addresses below this are a program's.
const USER_END: u64 = 1 << 47;

/// Why a kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BadFile {
    /// The kernel's file.
    #[error("this kernel cannot be loaded: {0}")]
    Kernel(FileError),
    /// The program's file.
    #[error("this program cannot be loaded: {0}")]
    Program(FileError),
    /// The command line.
    #[error("a command line has at most {LONGEST_COMMAND_LINE} bytes, and this one has {0}")]
    CommandLine(usize),
    /// The machine's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// What is to be booted.
pub struct Boot<'a> {
    /// The kernel.
    pub kernel: &'a Executable,
    /// The initial program's ELF file, if there is one.
    pub program: Option<&'a [u8]>,
    /// The command line.
    pub command_line: &'a str,
}

/// What the registers are set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// For RIP.
    pub entry: u64,
    /// For RDI.
    pub info: u64,
    /// For CR3.
    pub cr3: u64,
}

impl Boot<'_> {
    // ANCHOR: load
    /// Puts kernel, program, boot information and page tables into `memory`.
    ///
    /// # Errors
    /// What is wrong with a file, or does not fit.
    pub fn load(&self, memory: &Memory) -> Result<Start, BadFile> {
        let size = memory.size() as u64;
        let mut end = LOWEST;
        for segment in self.kernel.segments() {
            check_kernel_segment(segment.linked, segment.loaded, segment.memory_size, size)
                .map_err(BadFile::Kernel)?;
            memory.write(segment.loaded, &segment.bytes)?;
            end = end.max(segment.loaded + segment.memory_size);
        }
        // The program's file, as it is: the kernel reads it.
        let file = self.program.unwrap_or_default();
        let program = Piece { address: end.next_multiple_of(PAGE), length: file.len() as u64 };
        if let Some(file) = self.program {
            let executable = Executable::parse(file).map_err(BadFile::Program)?;
            let free = size.saturating_sub(program.address + program.length);
            check_program(&executable, free).map_err(BadFile::Program)?;
        }
        memory.write(program.address, file)?;

        if self.command_line.len() > LONGEST_COMMAND_LINE {
            return Err(BadFile::CommandLine(self.command_line.len()));
        }
        memory.write(COMMAND_LINE, self.command_line.as_bytes())?;
        let command_line = Piece { address: COMMAND_LINE, length: self.command_line.len() as u64 };
        // The second region is what `Machine::new` gives to Intel's KVM: four pages.
        let regions = [
            Region { address: 0, length: size, kind: USABLE, reserved: 0 },
            Region { address: IDENTITY_MAP_ADDRESS, length: 4 * PAGE, kind: RESERVED, reserved: 0 },
        ];
        memory.write(INFO, &BootInfo::new(command_line, program, &regions).to_bytes())?;
        let cr3 = paging::map_twice(memory, TABLES, KERNEL_BASE)?;
        Ok(Start { entry: self.kernel.entry(), info: INFO, cr3 })
    }
    // ANCHOR_END: load
}

/// A segment must be in memory, above the boot information, and where the tables lead.
fn check_kernel_segment(linked: u64, loaded: u64, size: u64, end: u64) -> Result<(), FileError> {
    if loaded.checked_add(size).is_none_or(|last| last > end) {
        return Err(FileError::NoMemory { address: loaded, size, end });
    }
    if loaded < LOWEST {
        return Err(FileError::TooLow { address: loaded });
    }
    if linked != loaded && linked != KERNEL_BASE + loaded {
        return Err(FileError::WrongAddress { linked, loaded, base: KERNEL_BASE });
    }
    Ok(())
}

/// A program must be in its half of the address space, and not larger than what is free.
fn check_program(program: &Executable, free: u64) -> Result<(), FileError> {
    let mut wanted = 0u64;
    for segment in program.segments() {
        let (address, size) = (segment.linked, segment.memory_size);
        if address.checked_add(size).is_none_or(|end| end > USER_END) {
            return Err(FileError::Huge { address, size });
        }
        wanted = wanted.saturating_add(size);
    }
    if wanted > free { Err(FileError::TooMuch { wanted, free }) } else { Ok(()) }
}

impl BootInfo {
    /// This version's, with these contents; regions past [`MAX_REGIONS`] are left out.
    #[must_use]
    pub fn new(command_line: Piece, program: Piece, regions: &[Region]) -> Self {
        let none = Region { address: 0, length: 0, kind: 0, reserved: 0 };
        let mut info = Self {
            magic: MAGIC,
            version: VERSION,
            region_count: regions.len().min(MAX_REGIONS) as u32,
            command_line,
            program,
            regions: [none; MAX_REGIONS],
        };
        for (to, from) in info.regions.iter_mut().zip(regions) {
            *to = *from;
        }
        info
    }

    /// As it lies in memory: the fields in their order, little-endian, without gaps.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(size_of::<Self>());
        bytes.extend(self.magic.to_le_bytes());
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.region_count.to_le_bytes());
        for piece in [self.command_line, self.program] {
            bytes.extend(piece.address.to_le_bytes());
            bytes.extend(piece.length.to_le_bytes());
        }
        for region in self.regions {
            bytes.extend(region.address.to_le_bytes());
            bytes.extend(region.length.to_le_bytes());
            bytes.extend(region.kind.to_le_bytes());
            bytes.extend(region.reserved.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn the_bytes_are_those_that_the_kernels_struct_has() {
        let piece = |address| Piece { address, length: address + 1 };
        let region = Region { address: 0x11, length: 0x22, kind: 3, reserved: 0 };
        let info = BootInfo::new(piece(0x1111), piece(0x2222), &[region; 40]);
        let bytes = info.to_bytes();
        assert_eq!(bytes.len(), size_of::<BootInfo>());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        assert_eq!(&bytes[..8], b"VM Exit\0");
        assert_eq!(u64_at(offset_of!(BootInfo, version)), u64::from(VERSION) | (MAX_REGIONS as u64) << 32);
        assert_eq!(u64_at(offset_of!(BootInfo, command_line)), 0x1111);
        assert_eq!(u64_at(offset_of!(BootInfo, program) + offset_of!(Piece, length)), 0x2223);
        let last = offset_of!(BootInfo, regions) + (MAX_REGIONS - 1) * size_of::<Region>();
        assert_eq!(u64_at(last + offset_of!(Region, length)), 0x22);
        assert_eq!(u64_at(last + offset_of!(Region, kind)), 3);
    }

    #[test]
    fn a_kernel_must_be_in_memory_above_the_first_mib_and_where_the_tables_lead() {
        let check = |linked, loaded, size| check_kernel_segment(linked, loaded, size, 16 << 20);
        assert!(check(KERNEL_BASE + (1 << 20), 1 << 20, 0x1000).is_ok());
        assert!(check(1 << 20, 1 << 20, 0x1000).is_ok());
        let words = |result: Result<(), FileError>| result.expect_err("refused").to_string();
        assert!(words(check(KERNEL_BASE, 0, 0x1000)).contains("first MiB"));
        assert!(words(check(0x40_0000, 1 << 20, 0x1000)).contains("0xffffffff80000000 + P"));
        assert!(words(check(1 << 20, 1 << 20, 16 << 20)).contains("memory ends at 0x1000000"));
        assert!(words(check(1 << 20, u64::MAX, 2)).contains("needs 0x2 bytes"));
    }

    #[test]
    fn a_program_that_asks_for_more_than_there_is_is_refused() {
        let program = Executable::parse(crate::program!("hello")).expect("an executable");
        assert!(check_program(&program, 1 << 20).is_ok());
        let error = check_program(&program, 1).expect_err("too little").to_string();
        assert!(error.contains("0x1 left for it"), "{error}");
    }
}
