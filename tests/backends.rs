//! What both backends answer to the same calls, good and bad. The host's device
//! is asked where there is one.

use vmexit::exit::{Exit, Unexpected};
use vmexit::guest::Memory;
use vmexit::kvm::{
    CpuId, EventFd, IoEventAddress, Kvm, Msrs, NoDatamatch, Probe, VcpuExit, VcpuFd, VmFd, kvm_guest_debug,
    kvm_msr_entry, kvm_regs, kvm_userspace_memory_region, kvm_vcpu_events,
};
use vmexit::mode::{efer, enter_long, enter_protected, enter_real};
use vmexit::segment::Descriptor;

const EEXIST: i32 = 17;
const EINVAL: i32 = 22;

/// The software machine, and the host's KVM where this user may open it.
fn backends() -> Vec<(&'static str, Kvm)> {
    let host = Kvm::new().ok().map(|kvm| ("kvm", kvm));
    std::iter::once(("soft", Kvm::soft())).chain(host).collect()
}

/// A CPU in real mode, in two pages of memory with `code` at 0x1000. Fields drop in this order.
struct Guest {
    vcpu: VcpuFd,
    vm: VmFd,
    memory: Memory,
}

impl Guest {
    fn real(kvm: &Kvm, code: &[u8]) -> Self {
        Self::on(kvm.create_vm().expect("a VM"), code)
    }

    fn on(vm: VmFd, code: &[u8]) -> Self {
        let memory = Memory::new(0x2000).expect("two pages");
        memory.write(0x1000, code).expect("inside");
        // SAFETY: `Guest` drops `memory` after the VM and its vCPU.
        unsafe { vm.set_user_memory_region(region(&memory, 0, 0)) }.expect("a good slot");
        let vcpu = vm.create_vcpu(0).expect("a CPU");
        let mut sregs = vcpu.get_sregs().expect("registers");
        enter_real(&mut sregs);
        vcpu.set_sregs(&sregs).expect("real mode");
        let regs = kvm_regs { rip: 0x1000, rsp: 0x1000, rflags: 2, ..kvm_regs::default() };
        vcpu.set_regs(&regs).expect("registers");
        Self { vcpu, vm, memory }
    }
}

/// Whether this process runs on QEMU's software CPU, as in the lab's AMD machine.
#[cfg(target_arch = "x86_64")]
fn on_qemu_s_cpu() -> bool {
    use std::arch::x86_64::__cpuid;
    #[allow(unused_unsafe)] // safe since Rust 1.92
    // SAFETY: every x86-64 CPU has CPUID.
    let (features, hypervisor) = unsafe { (__cpuid(1), __cpuid(0x4000_0000)) };
    features.ecx >> 31 != 0 && hypervisor.ebx == u32::from_le_bytes(*b"TCGT")
}

#[cfg(not(target_arch = "x86_64"))]
fn on_qemu_s_cpu() -> bool {
    false
}

fn region(memory: &Memory, slot: u32, guest_phys_addr: u64) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr,
        memory_size: memory.size() as u64,
        userspace_addr: memory.host_address(),
    }
}

#[test]
fn a_slot_that_overlaps_is_eexist_and_one_of_half_a_page_einval() {
    for (name, kvm) in backends() {
        let memory = Memory::new(0x4000).expect("four pages");
        let vm = kvm.create_vm().expect("a VM");
        let set = |region| {
            // SAFETY: `memory` is declared before `vm`, so it is unmapped after it is gone.
            unsafe { vm.set_user_memory_region(region) }.map_err(|error| error.errno())
        };
        assert_eq!(set(region(&memory, 0, 0)), Ok(()), "{name}");
        assert_eq!(set(region(&memory, 1, 0x3000)), Err(EEXIST), "{name}");
        let half = kvm_userspace_memory_region { memory_size: 0x800, ..region(&memory, 1, 0x8000) };
        assert_eq!(set(half), Err(EINVAL), "{name}");
        let odd = kvm_userspace_memory_region { guest_phys_addr: 0x8010, ..region(&memory, 1, 0) };
        assert_eq!(set(odd), Err(EINVAL), "{name}");
    }
}

