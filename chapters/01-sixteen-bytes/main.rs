//! Chapter 01: sixteen bytes. The smallest whole hypervisor: a VM with 8 KiB of
//! memory, one CPU, and a guest that adds two numbers and prints the digit.
//!
//! ```text
//! guest-physical   0x0000 ┌──────────────┐
//!                         │ zeros        │
//!                  0x1000 ├──────────────┤ <- CS:RIP = 0000:1000
//!                         │ 16 bytes     │
//!                         │ zeros        │
//!                  0x2000 └──────────────┘ nothing from here on
//! ```

use std::process::ExitCode;

use anyhow::{Context, Result};
use vmexit::chapter::{self, Break, Chapter};
use vmexit::exit::Unexpected;
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{IDENTITY_MAP_ADDRESS, Kvm, Probe, TSS_ADDRESS, VcpuExit, kvm_userspace_memory_region};
use vmexit::mode::{enter_real, rflags};
use vmexit::run::Run;

const CHAPTER: Chapter = Chapter {
    name: "ch01",
    title: "Sixteen bytes",
    needs: Probe::Real,
    flags: &[],
    breaks: &[
        Break {
            name: "no-hlt",
            what: "the last byte is a nop instead of hlt",
            why: "nothing stops the CPU after the sixteenth byte: it ran on through zeros (`add [bx+si], al`) to \
                  the end of memory at 0x2000, and from an address that no slot backs no instruction can be fetched",
        },
        Break {
            name: "reset-cs",
            what: "CS keeps its value from reset",
            why: "after reset CS's base is 0xffff0000, so RIP 0x1000 means 0xffff1000, where a PC has its firmware \
                  and this machine has nothing",
        },
        Break {
            name: "spin",
            what: "the guest ends in `jmp $` instead of the second out and hlt",
            why: "a jump to itself needs no one's help: it never exits, and only a signal brings KVM_RUN back",
        },
    ],
};

// ANCHOR: guest
const LOAD_ADDRESS: u64 = 0x1000;
const COM1: u16 = 0x3f8;

#[rustfmt::skip] // an instruction a line
const GUEST: [u8; 16] = [
    0xb0, 0x02,        // mov al, 2
    0xb3, 0x03,        // mov bl, 3
    0x00, 0xd8,        // add al, bl
    0x04, b'0',        // add al, '0'
    0xba, 0xf8, 0x03,  // mov dx, COM1
    0xee,              // out dx, al        exit: IoOut(COM1, [al])
    0xb0, b'\n',       // mov al, '\n'
    0xee,              // out dx, al        exit: IoOut(COM1, [al])
    0xf4,              // hlt               exit: Hlt
];
// ANCHOR_END: guest

fn main() -> ExitCode {
    chapter::main(&CHAPTER, sixteen_bytes)
}

// ANCHOR: dance
fn sixteen_bytes(run: &Run) -> Result<()> {
    let code = guest(run);
    run.show(&Image::flat(LOAD_ADDRESS, &code))?;

    // A VM is a handle, its memory a piece of this process.
    let memory = Memory::new(0x2000)?;
    memory.write(LOAD_ADDRESS, &code)?;
    let kvm = Kvm::open(run)?;
    let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
    // Two corners of the guest's address space that Intel's KVM needs for real mode on older CPUs.
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).context("KVM_SET_IDENTITY_MAP_ADDR")?;
    vm.set_tss_address(TSS_ADDRESS).context("KVM_SET_TSS_ADDR")?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: memory.size() as u64,
        userspace_addr: memory.host_address(),
    };
    // SAFETY: `memory` is declared before `vm` and `vcpu`, so it is unmapped after both are gone.
    unsafe { vm.set_user_memory_region(slot) }.context("KVM_SET_USER_MEMORY_REGION")?;

    // A new CPU is in real mode, as after reset. Where it starts is ours to say: CS:RIP = 0000:1000.
    let mut vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS")?;
    enter_real(&mut sregs);
    if run.breaks("reset-cs") {
        (sregs.cs.selector, sregs.cs.base) = (0xf000, 0xffff_0000);
    }
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let mut regs = vcpu.get_regs().context("KVM_GET_REGS")?;
    (regs.rip, regs.rflags) = (LOAD_ADDRESS, rflags::FIXED);
    vcpu.set_regs(&regs).context("KVM_SET_REGS")?;

    // Each turn of this loop is one trip into the guest and back.
    let mut printed = Vec::new();
    loop {
        match vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(COM1, bytes) => printed.extend_from_slice(bytes),
            VcpuExit::Hlt => break,
            exit => return Err(Unexpected::from(exit).into()),
        }
    }
    let regs = vcpu.get_regs().context("KVM_GET_REGS")?;
    run.say(format_args!("\nthe guest printed {:?}", String::from_utf8_lossy(&printed)));
    run.say(format_args!("RAX = {:#x}, RBX = {:#x}, RIP = {:#x}", regs.rax, regs.rbx, regs.rip));
    Ok(())
}
// ANCHOR_END: dance

/// The sixteen bytes, or what a broken variant makes of them.
fn guest(run: &Run) -> [u8; 16] {
    let mut code = GUEST;
    if run.breaks("no-hlt") {
        code[15] = 0x90; // nop
    }
    if run.breaks("spin") {
        code[14..].copy_from_slice(&[0xeb, 0xfe]); // jmp $
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmexit::disasm;

    #[test]
    fn the_bytes_are_the_instructions_beside_them() {
        let (mut at, mut lines) = (0, Vec::new());
        while let Some(instruction) = disasm::decode(16, 0, &GUEST[at..]) {
            lines.push(disasm::text(&instruction, None));
            at += instruction.len();
        }
        assert_eq!(at, 16);
        assert_eq!(
            lines,
            [
                "mov al, 2",
                "mov bl, 3",
                "add al, bl",
                "add al, 0x30",
                "mov dx, 0x3f8",
                "out dx, al",
                "mov al, 0xa",
                "out dx, al",
                "hlt"
            ]
        );
    }
}
