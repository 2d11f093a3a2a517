//! Why an instruction raised the exception that it raised: the check that it does
//! not pass. Intel SDM Vol. 2, each instruction by its name, the tables "… Mode
//! Exceptions".

use iced_x86::{
    FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedMemory,
};

use crate::exception::vector;
use crate::explain::selector::{data_segment, stack_segment};
use crate::explain::still::{Cause, Still, page_fault};
use crate::explain::{control, delivery, transfer};
use crate::mode::{cr0, cr4, efer};
use crate::paging::{Access, Intent, error_code};

/// Why this exception came of the instruction, which is `None` where none can be read; `None` where the
/// checks here do not find it.
pub fn cause(
    still: &Still<'_>,
    instruction: Option<&Instruction>,
    number: u8,
    code: u16,
    cr2: u64,
) -> Option<Cause> {
    if number == vector::PF {
        return Some(of_page(still, code, cr2));
    }
    let candidates = match instruction {
        None => vec![no_instruction(still)],
        Some(instruction) => checks(still, instruction, number),
    };
    candidates.into_iter().flatten().find(|cause| cause.explains(number, code))
}

/// A page fault: what was accessed, how, and the walk.
fn of_page(still: &Still<'_>, code: u16, cr2: u64) -> Cause {
    let has = |bit: u32| u32::from(code) & bit != 0;
    // Where fetches are not told from reads, a read of the instruction's own bytes is one.
    let at_code =
        cr2.wrapping_sub(still.linear(Register::CS, still.regs.rip)) < crate::disasm::LONGEST as u64;
    let intent = if has(error_code::WRITE) {
        Intent::Write
    } else if has(error_code::FETCH) || at_code && still.code(cr2, 1).is_empty() {
        Intent::Fetch
    } else {
        Intent::Read
    };
    let user = has(error_code::USER);
    let walk = still.walk(cr2, Access { intent, user });
    let mut cause = page_fault(&walk);
    let what = match intent {
        Intent::Fetch => "the instruction cannot be fetched",
        Intent::Write => "the write fails",
        Intent::Read if !user && still.ring() == 3 => "the CPU cannot read its own table",
        Intent::Read => "the read fails",
    };
    cause.sentence = format!("{what}: {}", cause.sentence);
    cause
}

fn no_instruction(still: &Still<'_>) -> Option<Cause> {
    let (rip, limit) = (still.regs.rip, u64::from(still.sregs.cs.limit));
    if still.in_64_bit() {
        let why = format!("RIP = {rip:#x} is not canonical");
        return (!crate::segment::canonical(rip)).then(|| Cause::new(vector::GP, 0, why));
    }
    if rip > limit {
        return Some(Cause::new(vector::GP, 0, format!("RIP = {rip:#x} lies past CS's limit of {limit:#x}")));
    }
    Some(Cause::new(vector::UD, 0, "the bytes at RIP are no instruction"))
}

/// What the instruction's own rules say of this state, in the order in which the CPU asks.
fn checks(still: &Still<'_>, instruction: &Instruction, number: u8) -> Vec<Option<Cause>> {
    use Mnemonic as M;
    let mnemonic = instruction.mnemonic();
    if number == vector::UD {
        return vec![Some(undefined(still, instruction))];
    }
    let own = match mnemonic {
        M::Int => delivery::refusal(still, instruction.immediate8(), true),
        M::Int3 => delivery::refusal(still, vector::BP, true),
        M::Into => delivery::refusal(still, vector::OF, true),
        M::Div | M::Idiv | M::Aam => division(still, instruction),
        M::Mov | M::Pop if loads_a_segment(instruction) => segment_load(still, instruction),
        M::Mov if moves_to_control(instruction) => control::mov(still, instruction),
        M::Wrmsr => control::wrmsr(still),
        M::Ltr | M::Lldt => transfer::system_segment(still, instruction),
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => {
            port(still, instruction)
        }
        M::Iret | M::Iretd | M::Iretq | M::Retf => transfer::back(still, instruction),
        M::Jmp | M::Call if transfer::is_far(instruction) => transfer::far(still, instruction),
        _ => None,
    };
    vec![
        privileged(still, instruction),
        limit_of_code(still, instruction),
        memory(still, instruction),
        own,
        branch(still, instruction),
    ]
}

fn undefined(still: &Still<'_>, instruction: &Instruction) -> Cause {
    use Mnemonic as M;
    let s = &still.sregs;
    let name = format!("{:?}", instruction.mnemonic()).to_lowercase();
    let sse = instruction.cpuid_features().iter().any(|feature| format!("{feature:?}").starts_with("SSE"));
    let why = match instruction.mnemonic() {
        M::Ud0 | M::Ud1 | M::Ud2 => format!("{name} raises #UD, and does nothing else"),
        M::Syscall | M::Sysret | M::Sysretq if s.efer & efer::SCE == 0 => {
            format!("EFER.SCE is 0, and without it there is no {name}: EFER = {:#x}", s.efer)
        }
        _ if sse && s.cr0 & cr0::EM != 0 => "CR0.EM is 1: no SSE instruction is executed".to_owned(),
        _ if sse && s.cr4 & cr4::OSFXSR == 0 => {
            format!("CR4.OSFXSR is 0, and without it there is no SSE: CR4 = {:#x}", s.cr4)
        }
        _ if !still.protected() => format!("{name} is no instruction of real mode"),
        _ => format!("this CPU does not execute {name} here"),
    };
    Cause::new(vector::UD, 0, why)
}

