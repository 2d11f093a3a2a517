//! Guests of a few bytes that show what a KVM can run at all: its set-up ioctls
//! may all succeed and its KVM_RUN still fail. Chapter 00.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Kvm, VcpuExit, kvm_sregs};
use crate::exception::vector;
use crate::exit::Unexpected;
use crate::guest::Memory;
use crate::machine::Machine;
use crate::mode::{self, CODE_SELECTOR, cr0, cr4};
use crate::paging::{self, entry};
use crate::run::interrupt::Kick;
use crate::segment::{Descriptor, Gate};

/// What a probe guest shows, in the order of the chapters that need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Code in real mode.
    Real,
    /// 32-bit code in protected mode.
    Protected,
    /// 32-bit code behind page tables.
    Paging32,
    /// 64-bit code.
    Long,
    /// 64-bit code that takes a fault and a breakpoint through its IDT and returns.
    Exception,
    /// 64-bit code that goes to ring 3 by `sysretq` and comes back by `syscall`.
    SystemCall,
    /// 64-bit code that computes with x87, as an operating system's programs may.
    X87,
}

impl Probe {
    /// All seven.
    pub const ALL: [Self; 7] = [
        Self::Real,
        Self::Protected,
        Self::Paging32,
        Self::Long,
        Self::Exception,
        Self::SystemCall,
        Self::X87,
    ];
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Real => "real mode",
            Self::Protected => "protected mode",
            Self::Paging32 => "32-bit paging",
            Self::Long => "long mode",
            Self::Exception => "an exception through an IDT",
            Self::SystemCall => "a system call from ring 3",
            Self::X87 => "x87 arithmetic",
        })
    }
}

// ANCHOR: guests
/// `out 0x10, al; hlt`: the same bytes in every mode.
const CODE: [u8; 3] = [0xe6, 0x10, 0xf4];
/// `ud2; int3; hlt`, and the handler of #UD: `out 0x10, al; add qword ptr [rsp], 2; iretq`. That of #BP
/// is its last instruction alone.
const FAULTING: [u8; 4] = [0x0f, 0x0b, 0xcc, 0xf4];
const HANDLER_CODE: [u8; 9] = [0xe6, 0x10, 0x48, 0x83, 0x04, 0x24, 0x02, 0x48, 0xcf];
/// Sets STAR and LSTAR, goes to ring 3 by `sysretq`, and comes back by `syscall`, to [`CODE`]:
///
/// ```text
/// mov ecx, 0xc0000081; xor eax, eax; mov edx, 0x001b0008; wrmsr
/// inc ecx; mov eax, 0x1100; xor edx, edx; wrmsr
/// mov ecx, 0x1027; mov r11d, 2; sysretq
/// syscall                                 at 0x1027
/// ```
#[rustfmt::skip] // an instruction or two a line
const CALLING: [u8; 0x29] = [
    0xb9, 0x81, 0x00, 0x00, 0xc0, 0x31, 0xc0, 0xba, 0x08, 0x00, 0x1b, 0x00, 0x0f, 0x30,
    0xff, 0xc1, 0xb8, 0x00, 0x11, 0x00, 0x00, 0x31, 0xd2, 0x0f, 0x30,
    0xb9, 0x27, 0x10, 0x00, 0x00, 0x41, 0xbb, 0x02, 0x00, 0x00, 0x00, 0x48, 0x0f, 0x07,
    0x0f, 0x05,
];
/// `fninit; fld1; fadd st, st; fstp st`, right before [`CODE`].
const COMPUTING: [u8; 8] = [0xdb, 0xe3, 0xd9, 0xe8, 0xd8, 0xc0, 0xdd, 0xd8];
const PORT: u16 = 0x10;
// ANCHOR_END: guests

const LOAD_ADDRESS: u64 = 0x1000;
const HANDLER: u64 = 0x1100;
const GDT: u64 = 0x1200;
const IDT: u64 = 0x1300;
const TABLES: u64 = 0x2000;
const MEMORY: usize = 0x6000;
/// A few instructions take microseconds, on every KVM.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the probe guest showed.
pub struct Probed {
    /// At the exit of a plain `out`, RIP is past the instruction.
    pub out_after: bool,
}

/// Why the probe guest did not get through.
#[derive(Debug)]
pub enum Failure {
    /// It could not be set up: the ioctl, and its errno.
    Setup(anyhow::Error),
    /// KVM_RUN came back with this instead.
    Ending(String),
}

