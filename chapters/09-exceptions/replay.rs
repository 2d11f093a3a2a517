//! What the guest did last before a triple fault. Some KVMs have reset the CPU by
//! the time they report one, so its registers tell nothing. But a run can be
//! played again: the same memory, the same registers, the same answers, on the
//! software machine, which stops after every instruction.

use anyhow::{Context, Result, bail, ensure};
use vmexit::disasm;
use vmexit::guest::{Image, Memory};
use vmexit::kvm::{Kvm, VcpuExit, kvm_guest_debug};
use vmexit::machine::Machine;
use vmexit::run::Run;
use vmexit::trace::{Input, Recording};

/// `KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP`: `include/uapi/linux/kvm.h`.
const SINGLE_STEP: u32 = 1 | 2;
/// Far more steps than this guest takes.
const MOST_STEPS: usize = 1_000_000;

// ANCHOR: replay
/// The instruction that was not survived, with where it is, RSP and the limit of IDTR at that moment.
pub fn last_instruction(run: &Run, image: &Image) -> Result<String> {
    let recordings = run.recordings();
    let recording = recordings.first().context("the run has recorded no entry")?;
    let mut machine = again(recording)?;
    let mut answers = recording.inputs.iter();
    for _ in 0..MOST_STEPS {
        let regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
        let sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
        match machine.vcpu.run().context("KVM_RUN")? {
            VcpuExit::Debug(_) | VcpuExit::IoOut(..) => {}
            VcpuExit::IoIn(_, data) => match answers.next() {
                Some(Input::Answer(answer)) if answer.len() == data.len() => data.copy_from_slice(answer),
                _ => bail!("the run cannot be played again: it has recorded another answer"),
            },
            VcpuExit::Shutdown => {
                let bytes = machine.memory.read(regs.rip, disasm::LONGEST)?;
                let instruction = disasm::decode(64, regs.rip, &bytes).context("no instruction is there")?;
                let place = image.nearest(regs.rip).map_or("?", |(name, _)| name);
                let text = disasm::text(&instruction, Some(image));
                return Ok(format!(
                    "`{text}` in {place}, with RSP = {:#x} and IDTR's limit {:#x}",
                    regs.rsp, sregs.idt.limit
                ));
            }
            exit => bail!("the run ended otherwise when it was played again: {exit:?}"),
        }
    }
    bail!("the run did not end when it was played again")
}
// ANCHOR_END: replay

/// The machine as it was before its first entry.
fn again(recording: &Recording) -> Result<Machine> {
    let size = recording.slots.iter().map(|(address, size)| address + size).max().unwrap_or(0);
    ensure!(!recording.pages.is_empty(), "the memory of this guest was not kept");
    let machine = Machine::new(&Kvm::soft(), Memory::new(size as usize)?)?;
    for (address, bytes) in &recording.pages {
        machine.memory.write(*address, bytes)?;
    }
    machine.vcpu.set_sregs(&recording.sregs).context("KVM_SET_SREGS")?;
    machine.vcpu.set_regs(&recording.regs).context("KVM_SET_REGS")?;
    let debug = kvm_guest_debug { control: SINGLE_STEP, ..kvm_guest_debug::default() };
    machine.vcpu.set_guest_debug(&debug).context("KVM_SET_GUEST_DEBUG")?;
    Ok(machine)
}
