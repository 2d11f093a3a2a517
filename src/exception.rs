//! Exceptions by name, with what the CPU says of them. Chapter 09.

use std::fmt;

use crate::paging::describe_error_code;

/// The vectors of the CPU's exceptions. Intel SDM Vol. 3A, "Exception and Interrupt Vectors".
#[rustfmt::skip] // laid out like the SDM's table
pub mod vector {
    pub const DE: u8 = 0;  // Divide Error
    pub const DB: u8 = 1;  // Debug
    pub const BP: u8 = 3;  // Breakpoint
    pub const OF: u8 = 4;  // Overflow
    pub const BR: u8 = 5;  // BOUND Range Exceeded
    pub const UD: u8 = 6;  // Invalid Opcode
    pub const NM: u8 = 7;  // Device Not Available
    pub const DF: u8 = 8;  // Double Fault
    pub const TS: u8 = 10; // Invalid TSS
    pub const NP: u8 = 11; // Segment Not Present
    pub const SS: u8 = 12; // Stack-Segment Fault
    pub const GP: u8 = 13; // General Protection
    pub const PF: u8 = 14; // Page Fault
    pub const MF: u8 = 16; // x87 Floating-Point Error
    pub const AC: u8 = 17; // Alignment Check
    pub const MC: u8 = 18; // Machine Check
    pub const XM: u8 = 19; // SIMD Floating-Point
}

/// An exception as its handler finds it: the vector, the error code where one was pushed, and CR2,
/// which counts for #PF alone.
///
/// ```
/// use vmexit::exception::Exception;
/// let fault = Exception { vector: 14, error_code: 2, cr2: 0x4000_0000 };
/// assert_eq!(fault.to_string(), "#PF, error code 0x2 (write by ring 0, not present), for 0x40000000");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    pub vector: u8,
    pub error_code: u32,
    pub cr2: u64,
}

impl Exception {
    /// `#UD`; a vector without a name is its number.
    #[must_use]
    pub fn name(vector: u8) -> String {
        use vector::*;
        let names = [
            (DE, "#DE"),
            (DB, "#DB"),
            (BP, "#BP"),
            (OF, "#OF"),
            (BR, "#BR"),
            (UD, "#UD"),
            (NM, "#NM"),
            (DF, "#DF"),
            (TS, "#TS"),
            (NP, "#NP"),
            (SS, "#SS"),
            (GP, "#GP"),
            (PF, "#PF"),
            (MF, "#MF"),
            (AC, "#AC"),
            (MC, "#MC"),
            (XM, "#XM"),
        ];
        let known = names.iter().find(|(number, _)| *number == vector);
        known.map_or_else(|| format!("vector {vector}"), |(_, name)| (*name).to_owned())
    }

    /// Whether the CPU pushes an error code. SDM Vol. 3A, "Exception and Interrupt Vectors".
    #[must_use]
    pub fn has_error_code(vector: u8) -> bool {
        use vector::{AC, DF, GP, NP, PF, SS, TS};
        matches!(vector, DF | TS | NP | SS | GP | PF | AC)
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vector, error_code: code, cr2 } = *self;
        f.write_str(&Self::name(vector))?;
        match vector {
            vector::PF => write!(f, ", error code {code:#x} ({}), for {cr2:#x}", describe_error_code(code)),
            vector::TS | vector::NP | vector::SS | vector::GP if code != 0 => {
                write!(f, ", error code {code:#x} ({})", describe_selector_code(code))
            }
            _ if Self::has_error_code(vector) => write!(f, ", error code {code:#x}"),
            _ => Ok(()),
        }
    }
}

/// An error code that names a table's entry: `selector 0x50 of the GDT`. Intel SDM Vol. 3A, "Error Code".
fn describe_selector_code(code: u32) -> String {
    let external = if code & 1 != 0 { ", while something else was delivered" } else { "" };
    let table = match (code >> 1 & 1, code >> 2 & 1) {
        (1, _) => return format!("entry {} of the IDT{external}", code >> 3 & 0x1fff),
        (_, 1) => "LDT",
        _ => "GDT",
    };
    format!("selector {:#x} of the {table}{external}", code & 0xfff8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `arch/x86/include/asm/trapnr.h`: X86_TRAP_DE … X86_TRAP_XF.
    #[test]
    fn the_vectors_are_those_that_linux_uses() {
        use vector::*;
        assert_eq!([DE, DB, BP, OF, BR, UD, NM, DF], [0, 1, 3, 4, 5, 6, 7, 8]);
        assert_eq!([TS, NP, SS, GP, PF, MF, AC, MC, XM], [10, 11, 12, 13, 14, 16, 17, 18, 19]);
    }

    #[test]
    fn an_exception_is_told_with_what_its_error_code_says() {
        let words = |vector, error_code| Exception { vector, error_code, cr2: 0x1000 }.to_string();
        assert_eq!(words(vector::UD, 0), "#UD");
        assert_eq!(words(vector::GP, 0), "#GP, error code 0x0");
        assert_eq!(words(vector::GP, 0x50), "#GP, error code 0x50 (selector 0x50 of the GDT)");
        assert_eq!(words(vector::NP, 0x0c), "#NP, error code 0xc (selector 0x8 of the LDT)");
        assert_eq!(
            words(vector::GP, 0x73),
            "#GP, error code 0x73 (entry 14 of the IDT, while something else was delivered)"
        );
        assert_eq!(words(vector::PF, 5), "#PF, error code 0x5 (read by ring 3, present), for 0x1000");
        assert_eq!(words(99, 0), "vector 99");
    }
}
