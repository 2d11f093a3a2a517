//! Guests that show what the CPU does between rings and modes, each assembled by
//! the compiler into this test's own data, and run on the software machine.
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code)]

use vmexit_soft::{Events, Exception, Exit, Interrupt, Regs, Slot, Sregs};

#[macro_use]
mod machine;

use machine::{Guest, MEMORY, START};

#[test]
fn in_real_mode_an_interrupt_pushes_flags_cs_and_ip_and_iret_takes_them_back() {
    let code = guest!(real_interrupt,
        ".code16"
        "jmp 2f"
        "1: mov cx, sp"
        "clc"
        "mov ax, [0x7ffe]"
        "iret"
        "2: mov word ptr [0x40 * 4], 0x1002" // behind the jump
        "mov word ptr [0x40 * 4 + 2], 0"
        "stc"
        "int 0x40"
        "setc bl"
        "hlt"
    );
    let mut guest = Guest::real(code);
    let regs = guest.finish();
    assert_eq!(regs.rcx & 0xffff, 0x7ffa, "three words");
    assert_eq!(regs.rbx & 0xff, 1, "CF came back");
    assert_eq!(regs.rax & 1, 1, "the pushed flags have it");
    assert_eq!(regs.rsp, 0x8000);
}

#[test]
fn a_division_error_returns_to_the_division() {
    let code = guest!(division,
        ".code16"
        "jmp 2f"
        "1: mov bl, 7"
        "iret"
        "2: mov word ptr [0], 0x1002" // behind the jump
        "mov word ptr [2], 0"
        "mov ax, 100"
        "xor bl, bl"
        "div bl"
        "hlt"
    );
    let regs = Guest::real(code).finish();
    assert_eq!(regs.rax & 0xffff, 2 << 8 | 14);
}

#[test]
fn in_64_bit_code_rings_change_by_iret_int_exceptions_syscall_and_sysret() {
    let code = guest!(rings,
        ".code64"
        "lgdt [rip + 90f]"
        "lidt [rip + 91f]"
        // Gates: #GP and #PF (on IST1) for the CPU, 0x80 and 0x81 for ring 3.
        "lea rax, [rip + 20f]; mov ebx, 13; mov ecx, 0x8e00; call 10f"
        "lea rax, [rip + 30f]; mov ebx, 14; mov ecx, 0x8e01; call 10f"
        "lea rax, [rip + 40f]; mov ebx, 0x80; mov ecx, 0xee00; call 10f"
        "lea rax, [rip + 70f]; mov ebx, 0x81; mov ecx, 0xee00; call 10f"
        // The TSS: RSP0 and IST1.
        "mov qword ptr [0x5004], 0x7000"
        "mov qword ptr [0x5024], 0x7800"
        "mov ax, 0x28; ltr ax"
        // LSTAR, STAR: kernel 8, user 0x18 - 8.
        "mov ecx, 0xc0000082; lea rax, [rip + 50f]; xor edx, edx; wrmsr"
        "mov ecx, 0xc0000081; xor eax, eax; mov edx, 0x00130008; wrmsr"
        "mov ecx, 0xc0000084; mov eax, 0x200; xor edx, edx; wrmsr"
        // 0x3000 is ring 0's: clear U in its entry, and the TLB's copy.
        "and byte ptr [0x103000 + 3 * 8], 0xfb; invlpg [0x3000]"
        // To ring 3 with interrupts on.
        "push 0x1b; push 0x6000; push 0x202; push 0x23"
        "lea rax, [rip + 60f]; push rax; iretq"
        // Writes gate rbx to rax with the attributes ecx.
        "10: shl ebx, 4; add ebx, 0x4000"
        "mov [rbx], ax; mov word ptr [rbx + 2], 8; mov [rbx + 4], cx"
        "ret"
        "20: pop r8; mov r9, rsp; add qword ptr [rsp], 1; iretq"
        "30: pop r10; mov rsi, cr2; mov r12, rsp; lea rax, [rip + 61f]; mov [rsp], rax; iretq"
        "40: mov r13, [rsp + 8]; mov r14, rsp; iretq"
        "50: pushfq; pop rbp; mov r15, rcx; sysretq"
        "60: hlt"
        "mov eax, [0x3000]"
        "61: int 0x80"
        "syscall"
        "mov eax, cs"
        "int 0x81"
        "70: hlt"
        ".balign 8"
        "80: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cff3000000ffff, 0x00affb000000ffff"
        ".quad 0x0000890050000067, 0"
        "90: .word 55; .quad 80b - rings_start + 0x1000"
        "91: .word 0xfff; .quad 0x4000"
    );
    let mut guest = Guest::long(code);
    let regs = guest.finish();
    assert_eq!(regs.r8, 0, "HLT in ring 3 is #GP(0)");
    assert_eq!(regs.r9, 0x7000 - 5 * 8, "on RSP0, and the error code was popped");
    assert_eq!((regs.r10, regs.rsi), (5, 0x3000), "present, read, by ring 3; CR2");
    assert_eq!(regs.r12, 0x7800 - 5 * 8, "on IST1");
    assert_eq!((regs.r13, regs.r14), (0x23, 0x7000 - 5 * 8), "ring 3's CS, and the stack of ring 0");
    assert_eq!(regs.rbp & 0x200, 0, "SFMASK cleared IF");
    assert_eq!(regs.rax, 0x23, "SYSRET went back to ring 3");
    assert_eq!(guest.read(0x7000 - 8), 0x1b, "and INT 0x81 pushed its SS");
    assert_eq!(guest.vcpu.sregs().ss.dpl, 0);
}

#[test]
fn a_store_to_code_that_was_decoded_is_what_runs_next() {
    let code = guest!(selfmod,
        ".code64"
        "mov ecx, 3"
        "1: mov eax, 1"
        "add ebx, eax"
        "mov byte ptr [rip + 1b + 1], 10"
        "loop 1b"
        // And the instruction right behind the store, in the same block.
        "mov byte ptr [rip + 2f + 1], 5"
        "2: mov edx, 7"
        "hlt"
    );
    let regs = Guest::long(code).finish();
    assert_eq!((regs.rbx, regs.rdx), (1 + 10 + 10, 5));
}

