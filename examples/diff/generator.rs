//! Random instructions with random states, from a seed: the same seed, the same
//! cases, everywhere.

use iced_x86::{CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};
use vmexit::kvm::kvm_regs;
use vmexit::mode::rflags;

use crate::subject::{CODE, CPU_MODES, CpuMode, SCRATCH, SCRATCH_SIZE, STACK};

/// One instruction and the state that it starts from.
#[derive(Clone)]
pub struct Case {
    pub mode: CpuMode,
    pub instruction: Instruction,
    pub code: Vec<u8>,
    pub regs: kvm_regs,
    pub scratch: Vec<u8>,
}

/// Splitmix64: small, and good enough to choose bytes by.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        words.take(length).collect()
    }
}

/// The next case: random bytes, until they are an instruction that one CPU can
/// repeat after another.
pub fn case(random: &mut Random) -> Case {
    let mode = CPU_MODES[random.below(CPU_MODES.len() as u64) as usize];
    loop {
        let bytes = encoding(random, mode);
        let mut decoder = Decoder::with_ip(mode.bits(), &bytes, CODE, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() || !comparable(&instruction) {
            continue;
        }
        let code = bytes[..instruction.len()].to_vec();
        if mode == CpuMode::Long && has_misplaced_rex(&code) {
            continue;
        }
        let scratch = random.bytes(SCRATCH_SIZE);
        return Case { mode, instruction, code, regs: registers(random, mode), scratch };
    }
}

/// Prefixes now and then, then an opcode from the one-byte or the 0f map; the rest is chance.
fn encoding(random: &mut Random, mode: CpuMode) -> Vec<u8> {
    const PREFIXES: [u8; 11] = [0x66, 0x66, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x64, 0x65];
    let mut bytes = Vec::new();
    while random.below(4) == 0 && bytes.len() < 3 {
        bytes.push(PREFIXES[random.below(PREFIXES.len() as u64) as usize]);
    }
    if mode == CpuMode::Long && random.below(2) == 0 {
        bytes.push(0x40 | random.below(16) as u8); // REX
    }
    if random.below(3) == 0 {
        bytes.push(0x0f);
    }
    bytes.extend(random.bytes(16));
    bytes
}

/// A REX prefix that another prefix follows. The CPU ignores it (Intel SDM Vol. 2A,
/// "REX Prefixes"); QEMU's software CPU does not, and the lab's AMD machine is one.
fn has_misplaced_rex(code: &[u8]) -> bool {
    let is_rex = |byte: u8| byte & 0xf0 == 0x40;
    let is_legacy = |byte: u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let prefixes = code.iter().take_while(|byte| is_rex(**byte) || is_legacy(**byte)).count();
    code[..prefixes].windows(2).any(|pair| is_rex(pair[0]))
}

/// Whether the instruction's outcome depends on nothing but its state, and it
/// leaves the machine as it must be for the next case.
fn comparable(instruction: &Instruction) -> bool {
    use Mnemonic::{
        Bound, Clts, Cpuid, Getsec, Hlt, Int, Int1, Int3, Into, Invd, Invlpg, Lds, Les, Lfs, Lgdt, Lgs, Lidt,
        Lldt, Lmsw, Lss, Ltr, Monitor, Mwait, Pause, Rdmsr, Rdpmc, Rdrand, Rdseed, Rdtsc, Rdtscp, Rsm, Sgdt,
        Sidt, Sldt, Smsw, Str, Swapgs, Syscall, Sysenter, Sysexit, Sysret, Ud0, Ud1, Vmcall, Vmmcall, Wbinvd,
        Wrmsr,
    };
    let environment = matches!(
        instruction.mnemonic(),
        Bound
            | Clts
            | Cpuid
            | Getsec
            | Hlt
            | Int
            | Int1
            | Int3
            | Into
            | Invd
            | Invlpg
            | Lds
            | Les
            | Lfs
            | Lgdt
            | Lgs
            | Lidt
            | Lldt
            | Lmsw
            | Lss
            | Ltr
            | Monitor
            | Mwait
            | Pause
            | Rdmsr
            | Rdpmc
            | Rdrand
            | Rdseed
            | Rdtsc
            | Rdtscp
            | Rsm
            | Sgdt
            | Sidt
            | Sldt
            | Smsw
            | Str
            | Swapgs
            | Sysenter
            | Sysexit
            | Syscall
            | Sysret
            | Ud0
            | Ud1
            | Vmcall
            | Vmmcall
            | Wbinvd
            | Wrmsr
    );
    let known = instruction.cpuid_features().iter().all(|feature| {
        use CpuidFeature::{
            BMI1, CMOV, CMPXCHG16B, CX8, INTEL186, INTEL286, INTEL386, INTEL486, INTEL8086, LZCNT, MOVBE,
            POPCNT, X64,
        };
        matches!(
            feature,
            INTEL8086
                | INTEL186
                | INTEL286
                | INTEL386
                | INTEL486
                | X64
                | CMOV
                | CX8
                | CMPXCHG16B
                | POPCNT
                | MOVBE
        ) || matches!(feature, LZCNT | BMI1)
            && matches!(instruction.mnemonic(), Mnemonic::Lzcnt | Mnemonic::Tzcnt)
    });
    let straight = match instruction.flow_control() {
        FlowControl::Next => true,
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call => {
            // Near enough to land on a hlt of the code page, and not on the instruction itself.
            let target = instruction.near_branch_target();
            !instruction.is_jmp_far()
                && !instruction.is_call_far()
                && target.abs_diff(CODE) < 0x400
                && !(CODE..instruction.next_ip()).contains(&target)
        }
        _ => false,
    };
    known && straight && !environment && !touches_system_state(instruction)
}

/// Control, debug and segment registers would outlive the case.
fn touches_system_state(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| {
        let register = instruction.op_register(operand);
        instruction.op_kind(operand) == OpKind::Register
            && (register.is_cr() || register.is_dr() || register.is_tr() || register.is_segment_register())
    })
}

