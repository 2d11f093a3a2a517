//! The descriptor tables' registers, the task register, and questions about selectors. Intel SDM Vol. 2,
//! each by its name.

use iced_x86::{Code, Mnemonic};

use crate::cpu::Cpu;
use crate::descriptor::{Descriptor, code_of, is_null, null_segment, rpl};
use crate::op::{Handler, Op, Operand};
use crate::paging::Intent;
use crate::registers::rflags::ZF;
use crate::registers::{Segment, Table, cr4, kind};
use crate::segment::is_canonical;
use crate::stop::{Done, Fault, Stop};

pub fn handler(mnemonic: Mnemonic) -> Option<Handler> {
    Some(match mnemonic {
        Mnemonic::Lgdt => |cpu, op| {
            cpu.gdt = load_table(cpu, op)?;
            Ok(())
        },
        Mnemonic::Lidt => |cpu, op| {
            cpu.idt = load_table(cpu, op)?;
            Ok(())
        },
        Mnemonic::Sgdt => |cpu, op| store_table(cpu, op, cpu.gdt),
        Mnemonic::Sidt => |cpu, op| store_table(cpu, op, cpu.idt),
        Mnemonic::Lldt => load_local_table,
        Mnemonic::Ltr => load_task,
        Mnemonic::Sldt => |cpu, op| store_selector(cpu, op, cpu.ldt.selector),
        Mnemonic::Str => |cpu, op| store_selector(cpu, op, cpu.tr.selector),
        Mnemonic::Lar => load_access_rights,
        Mnemonic::Lsl => load_limit,
        Mnemonic::Verr => |cpu, op| verify(cpu, op, Intent::Read),
        Mnemonic::Verw => |cpu, op| verify(cpu, op, Intent::Write),
        Mnemonic::Arpl => adjust_rpl,
        _ => return None,
    })
}

/// A limit of two bytes, and a base of three, four or eight.
fn load_table(cpu: &mut Cpu, op: &Op) -> Result<Table, Stop> {
    cpu.need_ring_0()?;
    let (segment, at) = (usize::from(op.address.segment), cpu.offset(op));
    let limit = cpu.read_at(segment, at, 2)? as u16;
    let size = if cpu.in_64_bit() { 8 } else { 4 };
    let base = cpu.read_at(segment, at.wrapping_add(2) & op.address.mask, size)?;
    // With 16-bit operands the base has 24 bits, as on the 286.
    let narrow = matches!(op.instruction.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16);
    let base = if narrow { base & 0xff_ffff } else { base };
    if !is_canonical(base) {
        return Err(Fault::general_protection(0).into());
    }
    Ok(Table { base, limit })
}

fn store_table(cpu: &mut Cpu, op: &Op, table: Table) -> Done {
    if cpu.cr4_has(cr4::UMIP) && cpu.cpl != 0 {
        return Err(Fault::general_protection(0).into());
    }
    let (segment, at) = (usize::from(op.address.segment), cpu.offset(op));
    let size = if cpu.in_64_bit() { 8 } else { 4 };
    let base_at = at.wrapping_add(2) & op.address.mask;
    // Nothing is written unless all of it can be; what is first is the first to fault.
    for (at, size) in [(at, 2), (base_at, size)] {
        let linear = cpu.linear(segment, at, u64::from(size), Intent::Write)?;
        cpu.probe_write(linear, usize::from(size), cpu.user())?;
    }
    cpu.write_at(segment, at, 2, u64::from(table.limit))?;
    cpu.write_at(segment, base_at, size, table.base)
}

fn store_selector(cpu: &mut Cpu, op: &Op, selector: u16) -> Done {
    cpu.need_protected()?;
    if cpu.cr4_has(cr4::UMIP) && cpu.cpl != 0 {
        return Err(Fault::general_protection(0).into());
    }
    cpu.set(op, op.first(), u64::from(selector))
}

/// Reads a system segment's descriptor from the GDT, with the upper half of its base in long mode.
fn system_segment(cpu: &mut Cpu, selector: u16, kinds: &[u8]) -> Result<Segment, Stop> {
    const LOCAL: u16 = 1 << 2;
    let refused = || Stop::from(Fault::general_protection(code_of(selector)));
    if selector & LOCAL != 0 {
        return Err(refused());
    }
    let size = if cpu.long_mode() { 16 } else { 8 };
    let Some(address) = cpu.descriptor_address(selector, size) else { return Err(refused()) };
    let descriptor = Descriptor(cpu.read(address, 8, false)?);
    if descriptor.is_segment() || !kinds.contains(&descriptor.kind()) {
        return Err(refused());
    }
    if !descriptor.is_present() {
        return Err(Fault::not_present(code_of(selector)).into());
    }
    let mut segment = descriptor.segment(selector);
    if size == 16 {
        let high = cpu.read(address.wrapping_add(8), 8, false)?;
        segment.base |= high << 32;
        if high >> 40 & 0x1f != 0 || !is_canonical(segment.base) {
            return Err(refused());
        }
    }
    Ok(segment)
}

