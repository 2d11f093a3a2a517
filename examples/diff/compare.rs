//! Whether two outcomes of a step are the same, as far as the manual says what
//! they must be.

use std::ops::Range;

use iced_x86::Mnemonic;
use vmexit::kvm::{kvm_regs, kvm_segment, kvm_sregs};

use crate::image::{HANDLER, HANDLERS, PAGE};
use crate::referee::Referee;
use crate::setting::Setting;
use crate::step::{Step, operand_address};
use crate::subject::{End, Outcome};
use crate::undefined;

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Same,
    /// A KVM could not run it: there is nothing to compare.
    GaveUp(String),
    /// The software machine says that it lacks the instruction.
    NotImplemented,
    /// A row of the referee's table is about it.
    Lacking(&'static str),
    /// What differs, a line each.
    Different(Vec<String>),
}

/// Memory that is compared after every step, and how each machine left it.
pub const WINDOWS: [(u64, usize); 3] = [(0x4700, 0x100), (0x5600, 0x400), (0x6e00, 0x400)];

/// The windows of one machine, one after the other.
pub type Windows = [u8; 0x900];

/// A step and both its outcomes.
pub struct Comparison<'a> {
    pub setting: &'a Setting,
    pub step: &'a Step,
    pub before: &'a kvm_regs,
    pub left: &'a Outcome,
    pub right: &'a Outcome,
    /// The exceptions whose handlers they ended in.
    pub left_vector: Option<u8>,
    pub right_vector: Option<u8>,
}

/// Resume flag: an exception pushes it, and the manual leaves to the CPU when.
const RF: u64 = 1 << 16;
const INTERNAL_ERROR: &str = "KVM_EXIT_INTERNAL_ERROR";

impl<'a> Comparison<'a> {
    pub fn new(
        setting: &'a Setting,
        step: &'a Step,
        before: &'a kvm_regs,
        [left, right]: [&'a Outcome; 2],
    ) -> Self {
        let (left_vector, right_vector) = (vector_of(left), vector_of(right));
        Self { setting, step, before, left, right, left_vector, right_vector }
    }

    pub fn is(&self, mnemonic: Mnemonic) -> bool {
        self.step.instruction.mnemonic() == mnemonic
    }

    /// Whether the memory operand may lie where no memory is; see [`crate::image::VIEWS`].
    fn reaches_a_hole(&self) -> bool {
        const HOLE: Range<u64> = 0x13ff0..0x15000;
        let at = operand_address(&self.step.instruction, self.before, &self.left.sregs);
        !self.left.answers.is_empty() || at.is_some_and(|at| HOLE.contains(&at))
    }

    /// The linear address of the memory operand.
    pub fn operand_address(&self) -> Option<u64> {
        operand_address(&self.step.instruction, self.before, &self.left.sregs)
    }

    /// Whether both ended in handlers.
    pub fn both_faulted(&self) -> bool {
        self.left_vector.is_some() && self.right_vector.is_some()
    }

    /// Whether the step is one whose pushes or image are not compared as a whole.
    pub fn leaves_undefined_memory(&self) -> bool {
        let selector = self.is(Mnemonic::Push) && self.step.instruction.op0_register().is_segment_register();
        selector || self.is(Mnemonic::Fxsave) || self.is(Mnemonic::Fxsave64)
    }

    pub fn both_page_faults(&self) -> bool {
        const PAGE_FAULT: Option<u8> = Some(14);
        self.left_vector == PAGE_FAULT && self.right_vector == PAGE_FAULT
    }

    pub fn touches_two_places(&self) -> bool {
        use Mnemonic::{Cmpsb, Cmpsd, Cmpsq, Cmpsw, Pusha, Pushad};
        matches!(self.step.instruction.mnemonic(), Cmpsb | Cmpsd | Cmpsq | Cmpsw | Pusha | Pushad)
    }

    /// Whether the instruction is a repeated SCAS or CMPS.
    pub fn scans(&self) -> bool {
        use Mnemonic::{Cmpsb, Cmpsd, Cmpsq, Cmpsw, Scasb, Scasd, Scasq, Scasw};
        let scan = matches!(
            self.step.instruction.mnemonic(),
            Cmpsb | Cmpsd | Cmpsq | Cmpsw | Scasb | Scasd | Scasq | Scasw
        );
        scan && (self.step.instruction.has_rep_prefix() || self.step.instruction.has_repne_prefix())
    }

    pub fn moves_all_registers(&self) -> bool {
        use Mnemonic::{Popa, Popad, Pusha, Pushad};
        matches!(self.step.instruction.mnemonic(), Popa | Popad | Pusha | Pushad)
    }

    pub fn is_port_string(&self) -> bool {
        use Mnemonic::{Insb, Insd, Insw, Outsb, Outsd, Outsw};
        matches!(self.step.instruction.mnemonic(), Insb | Insd | Insw | Outsb | Outsd | Outsw)
    }

    pub fn is_syscall(&self) -> bool {
        use Mnemonic::{Syscall, Sysret, Sysretq};
        matches!(self.step.instruction.mnemonic(), Syscall | Sysret | Sysretq)
    }

    pub fn is_near_branch(&self) -> bool {
        let instruction = &self.step.instruction;
        let far = instruction.is_jmp_far_indirect()
            || instruction.is_call_far_indirect()
            || self.is(Mnemonic::Retf);
        instruction.flow_control() != iced_x86::FlowControl::Next && !far
    }

    pub fn loads_far_pointer(&self) -> bool {
        use Mnemonic::{Call, Jmp, Lds, Les, Lfs, Lgs, Lss};
        matches!(self.step.instruction.mnemonic(), Lds | Les | Lfs | Lgs | Lss | Jmp | Call)
            && !self.is_near_branch()
    }

    /// Whether the prefix is there; a byte of the instruction's rest that looks like it is none.
    pub fn has_prefix(&self, prefix: u8) -> bool {
        let is_prefix = |byte: &&u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
        self.step.code.iter().take_while(is_prefix).any(|byte| *byte == prefix)
    }

    /// Whether the instruction is one of SSE's.
    pub fn uses_sse(&self) -> bool {
        use iced_x86::CpuidFeature::{SSE, SSE2};
        self.step.instruction.cpuid_features().iter().any(|feature| matches!(feature, SSE | SSE2))
    }

    pub fn returns_flags(&self) -> bool {
        use Mnemonic::{Iret, Iretd, Iretq, Sysret, Sysretq};
        matches!(self.step.instruction.mnemonic(), Iret | Iretd | Iretq | Sysret | Sysretq)
    }

    pub fn has_two_segment_prefixes(&self) -> bool {
        let is_segment = |byte: &&u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65);
        let is_prefix =
            |byte: &&u8| is_segment(byte) || matches!(byte, 0x40..=0x4f | 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3);
        self.step.code.iter().take_while(is_prefix).filter(is_segment).count() > 1
    }