/// Random values, many of them addresses of the scratch memory, and a short RCX:
/// it counts repetitions.
fn registers(random: &mut Random, mode: CpuMode) -> kvm_regs {
    let mut value = |small: bool| {
        let address = SCRATCH + random.below(SCRATCH_SIZE as u64 - 64);
        match random.below(8) {
            0 => random.next(),
            1 => [0, 1, u64::MAX, 1 << 63, 0x7f, 0x80, 0xffff, 0x8000_0000][random.below(8) as usize],
            2 if small => random.below(64),
            _ if small => random.below(16),
            _ => address,
        }
    };
    let mut regs = kvm_regs {
        rax: value(false),
        rbx: value(false),
        rdx: value(false),
        rsi: value(false),
        rdi: value(false),
        rbp: value(false),
        r8: value(false),
        r9: value(false),
        r10: value(false),
        r11: value(false),
        r12: value(false),
        r13: value(false),
        r14: value(false),
        r15: value(false),
        ..kvm_regs::default()
    };
    regs.rcx = random.below(16);
    regs.rsp = STACK;
    regs.rip = CODE;
    let arithmetic = 0x8d5; // CF, PF, AF, ZF, SF, OF
    regs.rflags = rflags::FIXED | random.next() & arithmetic;
    if random.below(8) == 0 {
        regs.rflags |= 1 << 10; // DF: strings go down
    }
    if mode != CpuMode::Long {
        // Outside 64-bit mode the upper halves and r8 to r15 do not exist.
        for register in
            [&mut regs.rax, &mut regs.rbx, &mut regs.rdx, &mut regs.rsi, &mut regs.rdi, &mut regs.rbp]
        {
            *register &= 0xffff_ffff;
        }
        (regs.r8, regs.r9, regs.r10, regs.r11) = (0, 0, 0, 0);
        (regs.r12, regs.r13, regs.r14, regs.r15) = (0, 0, 0, 0);
    }
    regs
}
