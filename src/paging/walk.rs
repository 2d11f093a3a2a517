//! The walk from a linear to a guest-physical address through the tables in the
//! guest's memory, entry by entry, as the CPU does it. Chapter 06.
//!
//! Protection keys (CR4.PKE, CR4.PKS) and shadow stacks are not looked at.

use std::fmt;

use crate::guest::Memory;
use crate::paging::{Access, Cause, Form, Intent, Level, PageFault, Paging, entry, error_code};

/// One entry that a walk has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub level: Level,
    /// The number of the entry in its table.
    pub index: u64,
    /// Where the entry is, guest-physical.
    pub address: u64,
    /// The entry; `None` where the guest has no memory there.
    pub value: Option<u64>,
    /// It maps a page, and the walk ends here.
    pub leaf: bool,
}

/// Where a linear address leads, and what may be done there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Guest-physical.
    pub physical: u64,
    /// Bytes of the page; 0 while paging is off.
    pub page_size: u64,
    /// R/W at every level.
    pub writable: bool,
    /// U/S at every level.
    pub user: bool,
    /// XD at no level.
    pub executable: bool,
}

/// Why an access has no mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The tables do not allow it.
    Page(PageFault),
    /// The address is not canonical: its upper bits are no copy of its highest translated one. No
    /// table is looked at; the CPU raises #GP(0), or #SS(0) for a stack access. Intel SDM Vol. 1,
    /// "Canonical Addressing".
    NotCanonical,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(fault) => fault.fmt(f),
            Self::NotCanonical => f.write_str("#GP, error code 0: the address is not canonical"),
        }
    }
}

/// Copies so many bytes from a guest-physical address; `None` where the guest has no memory.
pub type Read<'a> = &'a dyn Fn(u64, usize) -> Option<Vec<u8>>;

/// A whole walk: the entries in their order, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    pub linear: u64,
    pub access: Access,
    pub form: Option<Form>,
    pub cr3: u64,
    pub steps: Vec<Step>,
    pub outcome: Result<Mapping, Fault>,
}

// ANCHOR: walk
/// Walks the tables in `memory` for one access, and changes nothing: neither
/// accessed nor dirty bits.
///
/// With PAE paging the CPU keeps the four entries of the first table in registers
/// since the last load of CR3; here they are read from memory, as they are now.
#[must_use]
pub fn walk(memory: &Memory, paging: &Paging, linear: u64, access: Access) -> Walk {
    walk_in(&|address, size| memory.read(address, size).ok(), paging, linear, access)
}

/// The same in any memory, of which `read` copies bytes from a guest-physical address.
#[must_use]
pub fn walk_in(read: Read<'_>, paging: &Paging, linear: u64, access: Access) -> Walk {
    let mut walk = Walk {
        linear,
        access,
        form: paging.form,
        cr3: paging.cr3,
        steps: Vec::new(),
        outcome: Ok(Mapping {
            physical: linear & 0xffff_ffff,
            page_size: 0,
            writable: true,
            user: true,
            executable: true,
        }),
    };
    if let Some(form) = paging.form {
        walk.outcome = descend(read, paging, form, &mut walk);
    }
    walk
}

fn descend(read: Read<'_>, paging: &Paging, form: Form, walk: &mut Walk) -> Result<Mapping, Fault> {
    let (linear, access) = (canonical(form, walk.linear)?, walk.access);
    let asked = paging.asked(access);
    let page_fault = |more, cause| Fault::Page(PageFault { error_code: asked | more, cause });
    let mut table = form.root(paging.cr3);
    // A right holds only where every entry gives it.
    let (mut every, mut any) = (u64::MAX, 0);
    for &level in form.levels() {
        let index = level.index(linear);
        let address = table + index * form.entry_size() as u64;
        let value = read_entry(read, address, form.entry_size());
        let leaf = value.is_some_and(|value| paging.is_leaf(form, level, value));
        walk.steps.push(Step { level, index, address, value, leaf });

        let Some(value) = value else { return Err(page_fault(0, Cause::NoTable)) };
        if value & entry::PRESENT == 0 {
            return Err(page_fault(0, Cause::NotPresent));
        }
        let reserved = value & paging.reserved(form, level, leaf);
        if reserved != 0 {
            let bits = error_code::PRESENT | error_code::RESERVED;
            return Err(page_fault(bits, Cause::Reserved(reserved)));
        }
        // PAE's first four entries hold no rights.
        if !(form == Form::Pae && level.shift == 30) {
            every &= value;
            any |= value;
        }
        if leaf {
            let mapping = Mapping {
                physical: page_address(form, level, value) | linear & (level.reach() - 1),
                page_size: level.reach(),
                writable: every & entry::WRITABLE != 0,
                user: every & entry::USER != 0,
                executable: any & entry::NX == 0,
            };
            let forbidden = paging.forbidden(&mapping, access);
            return forbidden.map_or(Ok(mapping), |cause| Err(page_fault(error_code::PRESENT, cause)));
        }
        table = form.address(value);
    }
    unreachable!("an entry of the last level is a leaf")
}
// ANCHOR_END: walk