#[test]
fn the_hypervisor_may_write_code_between_two_runs() {
    let code = guest!(patched, ".code64" "1: mov eax, 1" "hlt" "jmp 1b");
    let mut guest = Guest::long(code);
    assert_eq!(guest.finish().rax, 1);
    guest.write(START + 1, &[2]);
    assert_eq!(guest.finish().rax, 2);
}

#[test]
fn a_hole_is_read_and_written_by_exits_and_an_instruction_that_does_both_makes_two() {
    let code =
        guest!(hole, ".code32" "mov esi, 0xfee00000" "add dword ptr [esi], 5" "mov eax, [esi + 0xffd]" "hlt");
    let mut guest = Guest::protected(code);
    assert_eq!(guest.run(), Exit::MmioRead { address: 0xfee0_0000, size: 4 });
    assert_eq!(guest.vcpu.regs().rip, START + 5, "at the instruction");
    guest.vcpu.data_mut(4).copy_from_slice(&7u32.to_le_bytes());
    assert_eq!(guest.run(), Exit::MmioWrite { address: 0xfee0_0000, size: 4 });
    assert_eq!(guest.vcpu.data(4), [12, 0, 0, 0]);
    assert_eq!(guest.vcpu.regs().rip, START + 8, "past it");
    // An access over a page's end is two.
    assert_eq!(guest.run(), Exit::MmioRead { address: 0xfee0_0ffd, size: 3 });
    guest.vcpu.data_mut(3).copy_from_slice(&[1, 2, 3]);
    assert_eq!(guest.run(), Exit::MmioRead { address: 0xfee0_1000, size: 1 });
    guest.vcpu.data_mut(1).copy_from_slice(&[4]);
    assert_eq!(guest.finish().rax, 0x0403_0201);
}

#[test]
fn a_read_only_slot_is_read_at_once_and_written_by_an_exit() {
    let code = guest!(rom, ".code32" "mov eax, [0x800000]" "mov [0x800000], eax" "hlt");
    let mut guest = Guest::protected(code);
    let slot = Slot {
        slot: 1,
        guest_phys_addr: 0x80_0000,
        memory_size: 0x1000,
        userspace_addr: guest.memory as u64,
        read_only: true,
        ..Slot::default()
    };
    // SAFETY: the memory is never given back.
    unsafe { guest.machine.set_slot(slot) }.expect("a good slot");
    assert_eq!(guest.run(), Exit::MmioWrite { address: 0x80_0000, size: 4 });
    assert_eq!(guest.finish().rax, 0);
}

#[test]
fn the_dirty_log_names_the_pages_that_were_written_and_the_tables_that_say_so() {
    // Each round reads one page, writes another, and says so.
    let code = guest!(pages_written,
        ".code64"
        "mov ecx, 3"
        "2: mov rax, [0x5000]"
        "mov [0x7000], rcx"
        "out 0x10, al"
        "loop 2b"
        "mov [0x9000], rax"
        "hlt"
    );
    let mut guest = Guest::long(code);
    let slot = Slot {
        slot: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: guest.memory as u64,
        log_dirty: true,
        ..Slot::default()
    };
    // SAFETY: the memory is never given back.
    unsafe { guest.machine.set_slot(slot) }.expect("the same slot with a log");
    let dirty = |guest: &Guest| -> Vec<u64> {
        let log = guest.machine.take_dirty_log(0).expect("a log");
        assert_eq!(log.len() as u64, MEMORY as u64 / 4096 / 64);
        (0..MEMORY as u64 / 4096).filter(|page| log[*page as usize / 64] >> (page % 64) & 1 != 0).collect()
    };
    let output = Exit::IoOut { port: 0x10, size: 1, count: 1 };
    assert_eq!(guest.run(), output);
    assert_eq!(dirty(&guest), [7, 0x100, 0x101, 0x102, 0x103], "accessed bits in the tables too");
    assert_eq!(dirty(&guest), []);
    assert_eq!(guest.run(), output);
    assert_eq!(dirty(&guest), [7], "again, though the TLB knew the page; and not the page that is read");
    assert_eq!(guest.run(), output);
    assert_eq!(guest.run(), Exit::Hlt);
    assert_eq!(dirty(&guest), [7, 9, 0x103], "what two runs wrote, and the first write's dirty bit");
}

#[test]
fn string_input_asks_for_a_page_full_at_once_and_output_sends_an_item_at_a_time() {
    let code = guest!(strings,
        ".code32"
        "mov edi, 0x2ffd" "mov ecx, 5" "mov edx, 0x60" "rep insb"
        "mov esi, 0x2ffd" "mov ecx, 2" "rep outsw"
        "hlt"
    );
    let mut guest = Guest::protected(code);
    assert_eq!(guest.run(), Exit::IoIn { port: 0x60, size: 1, count: 3 }, "up to the page's end");
    guest.vcpu.data_mut(3).copy_from_slice(b"abc");
    assert_eq!(guest.run(), Exit::IoIn { port: 0x60, size: 1, count: 2 });
    guest.vcpu.data_mut(2).copy_from_slice(b"de");
    assert_eq!(guest.run(), Exit::IoOut { port: 0x60, size: 2, count: 1 });
    assert_eq!(guest.vcpu.data(2), b"ab");
    assert_eq!(guest.run(), Exit::IoOut { port: 0x60, size: 2, count: 1 });
    assert_eq!(guest.vcpu.data(2), b"cd");
    let regs = guest.finish();
    assert_eq!((regs.rcx, regs.rdi, regs.rsi), (0, 0x3002, 0x3001));
}

#[test]
fn an_instruction_in_two_pages_needs_both() {
    let code = guest!(two_pages, ".code64" ".fill 0xffe, 1, 0x90" "mov eax, 0x12345678" "hlt");
    assert_eq!(Guest::long(code).finish().rax, 0x1234_5678);
    let mut guest = Guest::long(code);
    // The second page is not there: #PF, and no IDT.
    guest.write(0x10_3000 + 2 * 8, &[0]);
    assert_eq!(guest.run(), Exit::Shutdown);
    assert_eq!((guest.vcpu.regs().rip, guest.vcpu.sregs().cr2), (0x1ffe, 0x2000));
    let failed = guest.vcpu.failed_deliveries().iter().map(|failed| (failed.vector, failed.met));
    assert_eq!(
        failed.collect::<Vec<_>>(),
        [(14, 13), (8, 13)],
        "a #PF without a gate, and a #DF without one"
    );
    let first = guest.vcpu.failed_deliveries()[0];
    assert_eq!(
        (first.error_code, first.met_code, first.cr2),
        (Some(1 << 4), Some(14 << 3 | 3), 0x2000),
        "a fetch"
    );
}

