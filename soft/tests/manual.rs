//! Rules that the lab's machines cannot show, each tested from the manual. The differential tester
//! (`examples/diff/referee.rs`) names these tests beside what an emulated CPU does otherwise.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed};

use vmexit_soft::{Exit, Machine, Regs, Segment, Slot, Sregs, Vcpu};

const CODE: u64 = 0x1000;
const HANDLERS: u64 = 0x2000;
const IDT: u64 = 0x3000;
const GDT: u64 = 0x3800;
const TSS: u64 = 0x3a00;
const KERNEL_STACK: u64 = 0x4800;
const IST_STACK: u64 = 0x4f00;
const STACK: u64 = 0x5800;
const DATA: u64 = 0x6000;
const TABLES: u64 = 0x8000;
const LANDING: u64 = 0xd000;
const READ_ONLY: u64 = 0x10000;
const MISSING: u64 = 0x11000;
const HOLE: u64 = 0x14000;
const MEMORY: usize = 0x10000;
const HLT: u8 = 0xf4;
const NOT_CANONICAL: u64 = 0x0080_0000_0000_0000;

const STACK_FAULT: u8 = 12;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
const INVALID_OPCODE: u8 = 6;

/// A CPU in ring 0 or 3 of a mode; there is a `hlt` behind every instruction and for each vector.
struct Guest {
    vcpu: Vcpu,
    memory: *mut u8,
    _machine: Machine,
    bits: u32,
}

/// How an instruction ended.
struct Outcome {
    regs: Regs,
    sregs: Sregs,
    /// The exception whose handler it ended in.
    vector: Option<u8>,
    /// What is on the stack there: the error code, if there is one.
    code: u64,
}

fn segment(selector: u16, code: bool, ring: u8, bits: u32) -> Segment {
    Segment {
        base: 0,
        limit: if bits == 16 { 0xffff } else { u32::MAX },
        selector,
        type_: if code { 11 } else { 3 },
        present: 1,
        dpl: ring,
        db: u8::from(bits == 32 || !code && bits == 64),
        s: 1,
        l: u8::from(code && bits == 64),
        g: u8::from(bits != 16),
        ..Segment::default()
    }
}

impl Guest {
    fn bare(bits: u32) -> Self {
        let layout = Layout::from_size_align(MEMORY, 4096).expect("a size and a power of two");
        // SAFETY: the layout's size is not 0; the memory is never given back.
        let memory = unsafe { alloc_zeroed(layout) };
        assert!(!memory.is_null());
        let machine = Machine::new();
        let slot = Slot {
            slot: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory as u64,
            read_only: false,
            log_dirty: false,
        };
        // SAFETY: the memory is never given back.
        unsafe { machine.set_slot(slot) }.expect("a good slot");
        let mut vcpu = machine.create_vcpu(0);
        vcpu.set_cpuid2(&vmexit_soft::supported_cpuid()).expect("before it ran");
        let mut guest = Self { vcpu, memory, _machine: machine, bits };
        for page in [CODE, HANDLERS, LANDING] {
            guest.write(page, &[HLT; 0x1000]);
        }
        guest
    }

    fn real() -> Self {
        let mut guest = Self::bare(16);
        for vector in 0..256 {
            guest.write(vector * 4, &((HANDLERS + vector * 16) as u32).to_le_bytes());
        }
        let mut sregs = guest.vcpu.sregs();
        sregs.cs = Segment { selector: 0, base: 0, ..sregs.cs };
        guest.vcpu.set_sregs(&sregs).expect("real mode");
        guest
    }

