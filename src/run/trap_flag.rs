//! Keeps RFLAGS.TF over `syscall` and `sysret` while KVM single-steps: the one
//! clears the flags that the MSR FMASK names, which a careful kernel lets name TF,
//! and the other takes all flags from R11. A CPU that loses TF there runs on
//! unseen. Intel SDM Vol. 2B, "SYSCALL—Fast System Call" and "SYSRET—Return From
//! Fast System Call".
//!
//! The software machine steps without TF and needs none of this.

use iced_x86::Mnemonic;

use crate::kvm::{Result, VcpuBackend};
use crate::mode::rflags::TF;
use crate::trace::{Place, State};

/// Intel SDM Vol. 4, "Architectural MSRs".
const FMASK: u32 = 0xc000_0084;

/// What has to be put back after the step.
pub enum Kept {
    /// Nothing.
    Nothing,
    /// FMASK, without TF for the step of a `syscall`; R11 is then a copy of RFLAGS, TF included.
    Fmask(u64),
    /// R11, with TF for the step of a `sysret`.
    R11,
}

impl Kept {
    /// Before the instruction at `place` is stepped.
    pub fn before(place: &Place, state: &State, vcpu: &VcpuBackend) -> Result<Self> {
        if !vcpu.steps_by_trap_flag() {
            return Ok(Self::Nothing);
        }
        match place.instruction.map(|instruction| instruction.mnemonic()) {
            Some(Mnemonic::Syscall) => {
                let Some(mask) = vcpu.get_msr(FMASK).filter(|mask| mask & TF != 0) else {
                    return Ok(Self::Fmask(0));
                };
                vcpu.set_msr(FMASK, mask & !TF)?;
                Ok(Self::Fmask(mask))
            }
            Some(Mnemonic::Sysret | Mnemonic::Sysretq) if state.regs.r11 & TF == 0 => {
                let mut regs = state.regs;
                regs.r11 |= TF;
                vcpu.set_regs(&regs)?;
                Ok(Self::R11)
            }
            _ => Ok(Self::Nothing),
        }
    }

    /// After the step; `completed` where it ended as one, and not in an exit.
    pub fn after(&self, place: &Place, vcpu: &VcpuBackend, completed: bool) -> Result<()> {
        if let Self::Fmask(mask) = self
            && *mask != 0
        {
            vcpu.set_msr(FMASK, *mask)?;
        }
        if matches!(self, Self::Nothing) || !completed {
            return Ok(());
        }
        let mut regs = vcpu.get_regs()?;
        // A `syscall` that was an exception has left R11 alone, and RCX, too.
        let went = matches!(self, Self::R11) || regs.rcx == place.end();
        if went && regs.r11 & TF != 0 {
            regs.r11 &= !TF;
            vcpu.set_regs(&regs)?;
        }
        Ok(())
    }
}