fn load_local_table(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.need_protected()?;
    cpu.need_ring_0()?;
    let selector = cpu.get(op, op.first())? as u16;
    cpu.ldt =
        if is_null(selector) { null_segment(selector) } else { system_segment(cpu, selector, &[kind::LDT])? };
    Ok(())
}

/// The TSS becomes busy, there and here.
fn load_task(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.need_protected()?;
    cpu.need_ring_0()?;
    let selector = cpu.get(op, op.first())? as u16;
    if is_null(selector) {
        return Err(Fault::general_protection(0).into());
    }
    let kinds: &[u8] = if cpu.long_mode() { &[kind::TSS] } else { &[kind::TSS, kind::TSS_16] };
    let mut segment = system_segment(cpu, selector, kinds)?;
    const BUSY: u8 = 2;
    const TYPE_BYTE: u64 = 5;
    if let Some(address) = cpu.descriptor_address(selector, 8) {
        let at = address.wrapping_add(TYPE_BYTE);
        let access = cpu.read(at, 1, false)?;
        cpu.write(at, 1, access | u64::from(BUSY), false)?;
    }
    segment.type_ |= BUSY;
    cpu.tr = segment;
    Ok(())
}

/// The descriptor behind a selector, if this ring may see it; no exception says that it may not.
fn visible(cpu: &mut Cpu, op: &Op, kinds: &[u8]) -> Result<Option<Descriptor>, Stop> {
    cpu.need_protected()?;
    let selector = cpu.get(op, op.second())? as u16;
    if is_null(selector) {
        return Ok(None);
    }
    let Some(address) = cpu.descriptor_address(selector, 8) else { return Ok(None) };
    let descriptor = Descriptor(cpu.read(address, 8, false)?);
    let private = descriptor.dpl() < cpu.cpl.max(rpl(selector)) && !descriptor.is_conforming();
    let known = descriptor.is_segment() || kinds.contains(&descriptor.kind());
    Ok((known && !private).then_some(descriptor))
}

fn load_access_rights(cpu: &mut Cpu, op: &Op) -> Done {
    let kinds: &[u8] = if cpu.long_mode() {
        &[kind::LDT, kind::TSS, kind::TSS_BUSY, kind::CALL_GATE]
    } else {
        &[1, 2, 3, 4, 5, 9, 11, 12]
    };
    let found = visible(cpu, op, kinds)?;
    if let Some(descriptor) = found {
        cpu.set(op, op.first(), descriptor.0 >> 32 & 0x00ff_ff00)?;
    }
    cpu.set_flag(ZF, found.is_some());
    Ok(())
}

fn load_limit(cpu: &mut Cpu, op: &Op) -> Done {
    let kinds: &[u8] =
        if cpu.long_mode() { &[kind::LDT, kind::TSS, kind::TSS_BUSY] } else { &[1, 2, 3, 9, 11] };
    let found = visible(cpu, op, kinds)?;
    if let Some(descriptor) = found {
        cpu.set(op, op.first(), u64::from(descriptor.segment(0).limit))?;
    }
    cpu.set_flag(ZF, found.is_some());
    Ok(())
}

/// VERR and VERW: whether this ring could read or write by the selector.
fn verify(cpu: &mut Cpu, op: &Op, intent: Intent) -> Done {
    cpu.need_protected()?;
    let selector = cpu.get(op, op.first())? as u16;
    let mut allowed = false;
    if !is_null(selector)
        && let Some(address) = cpu.descriptor_address(selector, 8)
    {
        let descriptor = Descriptor(cpu.read(address, 8, false)?);
        let private = descriptor.dpl() < cpu.cpl.max(rpl(selector)) && !descriptor.is_conforming();
        allowed = descriptor.is_segment() && !private && descriptor.segment(selector).permits(intent);
    }
    cpu.set_flag(ZF, allowed);
    Ok(())
}

/// Raises the destination's RPL to the source's.
fn adjust_rpl(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.need_protected()?;
    // In 32-bit code the decoder names the whole register; two bytes of it are the operand.
    let destination = Operand { size: 2, ..op.first() };
    let selector = cpu.get_to_change(op, destination)? as u16;
    let wanted = rpl(cpu.get(op, op.second())? as u16);
    let raises = rpl(selector) < wanted;
    if raises {
        cpu.set(op, destination, u64::from(selector & !3 | u16::from(wanted)))?;
    }
    cpu.set_flag(ZF, raises);
    Ok(())
}
