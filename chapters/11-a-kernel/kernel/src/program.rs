//! A program: an ELF file, read into an address space of its own. The file comes
//! from outside, so everything that it says is checked.

use core::fmt;

use elf::ElfBytes;
use elf::abi::{EM_X86_64, ET_EXEC, PF_W, PF_X, PT_LOAD};
use elf::endian::LittleEndian;

use crate::frames::PAGE;
use crate::paging::{self, OutOfMemory, Tables, entry};

/// Where a program may be: not at 0, and below the stack.
const LOWEST: u64 = 0x1_0000;
/// The end of the stack: one page below the end of the user's half.
pub const STACK_END: u64 = 0x7fff_ffff_e000;
const STACK_SIZE: u64 = 16 << 10;

/// Why a file cannot be run.
pub enum BadProgram {
    /// No ELF file, truncated, or inconsistent.
    NotElf(elf::ParseError),
    /// For another CPU, or not linked to run where it says.
    WrongKind(u16, u16),
    /// A segment outside the range for programs.
    Outside(u64, u64),
    /// Two segments share a page.
    Overlap(u64),
    /// The entry is in no segment with code.
    Entry(u64),
    /// More than the machine has.
    OutOfMemory,
}

impl From<elf::ParseError> for BadProgram {
    fn from(error: elf::ParseError) -> Self {
        Self::NotElf(error)
    }
}

impl From<OutOfMemory> for BadProgram {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl fmt::Display for BadProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf(error) => write!(f, "it is no ELF file that can be read: {error}"),
            Self::WrongKind(kind, machine) => {
                write!(f, "it is an ELF file of type {kind} for machine {machine}, not 2 for 62")
            }
            Self::Outside(start, end) => {
                write!(f, "its segment {start:#x} to {end:#x} is not a program's to use")
            }
            Self::Overlap(page) => write!(f, "two of its segments share the page {page:#x}"),
            Self::Entry(entry) => write!(f, "its entry {entry:#x} is in no segment with code"),
            Self::OutOfMemory => write!(f, "it asks for more memory than there is"),
        }
    }
}

/// A program that is ready to run.
pub struct Program {
    pub tables: Tables,
    pub entry: u64,
}

// ANCHOR: load
/// Reads a program into an address space of its own.
pub fn load(file: &[u8]) -> Result<Program, BadProgram> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file)?;
    if (elf.ehdr.e_type, elf.ehdr.e_machine) != (ET_EXEC, EM_X86_64) {
        return Err(BadProgram::WrongKind(elf.ehdr.e_type, elf.ehdr.e_machine));
    }
    let mut tables = Tables::for_program()?;
    let mut entry_is_code = false;
    for header in elf.segments().into_iter().flatten().filter(|header| header.p_type == PT_LOAD) {
        let (start, bytes) = (header.p_vaddr, elf.segment_data(&header)?);
        let end = start.checked_add(header.p_memsz.max(header.p_filesz));
        let end = end.filter(|end| start >= LOWEST && *end <= STACK_END - STACK_SIZE);
        let end = end.ok_or(BadProgram::Outside(start, start.wrapping_add(header.p_memsz)))?;
        let mut flags = entry::USER;
        if header.p_flags & PF_W != 0 {
            flags |= entry::WRITABLE;
        }
        if header.p_flags & PF_X == 0 {
            flags |= entry::NX;
        }
        entry_is_code |= header.p_flags & PF_X != 0 && (start..end).contains(&elf.ehdr.e_entry);
        for page in (start / PAGE * PAGE..end).step_by(PAGE as usize) {
            if tables.walk(page).is_some() {
                return Err(BadProgram::Overlap(page));
            }
            let frame = paging::zeroed_frame()?;
            // Mapped first: what is mapped is freed with the tables, whatever comes.
            tables.map(page, frame, PAGE, flags)?;
            copy_into(frame, page, start, bytes);
        }
    }
    if !entry_is_code {
        return Err(BadProgram::Entry(elf.ehdr.e_entry));
    }
    for page in (STACK_END - STACK_SIZE..STACK_END).step_by(PAGE as usize) {
        tables.map(page, paging::zeroed_frame()?, PAGE, entry::USER | entry::WRITABLE | entry::NX)?;
    }
    Ok(Program { tables, entry: elf.ehdr.e_entry })
}
// ANCHOR_END: load

/// Copies those of a segment's bytes, which begin at `start`, that lie in `page`.
fn copy_into(frame: u64, page: u64, start: u64, bytes: &[u8]) {
    let from = page.max(start) - start;
    let to = page.max(start) - page;
    let rest = bytes.get(from as usize..).unwrap_or_default();
    let length = rest.len().min((PAGE - to) as usize);
    // SAFETY: the page is new, and the bytes end inside it.
    unsafe { paging::direct(frame + to).copy_from_nonoverlapping(rest.as_ptr(), length) };
}
