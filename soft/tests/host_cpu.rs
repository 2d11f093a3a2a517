//! The software machine against the CPU that runs the tests: random integer, SSE and
//! SSE2 instructions with random registers, flags and memory, executed once by each.
//! Everything must be equal but the flags that the manual leaves undefined.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(unsafe_code)]

use std::arch::asm;

use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, RflagsBits};
use vmexit_soft::{Exit, Fpu, Machine, Regs, Segment, Slot, Sregs, Vcpu};

const CODE: u64 = 0x1000;
const DATA: u64 = 0x2000;
const TABLES: u64 = 0x3000;
const MEMORY: usize = 0x6000;
/// Bytes of memory that an instruction may reach, around where R14 points.
const WINDOW: usize = 256;
const STATUS: u64 = 0x8d5;
const FIXED: u64 = 0x202;

/// xorshift64*: the same instructions on every host.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 33) % limit
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    /// A number of the kind that finds mistakes: small, at an end, or any.
    fn value(&mut self) -> u64 {
        let any = self.next();
        match self.below(5) {
            0 => self.one_of(&[0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000]),
            1 => self.one_of(&[u64::MAX, 1 << 63, (1 << 63) - 1, 0xffff_ffff, u64::MAX - 1]),
            2 => any & 0xff,
            3 => any >> self.below(64),
            _ => any,
        }
    }
}

impl Random {
    /// Half of an XMM register: two single-precision numbers or a double, of the kind that finds mistakes.
    fn floats(&mut self) -> u64 {
        let (any, near) = (self.next(), self.below(40));
        let double = match self.below(8) {
            0 => self.one_of(&[
                0,
                1 << 63,
                1,
                0x000f_ffff_ffff_ffff,
                0x0010_0000_0000_0000,
                0x7fef_ffff_ffff_ffff,
            ]),
            1 => self.one_of(&[
                0x7ff0_0000_0000_0000,
                0xfff0_0000_0000_0000,
                0x7ff8_0000_0000_0001,
                0x7ff0_0000_0000_0001,
            ]),
            // Denormals, and near them.
            2 => any & 0x801f_ffff_ffff_ffff,
            // About as large as each other, and as integers are.
            3 => any & 0x800f_ffff_ffff_ffff | (0x3ff + near) << 52,
            4 => (any & 0x800f_ffff_ffff_ffff | (0x3ff + near + 24) << 52) & u64::MAX << self.below(53),
            5 => any & 0x800f_ffff_ffff_ffff | (0x3ff - 20 + near) << 52,
            6 => (self.value() as i64 as f64).to_bits(),
            _ => any,
        };
        if self.below(2) == 0 {
            return double;
        }
        let single = |random: &mut Self| {
            let (any, near) = (random.next() as u32, random.below(40) as u32);
            match random.below(8) {
                0 => random.one_of(&[0, 1 << 31, 1, 0x007f_ffff, 0x0080_0000, 0x7f7f_ffff]),
                1 => random.one_of(&[0x7f80_0000, 0xff80_0000, 0x7fc0_0001, 0x7f80_0001]),
                2 => any & 0x80ff_ffff,
                3 => any & 0x807f_ffff | (0x7f + near) << 23,
                4 => (any & 0x807f_ffff | (0x7f + near) << 23) & u32::MAX << random.below(24),
                5 => any & 0x807f_ffff | (0x7f - 20 + near) << 23,
                6 => (random.value() as i32 as f32).to_bits(),
                _ => any,
            }
        };
        u64::from(single(self)) | u64::from(single(self)) << 32
    }
}

/// RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8 to R13, R14 (the address of the memory), RFLAGS, XMM0 to XMM3,
/// MXCSR.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    registers: [u64; 14],
    rflags: u64,
    code: u64,
    xmm: [u128; 4],
    mxcsr: u32,
}

/// Where a register's number is in [`State`]; RSP and R15 are not there.
const NUMBERS: [u8; 13] = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13];

