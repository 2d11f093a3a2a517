//! The lab from outside, on the AMD machine, which boots in seconds. Where no
//! lab is set up, what needs one is listed at the end with the reason.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use vmexit_workbook::lab::cache::{self, Lab};

/// A test and its name.
type Test = (&'static str, fn());

#[rustfmt::skip] // a test a line
const WITHOUT_A_LAB: [Test; 2] = [
    ("without_a_lab_the_reader_is_sent_to_setup", without_a_lab_the_reader_is_sent_to_setup),
    ("setup_wants_a_kernel_and_its_modules", setup_wants_a_kernel_and_its_modules),
];

#[rustfmt::skip] // a test a line
const WITH_A_LAB: [Test; 3] = [
    ("a_dynamic_program_and_a_missing_one_are_refused", a_dynamic_program_and_a_missing_one_are_refused),
    ("ctrl_c_ends_the_emulator_and_leaves_no_files", ctrl_c_ends_the_emulator_and_leaves_no_files),
    ("a_kernel_that_is_none_ends_in_a_sentence", a_kernel_that_is_none_ends_in_a_sentence),
];

/// A lab of an older setup has no shell for chapter 16.
const WITH_A_SHELL: Test =
    ("linux_boots_to_a_shell_and_its_broken_variants_end_as_the_book_says", crate::linux::linux_boots);

/// Runs them all.
pub fn main() {
    let arguments = Arguments::from_args();
    let lab = cache::folder().map(|folder| Lab::open(&folder)).expect("a cache folder");
    let trial = |(name, test): Test| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let mut trials: Vec<Trial> = WITHOUT_A_LAB.into_iter().map(trial).collect();
    trials.extend(WITH_A_LAB.into_iter().map(|test| trial(test).with_ignored_flag(lab.is_err())));
    let has_shell = lab.as_ref().is_ok_and(|lab| lab.shell().is_some());
    trials.push(trial(WITH_A_SHELL).with_ignored_flag(!has_shell));
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Err(unusable) = &lab {
        println!("not run here:");
        for (name, _) in WITH_A_LAB {
            println!("  {name}: {}", unusable.reason());
        }
        println!("`cargo vmexit lab setup` makes a lab\n");
    }
    if !has_shell {
        println!("not run here:\n  {}: there is no shell for it", WITH_A_SHELL.0);
        println!("`cargo vmexit lab setup` fetches one\n");
    }
    conclusion.exit();
}

fn vmexit(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmexit"));
    command.args(arguments).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command
}

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("the tool starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Folders of boots that are in `temporary`.
fn boots(temporary: &std::path::Path) -> usize {
    fs::read_dir(temporary).expect("a folder").count()
}

fn without_a_lab_the_reader_is_sent_to_setup() {
    let empty = tempfile::tempdir().expect("a folder");
    let output = output(vmexit(&["lab", "ch01"]).env("VMEXIT_CACHE", empty.path()));
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output), "vmexit: the lab is not set up yet; run `cargo vmexit lab setup`\n");
}

fn setup_wants_a_kernel_and_its_modules() {
    let empty = tempfile::tempdir().expect("a folder");
    let mut command = vmexit(&["lab", "setup", "--kernel", "/no/such/kernel"]);
    let output = output(command.env("VMEXIT_CACHE", empty.path()));
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--modules"), "{}", stderr(&output));
    assert_eq!(boots(empty.path()), 0);
}

fn a_dynamic_program_and_a_missing_one_are_refused() {
    // The tool itself is linked like every program of this host.
    if cfg!(not(target_feature = "crt-static")) {
        let dynamic = output(&mut vmexit(&["lab", "--", env!("CARGO_BIN_EXE_vmexit")]));
        assert_eq!(dynamic.status.code(), Some(2));
        assert!(stderr(&dynamic).contains("is linked dynamically"), "{}", stderr(&dynamic));
    }
    let missing = output(&mut vmexit(&["lab", "--", "./no-such-program"]));
    assert_eq!(stderr(&missing), "vmexit: there is no program ./no-such-program\n");
}

fn ctrl_c_ends_the_emulator_and_leaves_no_files() {
    let temporary = tempfile::tempdir().expect("a folder");
    let mut command = vmexit(&["lab", "ch01"]);
    let child = command.env("TMPDIR", temporary.path()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = child.spawn().expect("the tool starts");
    // The build comes first; the boot's folder shows that the machine starts.
    let deadline = Instant::now() + Duration::from_secs(300);
    while boots(temporary.path()) == 0 {
        assert!(Instant::now() < deadline, "no machine was started");
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_millis(500));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a running tool");
    let output = child.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert_eq!(boots(temporary.path()), 0);
}

fn a_kernel_that_is_none_ends_in_a_sentence() {
    // A lab like the real one, but for its kernel.
    let real = Lab::open(&cache::folder().expect("a cache folder")).expect("a lab");
    let folder = tempfile::tempdir().expect("a folder");
    let prepared = folder.path().join("prepared");
    for file in real.stamp.files.keys() {
        let copy = prepared.join(file);
        fs::create_dir_all(copy.parent().expect("inside")).expect("a folder");
        fs::copy(real.folder.join(file), copy).expect("a copy");
    }
    fs::write(prepared.join("vmlinuz"), b"not a kernel").expect("a file");
    cache::install(folder.path(), &prepared, real.stamp).expect("a lab");
    let output = output(vmexit(&["lab", "ch01"]).env("VMEXIT_CACHE", folder.path()));
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("the AMD machine stopped before its work was done"),
        "{}",
        stderr(&output)
    );
}
