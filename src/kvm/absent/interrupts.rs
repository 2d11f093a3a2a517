//! What interrupts need of kvm-bindings, kvm-ioctls and vmm-sys-util, where none
//! of them compiles.
#![allow(non_camel_case_types)]

use std::io;

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

/// An eventfd, which only Linux has.
#[derive(Debug)]
pub struct EventFd(std::convert::Infallible);

impl EventFd {
    /// # Errors
    /// Always.
    pub fn new(_: i32) -> io::Result<Self> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    /// # Errors
    /// Never called.
    pub fn write(&self, _: u64) -> io::Result<()> {
        match self.0 {}
    }

    /// # Errors
    /// Never called.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self.0 {}
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
}

impl VcpuFd {
    pub fn get_lapic(&self) -> Result<kvm_lapic_state> {
        match *self {}
    }

    pub fn set_lapic(&self, _: &kvm_lapic_state) -> Result<()> {
        match *self {}
    }
}
