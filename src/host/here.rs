//! Reads this machine.

use std::env::consts;
use std::fs;

use super::{Host, KvmFacts, Node, ProbeResult};
use crate::kvm::{Cap, Device, Kvm, Probe};

/// What later chapters ask of KVM: irqchip and PIT (13), ioeventfd and irqfd (13, 14), MP state (17),
/// debugging (19), events (09, 20), read-only slots and the dirty log (20).
#[cfg(host_kvm)]
const NEEDED: [(Cap, &str); 13] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::SetGuestDebug, "KVM_CAP_SET_GUEST_DEBUG"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
];
#[cfg(not(host_kvm))]
const NEEDED: [(Cap, &str); 1] = [(Cap::Irqfd, "KVM_CAP_IRQFD")];

impl Host {
    /// This machine. Runs the probe guests, each for a second at most.
    #[must_use]
    pub fn here() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name: &str| {
            let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
        };
        let flags = field("flags").unwrap_or_default();
        let of_interest = |flag: &&str| matches!(*flag, "vmx" | "svm" | "hypervisor");
        let device = Device::chosen();
        let opened = Kvm::open_device(&device);
        Self {
            os: consts::OS.to_owned(),
            arch: consts::ARCH.to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu_vendor: field("vendor_id").unwrap_or_default(),
            cpu_flags: flags.split_whitespace().filter(of_interest).map(str::to_owned).collect(),
            modules: modules(),
            nested: ["kvm_intel", "kvm_amd"]
                .iter()
                .find_map(|module| fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).ok())
                .map(|value| value.trim().to_owned()),
            container: container(),
            machine_vendor: read("/sys/class/dmi/id/sys_vendor").trim().to_owned(),
            device: Node {
                path: device.to_string(),
                owner: owner(&device.to_string()),
                errno: opened.as_ref().err().map_or(0, |error| error.errno()),
            },
            kvm: opened.ok().map(|kvm| KvmFacts::of(&kvm)),
        }
    }
}

impl KvmFacts {
    /// What the software machine says of itself: the same on every host.
    #[must_use]
    pub fn of_software() -> Self {
        Self::of(&Kvm::soft())
    }

    fn of(kvm: &Kvm) -> Self {
        let api_version = kvm.get_api_version();
        if api_version != crate::kvm::API_VERSION {
            return Self { api_version, ..Self::default() };
        }
        let missing = NEEDED.iter().filter(|(capability, _)| !kvm.check_extension(*capability));
        let probe = |probe: Probe| ProbeResult {
            probe: probe.to_string(),
            failure: probe.run(kvm).err().map(|failure| failure.to_string()),
        };
        Self {
            api_version,
            missing: missing.map(|(_, name)| (*name).to_owned()).collect(),
            vcpus: kvm.check_extension_int(Cap::NrVcpus),
            max_vcpus: kvm.check_extension_int(Cap::MaxVcpus),
            slots: kvm.check_extension_int(Cap::NrMemslots),
            probes: Probe::ALL.map(probe).to_vec(),
        }
    }
}

/// The file's text, empty where it cannot be read.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// KVM's modules; `/sys/module` has those that are built into the kernel, too.
fn modules() -> Vec<String> {
    let names = fs::read_dir("/sys/module").into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut kvm: Vec<String> = names.filter(|name| name.starts_with("kvm")).collect();
    kvm.sort();
    kvm
}

fn container() -> Option<String> {
    let marks = [("/.dockerenv", "docker"), ("/run/.containerenv", "podman")];
    let marked = marks.iter().find(|(path, _)| fs::exists(path).unwrap_or(false));
    marked.map(|(_, name)| (*name).to_owned()).or_else(|| std::env::var("container").ok())
}

#[cfg(unix)]
fn owner(path: &str) -> String {
    use std::os::unix::fs::MetadataExt;
    let Ok(file) = fs::metadata(path) else { return String::new() };
    let name = |database: &str, id: u32| {
        let database = read(database);
        let mut entries = database.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let found = entries.find(|entry| entry.get(2) == Some(&id.to_string().as_str()));
        found.map_or_else(|| id.to_string(), |entry| entry[0].to_owned())
    };
    let (user, group) = (name("/etc/passwd", file.uid()), name("/etc/group", file.gid()));
    format!("{user} {group} {:04o}", file.mode() & 0o7777)
}

#[cfg(not(unix))]
fn owner(_: &str) -> String {
    String::new()
}
