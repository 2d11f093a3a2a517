//! Judges a host: what is right, what is wrong, and the command that mends it.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{Host, KvmFacts};
use crate::kvm::API_VERSION;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// Some chapters, or some speed, are lost.
    Warn,
    /// Nothing runs before this is mended.
    Fail,
}

/// One check of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub says: String,
    /// What to do about it.
    pub fix: Option<String>,
}

/// Real KVM on an emulated CPU.
const LAB: &str = "cargo vmexit lab setup && cargo vmexit lab ch01";
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const EPERM: i32 = 1;

/// All checks, in the order in which they are mended. Ends early where what
/// follows has no meaning.
#[must_use]
pub fn check(host: &Host) -> Vec<Check> {
    let mut checks = Checks(Vec::new());
    if !system(&mut checks, host) {
        return checks.0;
    }
    cpu(&mut checks, host);
    modules(&mut checks, host);
    nested(&mut checks, host);
    device(&mut checks, host);
    if let Some(kvm) = &host.kvm {
        api(&mut checks, kvm);
    }
    checks.0
}

/// The checks as lines for people, each fix under its check:
///
/// ```text
/// pass  CPU           GenuineIntel, flag vmx: lscpu prints "Virtualization: VT-x"
/// fail  device        /dev/kvm (root kvm 0660) may not be opened by this user
///                     -> sudo usermod -aG kvm $USER, then log out and in again
/// ```
#[must_use]
pub fn render(checks: &[Check]) -> String {
    let mut text = String::new();
    for Check { name, verdict, says, fix } in checks {
        let verdict = match verdict {
            Verdict::Pass => "pass",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        };
        text += &format!("{verdict}  {name:<22} {says}\n");
        if let Some(fix) = fix {
            text += &format!("{:<29}-> {fix}\n", "");
        }
    }
    text
}

struct Checks(Vec<Check>);

impl Checks {
    fn pass(&mut self, name: &'static str, says: impl Into<String>) {
        self.0.push(Check { name, verdict: Verdict::Pass, says: says.into(), fix: None });
    }

    fn warn(&mut self, name: &'static str, says: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Check { name, verdict: Verdict::Warn, says: says.into(), fix: Some(fix.into()) });
    }

    fn fail(&mut self, name: &'static str, says: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Check { name, verdict: Verdict::Fail, says: says.into(), fix: Some(fix.into()) });
    }
}

impl Host {
    fn has(&self, flag: &str) -> bool {
        self.cpu_flags.iter().any(|other| other == flag)
    }

    fn is_wsl(&self) -> bool {
        self.kernel.to_lowercase().contains("microsoft")
    }

    /// A command that helps only once the CPU shows its flag.
    fn once_the_flag_is_there(&self, command: String) -> String {
        if self.has("vmx") || self.has("svm") {
            command
        } else {
            format!("once the CPU has its flag: {command}")
        }
    }

    /// The device works, whatever else looks wrong.
    fn runs_guests(&self) -> bool {
        self.kvm.as_ref().is_some_and(|kvm| kvm.probes.iter().any(|probe| probe.failure.is_none()))
    }

    fn vendor_module(&self) -> &'static str {
        if self.cpu_vendor == "AuthenticAMD" { "kvm_amd" } else { "kvm_intel" }
    }
}

fn system(checks: &mut Checks, host: &Host) -> bool {
    const NAME: &str = "system";
    match (host.os.as_str(), host.arch.as_str()) {
        ("linux", "x86_64") if host.is_wsl() => {
            checks.pass(NAME, format!("Linux {} under Windows (WSL2), x86-64", host.kernel));
        }
        ("linux", "x86_64") => checks.pass(NAME, format!("Linux {}, x86-64", host.kernel)),
        ("linux", arch) => {
            let says = format!("Linux on {arch}: its KVM runs {arch} guests, and this workbook's are x86");
            checks.fail(NAME, says, LAB);
            return false;
        }
        ("macos", _) => {
            let says = "macOS has no KVM: its own interface, Hypervisor.framework, is another one";
            checks.fail(NAME, says, format!("in a Linux VM or container on this Mac: {LAB}"));
            return false;
        }
        ("windows", _) => {
            checks.fail(NAME, "Windows has no KVM; its Linux subsystem, WSL2, can have it", "wsl --install");
            return false;
        }
        (os, arch) => {
            checks.fail(NAME, format!("{os} on {arch} has no KVM"), LAB);
            return false;
        }
    }
    true
}

