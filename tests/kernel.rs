//! Chapter 11's kernel beyond its snapshots: files that are not what they should be,
//! and another hypervisor.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const KERNEL: &[u8] = vmexit::kernel!();
const HELLO: &[u8] = vmexit::program!("hello");

/// The offsets of an ELF header's fields and, from 64 on, of the first program header's.
mod at {
    pub const KIND: usize = 16;
    pub const MACHINE: usize = 18;
    pub const ENTRY: usize = 24;
    pub const LINKED: usize = 64 + 16;
    pub const LOADED: usize = 64 + 24;
    pub const IN_MEMORY: usize = 64 + 40;
    /// From one program header to the next.
    pub const NEXT: usize = 56;
}

fn ch11(flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ch11"));
    command.args(["--backend", "soft"]).args(flags).stdin(Stdio::null());
    command.env_remove("VMEXIT_BACKEND").output().expect("cargo has built the chapter")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file of the test's own.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kernel");
    fs::create_dir_all(&folder).expect("cargo's folder for tests can be written");
    let path = folder.join(name);
    fs::write(&path, bytes).expect("cargo's folder for tests can be written");
    path
}

fn changed(original: &[u8], place: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = original.to_vec();
    file[place..place + bytes.len()].copy_from_slice(bytes);
    file
}

