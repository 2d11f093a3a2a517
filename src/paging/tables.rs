//! Page tables built from outside the guest, a page at a time, in any form of
//! paging. Chapter 07.

use crate::guest::{Memory, MemoryError};
use crate::paging::{Form, PAGE, entry};

/// Page tables in a guest's memory, which take the next free page there whenever
/// another table is needed.
pub struct Tables<'memory> {
    memory: &'memory Memory,
    form: Form,
    root: u64,
    next: u64,
}

impl<'memory> Tables<'memory> {
    /// Tables that map nothing yet; the first is at `address`, a guest-physical address on a page
    /// boundary, and the others follow it.
    ///
    /// # Errors
    /// When the first table does not fit into the memory.
    pub fn new(memory: &'memory Memory, form: Form, address: u64) -> Result<Self, MemoryError> {
        let mut tables = Self { memory, form, root: address, next: address };
        tables.add_table()?;
        Ok(tables)
    }

    /// The value for CR3.
    #[must_use]
    pub fn cr3(&self) -> u64 {
        self.root
    }

    /// The first guest-physical address behind the tables.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.next
    }

    // ANCHOR: map
    /// Maps the 4 KiB page at `linear` to the one at `physical`; `flags` are [`entry`]'s, beside
    /// PRESENT. What the page was mapped to before is forgotten. The tables on the way give every
    /// right, so that the last entry alone decides.
    ///
    /// # Errors
    /// When another table is needed and does not fit into the memory.
    pub fn map(&mut self, linear: u64, physical: u64, flags: u64) -> Result<(), MemoryError> {
        let (levels, size) = (self.form.levels(), self.form.entry_size() as u64);
        let mut table = self.root;
        for level in &levels[..levels.len() - 1] {
            let address = table + level.index(linear) * size;
            let found = self.entry(address)?;
            table = if found & entry::PRESENT != 0 {
                self.form.address(found)
            } else {
                let new = self.add_table()?;
                // In PAE's first table the bits of the rights are reserved.
                let pae_root = self.form == Form::Pae && level.shift == 30;
                let rights = if pae_root { 0 } else { entry::WRITABLE | entry::USER };
                self.set_entry(address, new | entry::PRESENT | rights)?;
                new
            };
        }
        let last = levels[levels.len() - 1];
        self.set_entry(table + last.index(linear) * size, physical & !(PAGE - 1) | flags | entry::PRESENT)
    }
    // ANCHOR_END: map

    fn add_table(&mut self) -> Result<u64, MemoryError> {
        let table = self.next;
        self.memory.write(table, &[0; PAGE as usize])?;
        self.next += PAGE;
        Ok(table)
    }

    fn entry(&self, address: u64) -> Result<u64, MemoryError> {
        let mut value = [0; 8];
        let size = self.form.entry_size();
        value[..size].copy_from_slice(&self.memory.read(address, size)?);
        Ok(u64::from_le_bytes(value))
    }

    fn set_entry(&self, address: u64, value: u64) -> Result<(), MemoryError> {
        self.memory.write(address, &value.to_le_bytes()[..self.form.entry_size()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::kvm_sregs;
    use crate::mode::{cr0, cr4, efer};
    use crate::paging::{Access, Cause, Fault, Features, Intent, PageFault, Paging, walk};

    const TABLES: u64 = 0x1000;

    fn registers(form: Form) -> kvm_sregs {
        let (cr4, efer) = match form {
            Form::Bits32 => (0, 0),
            Form::Pae => (cr4::PAE, 0),
            Form::FourLevel => (cr4::PAE, efer::LMA | efer::LME),
            Form::FiveLevel => (cr4::PAE | cr4::LA57, efer::LMA | efer::LME),
        };
        kvm_sregs { cr0: cr0::PE | cr0::PG | cr0::WP, cr3: TABLES, cr4, efer, ..kvm_sregs::default() }
    }

    #[test]
    fn what_is_mapped_is_found_by_the_walk_in_every_form() {
        for (form, linear, tables) in [
            (Form::Bits32, 0xc012_3000, 2),
            (Form::Pae, 0xc012_3000, 3),
            (Form::FourLevel, 0xffff_8000_0012_3000, 4),
            (Form::FiveLevel, 0xff00_0000_0012_3000, 5),
        ] {
            let memory = Memory::new(0x8000).expect("32 KiB");
            let mut built = Tables::new(&memory, form, TABLES).expect("it fits");
            built.map(linear, 0x4000, entry::USER).expect("it fits");
            built.map(linear + PAGE, 0x5000, entry::WRITABLE).expect("it fits");
            assert_eq!((built.cr3(), built.end()), (TABLES, TABLES + tables * PAGE), "{form:?}");
            let cpu = Features { physical_bits: 40, gigabyte_pages: false };
            let paging = Paging::of(&registers(form), 0, cpu);
            let try_it = |linear, intent, user| {
                let outcome = walk(&memory, &paging, linear, Access { intent, user }).outcome;
                outcome.map(|mapping| mapping.physical)
            };
            let fault = |error_code, cause| Err(Fault::Page(PageFault { error_code, cause }));
            assert_eq!(try_it(linear + 5, Intent::Read, true), Ok(0x4005), "{form:?}");
            assert_eq!(try_it(linear, Intent::Write, true), fault(7, Cause::ReadOnly), "{form:?}");
            assert_eq!(try_it(linear + PAGE, Intent::Write, false), Ok(0x5000), "{form:?}");
            assert_eq!(try_it(linear + PAGE, Intent::Read, true), fault(5, Cause::SupervisorOnly));
            assert_eq!(try_it(linear + 2 * PAGE, Intent::Read, false), fault(0, Cause::NotPresent));
        }
    }

    #[test]
    fn a_table_too_many_is_an_error() {
        let memory = Memory::new(0x3000).expect("12 KiB");
        let mut tables = Tables::new(&memory, Form::FourLevel, TABLES).expect("one fits");
        assert!(tables.map(0, 0, 0).is_err());
        assert!(Tables::new(&memory, Form::Bits32, 0x3000).is_err());
    }
}