    /// Protected mode without paging, or long mode with it; `bits` says which code.
    fn protected(bits: u32, ring: u8, long: bool) -> Self {
        let mut guest = Self::bare(bits);
        let descriptor = |access: u64, flags: u64| 0x000f_0000_0000_ffff | access << 40 | flags << 52;
        // 0x08 and 0x10 code and data of ring 0, 0x18 and 0x20 of ring 3, 0x28 data that is not present,
        // 0x30 the handlers' code.
        let flags = match bits {
            64 => 0xa,
            32 => 0xc,
            _ => 0,
        };
        let table = [
            0,
            descriptor(0x9b, flags),
            descriptor(0x93, 0xc),
            descriptor(0xfb, flags),
            descriptor(0xf3, 0xc),
            descriptor(0x73, 0xc),
            descriptor(0x9b, if long { 0xa } else { 0xc }),
        ];
        for (number, descriptor) in table.into_iter().enumerate() {
            guest.write(GDT + number as u64 * 8, &u64::to_le_bytes(descriptor));
        }
        for vector in 0..32 {
            let handler = HANDLERS + vector * 16;
            let gate = handler & 0xffff | 0x30 << 16 | 0x8e << 40;
            let ist = if vector == 8 && long { 1 << 32 } else { 0 };
            guest.write(IDT + vector * if long { 16 } else { 8 }, &(gate | ist).to_le_bytes());
        }
        guest.write(TSS + 4, &KERNEL_STACK.to_le_bytes());
        if long {
            guest.write(TSS + 0x24, &IST_STACK.to_le_bytes());
            guest.tables();
        } else {
            guest.write(TSS + 8, &0x10u16.to_le_bytes());
        }
        let rpl = u16::from(ring);
        let mut sregs = guest.vcpu.sregs();
        let data = segment(if ring == 0 { 0x10 } else { 0x23 }, false, ring, bits);
        sregs.cs = segment(if ring == 0 { 8 } else { 0x18 } | rpl, true, ring, bits);
        (sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data, data);
        sregs.tr =
            Segment { base: TSS, limit: 0x67, selector: 0x40, type_: 11, present: 1, ..Segment::default() };
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0x37);
        (sregs.idt.base, sregs.idt.limit) = (IDT, 0x1ff);
        (sregs.cr0, sregs.cr4) = (0x1_0031, 0x600);
        if long {
            (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8001_0031, TABLES, 0x620, 0xd01);
        }
        guest.vcpu.set_sregs(&sregs).expect("a mode that there is");
        guest
    }

    fn long() -> Self {
        Self::protected(64, 0, true)
    }

    fn long_ring_3() -> Self {
        Self::protected(64, 3, true)
    }

    /// Maps what there is to itself, but for page 0; see the constants for what comes behind.
    fn tables(&mut self) {
        for level in 0..3 {
            let next = TABLES + (level + 1) * 0x1000;
            self.write(TABLES + level * 0x1000, &(next | 7).to_le_bytes());
        }
        for page in 1..16u64 {
            self.write(TABLES + 0x3000 + page * 8, &(page << 12 | 7).to_le_bytes());
        }
        self.write(TABLES + 0x3000 + (READ_ONLY >> 12) * 8, &(0x7000u64 | 5).to_le_bytes());
        self.write(TABLES + 0x3000 + (HOLE >> 12) * 8, &(0x20000u64 | 7).to_le_bytes());
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        assert!(address as usize + bytes.len() <= MEMORY);
        // SAFETY: the range lies in the memory.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory.add(address as usize), bytes.len())
        }
    }

    fn read(&self, address: u64) -> u64 {
        assert!(address as usize + 8 <= MEMORY);
        // SAFETY: the range lies in the memory.
        unsafe { self.memory.add(address as usize).cast::<u64>().read_unaligned() }
    }

    /// Runs an instruction to the `hlt` behind it or in a handler.
    fn run(&mut self, code: &[u8], regs: Regs) -> Outcome {
        assert_eq!(self.exit(code, regs), Exit::Hlt);
        self.outcome()
    }

    fn exit(&mut self, code: &[u8], regs: Regs) -> Exit {
        self.write(CODE, code);
        let rsp = if regs.rsp == 0 { STACK } else { regs.rsp };
        self.vcpu.set_regs(&Regs { rip: CODE, rsp, rflags: regs.rflags | 2, ..regs });
        self.vcpu.run(false).expect("nobody interrupts it")
    }

    fn outcome(&self) -> Outcome {
        let (regs, sregs) = (self.vcpu.regs(), self.vcpu.sregs());
        let handler = regs.rip.wrapping_sub(HANDLERS + 1);
        let vector = (handler < 0x1000).then_some((handler / 16) as u8);
        let code = if vector.is_some() { self.read(regs.rsp) } else { 0 };
        let code = if self.bits == 64 { code } else { code & 0xffff_ffff };
        Outcome { regs, sregs, vector, code }
    }

    /// Sets a model-specific register, by a WRMSR of ring 0.
    fn set_msr(&mut self, register: u64, value: u64) {
        let regs = Regs { rcx: register, rax: value & 0xffff_ffff, rdx: value >> 32, ..Regs::default() };
        assert_eq!(self.run(&[0x0f, 0x30], regs).vector, None);
        self.write(CODE, &[HLT, HLT]);
    }
}

/// Intel SDM Vol. 3A, "Interrupt 12—Stack Fault Exception (#SS)".
#[test]
fn an_address_that_is_not_canonical_is_a_stack_fault_on_the_stack() {
    let regs = Regs { rbp: NOT_CANONICAL, rbx: NOT_CANONICAL, ..Regs::default() };
    // mov al, [rbp]; mov al, [rbx]
    assert_eq!(Guest::long().run(&[0x8a, 0x45, 0x00], regs).vector, Some(STACK_FAULT));
    assert_eq!(Guest::long().run(&[0x8a, 0x03], regs).vector, Some(GENERAL_PROTECTION));
}