fn cpu(checks: &mut Checks, host: &Host) {
    const NAME: &str = "CPU";
    let (vmx, svm) = (host.has("vmx"), host.has("svm"));
    let vendor = if host.cpu_vendor.is_empty() { "an unnamed vendor" } else { &host.cpu_vendor };
    if vmx || svm {
        let (flag, word) = if vmx { ("vmx", "VT-x") } else { ("svm", "AMD-V") };
        let inside =
            if host.has("hypervisor") { ", inside a virtual machine (nested virtualization)" } else { "" };
        checks.pass(NAME, format!("{vendor}, flag {flag}: lscpu prints \"Virtualization: {word}\"{inside}"));
        return;
    }
    let says = format!("{vendor}, neither vmx nor svm: lscpu prints no \"Virtualization:\" line");
    if host.runs_guests() {
        checks.warn(NAME, says + "; KVM runs guests all the same, in software", LAB);
    } else {
        checks.fail(NAME, says, missing_flag(host));
    }
}

/// Where the flag is lost, and how it comes back.
fn missing_flag(host: &Host) -> String {
    if host.is_wsl() {
        return "in Windows, write nestedVirtualization=true under [wsl2] in %UserProfile%\\.wslconfig, \
                then: wsl --shutdown"
            .to_owned();
    }
    if !host.has("hypervisor") {
        return "turn on virtualization (Intel VT-x, AMD SVM) in the firmware's setup: systemctl reboot --firmware-setup"
            .to_owned();
    }
    let vendor = host.machine_vendor.as_str();
    if vendor.contains("Amazon") {
        return format!(
            "take an instance that has it: a .metal size, or one that offers nested virtualization; or {LAB}"
        );
    }
    if vendor.contains("Google") {
        return "stop the instance, then: gcloud compute instances update NAME --enable-nested-virtualization".to_owned();
    }
    if vendor.contains("Microsoft") {
        return format!("take a size with nested virtualization (Dv3, Ev3 and later); or {LAB}");
    }
    if vendor.contains("innotek") || vendor.contains("Oracle") {
        return "shut the machine down, then on its host: VBoxManage modifyvm NAME --nested-hw-virt on"
            .to_owned();
    }
    if vendor.contains("VMware") {
        return "shut the machine down and add to its .vmx file: vhv.enable = \"TRUE\"".to_owned();
    }
    format!(
        "on the host of this virtual machine: sudo modprobe -r kvm_intel && sudo modprobe kvm_intel nested=1 \
             (kvm_amd on AMD), and give the guest the host's CPU model; or {LAB}"
    )
}

fn modules(checks: &mut Checks, host: &Host) {
    const NAME: &str = "modules";
    let loaded = |name: &str| host.modules.iter().any(|module| module == name);
    let vendors: Vec<&str> =
        host.modules.iter().map(String::as_str).filter(|name| name.starts_with("kvm_")).collect();
    let own = host.vendor_module();
    if loaded(own) {
        checks.pass(NAME, format!("kvm and {own}"));
    } else if !vendors.is_empty() {
        checks.pass(NAME, format!("kvm and {}", vendors.join(", ")));
    } else if host.runs_guests() {
        checks.pass(NAME, "none is shown, and KVM runs guests: it is somebody else's kernel");
    } else if host.container.is_some() {
        checks.fail(
            NAME,
            format!("{own} is not loaded on this container's host"),
            format!("on the host: sudo modprobe {own}"),
        );
    } else if loaded("kvm") {
        let fix = host.once_the_flag_is_there(format!("sudo modprobe {own}"));
        checks.fail(NAME, format!("kvm is loaded, {own} is not"), fix);
    } else {
        let fix = host.once_the_flag_is_there(format!("sudo modprobe {own}"));
        checks.fail(NAME, format!("neither kvm nor {own} is loaded"), fix);
    }
}

