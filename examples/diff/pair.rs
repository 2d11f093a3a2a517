//! The two machines, side by side in one setting: a sequence runs on both, and is
//! compared after every step.

use std::ops::Range;

use anyhow::{Context, Result};
use iced_x86::FlowControl;
use vmexit::kvm::{CpuId, kvm_regs, kvm_segment, kvm_sregs};

use crate::compare::{Comparison, Verdict, WINDOWS, Windows};
use crate::generator::{address_of, sse};
use crate::image::{self, CODE, MEMORY, STACK, STACK_PAGE, TABLES, TABLES_END};
use crate::referee::Referee;
use crate::setting::{Paging, Setting};
use crate::step::{Sequence, Step, operand_address, register};
use crate::subject::{End, Outcome, Subject, differ};

/// Who is compared with the software machine.
pub enum Other {
    /// Another one, new at every sequence.
    Soft,
    #[cfg(host_kvm)]
    Kvm(kvm_ioctls::Kvm),
}

/// What the pairs are made of.
pub struct Makers {
    pub other: Other,
    pub cpuid: CpuId,
    pub referee: Referee,
}

impl Makers {
    /// Whom the software machine is compared with.
    pub fn name(&self) -> String {
        match self.other {
            Other::Soft => "a new software machine for each sequence".to_owned(),
            #[cfg(host_kvm)]
            Other::Kvm(_) => self.referee.to_string(),
        }
    }

    fn left(&self) -> Result<Subject> {
        Subject::soft(&self.cpuid)
    }

    fn right(&self) -> Result<Subject> {
        match &self.other {
            Other::Soft => self.left(),
            #[cfg(host_kvm)]
            Other::Kvm(kvm) => Subject::kvm(kvm, &self.cpuid, self.referee),
        }
    }
}

/// The two machines of a setting.
pub struct Pair<'a> {
    makers: &'a Makers,
    setting: Setting,
    left: Subject,
    right: Subject,
    pristine: Vec<u8>,
    sregs: kvm_sregs,
    /// Model-specific registers are not what they were made.
    msrs_changed: bool,
    buffers: [Vec<u8>; 2],
    last: Option<Last>,
}

/// An outcome of the software machine's, to be compared with a later one.
pub struct Last(Outcome);

impl Last {
    pub fn differs_on_the_left(&self, other: &Self) -> bool {
        self.0.regs != other.0.regs || self.0.end != other.0.end || self.0.answers != other.0.answers
    }
}

/// The state that a step starts from.
#[derive(Clone, Debug)]
pub struct Start {
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    pub memory: Vec<u8>,
}

impl<'a> Pair<'a> {
    pub fn new(makers: &'a Makers, setting: Setting) -> Result<Self> {
        let (left, right) = (makers.left()?, makers.right()?);
        let sregs = setting.sregs(&right.reset);
        let pristine = image::pristine(&setting);
        let buffers = [vec![0; MEMORY], vec![0; MEMORY]];
        for subject in [&left, &right] {
            subject.memory.write(0, &pristine)?;
        }
        Ok(Self { makers, setting, left, right, pristine, sregs, msrs_changed: true, buffers, last: None })
    }

    pub fn setting(&self) -> Setting {
        self.setting
    }

    /// How the software machine left the last step.
    pub fn take_last(&mut self) -> Option<Last> {
        self.last.take()
    }

    /// Both machines begin anew.
    pub fn renew(&mut self) -> Result<()> {
        *self = Self::new(self.makers, self.setting)?;
        Ok(())
    }

