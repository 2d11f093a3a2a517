//! Why an instruction did not complete: an exception, or an exit.

/// An exception's vector. Intel SDM Vol. 3A, "Protected-Mode Exceptions and Interrupts".
#[rustfmt::skip] // laid out like the SDM's table
pub mod vector {
    pub const DIVIDE_ERROR: u8          = 0;  // #DE
    pub const DEBUG: u8                 = 1;  // #DB
    pub const NMI: u8                   = 2;
    pub const BREAKPOINT: u8            = 3;  // #BP
    pub const OVERFLOW: u8              = 4;  // #OF
    pub const BOUND: u8                 = 5;  // #BR
    pub const INVALID_OPCODE: u8        = 6;  // #UD
    pub const DEVICE_NOT_AVAILABLE: u8  = 7;  // #NM
    pub const DOUBLE_FAULT: u8          = 8;  // #DF
    pub const INVALID_TSS: u8           = 10; // #TS
    pub const NOT_PRESENT: u8           = 11; // #NP
    pub const STACK_FAULT: u8           = 12; // #SS
    pub const GENERAL_PROTECTION: u8    = 13; // #GP
    pub const PAGE_FAULT: u8            = 14; // #PF
    pub const ALIGNMENT_CHECK: u8       = 17; // #AC
    pub const SIMD: u8                  = 19; // #XM
}

/// An exception that is to be delivered to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its vector.
    pub vector: u8,
    /// The error code that it pushes, if it pushes one.
    pub code: Option<u16>,
}

impl Fault {
    /// #DE
    pub const DIVIDE_ERROR: Self = Self::plain(vector::DIVIDE_ERROR);
    /// #UD
    pub const INVALID_OPCODE: Self = Self::plain(vector::INVALID_OPCODE);

    /// #XM
    pub const SIMD: Self = Self::plain(vector::SIMD);
    /// #NM
    pub const DEVICE_NOT_AVAILABLE: Self = Self::plain(vector::DEVICE_NOT_AVAILABLE);

    const fn plain(vector: u8) -> Self {
        Self { vector, code: None }
    }

    const fn coded(vector: u8, code: u16) -> Self {
        Self { vector, code: Some(code) }
    }

    /// #GP with an error code: a selector, or 0.
    #[must_use]
    pub const fn general_protection(code: u16) -> Self {
        Self::coded(vector::GENERAL_PROTECTION, code)
    }

    /// #SS
    #[must_use]
    pub const fn stack(code: u16) -> Self {
        Self::coded(vector::STACK_FAULT, code)
    }

    /// #NP
    #[must_use]
    pub const fn not_present(selector: u16) -> Self {
        Self::coded(vector::NOT_PRESENT, selector)
    }

    /// #TS
    #[must_use]
    pub const fn invalid_tss(selector: u16) -> Self {
        Self::coded(vector::INVALID_TSS, selector)
    }

    /// #PF; CR2 holds the address.
    #[must_use]
    pub const fn page(code: u16) -> Self {
        Self::coded(vector::PAGE_FAULT, code)
    }

    /// #AC
    pub const ALIGNMENT_CHECK: Self = Self::coded(vector::ALIGNMENT_CHECK, 0);
}

/// What an instruction, or a part of it, came back with instead of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest takes an exception.
    Fault(Fault),
    /// The vCPU leaves the guest; [`crate::cpu::Cpu::exit`] says why.
    Exit,
    /// The machine cannot go on: KVM's emulation failure.
    Missing(Missing),
}

/// What the machine would need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Nobody has written this instruction.
    Instruction,
    /// Task switches.
    Tasks,
    /// Virtual-8086 mode.
    Virtual8086,
    /// More accesses to holes in one instruction than there is room for.
    Accesses,
    /// Memory to execute from, which KVM would need as well.
    Memory,
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What an instruction returns.
pub type Done = Result<(), Stop>;
