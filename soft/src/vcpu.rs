//! A virtual CPU: KVM's ioctls as methods, and the loop that executes the guest.

use std::sync::{Arc, Mutex};

use crate::access::Piece;
use crate::cache::{Cache, Range};
use crate::cpu::{Cpu, Pending, Shadow, gpr};
use crate::cpuid::CpuidEntry;
use crate::decode::{self, Decoded, LONGEST};
use crate::errno::Errno;
use crate::exit::Exit;
use crate::interrupt::{Event, Source, TripleFault};
use crate::memory::{OFFSET, PAGE_SIZE};
use crate::op::Op;
use crate::registers::{Regs, Sregs, cr0, cr4, rflags};
use crate::slots::Slots;
use crate::stop::{Done, Fault, Stop, vector};

/// The instructions, iterations and events of one run: some 20 ms.
const BUDGET: u64 = 2_000_000;

/// `KVM_INTERNAL_ERROR_EMULATION`: an instruction that is not there, or cannot be fetched.
const EMULATION_FAILED: u32 = 1;
/// `KVM_INTERNAL_ERROR_DELIVERY_EV`: a table or a stack for an event lies where no memory is.
const DELIVERY_FAILED: u32 = 3;

/// DR6: a single step, and its fixed bits.
const SINGLE_STEP: u64 = 1 << 14;
const DR6_FIXED: u64 = 0xffff_0ff0;

