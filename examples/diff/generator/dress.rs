//! What an instruction needs to get somewhere: addresses in registers that it
//! addresses by, selectors where it loads one, a frame where it pops one.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use vmexit::mode::rflags;

use super::decode;
use crate::image::{CODE, LANDING, MEMORY, PAGE, SCRATCH, SELECTORS, STACK, VIEWS};
use crate::random::Random;
use crate::setting::{Paging, Setting};
use crate::step::Step;

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RSP: u8 = 4;
const RBP: u8 = 5;
const RSI: u8 = 6;
const RDI: u8 = 7;

const STATUS: u64 = 0x8d5;
const DF: u64 = 1 << 10;
const IOPL: u64 = 3 << 12;
const NT: u64 = 1 << 14;
const AC: u64 = 1 << 18;
const ID: u64 = 1 << 21;

/// A value of the kind that finds mistakes: an address, small, at an end, or any.
pub fn value(random: &mut Random, setting: &Setting) -> u64 {
    let value = match random.below(8) {
        0..3 => address(random, setting),
        3 => random.below(64),
        4 => random.one_of(&[
            0,
            1,
            u64::MAX,
            1 << 63,
            0x7f,
            0x80,
            0xffff,
            0x8000_0000,
            0x7fff_ffff,
            0xffff_ffff,
        ]),
        5 => random.next() >> random.below(64),
        _ => random.next(),
    };
    if setting.is_64_bit() { value } else { value & 0xffff_ffff }
}

/// A linear address: mostly at the boundary of the two scratch pages, where every step's memory is compared.
fn address(random: &mut Random, setting: &Setting) -> u64 {
    let views = VIEWS.len() as u64;
    match random.below(64) {
        0..4 => STACK - 0x80 + random.below(0x100),
        4..10 if setting.paging != Paging::Off => MEMORY as u64 + random.below(views * PAGE),
        4 => MEMORY as u64 + random.below(views * PAGE),
        10..12 if setting.paging != Paging::Off => {
            MEMORY as u64 + random.below(views) * PAGE - 8 + random.below(16)
        }
        12 => SCRATCH + 2 * PAGE - random.below(16),
        13 => random.one_of(&[0, 0xfff0, 0x2000, 0x4000, 0x2ffc, 0x4ffc]),
        14 if setting.is_64_bit() => random.next() | 1 << 62,
        14 => random.one_of(&[0xffff_ff00, 0xfffe]),
        _ => SCRATCH + PAGE - 0x100 + random.below(0x1f0),
    }
}

/// Where a segment starts, as every sequence finds it.
fn base_of(segment: Register, setting: &Setting) -> u64 {
    match (segment, setting.protected, setting.is_64_bit()) {
        (Register::FS, _, _) => 0x6000,
        (Register::GS, _, true) => 0x7000,
        (Register::GS, false, _) => 0x7c00,
        (Register::ES, false, _) => 0x4000,
        _ => 0,
    }
}

