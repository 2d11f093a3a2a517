//! What this machine can do, and what to do where it cannot. Chapter 00.
//!
//! [`Host`] is what a machine shows: read by [`Host::here`], or recorded in a
//! file. [`check`] judges it, and never looks anywhere else; so recorded hosts
//! test what is said on machines that nobody here has.

mod check;
mod here;

pub use check::{Check, Verdict, check, render};

use serde::{Deserialize, Serialize};

/// All of a machine that matters to KVM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// `linux`, `macos`, `windows`: as in [`std::env::consts::OS`].
    pub os: String,
    /// `x86_64`, `aarch64`: as in [`std::env::consts::ARCH`].
    pub arch: String,
    /// The kernel's release, `/proc/sys/kernel/osrelease`.
    pub kernel: String,
    /// The first CPU's `vendor_id` of `/proc/cpuinfo`.
    pub cpu_vendor: String,
    /// Its flags, as far as they matter here: `vmx`, `svm`, `hypervisor`.
    pub cpu_flags: Vec<String>,
    /// KVM's modules, loaded or built in: `kvm`, `kvm_intel`, `kvm_amd`, …
    pub modules: Vec<String>,
    /// The parameter `nested` of kvm_intel or kvm_amd: `Y`, `N`, `1`, `0`.
    pub nested: Option<String>,
    /// The container that this runs in: `docker`, `podman`, …
    pub container: Option<String>,
    /// Who made the machine, by its firmware: `Amazon EC2`, `QEMU`, `LENOVO`.
    pub machine_vendor: String,
    /// The device node.
    pub device: Node,
    /// What KVM said of itself, where the device could be opened.
    pub kvm: Option<KvmFacts>,
}

/// A device node, `/dev/kvm`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Its path.
    pub path: String,
    /// `OWNER GROUP MODE`, as in `root kvm 0660`; empty where there is none.
    pub owner: String,
    /// The errno with which opening it failed, 0 where it opened.
    pub errno: i32,
}

/// What KVM said of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KvmFacts {
    /// The answer to KVM_GET_API_VERSION.
    pub api_version: i32,
    /// The capabilities that later chapters need, and this KVM lacks.
    pub missing: Vec<String>,
    /// How many vCPUs it recommends for a VM at most.
    pub vcpus: i32,
    /// How many it allows.
    pub max_vcpus: i32,
    /// How many memory slots a VM may have.
    pub slots: i32,
    /// The probe guests, in their order.
    pub probes: Vec<ProbeResult>,
}

/// A probe guest, and what went wrong with it, if anything did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// What it shows: `long mode`.
    pub probe: String,
    /// `None` where it ran.
    pub failure: Option<String>,
}

/// What each chapter needs, by name.
pub const CHAPTERS: &[(&str, crate::kvm::Probe)] = &[
    ("ch01", crate::kvm::Probe::Real),
    ("ch02", crate::kvm::Probe::Real),
    ("ch03", crate::kvm::Probe::Real),
    ("ch04", crate::kvm::Probe::Real),
    ("ch05", crate::kvm::Probe::Protected),
    ("ch06", crate::kvm::Probe::Paging32),
    ("ch07", crate::kvm::Probe::Paging32),
    ("ch08", crate::kvm::Probe::Long),
    ("ch09", crate::kvm::Probe::Exception),
    ("ch10", crate::kvm::Probe::SystemCall),
    ("ch11", crate::kvm::Probe::SystemCall),
    ("ch12", crate::kvm::Probe::Exception),
    ("ch13", crate::kvm::Probe::Exception),
    ("ch16", crate::kvm::Probe::X87),
];

impl KvmFacts {
    /// The chapters that this KVM can run, and those that it cannot.
    #[must_use]
    pub fn chapters(&self) -> (Vec<&'static str>, Vec<&'static str>) {
        let ran = |name: &str| self.probes.iter().any(|probe| probe.probe == name && probe.failure.is_none());
        let runs = |(_, needs): &&(&str, crate::kvm::Probe)| ran(&needs.to_string());
        let (can, cannot): (Vec<_>, Vec<_>) = CHAPTERS.iter().partition(runs);
        let names = |list: Vec<&(&'static str, _)>| list.into_iter().map(|(name, _)| *name).collect();
        (names(can), names(cannot))
    }
}