#[test]
fn the_page_tables_get_their_accessed_and_dirty_bits() {
    let code = guest!(dirty_log, ".code64" "mov eax, [0x5000]" "mov [0x6000], eax" "hlt");
    let mut guest = Guest::long(code);
    guest.finish();
    let entry = |page: u64| guest.read(0x10_3000 + page * 8) & 0x60;
    assert_eq!((entry(5), entry(6), entry(7)), (0x20, 0x60, 0));
    assert_eq!(guest.read(0x10_0000) & 0x60, 0x20);
}

#[test]
fn a_page_fault_says_who_wanted_what() {
    // The handler's stack holds the error code when it halts.
    let code = guest!(faults,
        ".code64"
        "lidt [rip + 9f]"
        "lea rcx, [rip + 5f]"
        "mov word ptr [0x4000 + 14 * 16], cx"
        "mov word ptr [0x4000 + 14 * 16 + 2], 8"
        "mov word ptr [0x4000 + 14 * 16 + 4], 0x8e00"
        "lgdt [rip + 8f]"
        "jmp rax"
        "1: mov eax, [0x9000]"
        "2: mov [0xa000], eax"
        "3: add dword ptr [0x9000], 1"
        "5: pop rbx; hlt"
        "7: .quad 0, 0x00af9b000000ffff"
        "8: .word 15; .quad 7b - faults_start + 0x1000"
        "9: .word 0xfff; .quad 0x4000"
    );
    let jump = code.windows(2).position(|bytes| bytes == [0xff, 0xe0]).expect("jmp rax") as u64 + START + 2;
    let cases = [
        (jump, 0x9000, 0, "a read of a page that is not there"),
        (jump + 7, 0xa000, 3, "a write of a page that is only read, with CR0.WP"),
        (jump + 14, 0x9000, 2, "an instruction that reads and writes asks as a write"),
        (0xb000, 0xb000, 0x11, "a fetch from a page with NX"),
        (0xc000, 0xc000, 9, "a reserved bit"),
    ];
    for (target, address, error, why) in cases {
        let mut guest = Guest::long(code);
        guest.write(0x10_3000 + 9 * 8, &[0]);
        guest.write(0x10_3000 + 10 * 8, &0xa005u64.to_le_bytes());
        guest.write(0x10_3000 + 11 * 8, &(0xb007u64 | 1 << 63).to_le_bytes());
        guest.write(0x10_3000 + 12 * 8, &(0xc007u64 | 1 << 51).to_le_bytes());
        let mut regs = guest.vcpu.regs();
        regs.rax = target;
        guest.vcpu.set_regs(&regs);
        let regs = guest.finish();
        let error = if target == 0xc000 { error | 0x10 } else { error };
        assert_eq!((regs.rbx, guest.vcpu.sregs().cr2), (error, address), "{why}");
    }
}

#[test]
fn thirty_two_bit_paging_maps_4_mib_at_once_and_pae_goes_by_four_pointers() {
    let code = guest!(legacy, ".code32" "mov eax, [0x400000]" "hlt");
    let mut guest = Guest::protected(code);
    guest.write(0x2000, &0x83u32.to_le_bytes());
    // The second 4 MiB show the first again.
    guest.write(0x2004, &0x83u32.to_le_bytes());
    guest.write(0, &0xfeed_face_u32.to_le_bytes());
    let mut sregs = guest.vcpu.sregs();
    (sregs.cr0, sregs.cr3, sregs.cr4) = (0x8000_0011, 0x2000, 0x10);
    guest.vcpu.set_sregs(&sregs).expect("32-bit paging");
    assert_eq!(guest.finish().rax, 0xfeed_face);

    let mut guest = Guest::protected(code);
    guest.write(0x2000, &0x3001u64.to_le_bytes());
    guest.write(0x3000, &0x83u64.to_le_bytes());
    guest.write(0x3010, &0x4003u64.to_le_bytes());
    guest.write(0x4000, &0x5003u64.to_le_bytes());
    guest.write(0x5000, &0xfeed_face_u32.to_le_bytes());
    (sregs.cr3, sregs.cr4) = (0x2000, 0x20);
    guest.vcpu.set_sregs(&sregs).expect("PAE");
    assert_eq!(guest.finish().rax, 0xfeed_face);
}

#[test]
fn a_single_step_ends_after_each_instruction_but_the_one_that_loads_ss() {
    let code = guest!(steps, ".code32" "mov ax, 0x18" "nop" "out 0x80, al" "nop" "hlt");
    let mut guest = Guest::protected(code);
    guest.vcpu.set_single_step(true);
    let mut pcs = Vec::new();
    loop {
        match guest.run() {
            Exit::Debug { pc, .. } => pcs.push(pc - START),
            Exit::IoOut { port: 0x80, .. } => pcs.push(0x80),
            exit => {
                assert_eq!(exit, Exit::Hlt);
                break;
            }
        }
    }
    assert_eq!(pcs, [4, 5, 0x80, 7, 8]);
}

#[test]
fn immediate_exit_completes_an_input_and_goes_no_further() {
    let code = guest!(input, ".code32" "in al, 0x60" "nop" "hlt");
    let mut guest = Guest::protected(code);
    assert_eq!(guest.run(), Exit::IoIn { port: 0x60, size: 1, count: 1 });
    guest.vcpu.data_mut(1)[0] = 0x42;
    assert_eq!(guest.vcpu.run(true), Err(vmexit_soft::Errno::EINTR));
    assert_eq!((guest.vcpu.regs().rax, guest.vcpu.regs().rip), (0x42, START + 2));
}

