//! HLT, interrupts by instruction, CPUID, counters, model-specific registers. Intel SDM Vol. 2, each by
//! its name.

use iced_x86::Mnemonic;

use crate::cpu::{Cpu, Pending, gpr};
use crate::exit::Exit;
use crate::interrupt::{Event, Source};
use crate::op::{Handler, Op};
use crate::registers::{cr4, rflags};
use crate::stop::{Done, Fault, vector};

pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Hlt => halt,
        Mnemonic::Int => |cpu, op| software_interrupt(cpu, (op.immediate & 0xff) as u8),
        Mnemonic::Int3 => breakpoint,
        Mnemonic::Into => overflow,
        Mnemonic::Int1 => debug_trap,
        Mnemonic::Bound => bound,
        Mnemonic::Vmcall | Mnemonic::Vmmcall => hypercall,
        Mnemonic::Cpuid => cpuid,
        Mnemonic::Rdtsc => |cpu, _| read_time_stamp(cpu),
        Mnemonic::Rdtscp => |cpu, _| {
            read_time_stamp(cpu)?;
            cpu.gpr[gpr::RCX] = cpu.msrs.tsc_aux;
            Ok(())
        },
        Mnemonic::Rdmsr => read_register,
        Mnemonic::Wrmsr => write_register,
        Mnemonic::Wbinvd | Mnemonic::Invd => |cpu, _| cpu.need_ring_0(),
        Mnemonic::Clflush | Mnemonic::Clflushopt => flush_line,
        _ => return None,
    })
}

/// The vCPU leaves with RIP past the instruction.
fn halt(cpu: &mut Cpu, _: &Op) -> Done {
    cpu.need_ring_0()?;
    cpu.rip = cpu.next;
    cpu.leave(Exit::Hlt, Pending::Nothing)
}

fn software_interrupt(cpu: &mut Cpu, vector: u8) -> Done {
    cpu.interrupt_by_instruction(Event { vector, code: None, source: Source::Software })
}

/// The hypervisor may want to see it, with RIP still at it.
fn breakpoint(cpu: &mut Cpu, _: &Op) -> Done {
    if cpu.show_int3 {
        let (pc, dr6, dr7) = (cpu.linear_rip(), cpu.dr[6], cpu.debug.dr7);
        return cpu.leave(Exit::Debug { exception: vector::BREAKPOINT, pc, dr6, dr7 }, Pending::Nothing);
    }
    software_interrupt(cpu, vector::BREAKPOINT)
}

fn overflow(cpu: &mut Cpu, _: &Op) -> Done {
    if cpu.flag(rflags::OF) { software_interrupt(cpu, vector::OVERFLOW) } else { Ok(()) }
}

/// INT1 is no software interrupt: it needs no gate of its own ring.
fn debug_trap(cpu: &mut Cpu, _: &Op) -> Done {
    cpu.interrupt_by_instruction(Event { vector: vector::DEBUG, code: None, source: Source::Trap })
}

fn bound(cpu: &mut Cpu, op: &Op) -> Done {
    let size = op.size();
    let (segment, at) = (usize::from(op.address.segment), cpu.offset(op));
    let signed = |value| crate::flags::sign_extend(size, value) as i64;
    let index = signed(cpu.get(op, op.first())?);
    let lower = signed(cpu.read_at(segment, at, size)?);
    let upper = signed(cpu.read_at(segment, at.wrapping_add(u64::from(size)) & op.address.mask, size)?);
    if (lower..=upper).contains(&index) {
        return Ok(());
    }
    Err(Fault { vector: vector::BOUND, code: None }.into())
}

/// A call that KVM does not know, which all of them are: both vendors' instructions answer alike.
/// Linux's `include/uapi/linux/kvm_para.h`.
fn hypercall(cpu: &mut Cpu, _: &Op) -> Done {
    const EPERM: i64 = 1;
    const ENOSYS: i64 = 1000;
    let answer = -if cpu.cpl == 0 { ENOSYS } else { EPERM };
    let size = if cpu.in_64_bit() { 8 } else { 4 };
    cpu.set_register(gpr::RAX, size, answer as u64);
    Ok(())
}

fn cpuid(cpu: &mut Cpu, _: &Op) -> Done {
    let answer = cpu.cpuid_answer(cpu.gpr[gpr::RAX] as u32, cpu.gpr[gpr::RCX] as u32);
    for (register, value) in [gpr::RAX, gpr::RBX, gpr::RCX, gpr::RDX].into_iter().zip(answer) {
        cpu.gpr[register] = u64::from(value);
    }
    Ok(())
}

fn read_time_stamp(cpu: &mut Cpu) -> Done {
    if cpu.cr4_has(cr4::TSD) && cpu.cpl != 0 {
        return Err(Fault::general_protection(0).into());
    }
    set_pair(cpu, cpu.time_stamp());
    Ok(())
}

/// EDX:EAX
fn set_pair(cpu: &mut Cpu, value: u64) {
    cpu.gpr[gpr::RAX] = value & 0xffff_ffff;
    cpu.gpr[gpr::RDX] = value >> 32;
}

fn read_register(cpu: &mut Cpu, _: &Op) -> Done {
    cpu.need_ring_0()?;
    let value = cpu.read_msr(cpu.gpr[gpr::RCX] as u32)?;
    set_pair(cpu, value);
    Ok(())
}

fn write_register(cpu: &mut Cpu, _: &Op) -> Done {
    cpu.need_ring_0()?;
    let value = cpu.register(gpr::RDX, 4) << 32 | cpu.register(gpr::RAX, 4);
    cpu.write_msr(cpu.gpr[gpr::RCX] as u32, value)?;
    Ok(())
}

/// The line must be readable; there is no cache to flush.
fn flush_line(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.read_at(usize::from(op.address.segment), cpu.offset(op), 1).map(|_| ())
}
