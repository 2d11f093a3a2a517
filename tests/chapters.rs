//! Runs every chapter and every broken variant as a reader would, on the host's
//! KVM and on the software machine, and compares what the terminal shows with
//! `tests/snapshots/`: one snapshot for both.
//!
//! What the host's KVM cannot run is listed at the end, with the reason.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use libtest_mimic::{Arguments, Failed, Trial};
use vmexit::transcript::{self, BACKEND_NOTE};

/// A chapter's binary, and the flags of each run that has a snapshot.
struct Case {
    name: &'static str,
    binary: &'static str,
    flags: &'static [&'static str],
}

const fn case(name: &'static str, binary: &'static str, flags: &'static [&'static str]) -> Case {
    Case { name, binary, flags }
}

const CH00: &str = env!("CARGO_BIN_EXE_ch00");
const CH01: &str = env!("CARGO_BIN_EXE_ch01");
const CH02: &str = env!("CARGO_BIN_EXE_ch02");
const CH03: &str = env!("CARGO_BIN_EXE_ch03");
const CH04: &str = env!("CARGO_BIN_EXE_ch04");
const CH05: &str = env!("CARGO_BIN_EXE_ch05");
const CH06: &str = env!("CARGO_BIN_EXE_ch06");
const CH07: &str = env!("CARGO_BIN_EXE_ch07");
const CH08: &str = env!("CARGO_BIN_EXE_ch08");
const CH09: &str = env!("CARGO_BIN_EXE_ch09");
const CH10: &str = env!("CARGO_BIN_EXE_ch10");
const CH11: &str = env!("CARGO_BIN_EXE_ch11");
const CH12: &str = env!("CARGO_BIN_EXE_ch12");
const CH13: &str = env!("CARGO_BIN_EXE_ch13");
const CH16: &str = env!("CARGO_BIN_EXE_ch16");

#[rustfmt::skip] // a case a line
const CASES: &[Case] = &[
    case("ch01", CH01, &[]),
    case("ch01--steps", CH01, &["--steps"]),
    case("ch01--break-no-hlt", CH01, &["--break", "no-hlt"]),
    case("ch01--break-reset-cs", CH01, &["--break", "reset-cs"]),
    case("ch01--break-spin", CH01, &["--break", "spin", "--deadline", "1"]),
    case("ch02", CH02, &[]),
    case("ch02--break-shutdown", CH02, &["--break", "shutdown"]),
    case("ch02--break-internal-error", CH02, &["--break", "internal-error"]),
    case("ch02--break-fail-entry", CH02, &["--break", "fail-entry"]),
    case("ch03", CH03, &[]),
    case("ch03--break-unknown", CH03, &["--break", "unknown"]),
    case("ch03--break-endless", CH03, &["--break", "endless"]),
    case("ch04", CH04, &[]),
    case("ch04--break-no-bios", CH04, &["--break", "no-bios"]),
    case("ch04--break-no-sti", CH04, &["--break", "no-sti"]),
    case("ch05", CH05, &[]),
    case("ch05--steps", CH05, &["--steps"]),
    case("ch05--break-gdt-limit", CH05, &["--break", "gdt-limit"]),
    case("ch05--break-not-present", CH05, &["--break", "not-present"]),
    case("ch05--break-read-only-stack", CH05, &["--break", "read-only-stack"]),
    case("ch06", CH06, &[]),
    case("ch06--walk", CH06, &["--walk", "0x401000", "--walk", "0x20f0"]),
    case("ch06--break-no-identity", CH06, &["--break", "no-identity"]),
    case("ch06--break-read-only", CH06, &["--break", "read-only"]),
    case("ch06--break-lost-directory", CH06, &["--break", "lost-directory"]),
    case("ch07", CH07, &[]),
    case("ch07--steps", CH07, &["--steps"]),
    case("ch07--break-supervisor-page", CH07, &["--break", "supervisor-page"]),
    case("ch07--break-gate-dpl", CH07, &["--break", "gate-dpl"]),
    case("ch07--break-no-stack", CH07, &["--break", "no-stack"]),
    case("ch07--break-no-port", CH07, &["--break", "no-port"]),
    case("ch08", CH08, &[]),
    case("ch08--steps", CH08, &["--steps"]),
    case("ch08--break-no-lme", CH08, &["--break", "no-lme"]),
    case("ch08--break-no-page", CH08, &["--break", "no-page"]),
    case("ch08--break-no-lma", CH08, &["--break", "no-lma"]),
    case("ch09", CH09, &[]),
    case("ch09--provoke", CH09, &["--provoke", "page", "--provoke", "divide"]),
    case("ch09--break-no-ist", CH09, &["--break", "no-ist", "--provoke", "double"]),
    case("ch09--break-no-gate", CH09, &["--break", "no-gate", "--provoke", "double"]),
    case("ch09--break-idt-limit", CH09, &["--break", "idt-limit", "--provoke", "protection"]),
    case("ch10", CH10, &[]),
    case("ch10--steps", CH10, &["--steps", "--program", "hello"]),
    case("ch10--break-no-sce", CH10, &["--break", "no-sce"]),
    case("ch10--break-no-swapgs", CH10, &["--break", "no-swapgs"]),
    case("ch10--break-no-task", CH10, &["--break", "no-task"]),
    case("ch10--break-supervisor", CH10, &["--break", "supervisor", "--program", "hello"]),
    case("ch11", CH11, &[]),
    case("ch11--program-primes", CH11, &["--program", "primes"]),
    case("ch11--program-pointer", CH11, &["--program", "pointer"]),
    case("ch11--program-halt", CH11, &["--program", "halt"]),
    case("ch11--program-jump", CH11, &["--program", "jump"]),
    case("ch11--program-spin", CH11, &["--program", "spin", "--deadline", "5"]),
    case("ch11--cmdline-test", CH11, &["--cmdline", "test", "--program", "none"]),
    case("ch11--cmdline-panic", CH11, &["--cmdline", "panic", "--program", "none"]),
    case("ch11--cmdline-overflow", CH11, &["--cmdline", "overflow", "--program", "none"]),
    case("ch11--cmdline-reboot", CH11, &["--cmdline", "reboot", "--program", "none"]),
    case("ch11--break-no-higher-half", CH11, &["--break", "no-higher-half"]),
    case("ch11--break-no-nx", CH11, &["--break", "no-nx"]),
    case("ch11--break-old-protocol", CH11, &["--break", "old-protocol"]),
    case("ch12", CH12, &[]),
    case("ch12--type", CH12, &["--type", "Hello,16550!"]),
    case("ch12--break-no-irq", CH12, &["--break", "no-irq", "--deadline", "3"]),
    case("ch12--break-no-eoi", CH12, &["--break", "no-eoi", "--deadline", "3"]),
    case("ch12--break-dlab", CH12, &["--break", "dlab", "--deadline", "3"]),
    case("ch13", CH13, &[]),
    case("ch13--break-no-eoi", CH13, &["--break", "no-eoi", "--deadline", "3"]),
    case("ch13--break-no-irqchip", CH13, &["--break", "no-irqchip"]),
    case("ch13--break-no-window", CH13, &["--break", "no-window"]),
];

