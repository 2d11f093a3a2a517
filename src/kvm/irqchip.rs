//! Interrupt controllers inside KVM, and the descriptors that reach them without
//! a trip through user space. Chapter 13.

#[cfg(not(host_kvm))]
pub use super::absent::eventfd::EventFd;
#[cfg(not(host_kvm))]
pub use super::absent::interrupts::{IoEventAddress, NoDatamatch, kvm_lapic_state, kvm_pit_config};
#[cfg(host_kvm)]
pub use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_lapic_state, kvm_pit_config};
#[cfg(host_kvm)]
pub use kvm_ioctls::{IoEventAddress, NoDatamatch};
#[cfg(host_kvm)]
pub use vmm_sys_util::eventfd::EventFd;

use std::any::TypeId;

use super::{Result, VcpuBackend, VcpuFd, VmBackend, VmFd};

/// `kvm_pit_config.flags`: KVM answers port 0x61 too, whose bits gate the timer's
/// third channel and show its output. `include/uapi/linux/kvm.h`.
#[cfg(not(host_kvm))]
pub const KVM_PIT_SPEAKER_DUMMY: u32 = 1;

impl VmFd {
    /// Creates the pair of 8259s, the I/O APIC and, with each vCPU from now on, a
    /// local APIC, all inside KVM.
    ///
    /// # Errors
    /// `EEXIST` when they are there, `EINVAL` once a vCPU exists.
    pub fn create_irq_chip(&self) -> Result<()> {
        match &self.backend {
            VmBackend::Host(vm) => vm.create_irq_chip()?,
            VmBackend::Soft(vm) => vm.create_irq_chip()?,
        }
        if let Some(watched) = &self.watched {
            let mut slots = watched.slots.lock().expect("nobody panics while holding the slots");
            slots.set_gap("its interrupts came from inside KVM, and when they did is not recorded");
        }
        Ok(())
    }

    /// Creates the timer (8254) inside KVM; it needs the interrupt controllers.
    ///
    /// # Errors
    /// `ENOENT` without them, `EEXIST` when it is there.
    pub fn create_pit2(&self, config: kvm_pit_config) -> Result<()> {
        match &self.backend {
            VmBackend::Host(vm) => vm.create_pit2(config),
            VmBackend::Soft(vm) => vm.create_pit2(),
        }
    }

    /// Raises or lowers an interrupt line of the interrupt controllers.
    ///
    /// # Errors
    /// `ENXIO` without them.
    pub fn set_irq_line(&self, irq: u32, active: bool) -> Result<()> {
        match &self.backend {
            VmBackend::Host(vm) => vm.set_irq_line(irq, active),
            VmBackend::Soft(vm) => vm.set_irq_line(irq, active),
        }
    }

    /// Makes every write to `event` an edge of interrupt line `gsi`.
    ///
    /// # Errors
    /// The errno of `KVM_IRQFD`.
    pub fn register_irqfd(&self, event: &EventFd, gsi: u32) -> Result<()> {
        match &self.backend {
            VmBackend::Host(vm) => vm.register_irqfd(event, gsi),
            VmBackend::Soft(vm) => vm.register_irqfd(event, gsi),
        }
    }

    /// Makes a write of the guest to a port or an address add 1 to `event`, instead
    /// of an exit: a write of `datamatch` with its size, or with [`NoDatamatch`] of anything.
    ///
    /// # Errors
    /// The errno of `KVM_IOEVENTFD`.
    pub fn register_ioevent<T: Into<u64> + 'static>(
        &self,
        event: &EventFd,
        address: &IoEventAddress,
        datamatch: T,
    ) -> Result<()> {
        match &self.backend {
            VmBackend::Host(vm) => vm.register_ioevent(event, address, datamatch),
            VmBackend::Soft(vm) => {
                let anything = TypeId::of::<T>() == TypeId::of::<NoDatamatch>();
                vm.register_ioevent(event, address, (!anything).then(|| (datamatch.into(), size_of::<T>())))
            }
        }
    }
}

impl VcpuFd {
    /// The local APIC's registers.
    ///
    /// # Errors
    /// `EINVAL` where KVM has no local APIC for this vCPU.
    pub fn get_lapic(&self) -> Result<kvm_lapic_state> {
        match &self.backend {
            VcpuBackend::Host(vcpu) => vcpu.get_lapic(),
            VcpuBackend::Soft(vcpu) => vcpu.get_lapic(),
        }
    }

    /// Sets the local APIC's registers.
    ///
    /// # Errors
    /// `EINVAL` where KVM has no local APIC for this vCPU.
    pub fn set_lapic(&self, lapic: &kvm_lapic_state) -> Result<()> {
        match &self.backend {
            VcpuBackend::Host(vcpu) => vcpu.set_lapic(lapic),
            VcpuBackend::Soft(vcpu) => vcpu.set_lapic(lapic),
        }
    }
}
