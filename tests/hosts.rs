//! What the doctor says on hosts that nobody here has: recorded in
//! `tests/hosts/`, judged as if they were this one.

use std::fs;
use std::path::{Path, PathBuf};

use vmexit::host::{self, Check, Host, Verdict};

/// Each recorded host, and what its first trouble is answered with; `None` where there is none.
#[rustfmt::skip] // a host a line
const HOSTS: &[(&str, Verdict, Option<&str>)] = &[
    ("intel-laptop", Verdict::Pass, None),
    ("amd-desktop", Verdict::Warn, Some("echo options kvm_amd nested=1")),
    ("firmware-off", Verdict::Fail, Some("systemctl reboot --firmware-setup")),
    ("module-not-loaded", Verdict::Fail, Some("sudo modprobe kvm_amd")),
    ("not-in-the-group", Verdict::Fail, Some("sudo usermod -aG kvm $USER")),
    ("node-of-root", Verdict::Fail, Some("sudo chown root:kvm /dev/kvm")),
    ("docker-without-device", Verdict::Fail, Some("docker run --device /dev/kvm")),
    ("podman-without-permission", Verdict::Fail, Some("--group-add")),
    ("wsl2-off", Verdict::Fail, Some("nestedVirtualization=true")),
    ("wsl2-on", Verdict::Pass, None),
    ("ec2", Verdict::Fail, Some(".metal")),
    ("google-cloud", Verdict::Fail, Some("gcloud compute instances update")),
    ("azure", Verdict::Fail, Some("Dv3")),
    ("virtualbox-guest", Verdict::Fail, Some("--nested-hw-virt on")),
    ("vmware-guest", Verdict::Fail, Some("vhv.enable")),
    ("qemu-guest", Verdict::Fail, Some("modprobe kvm_intel nested=1")),
    ("virtualbox-holds-the-cpu", Verdict::Fail, Some("end the machines of other hypervisors")),
    ("limited-kvm", Verdict::Warn, Some("cargo vmexit lab")),
    ("old-kernel", Verdict::Warn, Some("cargo vmexit lab")),
    ("no-kvm-device", Verdict::Fail, Some("unset VMEXIT_DEVICE")),
    ("mac", Verdict::Fail, Some("cargo vmexit lab")),
    ("windows", Verdict::Fail, Some("wsl --install")),
    ("raspberry-pi", Verdict::Fail, Some("cargo vmexit lab")),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts")
}

fn judge(name: &str) -> Vec<Check> {
    let text = fs::read_to_string(folder().join(format!("{name}.json"))).expect("a recorded host");
    let host: Host = serde_json::from_str(&text).expect("the form of ch00 --json");
    host::check(&host)
}

#[test]
fn every_recorded_host_is_told_the_right_next_command() {
    for (name, worst, command) in HOSTS {
        let checks = judge(name);
        let first = |verdict| checks.iter().find(|check| check.verdict == verdict);
        let trouble = first(Verdict::Fail).or_else(|| first(Verdict::Warn));
        assert_eq!(trouble.map_or(Verdict::Pass, |check| check.verdict), *worst, "{name}: {checks:#?}");
        let fix = trouble.and_then(|check| check.fix.as_deref());
        match command {
            None => assert_eq!(fix, None, "{name}"),
            Some(command) => assert!(fix.unwrap_or_default().contains(command), "{name}: {fix:?}"),
        }
    }
}

#[test]
fn what_every_recorded_host_is_told_has_been_read() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("hosts");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for (name, ..) in HOSTS {
        settings.bind(|| insta::assert_snapshot!(*name, host::render(&judge(name))));
    }
}

#[test]
fn every_recording_is_judged() {
    let files = fs::read_dir(folder()).expect("the recordings").flatten().map(|file| file.path());
    let recordings = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    for path in recordings {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(HOSTS.iter().any(|(host, ..)| *host == name), "{name} is in no test");
    }
}

#[test]
fn every_trouble_has_a_way_out_and_every_pass_has_none() {
    for (name, ..) in HOSTS {
        for check in judge(name) {
            assert_eq!(check.fix.is_some(), check.verdict != Verdict::Pass, "{name}: {check:?}");
        }
    }
}

/// The doctor's table of chapters says what the chapters themselves say.
#[test]
fn every_chapter_is_in_the_doctors_table() {
    let chapters = Path::new(env!("CARGO_MANIFEST_DIR")).join("chapters");
    let mut found = 0;
    for folder in fs::read_dir(chapters).expect("the chapters").flatten() {
        let source = fs::read_to_string(folder.path().join("main.rs")).unwrap_or_default();
        let Some((_, needs)) = source.split_once("needs: Probe::") else { continue };
        let needs = needs.split(',').next().expect("split gives one");
        let number = folder.file_name().to_string_lossy()[..2].to_owned();
        let listed = host::CHAPTERS.iter().find(|(name, _)| *name == format!("ch{number}"));
        let listed = listed.unwrap_or_else(|| panic!("chapter {number} is not in host::CHAPTERS"));
        assert_eq!(format!("{:?}", listed.1), needs, "chapter {number}");
        found += 1;
    }
    assert_eq!(found, host::CHAPTERS.len());
}
