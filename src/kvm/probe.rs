//! Guests of a few bytes that show what a KVM can run at all: its set-up ioctls
//! may all succeed and its KVM_RUN still fail. Chapter 00.

use std::fmt;
use std::time::Duration;

use super::{
    Error, IDENTITY_MAP_ADDRESS, Kvm, MAX_CPUID_ENTRIES, TSS_ADDRESS, VcpuExit, kvm_sregs,
    kvm_userspace_memory_region,
};
use crate::exit::Unexpected;
use crate::guest::{Memory, MemoryError};
use crate::mode::{self, CODE_SELECTOR, cr0, cr4};
use crate::paging::{self, entry};
use crate::run::interrupt::Kick;
use crate::segment::Descriptor;

/// What a probe guest shows, in the order of the chapters that need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Code in real mode.
    Real,
    /// 32-bit code in protected mode.
    Protected,
    /// 32-bit code behind page tables.
    Paging32,
    /// 64-bit code.
    Long,
    /// 64-bit code that takes an exception through its IDT and returns.
    Exception,
}

impl Probe {
    /// All five.
    pub const ALL: [Self; 5] = [Self::Real, Self::Protected, Self::Paging32, Self::Long, Self::Exception];
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Real => "real mode",
            Self::Protected => "protected mode",
            Self::Paging32 => "32-bit paging",
            Self::Long => "long mode",
            Self::Exception => "an exception through an IDT",
        })
    }
}

// ANCHOR: guests
/// `out 0x10, al; hlt`: the same bytes in every mode.
const CODE: [u8; 3] = [0xe6, 0x10, 0xf4];
/// `ud2; hlt`, and the handler of #UD: `out 0x10, al; add qword ptr [rsp], 2; iretq`.
const FAULTING: [u8; 3] = [0x0f, 0x0b, 0xf4];
const HANDLER_CODE: [u8; 9] = [0xe6, 0x10, 0x48, 0x83, 0x04, 0x24, 0x02, 0x48, 0xcf];
const PORT: u16 = 0x10;
// ANCHOR_END: guests

const LOAD_ADDRESS: u64 = 0x1000;
const HANDLER: u64 = 0x1100;
const GDT: u64 = 0x1200;
const IDT: u64 = 0x1300;
const TABLES: u64 = 0x2000;
const MEMORY: usize = 0x6000;
/// A few instructions take microseconds, on every KVM.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the probe guest showed.
pub struct Probed {
    /// At the exit of a plain `out`, RIP is past the instruction.
    pub out_after: bool,
}

/// Why the probe guest did not get through.
#[derive(Debug)]
pub enum Failure {
    /// An ioctl refused.
    Setup {
        /// The ioctl.
        what: &'static str,
        /// Its errno.
        error: Error,
    },
    /// The host gave no memory.
    Memory(MemoryError),
    /// KVM_RUN came back with this instead.
    Ending(String),
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setup { what, error } => write!(f, "{what} failed: {error}"),
            Self::Memory(error) => error.fmt(f),
            Self::Ending(ending) => write!(f, "its probe guest ended in {ending}"),
        }
    }
}

fn setup(what: &'static str) -> impl Fn(Error) -> Failure {
    move |error| Failure::Setup { what, error }
}

fn stuck_or_failed(error: Error) -> Failure {
    const EINTR: i32 = 4;
    match error.errno() {
        EINTR => Failure::Ending(format!("nothing within {PATIENCE:?}")),
        _ => Failure::Setup { what: "KVM_RUN", error },
    }
}

