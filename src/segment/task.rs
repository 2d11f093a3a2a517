//! The task state segment: of the hardware's tasks, what is left is a place for
//! the stacks of the inner rings, and for the ports that ring 3 may use. Chapter 07.

/// The offsets in a 32-bit TSS that a system without hardware tasks fills in. Intel SDM Vol. 3A,
/// "Task-State Segment (TSS)".
pub mod tss32 {
    /// ESP, four bytes, for an interrupt that leads from an outer ring to ring 0.
    pub const ESP0: u64 = 4;
    /// SS, two bytes, for the same.
    pub const SS0: u64 = 8;
    /// Two bytes: where the bitmap of the ports begins.
    pub const IO_MAP: u64 = 0x66;
    /// Bytes without the bitmap.
    pub const SIZE: u64 = 0x68;
}

/// The offsets in a 64-bit TSS. Intel SDM Vol. 3A, "Task Management in 64-bit Mode".
pub mod tss64 {
    /// RSP, eight bytes, for an interrupt that leads from an outer ring to ring 0.
    pub const RSP0: u64 = 4;
    /// The first of the seven stacks, eight bytes each, that a gate's IST field can name.
    pub const IST1: u64 = 0x24;
    /// Two bytes: where the bitmap of the ports begins.
    pub const IO_MAP: u64 = 0x66;
    /// Bytes without the bitmap.
    pub const SIZE: u64 = 0x68;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `arch/x86/include/asm/processor.h`: `struct x86_hw_tss`, for both sizes.
    #[test]
    fn the_offsets_are_those_that_linux_uses() {
        assert_eq!([tss32::ESP0, tss32::SS0, tss32::IO_MAP, tss32::SIZE], [4, 8, 102, 104]);
        assert_eq!([tss64::RSP0, tss64::IST1, tss64::IO_MAP, tss64::SIZE], [4, 36, 102, 104]);
    }
}