/// Executes the code at `state.code`, which ends in RET, on this CPU.
fn run_on_host(state: &mut State) {
    // SAFETY: the code is one instruction of the generator below and a RET. It touches registers
    // that are listed or saved here, and memory at R14, which is the test's.
    unsafe {
        asm!(
            "push rbx; push rbp",
            "movdqa xmm0, [r15 + 16*8]; movdqa xmm1, [r15 + 18*8]",
            "movdqa xmm2, [r15 + 20*8]; movdqa xmm3, [r15 + 22*8]",
            "ldmxcsr [r15 + 24*8]",
            "push [r15 + 14*8]; popfq",
            "mov rax, [r15]; mov rcx, [r15 + 8]; mov rdx, [r15 + 2*8]; mov rbx, [r15 + 3*8]",
            "mov rbp, [r15 + 4*8]; mov rsi, [r15 + 5*8]; mov rdi, [r15 + 6*8]; mov r8, [r15 + 7*8]",
            "mov r9, [r15 + 8*8]; mov r10, [r15 + 9*8]; mov r11, [r15 + 10*8]; mov r12, [r15 + 11*8]",
            "mov r13, [r15 + 12*8]; mov r14, [r15 + 13*8]",
            "call [r15 + 15*8]",
            "mov [r15], rax; mov [r15 + 8], rcx; mov [r15 + 2*8], rdx; mov [r15 + 3*8], rbx",
            "mov [r15 + 4*8], rbp; mov [r15 + 5*8], rsi; mov [r15 + 6*8], rdi; mov [r15 + 7*8], r8",
            "mov [r15 + 8*8], r9; mov [r15 + 9*8], r10; mov [r15 + 10*8], r11; mov [r15 + 11*8], r12",
            "mov [r15 + 12*8], r13",
            "pushfq; pop [r15 + 14*8]; cld",
            "stmxcsr [r15 + 24*8]",
            "push 0x1f80; ldmxcsr [rsp]; pop rax", // as after reset
            "movdqa [r15 + 16*8], xmm0; movdqa [r15 + 18*8], xmm1",
            "movdqa [r15 + 20*8], xmm2; movdqa [r15 + 22*8], xmm3",
            "pop rbp; pop rbx",
            in("r15") state,
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
        );
    }
}

/// Memory of this process that may be executed.
fn map(size: usize) -> *mut u8 {
    let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // SAFETY: a new anonymous mapping disturbs nobody; it is never unmapped.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), size, rights, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    assert_ne!(at, libc::MAP_FAILED);
    at.cast()
}

fn write(memory: *mut u8, offset: u64, bytes: &[u8]) {
    assert!(offset as usize + bytes.len() <= MEMORY);
    // SAFETY: the mapping has MEMORY bytes.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.add(offset as usize), bytes.len()) }
}

fn read(memory: *mut u8, offset: u64) -> [u8; WINDOW] {
    let mut bytes = [0; WINDOW];
    // SAFETY: the mapping has MEMORY bytes, and the window lies inside.
    unsafe { std::ptr::copy_nonoverlapping(memory.add(offset as usize), bytes.as_mut_ptr(), WINDOW) }
    bytes
}

/// 64-bit code in ring 0, the memory mapped to itself, and no IDT: a fault is the end.
fn software_machine(memory: *mut u8) -> Vcpu {
    let machine = Machine::new();
    let slot = Slot {
        slot: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: memory as u64,
        ..Slot::default()
    };
    // SAFETY: the mapping is never unmapped.
    unsafe { machine.set_slot(slot) }.expect("a good slot");
    write(memory, TABLES, &(TABLES + 0x1000 + 7).to_le_bytes());
    write(memory, TABLES + 0x1000, &(TABLES + 0x2000 + 7).to_le_bytes());
    write(memory, TABLES + 0x2000, &0x87u64.to_le_bytes());
    let mut vcpu = machine.create_vcpu(0);
    let data = Segment { limit: u32::MAX, type_: 3, present: 1, db: 1, s: 1, g: 1, ..Segment::default() };
    let cs = Segment { selector: 8, type_: 11, l: 1, db: 0, ..data };
    let mut sregs = Sregs { cs, ds: data, es: data, ss: data, ..Sregs::reset() };
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0011, TABLES, 0x220, 0x500);
    sregs.idt.limit = 0;
    vcpu.set_sregs(&sregs).expect("long mode");
    vcpu.set_single_step(true);
    vcpu
}

