//! A virtual machine: memory slots, and the CPUs that see them.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::errno::Errno;
use crate::slots::{Slot, Slots};
use crate::vcpu::Vcpu;
use crate::vcpu::board::{Board, Shared};

/// A virtual machine: what `KVM_CREATE_VM` makes.
#[derive(Debug, Default)]
pub struct Machine {
    slots: Arc<Mutex<Slots>>,
    chipset: OnceLock<Arc<Shared>>,
}

impl Machine {
    /// A machine without memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets, replaces or deletes a memory slot: `KVM_SET_USER_MEMORY_REGION`. A vCPU sees the change at
    /// its next run.
    ///
    /// # Safety
    /// The slot's host memory stays mapped, readable and (unless the slot is read-only) writable, for as
    /// long as the machine or one of its vCPUs lives; and no Rust reference into it exists while a vCPU
    /// runs.
    ///
    /// # Errors
    /// `EINVAL` or `EEXIST`, as [`Slots::set`] says.
    #[allow(unsafe_code)]
    pub unsafe fn set_slot(&self, slot: Slot) -> Result<(), Errno> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).set(slot)
    }

    /// Adds the interrupt controllers of a PC, before the first CPU: `KVM_CREATE_IRQCHIP`.
    ///
    /// # Errors
    /// `EEXIST` where there are some.
    pub fn create_irq_chip(&self) -> Result<(), Errno> {
        self.chipset.set(Arc::default()).map_err(|_| Errno::EEXIST)
    }

    /// Whether it has interrupt controllers.
    #[must_use]
    pub fn has_irq_chip(&self) -> bool {
        self.chipset.get().is_some()
    }

    /// Adds the interval timer: `KVM_CREATE_PIT2`.
    ///
    /// # Errors
    /// `ENOENT` without interrupt controllers, `EEXIST` where there is one.
    pub fn create_pit(&self) -> Result<(), Errno> {
        let chipset = self.chipset.get().ok_or(Errno::ENOENT)?;
        if chipset.lock().add_pit() { Ok(()) } else { Err(Errno::EEXIST) }
    }

    /// Raises or lowers an interrupt line: `KVM_IRQ_LINE`.
    ///
    /// # Errors
    /// `ENXIO` without interrupt controllers.
    pub fn set_irq_line(&self, line: u32, high: bool) -> Result<(), Errno> {
        self.chipset.get().ok_or(Errno::ENXIO)?.set_line(line, high);
        Ok(())
    }

    /// Which pages of a slot were written since it was last asked: `KVM_GET_DIRTY_LOG`. A bit for each
    /// page, the first in the lowest bit of the first word. A vCPU that runs meanwhile may report a page
    /// once more than it wrote it.
    ///
    /// # Errors
    /// `EINVAL` for a number that no slot can have, `ENOENT` for a slot that is not there or has no log.
    pub fn take_dirty_log(&self, slot: u32) -> Result<Vec<u64>, Errno> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).take_dirty_log(slot)
    }

    /// A CPU in the state after reset: `KVM_CREATE_VCPU`. Its number is its APIC ID.
    #[must_use]
    pub fn create_vcpu(&self, number: u8) -> Vcpu {
        let board = self.chipset.get().map(|chipset| Board::new(Arc::clone(chipset), usize::from(number)));
        Vcpu::new(Arc::clone(&self.slots), board)
    }
}
