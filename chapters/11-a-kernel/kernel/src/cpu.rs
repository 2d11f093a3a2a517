//! Instructions that Rust has no word for. Intel SDM Vol. 2, each by its name.

use core::arch::asm;

/// CR0. Intel SDM Vol. 3A, "Control Registers".
pub mod cr0 {
    pub const WP: u64 = 1 << 16; // Write Protect: binds ring 0, too
}

/// EFER. Intel SDM Vol. 3A, "Extended Feature Enable Register".
pub mod efer {
    pub const NUMBER: u32 = 0xc000_0080;
    pub const SCE: u64 = 1 << 0; // syscall and sysret
    pub const NXE: u64 = 1 << 11; // bit 63 of a page-table entry: no code here
}

/// Writes a byte to a port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: the ports that this kernel writes end the machine or print, and touch no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

/// Writes four bytes to a port.
pub fn out32(port: u16, value: u32) {
    // SAFETY: as in `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) }
}

/// Stops for ever: interrupts are off.
pub fn halt() -> ! {
    loop {
        // SAFETY: nothing comes after it.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

pub fn read_cr2() -> u64 {
    let value;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

pub fn read_cr3() -> u64 {
    let value;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// # Safety
/// The tables at `value` map all that is in use: code, stack, statics, heap.
pub unsafe fn write_cr3(value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov cr3, {}", in(reg) value, options(nostack, preserves_flags)) }
}

/// Forgets what the CPU has remembered of `address`'s translation.
pub fn invalidate(address: u64) {
    // SAFETY: the CPU walks the tables again, which are right.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) }
}

pub fn read_cr0() -> u64 {
    let value;
    // SAFETY: reading it has no effect.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// # Safety
/// The bits turn on what the kernel is ready for.
pub unsafe fn write_cr0(value: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack, preserves_flags)) }
}

pub fn read_msr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the kernel reads registers that every 64-bit CPU has.
    unsafe {
        asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// # Safety
/// The value turns on what the kernel is ready for.
pub unsafe fn write_msr(number: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "wrmsr", in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags)
        );
    }
}

/// Whether CPUID shows the NX bit: leaf 0x80000001, EDX bit 20.
pub fn has_nx() -> bool {
    let leaves = core::arch::x86_64::__cpuid(0x8000_0000).eax;
    leaves >= 0x8000_0001 && core::arch::x86_64::__cpuid(0x8000_0001).edx & 1 << 20 != 0
}

/// What binds ring 0 to the page tables' permissions, as the registers say.
pub fn protections() -> &'static str {
    let write_protect = read_cr0() & cr0::WP != 0;
    let no_execute = read_msr(efer::NUMBER) & efer::NXE != 0;
    match (write_protect, no_execute) {
        (true, true) => "CR0.WP and EFER.NXE are set",
        (true, false) => "CR0.WP is set, EFER.NXE is not",
        (false, true) => "EFER.NXE is set, CR0.WP is not",
        (false, false) => "neither CR0.WP nor EFER.NXE is set",
    }
}
