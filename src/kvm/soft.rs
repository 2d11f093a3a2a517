//! The software machine behind KVM's names: package `vmexit-soft`, its structs
//! and exits turned into KVM's.

use std::cell::{RefCell, UnsafeCell};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use vmexit_soft as soft;

mod events;

use events::Events;

use super::{
    API_VERSION, Cap, CpuId, Details, Error, EventFd, IoEventAddress, Msrs, Result, VcpuExit,
    kvm_cpuid_entry2, kvm_debug_exit_arch, kvm_debugregs, kvm_dtable, kvm_fpu, kvm_guest_debug,
    kvm_lapic_state, kvm_regs, kvm_run, kvm_segment, kvm_sregs, kvm_translation, kvm_userspace_memory_region,
    kvm_vcpu_events,
};

/// `include/uapi/linux/kvm.h`.
const KVM_MEM_LOG_DIRTY_PAGES: u32 = 1 << 0;
const KVM_MEM_READONLY: u32 = 1 << 1;
const KVM_GUESTDBG_ENABLE: u32 = 1 << 0;
const KVM_GUESTDBG_SINGLESTEP: u32 = 1 << 1;
const KVM_GUESTDBG_USE_SW_BP: u32 = 1 << 16;
const KVM_GUESTDBG_USE_HW_BP: u32 = 1 << 17;
const KVM_GUESTDBG_INJECT_DB: u32 = 1 << 18;
const KVM_GUESTDBG_INJECT_BP: u32 = 1 << 19;
const KVM_GUESTDBG_BLOCKIRQ: u32 = 1 << 20;
const KVM_VCPUEVENT_VALID_NMI_PENDING: u32 = 1 << 0;
const KVM_VCPUEVENT_VALID_SIPI_VECTOR: u32 = 1 << 1;
const KVM_VCPUEVENT_VALID_SHADOW: u32 = 1 << 2;
const KVM_VCPUEVENT_VALID_SMM: u32 = 1 << 3;
/// As many as KVM recommends for a small host; the limit is nobody's need.
const VCPUS: u64 = 64;
const SLOTS: i32 = 512;

fn errno(error: soft::Errno) -> Error {
    Error::new(error.0)
}

/// The system handle.
pub struct Kvm;

impl Kvm {
    pub fn get_api_version(&self) -> i32 {
        API_VERSION
    }

    pub fn check_extension(&self, capability: Cap) -> bool {
        self.check_extension_int(capability) > 0
    }

    pub fn check_extension_int(&self, capability: Cap) -> i32 {
        match capability {
            Cap::UserMemory
            | Cap::ImmediateExit
            | Cap::SetTssAddr
            | Cap::SetIdentityMapAddr
            | Cap::ExtCpuid
            | Cap::SetGuestDebug
            | Cap::VcpuEvents
            | Cap::Irqchip
            | Cap::Pit2
            | Cap::Ioeventfd
            | Cap::Irqfd
            | Cap::ReadonlyMem => 1,
            Cap::NrVcpus | Cap::MaxVcpus => VCPUS as i32,
            Cap::NrMemslots => SLOTS,
            #[allow(unreachable_patterns)] // kvm-ioctls has more
            _ => 0,
        }
    }

    pub fn get_supported_cpuid(&self, num_entries: usize) -> Result<CpuId> {
        let entries: Vec<_> = soft::supported_cpuid().iter().map(entry_to_kvm).collect();
        if entries.len() > num_entries {
            return Err(errno(soft::Errno::E2BIG));
        }
        CpuId::from_entries(&entries).map_err(|_| errno(soft::Errno::E2BIG))
    }

    pub fn create_vm(&self) -> Result<VmFd> {
        Ok(VmFd { machine: Arc::default(), events: Arc::default(), vcpus: Mutex::new(Vec::new()) })
    }
}

/// A virtual machine.
pub struct VmFd {
    machine: Arc<soft::Machine>,
    events: Arc<Events>,
    /// The numbers that are taken.
    vcpus: Mutex<Vec<u64>>,
}

