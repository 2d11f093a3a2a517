//! The registers, as `KVM_GET_REGS` and `KVM_GET_SREGS` show them: KVM's names
//! and fields, and what they hold after reset.

/// The general-purpose registers, RIP and RFLAGS: `struct kvm_regs`.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
#[allow(missing_docs)] // the manuals' names
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part: `struct kvm_segment`.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Segment {
    /// The linear address of its first byte.
    pub base: u64,
    /// The largest offset, in bytes.
    pub limit: u32,
    /// The visible part.
    pub selector: u16,
    /// The four type bits. Intel SDM Vol. 3A, "Code- and Data-Segment Descriptor Types".
    pub type_: u8,
    /// P.
    pub present: u8,
    /// The descriptor's privilege level.
    pub dpl: u8,
    /// D/B: 32-bit code, or a 32-bit stack.
    pub db: u8,
    /// 1 for code and data, 0 for a system segment.
    pub s: u8,
    /// L: 64-bit code.
    pub l: u8,
    /// G: the descriptor's limit counted pages.
    pub g: u8,
    /// AVL: for software.
    pub avl: u8,
    /// A null selector was loaded.
    pub unusable: u8,
}

/// GDTR or IDTR: `struct kvm_dtable`.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Table {
    /// A linear address.
    pub base: u64,
    /// The offset of the last byte.
    pub limit: u16,
}

/// Segment, descriptor-table and control registers, EFER: `struct kvm_sregs`.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
#[allow(missing_docs)] // the manuals' names
pub struct Sregs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: Table,
    pub idt: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    pub interrupt_bitmap: [u64; 4],
}

/// SSE's registers, and x87's control word: what `struct kvm_fpu` holds of a CPU without x87 arithmetic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fpu {
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// SSE's control and status.
    pub mxcsr: u32,
    /// x87's control word.
    pub fcw: u16,
}

/// A segment's type bits. Intel SDM Vol. 3A, "Code- and Data-Segment Descriptor Types" and "System
/// Descriptor Types".
#[rustfmt::skip] // laid out like the SDM's tables
pub mod kind {
    pub const ACCESSED: u8    = 1 << 0;
    pub const WRITABLE: u8    = 1 << 1; // of data
    pub const READABLE: u8    = 1 << 1; // of code
    pub const EXPAND_DOWN: u8 = 1 << 2; // of data
    pub const CONFORMING: u8  = 1 << 2; // of code
    pub const CODE: u8        = 1 << 3;
    // System segments and gates, S = 0.
    pub const TSS_16: u8            = 1;
    pub const LDT: u8               = 2;
    pub const CALL_GATE_16: u8      = 4;
    pub const TASK_GATE: u8         = 5;
    pub const INTERRUPT_GATE_16: u8 = 6;
    pub const TRAP_GATE_16: u8      = 7;
    pub const TSS: u8               = 9;  // 32-bit, and 64-bit in long mode
    pub const TSS_BUSY: u8          = 11;
    pub const CALL_GATE: u8         = 12;
    pub const INTERRUPT_GATE: u8    = 14;
    pub const TRAP_GATE: u8         = 15;
}

