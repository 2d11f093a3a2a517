//! A guest as bytes with their addresses and names.

use elf::ElfBytes;
use elf::endian::LittleEndian;
use elf::segment::ProgramHeader;

/// Why an ELF image cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not ELF, truncated, or inconsistent.
    #[error("this is no ELF image that can be read: {0}")]
    Elf(#[from] elf::ParseError),
    /// For another CPU.
    #[error("this ELF image is for machine {0}, and a guest's must be x86-64 (62)")]
    Machine(u16),
    /// There is nothing to run.
    #[error("this ELF image has nothing to load: no segment of it holds a byte")]
    Empty,
    /// More than a guest here can have.
    #[error("this ELF image wants {size:#x} bytes at {address:#x}, past the first 4 GiB")]
    TooLarge { address: u64, size: u64 },
    /// A name that the hypervisor asked for.
    #[error("this guest has no symbol {0}")]
    NoSymbol(String),
}

/// A piece of an image: `bytes` at guest-physical `address`, then zeros up to `memory_size`.
#[derive(Clone, Debug)]
pub struct Segment {
    pub address: u64,
    pub bytes: Vec<u8>,
    pub memory_size: usize,
    /// Whether it holds code.
    pub executable: bool,
}

/// A name in the guest, and its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    pub address: u64,
    pub name: String,
}

/// A guest image: what to load where, where to start, and what the addresses are called.
#[derive(Clone, Debug, Default)]
pub struct Image {
    segments: Vec<Segment>,
    entry: u64,
    symbols: Vec<Symbol>,
    /// Where the code's size changes, with the size in bits: from `build.rs`.
    code_sizes: Vec<(u64, u32)>,
}

/// The symbols that `build.rs` puts at `.code16`, `.code32` and `.code64`.
const CODE_SIZE_MARKS: [(&str, u32); 3] = [("$code16.", 16), ("$code32.", 32), ("$code64.", 64)];

impl Image {
    /// Code without names: real-mode bytes to be loaded at `address` and started there.
    #[must_use]
    pub fn flat(address: u64, bytes: &[u8]) -> Self {
        let segment = Segment { address, bytes: bytes.to_vec(), memory_size: bytes.len(), executable: true };
        Self { segments: vec![segment], entry: address, ..Self::default() }
    }

    /// Reads an ELF image. The file is untrusted: every offset and size is checked.
    ///
    /// # Errors
    /// When it is no ELF image, for another CPU, or has nothing to load.
    pub fn elf(file: &[u8]) -> Result<Self, ImageError> {
        const LIMIT: u64 = 1 << 32;
        let image = Self::read(file, |header| header.p_paddr)?;
        let outside = |segment: &&Segment| segment.address.saturating_add(segment.memory_size as u64) > LIMIT;
        match image.segments.iter().find(outside) {
            Some(Segment { address, memory_size, .. }) => {
                Err(ImageError::TooLarge { address: *address, size: *memory_size as u64 })
            }
            None => Ok(image),
        }
    }

    /// Reads an ELF image of 64-bit code whose segments count as being where they are
    /// linked, not where they are loaded: for the names of a guest behind page tables, as
    /// its source has them.
    ///
    /// # Errors
    /// As [`Image::elf`], but for segments past 4 GiB.
    pub fn linked(file: &[u8]) -> Result<Self, ImageError> {
        let mut image = Self::read(file, |header| header.p_vaddr)?;
        if image.code_sizes.is_empty() {
            image.code_sizes.push((0, 64));
        }
        for symbol in &mut image.symbols {
            symbol.name = format!("{:#}", rustc_demangle::demangle(&symbol.name));
        }
        Ok(image)
    }

