//! KVM under its own names: [`Kvm`] opens the system, [`VmFd`] is a virtual
//! machine, [`VcpuFd`] a virtual CPU. Chapter 01 and everything after it.
//!
//! Methods, arguments and results are those of the crate kvm-ioctls, so what
//! is learned here reads the same in Firecracker's source. The one new name is
//! [`Kvm::open`], which picks the backend. Each handle is an enum over the two
//! backends: the host's device, and the software machine.
//!
//! A vCPU that comes from [`Kvm::open`] is *watched*: its deadline is kept,
//! Ctrl-C ends it, and every exit goes to the trace. One that comes from
//! [`Kvm::new`] is not, and costs what kvm-ioctls costs.

#[cfg(not(host_kvm))]
mod absent;
#[cfg(all(test, host_kvm))]
#[path = "kvm/absent/bindings.rs"]
mod portable;
mod irqchip;
mod open;
mod probe;
mod soft;

#[cfg(not(host_kvm))]
use absent as host;
#[cfg(host_kvm)]
use kvm_ioctls as host;

#[cfg(not(host_kvm))]
pub use absent::bindings::{
    kvm_cpuid_entry2, kvm_debug_exit_arch, kvm_debugregs, kvm_dtable, kvm_fpu, kvm_guest_debug,
    kvm_msr_entry, kvm_regs, kvm_run, kvm_segment, kvm_sregs, kvm_translation, kvm_userspace_memory_region,
    kvm_vcpu_events,
};
#[cfg(not(host_kvm))]
pub use absent::{CpuId, Msrs};
pub use host::{Cap, Error, VcpuExit};
pub use irqchip::{
    EventFd, IoEventAddress, KVM_PIT_SPEAKER_DUMMY, NoDatamatch, kvm_lapic_state, kvm_pit_config,
};
#[cfg(host_kvm)]
pub use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debug_exit_arch, kvm_debugregs, kvm_dtable, kvm_fpu, kvm_guest_debug,
    kvm_msr_entry, kvm_regs, kvm_run, kvm_segment, kvm_sregs, kvm_translation, kvm_userspace_memory_region,
    kvm_vcpu_events,
};
pub use open::{Device, OpenError};
pub use probe::{Failure as ProbeFailure, Probe, Probed};
pub(crate) use vmexit_soft::FailedDelivery;

use std::sync::{Arc, Mutex};

use crate::guest::{Memory, Slots};
use crate::run::{Run, Watch};
use crate::trace::Input;

/// What every method returns, as in kvm-ioctls: the errno of the ioctl that failed.
pub type Result<T> = std::result::Result<T, Error>;

/// The one API version that KVM has had since Linux 2.6.22, as the kernel's KVM API documentation
/// says under `KVM_GET_API_VERSION`.
pub const API_VERSION: i32 = 12;

/// Where Intel's KVM may put the three-page task state segment that it needs to
/// run real mode on CPUs without "unrestricted guest": guest-physical, below
/// 4 GiB, outside every memory slot. KVM's API documentation, `KVM_SET_TSS_ADDR`.
pub const TSS_ADDRESS: usize = 0xfffb_d000;

/// Where Intel's KVM may put its one-page identity map, for the same reason:
/// the page below [`TSS_ADDRESS`]. KVM's API documentation, `KVM_SET_IDENTITY_MAP_ADDR`.
pub const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// The most CPUID entries that KVM keeps for a vCPU.
pub const MAX_CPUID_ENTRIES: usize = 256;

/// The system handle, `/dev/kvm`.
pub struct Kvm {
    backend: KvmBackend,
    run: Option<Run>,
}

enum KvmBackend {
    Host(host::Kvm),
    Soft(soft::Kvm),
}

impl Kvm {
    /// Opens `/dev/kvm`; vCPUs made from it are not watched.
    ///
    /// # Errors
    /// The errno of `open`: `ENOENT` where there is no device, `EACCES` where
    /// this user may not open it.
    pub fn new() -> Result<Self> {
        let backend = KvmBackend::Host(host::Kvm::new()?);
        Ok(Self { backend, run: None })
    }

    /// The software machine; vCPUs made from it are not watched.
    #[must_use]
    pub fn soft() -> Self {
        Self { backend: KvmBackend::Soft(soft::Kvm), run: None }
    }