/// Intel SDM Vol. 2A, "ENTER—Make Stack Frame for Procedure Parameters".
#[test]
fn enter_checks_the_end_of_its_frame_before_it_changes_anything() {
    // enter 0x1000, 0: the frame ends in a page that is read-only to everybody.
    let mut guest = Guest::long_ring_3();
    let regs = Regs { rsp: READ_ONLY + 0x1000 + 8, rbp: 7, ..Regs::default() };
    let outcome = guest.run(&[0xc8, 0x00, 0x10, 0x00], regs);
    assert_eq!((outcome.vector, outcome.regs.rbp), (Some(PAGE_FAULT), 7));
    assert_eq!(guest.read(outcome.regs.rsp + 32), READ_ONLY + 0x1000 + 8, "RSP as it was");
}

/// Intel SDM Vol. 2A, "ENTER—Make Stack Frame for Procedure Parameters".
#[test]
fn enter_with_16_bit_operands_pushes_16_bits() {
    let mut guest = Guest::long();
    guest.write(STACK - 8, &[0xee; 8]);
    // data16 enter 0, 0
    let outcome = guest.run(&[0x66, 0xc8, 0, 0, 0], Regs { rbp: 0x1122_3344, ..Regs::default() });
    assert_eq!(guest.read(STACK - 8), 0x3344_eeee_eeee_eeee);
    assert_eq!((outcome.regs.rsp, outcome.regs.rbp & 0xffff), (STACK - 2, STACK - 2));
}

/// Intel SDM Vol. 2A, "LEAVE—High Level Procedure Exit".
#[test]
fn leave_with_16_bit_operands_pops_16_bits() {
    let mut guest = Guest::long();
    guest.write(STACK - 0x40, &0x1122_3344_5566_7788u64.to_le_bytes());
    let outcome = guest.run(&[0x66, 0xc9], Regs { rbp: STACK - 0x40, ..Regs::default() });
    assert_eq!((outcome.regs.rbp, outcome.regs.rsp), (0x7788, STACK - 0x3e));
}

/// Intel SDM Vol. 2A, "IRET/IRETD/IRETQ—Interrupt Return", real-address mode: VIF and VIP stay.
#[test]
fn iret_in_real_mode_leaves_vif_and_vip_alone() {
    let mut guest = Guest::real();
    let frame = [LANDING as u32, 0, 3 << 19 | 2].map(u32::to_le_bytes).concat();
    guest.write(STACK - 0x40, &frame);
    let outcome = guest.run(&[0x66, 0xcf], Regs { rsp: STACK - 0x40, ..Regs::default() });
    assert_eq!((outcome.regs.rip, outcome.regs.rflags), (LANDING + 1, 2));
}

/// Intel SDM Vol. 2A, "INT n/INTO/INT3/INT1—Call to Interrupt Procedure".
#[test]
fn int1_is_a_debug_exception_behind_the_instruction() {
    let mut guest = Guest::long();
    let outcome = guest.run(&[0xf1], Regs::default());
    assert_eq!((outcome.vector, guest.read(outcome.regs.rsp)), (Some(1), CODE + 1));
}

/// Intel SDM Vol. 2A, "Exceptions Type 4"; Vol. 1, "Memory Alignment".
#[test]
fn an_sse_operand_that_is_not_aligned_is_a_general_protection_fault() {
    let at = |rbx| Regs { rbx, ..Regs::default() };
    // andps xmm0, [rbx]; movaps xmm0, [rbx]; movups xmm0, [rbx]
    for (code, aligned) in
        [([0x0f, 0x54, 0x03], true), ([0x0f, 0x28, 0x03], true), ([0x0f, 0x10, 0x03], false)]
    {
        let expected = if aligned { Some(GENERAL_PROTECTION) } else { None };
        assert_eq!(Guest::long().run(&code, at(DATA + 8)).vector, expected, "{code:x?}");
        assert_eq!(Guest::long().run(&code, at(DATA)).vector, None, "{code:x?}");
    }
}

/// A guest whose SYSCALL leads to [`LANDING`] and whose SFMASK takes nothing but IF away.
fn with_syscall() -> Guest {
    let mut guest = Guest::long();
    guest.set_msr(0xc000_0081, 0x0013_0008 << 32);
    guest.set_msr(0xc000_0082, LANDING);
    guest.set_msr(0xc000_0084, 0x200);
    guest
}

