//! A machine under test: it runs one instruction from a given state, up to the
//! `hlt` behind it or that of a handler, and shows what it left behind.

use std::ops::Range;

use anyhow::{Context, Result};
use vmexit::exit::Unexpected;
use vmexit::guest::Memory;
use vmexit::kvm::{CpuId, VcpuExit, kvm_regs, kvm_sregs};

use crate::image::{self, MEMORY};
use crate::referee::Referee;

/// More exits than an instruction can have reasons for: a repeated `outs` of 16 items.
const MOST_EXITS: usize = 64;
/// What KVM_RUN returns when a signal comes, and the software machine when its budget is used up.
const EINTR: i32 = 4;
/// A step that has seen so many of them does not end. The signal comes once a second: see `main`.
const MOST_INTERRUPTIONS: u32 = 3;

/// What came back to the hypervisor on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Out(u16, Vec<u8>),
    In(u16, usize),
    Write(u64, Vec<u8>),
    Read(u64, usize),
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// At a `hlt`.
    Halted,
    /// By a triple fault.
    Shutdown,
    /// Not at all: the machine could not go on.
    GaveUp(String),
}

impl End {
    /// Whether something of the step may still be on its way.
    pub fn is_broken(&self) -> bool {
        matches!(self, Self::GaveUp(reason) if reason == ENDLESS)
    }
}

const ENDLESS: &str = "it does not end";

/// What a step left behind, but for memory.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub answers: Vec<Answer>,
    pub end: End,
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
}

/// A machine in one setting.
pub struct Subject {
    vcpu: Vcpu,
    /// Dropped after the vCPU: KVM lets go of it first.
    pub memory: Memory,
    pub reset: kvm_sregs,
    #[cfg_attr(not(host_kvm), allow(dead_code))]
    referee: Referee,
}

/// A vCPU, and how its registers come and go. It keeps its VM alive by itself.
enum Vcpu {
    /// By ioctls that cost nothing.
    Soft(Box<vmexit::kvm::VcpuFd>),
    /// In the page that KVM_RUN shares: `KVM_CAP_SYNC_REGS`.
    #[cfg(host_kvm)]
    Kvm(Box<kvm_ioctls::VcpuFd>),
}

impl Subject {
    pub fn soft(cpuid: &CpuId) -> Result<Self> {
        let memory = Memory::new(MEMORY)?;
        let vm = vmexit::kvm::Kvm::soft().create_vm()?;
        // SAFETY: the region is exactly `memory`, which the subject owns and drops last.
        unsafe { vm.set_user_memory_region(region(&memory)) }?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(cpuid)?;
        let reset = vcpu.get_sregs()?;
        Ok(Self { vcpu: Vcpu::Soft(Box::new(vcpu)), memory, reset, referee: Referee::Silicon })
    }

    #[cfg(host_kvm)]
    pub fn kvm(kvm: &kvm_ioctls::Kvm, cpuid: &CpuId, referee: Referee) -> Result<Self> {
        use kvm_ioctls::SyncReg;
        let memory = Memory::new(MEMORY)?;
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        vm.set_identity_map_address(vmexit::kvm::IDENTITY_MAP_ADDRESS)
            .context("KVM_SET_IDENTITY_MAP_ADDR")?;
        vm.set_tss_address(vmexit::kvm::TSS_ADDRESS).context("KVM_SET_TSS_ADDR")?;
        // SAFETY: the region is exactly `memory`, which the subject owns and drops last.
        unsafe { vm.set_user_memory_region(region(&memory)) }.context("KVM_SET_USER_MEMORY_REGION")?;
        let mut vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        vcpu.set_cpuid2(cpuid).context("KVM_SET_CPUID2")?;
        let reset = vcpu.get_sregs().context("KVM_GET_SREGS")?;
        vcpu.set_sync_valid_reg(SyncReg::Register);
        vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
        Ok(Self { vcpu: Vcpu::Kvm(Box::new(vcpu)), memory, reset, referee })
    }

    /// Runs from these registers; the system registers stay as they are where none are given.
    pub fn run(&mut self, regs: &kvm_regs, sregs: Option<&kvm_sregs>) -> Result<Outcome> {
        match &mut self.vcpu {
            Vcpu::Soft(vcpu) => {
                vcpu.set_regs(regs).context("KVM_SET_REGS")?;
                if let Some(sregs) = sregs {
                    vcpu.set_sregs(sregs).context("KVM_SET_SREGS")?;
                }
            }
            #[cfg(host_kvm)]
            Vcpu::Kvm(vcpu) => {
                use kvm_ioctls::SyncReg;
                vcpu.sync_regs_mut().regs = *regs;
                vcpu.set_sync_dirty_reg(SyncReg::Register);
                if let Some(sregs) = sregs {
                    vcpu.sync_regs_mut().sregs = *sregs;
                    // Without an interrupt controller in the kernel, CR8 comes from here at every entry.
                    vcpu.get_kvm_run().cr8 = sregs.cr8;
                    if self.referee == Referee::Qemu {
                        // QEMU's CPU takes a busy task for none at all: it refuses ports, and aborts where
                        // an interrupt looks for ring 0's stack. KVM shows it busy in any case.
                        vcpu.sync_regs_mut().sregs.tr.type_ &= !2;
                    }
                    vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
                }
            }
        }
        let (answers, end) = self.vcpu.run_to_the_end()?;
        let (regs, sregs) = match &self.vcpu {
            Vcpu::Soft(vcpu) => (vcpu.get_regs()?, vcpu.get_sregs()?),
            #[cfg(host_kvm)]
            Vcpu::Kvm(vcpu) => {
                let shared = vcpu.sync_regs();
                (shared.regs, shared.sregs)
            }
        };
        Ok(Outcome { answers, end, regs, sregs })
    }