    /// Runs a sequence; `report` is told of every step. Ends early at a difference. With `all_memory` that
    /// is compared after every step, to find the one that changed it.
    pub fn run(
        &mut self,
        sequence: &Sequence,
        all_memory: bool,
        report: &mut dyn FnMut(usize, &Verdict),
    ) -> Result<()> {
        let mut regs = self.begin(sequence)?;
        let mut fresh = true;
        for (number, step) in sequence.steps.iter().enumerate() {
            let Some(sregs) = self.prepare(step, number, &mut regs, fresh)? else {
                // It would jump to anywhere.
                fresh = true;
                continue;
            };
            let (verdict, after) = self.step(step, &regs, sregs.as_ref(), all_memory)?;
            report(number, &verdict);
            self.msrs_changed |= crate::registers::changes(&step.instruction);
            match (verdict, after) {
                (Verdict::Different(_), _) => {
                    self.msrs_changed = true;
                    return Ok(());
                }
                // What the referee has done otherwise may show later: in XMM registers, say.
                (Verdict::Lacking(_) | Verdict::GaveUp(_) | Verdict::NotImplemented, _) => {
                    self.msrs_changed = true;
                    return Ok(());
                }
                (_, _)
                    if crate::undefined::is_approximate(step)
                        || crate::registers::ends_sequence(&step.instruction) =>
                {
                    return Ok(());
                }
                (_, Some((left, sregs))) => {
                    regs = left;
                    fresh = !self.carries_over(&sregs, step);
                }
                (_, None) => return Ok(()),
            }
        }
        if let Some(line) = self.rest_of_memory()? {
            report(sequence.steps.len(), &Verdict::Different(vec![line]));
        }
        Ok(())
    }

    /// The state before step `number`, by running those before it.
    pub fn start_of(&mut self, sequence: &Sequence, number: usize) -> Result<Start> {
        let mut regs = self.begin(sequence)?;
        let mut fresh = true;
        let mut before = self.sregs;
        for (at, step) in sequence.steps.iter().enumerate().take(number + 1) {
            let Some(sregs) = self.prepare(step, at, &mut regs, fresh)? else {
                fresh = true;
                continue;
            };
            let current = sregs.unwrap_or(before);
            if at == number {
                let memory = self.left.memory.read(0, MEMORY)?;
                return Ok(Start { regs, sregs: current, memory });
            }
            let (_, after) = self.step(step, &regs, sregs.as_ref(), false)?;
            let (left, sregs) = after.context("the sequence ran this far before")?;
            (regs, before) = (left, sregs);
            fresh = !self.carries_over(&sregs, step);
        }
        anyhow::bail!("the sequence has no step {number}")
    }

    /// Runs one step on both from a state of its own.
    pub fn run_from(&mut self, start: &Start, step: &Step) -> Result<Verdict> {
        self.prepare_registers()?;
        for subject in [&self.left, &self.right] {
            subject.memory.write(0, &start.memory)?;
        }
        let (verdict, _) = self.step(step, &start.regs, Some(&start.sregs), true)?;
        Ok(verdict)
    }

    /// Memory, MSRs and SSE's registers as every run of this sequence finds them.
    fn begin(&mut self, sequence: &Sequence) -> Result<kvm_regs> {
        if matches!(self.makers.other, Other::Soft) {
            self.right = self.makers.right()?;
            self.right.memory.write(0, &self.pristine)?;
            self.msrs_changed = true;
        }
        if self.msrs_changed {
            self.prepare_registers()?;
        }
        let mut image = self.pristine.clone();
        image[STACK_PAGE as usize..TABLES as usize].copy_from_slice(&sequence.scratch);
        for (number, step) in sequence.steps.iter().enumerate() {
            let at = address_of(number) as usize;
            image[at..at + step.code.len()].copy_from_slice(&step.code);
        }
        let uses_sse = sequence.steps.iter().any(|step| sse::uses(&step.instruction));
        if uses_sse {
            let prelude = sse::prelude(&self.setting);
            image[CODE as usize..CODE as usize + prelude.len()].copy_from_slice(&prelude);
            let control = sse::CONTROL_FROM as usize;
            image[control..control + 4].copy_from_slice(&0x1f80u32.to_le_bytes());
        }
        let tables = self.tables();
        for (subject, buffer) in [&self.left, &self.right].into_iter().zip(&mut self.buffers) {
            subject.restore(&image, &tables, buffer)?;
        }
        if uses_sse {
            self.run_both(CODE, &self.sregs.clone())?;
            // In ring 3 it ended in a handler.
            for (subject, buffer) in [&self.left, &self.right].into_iter().zip(&mut self.buffers) {
                subject.restore(&image, &tables, buffer)?;
            }
        }
        Ok(sequence.regs)
    }