#[test]
fn an_interrupt_waits_for_the_instruction_after_sti() {
    let code = guest!(sti,
        ".code16"
        "jmp 2f"
        "1: hlt"
        "2: mov word ptr [8 * 4], 0x1002" // behind the jump
        "mov word ptr [8 * 4 + 2], 0"
        "sti"
        "mov bx, 1"
        "mov bx, 2"
    );
    let mut guest = Guest::real(code);
    let interrupt = Events { interrupt: Some(Interrupt { vector: 8, soft: false }), ..Events::default() };
    guest.vcpu.set_events(&interrupt).expect("an interrupt");
    assert_eq!(guest.run(), Exit::FailEntry { reason: 0x8000_0021 }, "as VMX: the guest cannot take it");
    guest.vcpu.set_events(&Events::default()).expect("none");
    guest.vcpu.want_interrupt_window(true);
    assert_eq!(guest.run(), Exit::IrqWindowOpen);
    assert!(guest.vcpu.ready_for_interrupt_injection());
    assert_eq!(guest.vcpu.regs().rbx & 0xffff, 1);
    guest.vcpu.want_interrupt_window(false);
    guest.vcpu.set_events(&interrupt).expect("an interrupt");
    assert_eq!(guest.finish().rbx & 0xffff, 1);
}

#[test]
fn a_second_non_maskable_interrupt_waits_for_the_iret_of_the_first() {
    let code = guest!(nmi,
        ".code16"
        "jmp 2f"
        "1: inc bx" // at 0x1002
        "mov cx, bx"
        "iret"
        "2: mov word ptr [2 * 4], 0x1002"
        "mov word ptr [2 * 4 + 2], 0"
        "out 0x10, al"
        "hlt"
    );
    let mut guest = Guest::real(code);
    assert_eq!(guest.run(), Exit::IoOut { port: 0x10, size: 1, count: 1 });
    for _ in 0..3 {
        guest.vcpu.nmi();
    }
    assert_eq!(guest.vcpu.events().nmi_pending, 2, "one to be served, one that waits");
    assert_eq!(guest.finish().rbx & 0xffff, 2);
    assert!(!guest.vcpu.events().nmi_masked);
}

#[test]
fn an_injected_exception_pushes_its_error_code_and_returns_where_rip_was() {
    let code = guest!(injected,
        ".code64"
        "lidt [rip + 5f]"
        "out 0x10, al"
        "3: mov ebx, 1"
        "hlt"
        "1: pop rax" // #GP: the error code
        "mov rcx, [rsp]"
        "hlt"
        "5: .word 0xfff; .long 0x3000; .long 0"
        "6: .quad 1b - injected_start + 0x1000; .quad 3b - injected_start + 0x1000"
    );
    let mut guest = Guest::long(code);
    let table = code.len() - 16;
    let address = |at: usize| u64::from_le_bytes(code[at..at + 8].try_into().expect("eight bytes"));
    let (handler, next) = (address(table), address(table + 8));
    guest.write(0x3000 + 13 * 16, &gate_64(handler, 8));
    flat_gdt(&mut guest);
    assert_eq!(guest.run(), Exit::IoOut { port: 0x10, size: 1, count: 1 });
    let events =
        Events { exception: Some(Exception { vector: 13, error_code: Some(0x18) }), ..Events::default() };
    guest.vcpu.set_events(&events).expect("a good exception");
    let regs = guest.finish();
    assert_eq!((regs.rax, regs.rcx, regs.rbx), (0x18, next, 0));
    assert_eq!(guest.vcpu.events(), Events::default());
    let nmi = Events { exception: Some(Exception { vector: 2, error_code: None }), ..Events::default() };
    assert!(guest.vcpu.set_events(&nmi).is_err());
}

/// A 64-bit interrupt gate.
fn gate_64(offset: u64, selector: u16) -> [u8; 16] {
    let low = offset & 0xffff | u64::from(selector) << 16 | 0x8e00 << 32 | (offset >> 16 & 0xffff) << 48;
    let mut gate = [0; 16];
    gate[..8].copy_from_slice(&low.to_le_bytes());
    gate[8..].copy_from_slice(&(offset >> 32).to_le_bytes());
    gate
}

/// Ring 0's flat 64-bit code and data at 8 and 16, in a table at 0x2800.
fn flat_gdt(guest: &mut Guest) {
    guest.write(0x2808, &0x00af_9b00_0000_ffffu64.to_le_bytes());
    guest.write(0x2810, &0x00cf_9300_0000_ffffu64.to_le_bytes());
    let mut sregs = guest.vcpu.sregs();
    (sregs.gdt.base, sregs.gdt.limit) = (0x2800, 0x17);
    guest.vcpu.set_sregs(&sregs).expect("long mode");
}

#[test]
fn what_the_machine_lacks_is_said_in_words() {
    let mut guest = Guest::protected(guest!(missing, ".code32" "nop" "fsin" "hlt"));
    assert_eq!(guest.run(), Exit::InternalError { suberror: 1 });
    assert_eq!(guest.vcpu.missing(), Some("the software machine does not implement `fsin`"));
    assert_eq!(guest.vcpu.regs().rip, START + 1);
    let mut guest = Guest::protected(guest!(nowhere, ".code32" "mov eax, 0x800000; jmp eax"));
    assert_eq!(guest.run(), Exit::InternalError { suberror: 1 });
    assert_eq!(guest.vcpu.missing(), None, "KVM cannot execute there either");
}

#[test]
fn an_opcode_of_no_cpu_is_ud_after_its_bytes_could_be_fetched_and_before_it_may_be_too_long() {
    // 0f 0b at the end of CS: #UD; 0f alone there: #GP, because the second byte cannot be fetched; and 15
    // prefixes before it: #GP.
    let vector_of = |code: &[u8], limit: u32| {
        let mut guest = Guest::protected(code);
        let mut sregs = guest.vcpu.sregs();
        (sregs.cs.limit, sregs.cs.g) = (START as u32 + limit, 0);
        (sregs.idt.base, sregs.idt.limit) = (0x3000, 0x7f);
        (sregs.gdt.base, sregs.gdt.limit) = (0x2800, 0x17);
        guest.write(0x2808, &0x00cf_9b00_0000_ffffu64.to_le_bytes());
        guest.write(0x2810, &0x00cf_9300_0000_ffffu64.to_le_bytes());
        for vector in 0..16u64 {
            // Its handler is a `hlt` at 0x4000 and as many bytes further.
            let gate = (0x4000 + vector) | 8 << 16 | 0x8e00 << 32;
            guest.write(0x3000 + vector * 8, &gate.to_le_bytes());
            guest.write(0x4000 + vector, &[0xf4]);
        }
        guest.vcpu.set_sregs(&sregs).expect("protected mode");
        guest.finish().rip - 0x4001
    };
    assert_eq!(vector_of(&[0x0f, 0x0b], 1), 6);
    assert_eq!(vector_of(&[0x0f, 0xff, 0xc0], 0x100), 6);
    assert_eq!(vector_of(&[0x0f, 0x0b], 0), 13);
    let mut long = vec![0x66; 14];
    long.extend([0x0f, 0x0b]);
    assert_eq!(vector_of(&long, 0x100), 13);
    // lock nop; lock add eax, ecx; lock cmp [eax], ecx; lock mov [eax], ecx; lea eax, ecx
    for code in
        [&[0xf0, 0x90][..], &[0xf0, 0x01, 0xc8], &[0xf0, 0x39, 0x08], &[0xf0, 0x89, 0x08], &[0x8d, 0xc1]]
    {
        assert_eq!(vector_of(code, 0x100), 6, "{code:x?}");
    }
}

