//! The Intel machine: Bochs, an interpreter that emulates VMX.
//!
//! Bochs has no way to be handed a kernel, so it boots a CD with isolinux on
//! it; and no way to run without a display in the distribution's package, so it
//! draws on a pseudo-terminal that nobody looks at.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::Machine;
use super::boot::Files;
use super::cache::Lab;
use super::pty::Pty;
use crate::failure::Failure;

/// The CPU that the machine has.
const CPU: &str = "corei7_skylake_x";

/// Instructions that make a second of the machine's clock, about as many as the
/// interpreter runs in one; so limits mean the same inside and outside. Linux
/// would take the clock's speed from CPUID, which names the real CPU's 3.3 GHz.
const INSTRUCTIONS_A_SECOND: u32 = 100_000_000;

/// What the machine is made of besides Bochs, where distributions put it, and
/// the Debian package that has it.
pub const PARTS: [Part; 4] = [
    Part {
        name: "bios.bin",
        package: "bochsbios",
        places: &["/usr/share/bochs/BIOS-bochs-latest", "/usr/local/share/bochs/BIOS-bochs-latest"],
    },
    Part {
        name: "vgabios.bin",
        package: "vgabios",
        places: &[
            "/usr/share/bochs/VGABIOS-lgpl-latest",
            "/usr/share/bochs/VGABIOS-lgpl-latest.bin",
            "/usr/local/share/bochs/VGABIOS-lgpl-latest.bin",
            "/usr/share/vgabios/vgabios.bin",
        ],
    },
    Part {
        name: "isolinux.bin",
        package: "isolinux",
        places: &[
            "/usr/lib/ISOLINUX/isolinux.bin",
            "/usr/share/syslinux/isolinux.bin",
            "/usr/lib/syslinux/bios/isolinux.bin",
        ],
    },
    Part {
        name: "ldlinux.c32",
        package: "syslinux-common",
        places: &[
            "/usr/lib/syslinux/modules/bios/ldlinux.c32",
            "/usr/share/syslinux/ldlinux.c32",
            "/usr/lib/syslinux/bios/ldlinux.c32",
        ],
    },
];

/// A file that setup copies into the cache.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Its name in the cache.
    pub name: &'static str,
    /// The package that has it.
    pub package: &'static str,
    places: &'static [&'static str],
}

impl Part {
    /// Where it is on this system.
    #[must_use]
    pub fn find(&self) -> Option<&'static Path> {
        self.places.iter().map(Path::new).find(|place| place.is_file())
    }
}

/// The program's name when setup was not told where it is.
#[must_use]
pub fn program(named: Option<&PathBuf>) -> PathBuf {
    named.cloned().unwrap_or_else(|| PathBuf::from("bochs"))
}

/// Checks that Bochs is there and has the CPU, and that the CD can be made.
///
/// # Errors
/// [`Failure`] with what is missing.
pub fn check(program: &Path) -> Result<()> {
    let name = program.display();
    let Ok(output) = Command::new(program).args(["--help", "cpu"]).stdin(Stdio::null()).output() else {
        bail!(Failure::bad_input(format!("{name} is not installed; run `cargo vmexit lab setup`")));
    };
    let help = [output.stdout, output.stderr].concat();
    if !String::from_utf8_lossy(&help).split_whitespace().any(|word| word == CPU) {
        bail!(Failure::bad_input(format!(
            "{name} has no CPU model {CPU}, which the Intel machine needs: give Bochs 2.7 or newer to \
             `cargo vmexit lab setup --bochs PATH`"
        )));
    }
    if Command::new("xorriso").arg("-version").output().is_err() {
        bail!(Failure::bad_input("xorriso is not installed; run `cargo vmexit lab setup`"));
    }
    Ok(())
}