    /// Compares, with the windows of both machines' memory and what differs elsewhere.
    pub fn judge(&self, referee: Referee, memory: [&mut Windows; 2], elsewhere: Option<String>) -> Verdict {
        if let End::GaveUp(reason) = &self.right.end {
            return Verdict::GaveUp(reason.clone());
        }
        if matches!(&self.left.end, End::GaveUp(reason) if reason == INTERNAL_ERROR) {
            return Verdict::NotImplemented;
        }
        const INVALID_OPCODE: Option<u8> = Some(6);
        if self.reaches_a_hole() && self.right_vector == INVALID_OPCODE && self.left_vector != INVALID_OPCODE
        {
            return Verdict::GaveUp("#UD for an instruction that KVM cannot emulate".to_owned());
        }
        let mut differences = self.differences(referee, memory);
        differences.extend(elsewhere);
        if differences.is_empty() {
            return Verdict::Same;
        }
        match referee.lacks(self) {
            Some(lack) => Verdict::Lacking(lack.what),
            None => Verdict::Different(differences),
        }
    }

    fn differences(&self, referee: Referee, [left_memory, right_memory]: [&mut Windows; 2]) -> Vec<String> {
        let (left, right) = (self.left, self.right);
        let mut lines = Vec::new();
        if left.end != right.end {
            lines.push(format!("end: {:?} | {:?}", left.end, right.end));
        }
        if left.answers != right.answers {
            lines.push(format!("exits: {:x?} | {:x?}", left.answers, right.answers));
        }
        if !lines.is_empty() || left.end != End::Halted {
            // After a shutdown kvm_amd has reset the vCPU.
            return lines;
        }
        let (flags, result) = undefined::of(self.step, self.before, left.regs.rflags);
        if result && self.completed() {
            return lines;
        }
        let faults = match (self.left_vector, self.right_vector) {
            (None, None) => "",
            _ => ", in a handler",
        };
        let mut line = |name: &str, left: u64, right: u64| {
            if left != right {
                lines.push(format!("{name}: {left:#x} | {right:#x}{faults}"));
            }
        };
        let left_regs_are_64_bit = self.setting.is_long();
        let registers = named(&left.regs).into_iter().zip(named(&right.regs)).enumerate();
        for (number, ((name, left), (_, right))) in registers {
            // Only 64-bit code sees the upper halves.
            let hidden = if left_regs_are_64_bit { 0 } else { !0xffff_ffff };
            let undefined = undefined::bits(self.step, number) | hidden;
            line(name, left & !undefined, right & !undefined);
        }
        let ignored = flags | RF;
        line("rflags", left.regs.rflags & !ignored, right.regs.rflags & !ignored);
        system(&left.sregs, &right.sregs, self.setting.protected, &mut line);
        if crate::subject::differ(left_memory, right_memory) {
            for (memory, outcome) in [(&mut *left_memory, left), (&mut *right_memory, right)] {
                self.mask_pushed_flags(memory, outcome, ignored);
                self.mask_pushed_selector(memory);
                self.mask_x87(memory);
                if referee == Referee::Qemu {
                    self.mask_write_of_page_fault(memory, outcome);
                    self.mask_denormal_flag(memory);
                }
            }
            memory(left_memory, right_memory, &mut line);
        }
        lines
    }

