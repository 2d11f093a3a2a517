//! Which machine runs the guest, and every way in which opening it fails.

use std::fmt;
use std::path::PathBuf;

use super::{API_VERSION, Cap, Kvm, KvmBackend, Probe, ProbeFailure, host};
use crate::run::Run;
use crate::run::options::Backend;
use crate::status::complain;

/// Why no machine could be had: a sentence, with the way out.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// This system has no KVM, or its module is not loaded.
    #[error("{device} does not exist: {}", missing_device())]
    NoDevice { device: Device },
    /// The device is there, and not for this user.
    #[error(
        "you may not open {device}: join its group with `sudo usermod -aG kvm $USER` and log in again \
         (in a container, pass the device in: --device /dev/kvm); `cargo run --bin ch00` looks closer"
    )]
    NoPermission { device: Device },
    /// Opening failed in another way.
    #[error("{device} cannot be opened: {reason}")]
    Open { device: Device, reason: String },
    /// It opens but does not speak KVM.
    #[error("{device} is no KVM device: it answers no KVM_GET_API_VERSION")]
    NotKvm { device: Device },
    /// It speaks another version.
    #[error(
        "{device} speaks version {version} of the KVM API, and there has been only version 12 since 2007: this is not Linux's KVM"
    )]
    ApiVersion { device: Device, version: i32 },
    /// A capability that every run needs is missing.
    #[error("{device} lacks {capability}: this kernel is too old (before Linux 4.11) or its KVM is cut down")]
    Capability { device: Device, capability: &'static str },
    /// The probe guest could not even be set up.
    #[error("{device} opens but cannot run a guest: {reason}{advice}")]
    Setup { device: Device, reason: String, advice: String },
    /// The probe guest came back with something else than it should.
    #[error(
        "{device} cannot run {mode}, which this chapter needs: its probe guest ended in {ending}. `cargo vmexit lab {chapter}` runs it on a KVM that can"
    )]
    CannotRun { device: Device, mode: Probe, ending: String, chapter: &'static str },
    /// The software machine was asked for, and lacks what this chapter needs.
    #[error(
        "the software machine cannot run {mode}, which this chapter needs: its probe guest ended in {ending}. \
         `cargo vmexit lab {chapter}` runs it on a KVM that can"
    )]
    NotOnSoft { mode: Probe, ending: String, chapter: &'static str },
}

impl OpenError {
    /// What is wrong, without the way out: half a line.
    fn in_short(&self) -> String {
        match self {
            Self::NoDevice { device } => format!("{device} does not exist"),
            Self::NoPermission { device } => format!("you may not open {device}"),
            Self::Setup { device, reason, .. } => format!("{device}: {reason}"),
            Self::CannotRun { device, mode, ending, .. } => {
                format!(
                    "{device} cannot run {mode}, which this chapter needs: its probe guest ended in {ending}"
                )
            }
            other => other.to_string(),
        }
    }
}

/// The path of a KVM device.
#[derive(Clone, Debug)]
pub struct Device(PathBuf);

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl Device {
    /// `/dev/kvm`, or what `VMEXIT_DEVICE` names.
    #[must_use]
    pub fn chosen() -> Self {
        let named = std::env::var_os("VMEXIT_DEVICE").filter(|path| !path.is_empty());
        Self(named.map_or_else(|| "/dev/kvm".into(), PathBuf::from))
    }
}

fn missing_device() -> &'static str {
    if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        "load KVM's module with `sudo modprobe kvm_intel` or `sudo modprobe kvm_amd`; if that fails, turn on \
         virtualization (VT-x, SVM) in the firmware's setup, or use the lab: `cargo vmexit lab`; \
         `cargo run --bin ch00` looks closer"
    } else {
        "only Linux on an x86-64 CPU has the KVM that this workbook speaks to; the lab brings one along: \
         `cargo vmexit lab`"
    }
}

impl Kvm {
    /// Opens a device and asks it nothing; vCPUs made from it are not watched.
    ///
    /// # Errors
    /// The errno of `open`.
    pub fn open_device(device: &Device) -> super::Result<Self> {
        Ok(Self { backend: KvmBackend::Host(open_host(device)?), run: None })
    }

    /// Opens the machine that is to run this chapter, and says on stderr which
    /// one that is and why: the backend that was asked for, else the host's
    /// device, if a probe guest shows that it runs the chapter's mode, else the
    /// software machine, if it does.
    ///
    /// # Errors
    /// Every way in which there is no such machine, each as a sentence.
    pub fn open(run: &Run) -> Result<Self, OpenError> {
        Self::open_for(run, run.chapter().needs)
    }

