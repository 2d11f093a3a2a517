//! The setup header at the start of a bzImage: what the kernel tells its boot
//! loader, and what the loader tells the kernel.
//!
//! Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".

use super::KernelError;

/// Where the fields are in the file, and in the zero page too.
#[rustfmt::skip] // laid out like the kernel's table
pub mod offset {
    pub const SETUP_SECTS: usize       = 0x1f1; // u8
    pub const SYSSIZE: usize           = 0x1f4; // u32
    pub const BOOT_FLAG: usize         = 0x1fe; // u16
    pub const JUMP: usize              = 0x200; // u16: its second byte tells where the header ends
    pub const HEADER: usize            = 0x202; // u32
    pub const VERSION: usize           = 0x206; // u16
    pub const TYPE_OF_LOADER: usize    = 0x210; // u8
    pub const LOADFLAGS: usize         = 0x211; // u8
    pub const RAMDISK_IMAGE: usize     = 0x218; // u32
    pub const RAMDISK_SIZE: usize      = 0x21c; // u32
    pub const CMD_LINE_PTR: usize      = 0x228; // u32
    pub const INITRD_ADDR_MAX: usize   = 0x22c; // u32
    pub const KERNEL_ALIGNMENT: usize  = 0x230; // u32
    pub const RELOCATABLE: usize       = 0x234; // u8
    pub const XLOADFLAGS: usize        = 0x236; // u16
    pub const CMDLINE_SIZE: usize      = 0x238; // u32
    pub const PREF_ADDRESS: usize      = 0x258; // u64
    pub const INIT_SIZE: usize         = 0x260; // u32
}

/// "HdrS", which says that there is a header.
pub const MAGIC: u32 = 0x5372_6448;
/// What the last two bytes of the boot sector hold since the days of floppy disks.
pub const BOOT_FLAG: u16 = 0xaa55;
/// LOADED_HIGH of `loadflags`: the kernel proper belongs at 1 MiB, as in every bzImage.
pub const LOADED_HIGH: u8 = 1 << 0;
/// XLF_KERNEL_64 of `xloadflags`: there is a 64-bit entry, 0x200 bytes into the kernel proper.
pub const KERNEL_64: u16 = 1 << 0;
/// Protocol 2.12 brought `xloadflags`, in Linux 3.8.
pub const FIRST_WITH_64_BIT_ENTRY: u16 = 0x20c;

/// Where the zero page has no more room for a header.
const END_IN_ZERO_PAGE: usize = 0x290;

/// As much of a file as the longest header needs: its end is at most 0x202 + 0xff.
pub const HEAD: usize = 0x202 + 0x100;

const SECTOR: u64 = 512;
/// What `setup_sects` means where it is 0.
const OLD_SETUP_SECTS: u8 = 4;

/// What a bzImage says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupHeader {
    /// The header's own bytes, from [`offset::SETUP_SECTS`] on.
    pub bytes: Vec<u8>,
    /// The version of the protocol, 0x20f for 2.15.
    pub version: u16,
    /// Where the kernel proper begins in the file, in bytes.
    pub code_offset: u64,
    /// The kernel proper's size in bytes, as the header gives it; a signature may follow.
    pub code_size: u64,
    /// The highest address that a byte of the initramfs may have.
    pub initrd_address_max: u64,
    /// Where the kernel would like to run.
    pub preferred_address: u64,
    /// Whether it also runs elsewhere.
    pub relocatable: bool,
    /// How much memory it needs there until it has read its memory map, in bytes.
    pub init_size: u64,
    /// The longest command line, without its final zero.
    pub command_line_size: usize,
}

impl SetupHeader {
    /// Reads the header from the beginning of a file of `file_size` bytes; `head`
    /// is its first [`HEAD`] bytes, or all of them.
    ///
    /// # Errors
    /// What keeps this file from being started at its 64-bit entry.
    pub fn parse(head: &[u8], file_size: u64) -> Result<Self, KernelError> {
        let magic = u32_at(head, offset::HEADER).ok_or(KernelError::TooShort { size: file_size })?;
        if magic != MAGIC {
            return Err(KernelError::not_a_kernel(head));
        }
        let version = u16_at(head, offset::VERSION).ok_or(KernelError::TooShort { size: file_size })?;
        if version < FIRST_WITH_64_BIT_ENTRY {
            return Err(KernelError::TooOld { version });
        }
        // The jump over the header is two bytes long, and its distance counts from its end.
        let distance = head.get(offset::JUMP + 1).copied().unwrap_or_default();
        let end = (offset::HEADER + usize::from(distance)).min(END_IN_ZERO_PAGE);
        let (Some(bytes), true) = (head.get(offset::SETUP_SECTS..end), end >= offset::INIT_SIZE + 4) else {
            return Err(KernelError::TooShort { size: file_size });
        };
        // All of these lie before `end`.
        let byte = |at: usize| head[at];
        let word = |at| u16_at(head, at).unwrap_or_default();
        let double = |at| u64::from(u32_at(head, at).unwrap_or_default());
        if byte(offset::LOADFLAGS) & LOADED_HIGH == 0 {
            return Err(KernelError::NotLoadedHigh);
        }
        if word(offset::XLOADFLAGS) & KERNEL_64 == 0 {
            return Err(KernelError::No64BitEntry);
        }
        let sectors = match byte(offset::SETUP_SECTS) {
            0 => OLD_SETUP_SECTS,
            sectors => sectors,
        };
        let code_offset = (u64::from(sectors) + 1) * SECTOR;
        let code_size = double(offset::SYSSIZE) * 16;
        let there = file_size.saturating_sub(code_offset);
        if code_size == 0 || there < code_size {
            return Err(KernelError::Truncated { promised: code_offset + code_size, size: file_size });
        }
        Ok(Self {
            bytes: bytes.to_vec(),
            version,
            code_offset,
            code_size,
            initrd_address_max: double(offset::INITRD_ADDR_MAX),
            preferred_address: double(offset::PREF_ADDRESS) | double(offset::PREF_ADDRESS + 4) << 32,
            relocatable: byte(offset::RELOCATABLE) != 0,
            init_size: double(offset::INIT_SIZE),
            command_line_size: double(offset::CMDLINE_SIZE) as usize,
        })
    }
}

/// Whether the file is a bzImage at all, however short.
#[must_use]
pub fn is_there(head: &[u8]) -> bool {
    u32_at(head, offset::HEADER) == Some(MAGIC)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
