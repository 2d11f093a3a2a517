//! The loop that executes the guest: what the last exit left to be done, then block after block, with
//! single steps, traps and interrupts in between, until the next exit.

use super::Vcpu;
use super::board::Wait;
use crate::access::Piece;
use crate::cache::Range;
use crate::cpu::{Pending, Shadow, gpr};
use crate::debug::bits;
use crate::decode::{self, Decoded, LONGEST};
use crate::exit::Exit;
use crate::interrupt::{Event, Source};
use crate::memory::{OFFSET, PAGE_SIZE};
use crate::op::Op;
use crate::registers::rflags;
use crate::stop::{Done, Fault, Stop, vector};

/// The instructions, iterations and events of one run: some 20 ms.
const BUDGET: u64 = 2_000_000;

/// How often a block that jumps to its own start is executed before anything else is looked at.
const TURNS: u32 = 1000;

/// `KVM_INTERNAL_ERROR_EMULATION`: an instruction that is not there, or cannot be fetched.
pub(super) const EMULATION_FAILED: u32 = 1;
impl Vcpu {
    /// Completes the instruction of the last exit, as far as the hypervisor was needed for it. There may
    /// be an exit right away: another part of an access, or the single step that ended.
    pub(super) fn complete(&mut self) -> Option<Exit> {
        match std::mem::replace(&mut self.cpu.pending, Pending::Nothing) {
            Pending::Nothing => self.mmio_write().or_else(|| self.data_trap()),
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
                let cpu = &mut self.cpu;
                cpu.input.extend_from_slice(&cpu.data[..bytes]);
                let exit = self.step();
                // What another instruction has left, because the hypervisor has moved RIP, is no one's.
                if !self.cpu.flag(rflags::DF) {
                    self.cpu.input.clear();
                }
                exit
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
        cpu.rflags &= !rflags::RF;
        let trap = cpu.flag(rflags::TF);
        self.after_step(trap)
    }

    /// The next write to a hole, as an exit.
    pub(super) fn mmio_write(&mut self) -> Option<Exit> {
        let Piece { address, size, value } = self.cpu.mmio.next_write()?;
        self.cpu.data[..8].copy_from_slice(&value.to_le_bytes());
        Some(Exit::MmioWrite { address, size })
    }

    /// Executes the guest until it exits.
    pub(super) fn execute(&mut self) -> Exit {
        if let Some(exit) = self.inject() {
            return exit;
        }
        // Then nothing but the guest itself can interrupt it before the run ends.
        let alone = self.board.is_none() && !self.single_step && !self.awaits_its_turn();
        let mut left = BUDGET;
        while left > 0 {
            let before = self.work();
            if !alone {
                self.look_at_board();
            }
            if !alone && self.is_halted() {
                match self.wait() {
                    Wait::Over => {}
                    Wait::Endless => return Exit::Idle,
                    Wait::Goes => {
                        left -= 1;
                        continue;
                    }
                }
            }
            let steps = !alone && (self.single_step || self.awaits_its_turn()) || self.looks_closely();
            let exit = if steps { self.attend() } else { self.advance() };
            if let Some(exit) = exit.and_then(|exit| self.settle(exit)) {
                return exit;
            }
            // An exception that is delivered for ever executes nothing, and takes its time all the same.
            left = left.saturating_sub(1 + self.work().wrapping_sub(before));
        }
        Exit::Budget
    }

    /// What is left of an exit when the machine's own controllers have had theirs.
    pub(super) fn settle(&mut self, mut exit: Exit) -> Option<Exit> {
        while self.serve(exit) {
            exit = self.complete()?;
        }
        Some(exit)
    }

    /// Executes a block.
    fn advance(&mut self) -> Option<Exit> {
        match self.run_block() {
            Ok(()) if self.cpu.mmio.has_writes() => self.mmio_write(),
            Ok(()) if self.cpu.debug.hits != 0 => self.data_trap(),
            Ok(()) => None,
            Err(stop) => self.stopped(stop),
        }
    }

    /// Whether the guest's state may make something of each instruction, or must be looked at before it.
    #[inline(always)]
    fn looks_closely(&self) -> bool {
        self.cpu.debug.instructions
            || self.cpu.rflags & (rflags::TF | rflags::RF) != 0
            || self.cpu.shadow != Shadow::None
    }

    /// What comes between two instructions, and the next one by itself where more may come after it.
    fn attend(&mut self) -> Option<Exit> {
        if self.awaits_its_turn()
            && let Some(exit) = self.between_instructions()
        {
            return exit;
        }
        if let Some(exit) = self.breakpoint() {
            return exit;
        }
        if self.single_step || self.looks_closely() { self.step() } else { self.advance() }
    }

    /// A breakpoint on the instruction at RIP; the inner `None` is one that the guest has taken. RF lets
    /// the instruction pass, and so does the one before it that has loaded SS.
    fn breakpoint(&mut self) -> Option<Option<Exit>> {
        let cpu = &self.cpu;
        if !cpu.debug.instructions || cpu.flag(rflags::RF) || cpu.shadow == Shadow::MovSs {
            return None;
        }
        let hits = cpu.debug.instruction(cpu.linear_rip());
        (hits != 0).then(|| self.debug_exception(hits, Source::Fault))
    }

    /// A debug exception: the hypervisor's, where it debugs, else the guest's.
    fn debug_exception(&mut self, why: u64, source: Source) -> Option<Exit> {
        if self.single_step || self.cpu.debugger.is_some() {
            let (pc, dr7) = (self.cpu.linear_rip(), self.cpu.debug.dr7);
            return Some(Exit::Debug { exception: vector::DEBUG, pc, dr6: bits::DR6_FIXED | why, dr7 });
        }
        self.cpu.note_debug_exception(why);
        self.cpu.next = self.cpu.rip;
        self.deliver(Event { vector: vector::DEBUG, code: None, source })
    }

    fn work(&self) -> u64 {
        self.cpu.instructions.wrapping_add(self.cpu.iterations)
    }

    /// Executes one instruction, and sees to the traps after it. Intel SDM Vol. 3B, "Single-Step
    /// Exception Condition".
    fn step(&mut self) -> Option<Exit> {
        let cpu = &mut self.cpu;
        let (flags, shadow, rip) = (cpu.rflags, cpu.shadow, cpu.rip);
        cpu.shadow = Shadow::None;
        // RF is for this instruction only.
        cpu.rflags &= !rflags::RF;
        (cpu.stepping, cpu.delivered, cpu.repeats) = (true, false, false);
        let done = self.run_instruction();
        self.cpu.stepping = false;
        if let Err(stop) = done {
            if stop == Stop::Exit && self.cpu.rip == rip {
                // It is executed again, under the same conditions.
                (self.cpu.rflags, self.cpu.shadow) = (self.cpu.rflags | flags & rflags::RF, shadow);
            }
            return self.stopped(stop);
        }
        if self.cpu.repeats {
            // The next iteration is of the same instruction.
            self.cpu.rflags |= flags & rflags::RF;
        }
        if self.cpu.mmio.has_writes() {
            return self.mmio_write();
        }
        self.after_step(flags & rflags::TF != 0)
    }

    /// The traps of breakpoints and of a single step: the hypervisor's, else the guest's. What an
    /// instruction has hit that loads SS waits for the one after it.
    pub(super) fn after_step(&mut self, trap: bool) -> Option<Exit> {
        if self.cpu.shadow == Shadow::MovSs {
            return None;
        }
        let mut why = std::mem::take(&mut self.cpu.debug.hits);
        // An interrupt's delivery has cleared TF.
        if self.single_step || trap && !self.cpu.delivered {
            why |= bits::BS;
        }
        if why == 0 { None } else { self.debug_exception(why, Source::Trap) }
    }

    /// The trap of a breakpoint on data or a port.
    fn data_trap(&mut self) -> Option<Exit> {
        if self.cpu.debug.hits == 0 { None } else { self.after_step(false) }
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
            Stop::Missing(missing) => {
                self.cpu.mmio.abandon();
                self.missing = self.sentence(missing);
                Some(Exit::InternalError { suberror: EMULATION_FAILED })
            }
            Stop::Fault(fault) => {
                self.cpu.mmio.abandon();
                self.cpu.input.clear();
                self.cpu.debug.hits = 0;
                self.deliver(Event { vector: fault.vector, code: fault.code, source: Source::Fault })
            }
        }
    }