    /// Whether the instruction did what it does: in ring 3 the `hlt` behind it is a fault too.
    fn completed(&self) -> bool {
        const GENERAL_PROTECTION: u8 = 13;
        match self.left_vector {
            None => true,
            Some(vector) => self.setting.ring == 3 && vector == GENERAL_PROTECTION,
        }
    }

    /// An exception pushes flags, undefined ones too.
    fn mask_pushed_flags(&self, windows: &mut Windows, outcome: &Outcome, flags: u64) {
        let Some(vector) = vector_of(outcome) else { return };
        let item = self.frame_item();
        let called = self.is(Mnemonic::Int) && self.step.instruction.immediate8() == vector;
        let has_code = self.setting.protected && matches!(vector, 8 | 10..=14 | 17) && !called;
        let at = self.stack(outcome) + item * if has_code { 3 } else { 2 };
        clear(windows, at, flags, item.min(4));
    }

    /// A page fault of an instruction that reads and then writes the same memory is one of a write on
    /// silicon and on Bochs; QEMU's software CPU reads first, and says so.
    fn mask_write_of_page_fault(&self, windows: &mut Windows, outcome: &Outcome) {
        const PAGE_FAULT: u8 = 14;
        const WRITE: u64 = 1 << 1;
        if vector_of(outcome) == Some(PAGE_FAULT) {
            clear(windows, self.stack(outcome), WRITE, 1);
        }
    }

    /// QEMU's CPU sets MXCSR's DE only where DAZ makes a denormal operand zero. Intel SDM Vol. 1, "Denormal-Operand
    /// Exception (#D)".
    fn mask_denormal_flag(&self, windows: &mut Windows) {
        const DE: u64 = 1 << 1;
        if self.uses_sse() {
            clear(windows, crate::generator::sse::CONTROL_STORED_AT, DE, 1);
        }
    }

    /// PUSH of a segment register writes two bytes or all, as the CPU likes. Intel SDM Vol. 2B, "PUSH—Push
    /// Word, Doubleword, or Quadword Onto the Stack".
    fn mask_pushed_selector(&self, windows: &mut Windows) {
        let is_selector = self.step.instruction.op0_register().is_segment_register();
        if self.is(Mnemonic::Push) && is_selector && self.completed() {
            let size = -self.step.instruction.stack_pointer_increment();
            clear(windows, self.before.rsp.wrapping_sub(size as u64) + 2, u64::MAX, size as u64 - 2);
        }
    }

    /// FXSAVE's image, but for MXCSR and the XMM registers: the software machine has no x87 registers, and what
    /// is reserved the CPU writes or not. Intel SDM Vol. 2A, "FXSAVE—Save x87 FPU, MMX Technology, and SSE
    /// State".
    fn mask_x87(&self, windows: &mut Windows) {
        let is_image = self.is(Mnemonic::Fxsave) || self.is(Mnemonic::Fxsave64);
        let Some(at) =
            operand_address(&self.step.instruction, self.before, &self.left.sregs).filter(|_| is_image)
        else {
            return;
        };
        for offset in (0..24).chain(28..160).chain(160 + 16 * 8..512) {
            clear(windows, at.wrapping_add(offset), u64::MAX, 1);
        }
    }

    /// The size of what an exception pushes.
    fn frame_item(&self) -> u64 {
        match (self.setting.protected, self.setting.is_long()) {
            (false, _) => 2,
            (_, false) => 4,
            (_, true) => 8,
        }
    }

    /// The linear address of the stack's top.
    fn stack(&self, outcome: &Outcome) -> u64 {
        let ss = &outcome.sregs.ss;
        if outcome.sregs.cs.l != 0 {
            return outcome.regs.rsp;
        }
        ss.base + (outcome.regs.rsp & if ss.db == 0 { 0xffff } else { 0xffff_ffff })
    }
}

