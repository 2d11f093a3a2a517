//! Exits, owned: what KVM_RUN came back with, its names and numbers at KVM, on
//! Intel and on AMD. Chapter 02.

use std::fmt;

use crate::kvm::{Details, VcpuExit};

/// One exit to user space, copied out of kvm_run: kvm-ioctls' [`VcpuExit`]
/// borrows the vCPU, and this does not.
#[derive(Clone, Debug, PartialEq)]
pub enum Exit {
    /// The guest wrote to an I/O port; `data` is one or more items of `size` bytes.
    IoOut { port: u16, size: u8, data: Vec<u8> },
    /// The guest reads from an I/O port; `data` is what the host answered.
    IoIn { port: u16, size: u8, data: Vec<u8> },
    /// The guest reads guest-physical memory that no slot backs; `data` is what the host answered.
    MmioRead { address: u64, data: Vec<u8> },
    /// The guest wrote to guest-physical memory that no slot backs, or a read-only one.
    MmioWrite { address: u64, data: Vec<u8> },
    /// The guest executed `hlt`.
    Hlt,
    /// The guest died of a triple fault.
    Shutdown,
    /// The CPU refused to enter the guest; `reason` is the vendor's own number.
    FailEntry { reason: u64, cpu: u32 },
    /// KVM itself could not go on; see [`suberror`]. Of the software machine, `missing` says what it does
    /// not implement.
    InternalError { suberror: u32, missing: Option<String> },
    /// A breakpoint or a single step, asked for with KVM_SET_GUEST_DEBUG.
    Debug,
    /// A signal ended KVM_RUN.
    Intr,
    /// The guest can take an interrupt now: kvm_run's `request_interrupt_window` had asked.
    IrqWindowOpen,
    /// Any other exit, as kvm-ioctls prints it.
    Other(String),
}

/// What an exit is called, and its number, at KVM and at both vendors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// KVM's exit reason: `include/uapi/linux/kvm.h`.
    pub kvm: (&'static str, u32),
    /// Intel's basic exit reason: SDM Vol. 3D, appendix "VMX Basic Exit Reasons".
    pub intel: Option<(&'static str, u32)>,
    /// AMD's exit code: APM Vol. 2, appendix "SVM Intercept Exit Codes".
    pub amd: Option<(&'static str, u32)>,
}

#[rustfmt::skip] // one row an exit
impl Exit {
    /// The names of this exit; `None` for one that the library does not know.
    ///
    /// What the vendors call it is what happened in the CPU, most of the time: an
    /// exit that KVM made while it emulated an instruction had another reason.
    #[must_use]
    pub fn names(&self) -> Option<Names> {
        let names = |kvm, intel, amd| Some(Names { kvm, intel, amd });
        match self {
            Self::IoOut { .. } | Self::IoIn { .. } =>
                names(("KVM_EXIT_IO", 2), Some(("I/O instruction", 30)), Some(("VMEXIT_IOIO", 0x7b))),
            Self::Debug =>
                names(("KVM_EXIT_DEBUG", 4), Some(("Exception or NMI", 0)), Some(("VMEXIT_EXCP1", 0x41))),
            Self::Hlt =>
                names(("KVM_EXIT_HLT", 5), Some(("HLT", 12)), Some(("VMEXIT_HLT", 0x78))),
            Self::MmioRead { .. } | Self::MmioWrite { .. } =>
                names(("KVM_EXIT_MMIO", 6), Some(("EPT violation", 48)), Some(("VMEXIT_NPF", 0x400))),
            Self::IrqWindowOpen =>
                names(("KVM_EXIT_IRQ_WINDOW_OPEN", 7), Some(("Interrupt window", 7)), Some(("VMEXIT_VINTR", 0x64))),
            Self::Shutdown =>
                names(("KVM_EXIT_SHUTDOWN", 8), Some(("Triple fault", 2)), Some(("VMEXIT_SHUTDOWN", 0x7f))),
            Self::FailEntry { .. } =>
                names(("KVM_EXIT_FAIL_ENTRY", 9), Some(("VM-entry failure due to invalid guest state", 33)), Some(("VMEXIT_INVALID", u32::MAX))),
            Self::Intr =>
                names(("KVM_EXIT_INTR", 10), Some(("External interrupt", 1)), Some(("VMEXIT_INTR", 0x60))),
            Self::InternalError { .. } =>
                names(("KVM_EXIT_INTERNAL_ERROR", 17), None, None),
            Self::Other(_) => None,
        }
    }
}

impl Exit {
    /// Copies an exit; `details` are what kvm_run says beside it.
    #[must_use]
    pub(crate) fn of(exit: &VcpuExit<'_>, details: &Details) -> Self {
        let size = details.io_size;
        match exit {
            VcpuExit::IoOut(port, data) => Self::IoOut { port: *port, size, data: data.to_vec() },
            VcpuExit::IoIn(port, data) => Self::IoIn { port: *port, size, data: data.to_vec() },
            VcpuExit::MmioRead(address, data) => Self::MmioRead { address: *address, data: data.to_vec() },
            VcpuExit::MmioWrite(address, data) => Self::MmioWrite { address: *address, data: data.to_vec() },
            VcpuExit::Hlt => Self::Hlt,
            VcpuExit::Shutdown => Self::Shutdown,
            VcpuExit::FailEntry(reason, cpu) => Self::FailEntry { reason: *reason, cpu: *cpu },
            VcpuExit::InternalError => {
                Self::InternalError { suberror: details.suberror, missing: details.missing.clone() }
            }
            VcpuExit::Debug(_) => Self::Debug,
            VcpuExit::Intr => Self::Intr,
            VcpuExit::IrqWindowOpen => Self::IrqWindowOpen,
            #[cfg(host_kvm)]
            other => Self::Other(format!("{other:?}")),
        }
    }

    /// KVM's name for it, or what kvm-ioctls prints.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Other(text) => text,
            known => known.names().map_or("", |names| names.kvm.0),
        }
    }
}

