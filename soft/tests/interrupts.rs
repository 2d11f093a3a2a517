//! Guests that are interrupted by the machine's own controllers and timers.
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code)]

#[macro_use]
mod machine;

use machine::Guest;
use vmexit_soft::{Errno, Exit, Machine};

const TOLD: Exit = Exit::IoOut { port: 0x10, size: 1, count: 1 };

/// Counts the ticks of the 8254 at 1 kHz, and halts in between; after ten it tells how many.
fn ticking() -> Guest {
    Guest::with_chipset(guest!(
        ticks,
        ".code16"
        "jmp 1f"
        // The handler, at 0x1002.
        "inc cx; mov al, 0x20; out 0x20, al; iret"
        "1: mov al, 0x11; out 0x20, al"
        "mov al, 0x20; out 0x21, al" // vectors 0x20 to 0x27
        "mov al, 4; out 0x21, al"
        "mov al, 1; out 0x21, al"
        "mov al, 0xfe; out 0x21, al" // line 0 alone
        "mov word ptr [0x20 * 4], 0x1002"
        "mov al, 0x34; out 0x43, al" // counter 0, mode 2
        "mov al, 0xa9; out 0x40, al"
        "mov al, 0x04; out 0x40, al" // 1193 counts: a kilohertz
        "xor cx, cx"
        "2: sti; hlt"
        "cmp cx, 10; jb 2b"
        "cli"
        "mov al, cl; out 0x10, al"
        "hlt"
    ))
}

#[test]
fn ticks_of_the_8254_wake_a_hlt_and_nobody_outside_sees_it() {
    let mut guest = ticking();
    assert_eq!(guest.run(), TOLD);
    assert_eq!(guest.vcpu.data(1), [10]);
    assert!(guest.vcpu.instructions() < 200, "the time in hlt is no instructions");
    let time = guest.vcpu.msr(0x10).expect("the time stamp counter");
    assert!((9_990_000..10_010_000).contains(&time), "ten milliseconds: {time} ns");
    assert_eq!(
        guest.vcpu.run(false),
        Ok(Exit::Budget),
        "the last hlt has interrupts off, and waits for ever"
    );
}

#[test]
fn two_runs_are_interrupted_at_the_same_instructions() {
    let run = || {
        let mut guest = ticking();
        guest.run();
        (guest.vcpu.instructions(), guest.vcpu.msr(0x10))
    };
    assert_eq!(run(), run());
}

#[test]
fn a_line_from_outside_wakes_a_hlt_that_no_timer_would() {
    let mut guest = Guest::with_chipset(guest!(
        line,
        ".code16"
        "jmp 1f"
        "mov al, 0x77; iret" // the handler, at 0x1002
        "1: mov al, 0x11; out 0x20, al"
        "mov al, 0x20; out 0x21, al"
        "mov al, 4; out 0x21, al"
        "mov al, 1; out 0x21, al"
        "mov al, 0xef; out 0x21, al" // line 4 alone
        "mov word ptr [0x24 * 4], 0x1002"
        "sti; hlt"
        "out 0x10, al"
        "hlt"
    ));
    assert_eq!(guest.run(), Exit::Idle);
    assert_eq!(guest.run(), Exit::Idle, "and it stays so");
    guest.machine.set_irq_line(4, true).expect("a line");
    assert_eq!(guest.run(), TOLD);
    assert_eq!(guest.vcpu.data(1), [0x77]);
}

#[test]
fn the_local_apics_timer_interrupts_at_its_own_vector_and_on_time() {
    let mut guest = Guest::with_chipset(guest!(
        local,
        ".code32"
        "jmp 1f"
        // The handler, at 0x1002.
        "inc ecx; mov dword ptr [eax + 0xb0], 0; iretd"
        "1: mov dword ptr [0x4000 + 0x40 * 8], 0x00081002"
        "mov dword ptr [0x4000 + 0x40 * 8 + 4], 0x00008e00"
        "mov eax, 0xfee00000"
        "mov dword ptr [eax + 0xf0], 0x1ff"
        "mov dword ptr [eax + 0x3e0], 0xb"     // by 1
        "mov dword ptr [eax + 0x320], 0x20040" // periodic, vector 0x40
        "mov dword ptr [eax + 0x380], 5000"
        "xor ecx, ecx"
        "sti"
        "2: cmp ecx, 3; jb 2b"
        "cli"
        "mov ebx, [eax + 0x30]"
        "mov eax, ecx; out 0x10, al"
        "hlt"
    ));
    guest.write(0x2808, &0x00cf_9b00_0000_ffffu64.to_le_bytes());
    let mut sregs = machine::flat(guest.vcpu.sregs());
    sregs.cr0 = 0x11;
    (sregs.gdt.base, sregs.gdt.limit) = (0x2800, 0x0f);
    (sregs.idt.base, sregs.idt.limit) = (0x4000, 0x7ff);
    guest.vcpu.set_sregs(&sregs).expect("protected mode");
    assert_eq!(guest.run(), TOLD);
    assert_eq!(guest.vcpu.data(1), [3]);
    assert_eq!(guest.vcpu.regs().rbx, 0x0005_0014, "the version");
    let instructions = guest.vcpu.instructions();
    assert!((15_000..15_100).contains(&instructions), "three periods and no more: {instructions}");
}