/// Writes the CD and Bochs' configuration into the boot's folder; returns the
/// command that runs the machine on the terminal `pty`.
///
/// # Errors
/// When a file cannot be written or xorriso fails.
pub fn command(program: &Path, lab: &Lab, files: &Files, pty: &Pty) -> Result<Command> {
    let parts = lab.folder.join("bochs");
    let cd = files.folder.join("lab.iso");
    write_cd(&parts, files, &cd)?;
    let configuration = files.folder.join("bochsrc");
    write(&configuration, &bochsrc(&parts, files, &cd))?;
    // Debian's Bochs is its debugger, which waits for a command: continue.
    let debugger = files.folder.join("debugger");
    write(&debugger, "c\n")?;
    let mut command = Command::new(program);
    command.args(["-q", "-f"]).arg(&configuration).arg("-rc").arg(&debugger);
    command.env("TERM", "xterm").stdin(pty.stdio()?).stdout(pty.stdio()?).stderr(pty.stdio()?);
    Ok(command)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn bochsrc(parts: &Path, files: &Files, cd: &Path) -> String {
    let (bios, vgabios) = (parts.join("bios.bin"), parts.join("vgabios.bin"));
    let (bios, vgabios, cd) = (bios.display(), vgabios.display(), cd.display());
    let (console, results, log) = (files.console.display(), files.results.display(), files.log.display());
    format!(
        "megs: 512
romimage: file=\"{bios}\"
vgaromimage: file=\"{vgabios}\"
cpu: model={CPU}, count=1, ips={INSTRUCTIONS_A_SECOND}, reset_on_triple_fault=0
clock: sync=none, time0=local
ata0-master: type=cdrom, path=\"{cd}\", status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=\"{console}\"
com2: enabled=1, mode=file, dev=\"{results}\"
display_library: term
speaker: enabled=0
log: \"{log}\"
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
"
    )
}

fn write_cd(parts: &Path, files: &Files, cd: &Path) -> Result<()> {
    let kilohertz = INSTRUCTIONS_A_SECOND / 1000;
    let menu = files.folder.join("isolinux.cfg");
    write(
        &menu,
        &format!(
            "DEFAULT lab\nPROMPT 0\nLABEL lab\n KERNEL /vmlinuz\n INITRD /initrd\n APPEND {} tsc=reliable \
             tsc_early_khz={kilohertz} lpj=1000000 nokaslr mitigations=off\n",
            Machine::KERNEL_ARGUMENTS
        ),
    )?;
    let on_the_cd = [
        ("/isolinux/isolinux.bin", parts.join("isolinux.bin")),
        ("/isolinux/ldlinux.c32", parts.join("ldlinux.c32")),
        ("/isolinux/isolinux.cfg", menu),
        ("/vmlinuz", files.kernel.clone()),
        ("/initrd", files.initramfs.clone()),
    ];
    let output = Command::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"])
        .args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-graft-points", "-o"])
        .arg(cd)
        .args(on_the_cd.map(|(place, file)| format!("{place}={}", file.display())))
        .stdin(Stdio::null())
        .output()
        .context("cannot run xorriso")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("xorriso cannot write the CD that Bochs boots: {}", words.trim());
    }
    Ok(())
}

/// What Bochs' log says about VM entries that it refused: the check that failed.
#[must_use]
pub fn refused_entries(log: &str) -> Vec<&str> {
    let mut verdicts: Vec<&str> =
        log.lines().filter_map(|line| line.find("VMENTER FAIL: ").map(|at| &line[at..])).collect();
    verdicts.dedup();
    verdicts
}

/// Why Bochs gave up, when it did.
#[must_use]
pub fn panics(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains(">>PANIC<<")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_entry_is_named_once_without_bochs_clock() {
        let log = "0621e[CPU0  ] VMENTER FAIL: VMCS guest TR is not system segment\n\
                   0621e[CPU0  ] VMENTER FAIL: VMCS guest TR is not system segment\n\
                   0819e[CPU0  ] RDMSR: Unknown register 0xe8\n";
        assert_eq!(refused_entries(log), ["VMENTER FAIL: VMCS guest TR is not system segment"]);
    }
}