    /// Executes a block, up to its end or to what must not stay inside one.
    fn run_block(&mut self) -> Done {
        let Some(range) = self.find_block()? else { return self.run_instruction() };
        let event = self.instructions_to_event();
        let cpu = &mut self.cpu;
        if !cpu.code_holds(u64::from(range.bytes)) {
            return self.run_instruction();
        }
        let (mask, start) = (cpu.ip_mask(), cpu.rip);
        cpu.leave_block = false;
        let turns = u64::from(TURNS).min((event / u64::from(range.bytes).max(1)).saturating_add(1));
        for _ in 0..turns {
            for op in self.cache.ops(range) {
                cpu.next = cpu.rip.wrapping_add(u64::from(op.length)) & mask;
                (op.run)(cpu, op)?;
                cpu.rip = cpu.next;
                cpu.instructions += 1;
                if cpu.leave_block {
                    return Ok(());
                }
            }
            // A loop that comes back to the block's start needs not look for it.
            if cpu.rip != start {
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
    pub(super) fn find_block(&mut self) -> Result<Option<Range>, Stop> {
        let wanted = self.cpu.fetch()?;
        Ok(self.cache.find(&wanted, &mut self.cpu))
    }

    /// Decodes the instruction at RIP, whose bytes lie in two pages.
    #[cold]
    pub(super) fn crossing_instruction(&mut self) -> Result<Op, Stop> {
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
