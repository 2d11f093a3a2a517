//! How long a Linux takes from the hypervisor's start to the first line of user
//! space, and how much memory the hypervisor itself needs: chapter 16's beside
//! QEMU's, on the same kernel and initramfs.
//!
//! ```text
//! cargo build --release --bin ch16
//! cargo run --release --example boot_time -- [--runs N] [--ch16 FILE] [--qemu FILE]
//! ```
//!
//! It needs a KVM that runs everything, and what `cargo vmexit lab setup` has put
//! aside, or files named with `--kernel` and `--initrd`.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    let code = linux::main();
    #[cfg(not(target_os = "linux"))]
    let code = {
        eprintln!("boot_time: there is no KVM on this system to boot a Linux with");
        ExitCode::from(2)
    };
    code
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io::{BufRead, BufReader, Read};
    use std::path::PathBuf;
    use std::process::{Command, ExitCode, Stdio};
    use std::time::{Duration, Instant};

    use anyhow::{Context, Result, ensure};
    use lexopt::prelude::*;
    use vmexit::boot::kept;

    /// What the initramfs of `cargo vmexit lab setup` says first.
    const UP: &str = "up: the initramfs runs";
    /// The word `once` makes it switch off at once.
    const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 once";
    /// MiB.
    const MEMORY: u64 = 256;

    struct Asked {
        runs: usize,
        kernel: PathBuf,
        initrd: PathBuf,
        ch16: PathBuf,
        qemu: PathBuf,
        /// Where QEMU finds its firmware, if not where it was built to.
        firmware: Option<PathBuf>,
    }

    /// What one boot took.
    struct Boot {
        time: Duration,
        /// KiB: the most that was resident, without the guest's memory.
        own: u64,
    }

    pub fn main() -> ExitCode {
        match run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("boot_time: {error:#}");
                ExitCode::from(2)
            }
        }
    }

    fn run() -> Result<()> {
        let asked = parse()?;
        println!("{:<22} {:>14} {:>14} {:>14}", "", "to user space", "its spread", "own memory");
        for (name, command) in candidates(&asked) {
            let mut boots = Vec::new();
            for _ in 0..asked.runs {
                match boot(command(&asked)) {
                    Ok(boot) => boots.push(boot),
                    Err(error) => {
                        println!("{name:<22} not measured: {error:#}");
                        break;
                    }
                }
            }
            if boots.len() == asked.runs {
                report(name, boots);
            }
        }
        println!("medians of {} boots, with {MEMORY} MiB of memory and one CPU", asked.runs);
        Ok(())
    }

    fn parse() -> Result<Asked> {
        let lab = kept::folder().context("no HOME")?.join("lab");
        let beside = std::env::current_exe()?.ancestors().nth(2).map(|folder| folder.join("ch16"));
        let mut asked = Asked {
            runs: 5,
            kernel: lab.join(kept::KERNEL),
            initrd: lab.join(kept::SHELL),
            ch16: beside.unwrap_or_else(|| "ch16".into()),
            qemu: "qemu-system-x86_64".into(),
            firmware: None,
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("runs") => asked.runs = parser.value()?.parse::<usize>()?.max(1),
                Long("kernel") => asked.kernel = parser.value()?.into(),
                Long("initrd") => asked.initrd = parser.value()?.into(),
                Long("ch16") => asked.ch16 = parser.value()?.into(),
                Long("qemu") => asked.qemu = parser.value()?.into(),
                Long("firmware") => asked.firmware = Some(parser.value()?.into()),
                other => return Err(other.unexpected().into()),
            }
        }
        for file in [&asked.kernel, &asked.initrd] {
            ensure!(file.is_file(), "there is no {}: run `cargo vmexit lab setup`", file.display());
        }
        let ch16 = asked.ch16.display();
        ensure!(asked.ch16.is_file(), "there is no {ch16}: `cargo build --release --bin ch16` makes it");
        Ok(asked)
    }

    type Candidate = (&'static str, fn(&Asked) -> Command);

    fn candidates(asked: &Asked) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = vec![("chapter 16", chapter_16)];
        let version = Command::new(&asked.qemu).arg("--version").stdout(Stdio::null()).status();
        if version.is_ok_and(|status| status.success()) {
            candidates.push(("QEMU, machine microvm", |asked| {
                // With the serial port and the interrupt controllers that chapter 16's machine has.
                qemu(asked, "microvm,accel=kvm,isa-serial=on,rtc=on,pit=on,pic=on")
            }));
            candidates.push(("QEMU, machine q35", |asked| qemu(asked, "q35,accel=kvm")));
        } else {
            println!("{} is not installed: only chapter 16 is measured", asked.qemu.display());
        }
        candidates
    }

    fn chapter_16(asked: &Asked) -> Command {
        let mut command = Command::new(&asked.ch16);
        command.arg("--kernel").arg(&asked.kernel).arg("--initrd").arg(&asked.initrd);
        command.args(["--memory", &format!("{MEMORY}M"), "--cmdline", COMMAND_LINE]);
        command
    }

    fn qemu(asked: &Asked, machine: &str) -> Command {
        let mut command = Command::new(&asked.qemu);
        command.args(["-machine", machine, "-cpu", "host", "-m", &MEMORY.to_string()]);
        command.args([
            "-no-user-config",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
        ]);
        command.arg("-kernel").arg(&asked.kernel).arg("-initrd").arg(&asked.initrd);
        // A microvm is reset where a PC is switched off.
        command.args(["-append", COMMAND_LINE]);
        if let Some(firmware) = &asked.firmware {
            command.arg("-L").arg(firmware);
        }
        command
    }

    /// Starts it, and looks at it when its guest is up.
    fn boot(mut command: Command) -> Result<Boot> {
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| command.get_program().display().to_string())?;
        let mut said = String::new();
        let mut measured = None;
        for line in BufReader::new(child.stdout.take().context("it was piped")?).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            if line.contains(UP) {
                let time = started.elapsed();
                measured = Some(Boot { time, own: own_memory(child.id())? });
                break;
            }
            said.push_str(line.trim_end());
        }
        child.kill()?;
        child.stderr.take().context("it was piped")?.read_to_string(&mut said)?;
        child.wait()?;
        measured.with_context(|| format!("its guest did not come up; it said {said:?}"))
    }

    /// The most that was resident of a process in KiB, without the mapping that is the guest's memory.
    fn own_memory(pid: u32) -> Result<u64> {
        let number = |line: &str| line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let most = status.lines().find(|line| line.starts_with("VmHWM:")).and_then(number);
        let most = most.context("the kernel says no VmHWM")?;
        let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let (mut size, mut guest) = (0, None);
        for line in maps.lines() {
            if line.starts_with("Size:") {
                size = number(line).unwrap_or(0);
            }
            if line.starts_with("Rss:") && size >= MEMORY << 10 {
                guest = guest.or(number(line));
            }
        }
        Ok(most.saturating_sub(guest.context("no mapping is as large as the guest's memory")?))
    }

    fn report(name: &str, mut boots: Vec<Boot>) {
        boots.sort_by_key(|boot| boot.time);
        let middle = boots.len() / 2;
        let milliseconds = |boot: &Boot| boot.time.as_millis();
        let time = milliseconds(&boots[middle]);
        let spread = format!("{}..{}", milliseconds(&boots[0]), milliseconds(&boots[boots.len() - 1]));
        boots.sort_by_key(|boot| boot.own);
        let own = boots[middle].own as f64 / 1024.0;
        println!("{name:<22} {time:>11} ms {spread:>14} {own:>10.1} MiB");
    }
}