impl VmFd {
    /// # Safety
    /// As [`super::VmFd::set_user_memory_region`].
    pub unsafe fn set_user_memory_region(&self, region: kvm_userspace_memory_region) -> Result<()> {
        if region.flags & !(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY) != 0 {
            return Err(errno(soft::Errno::EINVAL));
        }
        let slot = soft::Slot {
            slot: region.slot,
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
            read_only: region.flags & KVM_MEM_READONLY != 0,
            log_dirty: region.flags & KVM_MEM_LOG_DIRTY_PAGES != 0,
        };
        // SAFETY: the caller promises what `set_slot` asks for.
        unsafe { self.machine.set_slot(slot) }.map_err(errno)
    }

    pub fn get_dirty_log(&self, slot: u32, memory_size: usize) -> Result<Vec<u64>> {
        let mut log = self.machine.take_dirty_log(slot).map_err(errno)?;
        log.resize(memory_size.div_ceil(4096 * 64), 0);
        Ok(log)
    }

    /// Nothing needs the place that it names; only the rule is KVM's.
    pub fn set_tss_address(&self, offset: usize) -> Result<()> {
        const PAGES: usize = 3 * 4096;
        if offset as u64 > u64::from(u32::MAX) - PAGES as u64 {
            return Err(errno(soft::Errno::EINVAL));
        }
        Ok(())
    }

    /// The same.
    pub fn set_identity_map_address(&self, _: u64) -> Result<()> {
        if self.taken().is_empty() { Ok(()) } else { Err(errno(soft::Errno::EINVAL)) }
    }

    pub fn create_irq_chip(&self) -> Result<()> {
        if !self.taken().is_empty() {
            return Err(errno(soft::Errno::EINVAL));
        }
        self.machine.create_irq_chip().map_err(errno)
    }

    pub fn create_pit2(&self) -> Result<()> {
        self.machine.create_pit().map_err(errno)
    }

    pub fn set_irq_line(&self, irq: u32, active: bool) -> Result<()> {
        self.machine.set_irq_line(irq, active).map_err(errno)
    }

    pub fn register_irqfd(&self, event: &EventFd, line: u32) -> Result<()> {
        if !self.machine.has_irq_chip() {
            return Err(errno(soft::Errno::EINVAL));
        }
        self.events
            .add_line(event, line)
            .map_err(|error| Error::new(error.raw_os_error().unwrap_or(soft::Errno::EINVAL.0)))
    }

    pub fn register_ioevent(
        &self,
        event: &EventFd,
        address: &IoEventAddress,
        value: Option<(u64, usize)>,
    ) -> Result<()> {
        self.events
            .add_bell(event, address, value)
            .map_err(|error| Error::new(error.raw_os_error().unwrap_or(soft::Errno::EINVAL.0)))
    }

    pub fn create_vcpu(&self, id: u64) -> Result<VcpuFd> {
        let mut taken = self.taken();
        if id >= VCPUS {
            return Err(errno(soft::Errno::EINVAL));
        }
        if taken.contains(&id) {
            return Err(errno(soft::Errno::EEXIST));
        }
        taken.push(id);
        Ok(VcpuFd {
            vcpu: RefCell::new(self.machine.create_vcpu(id as u8)),
            run: Box::default(),
            exit: soft::Exit::Budget,
            machine: Arc::clone(&self.machine),
            events: Arc::clone(&self.events),
        })
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.vcpus.lock().expect("nobody panics while holding the numbers")
    }
}

/// A virtual CPU.
pub struct VcpuFd {
    /// KVM's ioctls take `&self`, and one at a time has the vCPU.
    vcpu: RefCell<soft::Vcpu>,
    /// Boxed, because a signal handler holds the address of `immediate_exit`.
    run: Box<UnsafeCell<kvm_run>>,
    /// The last one.
    exit: soft::Exit,
    machine: Arc<soft::Machine>,
    events: Arc<Events>,
}

impl VcpuFd {
    pub fn get_regs(&self) -> Result<kvm_regs> {
        Ok(regs_to_kvm(&self.vcpu.borrow().regs()))
    }

    pub fn set_regs(&self, regs: &kvm_regs) -> Result<()> {
        self.vcpu.borrow_mut().set_regs(&regs_from_kvm(regs));
        Ok(())
    }

    pub fn get_sregs(&self) -> Result<kvm_sregs> {
        Ok(sregs_to_kvm(&self.vcpu.borrow().sregs()))
    }

    pub fn set_sregs(&self, sregs: &kvm_sregs) -> Result<()> {
        self.vcpu.borrow_mut().set_sregs(&sregs_from_kvm(sregs)).map_err(errno)
    }

