//! A guest that stands still: its registers, and its memory through its own
//! tables. What a post-mortem looks at.

use iced_x86::{Instruction, Register, UsedMemory};

use crate::exception::vector;
use crate::kvm::{kvm_regs, kvm_segment, kvm_sregs};
use crate::mode::{Mode, cr0, efer};
use crate::paging::{self, Access, Fault, Features, Intent, Paging, Read, Walk};
use crate::segment::canonical;

/// A guest, and how to read its physical memory.
pub struct Still<'a> {
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    pub features: Features,
    pub memory: Read<'a>,
}

/// Why an exception came: which one, the rule in a sentence, and what shows it, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub vector: u8,
    pub code: u16,
    pub sentence: String,
    pub shown: Vec<String>,
}

impl Cause {
    pub fn new(vector: u8, code: u16, sentence: impl Into<String>) -> Self {
        Self { vector, code, sentence: sentence.into(), shown: Vec::new() }
    }

    /// With a line that shows it.
    pub fn show(mut self, line: impl Into<String>) -> Self {
        self.shown.push(line.into());
        self
    }

    /// Whether this is about that exception. Bit 0 of an error code says only that something else was
    /// being delivered.
    pub fn explains(&self, vector: u8, code: u16) -> bool {
        let external = if vector == self::vector::PF { 0 } else { 1 };
        self.vector == vector && self.code | external == code | external
    }
}

impl Still<'_> {
    pub fn protected(&self) -> bool {
        self.sregs.cr0 & cr0::PE != 0
    }

    pub fn long(&self) -> bool {
        self.sregs.efer & efer::LMA != 0
    }

    pub fn in_64_bit(&self) -> bool {
        Mode::of(&self.sregs) == Mode::Long64
    }

    pub fn ring(&self) -> u8 {
        crate::mode::ring(&self.sregs)
    }

    /// As wide as the mode makes linear addresses.
    pub fn wrap(&self, linear: u64) -> u64 {
        if self.long() { linear } else { linear & 0xffff_ffff }
    }

    /// A walk through the tables as they are.
    pub fn walk(&self, linear: u64, access: Access) -> Walk {
        let paging = Paging::of(&self.sregs, self.regs.rflags, self.features);
        paging::walk_in(self.memory, &paging, linear, access)
    }

    /// Why an access to `length` bytes is refused by paging, if it is.
    pub fn refused(&self, linear: u64, length: usize, access: Access) -> Option<Cause> {
        let last = linear.wrapping_add(length as u64 - 1);
        [linear, last].into_iter().find_map(|address| {
            let walk = self.walk(address, access);
            match &walk.outcome {
                Ok(_) => None,
                Err(Fault::Page(_)) => Some(page_fault(&walk)),
                Err(Fault::NotCanonical) => {
                    Some(Cause::new(vector::GP, 0, format!("{address:#x} is not canonical")))
                }
            }
        })
    }

    /// Reads at a linear address as the CPU reads its own tables: as ring 0.
    ///
    /// # Errors
    /// The exception that the CPU takes instead.
    pub fn read(&self, linear: u64, length: usize) -> Result<Vec<u8>, Cause> {
        if let Some(cause) = self.refused(linear, length, Access::READ) {
            return Err(cause);
        }
        let mut bytes = Vec::new();
        for offset in 0..length as u64 {
            let walk = self.walk(linear.wrapping_add(offset), Access::READ);
            let physical = walk.outcome.ok().map(|mapping| mapping.physical);
            let byte = physical.and_then(|physical| (self.memory)(physical, 1));
            // A hole answers with ones, where nobody answers otherwise.
            bytes.push(byte.map_or(0xff, |byte| byte[0]));
        }
        Ok(bytes)
    }

    /// The same as a number.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn number(&self, linear: u64, length: usize) -> Result<u64, Cause> {
        let bytes = self.read(linear, length)?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// Code at a linear address, as far as there is any.
    pub fn code(&self, linear: u64, length: usize) -> Vec<u8> {
        let user = self.ring() == 3;
        let access = Access { intent: Intent::Fetch, user };
        let byte = |offset| {
            let walk = self.walk(linear.wrapping_add(offset), access);
            (self.memory)(walk.outcome.ok()?.physical, 1).map(|byte| byte[0])
        };
        (0..length as u64).map_while(byte).collect()
    }

    /// A register's value, as an instruction names it.
    pub fn register(&self, register: Register) -> u64 {
        let r = &self.regs;
        let whole = match register.full_register() {
            Register::RAX => r.rax,
            Register::RBX => r.rbx,
            Register::RCX => r.rcx,
            Register::RDX => r.rdx,
            Register::RSI => r.rsi,
            Register::RDI => r.rdi,
            Register::RSP => r.rsp,
            Register::RBP => r.rbp,
            Register::R8 => r.r8,
            Register::R9 => r.r9,
            Register::R10 => r.r10,
            Register::R11 => r.r11,
            Register::R12 => r.r12,
            Register::R13 => r.r13,
            Register::R14 => r.r14,
            Register::R15 => r.r15,
            _ => 0,
        };
        match register {
            Register::AH | Register::BH | Register::CH | Register::DH => whole >> 8 & 0xff,
            _ => match register.size() {
                1 => whole & 0xff,
                2 => whole & 0xffff,
                4 => whole & 0xffff_ffff,
                _ => whole,
            },
        }
    }

    /// A segment register and its name.
    pub fn segment(&self, register: Register) -> (&'static str, &kvm_segment) {
        let s = &self.sregs;
        match register {
            Register::CS => ("CS", &s.cs),
            Register::SS => ("SS", &s.ss),
            Register::ES => ("ES", &s.es),
            Register::FS => ("FS", &s.fs),
            Register::GS => ("GS", &s.gs),
            _ => ("DS", &s.ds),
        }
    }

    /// Where an access begins in its segment.
    pub fn offset(&self, used: &UsedMemory) -> u64 {
        let index = self.register(used.index()).wrapping_mul(u64::from(used.scale()));
        let sum = self.register(used.base()).wrapping_add(index).wrapping_add(used.displacement());
        match used.address_size() {
            iced_x86::CodeSize::Code16 => sum & 0xffff,
            iced_x86::CodeSize::Code32 => sum & 0xffff_ffff,
            _ => sum,
        }
    }

    /// Where an offset in a segment is, without any check.
    pub fn linear(&self, register: Register, offset: u64) -> u64 {
        let based = !self.in_64_bit() || matches!(register, Register::FS | Register::GS);
        let base = if based { self.segment(register).1.base } else { 0 };
        let linear = base.wrapping_add(offset);
        if self.in_64_bit() { linear } else { linear & 0xffff_ffff }
    }

    /// The operand of an instruction as a number: a register, memory or an immediate.
    pub fn operand(&self, instruction: &Instruction, number: u32) -> Option<u64> {
        use iced_x86::OpKind;
        match instruction.op_kind(number) {
            OpKind::Register => Some(self.register(instruction.op_register(number))),
            OpKind::Memory => {
                let mut factory = iced_x86::InstructionInfoFactory::new();
                let used = *factory.info(instruction).used_memory().first()?;
                let size = instruction.memory_size().size().clamp(1, 8);
                self.number(self.linear(used.segment(), self.offset(&used)), size).ok()
            }
            _ => instruction.try_immediate(number).ok(),
        }
    }

    /// Why an access at an offset of a segment is refused before paging is asked, if it is. Intel SDM
    /// Vol. 3A, "Limit Checking", "Type Checking" and "Segmentation in IA-32e Mode".
    pub fn outside(&self, register: Register, offset: u64, size: u64, intent: Intent) -> Option<Cause> {
        let fault = if register == Register::SS { vector::SS } else { vector::GP };
        let (name, segment) = self.segment(register);
        let last = offset.wrapping_add(size - 1);
        if self.in_64_bit() {
            let linear = self.linear(register, offset);
            let end = linear.wrapping_add(size - 1);
            let why = format!("{linear:#x} is not canonical: bits 63 to 47 are not all alike");
            return (!canonical(linear) || !canonical(end)).then(|| Cause::new(fault, 0, why));
        }
        let (code, bit1) = (segment.type_ & 8 != 0, segment.type_ & 2 != 0);
        let shown = || super::selector::describe_register(name, segment);
        let why = if self.protected() && segment.unusable != 0 {
            format!(
                "{name} holds the null selector {:#x}, and nothing can be accessed by it",
                segment.selector
            )
        } else if self.protected() && intent == Intent::Write && (code || !bit1) {
            format!("{name} holds a segment that may not be written")
        } else if self.protected() && intent == Intent::Read && code && !bit1 {
            format!("{name} holds code that may not be read")
        } else if segment.type_ & 0xc == 4 && segment.s != 0 {
            if offset > u64::from(segment.limit) {
                return None;
            }
            format!("{name} grows down to its limit of {:#x}, and {offset:#x} is not above it", segment.limit)
        } else if last > u64::from(segment.limit) || last < offset {
            format!("bytes {offset:#x} to {last:#x} of {name} lie past its limit of {:#x}", segment.limit)
        } else {
            return None;
        };
        Some(Cause::new(fault, 0, why).show(shown()))
    }
}