impl Failure {
    /// What its probe guest ended in, without more words.
    pub(super) fn ending(&self) -> String {
        match self {
            Self::Setup(error) => format!("{error:#}"),
            Self::Ending(ending) => ending.clone(),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Setup(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setup(error) => write!(f, "{error:#}"),
            Self::Ending(ending) => write!(f, "its probe guest ended in {ending}"),
        }
    }
}

fn stuck_or_failed(error: super::Error) -> Failure {
    const EINTR: i32 = 4;
    match error.errno() {
        EINTR => Failure::Ending(format!("nothing within {PATIENCE:?}")),
        _ => Failure::Setup(anyhow::Error::from(error).context("KVM_RUN")),
    }
}

impl Probe {
    /// Enters the guest from outside and expects its `out`, then its `hlt`.
    ///
    /// # Errors
    /// What happened instead.
    pub fn run(self, kvm: &Kvm) -> std::result::Result<Probed, Failure> {
        let mut machine = self.machine(kvm)?;
        let vcpu = &mut machine.vcpu;
        // ANCHOR: expect
        let _kick = Kick::arm(vcpu.backend.immediate_exit(), Some(PATIENCE));
        match vcpu.run().map_err(stuck_or_failed)? {
            VcpuExit::IoOut(PORT, _) => {}
            exit => return Err(Failure::Ending(Unexpected::from(exit).0.name().to_owned())),
        }
        let rip = vcpu.get_regs().context("KVM_GET_REGS")?.rip;
        match vcpu.run().map_err(stuck_or_failed)? {
            VcpuExit::Hlt => Ok(Probed { out_after: rip != self.out_at() }),
            exit => Err(Failure::Ending(Unexpected::from(exit).0.name().to_owned())),
        }
        // ANCHOR_END: expect
    }

    /// Where its `out` is.
    fn out_at(self) -> u64 {
        match self {
            Self::Exception | Self::SystemCall => HANDLER,
            Self::X87 => LOAD_ADDRESS + COMPUTING.len() as u64,
            _ => LOAD_ADDRESS,
        }
    }

    /// A machine that is about to execute the guest's first instruction.
    fn machine(self, kvm: &Kvm) -> Result<Machine> {
        let machine = Machine::new(kvm, Memory::new(MEMORY)?)?;
        let mut sregs = machine.vcpu.get_sregs().context("KVM_GET_SREGS")?;
        self.prepare(&machine.memory, &mut sregs)?;
        machine.vcpu.set_sregs(&sregs).context("KVM_SET_SREGS")?;
        let mut regs = machine.vcpu.get_regs().context("KVM_GET_REGS")?;
        (regs.rip, regs.rsp, regs.rflags) = (LOAD_ADDRESS, MEMORY as u64, mode::rflags::FIXED);
        machine.vcpu.set_regs(&regs).context("KVM_SET_REGS")?;
        Ok(machine)
    }

    /// Writes the guest and its tables, and puts the CPU into its mode.
    fn prepare(self, memory: &Memory, sregs: &mut kvm_sregs) -> Result<()> {
        memory.write(self.out_at(), &CODE)?;
        match self {
            Self::Exception => memory.write(LOAD_ADDRESS, &FAULTING)?,
            Self::SystemCall => memory.write(LOAD_ADDRESS, &CALLING)?,
            Self::X87 => memory.write(LOAD_ADDRESS, &COMPUTING)?,
            _ => {}
        }
        match self {
            Self::Real => mode::enter_real(sregs),
            Self::Protected => mode::enter_protected(sregs, Descriptor::CODE_32),
            Self::Paging32 => {
                mode::enter_protected(sregs, Descriptor::CODE_32);
                // One page of 4 MiB at 0. Intel SDM Vol. 3A, "32-Bit Paging".
                let page = (entry::PRESENT | entry::WRITABLE | entry::LARGE) as u32;
                memory.write(TABLES, &page.to_le_bytes())?;
                (sregs.cr3, sregs.cr4) = (TABLES, sregs.cr4 | cr4::PSE);
                sregs.cr0 |= cr0::PG;
            }
            Self::Long | Self::Exception | Self::SystemCall | Self::X87 => {
                mode::enter_protected(sregs, Descriptor::CODE_64);
                mode::enter_long(sregs, paging::identity_map(memory, TABLES)?);
            }
        }
        if self == Self::Exception {
            memory.write(HANDLER, &HANDLER_CODE)?;
            let gdt = [Descriptor::NULL, Descriptor::CODE_64, Descriptor::DATA];
            memory.write(GDT, &gdt.map(|descriptor| descriptor.0.to_le_bytes()).concat())?;
            (sregs.gdt.base, sregs.gdt.limit) = (GDT, 3 * 8 - 1);
            /// Where in the handler its `iretq` is.
            const IRETQ: u64 = 7;
            for (vector, handler) in [(vector::BP, HANDLER + IRETQ), (vector::UD, HANDLER)] {
                let gate = Gate::interrupt(CODE_SELECTOR, handler).to_64();
                memory.write(IDT + u64::from(vector) * 16, &gate.map(u64::to_le_bytes).concat())?;
            }
            (sregs.idt.base, sregs.idt.limit) = (IDT, 7 * 16 - 1);
        }
        if self == Self::SystemCall {
            // Ring 3 may use the first 2 MiB: an entry of each level says so.
            for table in 0..3 {
                let address = TABLES + table * paging::PAGE;
                let low = memory.read(address, 1)?[0] | entry::USER as u8;
                memory.write(address, &[low])?;
            }
            sregs.efer |= mode::efer::SCE;
        }
        Ok(())
    }
}