const STATUS: u64 = 0x8d5;

/// Intel SDM Vol. 2B, "SYSCALL—Fast System Call".
#[test]
fn syscall_keeps_the_flags_that_sfmask_leaves() {
    let outcome = with_syscall().run(&[0x0f, 0x05], Regs { rflags: STATUS | 0x200, ..Regs::default() });
    assert_eq!((outcome.regs.rip, outcome.regs.rflags), (LANDING + 1, STATUS | 2));
    assert_eq!(outcome.regs.r11, STATUS | 0x202);
}

/// Intel SDM Vol. 2B, "SYSCALL—Fast System Call" and "SYSRET—Return From Fast System Call".
#[test]
fn syscall_and_sysret_are_for_64_bit_code() {
    for code in [[0x0f, 0x05], [0x0f, 0x07]] {
        for mut guest in [Guest::protected(32, 0, true), Guest::protected(32, 3, true), Guest::real()] {
            assert_eq!(guest.run(&code, Regs::default()).vector, Some(INVALID_OPCODE), "{code:x?}");
        }
    }
}

/// Intel SDM Vol. 2A, "IRET/IRETD/IRETQ—Interrupt Return"; Vol. 2B, "SYSRET—Return From Fast System Call".
#[test]
fn iret_and_sysret_load_vif_and_vip() {
    const BOTH: u64 = 3 << 19;
    let mut guest = Guest::long();
    let frame = [LANDING, 8, BOTH | 2, STACK, 0x10].map(u64::to_le_bytes).concat();
    guest.write(STACK - 0x40, &frame);
    let outcome = guest.run(&[0x48, 0xcf], Regs { rsp: STACK - 0x40, ..Regs::default() });
    assert_eq!((outcome.regs.rip, outcome.regs.rflags), (LANDING + 1, BOTH | 2));
    let regs = Regs { rcx: LANDING, r11: BOTH | 2, ..Regs::default() };
    let mut guest = with_syscall();
    let outcome = guest.run(&[0x48, 0x0f, 0x07], regs);
    // In ring 3 the `hlt` is a #GP, and the flags are in its frame.
    assert_eq!(outcome.vector, Some(GENERAL_PROTECTION));
    assert_eq!(guest.read(outcome.regs.rsp + 24) & BOTH, BOTH);
}

/// Intel SDM Vol. 2A, "IRET/IRETD/IRETQ—Interrupt Return", IA-32e mode.
#[test]
fn iret_in_64_bit_code_pops_the_stack_in_every_size() {
    let frame = |item: usize| -> Vec<u8> {
        [LANDING, 8, 2, STACK - 0x100, 0x10]
            .iter()
            .flat_map(|value| value.to_le_bytes()[..item].to_vec())
            .collect()
    };
    for (code, item) in [(&[0x66, 0xcf][..], 2), (&[0xcf], 4), (&[0x48, 0xcf], 8)] {
        let mut guest = Guest::long();
        guest.write(STACK - 0x40, &frame(item));
        let outcome = guest.run(code, Regs { rsp: STACK - 0x40, ..Regs::default() });
        assert_eq!((outcome.regs.rip, outcome.regs.rsp), (LANDING + 1, STACK - 0x100), "{code:x?}");
    }
}

/// Intel SDM Vol. 2A, "IRET/IRETD/IRETQ—Interrupt Return": #SS(selector).
#[test]
fn a_return_to_a_stack_that_is_not_present_is_a_stack_fault() {
    let mut guest = Guest::long();
    let frame = [LANDING, 0x1b, 2, STACK, 0x2b].map(u64::to_le_bytes).concat();
    guest.write(STACK - 0x40, &frame);
    let outcome = guest.run(&[0x48, 0xcf], Regs { rsp: STACK - 0x40, ..Regs::default() });
    assert_eq!((outcome.vector, outcome.code), (Some(STACK_FAULT), 0x28));
}

/// Intel SDM Vol. 2B, "MOVBE—Move Data After Swapping Bytes".
#[test]
fn movbe_in_16_bit_code_moves_16_bits() {
    let mut guest = Guest::real();
    guest.write(DATA, &[0xee; 8]);
    // movbe [bx], ax
    guest.run(&[0x0f, 0x38, 0xf1, 0x07], Regs { rbx: DATA, rax: 0x1122_3344, ..Regs::default() });
    assert_eq!(guest.read(DATA), 0xeeee_eeee_eeee_4433);
}

