//! A guest that means harm: it writes random values to random ports and to every
//! corner of the holes in its memory, and reads them. Whatever it does, the
//! hypervisor of chapter 16 neither crashes nor grows.
//!
//! `VMEXIT_HOSTILE_SECONDS=60` lets it try for a minute on each machine.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmexit::device::serial::Serial;
use vmexit::device::{Bus, pc};
use vmexit::guest::Memory;
use vmexit::kvm::{Kvm, Probe, VcpuExit};
use vmexit::machine::Machine;
use vmexit::mode::{self, rflags};
use vmexit::segment::Descriptor;

/// ```text
/// again: imul rbx, rbp; add rbx, rsi                  the next pseudo-random number
///        mov rax, rbx; shr rax, 32; mov edx, eax
///        out dx, al; in al, dx; out dx, eax; in ax, dx
///        mov edi, 0x8000; mov ecx, 32; rep insb
///        mov rdi, rbx; shr rdi, 34; or rdi, r8        from 3 GiB to 4 GiB
///        mov [rdi], eax; mov [rdi], rbx; mov cl, [rdi]; mov rcx, [rdi]
///        jmp again
/// ```
#[rustfmt::skip] // a line of the above a line
const CODE: [u8; 0x37] = [
    0x48, 0x0f, 0xaf, 0xdd, 0x48, 0x01, 0xf3,
    0x48, 0x89, 0xd8, 0x48, 0xc1, 0xe8, 0x20, 0x89, 0xc2,
    0xee, 0xec, 0xef, 0x66, 0xed,
    0xbf, 0x00, 0x80, 0x00, 0x00, 0xb9, 0x20, 0x00, 0x00, 0x00, 0xf3, 0x6c,
    0x48, 0x89, 0xdf, 0x48, 0xc1, 0xef, 0x22, 0x4c, 0x09, 0xc7,
    0x89, 0x07, 0x48, 0x89, 0x1f, 0x8a, 0x0f, 0x48, 0x8b, 0x0f,
    0xeb, 0xc9,
];

const LOAD_ADDRESS: u64 = 0x1000;
const TABLES: u64 = 0x1_0000;
const MEMORY: usize = 0x2_0000;
/// GiB that the guest can reach: an access may begin at the last byte of the fourth.
const MAPPED: u64 = 5;
/// After so many exits every allocation has been made that is ever made, and so many are enough to tell.
const SETTLED: u64 = 20_000;
const LEAST: u64 = 2 * SETTLED;
/// Bytes that the process may grow by once it has settled: the allocator's own affair.
const SLACK: u64 = 1 << 20;

/// A machine that is about to run the guest.
fn machine(kvm: &Kvm) -> Machine {
    let memory = Memory::new(MEMORY).expect("128 KiB");
    memory.write(LOAD_ADDRESS, &CODE).expect("inside");
    let put = |address: u64, entry: u64| memory.write(address, &entry.to_le_bytes()).expect("inside");
    // PML4, PDPT and a page directory for each GiB, all present and writable; pages of 2 MiB.
    put(TABLES, (TABLES + 0x1000) | 3);
    for gib in 0..MAPPED {
        let directory = TABLES + 0x2000 + gib * 0x1000;
        put(TABLES + 0x1000 + gib * 8, directory | 3);
        for page in 0..512 {
            put(directory + page * 8, (gib << 30) | (page << 21) | 0x83);
        }
    }
    let machine = Machine::new(kvm, memory).expect("a machine");
    let mut sregs = machine.vcpu.get_sregs().expect("KVM_GET_SREGS");
    mode::enter_protected(&mut sregs, Descriptor::CODE_64);
    mode::enter_long(&mut sregs, TABLES);
    machine.vcpu.set_sregs(&sregs).expect("KVM_SET_SREGS");
    let mut regs = machine.vcpu.get_regs().expect("KVM_GET_REGS");
    (regs.rip, regs.rflags, regs.r8) = (LOAD_ADDRESS, rflags::FIXED, 0xc000_0000);
    // Knuth's MMIX generator.
    (regs.rbx, regs.rbp, regs.rsi) = (1, 6_364_136_223_846_793_005, 1_442_695_040_888_963_407);
    machine.vcpu.set_regs(&regs).expect("KVM_SET_REGS");
    machine
}

fn com1() -> Arc<Mutex<Serial>> {
    Arc::new(Mutex::new(Serial::new(Box::new(|| Ok(())), io::sink())))
}

/// Lets the guest try for so long; returns how often it exited.
fn withstand(kvm: &Kvm, time: Duration) -> u64 {
    let mut machine = machine(kvm);
    let port = com1();
    let mut ports = pc::ports(Arc::clone(&port));
    // Devices in memory are reached by the same bus.
    let mut addresses = Bus::default();
    addresses.insert(0xc000_0000..0xe000_0000, com1());
    let (started, mut exits, mut settled) = (Instant::now(), 0u64, 0);
    while exits < LEAST || !exits.is_multiple_of(1024) || started.elapsed() < time {
        // What it asks of the machine, power-off and reset, it is not given.
        match machine.vcpu.run().expect("KVM_RUN") {
            VcpuExit::IoOut(port, data) => drop(ports.write(port.into(), data)),
            VcpuExit::IoIn(port, data) => ports.read(port.into(), data),
            VcpuExit::MmioWrite(address, data) => drop(addresses.write(address, data)),
            VcpuExit::MmioRead(address, data) => addresses.read(address, data),
            exit => panic!("after {exits} exits: {exit:?}"),
        }
        exits += 1;
        // Somebody types meanwhile, as fast as the guest reads.
        if exits.is_multiple_of(4096) {
            let mut port = port.lock().expect("one thread");
            if port.waiting() == 0 {
                port.send(b"typed");
            }
        }
        if exits == SETTLED {
            settled = resident();
        }
    }
    let grown = resident().saturating_sub(settled);
    assert!(grown < SLACK, "{grown} bytes more after {exits} exits");
    exits
}

/// The process's resident memory in bytes; 0 where the system does not say.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

#[test]
fn a_guest_that_writes_everywhere_neither_crashes_the_hypervisor_nor_makes_it_grow() {
    let seconds = std::env::var("VMEXIT_HOSTILE_SECONDS").ok().and_then(|text| text.parse().ok());
    let time = Duration::from_secs_f64(seconds.unwrap_or(2.0));
    println!("the software machine: {} exits", withstand(&Kvm::soft(), time));
    match Kvm::new() {
        Ok(kvm) if Probe::Long.run(&kvm).is_ok() => {
            println!("this host's KVM: {} exits", withstand(&kvm, time));
        }
        _ => println!("not run here: this host has no KVM that runs 64-bit code"),
    }
}
