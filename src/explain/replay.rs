//! A run, played again on the software machine: the same memory, the same
//! registers, the same answers, up to the exit that the run ended in. Some KVMs
//! have reset the CPU by the time they report a triple fault; the replay stands
//! where the guest died.

use std::time::{Duration, Instant};

use crate::guest::{Memory, MemoryError};
use crate::kvm::{
    CpuId, Error, FailedDelivery, Kvm, Msrs, VcpuExit, VcpuFd, VmFd, kvm_cpuid_entry2, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_userspace_memory_region,
};
use crate::paging::Features;
use crate::run::interrupt;
use crate::trace::{Input, Recording};

/// Nobody waits longer for an explanation.
const LONGEST: Duration = Duration::from_secs(5);

const EINTR: i32 = 4;
const EINVAL: i32 = 22;

/// A machine at the end of a replay. Fields drop in this order: the machine lets go of the memory
/// before it is unmapped.
pub struct Replay {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: Vec<(u64, Memory)>,
    features: Features,
}

/// Why a run cannot be played again, or was not the same; the end of a sentence.
#[derive(Debug, thiserror::Error)]
pub enum Otherwise {
    #[error("{0}")]
    Gap(&'static str),
    #[error("its machine had {0} CPUs, and how their instructions interleaved is not recorded")]
    Cpus(usize),
    #[error("the software machine refuses its state: {0}")]
    Refused(#[from] Error),
    #[error("{0}")]
    Memory(#[from] MemoryError),
    #[error("it did not end in {} s", LONGEST.as_secs())]
    Endless,
    #[error("it was interrupted")]
    Interrupted,
    #[error(
        "played again on the software machine, the guest ended otherwise: {0}. Something that differs from run \
         to run, or from CPU to CPU, is part of what it does: time, CPUID, an access that only one of them \
         refuses"
    )]
    Ended(String),
}

impl Replay {
    /// Plays a recording whose run ended in a shutdown; `vcpus` is the number of vCPUs of its VM.
    ///
    /// # Errors
    /// When that is not possible, or the guest ends otherwise.
    pub fn of_shutdown(recording: &Recording, vcpus: usize) -> Result<Self, Otherwise> {
        if let Some(gap) = recording.gap {
            return Err(Otherwise::Gap(gap));
        }
        if vcpus != 1 {
            return Err(Otherwise::Cpus(vcpus));
        }
        let mut replay = Self::new(recording)?;
        replay.play(recording)?;
        Ok(replay)
    }

    /// The machine as it was before its first entry.
    fn new(recording: &Recording) -> Result<Self, Otherwise> {
        let vm = Kvm::soft().create_vm()?;
        let mut memory = Vec::new();
        for (slot, (address, size)) in (0..).zip(&recording.slots) {
            let ram = Memory::new(*size as usize)?;
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: *address,
                memory_size: *size,
                userspace_addr: ram.host_address(),
            };
            // SAFETY: the region is exactly `ram`, which the replay owns and drops last.
            unsafe { vm.set_user_memory_region(region) }?;
            memory.push((*address, ram));
        }
        let mut replay =
            Self { vcpu: vm.create_vcpu(recording.vcpu)?, _vm: vm, memory, features: features(recording)? };
        for (address, bytes) in &recording.pages {
            replay.write(*address, bytes)?;
        }
        // What CPUID says decides what the rest may be.
        for input in &recording.setup {
            replay.tell(input)?;
        }
        replay.vcpu.set_sregs(&recording.sregs)?;
        replay.vcpu.set_regs(&recording.regs)?;
        Ok(replay)
    }

