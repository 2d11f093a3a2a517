//! A run that died is played again with all that the hypervisor told the guest; one
//! that cannot be played again says so.

use vmexit::chapter::Chapter;
use vmexit::guest::Memory;
use vmexit::kvm::{Kvm, Probe, VcpuExit, VcpuFd, kvm_userspace_memory_region};
use vmexit::machine::Machine;
use vmexit::mode::{enter_protected, rflags};
use vmexit::run::Run;
use vmexit::run::options::{Backend, Options};
use vmexit::segment::Descriptor;

const CHAPTER: Chapter =
    Chapter { name: "test", title: "A test", needs: Probe::Real, flags: &[], breaks: &[] };

/// 32-bit code that dies at 0x101b if it was told the right things, and halts otherwise.
#[rustfmt::skip] // an instruction a line
const GUEST: &[u8] = &[
    0xe4, 0x10,                               // 1000  in al, 0x10
    0x3c, 0x2a,                               // 1002  cmp al, 42
    0x75, 0x19,                               // 1004  jne end
    0xe6, 0x11,                               // 1006  out 0x11, al
    0x80, 0x3d, 0x00, 0x30, 0x00, 0x00, 0x77, // 1008  cmp byte ptr [0x3000], 0x77
    0x75, 0x0e,                               // 100f  jne end
    0x81, 0xfb, 0x34, 0x12, 0x00, 0x00,       // 1011  cmp ebx, 0x1234
    0x75, 0x06,                               // 1017  jne end
    0x31, 0xc0,                               // 1019  xor eax, eax
    0xf7, 0xf0,                               // 101b  div eax
    0xf4, 0xf4,                               // 101d
    0xf4,                                     // 101f  end: hlt
];

fn run() -> Run {
    let options = Options { backend: Some(Backend::Soft), ..Options::default() };
    let run = Run::new(&CHAPTER, options).expect("no trace to be made");
    run.show_exits_if_asked();
    run
}

/// Protected mode without an IDT, at the guest's first instruction.
fn enter(vcpu: &VcpuFd) {
    let mut sregs = vcpu.get_sregs().expect("registers");
    enter_protected(&mut sregs, Descriptor::CODE_32);
    sregs.idt.limit = 0;
    vcpu.set_sregs(&sregs).expect("protected mode");
    let mut regs = vcpu.get_regs().expect("registers");
    (regs.rip, regs.rflags) = (0x1000, rflags::FIXED);
    vcpu.set_regs(&regs).expect("registers");
}

/// Tells the guest what it wants to hear, until it dies.
fn serve(vcpu: &mut VcpuFd, memory: &Memory) {
    match vcpu.run().expect("it runs") {
        VcpuExit::IoIn(0x10, data) => data[0] = 42,
        exit => panic!("{exit:?}"),
    }
    assert!(matches!(vcpu.run(), Ok(VcpuExit::IoOut(0x11, &[42]))));
    memory.write(0x3000, &[0x77]).expect("inside");
    let mut regs = vcpu.get_regs().expect("registers");
    regs.rbx = 0x1234;
    vcpu.set_regs(&regs).expect("registers");
    assert!(matches!(vcpu.run(), Ok(VcpuExit::Shutdown)));
}

fn loaded(size: usize) -> Memory {
    let memory = Memory::new(size).expect("some pages");
    memory.write(0x1000, GUEST).expect("inside");
    memory
}

fn on_a_machine(size: usize) -> String {
    let run = run();
    let kvm = Kvm::open(&run).expect("the software machine");
    let mut machine = Machine::new(&kvm, loaded(size)).expect("a machine");
    enter(&machine.vcpu);
    let Machine { vcpu, memory, .. } = &mut machine;
    serve(vcpu, memory);
    run.post_mortem().join("\n")
}

#[test]
fn a_replay_is_told_what_the_guest_was_told_and_dies_of_the_same() {
    let told = on_a_machine(0x4000);
    assert!(told.contains("it died at 0008:101b  div eax"), "{told}");
    assert!(told.contains("1. #DE:\n     the divisor is 0"), "{told}");
    assert!(told.contains("2. while #DE is delivered: #GP, error code 0x3 "), "{told}");
    assert!(
        told.contains("vector 8's gate, bytes 0x40 to 0x47 of the IDT, lies past IDTR's limit of 0x0"),
        "{told}"
    );
}

#[test]
fn a_run_whose_host_wrote_behind_the_recordings_back_ends_otherwise_and_says_so() {
    let run = run();
    let kvm = Kvm::open(&run).expect("the software machine");
    let memory = loaded(0x4000);
    let vm = kvm.create_vm().expect("a VM");
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: memory.size() as u64,
        userspace_addr: memory.host_address(),
    };
    // SAFETY: `memory` is declared before `vm` and its vCPU, so it is unmapped after they are gone.
    unsafe { vm.set_user_memory_region(region) }.expect("a good slot");
    let mut vcpu = vm.create_vcpu(0).expect("a CPU");
    enter(&vcpu);
    serve(&mut vcpu, &memory);
    let told = run.post_mortem().join("\n");
    assert!(told.starts_with("no post-mortem: "), "{told}");
    assert!(told.contains("ended otherwise: exit 3 is no KVM_EXIT_SHUTDOWN"), "{told}");
}

#[test]
fn a_guest_with_more_memory_than_is_kept_has_no_replay() {
    let told = on_a_machine(17 << 20);
    assert_eq!(told, "no post-mortem: its memory is more than the 16 MiB that are kept for a replay");
}

/// Each line with a number names an exception; where its cause was found, it ends in a colon, and the
/// cause is below.
#[test]
fn every_chapters_triple_fault_is_explained_at_every_step() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots");
    let mut explained = 0;
    for file in std::fs::read_dir(folder).expect("the snapshots") {
        let path = file.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("text");
        if !text.contains("the guest ended in KVM_EXIT_SHUTDOWN") {
            continue;
        }
        let (_, told) =
            text.split_once("  post-mortem, by a replay on the software machine:\n").expect("one");
        let numbered =
            |line: &&str| line.starts_with("    ") && line[4..].starts_with(|c: char| c.is_ascii_digit());
        let steps: Vec<&str> = told.lines().filter(numbered).collect();
        assert!(steps.len() >= 3, "{}: {steps:#?}", path.display());
        assert!(steps.iter().all(|step| step.ends_with(':')), "{}: {steps:#?}", path.display());
        explained += 1;
    }
    assert!(explained >= 15, "{explained} snapshots end in a triple fault");
}
