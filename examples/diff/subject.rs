//! A machine under test: one VM that runs case after case and shows what each
//! one left behind.
//!
//! ```text
//! guest-physical   0x0000  real mode's vector table
//!                  0x1800  the instruction, in a page of hlt
//!                  0x2000  a handler for each of 32 exceptions: out 0x40 + vector, al; hlt
//!                  0x3000  IDT; 0x3400 GDT
//!                  0x5000  the top of the stack
//!                  0x6000  scratch memory, where most addresses point
//!                  0x8000  page tables
//!                  0x10000 the end of memory: MMIO
//! ```

use anyhow::{Context, Result};
use vmexit::exit::Unexpected;
use vmexit::guest::Memory;
use vmexit::kvm::{Kvm, VcpuExit, kvm_regs, kvm_sregs};
use vmexit::machine::Machine;
use vmexit::mode::{CODE_SELECTOR, enter_long, enter_protected, enter_real};
use vmexit::paging;
use vmexit::segment::Descriptor;

use crate::generator::Case;

pub const CODE: u64 = 0x1800;
pub const STACK: u64 = 0x5000;
pub const SCRATCH: u64 = 0x6000;
pub const SCRATCH_SIZE: usize = 0x1000;
const CODE_PAGE: u64 = 0x1000;
const HANDLERS: u64 = 0x2000;
const IDT: u64 = 0x3000;
const GDT: u64 = 0x3400;
const TABLES: u64 = 0x8000;
const TABLES_SIZE: usize = 0x3000;
const MEMORY: usize = 0x10000;
const VECTORS: u64 = 32;
/// The handler of vector 0 writes to this port, that of vector 1 to the next.
pub const FIRST_PORT: u16 = 0x40;
const HLT: u8 = 0xf4;
/// More exits than a case can have reasons for: a repeated `outs` of 16 items.
const MOST_EXITS: usize = 64;

/// The modes that cases run in, all in ring 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuMode {
    Real,
    Protected,
    Long,
}

pub const CPU_MODES: [CpuMode; 3] = [CpuMode::Real, CpuMode::Protected, CpuMode::Long];

impl CpuMode {
    pub fn bits(self) -> u32 {
        match self {
            Self::Real => 16,
            Self::Protected => 32,
            Self::Long => 64,
        }
    }
}

/// What a case left behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Every exit, with what it carried; the last one ended the case.
    pub exits: Vec<String>,
    pub regs: kvm_regs,
    pub cr2: u64,
    /// All memory but the page tables.
    pub memory: Vec<u8>,
    /// KVM could not go on: nothing to compare.
    pub gave_up: bool,
}

/// A machine in one mode.
pub struct Subject<'a> {
    kvm: &'a Kvm,
    mode: CpuMode,
    machine: Machine,
    sregs: kvm_sregs,
    /// The memory that every case starts with, but for its own code and scratch.
    pristine: Vec<u8>,
}

impl<'a> Subject<'a> {
    pub fn new(kvm: &'a Kvm, mode: CpuMode) -> Result<Self> {
        let machine = Machine::new(kvm, Memory::new(MEMORY)?)?;
        let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
        prepare(&machine.memory, mode, &mut sregs)?;
        machine.memory.write(CODE_PAGE, &[HLT; 0x1000])?;
        let pristine = machine.memory.read(0, MEMORY)?;
        Ok(Self { kvm, mode, machine, sregs, pristine })
    }

    /// Runs a case from its own state, whatever the last one left.
    pub fn run(&mut self, case: &Case) -> Result<Outcome> {
        let memory = &self.machine.memory;
        memory.write(0, &self.pristine)?;
        memory.write(CODE, &case.code)?;
        memory.write(SCRATCH, &case.scratch)?;
        self.machine.vcpu.set_sregs(&self.sregs).context("KVM_SET_SREGS")?;
        self.machine.vcpu.set_regs(&case.regs).context("KVM_SET_REGS")?;
        let (exits, ended) = self.run_to_the_end()?;
        let regs = self.machine.vcpu.get_regs().context("KVM_GET_REGS")?;
        let cr2 = self.machine.vcpu.get_sregs().context("KVM_GET_SREGS")?.cr2;
        let mut memory = self.machine.memory.read(0, MEMORY)?;
        // The CPU sets accessed and dirty bits there, and may do so ahead of need.
        memory[TABLES as usize..TABLES as usize + TABLES_SIZE].fill(0);
        let outcome = Outcome { exits, regs, cr2, memory, gave_up: !ended };
        if !ended {
            // What such an end leaves behind is nobody's promise: begin anew.
            *self = Self::new(self.kvm, self.mode)?;
        }
        Ok(outcome)
    }

    /// The exits up to the `hlt` that ends every case, and whether there was one.
    fn run_to_the_end(&mut self) -> Result<(Vec<String>, bool)> {
        let mut exits = Vec::new();
        for number in 0..MOST_EXITS {
            let text = match self.machine.vcpu.run().context("KVM_RUN")? {
                VcpuExit::Hlt => return Ok((exits, true)),
                VcpuExit::IoOut(port, data) => format!("out {port:#x} {data:02x?}"),
                VcpuExit::MmioWrite(address, data) => format!("write {address:#x} {data:02x?}"),
                VcpuExit::IoIn(port, data) => {
                    data.fill(0xa0 | number as u8);
                    format!("in {port:#x} {}", data.len())
                }
                VcpuExit::MmioRead(address, data) => {
                    data.fill(0xa0 | number as u8);
                    format!("read {address:#x} {}", data.len())
                }
                exit => {
                    exits.push(Unexpected::from(exit).0.name().to_owned());
                    return Ok((exits, false));
                }
            };
            exits.push(text);
        }
        Ok((exits, false))
    }
}

/// Handlers, tables and system registers of a mode.
fn prepare(memory: &Memory, mode: CpuMode, sregs: &mut kvm_sregs) -> Result<()> {
    for vector in 0..VECTORS {
        let handler = HANDLERS + vector * 16;
        memory.write(handler, &[0xe6, FIRST_PORT as u8 + vector as u8, HLT])?;
        match mode {
            CpuMode::Real => memory.write(vector * 4, &(handler as u32).to_le_bytes())?,
            CpuMode::Protected => memory.write(IDT + vector * 8, &gate(handler).to_le_bytes())?,
            CpuMode::Long => memory.write(IDT + vector * 16, &gate(handler).to_le_bytes())?,
        }
    }
    let code = if mode == CpuMode::Long { Descriptor::CODE_64 } else { Descriptor::CODE_32 };
    let gdt = [Descriptor::NULL, code, Descriptor::DATA];
    memory.write(GDT, &gdt.map(|descriptor| descriptor.0.to_le_bytes()).concat())?;
    match mode {
        CpuMode::Real => enter_real(sregs),
        CpuMode::Protected => enter_protected(sregs, code),
        CpuMode::Long => {
            enter_protected(sregs, code);
            enter_long(sregs, paging::identity_map(memory, TABLES)?);
        }
    }
    if mode != CpuMode::Real {
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 3 * 8 - 1);
        (sregs.idt.base, sregs.idt.limit) = (IDT, 0x1ff);
    }
    Ok(())
}

/// The low eight bytes of a present interrupt gate, ring 0: all of a 32-bit one, and
/// the half of a 64-bit one that is not zero for a handler below 4 GiB. Intel SDM
/// Vol. 3A, "IDT Descriptors" and "64-Bit Mode IDT".
fn gate(handler: u64) -> u64 {
    handler & 0xffff | u64::from(CODE_SELECTOR) << 16 | 0x8e << 40 | (handler >> 16 & 0xffff) << 48
}