#[test]
fn in_32_bit_code_a_call_gate_copies_its_parameters_and_the_io_bitmap_says_which_ports() {
    let code = guest!(gates,
        ".code32"
        "jmp 2f"
        // At 0x1002, behind the call gate: ring 0, with two parameters on its stack.
        "1: mov eax, [esp + 8]; mov ebx, [esp + 12]; mov ecx, [esp + 16]; mov edx, cs; retf 8"
        // At #GP's handler: how often, and the last error code; past the instruction of two bytes.
        "3: pop edi; inc esi; add dword ptr [esp], 2; iretd"
        "4: hlt"
        "2: mov eax, 0x60; mov ss:[0x5066], ax" // the bitmap lies right behind the TSS's 0x68 bytes
        "mov word ptr [0x5066], 0x68"
        "mov dword ptr [0x5004], 0x7000; mov dword ptr [0x5008], 0x10"
        // Port 3 is free, port 4 is not, and nothing behind the 16th.
        "mov word ptr [0x5068], 0xfff7; mov byte ptr [0x506a], 0xff"
        "lgdt [0x4f00]; lidt [0x4f08]"
        "mov ax, 0x28; ltr ax"
        "push 0x23; push 0x6000; push 0x2; push 0x1b; push 0x3000; iretd"
    );
    // Ring 3, at 0x3000.
    let user = guest!(gates_user,
        ".code32"
        "mov ax, 0x23; mov ds, ax; mov es, ax"
        "push 22; push 11"
        ".byte 0x9a; .long 0; .word 0x33" // call 0x33:0
        "mov ebp, esp"
        "out 3, al"
        "out 4, al"
        "int 0x40"
    );
    let mut guest = Guest::protected(code);
    guest.write(0x3000, user);
    let position =
        |bytes: &[u8]| code.windows(bytes.len()).position(|found| found == bytes).expect("it is there");
    let handler = START + position(&[0x5f, 0x46]) as u64;
    let end = handler + 7;
    let gdt: [u64; 7] = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x0000_8900_5000_006a,
        // A 32-bit call gate to 8:0x1002 with two parameters, for ring 3.
        0x0000_ec02_0008_1002,
    ];
    for (number, entry) in gdt.iter().enumerate() {
        guest.write(0x4000 + 8 * number as u64, &entry.to_le_bytes());
    }
    let gate = |offset: u64, kind: u64| offset & 0xffff | 8 << 16 | kind << 40;
    guest.write(0x4800 + 13 * 8, &gate(handler, 0x8e).to_le_bytes());
    guest.write(0x4800 + 0x40 * 8, &gate(end, 0xee).to_le_bytes());
    guest.write(0x4f00, &[55, 0, 0, 0x40, 0, 0]);
    guest.write(0x4f08, &[0xff, 3, 0, 0x48, 0, 0]);
    assert_eq!(guest.run(), Exit::IoOut { port: 3, size: 1, count: 1 });
    let regs = guest.finish();
    assert_eq!((regs.rax, regs.rbx), (11, 22), "the parameters");
    assert_eq!(regs.rcx, 0x6000 - 8, "and behind them the caller's ESP");
    assert_eq!(regs.rdx, 8, "in ring 0");
    assert_eq!(regs.rbp, 0x6000, "RETF 8 took them off the caller's stack");
    assert_eq!((regs.rsi, regs.rdi), (1, 0), "port 4 is #GP(0)");
}

#[test]
fn a_selector_that_cannot_be_loaded_is_the_error_code() {
    let code = guest!(selectors,
        ".code32"
        "lgdt [0x4f00]; lidt [0x4f08]"
        "jmp 1f"
        "9: hlt"
        "1: mov ds, ax"
    );
    let cases: [(u64, u64, u8, &str); 4] = [
        (0x08, 0, 13, "a null descriptor is no segment: #GP"),
        (0x10, 0x00cf_7300_0000_ffff, 11, "not present: #NP"),
        (0x18, 0x00cf_9900_0000_ffff, 13, "code that cannot be read: #GP"),
        (0x40, 0, 13, "past the GDT's limit: #GP"),
    ];
    for (selector, descriptor, vector, why) in cases {
        let mut guest = Guest::protected(code);
        guest.write(0x4000 + selector, &descriptor.to_le_bytes());
        guest.write(0x4038, &0x00cf_9b00_0000_ffffu64.to_le_bytes());
        guest.write(0x4f00, &[0x3f, 0, 0, 0x40, 0, 0]);
        guest.write(0x4f08, &[0xff, 3, 0, 0x48, 0, 0]);
        let halt = code.iter().position(|byte| *byte == 0xf4).expect("hlt") as u64 + START;
        let gate = halt | 0x38 << 16 | 0x8e << 40;
        guest.write(0x4800 + u64::from(vector) * 8, &gate.to_le_bytes());
        let mut regs = guest.vcpu.regs();
        regs.rax = selector | 3;
        guest.vcpu.set_regs(&regs);
        let regs = guest.finish();
        assert_eq!(guest.read(regs.rsp) as u32, selector as u32, "{why}: without the RPL");
    }
}

