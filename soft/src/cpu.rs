//! The CPU's state, and what follows from it: mode, code size, ring.

use crate::access::Mmio;
use crate::cache::CodePages;
use crate::debug::{Debug, bits};
use crate::exit::Exit;
use crate::interrupt::FailedDelivery;
use crate::msr::Msrs;
use crate::registers::{Regs, Segment, Sregs, Table, cr0, cr4, efer, rflags};
use crate::slots::Slots;
use crate::stop::Stop;
use crate::tlb::Tlb;

/// General-purpose registers by number, as instructions encode them.
#[rustfmt::skip]
#[allow(missing_docs)]
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R11: usize = 11;
    /// No register: always 0, so that an address needs no branch for a part that it lacks.
    pub const NONE: usize = 16;
}

/// Segment registers by number, as instructions encode them.
#[rustfmt::skip]
#[allow(missing_docs)]
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// The size of the code that CS holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// 16-bit: real mode, and segments with D = 0.
    Bits16,
    /// 32-bit.
    Bits32,
    /// 64-bit: long mode with CS.L.
    Bits64,
}

/// The most that an exit carries, in bytes.
const DATA: usize = 1024;

/// One CPU.
pub struct Cpu {
    /// RAX to R15 in the instructions' encoding, and a zero: see [`gpr`].
    pub gpr: [u64; 17],
    /// The instruction that is executed, or will be next.
    pub rip: u64,
    /// The instruction after it; a jump changes this.
    pub next: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// ES to GS: see [`seg`].
    pub segments: [Segment; 6],
    /// The task register.
    pub tr: Segment,
    /// The local descriptor table's register.
    pub ldt: Segment,
    /// GDTR.
    pub gdt: Table,
    /// IDTR.
    pub idt: Table,
    /// Control registers.
    pub cr0: u64,
    /// The address of the last page fault.
    pub cr2: u64,
    /// The page tables.
    pub cr3: u64,
    /// Extensions.
    pub cr4: u64,
    /// The task priority.
    pub cr8: u64,
    /// EFER.
    pub efer: u64,
    /// PAE's four page-directory pointers, as CR3's last load found them.
    pub pdptes: [u64; 4],
    /// DR0 to DR7.
    pub dr: [u64; 8],
    /// The hypervisor's, which hold in place of the guest's.
    pub debugger: Option<[u64; 8]>,
    /// Which breakpoints are on: [`Cpu::update_breakpoints`] keeps it.
    pub debug: Debug,
    /// The hypervisor wants to see every `int3`.
    pub show_int3: bool,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// SSE's control and status.
    pub mxcsr: u32,
    /// x87's control word; there is no more of it.
    pub fcw: u16,
    /// The ring.
    pub cpl: u8,
    /// Of the code that runs: [`Cpu::update_mode`] keeps it.
    pub code_size: CodeSize,
    /// Guest-physical addresses have this many bits.
    pub physical_bits: u32,
    /// CPUID's answers.
    pub cpuid: Vec<crate::cpuid::CpuidEntry>,
    /// Instructions executed: the time stamp counter.
    pub instructions: u64,
    /// Iterations of repeated string instructions.
    pub iterations: u64,
    /// Nanoseconds that went by in `hlt`, with interrupt controllers.
    pub idle: u64,

    /// Translations that were made before.
    pub tlb: Tlb,
    /// Guest-physical memory.
    pub slots: Slots,
    /// Which pages hold code that was decoded.
    pub code_pages: CodePages,
    /// Accesses where no memory is.
    pub mmio: Mmio,
    /// The decoded block must not go on after this instruction.
    pub leave_block: bool,
    /// No interrupt or trap before the next instruction: STI, and MOV and POP to SS.
    pub shadow: Shadow,
    /// In the handler of a non-maskable interrupt: the next one waits for IRET.
    pub nmi_masked: bool,
    /// The exit that [`Stop::Exit`] speaks of.
    pub exit: Exit,
    /// The data of an exit, at an address of its own: whoever was shown it may keep looking.
    pub data: Vec<u8>,
    /// What is to be done about it at the next run.
    pub pending: Pending,
    /// One instruction at a time, and one iteration of a repeated one.
    pub stepping: bool,
    /// A repeated instruction has more iterations to go.
    pub repeats: bool,
    /// The instruction has entered an interrupt's or an exception's handler.
    pub delivered: bool,
    /// What the last delivery of an event has failed at.
    pub failed_deliveries: Vec<FailedDelivery>,
    /// The answer to a string input, as far as it is not in memory yet; an exit in between would
    /// overwrite `data`.
    pub input: Vec<u8>,
}

/// What an exit left to be done before the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// Nothing.
    Nothing,
    /// OUT: RIP is still at it.
    Output {
        /// Where it is.
        linear_rip: u64,
        /// How long it is.
        length: u8,
    },
    /// IN: the same, and the answer goes to the accumulator.
    Input {
        /// Where it is.
        linear_rip: u64,
        /// How long it is.
        length: u8,
        /// Bytes of the answer.
        size: u8,
    },
    /// INS: so many bytes were asked for.
    StringInput {
        /// Of all items.
        bytes: usize,
    },
    /// An instruction that reads a hole.
    MmioRead {
        /// Guest-physical.
        address: u64,
        /// Bytes.
        size: u8,
    },
}

/// What holds interrupts and traps back for one instruction. Intel SDM Vol. 3A, "Masking Maskable
/// Hardware Interrupts" and "Masking Exceptions and Interrupts When Switching Stacks".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shadow {
    /// Nothing.
    None,
    /// STI has just set IF: no interrupt.
    Sti,
    /// SS was loaded: neither interrupt nor trap.
    MovSs,
}