    /// The version of the API, 12 on every KVM since 2007; negative where the file is no KVM device.
    #[must_use]
    pub fn get_api_version(&self) -> i32 {
        match &self.backend {
            KvmBackend::Host(kvm) => kvm.get_api_version(),
            KvmBackend::Soft(kvm) => kvm.get_api_version(),
        }
    }

    /// Whether this KVM has a capability.
    #[must_use]
    pub fn check_extension(&self, capability: Cap) -> bool {
        match &self.backend {
            KvmBackend::Host(kvm) => kvm.check_extension(capability),
            KvmBackend::Soft(kvm) => kvm.check_extension(capability),
        }
    }

    /// A capability's value, for those that are numbers; 0 where it is missing.
    #[must_use]
    pub fn check_extension_int(&self, capability: Cap) -> i32 {
        match &self.backend {
            KvmBackend::Host(kvm) => kvm.check_extension_int(capability),
            KvmBackend::Soft(kvm) => kvm.check_extension_int(capability),
        }
    }

    /// The CPUID leaves that this host's KVM can show to a guest.
    ///
    /// # Errors
    /// `E2BIG` when there are more than `num_entries` (see [`MAX_CPUID_ENTRIES`]).
    pub fn get_supported_cpuid(&self, num_entries: usize) -> Result<CpuId> {
        match &self.backend {
            KvmBackend::Host(kvm) => kvm.get_supported_cpuid(num_entries),
            KvmBackend::Soft(kvm) => kvm.get_supported_cpuid(num_entries),
        }
    }

    /// Creates a virtual machine: no memory and no CPU yet.
    ///
    /// # Errors
    /// `EBUSY` when another hypervisor holds the CPU; otherwise the errno of `KVM_CREATE_VM`.
    pub fn create_vm(&self) -> Result<VmFd> {
        let backend = match &self.backend {
            KvmBackend::Host(kvm) => VmBackend::Host(kvm.create_vm()?),
            KvmBackend::Soft(kvm) => VmBackend::Soft(kvm.create_vm()?),
        };
        let watched = self.run.as_ref().map(|run| Watched {
            run: run.clone(),
            number: run.next_vm(),
            slots: Arc::new(Mutex::new(Slots::default())),
        });
        Ok(VmFd { backend, watched })
    }
}

/// A virtual machine.
pub struct VmFd {
    backend: VmBackend,
    watched: Option<Watched>,
}

enum VmBackend {
    Host(host::VmFd),
    Soft(soft::VmFd),
}

/// What the vCPUs of a watched VM share.
struct Watched {
    run: Run,
    number: u32,
    slots: Arc<Mutex<Slots>>,
}

impl VmFd {
    /// Makes `memory_size` bytes at `userspace_addr` of this process appear at
    /// `guest_phys_addr` of the guest.
    ///
    /// # Safety
    /// The host memory must stay mapped for as long as the VM or one of its
    /// vCPUs lives, and no Rust reference into it may exist while a vCPU runs.
    ///
    /// # Errors
    /// `EINVAL` when an address or the size is no multiple of the page size, or when a slot that is there
    /// would get another size, other host memory or become read-only; `EEXIST` when the slot overlaps another.
    pub unsafe fn set_user_memory_region(&self, region: kvm_userspace_memory_region) -> Result<()> {
        match &self.backend {
            // SAFETY: the caller makes the promise that this function asks for, word for word.
            VmBackend::Host(vm) => unsafe { vm.set_user_memory_region(region)? },
            // SAFETY: the same promise.
            VmBackend::Soft(vm) => unsafe { vm.set_user_memory_region(region)? },
        }
        if let Some(watched) = &self.watched {
            let mut slots = watched.slots.lock().expect("nobody panics while holding the slots");
            // SAFETY: the same promise: the region's host memory outlives the VM.
            unsafe { slots.set(region) };
        }
        Ok(())
    }

    /// Lets the recording of a watched VM hold what the hypervisor writes to this memory, one of its
    /// slots, while the guest runs: without that the run cannot be replayed.
    pub(crate) fn record_writes(&self, memory: &Memory) {
        if let Some(watched) = &self.watched {
            watched.slots.lock().expect("nobody panics while holding the slots").log(memory.writes());
        }
    }