#[test]
fn a_cpu_s_number_is_taken_once_and_it_starts_as_after_reset() {
    for (name, kvm) in backends() {
        let vm = kvm.create_vm().expect("a VM");
        let vcpu = vm.create_vcpu(0).expect("a CPU");
        assert_eq!(vm.create_vcpu(0).map(|_| ()).map_err(|error| error.errno()), Err(EEXIST), "{name}");
        let reset = kvm_regs { rip: 0xfff0, rflags: 2, rdx: 0x600, ..kvm_regs::default() };
        assert_eq!(vcpu.get_regs().expect("registers"), reset, "{name}");
        let sregs = vcpu.get_sregs().expect("registers");
        assert_eq!(
            (sregs.cs.selector, sregs.cs.base, sregs.cr0),
            (0xf000, 0xffff_0000, 0x6000_0010),
            "{name}"
        );
    }
}

#[test]
fn long_mode_without_lma_is_einval() {
    for (name, kvm) in backends() {
        let vm = kvm.create_vm().expect("a VM");
        let vcpu = vm.create_vcpu(0).expect("a CPU");
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(256).expect("CPUID")).expect("its own CPUID");
        let mut sregs = vcpu.get_sregs().expect("registers");
        enter_protected(&mut sregs, Descriptor::CODE_64);
        enter_long(&mut sregs, 0x1000);
        assert_eq!(vcpu.set_sregs(&sregs).map_err(|error| error.errno()), Ok(()), "{name}");
        sregs.efer &= !efer::LMA;
        assert_eq!(vcpu.set_sregs(&sregs).map_err(|error| error.errno()), Err(EINVAL), "{name}");
    }
}

#[test]
fn without_cpuid_the_guest_s_cpuid_answers_zeros_and_after_a_run_it_is_too_late_to_set_another() {
    // mov eax, 1; cpuid; hlt
    const CODE: [u8; 9] = [0x66, 0xb8, 0x01, 0x00, 0x00, 0x00, 0x0f, 0xa2, 0xf4];
    for (name, kvm) in backends() {
        let memory = Memory::new(0x2000).expect("two pages");
        memory.write(0x1000, &CODE).expect("inside");
        let vm = kvm.create_vm().expect("a VM");
        // SAFETY: `memory` is declared before `vm` and `vcpu`, so it is unmapped after both are gone.
        unsafe { vm.set_user_memory_region(region(&memory, 0, 0)) }.expect("a good slot");
        let mut vcpu = vm.create_vcpu(0).expect("a CPU");
        let mut sregs = vcpu.get_sregs().expect("registers");
        enter_real(&mut sregs);
        vcpu.set_sregs(&sregs).expect("real mode");
        let regs = kvm_regs { rip: 0x1000, rflags: 2, rbx: 7, ..kvm_regs::default() };
        vcpu.set_regs(&regs).expect("registers");
        assert!(matches!(vcpu.run(), Ok(VcpuExit::Hlt)), "{name}");
        let regs = vcpu.get_regs().expect("registers");
        assert_eq!((regs.rax, regs.rbx, regs.rcx, regs.rdx), (0, 0, 0, 0), "{name}");
        if name == "soft" {
            // KVMs before Linux 5.16 took it.
            let late = kvm.get_supported_cpuid(256).expect("CPUID");
            assert_eq!(vcpu.set_cpuid2(&late).map_err(|error| error.errno()), Err(EINVAL), "{name}");
        }
    }
}

#[test]
fn model_specific_registers_keep_their_values_and_an_unknown_one_ends_the_list() {
    const STAR: u32 = 0xc000_0081;
    const LSTAR: u32 = 0xc000_0082;
    const FMASK: u32 = 0xc000_0084;
    const KERNEL_GS_BASE: u32 = 0xc000_0102;
    const NONE: u32 = 0x1234_5678;
    for (name, kvm) in backends() {
        let vm = kvm.create_vm().expect("a VM");
        let vcpu = vm.create_vcpu(0).expect("a CPU");
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(256).expect("CPUID")).expect("its own CPUID");
        let entry = |index, data| kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
        let values = [
            entry(STAR, 0x001b_0008 << 32),
            entry(LSTAR, 0xffff_8000_0000_1000),
            entry(FMASK, 0x200),
            entry(KERNEL_GS_BASE, 0x5000),
        ];
        let four = Msrs::from_entries(&values).expect("four");
        assert_eq!(vcpu.set_msrs(&four).map_err(|error| error.errno()), Ok(4), "{name}");
        let asked = values.map(|value| entry(value.index, 0));
        let mut read = Msrs::from_entries(&asked).expect("four");
        assert_eq!(vcpu.get_msrs(&mut read).map_err(|error| error.errno()), Ok(4), "{name}");
        assert_eq!(read.as_slice(), values, "{name}");

        let mut odd = Msrs::from_entries(&[entry(STAR, 0), entry(NONE, 0), entry(LSTAR, 0)]).expect("three");
        assert_eq!(vcpu.get_msrs(&mut odd).map_err(|error| error.errno()), Ok(1), "{name}");
        let crooked = Msrs::from_entries(&[entry(STAR, 0), entry(LSTAR, 1 << 62)]).expect("two");
        assert_eq!(vcpu.set_msrs(&crooked).map_err(|error| error.errno()), Ok(1), "{name}: not canonical");
    }
}