fn run_on_soft(vcpu: &mut Vcpu, state: &mut State) -> Exit {
    let r = state.registers;
    let [rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14] = r;
    let rflags = state.rflags;
    vcpu.set_regs(&Regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15: 0,
        rsp: 0x5000,
        rip: CODE,
        rflags,
    });
    let mut fpu = Fpu { mxcsr: state.mxcsr, ..vcpu.fpu() };
    fpu.xmm[..4].copy_from_slice(&state.xmm);
    vcpu.set_fpu(&fpu);
    let exit = vcpu.run(false).expect("nobody interrupts it");
    state.xmm.copy_from_slice(&vcpu.fpu().xmm[..4]);
    state.mxcsr = vcpu.fpu().mxcsr;
    let r = vcpu.regs();
    state.registers =
        [r.rax, r.rcx, r.rdx, r.rbx, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14];
    state.rflags = r.rflags;
    exit
}

/// How an opcode goes on.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// Nothing.
    Alone,
    /// ModRM, register or memory.
    ModRm,
    /// ModRM with a register only.
    Register,
    /// ModRM with memory only, and this in its reg field.
    Memory(u8),
    /// ModRM with one of these in its reg field.
    Group(&'static [u8]),
}

#[derive(Clone, Copy, PartialEq)]
enum Immediate {
    None,
    Byte,
    /// 2 or 4 bytes, as the operand is.
    Full,
}

type Template = (&'static [u8], Form, Immediate);

const ALL: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 7];

#[rustfmt::skip] // an opcode a line
const TEMPLATES: &[Template] = &[
    (&[0x63], Form::ModRm, Immediate::None),            // movsxd
    (&[0x69], Form::ModRm, Immediate::Full),            // imul
    (&[0x6b], Form::ModRm, Immediate::Byte),
    (&[0x80], Form::Group(ALL), Immediate::Byte),       // add … cmp
    (&[0x81], Form::Group(ALL), Immediate::Full),
    (&[0x83], Form::Group(ALL), Immediate::Byte),
    (&[0x84], Form::ModRm, Immediate::None),            // test
    (&[0x85], Form::ModRm, Immediate::None),
    (&[0x86], Form::ModRm, Immediate::None),            // xchg
    (&[0x87], Form::ModRm, Immediate::None),
    (&[0x88], Form::ModRm, Immediate::None),            // mov
    (&[0x89], Form::ModRm, Immediate::None),
    (&[0x8a], Form::ModRm, Immediate::None),
    (&[0x8b], Form::ModRm, Immediate::None),
    (&[0x98], Form::Alone, Immediate::None),            // cbw, cwde, cdqe
    (&[0x99], Form::Alone, Immediate::None),            // cwd, cdq, cqo
    (&[0x9e], Form::Alone, Immediate::None),            // sahf
    (&[0x9f], Form::Alone, Immediate::None),            // lahf
    (&[0xc0], Form::Group(ALL), Immediate::Byte),       // rol … sar
    (&[0xc1], Form::Group(ALL), Immediate::Byte),
    (&[0xc6], Form::Group(&[0]), Immediate::Byte),      // mov
    (&[0xc7], Form::Group(&[0]), Immediate::Full),
    (&[0xd0], Form::Group(ALL), Immediate::None),
    (&[0xd1], Form::Group(ALL), Immediate::None),
    (&[0xd2], Form::Group(ALL), Immediate::None),
    (&[0xd3], Form::Group(ALL), Immediate::None),
    (&[0xf5], Form::Alone, Immediate::None),            // cmc
    (&[0xf6], Form::Group(&[0, 1]), Immediate::Byte),   // test
    (&[0xf7], Form::Group(&[0, 1]), Immediate::Full),
    (&[0xf6], Form::Group(&[2, 3, 4, 5, 6, 7]), Immediate::None), // not, neg, mul, imul, div, idiv
    (&[0xf7], Form::Group(&[2, 3, 4, 5, 6, 7]), Immediate::None),
    (&[0xf8], Form::Alone, Immediate::None),            // clc
    (&[0xf9], Form::Alone, Immediate::None),            // stc
    (&[0xfe], Form::Group(&[0, 1]), Immediate::None),   // inc, dec
    (&[0xff], Form::Group(&[0, 1]), Immediate::None),
    (&[0x0f, 0xa3], Form::Register, Immediate::None),   // bt, bts, btr, btc
    (&[0x0f, 0xab], Form::Register, Immediate::None),
    (&[0x0f, 0xb3], Form::Register, Immediate::None),
    (&[0x0f, 0xbb], Form::Register, Immediate::None),
    (&[0x0f, 0xba], Form::Group(&[4, 5, 6, 7]), Immediate::Byte),
    (&[0x0f, 0xa4], Form::ModRm, Immediate::Byte),      // shld
    (&[0x0f, 0xa5], Form::ModRm, Immediate::None),
    (&[0x0f, 0xac], Form::ModRm, Immediate::Byte),      // shrd
    (&[0x0f, 0xad], Form::ModRm, Immediate::None),
    (&[0x0f, 0xaf], Form::ModRm, Immediate::None),      // imul
    (&[0x0f, 0xb0], Form::ModRm, Immediate::None),      // cmpxchg
    (&[0x0f, 0xb1], Form::ModRm, Immediate::None),
    (&[0x0f, 0xb6], Form::ModRm, Immediate::None),      // movzx
    (&[0x0f, 0xb7], Form::ModRm, Immediate::None),
    (&[0x0f, 0xbe], Form::ModRm, Immediate::None),      // movsx
    (&[0x0f, 0xbf], Form::ModRm, Immediate::None),
    (&[0x0f, 0xbc], Form::ModRm, Immediate::None),      // bsf
    (&[0x0f, 0xbd], Form::ModRm, Immediate::None),      // bsr
    (&[0x0f, 0xc0], Form::ModRm, Immediate::None),      // xadd
    (&[0x0f, 0xc1], Form::ModRm, Immediate::None),
    (&[0x0f, 0xc7], Form::Memory(1), Immediate::None),  // cmpxchg8b, cmpxchg16b
    (&[0xf3, 0x0f, 0xb8], Form::ModRm, Immediate::None), // popcnt
    (&[0xf3, 0x0f, 0xbc], Form::ModRm, Immediate::None), // tzcnt
    (&[0xf3, 0x0f, 0xbd], Form::ModRm, Immediate::None), // lzcnt
    (&[0x0f, 0x38, 0xf0], Form::Memory(0), Immediate::None), // movbe
    (&[0x0f, 0x38, 0xf1], Form::Memory(0), Immediate::None),
];