    /// The same, where this run needs another thing of its machine than the chapter as a rule.
    ///
    /// # Errors
    /// As [`Kvm::open`].
    pub fn open_for(run: &Run, needs: Probe) -> Result<Self, OpenError> {
        let (mut kvm, why) = match run.options().backend {
            Some(Backend::Soft) => {
                (Self::probed_soft(run, needs)?, "soft, the software machine, as you asked".to_owned())
            }
            Some(Backend::Kvm) => Self::probed(run, needs)?,
            None => match Self::probed(run, needs) {
                Ok(found) => found,
                Err(error) => match Self::probed_soft(run, needs) {
                    Ok(soft) => (soft, format!("soft, the software machine: {}", error.in_short())),
                    // What would make the device run it is worth more.
                    Err(_) => return Err(error),
                },
            },
        };
        complain(format_args!("{}{why}", crate::transcript::BACKEND_NOTE));
        run.recorder().release();
        kvm.run = Some(run.clone());
        Ok(kvm)
    }

    /// The software machine, if a probe guest runs on it.
    fn probed_soft(run: &Run, needs: Probe) -> Result<Self, OpenError> {
        let soft = Self::soft();
        match needs.run(&soft) {
            Ok(_) => Ok(soft),
            Err(failure) => {
                let ending = failure.ending();
                Err(OpenError::NotOnSoft { mode: needs, ending, chapter: run.chapter().name })
            }
        }
    }

    /// The host's device, and what a probe guest showed.
    fn probed(run: &Run, needs: Probe) -> Result<(Self, String), OpenError> {
        let (device, chapter) = (Device::chosen(), run.chapter().name);
        let kvm = Self::open_device(&device).map_err(|error| refused(device.clone(), error))?;
        check(&kvm, &device)?;
        let probed = needs.run(&kvm).map_err(|failure| failure.report(&device, needs, chapter))?;
        run.set_out_after(probed.out_after);
        Ok((kvm, format!("kvm, the device {device}: a probe guest ran {needs} on it")))
    }
}

#[cfg(host_kvm)]
fn open_host(device: &Device) -> super::Result<host::Kvm> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(device.0.as_os_str().as_bytes());
    // A path with a zero byte in it names no file.
    let path = path.map_err(|_| super::Error::new(libc::ENOENT))?;
    host::Kvm::new_with_path(&path)
}

#[cfg(not(host_kvm))]
fn open_host(_: &Device) -> super::Result<host::Kvm> {
    host::Kvm::new()
}

fn refused(device: Device, error: super::Error) -> OpenError {
    const ENOENT: i32 = 2;
    const ENXIO: i32 = 6;
    const EACCES: i32 = 13;
    const ENODEV: i32 = 19;
    const EPERM: i32 = 1;
    match error.errno() {
        ENOENT | ENXIO | ENODEV => OpenError::NoDevice { device },
        EACCES | EPERM => OpenError::NoPermission { device },
        _ => OpenError::Open { device, reason: error.to_string() },
    }
}

fn check(kvm: &Kvm, device: &Device) -> Result<(), OpenError> {
    check_version(kvm.get_api_version(), device)?;
    for (capability, name) in
        [(Cap::UserMemory, "KVM_CAP_USER_MEMORY"), (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT")]
    {
        if !kvm.check_extension(capability) {
            return Err(OpenError::Capability { device: device.clone(), capability: name });
        }
    }
    Ok(())
}

fn check_version(version: i32, device: &Device) -> Result<(), OpenError> {
    match version {
        API_VERSION => Ok(()),
        ..0 => Err(OpenError::NotKvm { device: device.clone() }),
        _ => Err(OpenError::ApiVersion { device: device.clone(), version }),
    }
}

impl ProbeFailure {
    fn report(self, device: &Device, mode: Probe, chapter: &'static str) -> OpenError {
        let device = device.clone();
        match self {
            Self::Setup(error) => {
                let (reason, advice) = (format!("{error:#}"), crate::explain::way_out(&error));
                OpenError::Setup { device, reason, advice }
            }
            Self::Ending(ending) => OpenError::CannotRun { device, mode, ending, chapter },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        Device("/dev/kvm".into())
    }

    #[test]
    fn each_errno_of_open_has_its_own_way_out() {
        let words = |errno| refused(device(), super::super::Error::new(errno)).to_string();
        assert!(words(2).contains("modprobe"), "{}", words(2));
        assert!(words(13).contains("usermod -aG kvm"), "{}", words(13));
        assert!(words(24).contains("cannot be opened"), "{}", words(24));
    }

    #[test]
    fn only_version_12_is_kvm() {
        assert!(check_version(12, &device()).is_ok());
        let words = |version| check_version(version, &device()).expect_err("no KVM").to_string();
        assert!(words(-1).contains("no KVM device"));
        assert!(words(10).contains("version 10"));
    }

    #[test]
    fn a_busy_cpu_and_a_probe_that_died_are_told_apart() {
        let busy = anyhow::Error::from(super::super::Error::new(16)).context("KVM_CREATE_VM");
        let busy = ProbeFailure::Setup(busy);
        let busy = busy.report(&device(), Probe::Long, "ch99").to_string();
        assert!(busy.contains("another hypervisor"), "{busy}");
        let died = ProbeFailure::Ending("KVM_EXIT_SHUTDOWN".to_owned());
        let died = died.report(&device(), Probe::Long, "ch99").to_string();
        assert!(died.contains("long mode") && died.contains("cargo vmexit lab ch99"), "{died}");
    }
}