/// Intel SDM Vol. 2D, "Opcode Map", the group of 0f 18.
#[test]
fn a_reserved_hint_does_nothing() {
    let outcome = Guest::long().run(&[0x0f, 0x18, 0xcc], Regs::default());
    assert_eq!((outcome.vector, outcome.regs.rip), (None, CODE + 4));
}

/// Intel SDM Vol. 3A, "Error Code".
#[test]
fn an_interrupt_beyond_the_table_names_its_gate_in_the_error_code() {
    const IDT_BIT: u64 = 2;
    for mut guest in [Guest::long(), Guest::protected(32, 0, true)] {
        let outcome = guest.run(&[0xcd, 0x21], Regs::default());
        assert_eq!((outcome.vector, outcome.code), (Some(GENERAL_PROTECTION), 0x21 * 8 + IDT_BIT));
    }
}

/// Intel SDM Vol. 2B, "SYSENTER—Fast System Call".
#[test]
fn sysenter_loads_flat_segments() {
    let mut guest = Guest::long();
    guest.set_msr(0x174, 8);
    guest.set_msr(0x175, STACK - 0x40);
    guest.set_msr(0x176, LANDING);
    let outcome = guest.run(&[0x0f, 0x34], Regs::default());
    let (cs, ss) = (outcome.sregs.cs, outcome.sregs.ss);
    assert_eq!((outcome.regs.rip, outcome.regs.rsp), (LANDING + 1, STACK - 0x40));
    assert_eq!(
        (cs.selector, cs.l, cs.db, cs.limit, ss.selector, ss.limit),
        (8, 1, 0, u32::MAX, 0x10, u32::MAX)
    );
}

/// Intel SDM Vol. 2A, "CALL—Call Procedure"; Vol. 2B, "RET—Return From Procedure".
#[test]
fn a_near_branch_of_64_bit_code_ignores_prefix_66() {
    let mut guest = Guest::long();
    guest.write(STACK - 0x40, &LANDING.to_le_bytes());
    let outcome = guest.run(&[0x66, 0xc3], Regs { rsp: STACK - 0x40, ..Regs::default() });
    assert_eq!((outcome.regs.rip, outcome.regs.rsp), (LANDING + 1, STACK - 0x38));
}

/// Intel SDM Vol. 2A, "LDS/LES/LFS/LGS/LSS—Load Far Pointer": m16:64.
#[test]
fn a_far_pointer_of_64_bit_code_has_64_bits_with_rex_w() {
    let mut guest = Guest::long();
    guest.write(DATA, &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x10, 0x00]);
    // lfs rcx, [rbx]
    let outcome = guest.run(&[0x48, 0x0f, 0xb4, 0x0b], Regs { rbx: DATA, ..Regs::default() });
    assert_eq!((outcome.regs.rcx, outcome.sregs.fs.selector), (0x1122_3344_5566_7788, 0x10));
}

/// Intel SDM Vol. 2A, "CALL—Call Procedure" and "JMP—Jump".
#[test]
fn a_branch_to_an_address_that_is_not_canonical_faults_where_it_is() {
    // call rax; jmp rax
    for code in [[0xff, 0xd0], [0xff, 0xe0]] {
        let mut guest = Guest::long();
        guest.write(STACK - 8, &[0xee; 8]);
        let outcome = guest.run(&code, Regs { rax: NOT_CANONICAL, rsp: STACK, ..Regs::default() });
        assert_eq!(outcome.vector, Some(GENERAL_PROTECTION));
        assert_eq!(guest.read(outcome.regs.rsp + 8), CODE, "the branch itself");
        assert_eq!(guest.read(outcome.regs.rsp + 32), STACK, "nothing was pushed");
    }
}

/// Intel SDM Vol. 3A, "Interrupt 14—Page-Fault Exception (#PF)".
#[test]
fn an_operand_in_two_pages_faults_at_the_first_that_is_missing() {
    const WRITE: u64 = 1 << 1;
    // add [rbx], eax: the first page is read-only, the second is not there.
    let outcome = Guest::long().run(&[0x01, 0x03], Regs { rbx: MISSING - 2, ..Regs::default() });
    assert_eq!((outcome.vector, outcome.sregs.cr2), (Some(PAGE_FAULT), MISSING - 2));
    assert_eq!(outcome.code & 3, WRITE | 1);
}

/// KVM's emulator and Bochs read [RSI] first; the manual says no order.
#[test]
fn the_first_operand_of_cmps_is_the_first_to_fault() {
    let regs = Regs { rsi: MISSING + 8, rdi: MISSING + 16, ..Regs::default() };
    assert_eq!(Guest::long().run(&[0xa6], regs).sregs.cr2, MISSING + 8);
}