#[test]
fn the_limit_of_a_segment_holds_in_real_mode_too_and_beyond_it_when_it_was_raised() {
    let code = guest!(unreal, ".code16" "mov ebx, 0x20000" "mov al, [ebx]" "hlt");
    let mut guest = Guest::real(code);
    // #GP, and vector 13 of the table is 0: it ends in memory full of zeros, at 0:0.
    guest.write(13 * 4, &[0x00, 0x20, 0, 0]);
    guest.write(0x2000, &[0xb1, 0x77, 0xf4]); // mov cl, 0x77; hlt
    assert_eq!(guest.finish().rcx & 0xff, 0x77);
    let mut guest = Guest::real(code);
    let mut sregs = guest.vcpu.sregs();
    (sregs.ds.limit, sregs.ds.g) = (u32::MAX, 1);
    guest.vcpu.set_sregs(&sregs).expect("real mode");
    guest.write(0x2_0000, &[0x55]);
    assert_eq!(guest.finish().rax & 0xff, 0x55);
}

#[test]
fn a_run_comes_back_from_a_guest_that_never_ends() {
    let spins = guest!(spins, ".code16" "1: jmp 1b");
    let repeats = guest!(repeats, ".code16" "1: mov cx, -1" "rep lodsb" "jmp 1b");
    let faults = guest!(forever, ".code16" "ud2");
    for code in [spins, repeats, faults] {
        let mut guest = Guest::real(code);
        // #UD goes to where it came from.
        guest.write(6 * 4, &(START as u32).to_le_bytes());
        assert_eq!(guest.vcpu.run(false), Ok(Exit::Budget));
    }
}

#[test]
fn a_run_comes_back_from_the_middle_of_a_repetition_that_is_as_long_as_there_are() {
    let code = guest!(endless_repetition, ".code32" "mov ecx, -1" "2: rep lodsb" "hlt");
    let mut guest = Guest::protected(code);
    // Every 4 MiB are the first 4 MiB.
    (0..1024).for_each(|entry| guest.write(0x10_0000 + entry * 4, &0x83u32.to_le_bytes()));
    let sregs = Sregs { cr0: 0x8000_0011, cr3: 0x10_0000, cr4: 0x10, ..guest.vcpu.sregs() };
    guest.vcpu.set_sregs(&sregs).expect("32-bit paging");
    let mut left = u64::from(u32::MAX);
    for _ in 0..3 {
        assert_eq!(guest.vcpu.run(false), Ok(Exit::Budget));
        let regs = guest.vcpu.regs();
        assert_eq!(regs.rip, START + 5, "at the instruction");
        assert!(regs.rcx < left && regs.rsi + regs.rcx == u64::from(u32::MAX), "{regs:x?}");
        left = regs.rcx;
    }
}

#[test]
fn a_page_table_may_be_its_own_next_level_and_one_in_a_hole_maps_nothing() {
    let code = guest!(own_level,
        ".code64"
        "mov rax, [0]" // the table itself
        "mov qword ptr [0x10], 0x6007" // its entry 2
        "mov rbx, [0x2000]"
        "out 0x10, al"
        "mov eax, 0x80000000; mov cr3, rax"
        "hlt"
    );
    let mut guest = Guest::long(code);
    guest.write(0x10_8000, &0x10_8007u64.to_le_bytes());
    guest.write(0x10_8008, &0x1007u64.to_le_bytes());
    guest.write(0x6000, &0x1234u64.to_le_bytes());
    let sregs = Sregs { cr3: 0x10_8000, ..guest.vcpu.sregs() };
    guest.vcpu.set_sregs(&sregs).expect("long mode");
    assert_eq!(guest.run(), Exit::IoOut { port: 0x10, size: 1, count: 1 });
    let regs = guest.vcpu.regs();
    assert_eq!((regs.rax, regs.rbx), (0x10_8027, 0x1234), "accessed, and written through itself");
    assert_eq!(guest.run(), Exit::Shutdown, "not even a handler can be found");
}

#[test]
fn in_real_mode_the_stack_wraps_at_64_kib_and_a_word_across_the_end_is_a_stack_fault() {
    let wraps = guest!(stack_wraps, ".code16" "xor sp, sp" "mov ax, 0x1234" "push ax" "hlt");
    let mut guest = Guest::real(wraps);
    assert_eq!(guest.finish().rsp, 0xfffe);
    assert_eq!(guest.read(0xfffe) & 0xffff, 0x1234);
    // #SS finds room below for its frame, and its handler halts.
    let pops = guest!(stack_pops, ".code16" "mov word ptr [12 * 4], 0x4000" "mov sp, 0xffff" "pop ax");
    let mut guest = Guest::real(pops);
    guest.write(0x4000, &[0xf4]);
    assert_eq!(guest.finish().rip, 0x4001);
    // Here its frame has no more room than the push.
    let mut guest = Guest::real(guest!(stack_full, ".code16" "mov sp, 1" "push ax"));
    assert_eq!(guest.run(), Exit::Shutdown);
}

#[test]
fn an_exception_whose_table_is_no_memory_stays_to_be_delivered() {
    let mut guest = Guest::long(guest!(no_table, ".code64" "ud2"));
    let mut sregs = guest.vcpu.sregs();
    (sregs.idt.base, sregs.idt.limit) = (0x1f_f000, 0xfff);
    guest.vcpu.set_sregs(&sregs).expect("long mode");
    // The page of the table leads to where no memory is.
    guest.write(0x10_3000 + 0x1ff * 8, &0x8000_0007u64.to_le_bytes());
    assert_eq!(guest.run(), Exit::InternalError { suberror: 3 });
    let ud = Exception { vector: 6, error_code: None };
    assert_eq!(guest.vcpu.events().exception, Some(ud));
    assert_eq!(guest.vcpu.regs().rip, START);
}

#[test]
fn the_trap_flag_traps_after_the_next_instruction() {
    let code = guest!(trap,
        ".code16"
        "jmp 2f"
        "1: mov bp, sp; mov bx, [bp]; mov cx, [bp + 4]; hlt"
        "2: mov word ptr [1 * 4], 0x1002" // behind the jump
        "mov word ptr [1 * 4 + 2], 0"
        "pushf; or word ptr [bp + 0x7ffe], 0x100; popf"
        "nop"
        "nop"
    );
    let regs = Guest::real(code).finish();
    assert_eq!(regs.rbx & 0xffff, START + code.len() as u64 - 1, "at the second nop");
    assert_eq!(regs.rcx & 0x100, 0x100, "the pushed flags have TF");
    assert_eq!(regs.rflags & 0x100, 0, "and the handler runs without it");
}