/// CR0. Intel SDM Vol. 3A, "Control Registers".
#[rustfmt::skip] // laid out like the SDM's list
pub mod cr0 {
    pub const PE: u64 = 1 << 0;  // Protection Enable
    pub const MP: u64 = 1 << 1;  // Monitor Coprocessor
    pub const EM: u64 = 1 << 2;  // Emulation: no x87
    pub const TS: u64 = 1 << 3;  // Task Switched
    pub const ET: u64 = 1 << 4;  // Extension Type: always 1
    pub const NE: u64 = 1 << 5;  // Numeric Error
    pub const WP: u64 = 1 << 16; // Write Protect: binds ring 0 too
    pub const AM: u64 = 1 << 18; // Alignment Mask
    pub const NW: u64 = 1 << 29; // Not Write-through
    pub const CD: u64 = 1 << 30; // Cache Disable
    pub const PG: u64 = 1 << 31; // Paging
    /// The bits that exist.
    pub const ALL: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

/// CR4: the bits that this CPU has. Intel SDM Vol. 3A, "Control Registers".
#[rustfmt::skip] // laid out like the SDM's list
pub mod cr4 {
    pub const TSD: u64        = 1 << 2;  // Time Stamp Disable: RDTSC in ring 0 only
    pub const DE: u64         = 1 << 3;  // Debugging Extensions
    pub const PSE: u64        = 1 << 4;  // Page Size Extensions: 4 MiB pages
    pub const PAE: u64        = 1 << 5;  // Physical Address Extension: 8-byte entries
    pub const MCE: u64        = 1 << 6;  // Machine-Check Enable
    pub const PGE: u64        = 1 << 7;  // Page Global Enable
    pub const OSFXSR: u64     = 1 << 9;  // FXSAVE and SSE
    pub const OSXMMEXCPT: u64 = 1 << 10; // SSE errors as #XM
    pub const UMIP: u64       = 1 << 11; // SGDT and the like in ring 0 only
    pub const FSGSBASE: u64   = 1 << 16; // RDFSBASE and the like
    pub const SMEP: u64       = 1 << 20; // ring 0 executes no user page
    pub const SMAP: u64       = 1 << 21; // ring 0 touches no user page
    /// The bits that this CPU has.
    pub const ALL: u64 = TSD | DE | PSE | PAE | MCE | PGE | OSFXSR | OSXMMEXCPT | UMIP | FSGSBASE | SMEP | SMAP;
}

/// EFER. Intel SDM Vol. 3A, "Extended Feature Enable Register".
#[rustfmt::skip] // laid out like the SDM's figure
pub mod efer {
    pub const SCE: u64 = 1 << 0;  // System Call Extensions
    pub const LME: u64 = 1 << 8;  // Long Mode Enable
    pub const LMA: u64 = 1 << 10; // Long Mode Active: the CPU sets it
    pub const NXE: u64 = 1 << 11; // No-Execute Enable
    /// The bits that this CPU has.
    pub const ALL: u64 = SCE | LME | LMA | NXE;
}

/// RFLAGS. Intel SDM Vol. 1, "EFLAGS Register".
#[rustfmt::skip] // laid out like the SDM's figure
pub mod rflags {
    pub const CF: u64    = 1 << 0;  // Carry
    pub const FIXED: u64 = 1 << 1;  // always 1
    pub const PF: u64    = 1 << 2;  // Parity of the lowest byte
    pub const AF: u64    = 1 << 4;  // Carry out of bit 3
    pub const ZF: u64    = 1 << 6;  // Zero
    pub const SF: u64    = 1 << 7;  // Sign
    pub const TF: u64    = 1 << 8;  // Trap: single step
    pub const IF: u64    = 1 << 9;  // Interrupts enabled
    pub const DF: u64    = 1 << 10; // Direction of string instructions
    pub const OF: u64    = 1 << 11; // Overflow
    pub const IOPL: u64  = 3 << 12; // I/O Privilege Level
    pub const NT: u64    = 1 << 14; // Nested Task
    pub const RF: u64    = 1 << 16; // Resume
    pub const VM: u64    = 1 << 17; // Virtual-8086 mode
    pub const AC: u64    = 1 << 18; // Alignment Check; lifts SMAP
    pub const VIF: u64   = 1 << 19; // Virtual Interrupt Flag
    pub const VIP: u64   = 1 << 20; // Virtual Interrupt Pending
    pub const ID: u64    = 1 << 21; // CPUID is there
    /// The six flags of arithmetic.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

impl Regs {
    /// After reset: EDX holds the CPU's signature, here family 6. Intel SDM Vol. 3A, "Processor State
    /// After Reset".
    #[must_use]
    pub fn reset() -> Self {
        Self { rdx: 0x600, rip: 0xfff0, rflags: rflags::FIXED, ..Self::default() }
    }
}

impl Sregs {
    /// After reset, with every hidden part complete as VMX asks for it.
    #[must_use]
    pub fn reset() -> Self {
        let data = Segment { limit: 0xffff, type_: 3, present: 1, s: 1, ..Segment::default() };
        let system = |type_| Segment { limit: 0xffff, type_, present: 1, ..Segment::default() };
        Self {
            cs: Segment { selector: 0xf000, base: 0xffff_0000, type_: 11, ..data },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: system(kind::TSS_BUSY),
            ldt: system(kind::LDT),
            gdt: Table { base: 0, limit: 0xffff },
            idt: Table { base: 0, limit: 0xffff },
            cr0: cr0::CD | cr0::NW | cr0::ET,
            // Enabled, and of the bootstrap processor.
            apic_base: 0xfee0_0900,
            ..Self::default()
        }
    }

    /// Whether KVM takes these registers: `kvm_is_valid_sregs` in Linux's `arch/x86/kvm/x86.c`.
    /// In long mode (EFER.LME with CR0.PG) there must be CR4.PAE and EFER.LMA, and CR3 no address
    /// beyond the CPU's `physical_bits`; else there must be neither EFER.LMA nor CS.L.
    #[must_use]
    pub fn are_valid(&self, physical_bits: u32) -> bool {
        let long = if self.efer & efer::LME != 0 && self.cr0 & cr0::PG != 0 {
            self.cr4 & cr4::PAE != 0 && self.efer & efer::LMA != 0 && self.cr3 >> physical_bits == 0
        } else {
            self.efer & efer::LMA == 0 && self.cs.l == 0
        };
        long && cr0_is_valid(self.cr0) && self.cr4 & !cr4::ALL == 0 && self.efer & !efer::ALL == 0
    }
}

/// Whether a CPU can hold this CR0. Intel SDM Vol. 2B, "MOV—Move to/from Control Registers": paging
/// needs protection, and NW without CD is nothing.
#[must_use]
pub fn cr0_is_valid(value: u64) -> bool {
    value >> 32 == 0
        && (value & cr0::PG == 0 || value & cr0::PE != 0)
        && (value & cr0::NW == 0 || value & cr0::CD != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_reset_the_registers_are_what_kvm_gives_a_fresh_vcpu() {
        let (regs, sregs) = (Regs::reset(), Sregs::reset());
        assert_eq!((regs.rip, regs.rflags, regs.rdx), (0xfff0, 2, 0x600));
        assert_eq!((sregs.cs.selector, sregs.cs.base, sregs.cr0), (0xf000, 0xffff_0000, 0x6000_0010));
        assert!(sregs.are_valid(48));
    }

    #[test]
    fn long_mode_without_lma_or_pae_is_refused_and_lma_without_paging_too() {
        let long =
            Sregs { cr0: cr0::PE | cr0::PG, cr4: cr4::PAE, efer: efer::LME | efer::LMA, ..Sregs::reset() };
        assert!(long.are_valid(48));
        assert!(!Sregs { efer: efer::LME, ..long }.are_valid(48));
        assert!(!Sregs { cr4: 0, ..long }.are_valid(48));
        assert!(!Sregs { cr3: 1 << 48, ..long }.are_valid(48));
        assert!(!Sregs { cr0: cr0::PE, ..long }.are_valid(48));
        assert!(!Sregs { cr0: cr0::PG, ..Sregs::reset() }.are_valid(48));
    }
}