/// SSE2's integers with the prefix 66, two registers or a register and memory.
#[rustfmt::skip]
const LANES: &[u8] = &[
    0x14, 0x15, 0x54, 0x55, 0x56, 0x57, 0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d,
    0x6f, 0x7f, 0x28, 0x29, 0x10, 0x11, 0x74, 0x75, 0x76, 0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xdb,
    0xdc, 0xdd, 0xde, 0xdf, 0xe0, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe8, 0xe9, 0xea, 0xeb, 0xec, 0xed, 0xee, 0xef, 0xf1, 0xf2,
    0xf3, 0xf4, 0xf5, 0xf6, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0x12, 0x13, 0x16, 0x17, 0x50, 0x6e, 0x7e,
];
/// The same with an immediate.
const LANES_BY_IMMEDIATE: &[u8] = &[0x70, 0x71, 0x72, 0x73, 0xc4, 0xc5, 0xc6];

fn generate_sse(random: &mut Random) -> Vec<u8> {
    let mut bytes = random.one_of(&[&[0x66][..], &[0x66], &[0x66], &[0xf2], &[0xf3], &[]]).to_vec();
    let (reg, rm) = (random.below(4) as u8, random.below(4) as u8);
    let memory = random.below(3) == 0;
    if memory {
        bytes.push(if random.below(4) == 0 { 0x49 } else { 0x41 });
    } else if random.below(4) == 0 {
        bytes.push(0x48);
    }
    let by_immediate = random.below(4) == 0;
    let opcode = random.one_of(if by_immediate { LANES_BY_IMMEDIATE } else { LANES });
    bytes.extend([0x0f, opcode]);
    // The shifts by an immediate are a group of their own.
    let reg = if matches!(opcode, 0x71..=0x73) { random.one_of(&[2, 3, 4, 6, 7]) } else { reg };
    if memory {
        bytes.extend([0x46 | reg << 3, (random.below(6) * 16) as u8]);
    } else {
        bytes.push(0xc0 | reg << 3 | rm);
    }
    if by_immediate {
        bytes.push(random.value() as u8);
    }
    bytes
}

