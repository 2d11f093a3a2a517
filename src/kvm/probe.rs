//! A guest of three bytes that shows whether a KVM can run a mode at all: its
//! set-up ioctls may all succeed and its KVM_RUN still fail.

use std::time::Duration;

use super::{
    Error, IDENTITY_MAP_ADDRESS, Kvm, MAX_CPUID_ENTRIES, TSS_ADDRESS, VcpuExit, kvm_userspace_memory_region,
};
use crate::exit::Unexpected;
use crate::guest::{Memory, MemoryError};
use crate::mode::{self, Mode};
use crate::run::interrupt::Kick;
use crate::{paging, segment::Descriptor};

/// `out 0x10, al; hlt`: the same bytes in every mode.
const CODE: [u8; 3] = [0xe6, 0x10, 0xf4];
const PORT: u16 = 0x10;
const LOAD_ADDRESS: u64 = 0x1000;
const TABLES: u64 = 0x2000;
const MEMORY: usize = 0x5000;
/// Three instructions take microseconds, on every KVM.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the probe guest showed.
pub struct Probed {
    /// At the exit of a plain `out`, RIP is past the instruction.
    pub out_after: bool,
}

/// Why the probe guest did not get through.
pub enum Failure {
    Setup {
        what: &'static str,
        error: Error,
    },
    Memory(MemoryError),
    /// KVM_RUN came back with this instead.
    Ending(String),
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
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

/// Enters a guest in `mode` from outside and expects its `out`, then its `hlt`.
pub fn run(kvm: &Kvm, mode: Mode) -> Result<Probed, Failure> {
    let memory = Memory::new(MEMORY)?;
    memory.write(LOAD_ADDRESS, &CODE)?;
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
    match mode {
        Mode::Real => (sregs.cs.selector, sregs.cs.base) = (0, 0),
        Mode::Protected16 | Mode::Protected32 => mode::enter_protected(&mut sregs, Descriptor::CODE_32),
        Mode::Compatibility16 | Mode::Compatibility32 | Mode::Long64 => {
            mode::enter_protected(&mut sregs, Descriptor::CODE_64);
            mode::enter_long(&mut sregs, paging::identity_map(&memory, TABLES)?);
        }
    }
    vcpu.set_sregs(&sregs).map_err(setup("KVM_SET_SREGS"))?;
    let mut regs = vcpu.get_regs().map_err(setup("KVM_GET_REGS"))?;
    (regs.rip, regs.rflags) = (LOAD_ADDRESS, mode::rflags::FIXED);
    vcpu.set_regs(&regs).map_err(setup("KVM_SET_REGS"))?;

    let _kick = Kick::arm(vcpu.backend.immediate_exit(), PATIENCE);
    match vcpu.run().map_err(stuck_or_failed)? {
        VcpuExit::IoOut(PORT, _) => {}
        exit => return Err(Failure::Ending(Unexpected::from(exit).0.name().to_owned())),
    }
    let out_after = vcpu.get_regs().map_err(setup("KVM_GET_REGS"))?.rip != LOAD_ADDRESS;
    match vcpu.run().map_err(stuck_or_failed)? {
        VcpuExit::Hlt => Ok(Probed { out_after }),
        exit => Err(Failure::Ending(Unexpected::from(exit).0.name().to_owned())),
    }
}
