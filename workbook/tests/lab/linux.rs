//! Chapter 16 on real KVM: a session with Linux, and every way in which a boot
//! fails, in one boot of the AMD machine.

use std::fs;
use std::path::{Path, PathBuf};

use vmexit_lab_init::job::Bytes;
use vmexit_lab_init::{Ending, Job, Stdin, Stream};
use vmexit_workbook::interrupt::Interrupt;
use vmexit_workbook::lab::boot::{self, Event, Plan};
use vmexit_workbook::lab::cache::{self, Lab};
use vmexit_workbook::lab::initramfs::Program;
use vmexit_workbook::lab::{Machine, program, single};

const PROGRAM: &str = "/bin/ch16";
const SILENT_KERNEL: &str = "/lab/files/silent";
const LINES: &str = "uname -a\ngrep -E 'ttyS0|LOC' /proc/interrupts\ndmesg | grep -i tsc\npoweroff -f\n";

/// A run: its flags, what is typed, the exit code that it must end in, and what it must say.
struct Run {
    flags: &'static [&'static str],
    typed: &'static str,
    code: i32,
    says: &'static [&'static str],
}

#[rustfmt::skip] // a run a line or two
const RUNS: &[Run] = &[
    Run { flags: &["--cmdline", "console=ttyS0 quiet panic=-1"], typed: LINES, code: 0,
        says: &["Linux (none) 6.", "IO-APIC", "Local timer interrupts", "tsc: Detected", "reboot: Power down"] },
    Run { flags: &["--cmdline", "console=ttyS0 quiet"], typed: "reboot -f\n", code: 0,
        says: &["reboot: Restarting system"] },
    // The end of what is typed is Ctrl-D, which ends the shell, which switches the machine off.
    Run { flags: &["--cmdline", "console=ttyS0 quiet"], typed: "", code: 0, says: &["reboot: Power down"] },
    Run { flags: &["--break", "no-initrd"], typed: "", code: 3,
        says: &["Unable to mount root fs", "ch16: the kernel panicked"] },
    Run { flags: &["--break", "memory-map"], typed: "", code: 3,
        says: &["Attempted to kill the idle task", "ch16: the kernel panicked", "no slot is"] },
    Run { flags: &["--break", "no-irqchip"], typed: "", code: 3, says: &["KVM_EXIT_HLT"] },
    Run { flags: &["--break", "entry-32"], typed: "", code: 3, says: &["KVM_EXIT_SHUTDOWN"] },
    Run { flags: &["--kernel", SILENT_KERNEL, "--deadline", "2"], typed: "", code: 4,
        says: &["did not end within 2 s", "jmp"] },
];

/// What a run wrote, and how it ended.
#[derive(Default)]
struct Ran {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    ending: Option<Ending>,
}

pub fn linux_boots() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workbook's folder");
    let lab = Lab::open(&cache::folder().expect("a cache folder")).expect("a lab");
    assert!(lab.shell().is_some(), "this lab has no shell for chapter 16: run `cargo vmexit lab setup`");
    let built = program::build(root, &["ch16".to_owned()]).expect("it builds");
    let folder = tempfile::tempdir().expect("a folder");
    let mut programs = single::kept(&lab);
    programs.push(Program { inside: PROGRAM.to_owned(), file: built["ch16"].clone() });
    programs.push(Program { inside: SILENT_KERNEL.to_owned(), file: silent_kernel(folder.path()) });
    let plan = Plan {
        lab: &lab,
        machine: Machine::Amd,
        nested_paging: true,
        init: built[program::INIT].clone(),
        programs,
        jobs: RUNS.iter().map(job).collect(),
    };
    let mut ran: Vec<Ran> = RUNS.iter().map(|_| Ran::default()).collect();
    let interrupt = Interrupt::listen().expect("signals");
    boot::run(&plan, &interrupt, &mut |event| {
        match event {
            Event::Output(number, Stream::Stdout, bytes) => ran[number].stdout.extend(bytes),
            Event::Output(number, Stream::Stderr, bytes) => ran[number].stderr.extend(bytes),
            Event::Finished(number, ending, _) => ran[number].ending = Some(ending),
            _ => {}
        }
        Ok(())
    })
    .expect("the machine runs them all");
    for (run, ran) in RUNS.iter().zip(&ran) {
        check(run, ran);
    }
    let book = fs::read_to_string(root.join("book/src/traces/ch16.txt")).expect("the page's session");
    compare(&book, &String::from_utf8_lossy(&ran[0].stdout));
}

fn job(run: &Run) -> Job {
    let arguments: Vec<String> = run.flags.iter().map(|flag| (*flag).to_owned()).collect();
    let mut job = single::job(PROGRAM, &arguments, 120);
    job.environment.push(("VMEXIT_CACHE".to_owned(), single::KEPT.to_owned()));
    job.stdin = Stdin::Bytes(Bytes(run.typed.as_bytes().to_vec()));
    job
}

fn check(run: &Run, ran: &Ran) {
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert_eq!(ran.ending, Some(Ending::Code(run.code)), "{:?}:\n{said}", run.flags);
    for words in run.says {
        assert!(said.contains(words), "{:?} does not say {words:?}:\n{said}", run.flags);
    }
}

/// The session in the book is this one: the same lines, but for their numbers.
fn compare(book: &str, session: &str) {
    let shape = |line: &str| {
        let line = line.replace("\u{1b}[6n", "").replace('\r', "");
        let mut shape: String = line.chars().map(|c| if c.is_ascii_hexdigit() { '0' } else { c }).collect();
        while shape.contains("00") || shape.contains("  ") {
            shape = shape.replace("00", "0").replace("  ", " ");
        }
        shape
    };
    let mut lines = session.lines().map(shape);
    // The first line is the command.
    for wanted in book.lines().skip(1) {
        assert!(
            lines.any(|line| line == shape(wanted)),
            "the session has no line like {wanted:?}:\n{session}"
        );
    }
}

/// A bzImage whose kernel is `jmp $` at the 64-bit entry.
fn silent_kernel(folder: &Path) -> PathBuf {
    let mut image = vec![0; 1024 + 0x400];
    let fields: [(usize, &[u8]); 10] = [
        (0x1f1, &[1]),
        (0x1f4, &0x40u32.to_le_bytes()),
        (0x201, &[0x6a]),
        (0x202, b"HdrS"),
        (0x206, &0x20fu16.to_le_bytes()),
        (0x211, &[1]),
        (0x22c, &0x7fff_ffffu32.to_le_bytes()),
        (0x236, &[1]),
        (0x238, &2047u32.to_le_bytes()),
        (1024 + 0x200, &[0xeb, 0xfe]),
    ];
    for (at, bytes) in fields {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let file = folder.join("silent");
    fs::write(&file, image).expect("a file");
    file
}
