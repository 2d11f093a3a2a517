//! An executable ELF file, with everything that it says checked.

use elf::ElfBytes;
use elf::endian::LittleEndian;

use crate::guest::{Image, ImageError};

/// Why an ELF file cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Not ELF, truncated, for another CPU, or empty.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// Not linked to fixed addresses.
    #[error(
        "its ELF type is {0}, and must be 2, an executable with fixed addresses; rustc makes one with \
         -C relocation-model=static"
    )]
    Kind(u16),
    /// A segment's sizes contradict each other.
    #[error(
        "its segment at {address:#x} has {in_file:#x} bytes in the file and only {in_memory:#x} in memory"
    )]
    Sizes { address: u64, in_file: u64, in_memory: u64 },
    /// A segment leaves the address space.
    #[error("its segment at {address:#x} with {size:#x} bytes leaves the address space")]
    Huge { address: u64, size: u64 },
    /// Two segments claim the same bytes.
    #[error("its segments at {first:#x} and {second:#x} overlap")]
    Overlap { first: u64, second: u64 },
    /// The entry is not code.
    #[error("its entry point {0:#x} is in none of its segments with code")]
    Entry(u64),
    /// A segment that the machine has no memory for.
    #[error("its segment at guest-physical {address:#x} needs {size:#x} bytes, and memory ends at {end:#x}")]
    NoMemory { address: u64, size: u64, end: u64 },
    /// A kernel's segment at the addresses of the boot information.
    #[error("its segment is loaded at guest-physical {address:#x}, and the first MiB is the boot protocol's")]
    TooLow { address: u64 },
    /// A kernel that is not where the tables lead.
    #[error(
        "its segment for {linked:#x} is loaded at guest-physical {loaded:#x}, but the boot protocol maps \
         {base:#x} + P to P, for the first GiB"
    )]
    WrongAddress { linked: u64, loaded: u64, base: u64 },
    /// A program that is larger than what is free.
    #[error("it asks for {wanted:#x} bytes of memory, and the machine has {free:#x} left for it")]
    TooMuch { wanted: u64, free: u64 },
}

/// A piece of an executable: `bytes`, then zeros up to `memory_size`.
#[derive(Clone, Debug)]
pub struct Loadable {
    /// The address that the code is linked for.
    pub linked: u64,
    /// The guest-physical address that it is loaded at.
    pub loaded: u64,
    /// What the file holds of it.
    pub bytes: Vec<u8>,
    /// In bytes.
    pub memory_size: u64,
    /// Whether it holds code.
    pub executable: bool,
}

/// An executable ELF file.
#[derive(Clone, Debug)]
pub struct Executable {
    segments: Vec<Loadable>,
    entry: u64,
    names: Image,
}

impl Executable {
    // ANCHOR: parse
    /// Reads an executable. The file is untrusted.
    ///
    /// # Errors
    /// The first thing in it that is wrong.
    pub fn parse(file: &[u8]) -> Result<Self, FileError> {
        // Reads header, names and the segments' bytes, and so finds a file that is no ELF file, for
        // another machine, or cut off.
        let names = Image::linked(file)?;
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(ImageError::Elf)?;
        if elf.ehdr.e_type != elf::abi::ET_EXEC {
            return Err(FileError::Kind(elf.ehdr.e_type));
        }
        let mut segments: Vec<Loadable> = Vec::new();
        for header in elf.segments().ok_or(ImageError::Empty)? {
            if header.p_type != elf::abi::PT_LOAD || header.p_memsz == 0 {
                continue;
            }
            let (linked, loaded, size) = (header.p_vaddr, header.p_paddr, header.p_memsz);
            if header.p_filesz > size {
                return Err(FileError::Sizes { address: linked, in_file: header.p_filesz, in_memory: size });
            }
            if linked.checked_add(size).is_none() || loaded.checked_add(size).is_none() {
                return Err(FileError::Huge { address: linked, size });
            }
            let shares = |other: &&Loadable| {
                overlap((linked, size), (other.linked, other.memory_size))
                    || overlap((loaded, size), (other.loaded, other.memory_size))
            };
            if let Some(other) = segments.iter().find(shares) {
                return Err(FileError::Overlap { first: other.linked, second: linked });
            }
            segments.push(Loadable {
                linked,
                loaded,
                bytes: elf.segment_data(&header).map_err(ImageError::Elf)?.to_vec(),
                memory_size: size,
                executable: header.p_flags & elf::abi::PF_X != 0,
            });
        }
        let entry = elf.ehdr.e_entry;
        let mut code = segments.iter().filter(|segment| segment.executable);
        if !code.any(|segment| segment.holds(entry)) {
            return Err(FileError::Entry(entry));
        }
        Ok(Self { segments, entry, names })
    }
    // ANCHOR_END: parse