    pub fn set_cpuid2(&self, cpuid: &CpuId) -> Result<()> {
        let entries: Vec<_> = cpuid.as_slice().iter().map(entry_from_kvm).collect();
        self.vcpu.borrow_mut().set_cpuid2(&entries).map_err(errno)
    }

    pub fn get_fpu(&self) -> Result<kvm_fpu> {
        let soft::Fpu { xmm, fcw, .. } = self.vcpu.borrow().fpu();
        Ok(kvm_fpu { xmm: xmm.map(u128::to_le_bytes), fcw, ..kvm_fpu::default() })
    }

    pub fn set_fpu(&self, fpu: &kvm_fpu) -> Result<()> {
        if (fpu.fsw, fpu.ftwx) != (0, 0) {
            return Err(errno(soft::Errno::EINVAL));
        }
        let xmm = fpu.xmm.map(u128::from_le_bytes);
        let mut vcpu = self.vcpu.borrow_mut();
        let mxcsr = vcpu.fpu().mxcsr;
        vcpu.set_fpu(&soft::Fpu { xmm, mxcsr, fcw: fpu.fcw });
        Ok(())
    }

    pub fn get_msrs(&self, msrs: &mut Msrs) -> Result<usize> {
        let vcpu = self.vcpu.borrow();
        let entries = msrs.as_mut_slice().iter_mut();
        let read = entries.map_while(|entry| {
            entry.data = vcpu.msr(entry.index)?;
            Some(())
        });
        Ok(read.count())
    }

    pub fn set_msrs(&self, msrs: &Msrs) -> Result<usize> {
        let mut vcpu = self.vcpu.borrow_mut();
        Ok(msrs.as_slice().iter().take_while(|entry| vcpu.set_msr(entry.index, entry.data)).count())
    }

    pub fn get_vcpu_events(&self) -> Result<kvm_vcpu_events> {
        Ok(events_to_kvm(&self.vcpu.borrow().events()))
    }

    pub fn set_vcpu_events(&self, events: &kvm_vcpu_events) -> Result<()> {
        let known = KVM_VCPUEVENT_VALID_NMI_PENDING
            | KVM_VCPUEVENT_VALID_SIPI_VECTOR
            | KVM_VCPUEVENT_VALID_SHADOW
            | KVM_VCPUEVENT_VALID_SMM;
        if events.flags & !known != 0 {
            return Err(errno(soft::Errno::EINVAL));
        }
        let mut vcpu = self.vcpu.borrow_mut();
        let events = events_from_kvm(events, &vcpu.events());
        vcpu.set_events(&events).map_err(errno)
    }

    pub fn nmi(&self) -> Result<()> {
        self.vcpu.borrow_mut().nmi();
        Ok(())
    }

    pub fn get_kvm_run(&mut self) -> &mut kvm_run {
        self.run.get_mut()
    }

    pub fn set_guest_debug(&self, debug: &kvm_guest_debug) -> Result<()> {
        let known = KVM_GUESTDBG_ENABLE
            | KVM_GUESTDBG_SINGLESTEP
            | KVM_GUESTDBG_USE_SW_BP
            | KVM_GUESTDBG_USE_HW_BP
            | KVM_GUESTDBG_INJECT_DB
            | KVM_GUESTDBG_INJECT_BP
            | KVM_GUESTDBG_BLOCKIRQ;
        if debug.control & !known != 0 {
            return Err(errno(soft::Errno::EINVAL));
        }
        let mut vcpu = self.vcpu.borrow_mut();
        if debug.control & KVM_GUESTDBG_INJECT_DB != 0 {
            vcpu.inject_debug_exception(1).map_err(errno)?;
        } else if debug.control & KVM_GUESTDBG_INJECT_BP != 0 {
            vcpu.inject_debug_exception(3).map_err(errno)?;
        }
        let asked = |bit| debug.control & KVM_GUESTDBG_ENABLE != 0 && debug.control & bit != 0;
        vcpu.set_single_step(asked(KVM_GUESTDBG_SINGLESTEP));
        vcpu.show_int3(asked(KVM_GUESTDBG_USE_SW_BP));
        vcpu.set_breakpoints(asked(KVM_GUESTDBG_USE_HW_BP).then_some(debug.arch.debugreg));
        vcpu.block_interrupts(asked(KVM_GUESTDBG_BLOCKIRQ));
        Ok(())
    }