#[test]
fn string_input_into_a_hole_is_written_eight_bytes_at_a_time() {
    let code =
        guest!(hole_input, ".code32" "mov edi, 0x80000003" "mov ecx, 5" "mov edx, 0x60" "rep insw" "hlt");
    let mut guest = Guest::protected(code);
    assert_eq!(guest.run(), Exit::IoIn { port: 0x60, size: 2, count: 5 });
    guest.vcpu.data_mut(10).copy_from_slice(b"0123456789");
    assert_eq!(guest.run(), Exit::MmioWrite { address: 0x8000_0003, size: 8 });
    assert_eq!(guest.vcpu.data(8), b"01234567");
    assert_eq!(guest.run(), Exit::MmioWrite { address: 0x8000_000b, size: 2 });
    assert_eq!(guest.vcpu.data(2), b"89");
    let regs = guest.finish();
    assert_eq!((regs.rcx, regs.rdi), (0, 0x8000_000d));
}

#[test]
fn a_breakpoint_stops_before_its_instruction_until_it_is_taken_away() {
    let code = guest!(breakpoint, ".code32" "mov eax, 1" "inc eax" "inc eax" "hlt");
    let mut guest = Guest::protected(code);
    let registers = [0, START + 6, 0, 0, 0, 0, 0, 1 << 2];
    guest.vcpu.set_breakpoints(Some(registers));
    for _ in 0..2 {
        let hit = Exit::Debug { exception: 1, pc: START + 6, dr6: 0xffff_0ff2, dr7: 4 };
        assert_eq!(guest.run(), hit);
        assert_eq!(guest.vcpu.regs().rax, 2);
    }
    let resumed = Regs { rflags: 2 | 1 << 16, ..guest.vcpu.regs() };
    guest.vcpu.set_regs(&resumed);
    assert_eq!(guest.finish().rax, 3, "RF lets it pass");
    guest.vcpu.set_regs(&Regs { rip: START, ..resumed });
    guest.vcpu.set_breakpoints(None);
    assert_eq!(guest.finish().rax, 3);
}

#[test]
fn a_watchpoint_stops_behind_the_instruction_that_touches_its_bytes() {
    let code = guest!(watchpoint,
        ".code32"
        "mov eax, [0x5000]"
        "mov [0x5003], al" // not yet: the four bytes from 0x5004
        "mov [0x5002], eax"
        "mov ecx, 4; mov edi, 0x5000"
        "rep stosb"
        "lock inc dword ptr [0x5007]"
        "mov edx, [0x5004]"
        "hlt"
    );
    let mut guest = Guest::protected(code);
    // DR2: four bytes, written.
    let dr7 = 1 << 4 | 1 << 24 | 3 << 26;
    guest.vcpu.set_breakpoints(Some([0, 0, 0x5004, 0, 0, 0, 0, dr7]));
    let hit = |pc| Exit::Debug { exception: 1, pc, dr6: 0xffff_0ff4, dr7 };
    assert_eq!(guest.run(), hit(START + 15), "behind the third");
    assert_eq!(guest.run(), hit(START + 34), "behind the INC; STOSB ends before it");
    // DR2: the same, read or written.
    let dr7 = dr7 | 2 << 24;
    guest.vcpu.set_breakpoints(Some([0, 0, 0x5004, 0, 0, 0, 0, dr7]));
    assert_eq!(guest.run(), Exit::Debug { exception: 1, pc: START + 40, dr6: 0xffff_0ff4, dr7 });
    assert_eq!(guest.run(), Exit::Hlt);
}

#[test]
fn the_guest_s_own_debug_registers_work_and_dr6_says_why() {
    let code = guest!(debug_registers,
        ".code64"
        "lidt [rip + 90f]"
        "mov rax, cr4; or rax, 8; mov cr4, rax" // DE: breakpoints on ports
        "lea rax, [rip + 3f]; mov dr0, rax"
        "mov eax, 0x5008; mov dr1, rax"
        "mov eax, 0x60; mov dr2, rax"
        // L0: an instruction; L1: 8 bytes written; L2: a port of 2 bytes.
        "mov eax, 1 | 4 | 16 | 1 << 20 | 2 << 22 | 2 << 24 | 1 << 26; mov dr7, rax"
        "mov edi, 0x6000"
        "3: nop"
        "4: mov [0x500c], ebx"
        "5: in al, 0x61"
        "6: pushfq; or qword ptr [rsp], 0x100; popfq"
        "7: nop"
        "8: pushfq; and qword ptr [rsp], 0xfffffffffffffeff; popfq"
        "9: mov eax, 1 << 13; mov dr7, rax"
        "10: mov rcx, dr3"
        "mov rcx, dr7"
        "hlt"
        // #DB: notes DR6 and where it returns to, at RDI.
        ".balign 16"
        "1: push rax"
        "mov rax, dr6; mov [rdi], eax"
        "mov rax, [rsp + 8]; mov [rdi + 4], eax"
        "add rdi, 8"
        "xor eax, eax; mov dr6, rax"
        "pop rax"
        "iretq"
        "90: .word 0xfff; .long 0x3000; .long 0"
        ".quad 3b - debug_registers_start + 0x1000"
        ".quad 5b - debug_registers_start + 0x1000"
        ".quad 6b - debug_registers_start + 0x1000"
        ".quad 7b - debug_registers_start + 0x1000"
        ".quad 8b - debug_registers_start + 0x1000"
        ".quad 9b - debug_registers_start + 0x1000"
        ".quad 10b - debug_registers_start + 0x1000"
        ".quad 1b - debug_registers_start + 0x1000"
    );
    let mut guest = Guest::long(code);
    let words: Vec<u64> =
        code[code.len() - 64..].chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    let [at3, at5, at6, at7, at8, at9, at10, handler] = words[..] else { panic!("eight words") };
    flat_gdt(&mut guest);
    guest.write(0x3000 + 16, &gate_64(handler, 8));
    assert_eq!(guest.run(), Exit::IoIn { port: 0x61, size: 1, count: 1 });
    guest.vcpu.data_mut(1)[0] = 0;
    let regs = guest.finish();
    let mut noted = (0x6000..regs.rdi).step_by(8).map(|at| guest.read(at));
    let mut expect = |dr6: u64, rip: u64| {
        let found = noted.next().expect("one more");
        assert_eq!((found & 0xffff_ffff, found >> 32), (dr6, rip));
    };
    expect(0xffff_0ff1, at3); // the instruction, before it: and once
    expect(0xffff_0ff2, at5); // the write to 0x500c, in the eight bytes at 0x5008
    expect(0xffff_0ff4, at6); // port 0x61
    // TF traps after the instruction that follows POPF, up to the POPF that clears it.
    expect(0xffff_4ff0, at8);
    for _ in 0..2 {
        let step = noted.next().expect("PUSHFQ and AND");
        assert!(step & 0xffff_ffff == 0xffff_4ff0 && (at8..at9).contains(&(step >> 32)));
    }
    let last = noted.next().expect("POPFQ");
    assert_eq!((last & 0xffff_ffff, last >> 32), (0xffff_4ff0, at9));
    let touched = noted.next().expect("general detect");
    assert_eq!((touched & 0xffff_ffff, touched >> 32), (0xffff_2ff0, at10));
    assert_eq!(noted.next(), None);
    assert_eq!(regs.rcx, 0x400, "the exception has cleared GD");
    assert!(at7 < at8);
}

