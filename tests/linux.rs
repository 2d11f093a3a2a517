//! Chapter 16's program from outside: whatever is given to it as a kernel, it ends
//! in one sentence and exit code 2, on every host, with or without KVM.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn ch16(flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ch16"));
    command.args(flags).stdin(Stdio::null()).env_remove("VMEXIT_BACKEND").env_remove("VMEXIT_DEVICE");
    command.output().expect("cargo has built it")
}

/// The one sentence that it ends in, which must be bad input.
fn sentence(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(output.stdout.is_empty(), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    fs::write(&path, bytes).expect("a writable folder");
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// As little of a bzImage as the loader takes: 2 sectors, 16 bytes of code.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024 + 16];
    let fields: [(usize, &[u8]); 9] = [
        (0x1f1, &[1]),
        (0x1f4, &1u32.to_le_bytes()),
        (0x201, &[0x6a]),
        (0x202, b"HdrS"),
        (0x206, &0x20fu16.to_le_bytes()),
        (0x211, &[1]),
        (0x22c, &0x7fff_ffffu32.to_le_bytes()),
        (0x236, &[1]),
        (0x238, &255u32.to_le_bytes()),
    ];
    for (at, bytes) in fields {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    image
}

#[test]
fn what_is_no_kernel_is_one_sentence() {
    let folder = own_folder();
    let old = [&bzimage()[..0x206], &0x204u16.to_le_bytes(), &bzimage()[0x208..]].concat();
    for (name, bytes, expected) in [
        ("empty", b"".to_vec(), "no Linux kernel"),
        ("text", b"hello".repeat(500), "no Linux kernel"),
        ("cut-off", bzimage()[..1030].to_vec(), "cut off"),
        ("too-old", old, "protocol 2.04"),
        ("bad-elf", b"\x7fELF\x02\x01\x01".repeat(200), "ELF"),
    ] {
        let said = sentence(&ch16(&["--kernel", &file(&folder, name, &bytes)]));
        assert!(said.contains(expected) && said.contains(name), "{said}");
    }
    let said = sentence(&ch16(&["--kernel", "/no/such/kernel"]));
    assert!(said.contains("/no/such/kernel") && said.contains("No such file"), "{said}");
    let said = sentence(&ch16(&["--kernel", folder.to_str().expect("a path in UTF-8")]));
    assert!(said.contains("directory"), "{said}");
}

#[test]
fn what_does_not_fit_is_one_sentence() {
    let folder = own_folder();
    let kernel = file(&folder, "kernel", &bzimage());
    let large = file(&folder, "large", &vec![0; 3 << 20]);
    let long = "x".repeat(256);
    for (flags, expected) in [
        (["--memory", "4097K"].as_slice(), "pages of 4096 bytes"),
        (&["--memory", "many"], "512M or 1G"),
        (&["--memory", "4G"], "ends at 3G"),
        (&["--memory", "1M"], "needs 2 MiB"),
        (&["--memory", "4M", "--initrd", &large], "initramfs of 3145728 bytes does not fit"),
        (&["--initrd", "/no/such/file"], "/no/such/file"),
        (&["--cmdline", &long], "256 bytes and this kernel reads 255"),
    ] {
        let said = sentence(&ch16(&[&["--kernel", &kernel], flags].concat()));
        assert!(said.contains(expected), "{flags:?}: {said}");
    }
}

#[test]
fn a_host_that_cannot_is_sent_to_the_lab() {
    let folder = own_folder();
    let kernel = file(&folder, "kernel", &bzimage());
    let said = sentence(&ch16(&["--kernel", &kernel, "--backend", "soft"]));
    assert!(said.contains("cargo vmexit lab ch16"), "{said}");
    let mut without = Command::new(env!("CARGO_BIN_EXE_ch16"));
    without.args(["--kernel", &kernel]).env("VMEXIT_DEVICE", "/no/such/device").env_remove("VMEXIT_BACKEND");
    let said = sentence(&without.stdin(Stdio::null()).output().expect("cargo has built it"));
    assert!(said.contains("/no/such/device does not exist") && said.contains("cargo vmexit lab"), "{said}");
}

#[test]
fn without_a_kernel_and_without_a_lab_the_reader_is_sent_to_setup() {
    let folder = own_folder();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ch16"));
    command.env("VMEXIT_CACHE", &folder).env_remove("VMEXIT_BACKEND").stdin(Stdio::null());
    let said = sentence(&command.output().expect("cargo has built it"));
    assert!(said.contains("vmlinuz") && said.contains("cargo vmexit lab setup"), "{said}");
}

/// A folder of this test's own, under the one that cargo gives for such.
fn own_folder() -> std::path::PathBuf {
    let name = format!("linux-{:?}", std::thread::current().id());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).expect("a writable folder");
    folder
}
