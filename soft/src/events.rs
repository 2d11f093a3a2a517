//! Events that wait to be delivered, as `KVM_GET_VCPU_EVENTS` shows them.

use crate::cpu::{Cpu, Shadow};
use crate::errno::Errno;
use crate::stop::vector;

/// What waits for the guest, and what holds it back: `struct kvm_vcpu_events`, as far as a CPU without
/// system management mode has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// The exception that the next entry delivers.
    pub exception: Option<Exception>,
    /// The interrupt that the next entry delivers.
    pub interrupt: Option<Interrupt>,
    /// The next instruction is still in the shadow of the one before it: bit 0 after a load of SS, bit 1
    /// after STI.
    pub shadow: u8,
    /// The next entry delivers a non-maskable interrupt.
    pub nmi_injected: bool,
    /// Non-maskable interrupts that wait: one, and one behind it.
    pub nmi_pending: u8,
    /// The guest is in the handler of one: the next waits for its IRET.
    pub nmi_masked: bool,
}

/// An exception to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u8,
    /// The error code that it pushes, if it pushes one.
    pub error_code: Option<u32>,
}

/// An interrupt to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Its vector.
    pub vector: u8,
    /// `int n`, whose instruction is executed already.
    pub soft: bool,
}

/// The bits of `interrupt.shadow`: Linux's `arch/x86/include/uapi/asm/kvm.h`.
pub mod shadow {
    /// SS was loaded: neither interrupt nor trap.
    pub const MOV_SS: u8 = 1;
    /// STI has just set IF: no interrupt.
    pub const STI: u8 = 2;
}

impl Events {
    /// Whether KVM takes them: an exception has a vector below 32, and is no NMI.
    pub(crate) fn check(&self) -> Result<(), Errno> {
        let bad = |exception: Exception| exception.vector > 31 || exception.vector == vector::NMI;
        if self.exception.is_some_and(bad) { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

impl Cpu {
    /// The shadow in KVM's bits.
    pub(crate) fn shadow_bits(&self) -> u8 {
        match self.shadow {
            Shadow::None => 0,
            Shadow::MovSs => shadow::MOV_SS,
            Shadow::Sti => shadow::STI,
        }
    }

    /// Sets it; of two bits, SS's holds back more.
    pub(crate) fn set_shadow_bits(&mut self, bits: u8) {
        self.shadow = if bits & shadow::MOV_SS != 0 {
            Shadow::MovSs
        } else if bits & shadow::STI != 0 {
            Shadow::Sti
        } else {
            Shadow::None
        };
    }
}
