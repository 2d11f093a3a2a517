//! The same instructions in ring 3 of the software machine: 64-bit code behind
//! page tables that ring 3 may use, and no IDT, so that a fault ends in SHUTDOWN.
//!
//! Ring 3 has no `out` that would bring the value out: with IOPL 0 and an empty
//! I/O bitmap it faults. A store into a hole does: the exit is MMIO.

use anyhow::{Context, Result, bail};
use vmexit::guest::Memory;
use vmexit::kvm::{Kvm, VcpuExit};
use vmexit::machine::Machine;
use vmexit::mode::{self, rflags};
use vmexit::paging::{self, PAGE, entry};
use vmexit::segment::Descriptor;

/// How a trial ended.
pub enum Ending {
    /// The instruction faulted.
    Fault,
    /// It did not, and left this in RAX.
    Value(u64),
}

const CODE: u64 = 0x1000;
const STACK: u64 = 0x3000;
const TABLES: u64 = 0x4000;
const MEMORY: usize = 0x7000;
/// Far above the memory, and mapped.
const HOLE: u64 = 0x10_0000;
/// `mov [HOLE], rax`
const STORE: [u8; 8] = [0x48, 0x89, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00];

/// Where the guest's tables would be: what `sgdt` and `sidt` show.
pub const GDT: u64 = 0xffff_8000_0000_1000;
pub const IDT: u64 = 0xffff_8000_0000_2000;

/// Runs `code`, then the store, in ring 3.
///
/// # Errors
/// When the machine cannot be set up, or comes back with another exit.
pub fn run(code: &[u8]) -> Result<Ending> {
    let mut machine = Machine::new(&Kvm::soft(), Memory::new(MEMORY)?)?;
    machine.memory.write(CODE, &[code, &STORE].concat())?;
    let cr3 = paging::identity_map(&machine.memory, TABLES)?;
    for table in 0..3 {
        let low = machine.memory.read(TABLES + table * PAGE, 1)?[0];
        machine.memory.write(TABLES + table * PAGE, &[low | entry::USER as u8])?;
    }
    let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
    mode::enter_protected(&mut sregs, Descriptor::CODE_64);
    mode::enter_long(&mut sregs, cr3);
    sregs.cs = Descriptor::USER_CODE_64.load(0x1b);
    sregs.ss = Descriptor::USER_DATA.load(0x23);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 5 * 8 - 1);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 0);
    machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
    let mut regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
    (regs.rip, regs.rsp, regs.rflags) = (CODE, STACK, rflags::FIXED | rflags::IF);
    machine.vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
    match machine.vcpu.run().context("KVM_RUN")? {
        VcpuExit::Shutdown => Ok(Ending::Fault),
        VcpuExit::MmioWrite(HOLE, bytes) => {
            Ok(Ending::Value(u64::from_le_bytes(bytes.try_into().context("eight bytes")?)))
        }
        exit => bail!("the software machine came back with {exit:?}"),
    }
}