    /// Which pages of a slot the guest has written since the last call: a bit for each page, the first in
    /// the lowest bit of the first word. The slot has `KVM_MEM_LOG_DIRTY_PAGES` among its flags, and
    /// `memory_size` bytes.
    ///
    /// # Errors
    /// `ENOENT` when there is no such slot, or it has no log.
    pub fn get_dirty_log(&self, slot: u32, memory_size: usize) -> Result<Vec<u64>> {
        match &self.backend {
            VmBackend::Host(vm) => vm.get_dirty_log(slot, memory_size),
            VmBackend::Soft(vm) => vm.get_dirty_log(slot, memory_size),
        }
    }

    /// Sets where Intel's KVM keeps its real-mode task state segment; see [`TSS_ADDRESS`].
    ///
    /// # Errors
    /// `EINVAL` when the address is not below 4 GiB.
    pub fn set_tss_address(&self, offset: usize) -> Result<()> {
        match &self.backend {
            VmBackend::Host(vm) => vm.set_tss_address(offset),
            VmBackend::Soft(vm) => vm.set_tss_address(offset),
        }
    }

    /// Sets where Intel's KVM keeps its identity map; see [`IDENTITY_MAP_ADDRESS`].
    ///
    /// # Errors
    /// `EINVAL` once a vCPU exists.
    pub fn set_identity_map_address(&self, address: u64) -> Result<()> {
        match &self.backend {
            VmBackend::Host(vm) => vm.set_identity_map_address(address),
            VmBackend::Soft(vm) => vm.set_identity_map_address(address),
        }
    }

    /// Creates a virtual CPU, in the state that a CPU has after reset.
    ///
    /// # Errors
    /// `EEXIST` when the number is taken, `EINVAL` when it is too large.
    pub fn create_vcpu(&self, id: u64) -> Result<VcpuFd> {
        let backend = match &self.backend {
            VmBackend::Host(vm) => VcpuBackend::Host(vm.create_vcpu(id)?),
            VmBackend::Soft(vm) => VcpuBackend::Soft(Box::new(vm.create_vcpu(id)?)),
        };
        let watch = self.watched.as_ref().map(|watched| {
            let slots = Arc::clone(&watched.slots);
            Box::new(Watch::new(watched.run.clone(), watched.number, id, slots))
        });
        Ok(VcpuFd { watch, backend })
    }
}

/// A virtual CPU. Fields drop in this order: the watch disarms its timer and
/// reads the last answer from kvm_run before the page is unmapped.
pub struct VcpuFd {
    watch: Option<Box<Watch>>,
    backend: VcpuBackend,
}

/// A vCPU of one backend: what [`VcpuFd`] and its watch call.
pub(crate) enum VcpuBackend {
    Host(host::VcpuFd),
    Soft(Box<soft::VcpuFd>),
}

impl VcpuFd {
    /// The general-purpose registers, RIP and RFLAGS.
    ///
    /// # Errors
    /// The errno of `KVM_GET_REGS`.
    pub fn get_regs(&self) -> Result<kvm_regs> {
        self.backend.get_regs()
    }

    /// Sets the general-purpose registers, RIP and RFLAGS.
    ///
    /// # Errors
    /// The errno of `KVM_SET_REGS`.
    pub fn set_regs(&self, regs: &kvm_regs) -> Result<()> {
        self.backend.set_regs(regs)?;
        if let Some(watch) = &self.watch {
            watch.note_set(Some(regs), None);
        }
        Ok(())
    }

    /// The segment, descriptor-table and control registers, and EFER.
    ///
    /// # Errors
    /// The errno of `KVM_GET_SREGS`.
    pub fn get_sregs(&self) -> Result<kvm_sregs> {
        self.backend.get_sregs()
    }

    /// Sets the segment, descriptor-table and control registers, and EFER.
    ///
    /// # Errors
    /// `EINVAL` for a state that KVM can tell to be impossible, such as paging
    /// in long mode without EFER.LMA.
    pub fn set_sregs(&self, sregs: &kvm_sregs) -> Result<()> {
        match &self.backend {
            VcpuBackend::Host(vcpu) => vcpu.set_sregs(sregs)?,
            VcpuBackend::Soft(vcpu) => vcpu.set_sregs(sregs)?,
        }
        if let Some(watch) = &self.watch {
            watch.note_set(None, Some(sregs));
        }
        Ok(())
    }