#[test]
fn the_hypervisor_sees_int3_where_it_asks_and_may_hand_it_on() {
    let code = guest!(int3,
        ".code64"
        "lidt [rip + 90f]"
        "3: int3"
        "hlt"
        "1: mov rbx, [rsp]"
        "iretq"
        "90: .word 0xfff; .long 0x3000; .long 0"
        ".quad 3b - int3_start + 0x1000; .quad 1b - int3_start + 0x1000"
    );
    let mut guest = Guest::long(code);
    let word = |at: usize| u64::from_le_bytes(code[at..at + 8].try_into().expect("eight"));
    let (breakpoint, handler) = (word(code.len() - 16), word(code.len() - 8));
    flat_gdt(&mut guest);
    guest.write(0x3000 + 3 * 16, &gate_64(handler, 8));
    guest.vcpu.show_int3(true);
    for _ in 0..2 {
        let exit = guest.run();
        assert!(matches!(exit, Exit::Debug { exception: 3, pc, .. } if pc == breakpoint), "{exit:x?}");
    }
    guest.vcpu.inject_debug_exception(3).expect("nothing waits");
    assert_eq!(guest.finish().rbx, breakpoint + 1);
}

#[test]
fn an_unmasked_exception_of_sse_leaves_the_destination_and_is_xm_or_ud() {
    let code = guest!(unmasked,
        ".code64"
        "lidt [rip + 90f]"
        "mov eax, 0x220; mov cr4, rax" // PAE, OSFXSR
        "push 0x1d80; ldmxcsr [rsp]; pop rax" // all masked but the division by zero
        "mov eax, 7; cvtsi2sd xmm0, eax"
        "xorps xmm1, xmm1"
        "3: divsd xmm0, xmm1"
        "mov rax, cr4; or rax, 0x400; mov cr4, rax" // OSXMMEXCPT
        "mov eax, 3; cvtsi2sd xmm2, eax"
        "divsd xmm2, xmm1"
        "cvttsd2si eax, xmm0; cvttsd2si ecx, xmm2"
        "push 0; stmxcsr [rsp]; pop rdx"
        "hlt"
        // #UD and #XM: count, and go past the four bytes.
        "6: inc ebx; add qword ptr [rsp], 4; iretq"
        "19: inc esi; add qword ptr [rsp], 4; iretq"
        "90: .word 0xfff; .long 0x3000; .long 0"
        ".quad 6b - unmasked_start + 0x1000; .quad 19b - unmasked_start + 0x1000"
    );
    let mut guest = Guest::long(code);
    let word = |at: usize| u64::from_le_bytes(code[at..at + 8].try_into().expect("eight"));
    flat_gdt(&mut guest);
    guest.write(0x3000 + 6 * 16, &gate_64(word(code.len() - 16), 8));
    guest.write(0x3000 + 19 * 16, &gate_64(word(code.len() - 8), 8));
    let regs = guest.finish();
    assert_eq!((regs.rbx, regs.rsi), (1, 1), "one #UD, one #XM");
    assert_eq!((regs.rax, regs.rcx), (7, 3), "as before the divisions");
    assert_eq!(regs.rdx, 0x1d84, "ZE");
}

#[test]
fn x87_can_be_set_up_and_saved_and_no_more() {
    let code = guest!(x87,
        ".code64"
        "mov eax, 0x220; mov cr4, rax"
        "fninit; mov ax, -1; fnstsw ax"
        "push 0x27f; fldcw [rsp]; mov edi, 0x6000; fxsave [rdi]"
        "push 0; fnstcw [rsp]; pop rbx"
        "fninit; fxrstor [rdi]; push 0; fnstcw [rsp]; pop rcx"
        "fwait"
        "fld1"
        "hlt"
    );
    let mut guest = Guest::long(code);
    assert_eq!(guest.run(), Exit::InternalError { suberror: 1 });
    assert_eq!(guest.vcpu.missing(), Some("the software machine does not implement `fld1`"));
    let regs = guest.vcpu.regs();
    assert_eq!((regs.rax & 0xffff, regs.rbx, regs.rcx), (0, 0x27f, 0x27f));
    assert_eq!(guest.read(0x6000), 0x27f);
    assert_eq!(guest.read(0x6018) & 0xffff_ffff, 0x1f80);
}

#[test]
fn an_instruction_of_more_than_15_bytes_is_a_general_protection_fault() {
    let code = guest!(too_long, ".code32" "lidt [0x4f08]" ".fill 15, 1, 0x66" "nop" "hlt");
    let mut guest = Guest::protected(code);
    guest.write(0x4f08, &[0xff, 3, 0, 0x48, 0, 0]);
    let mut sregs = guest.vcpu.sregs();
    (sregs.gdt.base, sregs.gdt.limit) = (0x4000, 15);
    guest.vcpu.set_sregs(&sregs).expect("a GDT");
    guest.write(0x4008, &0x00cf_9b00_0000_ffff_u64.to_le_bytes());
    // Vector 13 halts.
    let halt = START + code.len() as u64 - 1;
    guest.write(0x4800 + 13 * 8, &(halt | 8 << 16 | 0x8e << 40).to_le_bytes());
    let regs = guest.finish();
    assert_eq!(guest.read(regs.rsp) as u32, 0);
    assert_eq!((guest.read(regs.rsp) >> 32) as u32, START as u32 + 7);
}