/// The doctor's probe guests: what they say differs with the KVM.
const DOCTOR: Case = case("ch00--probes", CH00, &["--probes"]);

/// Runs that need no machine at all.
#[rustfmt::skip] // a case a line
const WITHOUT_A_MACHINE: &[Case] = &[
    case("ch01--help", CH01, &["--help"]),
    case("ch01--break-list", CH01, &["--break", "list"]),
    case("ch02--break-list", CH02, &["--break", "list"]),
    case("ch03--break-list", CH03, &["--break", "list"]),
    case("ch04--break-list", CH04, &["--break", "list"]),
    case("ch05--break-list", CH05, &["--break", "list"]),
    case("ch06--break-list", CH06, &["--break", "list"]),
    case("ch07--break-list", CH07, &["--break", "list"]),
    case("ch08--break-list", CH08, &["--break", "list"]),
    case("ch09--break-list", CH09, &["--break", "list"]),
    case("ch09--unknown", CH09, &["--provoke", "panic"]),
    case("ch10--break-list", CH10, &["--break", "list"]),
    case("ch10--help", CH10, &["--help"]),
    case("ch10--unknown-program", CH10, &["--program", "doom"]),
    case("ch11--help", CH11, &["--help"]),
    case("ch11--break-list", CH11, &["--break", "list"]),
    case("ch12--break-list", CH12, &["--break", "list"]),
    case("ch13--break-list", CH13, &["--break", "list"]),
    case("ch16--help", CH16, &["--help"]),
    case("ch16--break-list", CH16, &["--break", "list"]),
    case("ch05--listing", CH05, &["--listing"]),
    case("ch08--listing", CH08, &["--listing"]),
    case("ch10--listing", CH10, &["--listing", "--program", "count"]),
];