    /// Sets what the guest's `cpuid` answers, and so which features it may turn on.
    ///
    /// # Errors
    /// `EINVAL` once the vCPU has run.
    pub fn set_cpuid2(&self, cpuid: &CpuId) -> Result<()> {
        match &self.backend {
            VcpuBackend::Host(vcpu) => vcpu.set_cpuid2(cpuid)?,
            VcpuBackend::Soft(vcpu) => vcpu.set_cpuid2(cpuid)?,
        }
        self.tell(|| Input::Cpuid(cpuid.as_slice().to_vec()));
        Ok(())
    }

    /// The x87 FPU's and SSE's registers; MXCSR is not among them, because KVM leaves it out.
    ///
    /// # Errors
    /// The errno of `KVM_GET_FPU`.
    pub fn get_fpu(&self) -> Result<kvm_fpu> {
        match &self.backend {
            VcpuBackend::Host(vcpu) => vcpu.get_fpu(),
            VcpuBackend::Soft(vcpu) => vcpu.get_fpu(),
        }
    }

    /// Sets the x87 FPU's and SSE's registers, but not MXCSR.
    ///
    /// # Errors
    /// The errno of `KVM_SET_FPU`; of the software machine `EINVAL` where an x87 register is in use, because
    /// it has none.
    pub fn set_fpu(&self, fpu: &kvm_fpu) -> Result<()> {
        match &self.backend {
            VcpuBackend::Host(vcpu) => vcpu.set_fpu(fpu)?,
            VcpuBackend::Soft(vcpu) => vcpu.set_fpu(fpu)?,
        }
        self.tell(|| Input::Fpu(Box::new(*fpu)));
        Ok(())
    }

    /// Reads the model-specific registers that `msrs` names into it; returns how many it read before one
    /// that the CPU has not.
    ///
    /// # Errors
    /// The errno of `KVM_GET_MSRS`.
    pub fn get_msrs(&self, msrs: &mut Msrs) -> Result<usize> {
        self.backend.get_msrs(msrs)
    }

    /// Sets model-specific registers; returns how many it set before one that the CPU has not, or that
    /// cannot hold its value. Set CPUID first.
    ///
    /// # Errors
    /// The errno of `KVM_SET_MSRS`.
    pub fn set_msrs(&self, msrs: &Msrs) -> Result<usize> {
        let set = match &self.backend {
            VcpuBackend::Host(vcpu) => vcpu.set_msrs(msrs)?,
            VcpuBackend::Soft(vcpu) => vcpu.set_msrs(msrs)?,
        };
        self.tell(|| {
            let taken = msrs.as_slice().iter().take(set);
            Input::Msrs(taken.map(|entry| (entry.index, entry.data)).collect())
        });
        Ok(set)
    }

    /// The exceptions and interrupts that the next entry delivers, and what holds them back.
    ///
    /// # Errors
    /// The errno of `KVM_GET_VCPU_EVENTS`.
    pub fn get_vcpu_events(&self) -> Result<kvm_vcpu_events> {
        match &self.backend {
            VcpuBackend::Host(vcpu) => vcpu.get_vcpu_events(),
            VcpuBackend::Soft(vcpu) => vcpu.get_vcpu_events(),
        }
    }

    /// Sets them. Without an interrupt controller in the kernel, `interrupt.injected` and `interrupt.nr`
    /// are how an interrupt is injected: do so when kvm_run's `ready_for_interrupt_injection` says that
    /// the guest can take one.
    ///
    /// # Errors
    /// `EINVAL` for a flag that KVM does not know, or an exception that is none.
    pub fn set_vcpu_events(&self, vcpu_events: &kvm_vcpu_events) -> Result<()> {
        match &self.backend {
            VcpuBackend::Host(vcpu) => vcpu.set_vcpu_events(vcpu_events)?,
            VcpuBackend::Soft(vcpu) => vcpu.set_vcpu_events(vcpu_events)?,
        }
        self.tell(|| Input::Events(Box::new(*vcpu_events)));
        Ok(())
    }