impl Probe {
    /// Enters the guest from outside and expects its `out`, then its `hlt`.
    ///
    /// # Errors
    /// What happened instead.
    pub fn run(self, kvm: &Kvm) -> Result<Probed, Failure> {
        let memory = Memory::new(MEMORY)?;
        let vm = kvm.create_vm().map_err(setup("KVM_CREATE_VM"))?;
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(setup("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(TSS_ADDRESS).map_err(setup("KVM_SET_TSS_ADDR"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.host_address(),
        };
        // SAFETY: `memory` is declared before `vm` and `vcpu`, so it is unmapped after both are gone.
        unsafe { vm.set_user_memory_region(region) }.map_err(setup("KVM_SET_USER_MEMORY_REGION"))?;
        let mut vcpu = vm.create_vcpu(0).map_err(setup("KVM_CREATE_VCPU"))?;
        let cpuid = kvm.get_supported_cpuid(MAX_CPUID_ENTRIES).map_err(setup("KVM_GET_SUPPORTED_CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(setup("KVM_SET_CPUID2"))?;

        let mut sregs = vcpu.get_sregs().map_err(setup("KVM_GET_SREGS"))?;
        self.prepare(&memory, &mut sregs)?;
        vcpu.set_sregs(&sregs).map_err(setup("KVM_SET_SREGS"))?;
        let mut regs = vcpu.get_regs().map_err(setup("KVM_GET_REGS"))?;
        (regs.rip, regs.rsp, regs.rflags) = (LOAD_ADDRESS, MEMORY as u64, mode::rflags::FIXED);
        vcpu.set_regs(&regs).map_err(setup("KVM_SET_REGS"))?;

        // ANCHOR: expect
        let _kick = Kick::arm(vcpu.backend.immediate_exit(), PATIENCE);
        match vcpu.run().map_err(stuck_or_failed)? {
            VcpuExit::IoOut(PORT, _) => {}
            exit => return Err(Failure::Ending(Unexpected::from(exit).0.name().to_owned())),
        }
        let rip = vcpu.get_regs().map_err(setup("KVM_GET_REGS"))?.rip;
        match vcpu.run().map_err(stuck_or_failed)? {
            VcpuExit::Hlt => Ok(Probed { out_after: rip != LOAD_ADDRESS && rip != HANDLER }),
            exit => Err(Failure::Ending(Unexpected::from(exit).0.name().to_owned())),
        }
        // ANCHOR_END: expect
    }

    /// Writes the guest and its tables, and puts the CPU into its mode.
    fn prepare(self, memory: &Memory, sregs: &mut kvm_sregs) -> Result<(), Failure> {
        memory.write(LOAD_ADDRESS, if self == Self::Exception { &FAULTING } else { &CODE })?;
        match self {
            Self::Real => mode::enter_real(sregs),
            Self::Protected => mode::enter_protected(sregs, Descriptor::CODE_32),
            Self::Paging32 => {
                mode::enter_protected(sregs, Descriptor::CODE_32);
                // One page of 4 MiB at 0. Intel SDM Vol. 3A, "32-Bit Paging".
                let page = (entry::PRESENT | entry::WRITABLE | entry::LARGE) as u32;
                memory.write(TABLES, &page.to_le_bytes())?;
                (sregs.cr3, sregs.cr4) = (TABLES, sregs.cr4 | cr4::PSE);
                sregs.cr0 |= cr0::PG;
            }
            Self::Long | Self::Exception => {
                mode::enter_protected(sregs, Descriptor::CODE_64);
                mode::enter_long(sregs, paging::identity_map(memory, TABLES)?);
            }
        }
        if self == Self::Exception {
            memory.write(HANDLER, &HANDLER_CODE)?;
            let gdt = [Descriptor::NULL, Descriptor::CODE_64, Descriptor::DATA];
            memory.write(GDT, &gdt.map(|descriptor| descriptor.0.to_le_bytes()).concat())?;
            (sregs.gdt.base, sregs.gdt.limit) = (GDT, 3 * 8 - 1);
            // Vector 6, #UD: present, 64-bit interrupt gate. SDM Vol. 3A, "64-Bit Mode IDT".
            const INVALID_OPCODE: u64 = 6;
            let gate = HANDLER & 0xffff | u64::from(CODE_SELECTOR) << 16 | 0x8e << 40;
            memory.write(IDT + INVALID_OPCODE * 16, &gate.to_le_bytes())?;
            (sregs.idt.base, sregs.idt.limit) = (IDT, 7 * 16 - 1);
        }
        Ok(())
    }
}