fn main() {
    let arguments = Arguments::from_args();
    let not_run = Arc::new(Mutex::new(Vec::new()));
    let mut trials = vec![Trial::test("every_variant_has_a_snapshot", every_variant_has_a_snapshot)];
    for case in CASES {
        let not_run = Arc::clone(&not_run);
        trials.push(Trial::test(format!("{}::kvm", case.name), move || on_kvm(case, &not_run)));
        trials.push(Trial::test(format!("{}::soft", case.name), || {
            compare_with(&snapshot_for_soft(case.name), case, &run(case, &["--backend", "soft"]));
            Ok(())
        }));
    }
    for case in CASES.iter().filter(|case| case.flags.is_empty() && case.name != "ch03") {
        let name = format!("{}--check::soft", case.name);
        trials.push(Trial::test(name, || every_entry_state_passes(case)));
    }
    let of_doctor = Arc::clone(&not_run);
    trials.push(Trial::test("ch00--probes::kvm", move || doctor(&of_doctor)));
    for case in WITHOUT_A_MACHINE {
        trials.push(Trial::test(case.name, || {
            compare(case, &run(case, &[]));
            Ok(())
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let not_run = not_run.lock().expect("no trial panics while holding it");
    if !not_run.is_empty() {
        println!("not run here:");
        for reason in not_run.iter() {
            println!("  {reason}");
        }
        println!("`cargo vmexit lab --all --both` runs them on real KVM\n");
    }
    conclusion.exit();
}

fn run(case: &Case, more: &[&str]) -> Output {
    let mut command = Command::new(case.binary);
    command.args(case.flags).args(more).stdin(Stdio::null());
    command.env_remove("VMEXIT_BACKEND").env_remove("VMEXIT_DEVICE");
    command.output().expect("cargo has built the chapter")
}

/// On the host's device; a host without one, or with one that cannot run the
/// chapter, is a reason and no failure.
fn on_kvm(case: &Case, not_run: &Mutex<Vec<String>>) -> Result<(), Failed> {
    let output = run(case, &["--backend", "kvm"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let opened = stderr.lines().any(|line| line.starts_with(BACKEND_NOTE));
    if !opened {
        // Every way in which a host has no KVM for this chapter ends before the backend is named.
        if output.status.code() != Some(2) {
            return Err(format!("no backend, and exit code {:?}: {stderr}", output.status.code()).into());
        }
        let sentence = stderr.lines().next().unwrap_or_default();
        let sentence = sentence.split_once(": ").map_or(sentence, |(_program, sentence)| sentence);
        let reason = format!("{}: {sentence}", case.name);
        not_run.lock().expect("no trial panics while holding it").push(reason);
        return Ok(());
    }
    compare(case, &output);
    Ok(())
}

/// No rule of VM entry is broken at any entry, by what the hypervisor has set or the guest has made of it.
fn every_entry_state_passes(case: &Case) -> Result<(), Failed> {
    let output = run(case, &["--backend", "soft", "--check"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let looked = stderr.lines().any(|line| line.contains("--check looked at"));
    if !looked || !stderr.contains("none breaks a rule of VM entry") {
        return Err(format!("{stderr}").into());
    }
    Ok(())
}

/// The doctor runs everywhere; its probe guests only where there is a device.
fn doctor(not_run: &Mutex<Vec<String>>) -> Result<(), Failed> {
    let output = run(&DOCTOR, &[]);
    if String::from_utf8_lossy(&output.stdout).contains("no probe guest ran") {
        let reason = format!("{}: no probe guest ran", DOCTOR.name);
        not_run.lock().expect("no trial panics while holding it").push(reason);
        return Ok(());
    }
    compare(&DOCTOR, &output);
    Ok(())
}

fn compare(case: &Case, output: &Output) {
    compare_with(&snapshot_for_this_host(case.name), case, output);
}

fn compare_with(snapshot: &str, case: &Case, output: &Output) {
    let binary = Path::new(case.binary).file_stem().unwrap_or_default().to_string_lossy();
    let mut command = if binary == "ch01" && case.flags.is_empty() {
        "cargo run".to_owned()
    } else {
        format!("cargo run --bin {binary}")
    };
    if !case.flags.is_empty() {
        command = format!("{command} -- {}", case.flags.join(" "));
    }
    let transcript = transcript::render(
        &command,
        &String::from_utf8_lossy(&output.stdout),
        &String::from_utf8_lossy(&output.stderr),
        output.status.code().unwrap_or(-1),
    );
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(snapshot, transcript));
}

/// `NAME@intel`, `NAME@amd` or `NAME@limited` where an ending differs and this host is of that kind
/// (limited: a KVM without VMX or SVM), else `NAME`.
fn snapshot_for_this_host(name: &str) -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| cpuinfo.split_whitespace().any(|word| word == flag);
    let vendors = [("vmx", "intel"), ("svm", "amd")];
    let kind = vendors.iter().find(|(flag, _)| has(flag)).map_or("limited", |(_, vendor)| vendor);
    own_or_shared(name, kind)
}

/// `NAME@soft` where the software machine's ending differs, else `NAME`.
fn snapshot_for_soft(name: &str) -> String {
    own_or_shared(name, "soft")
}

fn own_or_shared(name: &str, kind: &str) -> String {
    let own = format!("{name}@{kind}");
    let file = format!("{}/tests/snapshots/{own}.snap", env!("CARGO_MANIFEST_DIR"));
    if Path::new(&file).exists() { own } else { name.to_owned() }
}

/// `--break list` and the snapshots name the same variants.
fn every_variant_has_a_snapshot() -> Result<(), Failed> {
    // A Linux that boots prints times and addresses: its variants' endings are tested in the lab.
    let in_snapshots = |case: &&Case| case.flags == ["--break", "list"] && case.binary != CH16;
    for case in WITHOUT_A_MACHINE.iter().filter(in_snapshots) {
        let output = run(case, &[]);
        let listed = String::from_utf8_lossy(&output.stdout).into_owned();
        for variant in listed.lines().filter_map(|line| line.split_whitespace().next()) {
            let wanted = ["--break", variant];
            let has_one =
                CASES.iter().any(|other| other.binary == case.binary && other.flags.starts_with(&wanted));
            if !has_one {
                return Err(format!("{} has no snapshot of --break {variant}", case.name).into());
            }
        }
    }
    Ok(())
}