/// The exception whose handler a step ended in.
fn vector_of(outcome: &Outcome) -> Option<u8> {
    let at = outcome.regs.rip.checked_sub(HANDLERS + 1)?;
    (outcome.end == End::Halted && at < PAGE && at % HANDLER == 0).then_some((at / HANDLER) as u8)
}

/// Clears bits of the first `length` bytes at `at`, where they are in the windows.
fn clear(windows: &mut Windows, at: u64, bits: u64, length: u64) {
    for (number, byte) in bits.to_le_bytes()[..length as usize].iter().enumerate() {
        if let Some(place) = place_in_windows(at.wrapping_add(number as u64)) {
            windows[place] &= !byte;
        }
    }
}

/// Where a guest-physical address is in [`Windows`].
fn place_in_windows(address: u64) -> Option<usize> {
    let mut start = 0;
    for (window, length) in WINDOWS {
        if (window..window + length as u64).contains(&address) {
            return Some(start + (address - window) as usize);
        }
        start += length;
    }
    None
}

fn memory(left: &Windows, right: &Windows, line: &mut impl FnMut(&str, u64, u64)) {
    let mut start = 0;
    for (window, length) in WINDOWS {
        let differs = (start..start + length).find(|place| left[*place] != right[*place]);
        if let Some(place) = differs {
            let at = window + (place - start) as u64;
            let word = |windows: &Windows| {
                let mut bytes = [0; 8];
                let length = (windows.len() - place).min(8);
                bytes[..length].copy_from_slice(&windows[place..place + length]);
                u64::from_le_bytes(bytes)
            };
            line(&format!("memory at {at:#x}"), word(left), word(right));
        }
        start += length;
    }
}

/// The system registers, each compared by name.
fn system(left: &kvm_sregs, right: &kvm_sregs, protected: bool, line: &mut impl FnMut(&str, u64, u64)) {
    let protected = protected && left.cr0 & 1 != 0;
    for (name, left, right) in [
        ("cs", &left.cs, &right.cs),
        ("ss", &left.ss, &right.ss),
        ("ds", &left.ds, &right.ds),
        ("es", &left.es, &right.es),
        ("fs", &left.fs, &right.fs),
        ("gs", &left.gs, &right.gs),
        ("tr", &left.tr, &right.tr),
        ("ldt", &left.ldt, &right.ldt),
    ] {
        segment(name, left, right, protected, line);
    }
    for (name, left, right) in [("gdt", &left.gdt, &right.gdt), ("idt", &left.idt, &right.idt)] {
        line(name, left.base, right.base);
        line(name, u64::from(left.limit), u64::from(right.limit));
    }
    line("cr0", left.cr0, right.cr0);
    line("cr2", left.cr2, right.cr2);
    line("cr3", left.cr3, right.cr3);
    line("cr4", left.cr4, right.cr4);
    line("cr8", left.cr8, right.cr8);
    line("efer", left.efer, right.efer);
}

/// A segment register. One that holds nothing is its selector alone, and real mode's have no rights.
/// KVM keeps neither G nor AVL on AMD.
fn segment(
    name: &str,
    left: &kvm_segment,
    right: &kvm_segment,
    protected: bool,
    line: &mut impl FnMut(&str, u64, u64),
) {
    // QEMU's CPU leaves a local table that LLDT took away present.
    let no_table = |segment: &kvm_segment| name == "ldt" && segment.selector & !3 == 0;
    let holds = |segment: &kvm_segment| segment.unusable == 0 && segment.present != 0 && !no_table(segment);
    line(&format!("{name}.selector"), u64::from(left.selector), u64::from(right.selector));
    line(&format!("{name}.present"), u64::from(holds(left)), u64::from(holds(right)));
    if !holds(left) {
        return;
    }
    line(&format!("{name}.base"), left.base, right.base);
    line(&format!("{name}.limit"), u64::from(left.limit), u64::from(right.limit));
    if protected {
        line(&format!("{name}.type"), u64::from(left.type_), u64::from(right.type_));
        let rights = |s: &kvm_segment| {
            u64::from(s.dpl) << 8 | u64::from(s.s) << 4 | u64::from(s.db) << 1 | u64::from(s.l)
        };
        line(&format!("{name}.dpl, s, db, l"), rights(left), rights(right));
    }
}

#[rustfmt::skip] // as the manual lists them
pub fn named(r: &kvm_regs) -> [(&'static str, u64); 17] {
    [
        ("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx), ("rdx", r.rdx), ("rsi", r.rsi), ("rdi", r.rdi),
        ("rsp", r.rsp), ("rbp", r.rbp), ("r8", r.r8), ("r9", r.r9), ("r10", r.r10), ("r11", r.r11),
        ("r12", r.r12), ("r13", r.r13), ("r14", r.r14), ("r15", r.r15), ("rip", r.rip),
    ]
}
