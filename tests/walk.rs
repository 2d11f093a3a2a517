//! The library's walk against `KVM_TRANSLATE`: random page tables in every form of
//! paging, on the software machine and on the host's KVM where there is one.

use vmexit::guest::Memory;
use vmexit::kvm::{Kvm, kvm_sregs};
use vmexit::machine::Machine;
use vmexit::mode::{cr0, cr4, efer, enter_long, enter_protected};
use vmexit::paging::{Access, Form};
use vmexit::segment::Descriptor;

const MEMORY: usize = 0x8000;
const ROOT: u64 = 0x1000;
/// The tables are the pages from here to the end of the memory.
const TABLES: std::ops::Range<u64> = 1..8;

/// xorshift64: the same numbers on every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// An entry that is mostly good: present, leading to another table, and now and then not.
fn entry(numbers: &mut Numbers) -> u64 {
    let page = TABLES.start + numbers.below(TABLES.end - TABLES.start);
    let mut value = page << 12 | numbers.below(1 << 7) | 1;
    if numbers.one_in(8) {
        value &= !1;
    }
    if numbers.one_in(4) {
        // A large page, on its boundary or not.
        value = value & 0xfff | 0x80 | numbers.below(8) << if numbers.one_in(4) { 13 } else { 22 };
    }
    if numbers.one_in(16) {
        value |= 1 << (32 + numbers.below(32));
    }
    value
}

fn fill(memory: &Memory, form: Form, numbers: &mut Numbers) {
    let size = form.entry_size();
    for page in TABLES {
        for index in 0..4096 / size as u64 {
            let mut value = entry(numbers);
            if form == Form::Pae && page << 12 == ROOT {
                // The CPU checks PAE's first entries when CR3 is loaded, and refuses other flags.
                value = value & 0x7000 | 1;
            }
            memory
                .write((page << 12) + index * size as u64, &value.to_le_bytes()[..size])
                .expect("inside the memory");
        }
    }
}

fn enter(sregs: &mut kvm_sregs, form: Form, numbers: &mut Numbers) {
    match form {
        Form::FourLevel | Form::FiveLevel => {
            enter_protected(sregs, Descriptor::CODE_64);
            enter_long(sregs, ROOT);
        }
        Form::Bits32 | Form::Pae => {
            enter_protected(sregs, Descriptor::CODE_32);
            (sregs.cr3, sregs.cr0) = (ROOT, sregs.cr0 | cr0::PG);
            sregs.cr4 |= if form == Form::Pae { cr4::PAE } else { 0 };
        }
    }
    if numbers.one_in(2) {
        sregs.cr4 |= cr4::PSE;
    }
    if numbers.one_in(2) && form != Form::Bits32 {
        sregs.efer |= efer::NXE;
    }
}

/// An address that reaches more than one entry of each level, and is canonical.
fn linear(form: Form, numbers: &mut Numbers) -> u64 {
    let address = numbers.next();
    if form.is_long() { ((address as i64) << 16 >> 16) as u64 } else { address & 0xffff_ffff }
}

fn compare(kvm: &Kvm, name: &str) {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut mapped, mut faults) = (0, 0);
    for round in 0..60 {
        let form = [Form::Bits32, Form::Pae, Form::FourLevel][round % 3];
        let machine = Machine::new(kvm, Memory::new(MEMORY).expect("32 KiB")).expect("a machine");
        fill(&machine.memory, form, &mut numbers);
        let mut sregs = machine.vcpu.get_sregs().expect("KVM_GET_SREGS");
        enter(&mut sregs, form, &mut numbers);
        machine.vcpu.set_sregs(&sregs).expect("KVM_SET_SREGS");
        for _ in 0..200 {
            let address = linear(form, &mut numbers);
            let walk = machine.walk(address, Access::READ).expect("a walk");
            let kvm = machine.vcpu.translate_gva(address).expect("KVM_TRANSLATE");
            let found = (kvm.valid != 0).then_some(kvm.physical_address);
            assert_eq!(
                walk.outcome.map(|mapping| mapping.physical).ok(),
                found,
                "{name}, round {round}: {walk}"
            );
            *(if found.is_some() { &mut mapped } else { &mut faults }) += 1;
        }
    }
    assert!(mapped > 1000 && faults > 1000, "{mapped} mapped, {faults} faults");
}

#[test]
fn the_walk_finds_what_the_software_machine_translates_to() {
    compare(&Kvm::soft(), "the software machine");
}

/// Where there is no device there is nothing to compare with.
#[test]
fn the_walk_finds_what_the_hosts_kvm_translates_to() {
    match Kvm::new() {
        Ok(kvm) => compare(&kvm, "the host's KVM"),
        Err(error) => println!("not run here: /dev/kvm: {error}"),
    }
}