/// SSE's arithmetic, comparisons and conversions.
const FLOATS: &[u8] =
    &[0x51, 0x58, 0x59, 0x5c, 0x5d, 0x5e, 0x5f, 0xc2, 0x2e, 0x2f, 0x2a, 0x2c, 0x2d, 0x5a, 0x5b, 0xe6];

fn generate_float(random: &mut Random) -> Vec<u8> {
    let mut bytes = random.one_of(&[&[0x66][..], &[0xf2], &[0xf3], &[]]).to_vec();
    let (reg, rm) = (random.below(4) as u8, random.below(4) as u8);
    let (memory, wide) = (random.below(3) == 0, random.below(3) == 0);
    if memory || wide {
        bytes.push(0x40 | u8::from(memory) | u8::from(wide) << 3);
    }
    let opcode = random.one_of(FLOATS);
    bytes.extend([0x0f, opcode]);
    if memory {
        bytes.extend([0x46 | reg << 3, (random.below(6) * 16) as u8]);
    } else {
        bytes.push(0xc0 | reg << 3 | rm);
    }
    if opcode == 0xc2 {
        bytes.push(random.below(8) as u8);
    }
    bytes
}

fn generate(random: &mut Random) -> Vec<u8> {
    if random.below(5) == 0 {
        return generate_sse(random);
    }
    let arithmetic = [0x00u8, 0x08, 0x10, 0x18, 0x20, 0x28, 0x30, 0x38];
    let (opcode, form, immediate): (Vec<u8>, Form, Immediate) = match random.below(5) {
        0 => {
            let opcode = random.one_of(&arithmetic) + random.below(6) as u8;
            match opcode & 7 {
                4 => (vec![opcode], Form::Alone, Immediate::Byte),
                5 => (vec![opcode], Form::Alone, Immediate::Full),
                _ => (vec![opcode], Form::ModRm, Immediate::None),
            }
        }
        1 => {
            // cmov and setcc
            let base = random.one_of(&[0x40u8, 0x90]);
            (vec![0x0f, base + random.below(16) as u8], Form::ModRm, Immediate::None)
        }
        _ => {
            let template = random.one_of(TEMPLATES);
            (template.0.to_vec(), template.1, template.2)
        }
    };
    let mut bytes = Vec::new();
    let narrow = random.below(4) == 0;
    if narrow {
        bytes.push(0x66);
    }
    let (mandatory, opcode) =
        if opcode[0] == 0xf3 { (&opcode[..1], &opcode[1..]) } else { (&[][..], &opcode[..]) };
    bytes.extend_from_slice(mandatory);

    // The registers: none of RSP, R14, R15; without REX, 4 to 7 of the 8-bit ones are AH to BH.
    let (reg, rm) = (random.one_of(&NUMBERS), random.one_of(&NUMBERS));
    let memory = match form {
        Form::Memory(_) => true,
        Form::ModRm | Form::Group(_) => random.below(2) == 0,
        _ => false,
    };
    let wide = random.below(3) == 0;
    let mut rex = 0;
    if wide {
        rex |= 0x48;
    }
    if reg >= 8 {
        rex |= 0x44;
    }
    if memory || rm >= 8 {
        rex |= 0x41;
    }
    if rex == 0 && random.below(4) == 0 {
        rex = 0x40;
    }
    let mut reg = reg & 7;
    if let Form::Group(numbers) = form {
        (reg, rex) = (random.one_of(numbers), rex & !4);
    }
    if let Form::Memory(number) = form
        && number != 0
    {
        (reg, rex) = (number, rex & !4);
    }
    if rex != 0 {
        bytes.push(rex | 0x40);
    }
    bytes.extend_from_slice(opcode);
    if form != Form::Alone {
        if memory {
            // [r14 + a multiple of 16]
            bytes.push(0x46 | reg << 3);
            bytes.push((random.below(6) * 16) as u8);
        } else {
            bytes.push(0xc0 | reg << 3 | rm & 7);
        }
    }
    match immediate {
        Immediate::None => {}
        Immediate::Byte => bytes.push(random.value() as u8),
        Immediate::Full => {
            let value = (random.value() as u32).to_le_bytes();
            bytes.extend_from_slice(&value[..if narrow && !wide { 2 } else { 4 }]);
        }
    }
    bytes
}

