//! The AMD machine: QEMU's software CPU, which emulates SVM.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::Machine;
use super::boot::Files;
use crate::failure::Failure;

/// The CPU that the machine has. kvm_amd needs `svm`, and uses nested paging
/// where there is `npt`.
///
/// There is none by default, because QEMU 7.2 emulates it less strictly than
/// silicon: it lets a guest write control registers that the manual forbids,
/// which kvm_amd checks itself when it shadows the guest's tables; and at an
/// exit from a guest with EFER.LME and without CR4.PAE the host was seen to go
/// on with CR0.PG clear, so that the whole machine hangs.
const CPU: &str = "EPYC,+svm,-npt";
const CPU_WITH_NESTED_PAGING: &str = "EPYC,+svm,+npt";

/// The emulator runs when this host lets it, and Linux, which measures one clock by
/// another while it boots, would give up on a timer or a counter that was held up.
const CLOCKS: &str = "no_timer_check tsc=reliable";

/// Memory in MiB.
const MEMORY: &str = "1024";

/// The program's name when setup was not told where it is.
#[must_use]
pub fn program(named: Option<&PathBuf>) -> PathBuf {
    named.cloned().unwrap_or_else(|| PathBuf::from("qemu-system-x86_64"))
}

/// Checks that QEMU is there and that its software CPU can be an AMD with SVM.
///
/// # Errors
/// [`Failure`] with what is missing.
pub fn check(program: &Path) -> Result<()> {
    let name = program.display();
    let Ok(output) = Command::new(program).args(["-cpu", "help"]).output() else {
        bail!(Failure::bad_input(format!("{name} is not installed; run `cargo vmexit lab setup`")));
    };
    let help = String::from_utf8_lossy(&output.stdout);
    if let Some(missing) = missing_feature(&help) {
        bail!(Failure::bad_input(format!(
            "{name} knows no {missing}, which the AMD machine needs: give QEMU 7.2 or newer to \
             `cargo vmexit lab setup --qemu PATH`"
        )));
    }
    Ok(())
}

/// What `qemu-system-x86_64 -cpu help` does not list of the words in [`CPU`].
fn missing_feature(help: &str) -> Option<&'static str> {
    let words: Vec<&str> = help.split_whitespace().collect();
    ["EPYC", "svm", "npt"].into_iter().find(|feature| !words.contains(feature))
}

/// The command that runs the machine.
#[must_use]
pub fn command(program: &Path, files: &Files, nested_paging: bool) -> Command {
    let mut command = Command::new(program);
    let cpu = if nested_paging { CPU_WITH_NESTED_PAGING } else { CPU };
    command
        .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", cpu, "-m", MEMORY])
        // Nothing of the user's: no config, no network, no window, no monitor.
        .args(["-no-user-config", "-nic", "none", "-display", "none", "-monitor", "none", "-no-reboot"])
        .arg("-serial")
        .arg(prefixed("file:", &files.console))
        .arg("-chardev")
        .arg(results(files))
        .args(["-serial", "chardev:results"])
        .arg("-kernel")
        .arg(&files.kernel)
        .arg("-initrd")
        .arg(&files.initramfs)
        .arg("-append")
        .arg(format!("{} {CLOCKS}", Machine::KERNEL_ARGUMENTS));
    command
}

/// The second serial port: it writes reports to a file. Where the reader types, it
/// is QEMU's own stdin and stdout, which are the pipe with the keys and that file.
fn results(files: &Files) -> std::ffi::OsString {
    match &files.keyboard {
        Some(_) => "stdio,id=results,signal=off".into(),
        None => prefixed("file,id=results,path=", &files.results),
    }
}

fn prefixed(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(prefix);
    text.push(path);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_without_svm_is_told_from_one_that_has_it() {
        assert_eq!(missing_feature("x86 EPYC  (alias)\n  npt nx svm svm-lock"), None);
        assert_eq!(missing_feature("x86 EPYC  (alias)\n  npt nx svm-lock"), Some("svm"));
        assert_eq!(missing_feature("Available CPUs:\nx86 qemu64\n svm npt"), Some("EPYC"));
    }
}