impl Cpu {
    /// A CPU after reset, without memory.
    pub fn reset() -> Self {
        let (regs, sregs) = (Regs::reset(), Sregs::reset());
        let mut cpu = Self {
            gpr: [0; 17],
            rip: regs.rip,
            next: regs.rip,
            rflags: regs.rflags,
            segments: [sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs],
            tr: sregs.tr,
            ldt: sregs.ldt,
            gdt: sregs.gdt,
            idt: sregs.idt,
            cr0: sregs.cr0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            pdptes: [0; 4],
            // Fixed bits. Intel SDM Vol. 3B, "Debug Registers".
            dr: [0, 0, 0, 0, 0, 0, bits::DR6_FIXED, bits::DR7_FIXED],
            debugger: None,
            debug: Debug::reset(),
            show_int3: false,
            msrs: Msrs::reset(),
            xmm: [0; 16],
            // Every exception masked. Intel SDM Vol. 1, "MXCSR Control and Status Register".
            mxcsr: 0x1f80,
            fcw: 0x37f,
            cpl: 0,
            code_size: CodeSize::Bits16,
            physical_bits: 36,
            cpuid: Vec::new(),
            instructions: 0,
            iterations: 0,
            idle: 0,
            tlb: Tlb::default(),
            slots: Slots::default(),
            code_pages: CodePages::default(),
            mmio: Mmio::default(),
            leave_block: false,
            shadow: Shadow::None,
            nmi_masked: false,
            exit: Exit::Budget,
            data: vec![0; DATA],
            pending: Pending::Nothing,
            stepping: false,
            repeats: false,
            delivered: false,
            failed_deliveries: Vec::new(),
            input: Vec::with_capacity(DATA),
        };
        cpu.gpr[gpr::RDX] = regs.rdx;
        cpu
    }

    /// Whether CR0.PE is set.
    #[inline(always)]
    pub fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    /// Whether long mode is active: 64-bit code, or a compatibility mode.
    #[inline(always)]
    pub fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// Whether the code is 64-bit code.
    #[inline(always)]
    pub fn in_64_bit(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }

    /// Works out what follows from CR0, EFER, CS and SS after one of them has changed.
    pub fn update_mode(&mut self) {
        let cs = &self.segments[seg::CS];
        self.code_size = if self.long_mode() && cs.l != 0 {
            CodeSize::Bits64
        } else if cs.db != 0 {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        };
        self.leave_block = true;
    }

    /// The bits of RIP that the code's size has.
    #[inline(always)]
    pub fn ip_mask(&self) -> u64 {
        match self.code_size {
            CodeSize::Bits16 | CodeSize::Bits32 => 0xffff_ffff,
            CodeSize::Bits64 => u64::MAX,
        }
    }

    /// The bits of RSP that PUSH and POP move: SS.B says, and in 64-bit code all of them. Intel SDM
    /// Vol. 1, "Address-Size Attributes for Stack Accesses".
    #[inline(always)]
    pub fn stack_mask(&self) -> u64 {
        if self.in_64_bit() {
            u64::MAX
        } else if self.segments[seg::SS].db != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// RSP, as far as the stack's size goes.
    #[inline(always)]
    pub fn stack_pointer(&self) -> u64 {
        self.gpr[gpr::RSP] & self.stack_mask()
    }

    /// Sets as much of RSP as the stack's size has.
    #[inline(always)]
    pub fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_mask();
        // A 32-bit write clears the upper half, as every 32-bit write to a register does.
        let kept = if mask == 0xffff { self.gpr[gpr::RSP] & !0xffff } else { 0 };
        self.gpr[gpr::RSP] = kept | value & mask;
    }

    /// IOPL, 0 to 3.
    pub fn iopl(&self) -> u8 {
        ((self.rflags & rflags::IOPL) >> 12) as u8
    }

    /// Whether the bit of RFLAGS is set.
    #[inline(always)]
    pub fn flag(&self, bit: u64) -> bool {
        self.rflags & bit != 0
    }

    /// Sets or clears a bit of RFLAGS.
    #[inline(always)]
    pub fn set_flag(&mut self, bit: u64, on: bool) {
        self.rflags = if on { self.rflags | bit } else { self.rflags & !bit };
    }

    /// Replaces the bits of RFLAGS that `changed` names.
    #[inline(always)]
    pub fn set_flags(&mut self, flags: u64, changed: u64) {
        self.rflags = self.rflags & !changed | flags & changed;
    }

    /// Whether an access of this ring is a user's, to the page tables.
    #[inline(always)]
    pub fn user(&self) -> bool {
        self.cpl == 3
    }

    /// Whether a feature of CR4 is on.
    pub fn cr4_has(&self, bit: u64) -> bool {
        self.cr4 & bit != 0
    }

    /// Whether ring 0's data accesses to user pages are forbidden now.
    pub fn smap(&self) -> bool {
        self.cr4_has(cr4::SMAP) && !self.flag(rflags::AC)
    }

    /// Leaves the guest; `pending` is what the next run does first.
    pub fn leave<T>(&mut self, exit: Exit, pending: Pending) -> Result<T, Stop> {
        (self.exit, self.pending) = (exit, pending);
        Err(Stop::Exit)
    }

    /// The linear address of the instruction at RIP.
    pub fn linear_rip(&self) -> u64 {
        if self.in_64_bit() {
            self.rip
        } else {
            self.segments[seg::CS].base.wrapping_add(self.rip) & 0xffff_ffff
        }
    }
}
