//! The boot information: what the hypervisor tells the kernel, at the
//! guest-physical address that RDI holds at the kernel's first instruction.
//!
//! This one file is compiled into both, so the two cannot disagree on the layout.
//! All numbers are little-endian; all addresses are guest-physical.

/// What stands at the start of every [`BootInfo`]: "VM Exit" and a zero byte.
pub const MAGIC: u64 = u64::from_le_bytes(*b"VM Exit\0");

/// The version of the protocol. A kernel refuses one that it does not know.
pub const VERSION: u32 = 1;

/// The most regions that a memory map can have.
pub const MAX_REGIONS: usize = 32;

/// Where the kernel's half begins: what is at guest-physical P is mapped at
/// `KERNEL_BASE + P`, too, for the first GiB. The last 2 GiB of the address space
/// are where a compiler's "kernel" code model puts code.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;

/// The port that ends the machine: a 32-bit write is the exit code. QEMU has the
/// same under `-device isa-debug-exit,iobase=0xf4,iosize=4`.
pub const EXIT_PORT: u16 = 0xf4;

/// The port at which a kernel that panics asks for its backtrace; what is written
/// does not matter. Where nobody listens, nothing happens.
pub const BACKTRACE_PORT: u16 = 0xea;

/// The keyboard controller's command port, and the command that pulses the CPU's
/// reset line: how a PC is rebooted since 1984.
pub const RESET_PORT: u16 = 0x64;
/// See [`RESET_PORT`].
pub const RESET_COMMAND: u8 = 0xfe;

// ANCHOR: info
/// What the kernel is told.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BootInfo {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// How many of `regions` are used.
    pub region_count: u32,
    /// The command line, UTF-8.
    pub command_line: Piece,
    /// The initial program, an ELF file; empty where there is none.
    pub program: Piece,
    /// The memory map.
    pub regions: [Region; MAX_REGIONS],
}

/// A piece of memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub address: u64,
    /// In bytes.
    pub length: u64,
}

/// A region of the memory map. Kinds are those of the PC's E820 map.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub address: u64,
    /// In bytes.
    pub length: u64,
    /// [`USABLE`], or anything else for memory to keep away from.
    pub kind: u32,
    /// Zero: keeps the size a multiple of 8.
    pub reserved: u32,
}

/// RAM that is the kernel's to use, but for what this structure itself names.
pub const USABLE: u32 = 1;
/// Taken: firmware, devices.
pub const RESERVED: u32 = 2;
// ANCHOR_END: info
