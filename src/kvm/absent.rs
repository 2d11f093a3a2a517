//! Where there is no KVM (macOS, Windows, wasm, ARM): the host backend's types,
//! of which no value can exist. Opening says so in words; everything after it
//! compiles and is unreachable, by type and not by promise.

pub mod bindings;
pub mod eventfd;
pub mod interrupts;

use std::fmt;

use bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_fpu, kvm_guest_debug, kvm_msr_entry, kvm_regs, kvm_run, kvm_sregs,
    kvm_translation, kvm_userspace_memory_region, kvm_vcpu_events,
};

type Result<T> = std::result::Result<T, Error>;

/// An errno, as kvm-ioctls' error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error(i32);

impl Error {
    pub fn new(errno: i32) -> Self {
        Self(errno)
    }

    pub fn errno(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl std::error::Error for Error {}

/// The capabilities that the library asks for.
#[derive(Clone, Copy, Debug)]
pub enum Cap {
    UserMemory,
    ImmediateExit,
    NrVcpus,
    MaxVcpus,
    NrMemslots,
    TscDeadlineTimer,
    SetTssAddr,
    SetIdentityMapAddr,
    ExtCpuid,
    SetGuestDebug,
    VcpuEvents,
    Irqchip,
    Pit2,
    Ioeventfd,
    Irqfd,
    ReadonlyMem,
}

/// The exits that the library names; kvm-ioctls has these and more.
#[derive(Debug)]
pub enum VcpuExit<'a> {
    IoOut(u16, &'a [u8]),
    IoIn(u16, &'a mut [u8]),
    MmioRead(u64, &'a mut [u8]),
    MmioWrite(u64, &'a [u8]),
    Debug(bindings::kvm_debug_exit_arch),
    Hlt,
    Shutdown,
    FailEntry(u64, u32),
    Intr,
    IrqWindowOpen,
    InternalError,
}

/// CPUID entries, as kvm-bindings wraps them.
#[derive(Clone, Debug)]
pub struct CpuId(Vec<kvm_cpuid_entry2>);

impl CpuId {
    /// # Errors
    /// None; kvm-bindings' has a limit.
    pub fn from_entries(entries: &[kvm_cpuid_entry2]) -> std::result::Result<Self, std::convert::Infallible> {
        Ok(Self(entries.to_vec()))
    }

    pub fn as_slice(&self) -> &[kvm_cpuid_entry2] {
        &self.0
    }
}

/// Model-specific registers, as kvm-bindings wraps them.
#[derive(Clone, Debug)]
pub struct Msrs(Vec<kvm_msr_entry>);

impl Msrs {
    /// # Errors
    /// None; kvm-bindings' has a limit.
    pub fn from_entries(entries: &[kvm_msr_entry]) -> std::result::Result<Self, std::convert::Infallible> {
        Ok(Self(entries.to_vec()))
    }

    pub fn as_slice(&self) -> &[kvm_msr_entry] {
        &self.0
    }

    pub fn as_mut_slice(&mut self) -> &mut [kvm_msr_entry] {
        &mut self.0
    }
}

pub enum Kvm {}
pub enum VmFd {}
pub enum VcpuFd {}

const NO_SUCH_DEVICE: Error = Error(19);

impl Kvm {
    pub fn new() -> Result<Self> {
        Err(NO_SUCH_DEVICE)
    }

    pub fn get_api_version(&self) -> i32 {
        match *self {}
    }

    pub fn check_extension(&self, _: Cap) -> bool {
        match *self {}
    }

    pub fn check_extension_int(&self, _: Cap) -> i32 {
        match *self {}
    }

    pub fn get_supported_cpuid(&self, _: usize) -> Result<CpuId> {
        match *self {}
    }

    pub fn create_vm(&self) -> Result<VmFd> {
        match *self {}
    }
}

impl VmFd {
    /// # Safety
    /// Nothing is asked: it cannot be called.
    pub unsafe fn set_user_memory_region(&self, _: kvm_userspace_memory_region) -> Result<()> {
        match *self {}
    }

    pub fn get_dirty_log(&self, _: u32, _: usize) -> Result<Vec<u64>> {
        match *self {}
    }

    pub fn set_tss_address(&self, _: usize) -> Result<()> {
        match *self {}
    }

    pub fn set_identity_map_address(&self, _: u64) -> Result<()> {
        match *self {}
    }

    pub fn create_vcpu(&self, _: u64) -> Result<VcpuFd> {
        match *self {}
    }
}

impl VcpuFd {
    pub fn get_regs(&self) -> Result<kvm_regs> {
        match *self {}
    }

    pub fn set_regs(&self, _: &kvm_regs) -> Result<()> {
        match *self {}
    }

    pub fn get_sregs(&self) -> Result<kvm_sregs> {
        match *self {}
    }

    pub fn set_sregs(&self, _: &kvm_sregs) -> Result<()> {
        match *self {}
    }

    pub fn set_cpuid2(&self, _: &CpuId) -> Result<()> {
        match *self {}
    }

    pub fn get_fpu(&self) -> Result<kvm_fpu> {
        match *self {}
    }

    pub fn set_fpu(&self, _: &kvm_fpu) -> Result<()> {
        match *self {}
    }

    pub fn get_msrs(&self, _: &mut Msrs) -> Result<usize> {
        match *self {}
    }

    pub fn set_msrs(&self, _: &Msrs) -> Result<usize> {
        match *self {}
    }

    pub fn get_vcpu_events(&self) -> Result<kvm_vcpu_events> {
        match *self {}
    }

    pub fn set_vcpu_events(&self, _: &kvm_vcpu_events) -> Result<()> {
        match *self {}
    }

    pub fn nmi(&self) -> Result<()> {
        match *self {}
    }

    pub fn set_guest_debug(&self, _: &kvm_guest_debug) -> Result<()> {
        match *self {}
    }

    pub fn get_debug_regs(&self) -> Result<kvm_debugregs> {
        match *self {}
    }

    pub fn set_debug_regs(&self, _: &kvm_debugregs) -> Result<()> {
        match *self {}
    }

    pub fn translate_gva(&self, _: u64) -> Result<kvm_translation> {
        match *self {}
    }

    pub fn set_kvm_immediate_exit(&mut self, _: u8) {
        match *self {}
    }

    pub fn get_kvm_run(&mut self) -> &mut kvm_run {
        match *self {}
    }

    pub fn run(&mut self) -> Result<VcpuExit<'_>> {
        match *self {}
    }
}