    fn read(file: &[u8], place: fn(&ProgramHeader) -> u64) -> Result<Self, ImageError> {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file)?;
        if elf.ehdr.e_machine != elf::abi::EM_X86_64 {
            return Err(ImageError::Machine(elf.ehdr.e_machine));
        }
        let mut image = Self { entry: elf.ehdr.e_entry, ..Self::default() };
        for header in elf.segments().ok_or(ImageError::Empty)? {
            if header.p_type != elf::abi::PT_LOAD || header.p_memsz == 0 {
                continue;
            }
            let (address, size) = (place(&header), header.p_memsz.max(header.p_filesz));
            image.segments.push(Segment {
                address,
                bytes: elf.segment_data(&header)?.to_vec(),
                memory_size: size as usize,
                executable: header.p_flags & elf::abi::PF_X != 0,
            });
        }
        if image.segments.iter().all(|segment| segment.bytes.is_empty()) {
            return Err(ImageError::Empty);
        }
        image.read_symbols(&elf)?;
        Ok(image)
    }

    fn read_symbols(&mut self, elf: &ElfBytes<'_, LittleEndian>) -> Result<(), ImageError> {
        let Some((symbols, names)) = elf.symbol_table()? else {
            return Ok(());
        };
        for symbol in symbols {
            let name = names.get(symbol.st_name as usize)?;
            let mark = CODE_SIZE_MARKS.iter().find(|(mark, _)| name.starts_with(mark));
            if let Some((_, bits)) = mark {
                self.code_sizes.push((symbol.st_value, *bits));
            } else if symbol.st_shndx < elf::abi::SHN_LORESERVE && symbol.st_shndx != 0 && !name.is_empty() {
                // A constant (`.set`) is absolute, has no section, and is no address.
                self.symbols.push(Symbol { address: symbol.st_value, name: name.to_owned() });
            }
        }
        self.sort_names();
        Ok(())
    }

    fn sort_names(&mut self) {
        self.symbols.sort_by(|a, b| (a.address, &a.name).cmp(&(b.address, &b.name)));
        self.code_sizes.sort_unstable();
    }

    /// This image with another one beside it, at other addresses: the names of both.
    #[must_use]
    pub fn beside(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.segments.extend_from_slice(&other.segments);
        both.symbols.extend_from_slice(&other.symbols);
        both.code_sizes.extend_from_slice(&other.code_sizes);
        both.sort_names();
        both
    }

    /// Where the guest starts, a guest-physical address.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// What is loaded where, in the file's order.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// All names, by address.
    #[must_use]
    pub fn symbols(&self) -> &[Symbol] {
        &self.symbols
    }

    /// The address of a name.
    ///
    /// # Errors
    /// When the guest has no such name.
    pub fn symbol(&self, name: &str) -> Result<u64, ImageError> {
        let found = self.symbols.iter().find(|symbol| symbol.name == name);
        found.map(|symbol| symbol.address).ok_or_else(|| ImageError::NoSymbol(name.to_owned()))
    }

    /// The last name at or before `address` in the same segment, and how far before it is.
    #[must_use]
    pub fn nearest(&self, address: u64) -> Option<(&str, u64)> {
        let segment = self.segments.iter().find(|segment| segment.holds(address))?;
        let inside = |symbol: &&Symbol| symbol.address <= address && segment.holds(symbol.address);
        let symbol = self.symbols.iter().rev().find(inside)?;
        Some((&symbol.name, address - symbol.address))
    }

    /// The size in bits of the code that starts at `address`: 16 before the first mark.
    #[must_use]
    pub fn code_bits(&self, address: u64) -> u32 {
        let after = self.code_sizes.partition_point(|(mark, _)| *mark <= address);
        self.code_sizes[..after].last().map_or(16, |(_, bits)| *bits)
    }

    /// The first address after `address` where the code's size changes or a name stands.
    #[must_use]
    pub fn next_mark(&self, address: u64) -> Option<u64> {
        let size = self.code_sizes.partition_point(|(mark, _)| *mark <= address);
        let name = self.symbols.partition_point(|symbol| symbol.address <= address);
        let size = self.code_sizes.get(size).map(|(mark, _)| *mark);
        let name = self.symbols.get(name).map(|symbol| symbol.address);
        size.into_iter().chain(name).min()
    }
}

impl Segment {
    fn holds(&self, address: u64) -> bool {
        address.checked_sub(self.address).is_some_and(|offset| offset < self.memory_size as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_guests_are_refused_in_words() {
        assert!(matches!(Image::elf(b""), Err(ImageError::Elf(_))));
        assert!(matches!(Image::elf(b"#!/bin/sh\n"), Err(ImageError::Elf(_))));
        let mut header = vec![0u8; 64];
        header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        header[18] = 183; // AArch64
        assert!(matches!(Image::elf(&header), Err(ImageError::Machine(183))));
        header[18] = 62;
        assert!(Image::elf(&header).is_err());
    }

    #[test]
    fn two_images_beside_each_other_have_the_names_of_both() {
        let low = Image::elf(include!(concat!(env!("OUT_DIR"), "/ch10.rs"))).expect("an image");
        let high = Image::elf(crate::program!("hello")).expect("an image");
        let both = low.beside(&high);
        assert_eq!(both.nearest(0x1000), Some(("_start", 0)));
        assert_eq!(both.nearest(0x40_0005), Some(("_start", 5)));
        assert_eq!((both.code_bits(0x1000), both.code_bits(0x40_0000)), (64, 64));
        assert_eq!(both.symbols().len(), low.symbols().len() + high.symbols().len());
    }

    #[test]
    fn every_damaged_header_of_a_real_image_is_an_error_or_an_image_but_no_panic() {
        let good = std::fs::read(concat!(env!("OUT_DIR"), "/ch05.elf")).expect("built by build.rs");
        assert!(Image::elf(&good).is_ok());
        for length in 0..good.len() {
            let _ = Image::elf(&good[..length]);
        }
        for at in 0..176 {
            for value in [0x00, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = Image::elf(&bad);
            }
        }
    }
}
