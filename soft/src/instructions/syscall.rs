//! Fast system calls, SWAPGS, and the bases of FS and GS. Intel SDM Vol. 2B, each by its name.

use iced_x86::{Code, Mnemonic};

use crate::cpu::{Cpu, gpr, seg};
use crate::op::{Handler, Op};
use crate::registers::{Segment, cr4, efer, rflags};
use crate::segment::is_canonical;
use crate::stop::{Done, Fault};

pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Syscall => syscall,
        Mnemonic::Sysret | Mnemonic::Sysretq => sysret,
        Mnemonic::Sysenter => sysenter,
        Mnemonic::Sysexit | Mnemonic::Sysexitq => sysexit,
        Mnemonic::Swapgs => swap_gs,
        Mnemonic::Rdfsbase => |cpu, op| read_base(cpu, op, seg::FS),
        Mnemonic::Rdgsbase => |cpu, op| read_base(cpu, op, seg::GS),
        Mnemonic::Wrfsbase => |cpu, op| write_base(cpu, op, seg::FS),
        Mnemonic::Wrgsbase => |cpu, op| write_base(cpu, op, seg::GS),
        _ => return None,
    })
}

const REFUSED: Fault = Fault::general_protection(0);

/// A flat segment, which these instructions make without reading a descriptor.
fn flat(selector: u16, type_: u8, ring: u8) -> Segment {
    Segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: ring,
        db: 1,
        s: 1,
        g: 1,
        ..Segment::default()
    }
}

const CODE: u8 = 11;
const DATA: u8 = 3;

impl Cpu {
    /// Loads CS and SS with flat segments of a ring: 64-bit or 32-bit code.
    fn load_flat(&mut self, code: u16, stack: u16, ring: u8, long: bool) {
        let cs = flat(code, CODE, ring);
        self.segments[seg::CS] = if long { Segment { l: 1, db: 0, ..cs } } else { cs };
        self.segments[seg::SS] = flat(stack, DATA, ring);
        self.cpl = ring;
        self.update_mode();
    }
}

/// From 64-bit code only, as on Intel's CPUs: RIP to RCX, RFLAGS to R11, and on at LSTAR in ring 0.
fn syscall(cpu: &mut Cpu, _: &Op) -> Done {
    if cpu.efer & efer::SCE == 0 || !cpu.in_64_bit() {
        return Err(Fault::INVALID_OPCODE.into());
    }
    cpu.gpr[gpr::RCX] = cpu.next;
    cpu.gpr[gpr::R11] = cpu.rflags & !rflags::RF;
    cpu.rflags = cpu.rflags & !(cpu.msrs.sfmask | rflags::RF) | rflags::FIXED;
    let selector = (cpu.msrs.star >> 32) as u16 & !3;
    cpu.load_flat(selector, selector.wrapping_add(8), 0, true);
    cpu.next = cpu.msrs.lstar;
    Ok(())
}

fn sysret(cpu: &mut Cpu, op: &Op) -> Done {
    if cpu.efer & efer::SCE == 0 || !cpu.in_64_bit() {
        return Err(Fault::INVALID_OPCODE.into());
    }
    cpu.need_ring_0()?;
    let long = op.instruction.code() == Code::Sysretq;
    let target = cpu.gpr[gpr::RCX];
    if long && !is_canonical(target) {
        return Err(REFUSED.into());
    }
    let selector = (cpu.msrs.star >> 48) as u16;
    let code = if long { selector.wrapping_add(16) } else { selector };
    cpu.load_flat(code | 3, selector.wrapping_add(8) | 3, 3, long);
    const RESTORED: u64 = 0x003c_7fd7;
    cpu.rflags = cpu.gpr[gpr::R11] & RESTORED | rflags::FIXED;
    cpu.next = if long { target } else { target & 0xffff_ffff };
    Ok(())
}

fn sysenter(cpu: &mut Cpu, _: &Op) -> Done {
    let code = cpu.msrs.sysenter_cs as u16 & !3;
    if !cpu.protected() || code == 0 {
        return Err(REFUSED.into());
    }
    let long = cpu.long_mode();
    cpu.rflags &= !(rflags::IF | rflags::VM | rflags::RF);
    cpu.load_flat(code, code.wrapping_add(8), 0, long);
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.gpr[gpr::RSP] = cpu.msrs.sysenter_esp & mask;
    cpu.next = cpu.msrs.sysenter_eip & mask;
    Ok(())
}

/// To RDX, with the stack at RCX.
fn sysexit(cpu: &mut Cpu, op: &Op) -> Done {
    let base = cpu.msrs.sysenter_cs as u16 & !3;
    if !cpu.protected() || base == 0 {
        return Err(REFUSED.into());
    }
    cpu.need_ring_0()?;
    let long = op.instruction.code() == Code::Sysexitq;
    let (target, stack) = (cpu.gpr[gpr::RDX], cpu.gpr[gpr::RCX]);
    if long && !(is_canonical(target) && is_canonical(stack)) {
        return Err(REFUSED.into());
    }
    let code = base.wrapping_add(if long { 32 } else { 16 });
    cpu.load_flat(code | 3, code.wrapping_add(8) | 3, 3, long);
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    (cpu.next, cpu.gpr[gpr::RSP]) = (target & mask, stack & mask);
    Ok(())
}

fn swap_gs(cpu: &mut Cpu, _: &Op) -> Done {
    if !cpu.in_64_bit() {
        return Err(Fault::INVALID_OPCODE.into());
    }
    cpu.need_ring_0()?;
    std::mem::swap(&mut cpu.segments[seg::GS].base, &mut cpu.msrs.kernel_gs_base);
    Ok(())
}

fn check_bases(cpu: &Cpu) -> Done {
    if cpu.in_64_bit() && cpu.cr4_has(cr4::FSGSBASE) { Ok(()) } else { Err(Fault::INVALID_OPCODE.into()) }
}

fn read_base(cpu: &mut Cpu, op: &Op, register: usize) -> Done {
    check_bases(cpu)?;
    let base = cpu.segments[register].base;
    cpu.set(op, op.first(), base)
}

fn write_base(cpu: &mut Cpu, op: &Op, register: usize) -> Done {
    check_bases(cpu)?;
    let base = cpu.get(op, op.first())?;
    if !is_canonical(base) {
        return Err(REFUSED.into());
    }
    cpu.segments[register].base = base;
    Ok(())
}