/// Runs with `flag FILE`, and expects exit code 2 and one sentence with these words.
fn expect_refused(flag: &str, name: &str, bytes: &[u8], words: &str) {
    let path = file(name, bytes);
    let output = ch11(&[flag, path.to_str().expect("a path in UTF-8")]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{name}: {said}");
    assert_eq!(said.lines().count(), 1, "{name}: {said}");
    assert!(said.contains(words), "{name}: {said}");
    assert!(output.stdout.is_empty(), "{name}: {}", text(&output.stdout));
}

#[test]
fn a_program_that_is_not_what_it_should_be_is_one_sentence_and_exit_code_2() {
    let program = |name, bytes: &[u8], words| expect_refused("--program", name, bytes, words);
    program("empty", b"", "no ELF image");
    program("script", b"#!/bin/sh\n", "no ELF image");
    program("truncated", &HELLO[..HELLO.len() / 2], "no ELF image");
    program("other-machine", &changed(HELLO, at::MACHINE, &[183, 0]), "machine 183");
    program("library", &changed(HELLO, at::KIND, &[3, 0]), "its ELF type is 3");
    program("entry", &changed(HELLO, at::ENTRY, &0x50_0000u64.to_le_bytes()), "entry point 0x500000");
    let gib = (1u64 << 30).to_le_bytes();
    program("large", &changed(HELLO, at::IN_MEMORY + at::NEXT, &gib), "asks for 0x4000");
    program("huge", &changed(HELLO, at::IN_MEMORY, &u64::MAX.to_le_bytes()), "leaves the address space");
    let there = 0xffff_ffff_8010_0000u64.to_le_bytes();
    program("in-the-kernel", &changed(HELLO, at::LINKED + at::NEXT, &there), "leaves the address space");
    let first = &HELLO[at::LINKED..at::LOADED + 8];
    program("overlap", &changed(HELLO, at::LINKED + at::NEXT, first), "overlap");
}

#[test]
fn a_kernel_that_is_not_what_it_should_be_is_one_sentence_and_exit_code_2() {
    let kernel = |name, bytes: &[u8], words| expect_refused("--kernel", name, bytes, words);
    kernel("truncated-kernel", &KERNEL[..KERNEL.len() / 2], "no ELF image");
    kernel("other-machine-kernel", &changed(KERNEL, at::MACHINE, &[3, 0]), "machine 3");
    kernel("entry-kernel", &changed(KERNEL, at::ENTRY, &0u64.to_le_bytes()), "entry point 0x0");
    let size = (16u64 << 20).to_le_bytes();
    let far = changed(KERNEL, at::LOADED + at::NEXT, &size);
    kernel("far-kernel", &far, "memory ends at 0x1000000");
    let elsewhere = 0x20_0000u64.to_le_bytes();
    kernel(
        "wrong-address-kernel",
        &changed(KERNEL, at::LOADED + at::NEXT, &elsewhere),
        "maps 0xffffffff80000000 + P to P",
    );
    kernel("low-kernel", &changed(KERNEL, at::LOADED, &0x1000u64.to_le_bytes()), "first MiB");
}

#[test]
fn a_file_that_is_not_there_is_named_with_those_that_are() {
    let output = ch11(&["--program", "nowhere"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("nowhere cannot be read") && said.contains("hello"), "{said}");
}

/// The hypervisor's check and the kernel's own are two: this program is refused by the second.
#[test]
fn a_program_that_only_the_kernel_can_refuse_is_a_guest_that_failed() {
    let low = changed(&changed(HELLO, at::LINKED, &0u64.to_le_bytes()), at::ENTRY, &0u64.to_le_bytes());
    let path = file("at-0", &low);
    let output = ch11(&["--program", path.to_str().expect("a path in UTF-8")]);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{printed}");
    assert!(printed.contains("is not a program's to use"), "{printed}");
}

#[test]
fn a_kernel_that_dies_or_halts_is_a_guest_that_failed() {
    // A program for ring 3 is no kernel: its `syscall` is #UD, and there is no IDT.
    let path = file("no-kernel", HELLO);
    let output = ch11(&["--kernel", path.to_str().expect("a path in UTF-8"), "--program", "none"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("KVM_EXIT_SHUTDOWN"), "{}", text(&output.stderr));

    // The entry point's segment begins in the file where the second program header says.
    let entry = u64::from_le_bytes(KERNEL[at::ENTRY..at::ENTRY + 8].try_into().expect("eight bytes"));
    let header = &KERNEL[64 + at::NEXT..];
    let field = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let start = (field(8) + entry - field(16)) as usize;
    let path = file("halting-kernel", &changed(KERNEL, start, &[0xf4]));
    let output = ch11(&["--kernel", path.to_str().expect("a path in UTF-8")]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("the kernel halted"), "{}", text(&output.stderr));
}

#[test]
fn a_command_line_that_is_too_long_is_refused() {
    let output = ch11(&["--cmdline", &"x".repeat(5000)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("5000"), "{}", text(&output.stderr));
}

/// Runs the kernel under QEMU's emulated CPU, loaded by its own firmware through PVH. What came on
/// the serial port, and the exit code; `None` where there is no QEMU.
fn qemu(command_line: &str, program: Option<&[u8]>) -> Option<(String, i32)> {
    let name = if command_line.is_empty() { "plain" } else { command_line };
    let kernel = file(&format!("qemu-{name}"), KERNEL);
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.args(["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    qemu.arg("-kernel").arg(kernel).args(["-append", command_line]);
    if let Some(program) = program {
        qemu.arg("-initrd").arg(file(&format!("qemu-{name}-program"), program));
    }
    match qemu.stdin(Stdio::null()).output() {
        Ok(output) => {
            let code = output.status.code().expect("QEMU ended by itself");
            assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
            Some((text(&output.stdout), code))
        }
        Err(error) => {
            println!("not run here: the kernel under QEMU, for qemu-system-x86_64 cannot be run: {error}");
            None
        }
    }
}

/// What the kernel says of itself. What it was told, lines that begin with `boot:`, is its loader's.
fn of_the_kernel(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with("boot:"));
    lines.map(|line| line.trim_end().to_owned()).collect()
}

/// QEMU's debug-exit device ends it with twice the code plus one, of which a process keeps eight bits.
fn as_qemu_has_it(code: i32) -> i32 {
    (code << 1 | 1) & 0xff
}

/// Runs the kernel here and under QEMU, and compares.
fn compare_with_qemu(flags: &[&str], command_line: &str, program: Option<&[u8]>, code: i32) {
    let Some((serial, ended)) = qemu(command_line, program) else { return };
    assert_eq!(ended, as_qemu_has_it(code), "{serial}");
    assert!(serial.contains("boot: by PVH"), "{serial}");
    let ours = of_the_kernel(&text(&ch11(flags).stdout));
    let serial = of_the_kernel(&serial);
    // After the kernel's last words come the hypervisor's own.
    assert!(serial.len() > 3 && ours.len() > serial.len(), "{serial:?}");
    assert_eq!(serial, ours[..serial.len()], "{command_line:?}");
}

#[test]
fn under_qemu_the_kernel_says_the_same_and_ends_with_the_same_code() {
    compare_with_qemu(&[], "", Some(HELLO), 0);
    compare_with_qemu(&["--program", "none", "--cmdline", "test"], "test", None, 0);
    compare_with_qemu(&["--program", "none", "--cmdline", "panic"], "panic", None, 123);
}

#[test]
fn under_qemu_a_reboot_is_a_reset() {
    let Some((serial, code)) = qemu("reboot", None) else { return };
    // With -no-reboot, QEMU ends where the machine would start anew.
    assert_eq!(code, 0, "{serial}");
    assert_eq!(serial.matches("kernel: reboot").count(), 1, "{serial}");
}
