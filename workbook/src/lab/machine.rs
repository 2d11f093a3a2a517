//! The lab's two machines.

use std::fmt;
use std::time::Duration;

/// An emulated computer whose CPU has virtualization, and which so runs the
/// kernel's real KVM for that vendor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Machine {
    /// QEMU's software CPU, which emulates SVM: kvm_amd.
    Amd,
    /// Bochs, which emulates VMX: kvm_intel.
    Intel,
}

impl Machine {
    /// Both, in the order in which they are shown.
    pub const ALL: [Self; 2] = [Self::Amd, Self::Intel];

    /// The name used in file names and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amd => "amd",
            Self::Intel => "intel",
        }
    }

    /// The kernel module that is KVM for this vendor.
    #[must_use]
    pub const fn kvm_module(self) -> &'static str {
        match self {
            Self::Amd => "kvm_amd",
            Self::Intel => "kvm_intel",
        }
    }

    /// The longest that a healthy machine is silent.
    #[must_use]
    pub const fn patience(self) -> Duration {
        match self {
            Self::Amd => Duration::from_secs(60),
            Self::Intel => Duration::from_secs(180),
        }
    }

    /// Kernel arguments for both machines: results have a port of their own, so
    /// the console is quiet; the kernel's self-tests of its ciphers take an
    /// interpreter 7 seconds and prove nothing here.
    pub const KERNEL_ARGUMENTS: &str = "console=ttyS0,115200 quiet panic=-1 cryptomgr.notests=1 \
         initcall_blacklist=load_system_certificate_list,trace_eval_init";
}

/// The vendor's name as people write it.
impl fmt::Display for Machine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Amd => "AMD",
            Self::Intel => "Intel",
        })
    }
}
