//! Breakpoints by the debug registers. Intel SDM Vol. 3B, chapter "Debug, Branch
//! Profile, TSC, and Intel Resource Director Technology Features".
//!
//! An instruction's address is compared before it executes; data and ports are
//! compared while it does, and trap when it is done. Pages with data that is waited
//! for stay out of the TLB, so that everything else keeps its speed.

use crate::cpu::Cpu;
use crate::memory::OFFSET;
use crate::paging::Intent;
use crate::registers::cr4;

/// DR6 and DR7. Intel SDM Vol. 3B, "Debug Registers".
#[rustfmt::skip] // laid out like the SDM's figure
pub mod bits {
    pub const HITS: u64  = 0xf;       // DR6: B0 to B3
    pub const BD: u64    = 1 << 13;   // DR6: a debug register was touched
    pub const BS: u64    = 1 << 14;   // DR6: single step
    pub const BT: u64    = 1 << 15;   // DR6: task switch
    pub const DR6_FIXED: u64 = 0xffff_0ff0;
    pub const GD: u64    = 1 << 13;   // DR7: General Detect Enable
    pub const DR7_FIXED: u64 = 1 << 10;
    /// The bits of DR7 that can be written.
    pub const DR7: u64   = 0xffff_2bff;
}

/// What a breakpoint waits for: R/W in DR7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Instruction,
    Write,
    Port,
    Access,
}

/// A breakpoint that is on: of which address, and how many bytes from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Breakpoint {
    kind: Kind,
    address: u64,
    bytes: u64,
}

/// The breakpoints that are on, and those that were hit.
#[derive(Clone, Debug, Default)]
pub struct Debug {
    breakpoints: [Option<Breakpoint>; 4],
    /// DR7, as it holds now.
    pub dr7: u64,
    /// One is for instructions.
    pub instructions: bool,
    /// One is for data.
    pub data: bool,
    ports: bool,
    /// B0 to B3 of those that the instruction has hit, until its trap.
    pub hits: u64,
}

impl Debug {
    /// None is on.
    pub fn reset() -> Self {
        Self { dr7: bits::DR7_FIXED, ..Self::default() }
    }

    /// The breakpoints of a set of debug registers. `ports`: CR4.DE gives R/W = 2 its meaning.
    fn of(addresses: [u64; 4], dr7: u64, ports: bool, hits: u64) -> Self {
        let breakpoints: [_; 4] = std::array::from_fn(|number| {
            // L and G turn it on.
            if dr7 >> (2 * number) & 3 == 0 {
                return None;
            }
            let kind = match dr7 >> (16 + 4 * number) & 3 {
                0 => Kind::Instruction,
                1 => Kind::Write,
                2 if ports => Kind::Port,
                2 => return None,
                _ => Kind::Access,
            };
            let bytes = [1, 2, 8, 4][(dr7 >> (18 + 4 * number) & 3) as usize];
            let mask = if kind == Kind::Instruction { u64::MAX } else { !(bytes - 1) };
            Some(Breakpoint { kind, address: addresses[number] & mask, bytes })
        });
        let any = |wanted: &[Kind]| breakpoints.iter().flatten().any(|found| wanted.contains(&found.kind));
        Self {
            instructions: any(&[Kind::Instruction]),
            data: any(&[Kind::Write, Kind::Access]),
            ports: any(&[Kind::Port]),
            breakpoints,
            dr7,
            hits,
        }
    }

    fn matching(&self, wanted: impl Fn(&Breakpoint) -> bool) -> u64 {
        let numbered = self.breakpoints.iter().enumerate();
        numbered
            .filter(|(_, breakpoint)| breakpoint.is_some_and(|found| wanted(&found)))
            .fold(0, |all, (number, _)| all | 1 << number)
    }

    /// B0 to B3 of the instruction at a linear address.
    pub fn instruction(&self, linear: u64) -> u64 {
        self.matching(|found| found.kind == Kind::Instruction && found.address == linear)
    }

    /// Whether data in this page is waited for.
    pub fn watches_page(&self, linear: u64) -> bool {
        let page = linear & !OFFSET;
        let data = |found: &Breakpoint| matches!(found.kind, Kind::Write | Kind::Access);
        self.data && self.matching(|found| data(found) && found.address & !OFFSET == page) != 0
    }
}

impl Breakpoint {
    fn overlaps(&self, start: u64, size: u64) -> bool {
        self.address < start.saturating_add(size) && start < self.address.saturating_add(self.bytes)
    }
}

impl Cpu {
    /// Works out which breakpoints are on, after a register has changed: the guest's, or the
    /// hypervisor's in their place.
    pub fn update_breakpoints(&mut self) {
        let dr = self.debugger.unwrap_or(self.dr);
        let addresses = [dr[0], dr[1], dr[2], dr[3]];
        let old = self.debug.data;
        self.debug = Debug::of(addresses, dr[7], self.cr4_has(cr4::DE), self.debug.hits);
        if old || self.debug.data {
            self.flush_translations();
        }
        self.leave_block = true;
    }

    /// Data was read or written.
    #[cold]
    pub fn note_data(&mut self, linear: u64, size: usize, intent: Intent) {
        let hits = self.debug.matching(|found| {
            let kind = match intent {
                Intent::Write => matches!(found.kind, Kind::Write | Kind::Access),
                _ => found.kind == Kind::Access,
            };
            kind && found.overlaps(linear, size as u64)
        });
        if hits != 0 {
            self.debug.hits |= hits;
            self.leave_block = true;
        }
    }

    /// A port was read or written.
    pub fn note_port(&mut self, port: u16, size: u8) {
        if self.debug.ports {
            let port = u64::from(port);
            self.debug.hits |=
                self.debug.matching(|found| found.kind == Kind::Port && found.overlaps(port, size.into()));
            self.leave_block = true;
        }
    }

    /// The guest takes a debug exception: DR6 says why, and the registers may be touched again.
    pub fn note_debug_exception(&mut self, why: u64) {
        self.dr[6] = self.dr[6] & !bits::HITS | bits::DR6_FIXED | why;
        self.dr[7] &= !bits::GD;
        self.update_breakpoints();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breakpoint_covers_its_bytes_and_waits_for_its_kind() {
        // L0: write, 4 bytes; G1: an instruction; L2: read or write, 8 bytes; L3: off.
        let dr7 = 1 | 2 << 2 | 1 << 4 | 1 << 16 | 3 << 18 | 3 << 24 | 2 << 26;
        let debug = Debug::of([0x1006, 0x2000, 0x3008, 0x4000], dr7, false, 0);
        assert!(debug.instructions && debug.data && !debug.ports);
        assert_eq!(debug.instruction(0x2000), 0b10);
        assert_eq!(debug.instruction(0x2001), 0);
        let first = debug.breakpoints[0].expect("it is on");
        assert_eq!((first.address, first.bytes), (0x1004, 4), "aligned");
        assert!(first.overlaps(0x1007, 1) && first.overlaps(0x1000, 8) && !first.overlaps(0x1008, 1));
        assert!(debug.watches_page(0x1fff) && debug.watches_page(0x3000) && !debug.watches_page(0x2000));
        assert_eq!(debug.breakpoints[3], None);
    }
}