    /// Queues a non-maskable interrupt.
    ///
    /// # Errors
    /// The errno of `KVM_NMI`.
    pub fn nmi(&self) -> Result<()> {
        match &self.backend {
            VcpuBackend::Host(vcpu) => vcpu.nmi()?,
            VcpuBackend::Soft(vcpu) => vcpu.nmi()?,
        }
        self.tell(|| Input::Nmi);
        Ok(())
    }

    /// The page that KVM shares with the vCPU's owner: what the last exit said, and what the next entry
    /// is asked for.
    pub fn get_kvm_run(&mut self) -> &mut kvm_run {
        match &mut self.backend {
            VcpuBackend::Host(vcpu) => vcpu.get_kvm_run(),
            VcpuBackend::Soft(vcpu) => vcpu.get_kvm_run(),
        }
    }

    /// Sets single-stepping and breakpoints from outside the guest.
    ///
    /// # Errors
    /// The errno of `KVM_SET_GUEST_DEBUG`.
    pub fn set_guest_debug(&self, debug: &kvm_guest_debug) -> Result<()> {
        self.backend.set_guest_debug(debug)?;
        self.tell(|| Input::GuestDebug(Box::new(*debug)));
        Ok(())
    }

    /// The guest's debug registers.
    ///
    /// # Errors
    /// The errno of `KVM_GET_DEBUGREGS`.
    pub fn get_debug_regs(&self) -> Result<kvm_debugregs> {
        match &self.backend {
            VcpuBackend::Host(vcpu) => vcpu.get_debug_regs(),
            VcpuBackend::Soft(vcpu) => vcpu.get_debug_regs(),
        }
    }

    /// Sets the guest's debug registers.
    ///
    /// # Errors
    /// `EINVAL` where DR6 or DR7 has bits above 31.
    pub fn set_debug_regs(&self, debug_regs: &kvm_debugregs) -> Result<()> {
        match &self.backend {
            VcpuBackend::Host(vcpu) => vcpu.set_debug_regs(debug_regs)?,
            VcpuBackend::Soft(vcpu) => vcpu.set_debug_regs(debug_regs)?,
        }
        self.tell(|| Input::DebugRegs(Box::new(*debug_regs)));
        Ok(())
    }

    /// Notes what the hypervisor has set, where the vCPU is watched.
    fn tell(&self, input: impl FnOnce() -> Input) {
        if let Some(watch) = &self.watch {
            watch.tell(input());
        }
    }

    /// The deliveries that failed before [`VcpuExit::Shutdown`]; only the software machine knows them.
    pub(crate) fn failed_deliveries(&self) -> Vec<FailedDelivery> {
        match &self.backend {
            VcpuBackend::Host(_) => Vec::new(),
            VcpuBackend::Soft(vcpu) => vcpu.failed_deliveries(),
        }
    }

    /// Translates a linear address of the guest as its MMU would.
    ///
    /// # Errors
    /// The errno of `KVM_TRANSLATE`; an unmapped address is no error but `valid == 0`.
    pub fn translate_gva(&self, gva: u64) -> Result<kvm_translation> {
        self.backend.translate_gva(gva)
    }

    /// Whether the next [`run`](Self::run) returns at once with `EINTR`, after
    /// it has completed the I/O of the last exit. Any value but 0 means yes.
    pub fn set_kvm_immediate_exit(&mut self, value: u8) {
        match &mut self.watch {
            None => self.backend.set_kvm_immediate_exit(value),
            Some(watch) => watch.set_immediate_exit(value),
        }
    }

    /// Enters the guest and returns at its next exit.
    ///
    /// # Errors
    /// `EINTR` when `immediate_exit` is set or a signal came (a watched vCPU: only when its
    /// deadline passed or Ctrl-C was typed), otherwise the errno of `KVM_RUN`.
    pub fn run(&mut self) -> Result<VcpuExit<'_>> {
        match &mut self.watch {
            None => match &mut self.backend {
                VcpuBackend::Host(vcpu) => vcpu.run(),
                VcpuBackend::Soft(vcpu) => vcpu.run(),
            },
            Some(watch) => watch.run(&mut self.backend),
        }
    }
}

impl VcpuBackend {
    pub(crate) fn get_regs(&self) -> Result<kvm_regs> {
        match self {
            Self::Host(vcpu) => vcpu.get_regs(),
            Self::Soft(vcpu) => vcpu.get_regs(),
        }
    }