/// The bits of the address that are translated, if it is one that can be.
fn canonical(form: Form, linear: u64) -> Result<u64, Fault> {
    if !form.is_long() {
        return Ok(linear & 0xffff_ffff);
    }
    let unused = 64 - form.linear_bits();
    let extended = ((linear << unused) as i64 >> unused) as u64;
    if extended == linear { Ok(linear) } else { Err(Fault::NotCanonical) }
}

fn read_entry(read: Read<'_>, address: u64, size: usize) -> Option<u64> {
    let bytes = read(address, size)?;
    let mut value = [0; 8];
    value[..size].copy_from_slice(&bytes);
    Some(u64::from_le_bytes(value))
}

/// Where the page of a leaf begins.
fn page_address(form: Form, level: Level, value: u64) -> u64 {
    match (form, level.shift) {
        (Form::Bits32, 22) => value & 0xffc0_0000 | (value >> 13 & 0xff) << 32,
        _ => form.address(value) & !(level.reach() - 1),
    }
}

impl Step {
    /// The names of the entry's flags, in the order of the bits: `P RW US A D`.
    #[must_use]
    pub fn flags(&self) -> String {
        let value = self.value.unwrap_or(0);
        let named = [
            ("P", entry::PRESENT, true),
            ("RW", entry::WRITABLE, true),
            ("US", entry::USER, true),
            ("PWT", entry::WRITE_THROUGH, true),
            ("PCD", entry::CACHE_DISABLE, true),
            ("A", entry::ACCESSED, true),
            // Only where a page begins do these bits mean anything.
            ("D", entry::DIRTY, self.leaf),
            ("PS", entry::LARGE, self.leaf && self.level.shift > 12),
            ("G", entry::GLOBAL, self.leaf),
            ("XD", entry::NX, true),
        ];
        let set = named.iter().filter(|(_, bit, means)| *means && value & bit != 0);
        set.map(|(name, ..)| *name).collect::<Vec<_>>().join(" ")
    }
}

/// ```text
/// 32-bit paging, CR3 = 0x2000, a read by ring 0
///   PD[1]      at 0x2004       0x4003      P RW
///   PT[3]      at 0x400c       0x5063      P RW A D    a page of 4 KiB at 0x5000
///   0x403123 -> guest-physical 0x5123
/// ```
impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.access.intent {
            Intent::Read => "read",
            Intent::Write => "write",
            Intent::Fetch => "fetch",
        };
        let who = if self.access.user { "ring 3" } else { "ring 0" };
        match self.form {
            Some(form) => writeln!(f, "{}, CR3 = {:#x}, a {what} by {who}", form.name(), self.cr3)?,
            None => writeln!(f, "paging is off, a {what} by {who}")?,
        }
        for step in &self.steps {
            let entry = format!("{}[{}]", step.level.table, step.index);
            let value = step.value.map_or("no memory".to_owned(), |value| format!("{value:#x}"));
            let (address, flags) = (format!("{:#x}", step.address), step.flags());
            let line = format!("  {entry:<10} at {address:<12} {value:<12} {flags}");
            writeln!(f, "{}", line.trim_end())?;
        }
        match &self.outcome {
            Ok(mapping) => write!(f, "  {:#x} -> guest-physical {:#x}", self.linear, mapping.physical),
            Err(fault) => write!(f, "  {:#x} -> {fault}", self.linear),
        }
    }
}

#[cfg(test)]
mod tests;