/// KVM's emulator, as CPUs do: `em_lgdt_lidt` in Linux's arch/x86/kvm/emulate.c. Intel SDM Vol. 2A,
/// "LGDT/LIDT—Load Global/Interrupt Descriptor Table Register".
#[test]
fn a_table_at_an_address_that_is_not_canonical_is_refused() {
    // lgdt [rbx]; lidt [rbx]
    for code in [[0x0f, 0x01, 0x13], [0x0f, 0x01, 0x1b]] {
        let mut guest = Guest::long();
        guest.write(DATA, &0xffu16.to_le_bytes());
        guest.write(DATA + 2, &NOT_CANONICAL.to_le_bytes());
        let outcome = guest.run(&code, Regs { rbx: DATA, ..Regs::default() });
        assert_eq!((outcome.vector, outcome.code), (Some(GENERAL_PROTECTION), 0));
    }
}

/// Intel SDM Vol. 3B, "Debug Status Register (DR6)": bit 12 is always 0, and others always 1.
#[test]
fn the_reserved_bits_of_dr6_cannot_be_changed() {
    let mut guest = Guest::long();
    // mov dr6, rax; mov rbx, dr6
    let code = [0x0f, 0x23, 0xf0, 0x0f, 0x21, 0xf3];
    assert_eq!(guest.run(&code, Regs { rax: 0x1000, ..Regs::default() }).regs.rbx, 0xffff_0ff0);
}

/// Intel SDM Vol. 2A, "RIP-Relative Addressing": from the end of the instruction, its immediate included.
#[test]
fn an_address_from_rip_counts_from_behind_the_immediate() {
    let mut guest = Guest::long();
    guest.write(DATA, &1u64.to_le_bytes());
    // shld [rip + …], eax, 4
    let length = 8;
    let mut code = vec![0x0f, 0xa4, 0x05];
    code.extend(((DATA - CODE - length) as u32).to_le_bytes());
    code.push(4);
    guest.run(&code, Regs { rax: 0xa000_0000, ..Regs::default() });
    assert_eq!(guest.read(DATA), 0x1a);
}

/// Intel SDM Vol. 2D, "WRMSR—Write to Model Specific Register".
#[test]
fn wrmsr_refuses_an_address_that_is_not_canonical() {
    // LSTAR, CSTAR, FS's, GS's and the kernel's GS's base, SYSENTER's stack and address.
    for register in [0xc000_0082, 0xc000_0083, 0xc000_0100, 0xc000_0101, 0xc000_0102, 0x175, 0x176] {
        let regs = Regs { rcx: register, rdx: NOT_CANONICAL >> 32, ..Regs::default() };
        assert_eq!(Guest::long().run(&[0x0f, 0x30], regs).vector, Some(GENERAL_PROTECTION), "{register:#x}");
    }
}

/// Intel SDM Vol. 2A, "INT n/INTO/INT3/INT1—Call to Interrupt Procedure", intra-privilege-level interrupt.
#[test]
fn an_ist_stack_in_ring_0_leaves_ss_alone() {
    let outcome = Guest::long().run(&[0xcd, 8], Regs::default());
    assert_eq!((outcome.vector, outcome.sregs.ss.selector), (Some(8), 0x10));
    assert_eq!(outcome.regs.rsp, IST_STACK - 40);
}

/// Intel SDM Vol. 2B, "STR—Store Task Register".
#[test]
fn a_store_of_a_selector_into_a_hole_is_one_write() {
    let mut guest = Guest::long();
    // str [rbx]
    let exit = guest.exit(&[0x0f, 0x00, 0x0b], Regs { rbx: HOLE + 4, ..Regs::default() });
    assert_eq!(exit, Exit::MmioWrite { address: 0x20004, size: 2 });
    assert_eq!(guest.vcpu.run(false), Ok(Exit::Hlt));
    // mov [rbx], es with REX.W
    let exit = guest.exit(&[0x48, 0x8c, 0x03], Regs { rbx: HOLE + 4, ..Regs::default() });
    assert_eq!(exit, Exit::MmioWrite { address: 0x20004, size: 2 });
    assert_eq!(guest.vcpu.run(false), Ok(Exit::Hlt));
}

/// Intel SDM Vol. 2A, "CLFLUSH—Flush Cache Line".
#[test]
fn clflush_faults_as_a_load_does() {
    let code = [0x0f, 0xae, 0x3b]; // clflush [rbx]
    let at = |rbx| Regs { rbx, ..Regs::default() };
    assert_eq!(Guest::long().run(&code, at(NOT_CANONICAL)).vector, Some(GENERAL_PROTECTION));
    let outcome = Guest::long().run(&code, at(MISSING + 8));
    assert_eq!((outcome.vector, outcome.sregs.cr2, outcome.code), (Some(PAGE_FAULT), MISSING + 8, 0));
    assert_eq!(Guest::long().run(&code, at(READ_ONLY)).vector, None);
}

