//! A virtual CPU: KVM's ioctls as methods. KVM_RUN's loop is in [`run`].

pub(crate) mod board;
mod inject;
mod missing;
mod run;

use std::sync::{Arc, Mutex};

use crate::cache::Cache;
use crate::cpu::Cpu;
use crate::cpuid::CpuidEntry;
use crate::errno::Errno;
use crate::events::{Events, Exception, Interrupt};
use crate::exit::Exit;
use crate::interrupt::FailedDelivery;
use crate::registers::{Fpu, Regs, Sregs, cr0, cr4, rflags};
use crate::slots::Slots;
use board::Board;

/// A virtual CPU.
pub struct Vcpu {
    cpu: Cpu,
    cache: Cache,
    slots: Arc<Mutex<Slots>>,
    single_step: bool,
    interrupts_blocked: bool,
    has_run: bool,
    /// What the next entry delivers; the shadow and the NMI's mask are the CPU's.
    events: Events,
    window_wanted: bool,
    missing: Option<String>,
    /// Where the machine has interrupt controllers.
    board: Option<Board>,
}

/// Where a linear address is: `struct kvm_translation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub physical_address: u64,
    /// It is mapped.
    pub valid: bool,
    /// It may be written, to the ring that asks.
    pub writeable: bool,
    /// Ring 3 may use it.
    pub usermode: bool,
}

impl Vcpu {
    pub(crate) fn new(slots: Arc<Mutex<Slots>>, board: Option<Board>) -> Self {
        let mut vcpu = Self {
            cpu: Cpu::reset(),
            cache: Cache::default(),
            slots,
            single_step: false,
            interrupts_blocked: false,
            has_run: false,
            events: Events::default(),
            window_wanted: false,
            missing: None,
            board,
        };
        vcpu.take_slots(false);
        vcpu
    }

    /// The instructions that were executed so far.
    #[must_use]
    pub fn instructions(&self) -> u64 {
        self.cpu.instructions
    }

