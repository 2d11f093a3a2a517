//! What a chapter does with flags, files, signals and hosts that are not as it
//! would like them. Each test that needs the host's KVM says so when there is none.
#![cfg(target_os = "linux")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use vmexit::trace::record::{Direction, Record};

const CH01: &str = env!("CARGO_BIN_EXE_ch01");
const CH02: &str = env!("CARGO_BIN_EXE_ch02");
const CH04: &str = env!("CARGO_BIN_EXE_ch04");
const CH05: &str = env!("CARGO_BIN_EXE_ch05");
const CH06: &str = env!("CARGO_BIN_EXE_ch06");
const CH08: &str = env!("CARGO_BIN_EXE_ch08");

/// The program away from every setting of the reader's.
fn program(path: &str) -> Command {
    let mut command = Command::new(path);
    command.env_remove("VMEXIT_BACKEND").env_remove("VMEXIT_DEVICE").stdin(Stdio::null());
    command
}

fn run(path: &str, flags: &[&str]) -> Output {
    program(path).args(flags).output().expect("cargo has built it")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Whether the host's KVM runs long mode; says so on the terminal where it does not.
fn kvm() -> bool {
    let can = run(CH08, &["--backend", "kvm"]).status.success();
    if !can {
        // Not eprintln: the test harness would keep it from the terminal.
        let reason =
            "not run here: the host's KVM does not run chapter 08; `cargo vmexit lab` has one that does";
        let _ = writeln!(std::io::stderr(), "{reason}");
    }
    can
}

/// One sentence on stderr, nothing on stdout, exit code 2.
fn assert_refused(output: &Output, words: &str) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(text(&output.stdout), "", "half-printed");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains(words), "{words:?} is not in: {stderr}");
}

#[test]
fn a_walk_wants_an_address_of_32_bits() {
    for address in ["", "page", "0x", "-1", "0x100000000", "0x1000,there", "4096.0"] {
        assert_refused(&run(CH06, &["--backend", "soft", "--walk", address]), "--walk takes an address");
    }
    let here = run(CH06, &["--backend", "soft", "--walk", "20480,host"]);
    assert!(text(&here.stdout).contains("slot 0 + 0x5000 = 0x"), "{}", text(&here.stdout));
}

#[test]
fn an_unknown_flag_shows_the_help_on_stderr() {
    let output = run(CH01, &["--wat"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()));
    let stderr = text(&output.stderr);
    assert!(stderr.starts_with("ch01: invalid option '--wat'\n") && stderr.contains("--deadline SECONDS"));
}

#[test]
fn a_host_without_a_device_is_told_what_to_load() {
    let output = program(CH05)
        .args(["--backend", "kvm"])
        .env("VMEXIT_DEVICE", "/nowhere/kvm")
        .output()
        .expect("it runs");
    assert_refused(&output, "modprobe");
}

#[test]
fn a_file_that_is_no_kvm_is_named_as_that() {
    let output =
        program(CH01).args(["--backend", "kvm"]).env("VMEXIT_DEVICE", "/dev/zero").output().expect("it runs");
    assert_refused(&output, "/dev/zero is no KVM device");
}

#[test]
fn a_device_that_this_user_may_not_open_names_the_group() {
    let device = scratch("closed-device");
    fs::write(&device, "").expect("cargo's folder for tests can be written");
    fs::set_permissions(&device, fs::Permissions::from_mode(0o000)).expect("it is ours");
    // Root may open everything: there the program runs as nobody, from where nobody can reach it.
    // SAFETY: geteuid has no conditions.
    let root = unsafe { libc::geteuid() } == 0;
    let output = if root {
        let folder = tempfile_folder();
        let (copy, device) = (folder.join("ch01"), folder.join("kvm"));
        // By a process of its own: a descriptor of this one that writes to the file would be inherited by
        // the program of another test, and the file could not be executed for that long.
        let copied = Command::new("cp").args([CH01.as_ref(), copy.as_os_str()]).status();
        assert!(copied.expect("cp runs").success());
        fs::write(&device, "").expect("the folder is ours");
        fs::set_permissions(&device, fs::Permissions::from_mode(0o000)).expect("it is ours");
        let mut command = program(copy.to_str().expect("a plain path"));
        let output =
            command.args(["--backend", "kvm"]).env("VMEXIT_DEVICE", &device).uid(65534).gid(65534).output();
        fs::remove_dir_all(&folder).expect("the folder is ours");
        output
    } else {
        program(CH01).args(["--backend", "kvm"]).env("VMEXIT_DEVICE", &device).output()
    };
    assert_refused(&output.expect("it runs"), "usermod -aG kvm");
}