    /// The x87 registers as FNINIT leaves them: FXRSTOR may have brought errors that a later FWAIT would raise,
    /// and the software machine has none.
    pub fn reset_x87(&self) -> Result<()> {
        match &self.vcpu {
            Vcpu::Soft(..) => Ok(()),
            #[cfg(host_kvm)]
            Vcpu::Kvm(vcpu) => {
                let fpu = kvm_bindings::kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
                vcpu.set_fpu(&fpu).context("KVM_SET_FPU")
            }
        }
    }

    /// Lets go of an exception that was on its way to the guest.
    pub fn forget_events(&self) -> Result<()> {
        match &self.vcpu {
            Vcpu::Soft(..) => Ok(()),
            #[cfg(host_kvm)]
            Vcpu::Kvm(vcpu) => {
                vcpu.set_vcpu_events(&kvm_bindings::kvm_vcpu_events::default()).context("KVM_SET_VCPU_EVENTS")
            }
        }
    }

    /// Makes memory what `image` is, page by page where it is not, but for the pages in `but`.
    pub fn restore(&self, image: &[u8], but: &Range<u64>, buffer: &mut [u8]) -> Result<()> {
        self.memory.read_into(0, buffer)?;
        let page = image::PAGE as usize;
        for (number, (wanted, found)) in image.chunks(page).zip(buffer.chunks(page)).enumerate() {
            let at = number as u64 * image::PAGE;
            if !but.contains(&at) && differ(wanted, found) {
                self.memory.write(at, wanted)?;
            }
        }
        Ok(())
    }
}

/// Whether two ranges of the same length differ. Written out because the C library of a static program
/// compares byte by byte.
pub fn differ(left: &[u8], right: &[u8]) -> bool {
    let (left_words, left_rest) = left.as_chunks::<8>();
    let (right_words, right_rest) = right.as_chunks::<8>();
    let word = |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes);
    let difference = left_words.iter().zip(right_words).fold(0, |all, (a, b)| all | (word(a) ^ word(b)));
    difference != 0 || left_rest != right_rest
}

fn region(memory: &Memory) -> vmexit::kvm::kvm_userspace_memory_region {
    vmexit::kvm::kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: memory.size() as u64,
        userspace_addr: memory.host_address(),
    }
}

impl Vcpu {
    /// KVM_RUN; `None` when a signal or its budget ended it.
    fn run(&mut self) -> Result<Option<VcpuExit<'_>>> {
        let exit = match self {
            Self::Soft(vcpu) => vcpu.run(),
            #[cfg(host_kvm)]
            Self::Kvm(vcpu) => vcpu.run(),
        };
        match exit {
            Ok(exit) => Ok(Some(exit)),
            Err(error) if error.errno() == EINTR => Ok(None),
            Err(error) => Err(error).context("KVM_RUN"),
        }
    }

    /// Answers exits, the same way every time, up to the one that ends the step.
    fn run_to_the_end(&mut self) -> Result<(Vec<Answer>, End)> {
        let mut answers = Vec::new();
        let mut interrupted = 0;
        while answers.len() < MOST_EXITS && interrupted < MOST_INTERRUPTIONS {
            let filling = 0xa0 | answers.len() as u8;
            let answer = match self.run()? {
                Some(VcpuExit::Hlt) => return Ok((answers, End::Halted)),
                Some(VcpuExit::Shutdown) => return Ok((answers, End::Shutdown)),
                Some(VcpuExit::IoOut(port, data)) => Answer::Out(port, data.to_vec()),
                Some(VcpuExit::MmioWrite(address, data)) => Answer::Write(address, data.to_vec()),
                Some(VcpuExit::IoIn(port, data)) => {
                    data.fill(filling);
                    Answer::In(port, data.len())
                }
                Some(VcpuExit::MmioRead(address, data)) => {
                    data.fill(filling);
                    Answer::Read(address, data.len())
                }
                Some(exit) => {
                    let name = Unexpected::from(exit).0.name().to_owned();
                    return Ok((answers, End::GaveUp(name)));
                }
                None => {
                    interrupted += 1;
                    continue;
                }
            };
            answers.push(answer);
        }
        Ok((answers, End::GaveUp(ENDLESS.to_owned())))
    }
}