/// The instruction as it will be, and its state.
pub fn step(random: &mut Random, setting: &Setting, at: u64, mut code: Vec<u8>) -> Step {
    let mut registers = vec![];
    for _ in 0..random.below(4) {
        let number = random.below(if setting.is_64_bit() { 16 } else { 8 }) as u8;
        if number != RSP {
            registers.push((number, value(random, setting)));
        }
    }
    let mut decoder = Decoder::with_ip(setting.bits, &code, at, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let offsets = decoder.get_constant_offsets(&instruction);
    let mut put = |at: usize, size: usize, value: u64| {
        code[at..at + size].copy_from_slice(&value.to_le_bytes()[..size])
    };
    use Mnemonic::{Lgdt, Lidt, Sgdt, Sidt};
    let table = matches!(instruction.mnemonic(), Lgdt | Lidt | Sgdt | Sidt);
    if offsets.has_displacement() && (table || !random.once_in(32)) {
        let (at, size) = (offsets.displacement_offset(), offsets.displacement_size());
        put(at, size, displacement(random, setting, &instruction));
    }
    if offsets.has_immediate() {
        let (at, size) = (offsets.immediate_offset(), offsets.immediate_size());
        if let Some(value) = immediate(random, &instruction, size) {
            put(at, size, value);
        }
    }
    let far = [Mnemonic::Jmp, Mnemonic::Call].contains(&instruction.mnemonic());
    if far && matches!(instruction.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) {
        let selector = u64::from(code_selector(random, setting));
        put(offsets.immediate_offset(), offsets.immediate_size(), landing(random));
        put(offsets.immediate_offset2(), offsets.immediate_size2(), selector);
    }
    let instruction = decode(&code, setting.bits, at).expect("other constants make no other instruction");
    address_by(random, setting, &instruction, &mut registers);
    let mut step = Step {
        instruction,
        code,
        registers,
        rflags: flags(random) | rflags::FIXED,
        operand: None,
        stack: None,
        keeps_segments: random.once_in(2),
    };
    needs(random, setting, &mut step);
    if !setting.is_64_bit() {
        step.registers.iter_mut().for_each(|(_, value)| *value &= 0xffff_ffff);
    }
    super::sse::show(&mut step, setting);
    step
}

fn flags(random: &mut Random) -> u64 {
    let mut flags = random.next() & (STATUS | IOPL | rflags::IF | ID);
    for (bit, times) in [(DF, 8), (AC, 8)] {
        if random.once_in(times) {
            flags |= bit;
        }
    }
    flags
}

/// A displacement that is small beside a register, and an address without one.
fn displacement(random: &mut Random, setting: &Setting, instruction: &Instruction) -> u64 {
    let wanted = address(random, setting).wrapping_sub(base_of(instruction.memory_segment(), setting));
    use Mnemonic::{Lgdt, Lidt, Sgdt, Sidt};
    let wanted = match instruction.mnemonic() {
        // KVM's emulator does not come back from these where no memory is.
        Lgdt | Lidt | Sgdt | Sidt => SCRATCH + PAGE + random.below(0x20),
        _ => wanted,
    };
    match instruction.memory_base() {
        Register::None => wanted,
        Register::RIP | Register::EIP => wanted.wrapping_sub(instruction.next_ip()),
        _ => random.below(0x80).wrapping_sub(0x40),
    }
}

/// Near branches stay among the `hlt`s; ports and frames stay small.
fn immediate(random: &mut Random, instruction: &Instruction, size: usize) -> Option<u64> {
    match instruction.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            let target = match size {
                // Behind it, or before it in its slot.
                1 if random.once_in(3) => instruction.ip() - 1 - random.below(7),
                1 => instruction.next_ip() + random.below(8),
                _ => landing(random),
            };
            Some(target.wrapping_sub(instruction.next_ip()))
        }
        _ => match instruction.mnemonic() {
            Mnemonic::Enter => Some(random.below(64)),
            Mnemonic::Ret | Mnemonic::Retf => Some(random.below(32)),
            Mnemonic::Int => Some(random.below(40)),
            _ => None,
        },
    }
}

/// A place among `hlt`s.
fn landing(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => CODE + 0xff0 + random.below(8),
        _ => LANDING + random.below(PAGE - 0x200),
    }
}

/// Selectors by chance; code of this ring, and of ring 3, more often than others.
fn selector(random: &mut Random, setting: &Setting) -> u16 {
    if !setting.protected {
        // Its base must leave the landing among the hlts: see `landing`.
        return random.one_of(&[0, 0, 0, 1, 0x10]);
    }
    match random.below(8) {
        0 => setting.code_selector(),
        1 => setting.data_selector(),
        2 => random.one_of(&SELECTORS) | 3,
        3 => random.one_of(&SELECTORS) | random.below(4) as u16,
        _ => random.one_of(&SELECTORS),
    }
}

