//! PVH: the start information that Xen, QEMU and others hand over, read into the
//! same [`Boot`]. Layout: Xen's `xen/include/public/arch-x86/hvm/start_info.h`.

use crate::boot::{Boot, at};
use crate::info::{Piece, RESERVED, Region, USABLE};

const MAGIC: u32 = 0x336e_c578;

#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    command_line: u64,
    rsdp: u64,
    /// From version 1 on.
    memory_map: u64,
    memory_map_count: u32,
    reserved: u32,
}

#[repr(C)]
struct Module {
    address: u64,
    length: u64,
    command_line: u64,
    reserved: u64,
}

#[repr(C)]
struct MapEntry {
    address: u64,
    length: u64,
    kind: u32,
    reserved: u32,
}

/// Copies the start information. Its first module is the program.
///
/// # Safety
/// `address` is what PVH puts into EBX; all addresses in it are below 1 GiB.
pub unsafe fn read(address: u64) -> Boot {
    // SAFETY: the caller's promise; every bit pattern is a StartInfo.
    let info = unsafe { (at(address) as *const StartInfo).read_unaligned() };
    assert!(info.magic == MAGIC, "no PVH start information: it begins with {:#x}", info.magic);
    assert!(info.version >= 1, "PVH start information without a memory map: version {}", info.version);
    let mut boot = Boot::new("PVH");
    for number in 0..u64::from(info.memory_map_count) {
        let entry = info.memory_map + number * size_of::<MapEntry>() as u64;
        // SAFETY: the caller's promise.
        let entry = unsafe { (at(entry) as *const MapEntry).read_unaligned() };
        // Kind 1 is RAM, as in E820; all others are not to be used as such.
        let kind = if entry.kind == 1 { USABLE } else { RESERVED };
        boot.add_region(Region { address: entry.address, length: entry.length, kind, reserved: 0 });
    }
    if info.command_line != 0 {
        let mut length = 0;
        // SAFETY: the command line ends in a zero byte.
        while unsafe { at(info.command_line + length).read() } != 0 {
            length += 1;
        }
        // SAFETY: the caller's promise.
        unsafe { boot.set_command_line(Piece { address: info.command_line, length }) };
    }
    if info.module_count > 0 {
        // SAFETY: the caller's promise.
        let module = unsafe { (at(info.modules) as *const Module).read_unaligned() };
        boot.program_file = Piece { address: module.address, length: module.length };
    }
    boot
}