#[test]
fn with_interrupts_off_a_line_waits_until_they_are_on() {
    let mut guest = Guest::with_chipset(guest!(
        masked,
        ".code16"
        "jmp 1f"
        // The handler, at 0x1002.
        "inc bx; mov al, 0x20; out 0x20, al; iret"
        "1: mov al, 0x11; out 0x20, al"
        "mov al, 0x20; out 0x21, al"
        "mov al, 4; out 0x21, al"
        "mov al, 1; out 0x21, al"
        "mov al, 0xef; out 0x21, al"
        "mov word ptr [0x24 * 4], 0x1002"
        "xor bx, bx"
        "out 0x10, al" // the line is raised here
        "mov cx, 1000; 2: dec cx; jnz 2b"
        "mov al, bl; out 0x10, al"
        "sti; nop; nop"
        "mov al, bl; out 0x10, al"
    ));
    assert_eq!(guest.run(), TOLD);
    guest.machine.set_irq_line(4, true).expect("a line");
    assert_eq!((guest.run(), guest.vcpu.data(1)[0]), (TOLD, 0));
    assert_eq!((guest.run(), guest.vcpu.data(1)[0]), (TOLD, 1));
}

/// Intel SDM Vol. 3A, "Task Priority in IA-32e Mode".
#[test]
fn cr8_holds_back_an_interrupt_that_waits_already() {
    let mut guest = Guest::with_chipset(guest!(
        priority,
        ".code64"
        "jmp 1f"
        // The handler, at 0x1002.
        "inc ebx; iretq"
        "1: mov ecx, 0xfee00000"
        "mov dword ptr [rcx + 0xf0], 0x1ff"
        "mov byte ptr [rcx + 0x320], 0x41"   // one byte: KVM's local APIC ignores it
        "xor ebx, ebx"
        "mov dword ptr [rcx + 0x300], 0x40040" // vector 0x40, to itself
        "mov eax, 4; mov cr8, rax"
        "sti; nop; nop"
        "mov al, bl; out 0x10, al"
        "mov eax, 3; mov cr8, rax"
        "nop; nop"
        "mov al, bl; out 0x10, al"
        "mov eax, [rcx + 0x320]; out 0x10, al"
    ))
    .in_long_mode();
    // The local APIC's page, in a page of 2 MiB.
    guest.write(0x10_1000 + 3 * 8, &0x10_4007u64.to_le_bytes());
    guest.write(0x10_4000 + 0x1f7 * 8, &0xfee0_0087u64.to_le_bytes());
    guest.write(0x2808, &0x00af_9b00_0000_ffffu64.to_le_bytes());
    guest.write(0x2810, &0x00cf_9300_0000_ffffu64.to_le_bytes());
    guest.write(0x4000 + 0x40 * 16, &0x0000_8e00_0008_1002u64.to_le_bytes());
    let mut sregs = guest.vcpu.sregs();
    (sregs.gdt.base, sregs.gdt.limit) = (0x2800, 0x17);
    (sregs.idt.base, sregs.idt.limit) = (0x4000, 0xfff);
    guest.vcpu.set_sregs(&sregs).expect("tables");
    assert_eq!((guest.run(), guest.vcpu.data(1)[0]), (TOLD, 0));
    assert_eq!((guest.run(), guest.vcpu.data(1)[0]), (TOLD, 1));
    assert_eq!((guest.run(), guest.vcpu.data(1)[0]), (TOLD, 0), "the byte that was written is not there");
}

#[test]
fn controllers_come_before_cpus_and_once() {
    let machine = Machine::new();
    assert_eq!(machine.create_pit(), Err(Errno::ENOENT));
    assert_eq!(machine.set_irq_line(0, true), Err(Errno::ENXIO));
    assert_eq!(machine.create_irq_chip(), Ok(()));
    assert_eq!(machine.create_irq_chip(), Err(Errno::EEXIST));
    assert_eq!(machine.create_pit(), Ok(()));
    assert_eq!(machine.create_pit(), Err(Errno::EEXIST));
}