/// The same for a far jump or call, which outside long mode would switch tasks by a TSS's.
fn code_selector(random: &mut Random, setting: &Setting) -> u16 {
    match selector(random, setting) {
        task if matches!(task & !3, 0xa0 | 0xb0) && !setting.is_long() => setting.code_selector(),
        selector => selector,
    }
}

/// Registers that the memory operand is addressed by.
fn address_by(
    random: &mut Random,
    setting: &Setting,
    instruction: &Instruction,
    registers: &mut Vec<(u8, u64)>,
) {
    let operands = 0..instruction.op_count();
    if !operands.clone().any(|number| instruction.op_kind(number) == OpKind::Memory) || random.once_in(24) {
        return;
    }
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    if index.is_gpr() {
        let small = if random.once_in(8) { random.below(32).wrapping_neg() } else { random.below(16) };
        registers.push((index.full_register().number() as u8, small));
    }
    if base.is_gpr() {
        let number = base.full_register().number() as u8;
        let wanted = address(random, setting).wrapping_sub(base_of(instruction.memory_segment(), setting));
        if number != RSP {
            registers.push((number, wanted));
        }
    }
}

/// What some instructions find in registers, at their operand or on the stack.
fn needs(random: &mut Random, setting: &Setting, step: &mut Step) {
    use Mnemonic as M;
    let instruction = step.instruction;
    let string = instruction.is_string_instruction();
    if string {
        let es = if setting.protected { 0 } else { 0x4000 };
        let segment = base_of(instruction.memory_segment(), setting);
        step.registers.push((RSI, address(random, setting).wrapping_sub(segment)));
        step.registers.push((RDI, address(random, setting).wrapping_sub(es)));
        let port =
            matches!(instruction.mnemonic(), M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd);
        let count = if !port && random.once_in(32) { 40 } else { 12 };
        step.registers.push((RCX, random.below(count)));
    }
    match instruction.mnemonic() {
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => {
            let port = random.one_of(&[0x3f8, 0x61, 0xfc, 0x100, 0x7f, 0x80, 0x8, 0xffff]);
            step.registers.push((RDX, port));
        }
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => {
            step.registers.push((RCX, random.below(3)));
        }
        M::Xlatb => step.registers.push((3, address(random, setting) & !0xff)),
        M::Leave | M::Enter => step.registers.push((RBP, STACK - 0x40 + random.below(16) * 4)),
        M::Rcl | M::Rcr | M::Rol | M::Ror | M::Shl | M::Shr | M::Sar | M::Sal | M::Shld | M::Shrd => {
            step.registers.push((RCX, random.below(72)));
        }
        M::Jmp | M::Call => jump(random, setting, step),
        M::Ret => frame(random, setting, step, &[Item::Landing]),
        M::Retf => {
            frame(
                random,
                setting,
                step,
                &[Item::Landing, Item::Code, Item::Any, Item::Any, Item::Stack, Item::Data],
            );
        }
        M::Iret | M::Iretd | M::Iretq => {
            frame(random, setting, step, &[Item::Landing, Item::Code, Item::Flags, Item::Stack, Item::Data]);
        }
        M::Popf | M::Popfd | M::Popfq => frame(random, setting, step, &[Item::Flags]),
        M::Pop if instruction.op0_register().is_segment_register() => {
            frame(random, setting, step, &[Item::Selector]);
        }
        M::Mov if instruction.op0_register().is_segment_register() => source_is(random, setting, step, 1),
        M::Lldt | M::Ltr | M::Verr | M::Verw => source_is(random, setting, step, 0),
        M::Lar | M::Lsl | M::Arpl => source_is(random, setting, step, 1),
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => far_pointer(random, setting, step),
        M::Mov => control(random, step),
        M::Lgdt | M::Lidt | M::Sgdt | M::Sidt => table(random, step),
        M::Lmsw => {
            let value = random.one_of(&[1u64, 3, 9, 0xb, 0]);
            operand_is(step, 0, value);
        }
        M::Rdmsr | M::Wrmsr => model_specific(random, step),
        M::Cpuid => {
            step.registers
                .push((RAX, random.one_of(&[0, 0x8000_0000, 0x8000_0002, 0x8000_0004, 0x8000_0008])));
            step.registers.push((RCX, 0));
        }
        M::Sysret | M::Sysretq => {
            step.registers.push((RCX, landing(random)));
            step.registers.push((11, some_flags(random)));
        }
        M::Sysexit | M::Sysexitq => {
            step.registers.push((RDX, landing(random)));
            step.registers.push((RCX, STACK));
        }
        M::Ldmxcsr => {
            let control = 0x1f80 | random.next() & 0xe07f | if random.once_in(8) { random.next() } else { 0 };
            step.operand = Some((control as u32).to_le_bytes().to_vec());
        }
        M::Fxrstor | M::Fxrstor64 => {
            step.registers.retain(|(number, _)| *number == RSP);
            step.operand = None;
        }
        // Equal now and then.
        M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b if random.once_in(2) => {
            step.operand = Some(vec![0; 16]);
            step.registers.push((RAX, 0));
            step.registers.push((RDX, 0));
        }
        M::Div | M::Idiv if !random.once_in(4) => step.registers.push((RDX, random.below(3))),
        _ => {}
    }
    // The stack's top, once in a while somewhere else. In ring 0 a fault there can be the machine's end.
    if uses_stack(&instruction)
        && step.stack.is_none()
        && random.once_in(if setting.ring == 0 { 200 } else { 12 })
    {
        let at = address(random, setting);
        step.registers.push((RSP, at));
    }
}