/// What an internal error's suberror means: `include/uapi/linux/kvm.h`.
#[must_use]
pub fn suberror(number: u32) -> &'static str {
    match number {
        1 => "KVM could not emulate the instruction",
        2 => "an exception came up while another was being injected",
        3 => "a VM exit came in the middle of delivering an event to the guest",
        4 => "the CPU came back with an exit reason that KVM does not expect",
        _ => "this library knows no such suberror",
    }
}

/// What the exit carried: `out 0x3f8 <- 0x35 '5'`.
impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IoOut { port, size, data } => write!(f, "out {port:#x} <- {}", Items(*size, data)),
            Self::IoIn { port, size, data } => write!(f, "in {port:#x} -> {}", Items(*size, data)),
            Self::MmioRead { address, data } => {
                write!(f, "read {address:#x} -> {}", Items(data.len() as u8, data))
            }
            Self::MmioWrite { address, data } => {
                write!(f, "write {address:#x} <- {}", Items(data.len() as u8, data))
            }
            Self::FailEntry { reason, .. } => write!(f, "reason {reason:#x}"),
            Self::InternalError { suberror: number, .. } => write!(f, "suberror {number}"),
            Self::Hlt | Self::Shutdown | Self::Debug | Self::Intr | Self::IrqWindowOpen | Self::Other(_) => {
                Ok(())
            }
        }
    }
}

/// Bytes as little-endian items of a size, and as a character where it is one.
struct Items<'a>(u8, &'a [u8]);

impl fmt::Display for Items<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(size, data) = *self;
        for (number, item) in data.chunks(usize::from(size.max(1))).enumerate() {
            let value = item.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
            let space = if number > 0 { " " } else { "" };
            write!(f, "{space}{value:#0width$x}", width = item.len() * 2 + 2)?;
        }
        if let [byte] = data
            && (byte.is_ascii_graphic() || matches!(byte, b' ' | b'\n' | b'\r' | b'\t'))
        {
            write!(f, " {:?}", char::from(*byte))?;
        }
        Ok(())
    }
}

/// An exit that the chapter's loop has no arm for: the guest, or the
/// hypervisor, did something that this chapter does not expect.
#[derive(Clone, Debug, thiserror::Error)]
pub struct Unexpected(pub Exit);

impl Unexpected {
    /// Whether the guest can go no further: it died, or could not be entered.
    #[must_use]
    pub fn is_the_end(&self) -> bool {
        matches!(self.0, Exit::Shutdown | Exit::FailEntry { .. } | Exit::InternalError { .. })
    }
}

impl From<VcpuExit<'_>> for Unexpected {
    fn from(exit: VcpuExit<'_>) -> Self {
        Self(Exit::of(&exit, &Details::default()))
    }
}

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.name();
        match &self.0 {
            Exit::Shutdown => write!(
                f,
                "the guest ended in {name}: a triple fault, an exception whose delivery failed twice"
            ),
            Exit::FailEntry { reason, .. } => write!(
                f,
                "the guest ended in {name}: the CPU refused its state at VM entry (reason {reason:#x})"
            ),
            Exit::InternalError { suberror: number, missing } => {
                let why = missing.as_deref().unwrap_or(suberror(*number));
                write!(f, "the guest ended in {name}: {why} (suberror {number})")
            }
            exit => write!(f, "no one handles this exit: {name} {exit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_shows_its_items_by_size_and_a_lone_byte_as_a_character() {
        let word = Exit::IoOut { port: 0x10, size: 2, data: vec![0x34, 0x12, 0x78, 0x56] };
        assert_eq!(word.to_string(), "out 0x10 <- 0x1234 0x5678");
        let byte = Exit::IoIn { port: 0x60, size: 1, data: vec![b'\n'] };
        assert_eq!(byte.to_string(), r"in 0x60 -> 0x0a '\n'");
    }

    #[test]
    #[cfg(host_kvm)]
    fn the_numbers_are_the_kernels() {
        let number = |exit: Exit| exit.names().expect("a known exit").kvm.1;
        let io = Exit::IoOut { port: 0, size: 1, data: vec![] };
        let internal_error = Exit::InternalError { suberror: 1, missing: None };
        assert_eq!(number(io), kvm_bindings::KVM_EXIT_IO);
        assert_eq!(number(Exit::Debug), kvm_bindings::KVM_EXIT_DEBUG);
        assert_eq!(number(Exit::Hlt), kvm_bindings::KVM_EXIT_HLT);
        let mmio = Exit::MmioRead { address: 0, data: vec![] };
        assert_eq!(number(mmio), kvm_bindings::KVM_EXIT_MMIO);
        assert_eq!(number(Exit::Shutdown), kvm_bindings::KVM_EXIT_SHUTDOWN);
        assert_eq!(number(Exit::FailEntry { reason: 0, cpu: 0 }), kvm_bindings::KVM_EXIT_FAIL_ENTRY);
        assert_eq!(number(Exit::IrqWindowOpen), kvm_bindings::KVM_EXIT_IRQ_WINDOW_OPEN);
        assert_eq!(number(Exit::Intr), kvm_bindings::KVM_EXIT_INTR);
        assert_eq!(number(internal_error), kvm_bindings::KVM_EXIT_INTERNAL_ERROR);
    }
}