    /// What is loaded where, in the file's order.
    #[must_use]
    pub fn segments(&self) -> &[Loadable] {
        &self.segments
    }

    /// The address of the first instruction, as it is linked.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// The file's names, at the addresses that they are linked for.
    #[must_use]
    pub fn names(&self) -> &Image {
        &self.names
    }
}

impl Loadable {
    fn holds(&self, address: u64) -> bool {
        address.checked_sub(self.linked).is_some_and(|offset| offset < self.memory_size)
    }
}

/// Whether two ranges, each an address and a size that do not overflow, share a byte.
fn overlap((first, first_size): (u64, u64), (second, second_size): (u64, u64)) -> bool {
    first < second + second_size && second < first + first_size
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &[u8] = crate::program!("hello");

    /// The offsets in the file of an ELF header's fields and, from 64 on, of the first program header's.
    mod at {
        pub const KIND: usize = 16;
        pub const MACHINE: usize = 18;
        pub const ENTRY: usize = 24;
        pub const HEADER: usize = 64;
        pub const LINKED: usize = HEADER + 16;
        pub const LOADED: usize = HEADER + 24;
        pub const IN_FILE: usize = HEADER + 32;
        pub const IN_MEMORY: usize = HEADER + 40;
        pub const SECOND: usize = 56;
    }

    fn with(at: usize, bytes: &[u8]) -> Result<Executable, FileError> {
        let mut file = HELLO.to_vec();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        Executable::parse(&file)
    }

    #[test]
    fn a_program_of_the_workbook_is_good() {
        let program = Executable::parse(HELLO).expect("an executable");
        assert_eq!(program.entry(), crate::abi::START);
        assert_eq!(program.names().nearest(crate::abi::START), Some(("_start", 0)));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_in_one_sentence() {
        let huge = u64::MAX.to_le_bytes();
        for (bad, words) in [
            (Executable::parse(b""), "no ELF image"),
            (Executable::parse(&HELLO[..100]), "no ELF image"),
            (Executable::parse(&HELLO[..HELLO.len() / 2]), "no ELF image"),
            (with(at::MACHINE, &[183, 0]), "machine 183"),
            (with(at::KIND, &[3, 0]), "relocation-model=static"),
            (with(at::ENTRY, &[0; 8]), "entry point 0x0"),
            (with(at::IN_MEMORY, &1u64.to_le_bytes()), "only 0x1 in memory"),
            (with(at::IN_MEMORY, &huge), "leaves the address space"),
            (with(at::IN_FILE, &huge), "no ELF image"),
        ] {
            let error = bad.expect_err(words).to_string();
            assert!(error.contains(words) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn segments_that_share_a_byte_are_refused() {
        let mut file = HELLO.to_vec();
        let first: Vec<u8> = file[at::LINKED..at::LOADED + 8].to_vec();
        let second = at::LINKED + at::SECOND;
        file[second..second + 16].copy_from_slice(&first);
        let error = Executable::parse(&file).expect_err("two segments at one address").to_string();
        assert!(error.contains("overlap"), "{error}");
    }

    #[test]
    fn no_damage_to_a_header_is_a_panic() {
        for byte in 0..at::HEADER + 2 * at::SECOND {
            for value in [0x00, 0x7f, 0x80, 0xff] {
                let _ = with(byte, &[value]);
            }
        }
        for length in 0..HELLO.len() {
            let _ = Executable::parse(&HELLO[..length]);
        }
    }
}