    fn run_both(&mut self, rip: u64, sregs: &kvm_sregs) -> Result<()> {
        let regs = kvm_regs { rip, rsp: STACK, rflags: 2, ..kvm_regs::default() };
        for subject in [&mut self.left, &mut self.right] {
            let outcome = subject.run(&regs, Some(sregs))?;
            anyhow::ensure!(
                outcome.end == End::Halted,
                "what prepares a sequence ended in {:?}",
                outcome.end
            );
        }
        Ok(())
    }

    /// Sets the model-specific registers, by a program of the guest's.
    pub fn prepare_registers(&mut self) -> Result<()> {
        let mut image = self.pristine.clone();
        let program = crate::registers::program(&self.setting);
        let tables = self.tables();
        image[CODE as usize..CODE as usize + program.len()].copy_from_slice(&program);
        for (subject, buffer) in [&self.left, &self.right].into_iter().zip(&mut self.buffers) {
            subject.restore(&image, &tables, buffer)?;
        }
        self.right.reset_x87()?;
        let sregs = self.setting.in_ring_0().sregs(&self.right.reset);
        self.run_both(CODE, &sregs)?;
        self.msrs_changed = false;
        Ok(())
    }

    /// What a step changes before it runs. Returns the system registers, where they are set anew; nothing
    /// for a step that must not run, because it would jump to anywhere.
    fn prepare(
        &mut self,
        step: &Step,
        number: usize,
        regs: &mut kvm_regs,
        fresh: bool,
    ) -> Result<Option<Option<kvm_sregs>>> {
        if !self.setting.is_64_bit() {
            // A step into 64-bit code may have filled the upper halves.
            for number in 0..8 {
                *register(regs, number) &= 0xffff_ffff;
            }
            (8..16).for_each(|number| *register(regs, number) = 0);
        }
        let stack = regs.rsp & if self.setting.bits == 16 { 0xffff } else { u64::MAX };
        if !(STACK - 0x180..STACK + 0x180).contains(&stack) {
            regs.rsp = STACK;
        }
        for (number, value) in &step.registers {
            *register(regs, *number) = *value;
        }
        (regs.rip, regs.rflags) = (address_of(number), step.rflags);
        let sregs = fresh.then_some(self.sregs);
        if let Some(bytes) = &step.operand
            && let Some(at) = operand_address(&step.instruction, regs, &self.sregs)
        {
            let is_branch = step.instruction.flow_control() != FlowControl::Next;
            if !self.put(at, bytes)? && is_branch {
                return Ok(None);
            }
        }
        if let Some(bytes) = &step.stack {
            self.put(regs.rsp, bytes)?;
        }
        Ok(Some(sregs))
    }

    /// Writes to both machines, within the stack's and the scratch pages; says whether it was.
    fn put(&self, at: u64, bytes: &[u8]) -> Result<bool> {
        let inside = at >= STACK_PAGE && at.saturating_add(bytes.len() as u64) <= TABLES;
        if inside {
            self.left.memory.write(at, bytes)?;
            self.right.memory.write(at, bytes)?;
        }
        Ok(inside)
    }

    /// Runs a step on both. Returns the state to go on from, if there is one.
    fn step(
        &mut self,
        step: &Step,
        regs: &kvm_regs,
        sregs: Option<&kvm_sregs>,
        all_memory: bool,
    ) -> Result<(Verdict, Option<(kvm_regs, kvm_sregs)>)> {
        let left = self.left.run(regs, sregs)?;
        let right = self.right.run(regs, sregs)?;
        self.last = Some(Last(left.clone()));
        let mut memory = [[0; 0x900], [0; 0x900]];
        for (subject, windows) in [&self.left, &self.right].into_iter().zip(&mut memory) {
            read_windows(subject, windows)?;
        }
        let elsewhere = if all_memory { self.rest_of_memory()? } else { None };
        let same_memory = !differ(&memory[0], &memory[1]);
        let [left_memory, right_memory] = &mut memory;
        let comparison = Comparison::new(&self.setting, step, regs, [&left, &right]);
        let verdict = comparison.judge(self.makers.referee, [left_memory, right_memory], elsewhere);
        if left.end != End::Halted || right.end != End::Halted {
            self.recover(&left.end, &right.end)?;
            return Ok((verdict, None));
        }
        // What is undefined goes on as the software machine has it, pushed flags among them.
        let in_windows =
            |at: u64| WINDOWS.iter().any(|(window, length)| (*window..window + *length as u64).contains(&at));
        let pushed = comparison.left_vector.is_some() && !in_windows(left.regs.rsp)
            || comparison.leaves_undefined_memory();
        if verdict == Verdict::Same && (!same_memory || pushed) {
            let tables = self.tables();
            let [left, right] = &mut self.buffers;
            self.left.memory.read_into(0, left)?;
            self.right.restore(left, &tables, right)?;
        }
        Ok((verdict, Some((left.regs, left.sregs))))
    }