/// The flags that the manual leaves undefined after this instruction.
fn undefined_flags(instruction: &Instruction, before: &State) -> u64 {
    let named = [
        (RflagsBits::OF, 0x800),
        (RflagsBits::SF, 0x80),
        (RflagsBits::ZF, 0x40),
        (RflagsBits::AF, 0x10),
        (RflagsBits::CF, 0x1),
        (RflagsBits::PF, 0x4),
    ];
    let bits = instruction.rflags_undefined();
    let mut undefined = named.iter().filter(|(bit, _)| bits & bit != 0).fold(0, |all, (_, flag)| all | flag);
    let size = match instruction.op0_register() {
        iced_x86::Register::None => instruction.memory_size().size(),
        register => register.size(),
    };
    let count = match instruction.mnemonic() {
        Mnemonic::Shld | Mnemonic::Shrd if instruction.op_count() == 3 => 2,
        _ => 1,
    };
    let by = match instruction.op_kind(count.min(instruction.op_count().saturating_sub(1))) {
        iced_x86::OpKind::Immediate8 => u64::from(instruction.immediate8()),
        _ => before.registers[1],
    } & if size == 8 { 63 } else { 31 };
    match instruction.mnemonic() {
        // OF is defined for a count of 1 alone, and nothing changes for a count of 0.
        Mnemonic::Shl
        | Mnemonic::Shr
        | Mnemonic::Sar
        | Mnemonic::Rol
        | Mnemonic::Ror
        | Mnemonic::Rcl
        | Mnemonic::Rcr => {
            undefined |= if by > 1 { 0x800 } else { 0 };
            if by == 0 {
                undefined = 0;
            } else if by as usize >= size * 8 && !matches!(instruction.mnemonic(), Mnemonic::Sar) {
                // CF of SHL and SHR is defined up to the operand's size.
                undefined |=
                    if matches!(instruction.mnemonic(), Mnemonic::Shl | Mnemonic::Shr) { 1 } else { 0 };
            }
            undefined
        }
        Mnemonic::Shld | Mnemonic::Shrd => {
            if by == 0 {
                0
            } else if by as usize > size * 8 {
                STATUS
            } else {
                undefined | if by > 1 { 0x810 } else { 0x10 }
            }
        }
        _ => undefined,
    }
}

/// Results that the manual leaves undefined: of BSF and BSR of zero, of BSWAP of 16 bits, of SHLD and SHRD of
/// 16 bits by more than 16.
fn undefined_result(instruction: &Instruction, soft: &State, before: &State) -> bool {
    let zero = soft.rflags & 0x40 != 0;
    match instruction.mnemonic() {
        Mnemonic::Bsf | Mnemonic::Bsr => zero,
        Mnemonic::Bswap => true,
        Mnemonic::Shld | Mnemonic::Shrd => {
            let by = match instruction.op2_kind() {
                iced_x86::OpKind::Immediate8 => instruction.immediate8(),
                _ => before.registers[1] as u8,
            } & 31;
            let size = match instruction.op0_register() {
                iced_x86::Register::None => instruction.memory_size().size(),
                register => register.size(),
            };
            size == 2 && by > 16
        }
        _ => false,
    }
}

