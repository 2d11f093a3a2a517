//! What the boot information says, copied to where nothing else will be put.

use crate::info::{BootInfo, KERNEL_BASE, MAGIC, MAX_REGIONS, Piece, Region, USABLE, VERSION};
use crate::paging;
use crate::print::println;

/// Bytes of a command line; what is longer is cut.
const COMMAND_LINE: usize = 256;

/// What the kernel was told, by either protocol.
pub struct Boot {
    pub protocol: &'static str,
    regions: [Region; MAX_REGIONS],
    region_count: usize,
    command_line: [u8; COMMAND_LINE],
    command_line_length: usize,
    /// Where the program's file lies.
    pub program_file: Piece,
}

impl Boot {
    /// Copies the boot information.
    ///
    /// # Safety
    /// `info` and all addresses in it are guest-physical and below 1 GiB, which the
    /// tables of the boot protocol map at [`KERNEL_BASE`].
    pub unsafe fn read(info: u64) -> Self {
        // SAFETY: the caller's promise; every bit pattern is a BootInfo.
        let info = unsafe { (at(info) as *const BootInfo).read_unaligned() };
        let magic = info.magic;
        assert!(magic == MAGIC, "no boot information: it begins with {magic:#x}, not with {MAGIC:#x}");
        let version = info.version;
        assert!(version == VERSION, "version {version} of the boot protocol; this kernel knows {VERSION}");
        let mut boot = Self::new("the workbook's protocol");
        for region in info.regions.iter().take(info.region_count as usize) {
            boot.add_region(*region);
        }
        // SAFETY: the caller's promise.
        unsafe { boot.set_command_line(info.command_line) };
        boot.program_file = info.program;
        boot
    }

    /// Nothing yet.
    pub fn new(protocol: &'static str) -> Self {
        Self {
            protocol,
            regions: [Region { address: 0, length: 0, kind: 0, reserved: 0 }; MAX_REGIONS],
            region_count: 0,
            command_line: [0; COMMAND_LINE],
            command_line_length: 0,
            program_file: Piece { address: 0, length: 0 },
        }
    }

    pub fn add_region(&mut self, region: Region) {
        if self.region_count < MAX_REGIONS {
            self.regions[self.region_count] = region;
            self.region_count += 1;
        }
    }

    /// # Safety
    /// As for [`Boot::read`].
    pub unsafe fn set_command_line(&mut self, piece: Piece) {
        let length = (piece.length as usize).min(COMMAND_LINE);
        let from = at(piece.address);
        // SAFETY: the caller's promise; the destination is ours and at least as long.
        unsafe { core::ptr::copy_nonoverlapping(from, self.command_line.as_mut_ptr(), length) };
        self.command_line_length = length;
    }

    /// The command line, up to the first byte that is no UTF-8.
    pub fn command_line(&self) -> &str {
        let bytes = &self.command_line[..self.command_line_length];
        bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }

    /// Whether the command line has this word.
    pub fn has_word(&self, word: &str) -> bool {
        self.command_line().split_whitespace().any(|this| this == word)
    }

    pub fn regions(&self) -> &[Region] {
        &self.regions[..self.region_count]
    }

    /// The program's file, once [`paging::init`] has mapped all memory.
    pub fn program(&self) -> Option<&'static [u8]> {
        let Piece { address, length } = self.program_file;
        if length == 0 {
            return None;
        }
        // SAFETY: the loader put the file there, `frames` gives none of its pages away, and nobody
        // writes it.
        Some(unsafe { core::slice::from_raw_parts(paging::direct(address), length as usize) })
    }

    pub fn print(&self) {
        println!("boot: by {}", self.protocol);
        for region in self.regions() {
            let (start, end) = (region.address, region.address.wrapping_add(region.length));
            let kind = if region.kind == USABLE { "usable" } else { "reserved" };
            println!("boot: memory {start:#011x} to {end:#011x}  {kind}");
        }
    }
}

/// Where the boot protocol's tables have what is at this guest-physical address.
pub fn at(physical: u64) -> *const u8 {
    (KERNEL_BASE + physical) as *const u8
}
