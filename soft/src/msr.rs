//! Model-specific registers. Intel SDM Vol. 4, "Architectural MSRs".

use crate::cpu::{Cpu, seg};
use crate::registers::{cr0, efer};
use crate::segment::is_canonical;
use crate::stop::Fault;

/// The registers that have a value of their own.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the manuals' names
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub apic_base: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub tsc_aux: u64,
    /// The memory type where no range says another: kept, and nothing else, for there are no caches.
    pub mtrr_def_type: u64,
    /// What the time stamp counter is ahead of the instructions executed.
    pub tsc_offset: u64,
}

impl Msrs {
    /// After reset.
    pub fn reset() -> Self {
        Self {
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            apic_base: 0xfee0_0900,
            // WB, WT, UC-, UC, twice. Intel SDM Vol. 3A, "Programming the PAT".
            pat: 0x0007_0406_0007_0406,
            // Fast strings.
            misc_enable: 1,
            tsc_aux: 0,
            mtrr_def_type: 0,
            tsc_offset: 0,
        }
    }
}

#[rustfmt::skip] // laid out like the SDM's table
mod number {
    pub const TSC: u32            = 0x10;
    pub const APIC_BASE: u32      = 0x1b;
    pub const BIOS_SIGN_ID: u32   = 0x8b;
    pub const MTRRCAP: u32        = 0xfe;
    pub const SYSENTER_CS: u32    = 0x174;
    pub const SYSENTER_ESP: u32   = 0x175;
    pub const SYSENTER_EIP: u32   = 0x176;
    pub const MISC_ENABLE: u32    = 0x1a0;
    pub const PAT: u32            = 0x277;
    pub const MTRR_DEF_TYPE: u32  = 0x2ff;
    pub const EFER: u32           = 0xc000_0080;
    pub const STAR: u32           = 0xc000_0081;
    pub const LSTAR: u32          = 0xc000_0082;
    pub const CSTAR: u32          = 0xc000_0083;
    pub const SFMASK: u32         = 0xc000_0084;
    pub const FS_BASE: u32        = 0xc000_0100;
    pub const GS_BASE: u32        = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32        = 0xc000_0103;
}

const REFUSED: Fault = Fault::general_protection(0);

impl Cpu {
    /// The time stamp counter: an instruction a tick, so that a run can be repeated.
    pub fn time_stamp(&self) -> u64 {
        self.nanoseconds().wrapping_add(self.msrs.tsc_offset)
    }

    /// The time of the machine's timers: an instruction is a nanosecond, and `hlt` waits.
    pub fn nanoseconds(&self) -> u64 {
        self.instructions.wrapping_add(self.idle)
    }

    /// RDMSR.
    ///
    /// # Errors
    /// #GP(0) for a register that this CPU has not.
    pub fn read_msr(&self, register: u32) -> Result<u64, Fault> {
        let msrs = &self.msrs;
        Ok(match register {
            number::TSC => self.time_stamp(),
            number::APIC_BASE => msrs.apic_base,
            number::BIOS_SIGN_ID | number::MTRRCAP => 0,
            number::SYSENTER_CS => msrs.sysenter_cs,
            number::SYSENTER_ESP => msrs.sysenter_esp,
            number::SYSENTER_EIP => msrs.sysenter_eip,
            number::MISC_ENABLE => msrs.misc_enable,
            number::PAT => msrs.pat,
            number::MTRR_DEF_TYPE => msrs.mtrr_def_type,
            number::EFER => self.efer,
            number::STAR => msrs.star,
            number::LSTAR => msrs.lstar,
            number::CSTAR => msrs.cstar,
            number::SFMASK => msrs.sfmask,
            number::FS_BASE => self.segments[seg::FS].base,
            number::GS_BASE => self.segments[seg::GS].base,
            number::KERNEL_GS_BASE => msrs.kernel_gs_base,
            number::TSC_AUX => msrs.tsc_aux,
            _ => return Err(REFUSED),
        })
    }

    /// WRMSR.
    ///
    /// # Errors
    /// #GP(0) for a register that this CPU has not, and a value that it cannot hold.
    pub fn write_msr(&mut self, register: u32, value: u64) -> Result<(), Fault> {
        let address = if is_canonical(value) { Ok(value) } else { Err(REFUSED) };
        match register {
            number::TSC => self.msrs.tsc_offset = value.wrapping_sub(self.nanoseconds()),
            number::APIC_BASE => self.msrs.apic_base = value,
            number::BIOS_SIGN_ID => {}
            number::SYSENTER_CS => self.msrs.sysenter_cs = value,
            number::SYSENTER_ESP => self.msrs.sysenter_esp = address?,
            number::SYSENTER_EIP => self.msrs.sysenter_eip = address?,
            number::MISC_ENABLE => self.msrs.misc_enable = value,
            number::PAT => {
                // Eight memory types; 2 and 3 are none.
                if value.to_le_bytes().iter().any(|kind| matches!(kind, 2 | 3 | 8..)) {
                    return Err(REFUSED);
                }
                self.msrs.pat = value;
            }
            // The type, and whether the registers and the fixed ones among them count. Intel SDM Vol. 3A,
            // "IA32_MTRR_DEF_TYPE MSR".
            number::MTRR_DEF_TYPE if value & !0xcff != 0 => return Err(REFUSED),
            number::MTRR_DEF_TYPE => self.msrs.mtrr_def_type = value,
            number::EFER => self.write_efer(value)?,
            number::STAR => self.msrs.star = value,
            number::LSTAR => self.msrs.lstar = address?,
            number::CSTAR => self.msrs.cstar = address?,
            number::SFMASK => self.msrs.sfmask = value & 0xffff_ffff,
            number::FS_BASE => self.segments[seg::FS].base = address?,
            number::GS_BASE => self.segments[seg::GS].base = address?,
            number::KERNEL_GS_BASE => self.msrs.kernel_gs_base = address?,
            number::TSC_AUX => self.msrs.tsc_aux = value & 0xffff_ffff,
            _ => return Err(REFUSED),
        }
        Ok(())
    }

    /// LMA is the CPU's own, and LME does not change while paging is on. Intel SDM Vol. 3A,
    /// "Initializing IA-32e Mode".
    fn write_efer(&mut self, value: u64) -> Result<(), Fault> {
        let value = value & !efer::LMA | self.efer & efer::LMA;
        let changes_mode = (value ^ self.efer) & efer::LME != 0;
        if value & !efer::ALL != 0 || changes_mode && self.cr0 & cr0::PG != 0 {
            return Err(REFUSED);
        }
        self.efer = value;
        self.flush_translations();
        Ok(())
    }
}