/// A page fault told by its walk: the entry that is to blame, and all entries.
pub fn page_fault(walk: &Walk) -> Cause {
    let Err(Fault::Page(fault)) = &walk.outcome else {
        return Cause::new(vector::PF, 0, format!("{:#x} is mapped", walk.linear));
    };
    let named = |step: &paging::Step| format!("{}[{}]", step.level.table, step.index);
    let last = walk.steps.last().map_or(String::new(), named);
    let without = |bit: u64| {
        let lacking = walk.steps.iter().find(|step| step.value.unwrap_or(0) & bit == 0);
        lacking.map_or(last.clone(), named)
    };
    let with_nx = walk.steps.iter().find(|step| step.value.unwrap_or(0) & paging::entry::NX != 0);
    let why = match fault.cause {
        paging::Cause::NotPresent => format!("{last} is not present"),
        paging::Cause::NoTable => format!("{last} would be where the guest has no memory"),
        paging::Cause::Reserved(bits) => format!("{last} sets {bits:#x}, which is reserved there"),
        paging::Cause::SupervisorOnly => {
            format!("{} lacks U/S: the page is not ring 3's", without(paging::entry::USER))
        }
        paging::Cause::ReadOnly => {
            let binds = if walk.access.user { "" } else { ", and CR0.WP binds ring 0 to it" };
            format!("{} lacks R/W{binds}", without(paging::entry::WRITABLE))
        }
        paging::Cause::NoExecute => {
            format!("{} has XD: no code is there", with_nx.map_or(last.clone(), named))
        }
        cause @ (paging::Cause::Smep | paging::Cause::Smap) => cause.to_string(),
    };
    let mut cause = Cause::new(vector::PF, fault.error_code as u16, why);
    let text = walk.to_string();
    let lines: Vec<&str> = text.lines().collect();
    // The last line says the fault once more.
    cause.shown.extend(lines[..lines.len() - 1].iter().map(|line| (*line).to_owned()));
    cause
}