/// Instructions that one of the two lacks.
fn missing_here(mnemonic: Mnemonic) -> bool {
    match mnemonic {
        Mnemonic::Popcnt => !is_x86_feature_detected!("popcnt"),
        Mnemonic::Lzcnt => !is_x86_feature_detected!("lzcnt"),
        Mnemonic::Tzcnt => !is_x86_feature_detected!("bmi1"),
        Mnemonic::Movbe => !is_x86_feature_detected!("movbe"),
        Mnemonic::Cmpxchg16b => !is_x86_feature_detected!("cmpxchg16b"),
        // SSE3 and MMX, which the software machine lacks.
        Mnemonic::Movsldup | Mnemonic::Movshdup | Mnemonic::Movddup | Mnemonic::Lddqu => true,
        Mnemonic::Addsubps | Mnemonic::Addsubpd | Mnemonic::Movdq2q | Mnemonic::Movq2dq => true,
        Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd => true,
        _ => false,
    }
}

#[test]
fn instructions_do_what_this_cpu_does() {
    let count = std::env::var("VMEXIT_COMPARE").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000u32);
    let mut random = Random(0x05ee_d0f1_dea5);
    let (guest, host) = (map(MEMORY), map(MEMORY));
    let mut vcpu = software_machine(guest);
    let (mut compared, mut with_floats, mut faulted) = (0u32, 0u32, 0u32);
    while compared < count {
        let floats = random.below(4) == 0;
        let bytes = if floats { generate_float(&mut random) } else { generate(&mut random) };
        let mut decoder = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid()
            || instruction.len() != bytes.len()
            || missing_here(instruction.mnemonic())
        {
            continue;
        }
        // What a register operand must not be: the decoder has the last word.
        let info = InstructionInfoFactory::new().info(&instruction).used_registers().to_vec();
        let reserved = |register: iced_x86::Register| {
            let full = register.full_register();
            matches!(full, iced_x86::Register::RSP | iced_x86::Register::R15)
        };
        if info.iter().any(|used| reserved(used.register()) || used.register().is_mm()) {
            continue;
        }
        let mut window: [u8; WINDOW] = std::array::from_fn(|_| random.value() as u8);
        if floats {
            window.chunks_mut(8).for_each(|half| half.copy_from_slice(&random.floats().to_le_bytes()));
        }
        let half = |random: &mut Random| u128::from(if floats { random.floats() } else { random.value() });
        let mut before = State {
            registers: std::array::from_fn(|_| random.value()),
            rflags: random.next() & STATUS | FIXED,
            code: host as u64 + CODE,
            xmm: std::array::from_fn(|_| half(&mut random) << 64 | half(&mut random)),
            // Every exception is masked; flags, rounding, DAZ and FZ are any.
            mxcsr: random.next() as u32 & 0xe07f | 0x1f80,
        };
        before.registers[13] = DATA;
        let mut code = bytes.clone();
        code.push(0xc3);
        for memory in [guest, host] {
            write(memory, CODE, &code);
            write(memory, DATA, &window);
        }
        let mut soft = before;
        let exit = run_on_soft(&mut vcpu, &mut soft);
        if exit == Exit::Shutdown {
            // A division error, which would end the test on this CPU.
            assert!(
                matches!(instruction.mnemonic(), Mnemonic::Div | Mnemonic::Idiv),
                "{instruction} {bytes:02x?} died"
            );
            faulted += 1;
            continue;
        }
        assert!(matches!(exit, Exit::Debug { .. }), "{instruction}: {exit:?}");
        let mut real = before;
        real.registers[13] = host as u64 + DATA;
        run_on_host(&mut real);
        compared += 1;
        with_floats += u32::from(floats);
        real.registers[13] = DATA;
        if undefined_result(&instruction, &soft, &before) {
            continue;
        }
        let undefined = undefined_flags(&instruction, &before);
        let flags = |state: &State| state.rflags & STATUS & !undefined;
        let same = soft.registers == real.registers
            && (soft.xmm, soft.mxcsr) == (real.xmm, real.mxcsr)
            && flags(&soft) == flags(&real)
            && read(guest, DATA) == read(host, DATA);
        assert!(
            same,
            "{instruction} {bytes:02x?}\nbefore {before:x?}\nsoft   {soft:x?}\nhost   {real:x?}\nundefined {undefined:x}",
        );
    }
    println!(
        "{compared} instructions compared, {with_floats} of floating-point numbers; {faulted} divisions faulted"
    );
    assert!(faulted > 0 && with_floats > 0);
}
