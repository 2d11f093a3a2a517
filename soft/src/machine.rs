//! A virtual machine: memory slots, and the CPUs that see them.

use std::sync::{Arc, Mutex, PoisonError};

use crate::errno::Errno;
use crate::slots::{Slot, Slots};
use crate::vcpu::Vcpu;

/// A virtual machine: what `KVM_CREATE_VM` makes.
#[derive(Debug, Default)]
pub struct Machine {
    slots: Arc<Mutex<Slots>>,
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

    /// Which pages of a slot were written since it was last asked: `KVM_GET_DIRTY_LOG`. A bit for each
    /// page, the first in the lowest bit of the first word. A vCPU that runs meanwhile may report a page
    /// once more than it wrote it.
    ///
    /// # Errors
    /// `EINVAL` for a number that no slot can have, `ENOENT` for a slot that is not there or has no log.
    pub fn take_dirty_log(&self, slot: u32) -> Result<Vec<u64>, Errno> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).take_dirty_log(slot)
    }

    /// A CPU in the state after reset: `KVM_CREATE_VCPU`.
    #[must_use]
    pub fn create_vcpu(&self) -> Vcpu {
        Vcpu::new(Arc::clone(&self.slots))
    }
}
