//! What interrupts need of kvm-bindings, kvm-ioctls and vmm-sys-util, where none
//! of them compiles.
#![allow(non_camel_case_types)]

use super::eventfd::EventFd;
use super::{Result, VcpuFd, VmFd};

/// The timer's configuration.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct kvm_pit_config {
    pub flags: u32,
    pub pad: [u32; 15],
}

/// A local APIC's page of registers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct kvm_lapic_state {
    pub regs: [i8; 1024],
}

/// A port or an address of guest-physical memory.
#[derive(Clone, Copy, Debug)]
pub enum IoEventAddress {
    Pio(u64),
    Mmio(u64),
}

/// "Any value rings": what `register_ioevent` is given instead of one.
#[derive(Clone, Copy, Debug)]
pub struct NoDatamatch;

impl From<NoDatamatch> for u64 {
    fn from(_: NoDatamatch) -> Self {
        0
    }
}

impl VmFd {
    pub fn create_irq_chip(&self) -> Result<()> {
        match *self {}
    }

    pub fn create_pit2(&self, _: kvm_pit_config) -> Result<()> {
        match *self {}
    }

    pub fn set_irq_line(&self, _: u32, _: bool) -> Result<()> {
        match *self {}
    }

    pub fn register_irqfd(&self, _: &EventFd, _: u32) -> Result<()> {
        match *self {}
    }

    pub fn register_ioevent<T: Into<u64>>(&self, _: &EventFd, _: &IoEventAddress, _: T) -> Result<()> {
        match *self {}
    }
}

impl VcpuFd {
    pub fn get_lapic(&self) -> Result<kvm_lapic_state> {
        match *self {}
    }

    pub fn set_lapic(&self, _: &kvm_lapic_state) -> Result<()> {
        match *self {}
    }
}