fn nested(checks: &mut Checks, host: &Host) {
    const NAME: &str = "nested virtualization";
    match host.nested.as_deref() {
        Some("Y" | "1") => checks.pass(NAME, "on: a guest here can be a hypervisor itself"),
        Some(_) => {
            let own = host.vendor_module();
            checks.warn(
                NAME,
                "off: chapter 22, a guest that is a hypervisor, needs it; nothing else does",
                format!("echo options {own} nested=1 | sudo tee /etc/modprobe.d/vmexit.conf, then reboot"),
            );
        }
        None => {}
    }
}

fn device(checks: &mut Checks, host: &Host) {
    const NAME: &str = "device";
    let node = &host.device;
    let path = if node.path.is_empty() { "/dev/kvm" } else { &node.path };
    let group = node.owner.split(' ').nth(1).unwrap_or("kvm");
    match (node.errno, &host.container) {
        (0, _) => checks.pass(NAME, format!("{path} ({}) opens", node.owner)),
        (ENOENT, Some(engine)) => {
            let says = format!("{path} is not in this container");
            checks.fail(NAME, says, format!("start it with the device: {engine} run --device /dev/kvm …"));
        }
        (ENOENT, None) => {
            let own = host.vendor_module();
            let fix = host.once_the_flag_is_there(format!("sudo modprobe {own}"));
            checks.fail(NAME, format!("{path} does not exist"), fix);
        }
        (EACCES | EPERM, Some(engine)) => {
            let says = format!("{path} ({}) may not be opened by this user", node.owner);
            checks.fail(NAME, says, format!("start the container with --group-add: {engine} run --device /dev/kvm --group-add $(stat -c %g /dev/kvm) …"));
        }
        (EACCES | EPERM, None) => {
            let says = format!("{path} ({}) may not be opened by this user", node.owner);
            let fix = if group == "root" {
                "give the node its group: sudo chown root:kvm /dev/kvm && sudo chmod 660 /dev/kvm, then: sudo usermod -aG kvm $USER".to_owned()
            } else {
                format!("sudo usermod -aG {group} $USER, then log out and in again")
            };
            checks.fail(NAME, says, fix);
        }
        (errno, _) => {
            let reason = std::io::Error::from_raw_os_error(errno);
            checks.fail(NAME, format!("{path} cannot be opened: {reason}"), format!("ls -l {path}"));
        }
    }
}

fn api(checks: &mut Checks, kvm: &KvmFacts) {
    if kvm.api_version != API_VERSION {
        let says = format!("it answers version {}, and KVM's is {API_VERSION}", kvm.api_version);
        checks.fail("API", says, "unset VMEXIT_DEVICE: this is no KVM device");
        return;
    }
    checks.pass("API", format!("version {API_VERSION}"));
    if kvm.missing.is_empty() {
        checks.pass("capabilities", "all that the chapters need");
    } else {
        checks.warn("capabilities", format!("without {}", kvm.missing.join(", ")), LAB);
    }
    checks.pass(
        "limits",
        format!("{} vCPUs recommended, {} allowed, {} memory slots", kvm.vcpus, kvm.max_vcpus, kvm.slots),
    );
    let ran = kvm.probes.iter().filter(|probe| probe.failure.is_none()).count();
    let failed: Vec<String> = kvm
        .probes
        .iter()
        .filter_map(|probe| Some(format!("{}: {}", probe.probe, probe.failure.as_ref()?)))
        .collect();
    let says = format!("{ran} of {} ran", kvm.probes.len());
    if failed.is_empty() {
        checks.pass("probe guests", says + ": this KVM is a complete one");
        return;
    }
    let reasons: BTreeSet<&String> = kvm.probes.iter().filter_map(|probe| probe.failure.as_ref()).collect();
    let says = match (ran, reasons.first()) {
        (0, Some(reason)) if reasons.len() == 1 => format!("{says}: {reason}"),
        _ => format!("{says}; {}", failed.join("; ")),
    };
    if ran == 0 {
        let fix = if failed.iter().any(|text| text.contains("KVM_CREATE_VM")) {
            "end the machines of other hypervisors (VirtualBox, VMware), which may hold the CPU, and try again".to_owned()
        } else {
            LAB.to_owned()
        };
        checks.fail("probe guests", says, fix);
    } else {
        checks.warn("probe guests", says + ": this KVM is a limited one", LAB);
    }
}