fn uses_stack(instruction: &Instruction) -> bool {
    instruction.is_stack_instruction()
}

/// Flags that neither step nor start a task or virtual-8086 mode.
fn some_flags(random: &mut Random) -> u64 {
    const RF: u64 = 1 << 16;
    const VM: u64 = 1 << 17;
    random.next() & 0x003f_ffff & !(rflags::TF | NT | RF | VM) | rflags::FIXED
}

/// A part of a frame on the stack.
#[derive(Clone, Copy)]
enum Item {
    Landing,
    Code,
    Data,
    Selector,
    Flags,
    Stack,
    Any,
}

/// The size of what the instruction pops.
fn item_size(step: &Step, setting: &Setting) -> usize {
    use iced_x86::Code as C;
    let pops = step.instruction.stack_pointer_increment();
    match step.instruction.code() {
        C::Iretw | C::Retfw | C::Retfw_imm16 | C::Retnw | C::Retnw_imm16 | C::Popfw => 2,
        C::Iretd | C::Retfd | C::Retfd_imm16 | C::Retnd | C::Retnd_imm16 | C::Popfd => 4,
        C::Iretq | C::Retfq | C::Retfq_imm16 | C::Retnq | C::Retnq_imm16 | C::Popfq => 8,
        _ if (1..=8).contains(&pops) => pops as usize,
        _ => setting.bits as usize / 8,
    }
}

fn frame(random: &mut Random, setting: &Setting, step: &mut Step, items: &[Item]) {
    let size = item_size(step, setting);
    let mut bytes = Vec::new();
    for item in items {
        let value = match item {
            Item::Landing => landing(random),
            Item::Code if random.once_in(2) => u64::from(selector(random, setting)),
            Item::Code => {
                let outer = Setting { ring: random.one_of(&[setting.ring, 3]), ..*setting };
                u64::from(if setting.protected { outer.code_selector() } else { 0 })
            }
            Item::Data if random.once_in(3) => u64::from(selector(random, setting)),
            Item::Data => 0x23,
            Item::Selector => u64::from(selector(random, setting)),
            Item::Flags => some_flags(random),
            Item::Stack => STACK - 0x100,
            Item::Any => random.next(),
        };
        bytes.extend_from_slice(&value.to_le_bytes()[..size]);
    }
    step.stack = Some(bytes);
    step.registers.push((RSP, STACK - 0x40));
}