/// Intel SDM Vol. 3A, "Access Rights": what ring 3's call pushes is a user's access.
#[test]
fn a_far_call_in_ring_3_pushes_with_the_rights_of_ring_3() {
    const USER_WRITE: u64 = 6;
    let mut guest = Guest::protected(32, 3, true);
    let mut code = vec![0x9a];
    code.extend((LANDING as u32).to_le_bytes());
    code.extend(0x1bu16.to_le_bytes());
    let outcome = guest.run(&code, Regs { rsp: MISSING + 0x20, ..Regs::default() });
    assert_eq!((outcome.vector, outcome.code), (Some(PAGE_FAULT), USER_WRITE));
}

/// Intel SDM Vol. 2A, "LTR—Load Task Register".
#[test]
fn ltr_refuses_the_null_selector() {
    let outcome = Guest::long().run(&[0x0f, 0x00, 0xd8], Regs::default()); // ltr ax
    assert_eq!((outcome.vector, outcome.code), (Some(GENERAL_PROTECTION), 0));
    assert_eq!(outcome.sregs.tr.selector, 0x40);
}

/// Intel SDM Vol. 2A, "MOV—Move to/from Control Registers".
#[test]
fn a_reserved_bit_of_a_control_register_is_refused() {
    // mov cr8, rax
    let outcome = Guest::long().run(&[0x44, 0x0f, 0x22, 0xc0], Regs { rax: 1 << 40, ..Regs::default() });
    assert_eq!(outcome.vector, Some(GENERAL_PROTECTION));
    // mov cr4, rax; mov cr0, rax
    for (code, value) in [([0x0f, 0x22, 0xe0], 0x620 | 1 << 40), ([0x0f, 0x22, 0xc0], 0x8001_0031 | 1 << 40)]
    {
        let outcome = Guest::long().run(&code, Regs { rax: value, ..Regs::default() });
        assert_eq!(outcome.vector, Some(GENERAL_PROTECTION));
    }
}

/// Intel SDM Vol. 2A, "REX Prefixes": R is ignored where ModRM names a segment register.
#[test]
fn rex_r_does_not_change_a_segment_register() {
    let outcome = Guest::long().run(&[0x44, 0x8c, 0xe0], Regs { rax: 7, ..Regs::default() }); // mov eax, fs
    assert_eq!((outcome.vector, outcome.regs.rax), (None, 0x10));
}

/// F3 90 is PAUSE; F3 with REX.B 90 is XCHG R8, as on the CPU that this was written on. Intel SDM Vol. 2B,
/// "PAUSE—Spin Loop Hint"; Vol. 2D, "XCHG—Exchange Register/Memory With Register".
#[test]
fn pause_with_rex_b_exchanges_r8() {
    let outcome = Guest::long().run(&[0xf3, 0x49, 0x90], Regs { rax: 1, r8: 2, ..Regs::default() });
    assert_eq!((outcome.regs.rax, outcome.regs.r8), (2, 1));
}

/// Intel SDM Vol. 2A, "CALL—Call Procedure": a segment that is not present is found before anything is pushed.
#[test]
fn a_far_call_to_code_that_is_not_present_pushes_nothing() {
    let mut guest = Guest::protected(32, 0, false);
    guest.write(GDT + 0x28, &0x00cf_1b00_0000_ffffu64.to_le_bytes());
    guest.write(STACK - 8, &[0xee; 8]);
    let mut code = vec![0x9a];
    code.extend((LANDING as u32).to_le_bytes());
    code.extend(0x28u16.to_le_bytes());
    // On a stack of its own, the frame would hide what was pushed: in ring 0 it lies where the pushes would.
    let outcome = guest.run(&code, Regs { rsp: STACK, ..Regs::default() });
    assert_eq!((outcome.vector, outcome.code, outcome.regs.rsp), (Some(11), 0x28, STACK - 16));
}

/// Intel SDM Vol. 2A, "ARPL—Adjust RPL Field of Segment Selector": the destination has 16 bits.
#[test]
fn arpl_leaves_the_upper_half_of_its_register() {
    let outcome =
        Guest::protected(32, 0, false).run(&[0x63, 0xd7], Regs { rdi: 0x10ff8, rdx: 3, ..Regs::default() });
    assert_eq!(outcome.regs.rdi, 0x10ffb);
}