    pub fn get_debug_regs(&self) -> Result<kvm_debugregs> {
        let [db0, db1, db2, db3, _, _, dr6, dr7] = self.vcpu.borrow().debug_registers();
        Ok(kvm_debugregs { db: [db0, db1, db2, db3], dr6, dr7, ..kvm_debugregs::default() })
    }

    pub fn set_debug_regs(&self, registers: &kvm_debugregs) -> Result<()> {
        if registers.flags != 0 {
            return Err(errno(soft::Errno::EINVAL));
        }
        let [db0, db1, db2, db3] = registers.db;
        let all = [db0, db1, db2, db3, 0, 0, registers.dr6, registers.dr7];
        self.vcpu.borrow_mut().set_debug_registers(all).map_err(errno)
    }

    pub fn failed_deliveries(&self) -> Vec<soft::FailedDelivery> {
        self.vcpu.borrow().failed_deliveries().to_vec()
    }

    pub fn translate_gva(&self, gva: u64) -> Result<kvm_translation> {
        let found = self.vcpu.borrow().translate_gva(gva);
        Ok(kvm_translation {
            linear_address: gva,
            physical_address: if found.valid { found.physical_address } else { u64::MAX },
            valid: found.valid.into(),
            writeable: found.writeable.into(),
            usermode: found.usermode.into(),
            ..kvm_translation::default()
        })
    }

    /// Every register takes 16 bytes, of which the first four hold it.
    pub fn get_lapic(&self) -> Result<kvm_lapic_state> {
        let registers = self.vcpu.borrow().lapic().map_err(errno)?;
        let mut lapic = kvm_lapic_state { regs: [0; 1024] };
        for (to, register) in lapic.regs.chunks_mut(16).zip(registers) {
            for (to, from) in to.iter_mut().zip(register.to_le_bytes()) {
                *to = from as _;
            }
        }
        Ok(lapic)
    }

    pub fn set_lapic(&self, lapic: &kvm_lapic_state) -> Result<()> {
        let mut registers = [0; 64];
        for (register, from) in registers.iter_mut().zip(lapic.regs.chunks(16)) {
            *register = u32::from_le_bytes([from[0] as u8, from[1] as u8, from[2] as u8, from[3] as u8]);
        }
        self.vcpu.borrow_mut().set_lapic(&registers).map_err(errno)
    }

    pub fn set_kvm_immediate_exit(&mut self, value: u8) {
        // SAFETY: the byte lives as long as `self`, and is written by nobody else but atomically.
        unsafe { AtomicU8::from_ptr(self.immediate_exit()) }.store(value, Ordering::Relaxed);
    }

    pub fn immediate_exit(&mut self) -> *mut u8 {
        // SAFETY: the pointer leads into the box; no reference is formed.
        unsafe { &raw mut (*self.run.get()).immediate_exit }
    }