    pub(crate) fn set_regs(&self, regs: &kvm_regs) -> Result<()> {
        match self {
            Self::Host(vcpu) => vcpu.set_regs(regs),
            Self::Soft(vcpu) => vcpu.set_regs(regs),
        }
    }

    pub(crate) fn get_sregs(&self) -> Result<kvm_sregs> {
        match self {
            Self::Host(vcpu) => vcpu.get_sregs(),
            Self::Soft(vcpu) => vcpu.get_sregs(),
        }
    }

    fn get_msrs(&self, msrs: &mut Msrs) -> Result<usize> {
        match self {
            Self::Host(vcpu) => vcpu.get_msrs(msrs),
            Self::Soft(vcpu) => vcpu.get_msrs(msrs),
        }
    }

    /// A model-specific register, if this CPU has it.
    pub(crate) fn get_msr(&self, index: u32) -> Option<u64> {
        let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..kvm_msr_entry::default() }]).ok()?;
        let read = self.get_msrs(&mut msrs).ok()?;
        (read == 1).then(|| msrs.as_slice()[0].data)
    }

    /// # Errors
    /// `EINVAL` where the CPU has no such register, or it cannot hold the value.
    pub(crate) fn set_msr(&self, index: u32, data: u64) -> Result<()> {
        const EINVAL: i32 = 22;
        let entry = kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
        let msrs = Msrs::from_entries(&[entry]).map_err(|_| Error::new(EINVAL))?;
        let set = match self {
            Self::Host(vcpu) => vcpu.set_msrs(&msrs)?,
            Self::Soft(vcpu) => vcpu.set_msrs(&msrs)?,
        };
        if set == 1 { Ok(()) } else { Err(Error::new(EINVAL)) }
    }

    /// Whether single-stepping works by the guest's RFLAGS.TF, as the host's KVM does it.
    pub(crate) fn steps_by_trap_flag(&self) -> bool {
        matches!(self, Self::Host(_))
    }

    pub(crate) fn set_guest_debug(&self, debug: &kvm_guest_debug) -> Result<()> {
        match self {
            Self::Host(vcpu) => vcpu.set_guest_debug(debug),
            Self::Soft(vcpu) => vcpu.set_guest_debug(debug),
        }
    }

    pub(crate) fn translate_gva(&self, gva: u64) -> Result<kvm_translation> {
        match self {
            Self::Host(vcpu) => vcpu.translate_gva(gva),
            Self::Soft(vcpu) => vcpu.translate_gva(gva),
        }
    }

    pub(crate) fn set_kvm_immediate_exit(&mut self, value: u8) {
        match self {
            Self::Host(vcpu) => vcpu.set_kvm_immediate_exit(value),
            Self::Soft(vcpu) => vcpu.set_kvm_immediate_exit(value),
        }
    }

    /// Whether kvm_run asks for the exit `KVM_EXIT_IRQ_WINDOW_OPEN`.
    pub(crate) fn wants_interrupt_window(&mut self) -> bool {
        let run = match self {
            Self::Host(vcpu) => vcpu.get_kvm_run(),
            Self::Soft(vcpu) => vcpu.get_kvm_run(),
        };
        run.request_interrupt_window != 0
    }

    /// The byte of kvm_run that a signal handler sets to end `KVM_RUN`.
    pub(crate) fn immediate_exit(&mut self) -> *mut u8 {
        match self {
            Self::Host(vcpu) => &raw mut vcpu.get_kvm_run().immediate_exit,
            Self::Soft(vcpu) => vcpu.immediate_exit(),
        }
    }

    pub(crate) fn run(&mut self) -> Result<VcpuExit<'_>> {
        match self {
            Self::Host(vcpu) => vcpu.run(),
            Self::Soft(vcpu) => vcpu.run(),
        }
    }

    /// What kvm_run says of the last exit beyond [`VcpuExit`].
    pub(crate) fn details(&mut self) -> Details {
        match self {
            #[cfg(host_kvm)]
            Self::Host(vcpu) => Details::of(vcpu.get_kvm_run()),
            #[cfg(not(host_kvm))]
            Self::Host(vcpu) => match *vcpu {},
            Self::Soft(vcpu) => vcpu.details(),
        }
    }
}