#[test]
fn an_interrupt_is_injected_when_the_window_opens() {
    const VECTOR: u8 = 0x20;
    // sti; mov al, 1; jmp to itself, and at 0x1010 the handler: mov bl, 2; hlt
    let mut code = [0x90; 0x20];
    code[..5].copy_from_slice(&[0xfb, 0xb0, 1, 0xeb, 0xfe]);
    code[0x10..0x13].copy_from_slice(&[0xb3, 2, 0xf4]);
    for (name, kvm) in backends() {
        let mut guest = Guest::real(&kvm, &code);
        guest.memory.write(u64::from(VECTOR) * 4, &[0x10, 0x10, 0, 0]).expect("inside");
        guest.vcpu.get_kvm_run().request_interrupt_window = 1;
        let exit = guest.vcpu.run().expect("an exit");
        assert!(matches!(exit, VcpuExit::IrqWindowOpen), "{name}: {exit:?}");
        let run = guest.vcpu.get_kvm_run();
        assert_eq!((run.ready_for_interrupt_injection, run.if_flag, run.exit_reason), (1, 1, 7), "{name}");
        run.request_interrupt_window = 0;
        let rip = guest.vcpu.get_regs().expect("registers").rip;
        assert_eq!(rip, 0x1003, "{name}: behind the instruction after sti");

        let mut events = kvm_vcpu_events::default();
        (events.interrupt.injected, events.interrupt.nr) = (1, VECTOR);
        guest.vcpu.set_vcpu_events(&events).expect("an interrupt");
        let events = guest.vcpu.get_vcpu_events().expect("events");
        assert_eq!((events.interrupt.injected, events.interrupt.nr), (1, VECTOR), "{name}");
        let bitmap = guest.vcpu.get_sregs().expect("registers").interrupt_bitmap;
        assert_eq!(bitmap, [1 << VECTOR, 0, 0, 0], "{name}: SREGS show it too");
        let exit = guest.vcpu.run().expect("an exit");
        assert!(matches!(exit, VcpuExit::Hlt), "{name}: {exit:?}");
        let regs = guest.vcpu.get_regs().expect("registers");
        assert_eq!((regs.rax, regs.rbx, regs.rsp), (1, 2, 0x1000 - 6), "{name}: in the handler");
        let events = guest.vcpu.get_vcpu_events().expect("events");
        assert_eq!((events.interrupt.injected, events.exception.injected), (0, 0), "{name}: delivered");
    }
}

#[test]
fn an_exception_that_is_none_and_a_flag_that_nobody_knows_are_einval() {
    for (name, kvm) in backends() {
        let vm = kvm.create_vm().expect("a VM");
        let vcpu = vm.create_vcpu(0).expect("a CPU");
        let mut events = kvm_vcpu_events::default();
        (events.exception.injected, events.exception.nr) = (1, 32);
        assert_eq!(vcpu.set_vcpu_events(&events).map_err(|error| error.errno()), Err(EINVAL), "{name}");
        events.exception.nr = 2;
        assert_eq!(vcpu.set_vcpu_events(&events).map_err(|error| error.errno()), Err(EINVAL), "{name}: NMI");
        let events = kvm_vcpu_events { flags: 1 << 30, ..kvm_vcpu_events::default() };
        assert_eq!(vcpu.set_vcpu_events(&events).map_err(|error| error.errno()), Err(EINVAL), "{name}");
    }
}