fn division(still: &Still<'_>, instruction: &Instruction) -> Option<Cause> {
    let divisor = still.operand(instruction, 0)?;
    let why = if divisor == 0 { "the divisor is 0" } else { "the quotient does not fit its register" };
    Some(Cause::new(vector::DE, 0, why))
}

/// Instructions of ring 0, in another ring. Intel SDM Vol. 3A, "Privileged Instructions".
fn privileged(still: &Still<'_>, instruction: &Instruction) -> Option<Cause> {
    use Mnemonic as M;
    let ring = still.ring();
    let mnemonic = instruction.mnemonic();
    let name = format!("{mnemonic:?}").to_lowercase();
    let iopl = (still.regs.rflags >> 12 & 3) as u8;
    let why = if ring != 0
        && (instruction.is_privileged() && !of_iopl(mnemonic) || moves_to_control(instruction))
    {
        format!("{name} is an instruction of ring 0, and the guest is in ring {ring}")
    } else if matches!(mnemonic, M::Cli | M::Sti) && still.protected() && ring > iopl {
        format!("{name} needs a ring within IOPL = {iopl}, and the guest is in ring {ring}")
    } else {
        return None;
    };
    Some(Cause::new(vector::GP, 0, why))
}

/// What IOPL opens to other rings.
fn of_iopl(mnemonic: Mnemonic) -> bool {
    use Mnemonic::{Cli, In, Insb, Insd, Insw, Out, Outsb, Outsd, Outsw, Sti};
    matches!(mnemonic, Cli | Sti | In | Out | Insb | Insw | Insd | Outsb | Outsw | Outsd)
}

fn port(still: &Still<'_>, instruction: &Instruction) -> Option<Cause> {
    let (ring, iopl) = (still.ring(), (still.regs.rflags >> 12 & 3) as u8);
    let immediate =
        (0..instruction.op_count()).find(|number| instruction.op_kind(*number) == OpKind::Immediate8);
    let port = immediate.map_or(still.regs.rdx & 0xffff, |_| u64::from(instruction.immediate8()));
    let why = format!(
        "ring {ring} may not use port {port:#x}: IOPL is {iopl}, and the TSS has no I/O permission bit map that clears \
         its bit (TR's limit is {:#x})",
        still.sregs.tr.limit
    );
    (still.protected() && ring > iopl).then(|| Cause::new(vector::GP, 0, why))
}

fn loads_a_segment(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_segment_register()
}

fn moves_to_control(instruction: &Instruction) -> bool {
    let registers = [instruction.op0_register(), instruction.op1_register()];
    instruction.mnemonic() == Mnemonic::Mov
        && registers.iter().any(|register| register.is_cr() || register.is_dr())
}

fn segment_load(still: &Still<'_>, instruction: &Instruction) -> Option<Cause> {
    if !still.protected() {
        return None;
    }
    let selector = if instruction.mnemonic() == Mnemonic::Pop {
        still.number(still.linear(Register::SS, still.regs.rsp), 2).ok()?
    } else {
        still.operand(instruction, 1)?
    } as u16;
    match instruction.op0_register() {
        Register::SS => stack_segment(still, selector, still.ring(), vector::GP),
        _ => data_segment(still, selector),
    }
}

/// The instruction itself, in CS.
fn limit_of_code(still: &Still<'_>, instruction: &Instruction) -> Option<Cause> {
    let (last, limit) = (still.regs.rip + instruction.len() as u64 - 1, u64::from(still.sregs.cs.limit));
    let why = || format!("the instruction ends at {last:#x}, past CS's limit of {limit:#x}");
    (!still.in_64_bit() && last > limit).then(|| Cause::new(vector::GP, 0, why()))
}

/// Each access to memory, by its segment.
fn memory(still: &Still<'_>, instruction: &Instruction) -> Option<Cause> {
    let mut factory = InstructionInfoFactory::new();
    let used = factory.info(instruction).used_memory().to_vec();
    used.iter().find_map(|used| {
        let size = used.memory_size().size() as u64;
        if size == 0 || used.access() == OpAccess::NoMemAccess {
            return None;
        }
        still.outside(used.segment(), still.offset(used), size, intent(used))
    })
}

fn intent(used: &UsedMemory) -> Intent {
    match used.access() {
        OpAccess::Read | OpAccess::CondRead => Intent::Read,
        _ => Intent::Write,
    }
}

/// A near jump that leaves its segment, or the canonical addresses.
fn branch(still: &Still<'_>, instruction: &Instruction) -> Option<Cause> {
    let target = match instruction.flow_control() {
        FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::Call => {
            instruction.near_branch_target()
        }
        FlowControl::IndirectBranch | FlowControl::IndirectCall => still.operand(instruction, 0)?,
        FlowControl::Return if instruction.mnemonic() == Mnemonic::Ret => {
            let size = if still.in_64_bit() { 8 } else { 2 + 2 * usize::from(still.sregs.cs.db) };
            still.number(still.linear(Register::SS, still.regs.rsp), size).ok()?
        }
        _ => return None,
    };
    let limit = u64::from(still.sregs.cs.limit);
    let why = if still.in_64_bit() && !crate::segment::canonical(target) {
        format!("it leads to {target:#x}, which is not canonical")
    } else if !still.in_64_bit() && target > limit {
        format!("it leads to {target:#x}, past CS's limit of {limit:#x}")
    } else {
        return None;
    };
    Some(Cause::new(vector::GP, 0, why))
}