/// A new folder that every user may enter.
fn tempfile_folder() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("vmexit-cli-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the system's temporary folder can be written");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("it is ours");
    folder
}

#[test]
fn the_software_machine_says_that_it_runs_and_why() {
    let output = run(CH01, &["--backend", "soft"]);
    assert_eq!(text(&output.stderr), "backend: soft, the software machine, as you asked\n");
    assert_eq!(output.status.code(), Some(0));
    let output = program(CH01).env("VMEXIT_BACKEND", "soft").output().expect("it runs");
    assert_eq!(text(&output.stderr), "backend: soft, the software machine, as you asked\n");
    let output = program(CH01).env("VMEXIT_DEVICE", "/nowhere").output().expect("it runs");
    assert_eq!(text(&output.stderr), "backend: soft, the software machine: /nowhere does not exist\n");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_trace_that_cannot_be_written_is_a_sentence() {
    assert_refused(&run(CH01, &["--trace", "json:/nowhere/at/all"]), "cannot write /nowhere/at/all");
    if kvm() {
        let output = run(CH01, &["--trace", "json:/dev/full"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("cannot write /dev/full"), "{}", text(&output.stderr));
    }
}

#[test]
fn a_listing_needs_no_machine_and_no_folder() {
    let mut command = program(CH08);
    command.arg("--listing").env("VMEXIT_DEVICE", "/nowhere").current_dir("/");
    let output = command.output().expect("it runs");
    assert!(output.status.success() && text(&output.stdout).contains("wrmsr"));
}

#[test]
fn a_reader_that_goes_away_ends_the_program_without_a_word() {
    let mut child = program(CH08)
        .arg("--listing")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(!text(&output.stderr).contains("panicked"), "{}", text(&output.stderr));
}

#[test]
fn ctrl_c_ends_a_guest_that_spins_at_once() {
    if !kvm() {
        return;
    }
    let flags = ["--break", "spin", "--deadline", "60"];
    let mut child =
        program(CH01).args(flags).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    // The guest spins from its first exit on.
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut seen = Vec::new();
    while !text(&seen).contains("KVM_EXIT_IO") {
        let mut byte = [0];
        assert_eq!(stdout.read(&mut byte).expect("a pipe"), 1, "it ended before its first exit");
        seen.push(byte[0]);
    }
    let sent = Instant::now();
    // SAFETY: the child is ours and has not been waited for.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    let output = child.wait_with_output().expect("it ends");
    assert!(sent.elapsed() < Duration::from_secs(5), "not at once: {:?}", sent.elapsed());
    assert_eq!(output.status.code(), Some(130));
    assert!(text(&output.stderr).contains("ch01: interrupted"), "{}", text(&output.stderr));
}

/// The records of a run's JSON trace, on stdout.
fn records(path: &str, flags: &[&str]) -> Vec<Record> {
    let output = run(path, &[&["--backend", "kvm", "--trace", "json"], flags].concat());
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    text(&output.stdout).lines().map(parse).collect()
}

#[test]
fn the_json_trace_holds_all_that_a_replay_needs() {
    if !kvm() {
        return;
    }
    let records = records(CH05, &[]);
    let Record::Run(first) = &records[0] else { panic!("{:?}", records[0]) };
    assert_eq!((first.version, first.chapter.as_str()), (1, "ch05"));
    let entries: Vec<_> = records
        .iter()
        .filter_map(|record| match record {
            Record::Entry(entry) => Some(entry),
            _ => None,
        })
        .collect();
    assert_eq!(entries.len(), 2, "two machines");
    let code =
        &entries[0].pages.iter().find(|page| page.address.0 == 0x1000).expect("the guest's page").bytes.0;
    assert_eq!(code[..4], [0xb0, 0x01, 0xe6, 0x80]);
    assert_eq!((entries[0].slots[0].size.0, entries[1].registers.rip.0), (0x20000, 0x1035));
    let exits: Vec<_> = records
        .iter()
        .filter_map(|record| match record {
            Record::Exit(exit) => Some(exit),
            _ => None,
        })
        .collect();
    let first = exits[0];
    assert_eq!((first.port, first.direction, first.size), (Some(0x80), Some(Direction::Write), Some(1)));
    assert_eq!(first.data.as_ref().expect("a byte").0, [1]);
    let at = first.at.as_ref().expect("an instruction");
    assert_eq!((at.linear.0, at.text.as_deref()), (0x1002, Some("out 0x80, al")));
    assert_eq!((at.symbol.as_deref(), at.mode.as_str()), (Some("_start+0x2"), "real mode"));
    assert_eq!(
        first.registers.as_ref().expect("registers").rip.0,
        0x1002,
        "RIP is the instruction's on every KVM"
    );
    let Some(Record::End(end)) = records.last() else { panic!("no end") };
    assert_eq!((end.code, end.exits as usize), (0, exits.len()));
}

#[test]
fn a_death_is_recorded_without_registers_that_kvm_may_have_reset() {
    if !kvm() {
        return;
    }
    let records = records(CH05, &["--break", "gdt-limit"]);
    let last = records.iter().rev().find_map(|record| match record {
        Record::Exit(exit) => Some(exit),
        _ => None,
    });
    let last = last.expect("an exit");
    assert_eq!(last.reason.kvm.name, "KVM_EXIT_SHUTDOWN");
    assert!(last.at.is_none() && last.registers.is_none() && last.system.is_none());
    assert!(matches!(records.last(), Some(Record::End(end)) if end.code == 3));
}

/// Every instruction of chapter 01 once, in order: stepped, or with its own exit.
#[test]
fn steps_and_exits_together_are_every_instruction() {
    if !kvm() {
        return;
    }
    let place = |record: &Record| match record {
        Record::Step(step) => Some(step.at.linear.0),
        Record::Exit(exit) => exit.at.as_ref().map(|at| at.linear.0),
        _ => None,
    };
    let places: Vec<u64> = records(CH01, &["--steps"]).iter().filter_map(place).collect();
    assert_eq!(places, [0x1000, 0x1002, 0x1004, 0x1006, 0x1008, 0x100b, 0x100c, 0x100e, 0x100f]);
}

#[test]
fn a_step_shows_the_mode_change_at_its_very_instruction() {
    if !kvm() {
        return;
    }
    let records = records(CH08, &["--steps"]);
    let mut last = String::new();
    let mut changes = Vec::new();
    for record in &records {
        let at = match record {
            Record::Step(step) => &step.at,
            Record::Exit(exit) => exit.at.as_ref().expect("no exit here is a death"),
            _ => continue,
        };
        if at.mode != last {
            changes.push(format!("{} {}", at.text.as_deref().unwrap_or_default(), at.mode));
            last.clone_from(&at.mode);
        }
    }
    assert_eq!(
        changes,
        [
            "mov al, 1 real mode",
            "jmp far 0x8:0x101a protected mode, 16-bit code",
            "mov ax, 0x10 protected mode, 32-bit code",
            "mov al, 5 long mode, 32-bit compatibility code",
            "mov al, 6 long mode, 64-bit code",
        ]
    );
}

#[test]
fn the_timeline_is_json_with_the_guest_and_the_host_on_two_tracks() {
    if !kvm() {
        return;
    }
    let file = scratch("timeline.json");
    let flag = format!("perfetto:{}", file.display());
    let output = run(CH01, &["--trace", &flag]);
    assert!(output.status.success() && text(&output.stdout).contains("KVM_EXIT_HLT"), "text stays on stdout");
    let events: serde_json::Value = serde_json::from_slice(&fs::read(&file).expect("written")).expect("JSON");
    let spans = events.as_array().expect("an array").iter().filter(|event| event["ph"] == "X");
    let tracks: Vec<i64> = spans.map(|span| span["tid"].as_i64().expect("a track")).collect();
    assert_eq!(tracks, [1, 2, 1, 2, 1], "guest, host, guest, host, guest");
}

/// The records of a run on the software machine, which is everywhere.
fn records_on_soft(path: &str) -> Vec<Record> {
    let output = run(path, &["--backend", "soft", "--trace", "json"]);
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    text(&output.stdout).lines().map(parse).collect()
}

#[test]
fn what_the_host_answers_is_recorded_as_the_guest_got_it() {
    let answers: Vec<Vec<u8>> = records_on_soft(CH02)
        .into_iter()
        .filter_map(|record| match record {
            Record::Exit(exit) if exit.direction == Some(Direction::Read) => Some(exit.data?.0),
            _ => None,
        })
        .collect();
    assert_eq!(answers, [b"V", b"M"]);
}

#[test]
fn registers_that_the_hypervisor_sets_are_recorded_between_the_exits() {
    let records = records_on_soft(CH04);
    let key = records.windows(2).find_map(|pair| match pair {
        [Record::Exit(exit), Record::Set(set)] if exit.port == Some(0x16) => set.registers.as_ref(),
        _ => None,
    });
    assert_eq!(key.expect("int 0x16 was answered").rax.0 as u8, b'x');
    // Each of the three ticks sets the segment registers and the others.
    let ticks = records.iter().filter(|record| matches!(record, Record::Set(set) if set.system.is_some()));
    assert_eq!(ticks.count(), 3);
}
