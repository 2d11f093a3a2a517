//! What the control registers say about page tables: which entries end a walk,
//! which bits must be 0, and who may do what. Chapter 06.

use crate::kvm::{CpuId, kvm_sregs};
use crate::mode::{cr0, cr4, efer, rflags};
use crate::paging::{Cause, Form, Level, Mapping, entry, error_code};

/// What an access is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Data.
    Read,
    /// Data.
    Write,
    /// An instruction.
    Fetch,
}

/// An access to memory, as far as paging asks about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What for.
    pub intent: Intent,
    /// By ring 3; otherwise by rings 0 to 2, which paging does not tell apart.
    pub user: bool,
}

impl Access {
    /// What `KVM_TRANSLATE` asks for: a read by ring 0.
    pub const READ: Self = Self { intent: Intent::Read, user: false };
}

/// The registers that decide how the tables are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// `None` while paging is off.
    pub form: Option<Form>,
    /// As the guest has it: where the first table is, and flags.
    pub cr3: u64,
    cr0: u64,
    cr4: u64,
    efer: u64,
    /// RFLAGS.AC, which lifts CR4.SMAP for a while.
    access_ring_3: bool,
    features: Features,
}

/// What the guest's CPUID says of its paging. Intel SDM Vol. 2A, "CPUID".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Bits of a guest-physical address: leaf 0x80000008, `EAX[7:0]`.
    pub physical_bits: u32,
    /// Pages of 1 GiB: leaf 0x80000001, `EDX[26]`. Without them PS is reserved in a PDPT.
    pub gigabyte_pages: bool,
}

impl Features {
    /// From the leaves that the guest is shown; 36 bits for a CPU that has no such leaf.
    #[must_use]
    pub fn of(cpuid: &CpuId) -> Self {
        let leaf = |function| cpuid.as_slice().iter().find(|entry| entry.function == function);
        Self {
            physical_bits: leaf(0x8000_0008).map_or(36, |entry| entry.eax & 0xff),
            gigabyte_pages: leaf(0x8000_0001).is_some_and(|entry| entry.edx & 1 << 26 != 0),
        }
    }
}

impl Paging {
    /// From the guest's registers and what its CPUID says.
    #[must_use]
    pub fn of(sregs: &kvm_sregs, rflags: u64, features: Features) -> Self {
        Self {
            form: Form::of(sregs),
            cr3: sregs.cr3,
            cr0: sregs.cr0,
            cr4: sregs.cr4,
            efer: sregs.efer,
            access_ring_3: rflags & rflags::AC != 0,
            features,
        }
    }

    /// Whether an instruction fetch can be told from a read: only then the error code has its bit.
    fn tells_fetches(&self) -> bool {
        self.cr4 & cr4::SMEP != 0 || self.cr4 & cr4::PAE != 0 && self.efer & efer::NXE != 0
    }

    /// The part of a fault's error code that the access itself decides.
    pub(super) fn asked(&self, access: Access) -> u32 {
        let who = if access.user { error_code::USER } else { 0 };
        who | match access.intent {
            Intent::Write => error_code::WRITE,
            Intent::Fetch if self.tells_fetches() => error_code::FETCH,
            Intent::Read | Intent::Fetch => 0,
        }
    }

    /// Whether this entry maps a page by itself.
    pub(super) fn is_leaf(&self, form: Form, level: Level, value: u64) -> bool {
        let may_be_large = match form {
            Form::Bits32 => self.cr4 & cr4::PSE != 0,
            Form::Pae => level.shift == 21,
            Form::FourLevel | Form::FiveLevel => level.shift <= 30,
        };
        level.shift == 12 || may_be_large && value & entry::LARGE != 0
    }

    /// The bits that this entry must not set. Intel SDM Vol. 3A, chapter "Paging": the tables
    /// "Format of a …", the rows "Reserved".
    pub(super) fn reserved(&self, form: Form, level: Level, leaf: bool) -> u64 {
        if form == Form::Bits32 {
            // Bits 20:13 of a 4 MiB page's entry are bits 39:32 of its address (PSE-36).
            let high = self.features.physical_bits.clamp(32, 40) - 32;
            return if leaf && level.shift == 22 { 0x003f_e000 & u64::MAX << (13 + high) } else { 0 };
        }
        let mut reserved = entry::ADDRESS & u64::MAX << self.features.physical_bits;
        if form == Form::Pae {
            reserved |= 0x7ff0_0000_0000_0000;
        }
        if self.efer & efer::NXE == 0 || form == Form::Pae && level.shift == 30 {
            reserved |= entry::NX;
        }
        match (form, level.shift, leaf) {
            (Form::Pae, 30, _) => reserved | 0x1e6,
            (_, 39 | 48, _) => reserved | entry::LARGE,
            (_, 30, true) if !self.features.gigabyte_pages => reserved | entry::LARGE,
            // Bit 12 of a large page's entry is its PAT bit.
            (_, 21 | 30, true) => reserved | (level.reach() - 1) & !0x1fff,
            _ => reserved,
        }
    }

    // ANCHOR: forbidden
    /// The rule that forbids this access to a mapped page, if one does. Intel SDM
    /// Vol. 3A, "Determination of Access Rights".
    pub(super) fn forbidden(&self, mapping: &Mapping, access: Access) -> Option<Cause> {
        let (smep, smap) = (self.cr4 & cr4::SMEP != 0, self.cr4 & cr4::SMAP != 0);
        let write_protect = access.user || self.cr0 & cr0::WP != 0;
        let rules = match access.intent {
            _ if access.user && !mapping.user => (true, Cause::SupervisorOnly),
            Intent::Fetch if !mapping.executable => (true, Cause::NoExecute),
            Intent::Fetch => (!access.user && mapping.user && smep, Cause::Smep),
            _ if !access.user && mapping.user && smap && !self.access_ring_3 => (true, Cause::Smap),
            Intent::Write => (!mapping.writable && write_protect, Cause::ReadOnly),
            Intent::Read => return None,
        };
        rules.0.then_some(rules.1)
    }
    // ANCHOR_END: forbidden
}
