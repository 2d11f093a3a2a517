//! I/O ports. Intel SDM Vol. 1, chapter "Input/Output".

use iced_x86::Mnemonic;

use crate::cpu::{Cpu, Pending, gpr};
use crate::exit::Exit;
use crate::op::{Handler, Op, Place};
use crate::registers::kind;
use crate::stop::{Done, Fault, Stop};

pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::In => input,
        Mnemonic::Out => output,
        _ => return None,
    })
}

/// The vCPU leaves with RIP still at the instruction, and the next run completes it.
fn output(cpu: &mut Cpu, op: &Op) -> Done {
    let (port, size) = (port(cpu, op, 0), op.second().size);
    cpu.check_port(port, size)?;
    let value = cpu.accumulator(size);
    cpu.data[..8].copy_from_slice(&value.to_le_bytes());
    let pending = Pending::Output { linear_rip: cpu.linear_rip(), length: op.length };
    cpu.leave(Exit::IoOut { port, size, count: 1 }, pending)
}

fn input(cpu: &mut Cpu, op: &Op) -> Done {
    let (port, size) = (port(cpu, op, 1), op.size());
    cpu.check_port(port, size)?;
    let pending = Pending::Input { linear_rip: cpu.linear_rip(), length: op.length, size };
    cpu.leave(Exit::IoIn { port, size, count: 1 }, pending)
}

fn port(cpu: &Cpu, op: &Op, number: usize) -> u16 {
    match op.operands[number].place {
        Place::Immediate => (op.immediate & 0xff) as u16,
        _ => cpu.register(gpr::RDX, 2) as u16,
    }
}

impl Cpu {
    /// Whether this ring may use these ports: by IOPL, or else by the bitmap in the TSS, in which every
    /// port that the access touches must have the bit 0. Intel SDM Vol. 1, "I/O Permission Bit Map".
    ///
    /// # Errors
    /// #GP(0).
    pub fn check_port(&mut self, port: u16, size: u8) -> Done {
        if !self.protected() || self.cpl <= self.iopl() {
            self.note_port(port, size);
            return Ok(());
        }
        let denied = || Stop::from(Fault::general_protection(0));
        /// Where a 32-bit and a 64-bit TSS say where the bitmap starts.
        const BITMAP_BASE: u64 = 0x66;
        let limit = u64::from(self.tr.limit);
        if self.tr.unusable != 0
            || !matches!(self.tr.type_, kind::TSS | kind::TSS_BUSY)
            || limit < BITMAP_BASE + 1
        {
            return Err(denied());
        }
        let bitmap = self.read(self.tr.base.wrapping_add(BITMAP_BASE), 2, false)?;
        let byte = bitmap + u64::from(port) / 8;
        // Two bytes are read, because four ports may have their bits in two.
        if byte + 1 > limit {
            return Err(denied());
        }
        let bits = self.read(self.tr.base.wrapping_add(byte), 2, false)?;
        let touched = ((1 << size) - 1) << (port % 8);
        if bits & touched != 0 {
            return Err(denied());
        }
        self.note_port(port, size);
        Ok(())
    }
}