    /// A run that has used up its instructions ends as one that a signal ended: whoever keeps the time
    /// looks at the clock, and runs again.
    pub fn run(&mut self) -> Result<VcpuExit<'_>> {
        let immediate_exit = self.immediate_exit();
        let (vcpu, run) = (self.vcpu.get_mut(), self.run.get_mut());
        vcpu.want_interrupt_window(run.request_interrupt_window != 0);
        let exit = loop {
            self.events.raise_lines(&self.machine);
            // SAFETY: as in `set_kvm_immediate_exit`.
            let immediate_exit = unsafe { AtomicU8::from_ptr(immediate_exit) }.load(Ordering::Relaxed) != 0;
            match vcpu.run(immediate_exit) {
                Ok(exit) if self.events.ring(exit, exit_data(exit, vcpu)) => {}
                exit => break exit,
            }
        };
        run.if_flag = vcpu.if_flag().into();
        run.ready_for_interrupt_injection = vcpu.ready_for_interrupt_injection().into();
        let sregs = vcpu.sregs();
        (run.cr8, run.apic_base) = (sregs.cr8, sregs.apic_base);
        run.exit_reason = exit_reason(exit);
        let exit = exit.map_err(errno)?;
        self.exit = exit;
        Ok(match exit {
            soft::Exit::IoOut { port, size, count } => {
                VcpuExit::IoOut(port, vcpu.data(usize::from(size) * count as usize))
            }
            soft::Exit::IoIn { port, size, count } => {
                VcpuExit::IoIn(port, vcpu.data_mut(usize::from(size) * count as usize))
            }
            soft::Exit::MmioRead { address, size } => {
                VcpuExit::MmioRead(address, vcpu.data_mut(usize::from(size)))
            }
            soft::Exit::MmioWrite { address, size } => {
                VcpuExit::MmioWrite(address, vcpu.data(usize::from(size)))
            }
            soft::Exit::Hlt => VcpuExit::Hlt,
            soft::Exit::Shutdown => VcpuExit::Shutdown,
            soft::Exit::FailEntry { reason } => VcpuExit::FailEntry(reason, 0),
            soft::Exit::IrqWindowOpen => VcpuExit::IrqWindowOpen,
            soft::Exit::InternalError { .. } => VcpuExit::InternalError,
            soft::Exit::Debug { exception, pc, dr6, dr7 } => {
                VcpuExit::Debug(kvm_debug_exit_arch { exception: exception.into(), pad: 0, pc, dr6, dr7 })
            }
            soft::Exit::Idle => {
                // Whoever raises a line has a clock of his own; one that never comes must not cost a core.
                #[cfg(not(target_family = "wasm"))]
                std::thread::sleep(std::time::Duration::from_millis(1));
                return Err(errno(soft::Errno::EINTR));
            }
            soft::Exit::Budget => return Err(errno(soft::Errno::EINTR)),
        })
    }

    /// What kvm_run says beside the exit.
    pub fn details(&self) -> Details {
        match self.exit {
            soft::Exit::IoOut { size, .. } | soft::Exit::IoIn { size, .. } => {
                Details { io_size: size, ..Details::default() }
            }
            soft::Exit::InternalError { suberror } => {
                let missing = self.vcpu.borrow().missing().map(str::to_owned);
                Details { suberror, missing, ..Details::default() }
            }
            _ => Details::default(),
        }
    }
}

/// What a write of the guest carries.
fn exit_data(exit: soft::Exit, vcpu: &soft::Vcpu) -> &[u8] {
    match exit {
        soft::Exit::IoOut { size, count, .. } => vcpu.data(usize::from(size) * count as usize),
        soft::Exit::MmioWrite { size, .. } => vcpu.data(usize::from(size)),
        _ => &[],
    }
}

/// KVM's number: `include/uapi/linux/kvm.h`.
fn exit_reason(exit: std::result::Result<soft::Exit, soft::Errno>) -> u32 {
    match exit {
        Ok(soft::Exit::IoOut { .. } | soft::Exit::IoIn { .. }) => 2,
        Ok(soft::Exit::Debug { .. }) => 4,
        Ok(soft::Exit::Hlt) => 5,
        Ok(soft::Exit::MmioRead { .. } | soft::Exit::MmioWrite { .. }) => 6,
        Ok(soft::Exit::IrqWindowOpen) => 7,
        Ok(soft::Exit::Shutdown) => 8,
        Ok(soft::Exit::FailEntry { .. }) => 9,
        // A signal.
        Ok(soft::Exit::Budget | soft::Exit::Idle) | Err(_) => 10,
        Ok(soft::Exit::InternalError { .. }) => 17,
    }
}

fn events_to_kvm(e: &soft::Events) -> kvm_vcpu_events {
    let mut events = kvm_vcpu_events::default();
    if let Some(exception) = e.exception {
        (events.exception.injected, events.exception.nr) = (1, exception.vector);
        events.exception.has_error_code = exception.error_code.is_some().into();
        events.exception.error_code = exception.error_code.unwrap_or(0);
    }
    if let Some(interrupt) = e.interrupt {
        (events.interrupt.injected, events.interrupt.nr) = ((!interrupt.soft).into(), interrupt.vector);
    }
    events.interrupt.shadow = e.shadow;
    events.nmi.injected = e.nmi_injected.into();
    (events.nmi.pending, events.nmi.masked) = (e.nmi_pending, e.nmi_masked.into());
    events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
    events
}