#[test]
fn the_dirty_log_has_the_pages_that_the_guest_wrote_since_it_was_last_read() {
    const LOG_DIRTY_PAGES: u32 = 1;
    const ENOENT: i32 = 2;
    // mov [0x1800], al; mov al, [0x0800]; hlt; mov [0x1800], al; mov [0x0800], al; hlt
    let code = [0xa2, 0x00, 0x18, 0xa0, 0x00, 0x08, 0xf4, 0xa2, 0x00, 0x18, 0xa2, 0x00, 0x08, 0xf4];
    for (name, kvm) in backends() {
        let mut guest = Guest::real(&kvm, &code);
        let size = guest.memory.size();
        let log = |guest: &Guest| guest.vm.get_dirty_log(0, size).map_err(|error| error.errno());
        assert_eq!(log(&guest), Err(ENOENT), "{name}: without the flag");
        let logged = kvm_userspace_memory_region { flags: LOG_DIRTY_PAGES, ..region(&guest.memory, 0, 0) };
        // SAFETY: the same memory as before.
        unsafe { guest.vm.set_user_memory_region(logged) }.expect("the same slot with a log");
        log(&guest).expect("a log");
        for pages in [0b10, 0b11] {
            let exit = guest.vcpu.run().expect("an exit");
            assert!(matches!(exit, VcpuExit::Hlt), "{name}: {exit:?}");
            assert_eq!(log(&guest), Ok(vec![pages]), "{name}");
            assert_eq!(log(&guest), Ok(vec![0]), "{name}: reading clears");
        }
        assert_eq!(guest.vm.get_dirty_log(9, size).map_err(|error| error.errno()), Err(ENOENT), "{name}");
    }
}

#[test]
fn a_slot_keeps_its_size_its_host_memory_and_its_rights_for_life() {
    const READONLY: u32 = 2;
    for (name, kvm) in backends() {
        let memory = Memory::new(0x4000).expect("four pages");
        let vm = kvm.create_vm().expect("a VM");
        let set = |region| {
            // SAFETY: `memory` is declared before `vm`, so it is unmapped after it is gone.
            unsafe { vm.set_user_memory_region(region) }.map_err(|error| error.errno())
        };
        let first = kvm_userspace_memory_region { memory_size: 0x2000, ..region(&memory, 0, 0) };
        assert_eq!(set(first), Ok(()), "{name}");
        assert_eq!(set(first), Ok(()), "{name}: nothing changes");
        assert_eq!(set(kvm_userspace_memory_region { memory_size: 0x3000, ..first }), Err(EINVAL), "{name}");
        let elsewhere =
            kvm_userspace_memory_region { userspace_addr: first.userspace_addr + 0x1000, ..first };
        assert_eq!(set(elsewhere), Err(EINVAL), "{name}");
        assert_eq!(set(kvm_userspace_memory_region { flags: READONLY, ..first }), Err(EINVAL), "{name}");
        let moved = kvm_userspace_memory_region { guest_phys_addr: 0x8000, ..first };
        assert_eq!(set(moved), Ok(()), "{name}: it may move");
        let nothing = kvm_userspace_memory_region { memory_size: 0, ..first };
        assert_eq!(set(nothing), Ok(()), "{name}: deleted");
        assert_eq!(set(nothing), Err(EINVAL), "{name}: there is nothing to delete");
        assert_eq!(set(kvm_userspace_memory_region { flags: 1 << 9, ..first }), Err(EINVAL), "{name}");
        assert_eq!(set(kvm_userspace_memory_region { slot: 0x8000, ..first }), Err(EINVAL), "{name}");
    }
}