    fn play(&mut self, recording: &Recording) -> Result<(), Otherwise> {
        let (mut exits, mut inputs) = (0, recording.inputs.iter().peekable());
        let started = Instant::now();
        loop {
            while let Some(given) = inputs.next_if(|given| given.after <= exits) {
                self.tell(&given.input)?;
            }
            let exit = match self.vcpu.run() {
                Err(error) if error.errno() == EINTR => {
                    if interrupt::came() {
                        return Err(Otherwise::Interrupted);
                    }
                    if started.elapsed() > LONGEST {
                        return Err(Otherwise::Endless);
                    }
                    continue;
                }
                exit => exit?,
            };
            exits += 1;
            let ended = |what: &str| Err(Otherwise::Ended(format!("exit {exits} {what}")));
            match exit {
                VcpuExit::Shutdown if exits == recording.exits => return Ok(()),
                VcpuExit::Shutdown => {
                    return ended(&format!(
                        "is KVM_EXIT_SHUTDOWN, and the run went on to {}",
                        recording.exits
                    ));
                }
                VcpuExit::InternalError => return ended("is something that the software machine cannot do"),
                VcpuExit::FailEntry(..) => return ended("is a state that it does not enter"),
                _ if exits >= recording.exits => return ended("is no KVM_EXIT_SHUTDOWN"),
                VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data) => {
                    // An answer is noted before anything else that the hypervisor does about an exit.
                    match inputs.peek().filter(|given| given.after == exits).map(|given| &given.input) {
                        Some(Input::Answer(answer)) if answer.len() == data.len() => {
                            data.copy_from_slice(answer);
                        }
                        _ => return ended("reads something that the run did not read there"),
                    }
                }
                _ => {}
            }
        }
    }

    /// Sets what the hypervisor set.
    fn tell(&mut self, input: &Input) -> Result<(), Otherwise> {
        match input {
            // It lies where the exit has asked for it.
            Input::Answer(_) => {}
            Input::InterruptWindow(wanted) => {
                self.vcpu.get_kvm_run().request_interrupt_window = (*wanted).into();
            }
            Input::Regs(regs) => self.vcpu.set_regs(regs)?,
            Input::Sregs(sregs) => self.vcpu.set_sregs(sregs)?,
            Input::Cpuid(entries) => {
                self.vcpu.set_cpuid2(&cpuid(entries)?)?;
            }
            Input::Msrs(msrs) => {
                for &(index, data) in msrs {
                    let entry = kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
                    let msrs = Msrs::from_entries(&[entry]).map_err(|_| Error::new(EINVAL))?;
                    // One that the software machine has not is one that the guest can do without.
                    self.vcpu.set_msrs(&msrs)?;
                }
            }
            Input::Fpu(fpu) => self.vcpu.set_fpu(fpu)?,
            Input::Events(events) => self.vcpu.set_vcpu_events(events)?,
            Input::Nmi => self.vcpu.nmi()?,
            Input::DebugRegs(registers) => self.vcpu.set_debug_regs(registers)?,
            Input::GuestDebug(debug) => self.vcpu.set_guest_debug(debug)?,
            Input::Memory(address, bytes) => self.write(*address, bytes)?,
        }
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Otherwise> {
        let Some((start, memory)) = self.slot(address) else { return Ok(()) };
        Ok(memory.write(address - start, bytes)?)
    }

    fn slot(&self, address: u64) -> Option<&(u64, Memory)> {
        self.memory.iter().find(|(start, memory)| {
            address.checked_sub(*start).is_some_and(|offset| offset < memory.size() as u64)
        })
    }

    /// Bytes of the guest-physical memory, if all of them are there.
    pub fn read(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        let (start, memory) = self.slot(address)?;
        memory.read(address - start, length).ok()
    }

    /// The registers as the first exception found them.
    ///
    /// # Errors
    /// The errno of `KVM_GET_REGS` or `KVM_GET_SREGS`.
    pub fn registers(&self) -> Result<(kvm_regs, kvm_sregs), Error> {
        Ok((self.vcpu.get_regs()?, self.vcpu.get_sregs()?))
    }

    /// What the guest's CPUID says of its paging.
    pub fn features(&self) -> Features {
        self.features
    }

    /// What could not be delivered, from the first exception to the double fault.
    pub fn failed_deliveries(&self) -> Vec<FailedDelivery> {
        self.vcpu.failed_deliveries()
    }
}

fn features(recording: &Recording) -> Result<Features, Error> {
    let shown = recording.setup.iter().rev().find_map(|input| match input {
        Input::Cpuid(entries) => Some(&entries[..]),
        _ => None,
    });
    Ok(Features::of(&cpuid(shown.unwrap_or_default())?))
}

fn cpuid(entries: &[kvm_cpuid_entry2]) -> Result<CpuId, Error> {
    CpuId::from_entries(entries).map_err(|_| Error::new(EINVAL))
}