/// What the flags do not name stays as it is.
fn events_from_kvm(e: &kvm_vcpu_events, before: &soft::Events) -> soft::Events {
    let named = |flag| e.flags & flag != 0;
    soft::Events {
        exception: (e.exception.injected != 0).then_some(soft::Exception {
            vector: e.exception.nr,
            error_code: (e.exception.has_error_code != 0).then_some(e.exception.error_code),
        }),
        interrupt: (e.interrupt.injected != 0)
            .then_some(soft::Interrupt { vector: e.interrupt.nr, soft: e.interrupt.soft != 0 }),
        shadow: if named(KVM_VCPUEVENT_VALID_SHADOW) { e.interrupt.shadow } else { before.shadow },
        nmi_injected: e.nmi.injected != 0,
        nmi_pending: if named(KVM_VCPUEVENT_VALID_NMI_PENDING) { e.nmi.pending } else { before.nmi_pending },
        nmi_masked: e.nmi.masked != 0,
    }
}

fn regs_to_kvm(r: &soft::Regs) -> kvm_regs {
    kvm_regs {
        rax: r.rax,
        rbx: r.rbx,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        rsp: r.rsp,
        rbp: r.rbp,
        r8: r.r8,
        r9: r.r9,
        r10: r.r10,
        r11: r.r11,
        r12: r.r12,
        r13: r.r13,
        r14: r.r14,
        r15: r.r15,
        rip: r.rip,
        rflags: r.rflags,
    }
}

fn regs_from_kvm(r: &kvm_regs) -> soft::Regs {
    soft::Regs {
        rax: r.rax,
        rbx: r.rbx,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        rsp: r.rsp,
        rbp: r.rbp,
        r8: r.r8,
        r9: r.r9,
        r10: r.r10,
        r11: r.r11,
        r12: r.r12,
        r13: r.r13,
        r14: r.r14,
        r15: r.r15,
        rip: r.rip,
        rflags: r.rflags,
    }
}

fn segment_to_kvm(s: &soft::Segment) -> kvm_segment {
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.type_,
        present: s.present,
        dpl: s.dpl,
        db: s.db,
        s: s.s,
        l: s.l,
        g: s.g,
        avl: s.avl,
        unusable: s.unusable,
        padding: 0,
    }
}

fn segment_from_kvm(s: &kvm_segment) -> soft::Segment {
    soft::Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.type_,
        present: s.present,
        dpl: s.dpl,
        db: s.db,
        s: s.s,
        l: s.l,
        g: s.g,
        avl: s.avl,
        unusable: s.unusable,
    }
}

fn table_to_kvm(table: &soft::Table) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, ..kvm_dtable::default() }
}

fn table_from_kvm(table: &kvm_dtable) -> soft::Table {
    soft::Table { base: table.base, limit: table.limit }
}

fn sregs_to_kvm(s: &soft::Sregs) -> kvm_sregs {
    kvm_sregs {
        cs: segment_to_kvm(&s.cs),
        ds: segment_to_kvm(&s.ds),
        es: segment_to_kvm(&s.es),
        fs: segment_to_kvm(&s.fs),
        gs: segment_to_kvm(&s.gs),
        ss: segment_to_kvm(&s.ss),
        tr: segment_to_kvm(&s.tr),
        ldt: segment_to_kvm(&s.ldt),
        gdt: table_to_kvm(&s.gdt),
        idt: table_to_kvm(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        interrupt_bitmap: s.interrupt_bitmap,
    }
}

fn sregs_from_kvm(s: &kvm_sregs) -> soft::Sregs {
    soft::Sregs {
        cs: segment_from_kvm(&s.cs),
        ds: segment_from_kvm(&s.ds),
        es: segment_from_kvm(&s.es),
        fs: segment_from_kvm(&s.fs),
        gs: segment_from_kvm(&s.gs),
        ss: segment_from_kvm(&s.ss),
        tr: segment_from_kvm(&s.tr),
        ldt: segment_from_kvm(&s.ldt),
        gdt: table_from_kvm(&s.gdt),
        idt: table_from_kvm(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        interrupt_bitmap: s.interrupt_bitmap,
    }
}

fn entry_to_kvm(e: &soft::CpuidEntry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: e.function,
        index: e.index,
        flags: e.flags,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
        ..kvm_cpuid_entry2::default()
    }
}

fn entry_from_kvm(e: &kvm_cpuid_entry2) -> soft::CpuidEntry {
    soft::CpuidEntry {
        function: e.function,
        index: e.index,
        flags: e.flags,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
    }
}