#[test]
fn a_hardware_breakpoint_stops_before_its_instruction_and_a_watchpoint_behind() {
    const ENABLE_AND_HARDWARE: u32 = 1 | 1 << 17;
    // mov al, 5; mov [0x1800], al; hlt
    let code = [0xb0, 5, 0xa2, 0x00, 0x18, 0xf4];
    for (name, kvm) in backends() {
        let mut guest = Guest::real(&kvm, &code);
        // DR0: the second instruction; DR1: a byte, written.
        let (first, second) = (1 << 1 | 1 << 10, 1 << 3 | 1 << 20 | 1 << 10);
        let mut debug = kvm_guest_debug { control: ENABLE_AND_HARDWARE, ..kvm_guest_debug::default() };
        debug.arch.debugreg = [0x1002, 0x1800, 0, 0, 0, 0, 0, first];
        guest.vcpu.set_guest_debug(&debug).expect("a breakpoint");
        if name == "kvm" && on_qemu_s_cpu() {
            println!("not compared: QEMU's software CPU loads a guest's DR7 and does not look at it");
            continue;
        }
        // A KVM that emulates every instruction does not compare data, and leaves DR7 out.
        let emulates = Probe::Real.run(&kvm).expect("it runs real mode").out_after;
        for _ in 0..2 {
            let exit = guest.vcpu.run().expect("an exit");
            let VcpuExit::Debug(found) = exit else { panic!("{name}: {exit:?}") };
            assert_eq!((found.exception, found.pc, found.dr6 & 0xe00f), (1, 0x1002, 1), "{name}");
            assert!(found.dr7 == first || emulates, "{name}: {:#x}", found.dr7);
        }
        debug.arch.debugreg[7] = second;
        guest.vcpu.set_guest_debug(&debug).expect("a watchpoint");
        let exit = guest.vcpu.run().expect("an exit");
        if !emulates {
            let VcpuExit::Debug(found) = exit else { panic!("{name}: {exit:?}") };
            assert_eq!((found.exception, found.pc, found.dr6 & 0xe00f), (1, 0x1005, 2), "{name}");
            assert_eq!(found.dr7, second, "{name}");
            let exit = guest.vcpu.run().expect("an exit");
            assert!(matches!(exit, VcpuExit::Hlt), "{name}: {exit:?}");
        }
        assert_eq!(guest.memory.read(0x1800, 1).expect("inside"), [5], "{name}");
    }
}

#[test]
fn the_debug_registers_keep_what_is_set_and_their_upper_halves_are_einval() {
    for (name, kvm) in backends() {
        let vm = kvm.create_vm().expect("a VM");
        let vcpu = vm.create_vcpu(0).expect("a CPU");
        let mut registers = vcpu.get_debug_regs().expect("registers");
        assert_eq!((registers.dr6, registers.dr7), (0xffff_0ff0, 0x400), "{name}: as after reset");
        registers.db = [0x1000, 0x2000, 0x3000, 0x4000];
        assert_eq!(vcpu.set_debug_regs(&registers).map_err(|error| error.errno()), Ok(()), "{name}");
        assert_eq!(vcpu.get_debug_regs().expect("registers"), registers, "{name}");
        registers.dr7 |= 1 << 32;
        assert_eq!(vcpu.set_debug_regs(&registers).map_err(|error| error.errno()), Err(EINVAL), "{name}");
    }
}

#[test]
fn the_fpu_keeps_what_is_set_but_mxcsr_which_kvm_leaves_out() {
    for (name, kvm) in backends() {
        let vm = kvm.create_vm().expect("a VM");
        let vcpu = vm.create_vcpu(0).expect("a CPU");
        let mut fpu = vcpu.get_fpu().expect("registers");
        assert_eq!((fpu.fcw, fpu.fsw, fpu.ftwx, fpu.mxcsr), (0x37f, 0, 0, 0), "{name}");
        fpu.xmm[0] = [1; 16];
        fpu.xmm[15] = [15; 16];
        fpu.mxcsr = 0x3f80;
        assert_eq!(vcpu.set_fpu(&fpu).map_err(|error| error.errno()), Ok(()), "{name}");
        let found = vcpu.get_fpu().expect("registers");
        assert_eq!((found.xmm, found.mxcsr), (fpu.xmm, 0), "{name}");
    }
}

#[test]
fn from_where_no_memory_is_nothing_can_be_fetched() {
    for (name, kvm) in backends() {
        let memory = Memory::new(0x2000).expect("two pages");
        let vm = kvm.create_vm().expect("a VM");
        // SAFETY: `memory` is declared before `vm` and `vcpu`, so it is unmapped after both are gone.
        unsafe { vm.set_user_memory_region(region(&memory, 0, 0)) }.expect("a good slot");
        let mut vcpu = vm.create_vcpu(0).expect("a CPU");
        // After reset a CPU starts where a PC has its firmware: at 0xfffffff0.
        let exit = Unexpected::from(vcpu.run().expect("an exit")).0;
        assert!(matches!(exit, Exit::InternalError { .. }), "{name}: {exit:?}");
    }
}