    /// `KVM_GET_REGS`.
    #[must_use]
    pub fn regs(&self) -> Regs {
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, _] = self.cpu.gpr;
        let (rip, rflags) = (self.cpu.rip, self.cpu.rflags);
        Regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
    }

    /// `KVM_SET_REGS`.
    pub fn set_regs(&mut self, regs: &Regs) {
        let r = regs;
        self.cpu.gpr = [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15, 0,
        ];
        self.cpu.rip = regs.rip;
        self.cpu.rflags = regs.rflags | rflags::FIXED;
    }

    /// `KVM_GET_FPU`, as far as it is SSE's.
    #[must_use]
    pub fn fpu(&self) -> Fpu {
        Fpu { xmm: self.cpu.xmm, mxcsr: self.cpu.mxcsr, fcw: self.cpu.fcw }
    }

    /// `KVM_SET_FPU`.
    pub fn set_fpu(&mut self, fpu: &Fpu) {
        (self.cpu.xmm, self.cpu.mxcsr, self.cpu.fcw) = (fpu.xmm, fpu.mxcsr & 0xffff, fpu.fcw);
    }

    /// `KVM_GET_SREGS`.
    #[must_use]
    pub fn sregs(&self) -> Sregs {
        let cpu = &self.cpu;
        let [es, cs, mut ss, ds, fs, gs] = cpu.segments;
        // SS's privilege level is the ring; KVM shows it so on both vendors' CPUs.
        ss.dpl = cpu.cpl;
        let mut interrupt_bitmap = [0; 4];
        if let Some(Interrupt { vector, soft: false }) = self.events.interrupt {
            interrupt_bitmap[usize::from(vector / 64)] |= 1 << (vector % 64);
        }
        Sregs {
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr: cpu.tr,
            ldt: cpu.ldt,
            gdt: cpu.gdt,
            idt: cpu.idt,
            cr0: cpu.cr0,
            cr2: cpu.cr2,
            cr3: cpu.cr3,
            cr4: cpu.cr4,
            cr8: cpu.cr8,
            efer: cpu.efer,
            apic_base: cpu.msrs.apic_base,
            interrupt_bitmap,
        }
    }

    /// `KVM_SET_SREGS`.
    ///
    /// # Errors
    /// `EINVAL` for a state that no CPU can be in; [`Sregs::are_valid`].
    pub fn set_sregs(&mut self, sregs: &Sregs) -> Result<(), Errno> {
        if !sregs.are_valid(self.cpu.physical_bits) {
            return Err(Errno::EINVAL);
        }
        let cpu = &mut self.cpu;
        cpu.segments = [sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs];
        (cpu.tr, cpu.ldt, cpu.gdt, cpu.idt) = (sregs.tr, sregs.ldt, sregs.gdt, sregs.idt);
        (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4) = (sregs.cr0 | cr0::ET, sregs.cr2, sregs.cr3, sregs.cr4);
        (cpu.cr8, cpu.efer, cpu.msrs.apic_base) = (sregs.cr8, sregs.efer, sregs.apic_base);
        cpu.cpl = if cpu.protected() { sregs.ss.dpl & 3 } else { 0 };
        let words = sregs.interrupt_bitmap.iter().enumerate();
        let pending = words
            .filter(|(_, word)| **word != 0)
            .map(|(number, word)| number as u32 * 64 + word.trailing_zeros());
        if let Some(vector) = pending.max() {
            self.events.interrupt = Some(Interrupt { vector: vector as u8, soft: false });
        }
        let cpu = &mut self.cpu;
        if cpu.cr0 & cr0::PG != 0 && cpu.cr4_has(cr4::PAE) && !cpu.long_mode() {
            // KVM does not refuse pointers that a MOV to CR3 would: the accesses fault.
            let _ = cpu.load_pdptes();
        }
        cpu.flush_translations();
        cpu.update_mode();
        cpu.update_breakpoints();
        Ok(())
    }

    /// `KVM_SET_CPUID2`.
    ///
    /// # Errors
    /// `EINVAL` once the vCPU has run, unless nothing changes; `E2BIG` for more than 256 entries.
    pub fn set_cpuid2(&mut self, entries: &[CpuidEntry]) -> Result<(), Errno> {
        const MOST: usize = 256;
        if entries.len() > MOST {
            return Err(Errno::E2BIG);
        }
        if self.has_run && entries != self.cpu.cpuid {
            return Err(Errno::EINVAL);
        }
        self.cpu.cpuid = entries.to_vec();
        self.cpu.physical_bits = self.cpu.physical_bits_shown();
        Ok(())
    }

    /// `KVM_SET_GUEST_DEBUG` with `KVM_GUESTDBG_SINGLESTEP`: a [`Exit::Debug`] after each instruction.
    pub fn set_single_step(&mut self, on: bool) {
        self.single_step = on;
    }

    /// `KVM_SET_GUEST_DEBUG` with `KVM_GUESTDBG_USE_HW_BP`: DR0 to DR7 that hold in place of the guest's,
    /// and make an [`Exit::Debug`] of what they find; `None` gives the guest its own again. A breakpoint on
    /// an instruction is found again at each run that starts there, unless RFLAGS.RF is set.
    pub fn set_breakpoints(&mut self, registers: Option<[u64; 8]>) {
        self.cpu.debugger = registers;
        self.cpu.update_breakpoints();
    }

    /// `KVM_SET_GUEST_DEBUG` with `KVM_GUESTDBG_USE_SW_BP`: an [`Exit::Debug`] at every `int3`.
    pub fn show_int3(&mut self, on: bool) {
        self.cpu.show_int3 = on;
    }

    /// `KVM_SET_GUEST_DEBUG` with `KVM_GUESTDBG_BLOCKIRQ`: what waits for the guest keeps waiting.
    pub fn block_interrupts(&mut self, on: bool) {
        self.interrupts_blocked = on;
    }

    /// `KVM_SET_GUEST_DEBUG` with `KVM_GUESTDBG_INJECT_DB` or `_BP`: the guest takes the debug exception
    /// (1), or the breakpoint (3) of the `int3` at RIP.
    ///
    /// # Errors
    /// `EBUSY` when an exception waits already.
    pub fn inject_debug_exception(&mut self, vector: u8) -> Result<(), Errno> {
        if self.events.exception.is_some() {
            return Err(Errno::EBUSY);
        }
        self.events.exception = Some(Exception { vector, error_code: None });
        Ok(())
    }

    /// DR0 to DR7, the guest's: `KVM_GET_DEBUGREGS`.
    #[must_use]
    pub fn debug_registers(&self) -> [u64; 8] {
        self.cpu.dr
    }

    /// Sets them: `KVM_SET_DEBUGREGS`.
    ///
    /// # Errors
    /// `EINVAL` where DR6 or DR7 has bits above 31.
    pub fn set_debug_registers(&mut self, registers: [u64; 8]) -> Result<(), Errno> {
        if registers[6] >> 32 != 0 || registers[7] >> 32 != 0 {
            return Err(Errno::EINVAL);
        }
        self.cpu.dr = registers;
        self.cpu.update_breakpoints();
        Ok(())
    }

    /// A model-specific register: `KVM_GET_MSRS` for one; `None` where there is no such register.
    #[must_use]
    pub fn msr(&self, index: u32) -> Option<u64> {
        self.cpu.read_msr(index).ok()
    }

    /// `KVM_SET_MSRS` for one: whether there is such a register, and it can hold the value.
    pub fn set_msr(&mut self, index: u32, value: u64) -> bool {
        self.cpu.write_msr(index, value).is_ok()
    }

    /// `KVM_GET_VCPU_EVENTS`.
    #[must_use]
    pub fn events(&self) -> Events {
        Events { shadow: self.cpu.shadow_bits(), nmi_masked: self.cpu.nmi_masked, ..self.events }
    }

    /// `KVM_SET_VCPU_EVENTS`: what the next entry delivers, ready or not.
    ///
    /// # Errors
    /// `EINVAL` for an exception that is none.
    pub fn set_events(&mut self, events: &Events) -> Result<(), Errno> {
        events.check()?;
        self.events = *events;
        self.cpu.set_shadow_bits(events.shadow);
        self.cpu.nmi_masked = events.nmi_masked;
        Ok(())
    }

    /// `KVM_NMI`: a non-maskable interrupt, as soon as the guest can take it. One may be served and one
    /// wait; more are lost.
    pub fn nmi(&mut self) {
        let limit = if self.cpu.nmi_masked || self.events.nmi_injected { 1 } else { 2 };
        self.events.nmi_pending = (self.events.nmi_pending + 1).min(limit);
    }

    /// `request_interrupt_window`: whether to leave with [`Exit::IrqWindowOpen`] as soon as the guest
    /// could take an interrupt.
    pub fn want_interrupt_window(&mut self, wanted: bool) {
        self.window_wanted = wanted;
    }

    /// `if_flag`: RFLAGS.IF.
    #[must_use]
    pub fn if_flag(&self) -> bool {
        self.cpu.flag(crate::registers::rflags::IF)
    }

    /// After [`Exit::Shutdown`]: the deliveries that failed, one after the other, from the first exception
    /// to the double fault. The registers are those that the first of them found.
    #[must_use]
    pub fn failed_deliveries(&self) -> &[FailedDelivery] {
        &self.cpu.failed_deliveries
    }

    /// `KVM_TRANSLATE`: by the page tables, as ring 0 reads, and without a trace.
    #[must_use]
    pub fn translate_gva(&self, linear: u64) -> Translation {
        match self.cpu.walk_for_debugger(linear) {
            None => Translation::default(),
            Some(mapping) => Translation {
                physical_address: mapping.physical,
                valid: true,
                writeable: mapping.writable,
                usermode: mapping.user,
            },
        }
    }

    /// What the last exit carried.
    #[must_use]
    pub fn data(&self, length: usize) -> &[u8] {
        &self.cpu.data[..length.min(self.cpu.data.len())]
    }

    /// Where the answer to the last exit goes.
    pub fn data_mut(&mut self, length: usize) -> &mut [u8] {
        let length = length.min(self.cpu.data.len());
        &mut self.cpu.data[..length]
    }

    /// The machine's slots, if they have changed, or if a dirty log was read. `ran` says that this vCPU
    /// was in the guest meanwhile: then it may have written wherever the TLB let it.
    fn take_slots(&mut self, ran: bool) {
        let slots = self.slots.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if slots.generation != self.cpu.slots.generation {
            self.cpu.slots = slots.clone();
            if ran {
                self.cpu.tlb.writable().for_each(|page| self.cpu.slots.mark_dirty(page));
            }
            self.cpu.flush_translations();
        }
    }

    /// `KVM_RUN`: completes what the last exit began, and executes the guest until the next. With
    /// `immediate_exit` it comes back in between.
    ///
    /// # Errors
    /// `EINTR` for `immediate_exit`.
    pub fn run(&mut self, immediate_exit: bool) -> Result<Exit, Errno> {
        self.has_run = true;
        self.missing = None;
        self.take_slots(false);
        self.cache.begin_run();
        let exit = match self.complete().and_then(|exit| self.settle(exit)) {
            Some(exit) => Ok(exit),
            None if immediate_exit => Err(Errno::EINTR),
            None => Ok(self.execute()),
        };
        self.take_slots(true);
        exit
    }
}
