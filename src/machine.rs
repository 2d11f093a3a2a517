//! A VM put together as chapter 01 does it by hand: memory, one slot, one CPU.

use anyhow::{Context, Result};

use crate::guest::{Image, Memory};
use crate::kvm::{
    IDENTITY_MAP_ADDRESS, KVM_PIT_SPEAKER_DUMMY, Kvm, MAX_CPUID_ENTRIES, TSS_ADDRESS, VcpuFd, VmFd,
    kvm_pit_config, kvm_userspace_memory_region,
};
use crate::mode::{enter_real, rflags};
use crate::paging::{self, Access, Features, Paging, Walk};

/// A virtual machine with one CPU. Fields drop in this order: KVM lets go of
/// the memory before it is unmapped.
pub struct Machine {
    pub vcpu: VcpuFd,
    pub vm: VmFd,
    pub memory: Memory,
    /// What the guest's CPUID says of its paging.
    features: Features,
}

impl Machine {
    /// A machine whose RAM, at guest-physical 0, is `memory`, and whose CPU has
    /// just been reset: real mode, with CS moved to selector 0, and the features
    /// of the host's CPU that KVM can give.
    ///
    /// # Errors
    /// The ioctl that failed, with its errno.
    pub fn new(kvm: &Kvm, memory: Memory) -> Result<Self> {
        Self::build(kvm, memory, false)
    }

    /// The same with interrupt controllers and a timer inside KVM.
    ///
    /// # Errors
    /// The ioctl that failed, with its errno.
    pub fn with_irqchip(kvm: &Kvm, memory: Memory) -> Result<Self> {
        Self::build(kvm, memory, true)
    }

    fn build(kvm: &Kvm, memory: Memory, irqchip: bool) -> Result<Self> {
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).context("KVM_SET_IDENTITY_MAP_ADDR")?;
        vm.set_tss_address(TSS_ADDRESS).context("KVM_SET_TSS_ADDR")?;
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: memory.size() as u64,
            userspace_addr: memory.host_address(),
        };
        // SAFETY: the region is exactly `memory`, which the machine owns and drops last.
        unsafe { vm.set_user_memory_region(slot) }.context("KVM_SET_USER_MEMORY_REGION")?;
        vm.record_writes(&memory);
        if irqchip {
            vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
            let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
            vm.create_pit2(config).context("KVM_CREATE_PIT2")?;
        }
        let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        let cpuid = kvm.get_supported_cpuid(MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
        let machine = Self { vcpu, vm, memory, features: Features::of(&cpuid) };
        machine.vcpu.set_cpuid2(&cpuid).context("KVM_SET_CPUID2")?;
        let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
        enter_real(&mut sregs);
        machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
        Ok(machine)
    }

    /// Loads an image and points RIP at its first instruction.
    ///
    /// # Errors
    /// When the image does not fit into the memory, or an ioctl fails.
    pub fn load(&self, image: &Image) -> Result<()> {
        self.memory.load(image)?;
        self.start_at(image.entry())
    }

    /// Points RIP at `rip`.
    ///
    /// # Errors
    /// The ioctl that failed, with its errno.
    pub fn start_at(&self, rip: u64) -> Result<()> {
        let mut regs = self.vcpu.get_regs().context("KVM_GET_REGS")?;
        (regs.rip, regs.rflags) = (rip, rflags::FIXED);
        self.vcpu.set_regs(&regs).context("KVM_SET_REGS")
    }
    /// Walks the guest's page tables for one access, with its registers as they are.
    ///
    /// # Errors
    /// The ioctl that failed, with its errno.
    pub fn walk(&self, linear: u64, access: Access) -> Result<Walk> {
        let sregs = self.vcpu.get_sregs().context("KVM_GET_SREGS")?;
        let regs = self.vcpu.get_regs().context("KVM_GET_REGS")?;
        let paging = Paging::of(&sregs, regs.rflags, self.features);
        Ok(paging::walk(&self.memory, &paging, linear, access))
    }
}