/// A virtual CPU.
pub struct Vcpu {
    cpu: Cpu,
    cache: Cache,
    slots: Arc<Mutex<Slots>>,
    single_step: bool,
    has_run: bool,
    interrupt: Option<u8>,
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
    pub(crate) fn new(slots: Arc<Mutex<Slots>>) -> Self {
        let mut vcpu = Self {
            cpu: Cpu::reset(),
            cache: Cache::default(),
            slots,
            single_step: false,
            has_run: false,
            interrupt: None,
        };
        vcpu.take_slots();
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

    /// XMM0 to XMM15: a part of `KVM_GET_FPU`.
    #[must_use]
    pub fn xmm(&self) -> [u128; 16] {
        self.cpu.xmm
    }

    /// Sets them: a part of `KVM_SET_FPU`.
    pub fn set_xmm(&mut self, xmm: [u128; 16]) {
        self.cpu.xmm = xmm;
    }

    /// `KVM_GET_SREGS`.
    #[must_use]
    pub fn sregs(&self) -> Sregs {
        let cpu = &self.cpu;
        let [es, cs, mut ss, ds, fs, gs] = cpu.segments;
        // SS's privilege level is the ring; KVM shows it so on both vendors' CPUs.
        ss.dpl = cpu.cpl;
        let mut interrupt_bitmap = [0; 4];
        if let Some(vector) = self.interrupt {
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
        self.interrupt = pending.max().map(|vector| vector as u8);
        let cpu = &mut self.cpu;
        if cpu.cr0 & cr0::PG != 0 && cpu.cr4_has(cr4::PAE) && !cpu.long_mode() {
            // KVM does not refuse pointers that a MOV to CR3 would: the accesses fault.
            let _ = cpu.load_pdptes();
        }
        cpu.flush_translations();
        cpu.update_mode();
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

    /// `KVM_INTERRUPT`: the guest takes this interrupt as soon as it can.
    ///
    /// # Errors
    /// `EEXIST` when one is waiting already.
    pub fn interrupt(&mut self, vector: u8) -> Result<(), Errno> {
        if self.interrupt.is_some() {
            return Err(Errno::EEXIST);
        }
        self.interrupt = Some(vector);
        Ok(())
    }

    /// Whether the guest could take an interrupt now: `ready_for_interrupt_injection`.
    #[must_use]
    pub fn takes_interrupts(&self) -> bool {
        self.cpu.flag(rflags::IF) && self.cpu.shadow == Shadow::None && self.interrupt.is_none()
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

    /// The machine's slots, if they have changed.
    fn take_slots(&mut self) {
        let slots = self.slots.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if slots.generation != self.cpu.slots.generation {
            self.cpu.slots = slots.clone();
            self.cpu.flush_translations();
            self.cache.clear();
        }
    }

    /// `KVM_RUN`: completes what the last exit began, and executes the guest until the next. With
    /// `immediate_exit` it comes back in between.
    ///
    /// # Errors
    /// `EINTR` for `immediate_exit`.
    pub fn run(&mut self, immediate_exit: bool) -> Result<Exit, Errno> {
        self.has_run = true;
        self.take_slots();
        self.cache.begin_run();
        if let Some(exit) = self.complete() {
            return Ok(exit);
        }
        if immediate_exit {
            return Err(Errno::EINTR);
        }
        Ok(self.execute())
    }

    /// Completes the instruction of the last exit, as far as the hypervisor was needed for it. There may
    /// be an exit right away: another part of an access, or the single step that ended.
    fn complete(&mut self) -> Option<Exit> {
        match std::mem::replace(&mut self.cpu.pending, Pending::Nothing) {
            Pending::Nothing => self.mmio_write(),
            // KVM skips the instruction unless the hypervisor has moved RIP.
            Pending::Output { linear_rip, .. } | Pending::Input { linear_rip, .. }
                if self.cpu.linear_rip() != linear_rip =>
            {
                None
            }
            Pending::Output { length, .. } => self.skip(length),
            Pending::Input { length, size, .. } => {
                let value = self.answer(size);
                self.cpu.set_register(gpr::RAX, size, value);
                self.skip(length)
            }
            Pending::StringInput { bytes } => {
                self.cpu.input = Some((0, bytes));
                self.step()
            }
            // The instruction is executed again, now with the answer.
            Pending::MmioRead { address, size } => {
                let value = self.answer(size);
                self.cpu.mmio.answer(Piece { address, size, value });
                self.step()
            }
        }
    }

    /// What the hypervisor answered.
    fn answer(&self, size: u8) -> u64 {
        let mut value = [0; 8];
        value[..usize::from(size)].copy_from_slice(&self.cpu.data[..usize::from(size)]);
        u64::from_le_bytes(value)
    }

    /// Moves RIP past an instruction that is complete now.
    fn skip(&mut self, length: u8) -> Option<Exit> {
        let cpu = &mut self.cpu;
        cpu.rip = cpu.rip.wrapping_add(u64::from(length)) & cpu.ip_mask();
        cpu.instructions += 1;
        cpu.shadow = Shadow::None;
        self.after_step(false)
    }

    /// The next write to a hole, as an exit.
    fn mmio_write(&mut self) -> Option<Exit> {
        let Piece { address, size, value } = self.cpu.mmio.next_write()?;
        self.cpu.data[..8].copy_from_slice(&value.to_le_bytes());
        Some(Exit::MmioWrite { address, size })
    }

    /// Executes the guest until it exits.
    fn execute(&mut self) -> Exit {
        let mut left = BUDGET;
        while left > 0 {
            let before = self.work();
            let exit = if self.interrupt.is_some() && self.interruptible() {
                self.take_interrupt()
            } else if self.single_step
                || self.cpu.rflags & (rflags::TF | rflags::RF) != 0
                || self.cpu.shadow != Shadow::None
            {
                self.step()
            } else {
                match self.run_block() {
                    Ok(()) if !self.cpu.mmio.has_writes() => None,
                    Ok(()) => self.mmio_write(),
                    Err(stop) => self.stopped(stop),
                }
            };
            if let Some(exit) = exit {
                return exit;
            }
            // An exception that is delivered for ever executes nothing, and takes its time all the same.
            left = left.saturating_sub(1 + self.work().wrapping_sub(before));
        }
        Exit::Budget
    }

    fn work(&self) -> u64 {
        self.cpu.instructions.wrapping_add(self.cpu.iterations)
    }

    fn interruptible(&self) -> bool {
        self.cpu.flag(rflags::IF) && self.cpu.shadow == Shadow::None
    }

    fn take_interrupt(&mut self) -> Option<Exit> {
        let vector = self.interrupt.take()?;
        self.cpu.next = self.cpu.rip;
        let event = Event { vector, code: None, source: Source::External };
        self.delivered(|cpu| cpu.deliver(event))
    }

    /// Executes one instruction, and sees to the traps after it. Intel SDM Vol. 3B, "Single-Step
    /// Exception Condition".
    fn step(&mut self) -> Option<Exit> {
        let cpu = &mut self.cpu;
        let (flags, shadow, rip) = (cpu.rflags, cpu.shadow, cpu.rip);
        cpu.shadow = Shadow::None;
        // RF is for this instruction only.
        cpu.rflags &= !rflags::RF;
        (cpu.stepping, cpu.delivered) = (true, false);
        let done = self.run_instruction();
        self.cpu.stepping = false;
        if let Err(stop) = done {
            if stop == Stop::Exit && self.cpu.rip == rip {
                // It is executed again, under the same conditions.
                (self.cpu.rflags, self.cpu.shadow) = (self.cpu.rflags | flags & rflags::RF, shadow);
            }
            return self.stopped(stop);
        }
        if self.cpu.mmio.has_writes() {
            return self.mmio_write();
        }
        self.after_step(flags & rflags::TF != 0)
    }

    /// The trap of a single step: the hypervisor's, else the guest's.
    fn after_step(&mut self, trap: bool) -> Option<Exit> {
        if self.cpu.shadow == Shadow::MovSs {
            return None;
        }
        if self.single_step {
            return Some(Exit::Debug { pc: self.cpu.linear_rip(), dr6: DR6_FIXED | SINGLE_STEP });
        }
        // An interrupt's delivery has cleared TF.
        if !trap || self.cpu.delivered {
            return None;
        }
        self.cpu.dr[6] = self.cpu.dr[6] & !0xe00f | DR6_FIXED | SINGLE_STEP;
        self.cpu.next = self.cpu.rip;
        let event = Event { vector: vector::DEBUG, code: None, source: Source::Trap };
        self.delivered(|cpu| cpu.deliver(event))
    }

    /// What becomes of an instruction that did not complete.
    fn stopped(&mut self, stop: Stop) -> Option<Exit> {
        match stop {
            Stop::Exit => {
                if !matches!(self.cpu.pending, Pending::MmioRead { .. }) {
                    self.cpu.mmio.end();
                }
                Some(self.cpu.exit)
            }
            Stop::Unimplemented => {
                self.cpu.mmio.abandon();
                Some(Exit::InternalError { suberror: EMULATION_FAILED })
            }
            Stop::Fault(fault) => {
                self.cpu.mmio.abandon();
                self.cpu.input = None;
                self.delivered(|cpu| cpu.raise(fault))
            }
        }
    }

    /// Delivers an event, which may be the guest's end.
    fn delivered(
        &mut self,
        deliver: impl FnOnce(&mut Cpu) -> Result<Result<(), TripleFault>, Stop>,
    ) -> Option<Exit> {
        match deliver(&mut self.cpu) {
            Ok(Ok(())) if self.single_step => self.after_step(false),
            Ok(Ok(())) => self.mmio_write(),
            Ok(Err(TripleFault)) => Some(Exit::Shutdown),
            Err(Stop::Exit) => {
                self.cpu.pending = Pending::Nothing;
                Some(Exit::InternalError { suberror: DELIVERY_FAILED })
            }
            Err(_) => Some(Exit::InternalError { suberror: EMULATION_FAILED }),
        }
    }

    /// Executes a block, up to its end or to what must not stay inside one.
    fn run_block(&mut self) -> Done {
        let Some(range) = self.find_block()? else { return self.run_instruction() };
        let cpu = &mut self.cpu;
        if !cpu.code_holds(u64::from(range.bytes)) {
            return self.run_instruction();
        }
        let mask = cpu.ip_mask();
        cpu.leave_block = false;
        for op in self.cache.ops(range) {
            cpu.next = cpu.rip.wrapping_add(u64::from(op.length)) & mask;
            (op.run)(cpu, op)?;
            cpu.rip = cpu.next;
            cpu.instructions += 1;
            if cpu.leave_block {
                break;
            }
        }
        Ok(())
    }

    /// Executes one instruction.
    fn run_instruction(&mut self) -> Done {
        let op = match self.find_block()? {
            Some(range) => self.cache.ops(range)[0],
            None => self.crossing_instruction()?,
        };
        let cpu = &mut self.cpu;
        if !cpu.code_holds(u64::from(op.length)) {
            return Err(Fault::general_protection(0).into());
        }
        cpu.leave_block = false;
        cpu.next = cpu.rip.wrapping_add(u64::from(op.length)) & cpu.ip_mask();
        cpu.mmio.begin();
        (op.run)(cpu, &op)?;
        cpu.mmio.end();
        cpu.rip = cpu.next;
        cpu.instructions += 1;
        Ok(())
    }

    /// The block at RIP; `None` where its first instruction lies in two pages.
    #[inline(always)]
    fn find_block(&mut self) -> Result<Option<Range>, Stop> {
        let wanted = self.cpu.fetch()?;
        Ok(self.cache.find(&wanted, &mut self.cpu))
    }

    /// Decodes the instruction at RIP, whose bytes lie in two pages.
    #[cold]
    fn crossing_instruction(&mut self) -> Result<Op, Stop> {
        let first = self.cpu.fetch()?;
        let mut bytes = [0; LONGEST];
        let here = LONGEST.min((PAGE_SIZE - (first.physical & OFFSET)) as usize);
        first.page.copy_to(first.physical & OFFSET, &mut bytes[..here]);
        let second = self.cpu.fetch_at(self.cpu.linear_rip().wrapping_add(here as u64))?;
        second.page.copy_to(second.physical & OFFSET, &mut bytes[here..]);
        let mut decoder = decode::decoder(&bytes, first.size);
        match decode::decode(&mut decoder, first.size) {
            Decoded::Op(op) => Ok(op),
            // Longer than an instruction can be.
            Decoded::Incomplete => Err(Fault::general_protection(0).into()),
        }
    }
}