/// Intel SDM Vol. 2B, "REP/REPE/REPZ/REPNE/REPNZ—Repeat String Operation Prefix".
#[test]
fn a_page_fault_in_a_repeated_scan_restores_the_flags() {
    // repne scasb, from four bytes before a page that is missing: each comparison sets PF or another flag.
    let regs = Regs { rdi: MISSING - 4, rcx: 9, rax: 0x55, rflags: STATUS, ..Regs::default() };
    let mut guest = Guest::long();
    let outcome = guest.run(&[0xf2, 0xae], regs);
    assert_eq!((outcome.vector, outcome.sregs.cr2), (Some(PAGE_FAULT), MISSING));
    assert_eq!((outcome.regs.rcx, outcome.regs.rdi), (5, MISSING));
    assert_eq!(guest.read(outcome.regs.rsp + 24) & STATUS, STATUS);
}

/// Intel SDM Vol. 2A, "MOV—Move", 64-bit mode exceptions.
#[test]
fn a_null_ss_of_64_bit_code_must_be_of_its_ring() {
    let code = [0x8e, 0xd0]; // mov ss, eax
    let outcome = Guest::long().run(&code, Regs { rax: 3, ..Regs::default() });
    assert_eq!((outcome.vector, outcome.code), (Some(GENERAL_PROTECTION), 0));
    assert_eq!(Guest::long().run(&code, Regs::default()).vector, None);
}

/// Intel SDM Vol. 2B, "POPA/POPAD—Pop All General-Purpose Registers".
#[test]
fn popa_from_a_hole_reads_eight_times() {
    let mut guest = Guest::protected(32, 0, true);
    let mut exit = guest.exit(&[0x61], Regs { rsp: HOLE, ..Regs::default() });
    let mut read = Vec::new();
    while let Exit::MmioRead { address, size } = exit {
        read.push((address, size));
        exit = guest.vcpu.run(false).expect("nobody interrupts it");
    }
    assert_eq!(exit, Exit::Hlt);
    assert_eq!(read, (0..8).map(|number| (0x20000 + 4 * number, 4)).collect::<Vec<_>>());
    assert_eq!(guest.vcpu.regs().rsp, HOLE + 32);
}

/// Intel SDM Vol. 2A, "LGDT/LIDT—Load Global/Interrupt Descriptor Table Register".
#[test]
fn lgdt_of_64_bit_code_ignores_prefix_66() {
    let mut guest = Guest::long();
    guest.write(DATA, &0x37u16.to_le_bytes());
    guest.write(DATA + 2, &0x7700_3800u64.to_le_bytes());
    let outcome = guest.run(&[0x66, 0x0f, 0x01, 0x13], Regs { rbx: DATA, ..Regs::default() }); // lgdt [rbx]
    assert_eq!((outcome.sregs.gdt.base, outcome.sregs.gdt.limit), (0x7700_3800, 0x37));
}

/// Intel SDM Vol. 3A, "Restarting of Program or Task": after a fault the state is that before the instruction.
#[test]
fn popa_that_faults_has_loaded_nothing() {
    // The stack ends in a page that is missing: EDI's place is there, ESI's is not.
    let regs = Regs { rsp: MISSING - 4, rdi: 0x1111, rsi: 0x2222, ..Regs::default() };
    let mut guest = Guest::protected(32, 3, true);
    let outcome = guest.run(&[0x61], regs);
    assert_eq!((outcome.vector, outcome.sregs.cr2), (Some(PAGE_FAULT), MISSING));
    assert_eq!((outcome.regs.rdi, outcome.regs.rsi), (0x1111, 0x2222));
}

/// AMD APM Vol. 2, "SYSCALL and SYSRET MSRs": the mask has 32 bits.
#[test]
fn the_upper_half_of_fmask_is_reserved() {
    let guest = &mut Guest::long();
    assert!(guest.vcpu.set_msr(0xc000_0084, 0x1234_5678_0000_0200));
    assert_eq!(guest.vcpu.msr(0xc000_0084), Some(0x200));
}

/// Intel SDM Vol. 2B, "PUSH—Push Word, Doubleword, or Quadword Onto the Stack".
#[test]
fn a_segment_register_is_pushed_with_zeros_above_it() {
    let mut guest = Guest::protected(32, 0, false);
    guest.write(STACK - 4, &[0xff; 4]);
    let cs = guest.vcpu.sregs().cs.selector;
    let outcome = guest.run(&[0x0e], Regs { rsp: STACK, ..Regs::default() });
    assert_eq!((outcome.vector, outcome.regs.rsp), (None, STACK - 4));
    assert_eq!(guest.read(STACK - 4) as u32, u32::from(cs));
}