/// Near and far jumps and calls by a register or memory.
fn jump(random: &mut Random, setting: &Setting, step: &mut Step) {
    let instruction = step.instruction;
    match instruction.op0_kind() {
        OpKind::Register => {
            step.registers.push((instruction.op0_register().full_register().number() as u8, landing(random)));
        }
        OpKind::Memory => {
            let far = instruction.is_jmp_far_indirect() || instruction.is_call_far_indirect();
            let size = instruction.memory_size().size();
            let mut bytes = landing(random).to_le_bytes()[..if far { size - 2 } else { size }].to_vec();
            if far {
                bytes.extend(code_selector(random, setting).to_le_bytes());
            }
            step.operand = Some(bytes);
        }
        _ => {}
    }
}

fn source_is(random: &mut Random, setting: &Setting, step: &mut Step, operand: u32) {
    let selector = u64::from(selector(random, setting));
    operand_is(step, operand, selector);
}

fn operand_is(step: &mut Step, operand: u32, value: u64) {
    let register = step.instruction.op_register(operand);
    if step.instruction.op_kind(operand) == OpKind::Memory {
        step.operand = Some((value as u16).to_le_bytes().to_vec());
    } else if register.is_gpr() && register.full_register() != Register::RSP {
        step.registers.push((register.full_register().number() as u8, value));
    }
}

fn far_pointer(random: &mut Random, setting: &Setting, step: &mut Step) {
    let size = step.instruction.memory_size().size().max(4);
    let mut bytes = value(random, setting).to_le_bytes()[..(size - 2).min(8)].to_vec();
    bytes.extend(selector(random, setting).to_le_bytes());
    step.operand = Some(bytes);
}

/// Values that control and debug registers can hold, but for a bit.
fn control(random: &mut Random, step: &mut Step) {
    let (to, from) = (step.instruction.op0_register(), step.instruction.op1_register());
    if !from.is_gpr() || from == Register::RSP || from == Register::ESP {
        return;
    }
    let value = if to.is_dr() {
        // DR7 stays without breakpoints: the software machine has none.
        if to == Register::DR7 || to == Register::DR5 { 0x400 } else { random.next() >> random.below(64) }
    } else if to.is_cr() {
        super::control::value(random, to)
    } else {
        return;
    };
    step.registers.push((from.full_register().number() as u8, value));
}

/// A table's limit and base: of one that is there, mostly.
fn table(random: &mut Random, step: &mut Step) {
    let mut bytes = random.one_of(&[0xffu16, 0x1ff, 0x3ff, 0, 0xffff]).to_le_bytes().to_vec();
    let base = random.one_of(&[0x3000u64, 0x3800, 0xff00_3800, 0x0080_0000_0000_0000]);
    bytes.extend(base.to_le_bytes());
    if step.instruction.op0_kind() == OpKind::Memory {
        // KVM's emulator does not come back from these where no memory is.
        let base = step.instruction.memory_base();
        if base.is_gpr() && base.full_register() != Register::RSP {
            step.registers.push((base.full_register().number() as u8, SCRATCH + PAGE + random.below(0x20)));
        }
    }
    if matches!(step.instruction.mnemonic(), Mnemonic::Lgdt | Mnemonic::Lidt) {
        step.operand = Some(bytes);
    }
}

fn model_specific(random: &mut Random, step: &mut Step) {
    #[rustfmt::skip]
    const REGISTERS: [u64; 13] = [
        0x174, 0x175, 0x176, 0x277, 0xc000_0080, 0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0100,
        0xc000_0101, 0xc000_0102, 0x4000_0fff,
    ];
    let register = random.one_of(&REGISTERS);
    let value = match register {
        0x277 => 0x0007_0406_0007_0406,
        0xc000_0080 => 0xd01,
        _ if random.once_in(8) => random.next(),
        _ => random.next() & 0x7fff_ffff_ffff,
    };
    step.registers.extend([(RCX, register), (RAX, value & 0xffff_ffff), (RDX, value >> 32)]);
}