#[test]
fn the_software_machine_runs_every_probe_guest_but_that_of_x87() {
    let kvm = Kvm::soft();
    for probe in Probe::ALL {
        match probe.run(&kvm) {
            Ok(probed) => {
                assert_ne!(probe, Probe::X87);
                assert!(!probed.out_after, "RIP is at the `out`, as on hardware");
            }
            Err(failure) => assert_eq!(probe, Probe::X87, "{failure}"),
        }
    }
}

/// `KVM_IOEVENTFD`: a port that rings for any byte, and one that rings for 7 alone, written as one byte.
#[test]
fn a_write_that_rings_an_eventfd_is_no_exit_and_another_value_or_size_is() {
    // mov ax, 0; out 0x11, al; mov al, 2; out 0x12, al; mov al, 7; out 0x12, al; out 0x12, ax; hlt
    let code = [0xb8, 0, 0, 0xe6, 0x11, 0xb0, 2, 0xe6, 0x12, 0xb0, 7, 0xe6, 0x12, 0xe7, 0x12, 0xf4];
    for (name, kvm) in backends() {
        let mut guest = Guest::real(&kvm, &code);
        let event = || EventFd::new(0).expect("an eventfd");
        let (any, seven) = (event(), event());
        guest.vm.register_ioevent(&any, &IoEventAddress::Pio(0x11), NoDatamatch).expect("a port");
        guest.vm.register_ioevent(&seven, &IoEventAddress::Pio(0x12), 7u8).expect("a port");
        let exit = guest.vcpu.run().expect("an exit");
        assert!(matches!(exit, VcpuExit::IoOut(0x12, &[2])), "{name}: {exit:?}");
        assert_eq!(any.read().expect("it was rung"), 1, "{name}");
        let exit = guest.vcpu.run().expect("an exit");
        assert!(matches!(exit, VcpuExit::IoOut(0x12, &[7, 0])), "{name}: {exit:?}");
        assert_eq!(seven.read().expect("it was rung"), 1, "{name}");
        assert!(matches!(guest.vcpu.run().expect("an exit"), VcpuExit::Hlt), "{name}");
    }
}

/// `KVM_IRQFD`: a write is an edge of the line.
#[test]
fn an_eventfd_raises_its_line_and_wakes_a_hlt() {
    #[rustfmt::skip] // an instruction or two a line
    let mut code = [
        0xb0, 0x11, 0xe6, 0x20, // mov al, 0x11; out 0x20, al: four words to the first 8259A
        0xb0, 0x20, 0xe6, 0x21, // its vectors begin at 0x20
        0xb0, 0x04, 0xe6, 0x21,
        0xb0, 0x01, 0xe6, 0x21,
        0xb0, 0xef, 0xe6, 0x21, // line 4 alone
        0xfb, 0xf4,             // sti; hlt
        0xe6, 0x10,             // out 0x10, al
        0xf4,                   // hlt
    ].to_vec();
    code.resize(0x40, 0x90);
    code.extend([0xb0, 0x77, 0xcf]); // at 0x1040, the handler: mov al, 0x77; iret
    for (name, kvm) in backends() {
        let vm = kvm.create_vm().expect("a VM");
        vm.create_irq_chip().expect("interrupt controllers");
        let mut guest = Guest::on(vm, &code);
        guest.memory.write(0x24 * 4, &[0x40, 0x10, 0, 0]).expect("inside");
        let event = EventFd::new(0).expect("an eventfd");
        guest.vm.register_irqfd(&event, 4).expect("a line");
        // After the guest has come to its hlt, more often than not.
        let device = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(30));
            event.write(1)
        });
        // Unwatched, the software machine comes back while it waits, as KVM does for a signal.
        let bytes = loop {
            match guest.vcpu.run() {
                Ok(VcpuExit::IoOut(0x10, bytes)) => break bytes.to_vec(),
                Ok(exit) => panic!("{name}: {exit:?}"),
                Err(error) => assert_eq!(error.errno(), 4, "{name}"),
            }
        };
        assert_eq!(bytes, [0x77], "{name}");
        device.join().expect("no panic").expect("a write");
    }
}

#[test]
fn what_the_software_machine_shows_of_itself_fits_into_what_is_asked_for() {
    let kvm = Kvm::soft();
    let all: CpuId = kvm.get_supported_cpuid(256).expect("CPUID");
    assert!(!all.as_slice().is_empty());
    assert!(kvm.get_supported_cpuid(1).is_err());
}