/// What kvm_run says of an exit and kvm-ioctls' [`VcpuExit`] leaves out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// `KVM_EXIT_IO`: bytes an item (1, 2 or 4); an `outw` and a `rep outsb` of
    /// two bytes differ in nothing else.
    pub io_size: u8,
    /// `KVM_EXIT_INTERNAL_ERROR`: what KVM could not do; see [`crate::exit::suberror`].
    pub suberror: u32,
    /// What the software machine does not implement, as a sentence.
    pub missing: Option<String>,
}

impl Details {
    #[cfg(host_kvm)]
    fn of(run: &kvm_bindings::kvm_run) -> Self {
        // SAFETY: the union's members are plain integers, valid for any bytes; each is read only
        // under the exit reason for which KVM fills it.
        unsafe {
            match run.exit_reason {
                kvm_bindings::KVM_EXIT_IO => {
                    Self { io_size: run.__bindgen_anon_1.io.size, ..Self::default() }
                }
                kvm_bindings::KVM_EXIT_INTERNAL_ERROR => {
                    Self { suberror: run.__bindgen_anon_1.internal.suberror, ..Self::default() }
                }
                _ => Self::default(),
            }
        }
    }
}

#[cfg(all(test, host_kvm))]
mod tests {
    use super::portable;
    use std::mem::{offset_of, size_of};

    macro_rules! same_layout {
        ($name:ident: $($field:ident),*) => {
            assert_eq!(size_of::<portable::$name>(), size_of::<kvm_bindings::$name>());
            $(same_place!($name, $field);)*
        };
    }
    macro_rules! same_place {
        ($name:ident, $($field:ident).+) => {
            assert_eq!(
                offset_of!(portable::$name, $($field).+),
                offset_of!(kvm_bindings::$name, $($field).+),
                concat!(stringify!($name), ".", stringify!($($field).+)),
            );
        };
    }

    #[test]
    fn the_portable_structs_are_laid_out_like_the_kernels() {
        same_layout!(kvm_regs: rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags);
        same_layout!(kvm_segment: base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable);
        same_layout!(kvm_dtable: base, limit);
        same_layout!(kvm_sregs: cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupt_bitmap);
        same_layout!(kvm_translation: linear_address, physical_address, valid, writeable, usermode);
        same_layout!(kvm_debug_exit_arch: exception, pc, dr6, dr7);
        same_layout!(kvm_debugregs: db, dr6, dr7, flags);
        same_layout!(kvm_fpu: fpr, fcw, fsw, ftwx, last_opcode, last_ip, last_dp, xmm, mxcsr);
        same_layout!(kvm_guest_debug: control, arch);
        same_layout!(kvm_cpuid_entry2: function, index, flags, eax, ebx, ecx, edx);
        same_layout!(kvm_userspace_memory_region: slot, flags, guest_phys_addr, memory_size, userspace_addr);
        same_layout!(kvm_msr_entry: index, data);
        same_layout!(kvm_vcpu_events: exception, interrupt, nmi, sipi_vector, flags, smi, triple_fault, exception_has_payload, exception_payload);
        same_place!(kvm_vcpu_events, exception.injected);
        same_place!(kvm_vcpu_events, exception.nr);
        same_place!(kvm_vcpu_events, exception.has_error_code);
        same_place!(kvm_vcpu_events, exception.pending);
        same_place!(kvm_vcpu_events, exception.error_code);
        same_place!(kvm_vcpu_events, interrupt.injected);
        same_place!(kvm_vcpu_events, interrupt.nr);
        same_place!(kvm_vcpu_events, interrupt.soft);
        same_place!(kvm_vcpu_events, interrupt.shadow);
        same_place!(kvm_vcpu_events, nmi.injected);
        same_place!(kvm_vcpu_events, nmi.pending);
        same_place!(kvm_vcpu_events, nmi.masked);
        same_place!(kvm_run, request_interrupt_window);
        same_place!(kvm_run, immediate_exit);
        same_place!(kvm_run, exit_reason);
        same_place!(kvm_run, ready_for_interrupt_injection);
        same_place!(kvm_run, if_flag);
        same_place!(kvm_run, flags);
        same_place!(kvm_run, cr8);
        same_place!(kvm_run, apic_base);
    }
}
