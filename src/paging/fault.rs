//! Page faults: the error code that the CPU hands to the handler, and what was wrong.

use std::fmt;

/// A page fault's error code. Intel SDM Vol. 3A, "Interrupt 14—Page-Fault Exception (#PF)".
#[rustfmt::skip] // laid out like the SDM's figure
pub mod error_code {
    pub const PRESENT: u32  = 1 << 0;  // P     0: an entry was not present; 1: the access was forbidden
    pub const WRITE: u32    = 1 << 1;  // W/R   the access was a write
    pub const USER: u32     = 1 << 2;  // U/S   the access was ring 3's
    pub const RESERVED: u32 = 1 << 3;  // RSVD  an entry sets a bit that must be 0
    pub const FETCH: u32    = 1 << 4;  // I/D   the access was for an instruction
    pub const PK: u32       = 1 << 5;  // PK    a protection key forbade it
    pub const SS: u32       = 1 << 6;  // SS    the access was to a shadow stack
}

/// An error code in words: `write by ring 3, present`.
#[must_use]
pub fn describe_error_code(code: u32) -> String {
    let has = |bit: u32| code & bit != 0;
    let what = match (has(error_code::FETCH), has(error_code::WRITE)) {
        (true, _) => "fetch",
        (_, true) => "write",
        _ => "read",
    };
    let who = if has(error_code::USER) { "ring 3" } else { "ring 0" };
    let mut words = format!("{what} by {who}");
    words.push_str(if has(error_code::PRESENT) { ", present" } else { ", not present" });
    let rest = [
        (error_code::RESERVED, ", reserved bit set"),
        (error_code::PK, ", protection key"),
        (error_code::SS, ", shadow stack"),
    ];
    for (bit, text) in rest {
        words.push_str(if has(bit) { text } else { "" });
    }
    words
}

/// A page fault, as a walk finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// What the CPU pushes for the handler: [`error_code`]'s bits.
    pub error_code: u32,
    /// What was wrong.
    pub cause: Cause,
}

/// Why an access faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An entry's P bit is clear.
    NotPresent,
    /// The entry lies where the guest has no memory: what is read there is no present entry.
    NoTable,
    /// An entry sets these bits, which must be 0.
    Reserved(u64),
    /// An entry on the way lacks U/S, and ring 3 asked.
    SupervisorOnly,
    /// An entry on the way lacks R/W.
    ReadOnly,
    /// An entry on the way has XD.
    NoExecute,
    /// CR4.SMEP: ring 0 does not execute ring 3's pages.
    Smep,
    /// CR4.SMAP: ring 0 does not touch ring 3's pages unless RFLAGS.AC says so.
    Smap,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotPresent => "the entry is not present",
            Self::NoTable => "the guest has no memory where the entry should be",
            Self::Reserved(bits) => {
                return write!(f, "the entry sets {bits:#x}, which is reserved here");
            }
            Self::SupervisorOnly => "the page is not ring 3's",
            Self::ReadOnly => "the page may not be written",
            Self::NoExecute => "the page may not be executed",
            Self::Smep => "the page is ring 3's, and CR4.SMEP forbids ring 0 to execute it",
            Self::Smap => "the page is ring 3's, and CR4.SMAP forbids ring 0 to touch it",
        })
    }
}

/// `#PF, error code 0x4 (read by ring 3, not present): the entry is not present`
impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (code, words) = (self.error_code, describe_error_code(self.error_code));
        write!(f, "#PF, error code {code:#x} ({words}): {}", self.cause)
    }
}

#[cfg(test)]
mod tests {
    use super::error_code::{FETCH, PK, PRESENT, RESERVED, SS, USER, WRITE};
    use super::*;

    /// `arch/x86/include/asm/trap_pf.h`: X86_PF_PROT … X86_PF_SHSTK.
    #[test]
    fn the_error_codes_bits_are_those_that_linux_uses() {
        assert_eq!([PRESENT, WRITE, USER, RESERVED, FETCH, PK, SS], [0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x40]);
    }

    #[test]
    fn an_error_code_is_told_in_words() {
        assert_eq!(describe_error_code(0), "read by ring 0, not present");
        assert_eq!(describe_error_code(7), "write by ring 3, present");
        assert_eq!(describe_error_code(0x19), "fetch by ring 0, present, reserved bit set");
    }
}