    /// Whether the next step can start from these system registers: all but the data segments are as they
    /// were, and those hold something.
    fn carries_over(&self, sregs: &kvm_sregs, step: &Step) -> bool {
        let same = |left: &kvm_segment, right: &kvm_segment| {
            (left.selector, left.base, left.limit, left.dpl, left.db, left.l)
                == (right.selector, right.base, right.limit, right.dpl, right.db, right.l)
        };
        let of = |s: &kvm_sregs| {
            (s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit)
        };
        let base = &self.sregs;
        let fixed = same(&sregs.cs, &base.cs)
            && same(&sregs.ss, &base.ss)
            && same(&sregs.tr, &base.tr)
            && same(&sregs.ldt, &base.ldt)
            && of(&kvm_sregs { cr2: 0, ..*sregs }) == of(&kvm_sregs { cr2: 0, ..*base });
        let data = [&sregs.ds, &sregs.es, &sregs.fs, &sregs.gs]
            .into_iter()
            .zip([&base.ds, &base.es, &base.fs, &base.gs]);
        fixed
            && data.into_iter().all(|(now, base)| {
                same(now, base) || step.keeps_segments && now.unusable == 0 && now.present != 0
            })
    }

    /// Compares what is outside the windows, at the end of a sequence.
    fn rest_of_memory(&mut self) -> Result<Option<String>> {
        let tables = self.tables();
        let [left, right] = &mut self.buffers;
        self.left.memory.read_into(0, left)?;
        self.right.memory.read_into(0, right)?;
        for (window, length) in WINDOWS {
            // Compared by themselves, with what is undefined left out.
            left[window as usize..window as usize + length].fill(0);
            right[window as usize..window as usize + length].fill(0);
        }
        let tables = tables.start as usize..tables.end as usize;
        left[tables.clone()].fill(0);
        right[tables].fill(0);
        if !differ(left, right) {
            return Ok(None);
        }
        let at = left.iter().zip(&*right).position(|(a, b)| a != b).unwrap_or_default();
        Ok(Some(format!("memory at {at:#x}: {:#x} | {:#x}", left[at], right[at])))
    }

    /// The page tables, which are not compared: the CPU sets accessed and dirty bits there, and may do so
    /// ahead of need. The rest of them no sequence can reach.
    fn tables(&self) -> Range<u64> {
        if self.setting.paging == Paging::Off { 0..0 } else { TABLES..TABLES_END }
    }

    /// After a shutdown kvm_amd has reset the vCPU; and what an error leaves to be completed is nobody's promise.
    fn recover(&mut self, left: &End, right: &End) -> Result<()> {
        self.msrs_changed = true;
        if left.is_broken() {
            self.left = self.makers.left()?;
            self.left.memory.write(0, &self.pristine)?;
        }
        if right.is_broken() {
            self.right = self.makers.right()?;
            self.right.memory.write(0, &self.pristine)?;
        } else if *right != End::Halted {
            self.right.forget_events()?;
        }
        Ok(())
    }
}

fn read_windows(subject: &Subject, windows: &mut Windows) -> Result<()> {
    let mut start = 0;
    for (window, length) in WINDOWS {
        subject.memory.read_into(window, &mut windows[start..start + length])?;
        start += length;
    }
    Ok(())
}
