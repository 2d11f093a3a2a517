//! The distribution's packages, by apt and dpkg: looked up, downloaded,
//! unpacked into a folder, or installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::failure::Failure;

/// A package that apt would download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// The name of the file that apt writes.
    pub file: String,
    /// The file's size.
    pub bytes: u64,
}

/// The meta packages whose newest version depends on a kernel for virtual
/// machines: Debian's, then Ubuntu's.
const KERNELS: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-virtual"];

/// The package with the programs of chapter 16's shell, in Debian and in Ubuntu.
pub const BUSYBOX: &str = "busybox-static";

/// Whether this system has apt at all.
#[must_use]
pub fn available() -> bool {
    let ask = Command::new("apt-get").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    ask.is_ok_and(|status| status.success())
}

/// The names of the packages that hold the kernel and its modules.
///
/// # Errors
/// [`Failure`] when apt knows none, with the command that helps.
pub fn kernel_packages() -> Result<Vec<String>> {
    for meta in KERNELS {
        let Some(image) = dependency(meta, "linux-image-")? else { continue };
        // Ubuntu keeps the modules in a package of their own.
        let modules = dependency(&image, "linux-modules-")?;
        return Ok([Some(image), modules].into_iter().flatten().collect());
    }
    Err(Failure::bad_input(format!(
        "apt knows no package {}: run `sudo apt-get update` and try again, or name a kernel with --kernel BZIMAGE \
         --modules DIR",
        KERNELS.join(" or ")
    ))
    .into())
}

/// The first package on which `package` depends and whose name begins so.
fn dependency(package: &str, prefix: &str) -> Result<Option<String>> {
    let (known, text) = ask("apt-cache", &["depends", "--important", package])?;
    Ok(known.then(|| first_dependency(&text, prefix)).flatten())
}

fn first_dependency(text: &str, prefix: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.trim().trim_start_matches('|').strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
}

/// What apt would download for `packages` alone.
///
/// # Errors
/// When apt does not know them.
pub fn downloads(packages: &[String]) -> Result<Vec<Package>> {
    let mut arguments = vec!["download", "--print-uris"];
    arguments.extend(packages.iter().map(String::as_str));
    let (known, text) = ask("apt-get", &arguments)?;
    let found = printed_uris(&text);
    if !known || found.len() != packages.len() {
        bail!(Failure::bad_input(format!(
            "apt cannot download {}: run `sudo apt-get update` and try again",
            packages.join(" ")
        )));
    }
    Ok(found)
}

/// What apt would download to install `packages` with all that they need.
///
/// # Errors
/// When apt does not know them.
pub fn installation(packages: &[&str]) -> Result<Vec<Package>> {
    let mut arguments = vec!["install", "--yes", "--no-install-recommends", "--print-uris"];
    arguments.extend(packages);
    let (known, text) = ask("apt-get", &arguments)?;
    if !known {
        bail!(Failure::bad_input(format!(
            "apt cannot install {}: run `sudo apt-get update` and try again",
            packages.join(" ")
        )));
    }
    Ok(printed_uris(&text))
}

/// The lines `'URI' FILE BYTES HASH` of `--print-uris`.
fn printed_uris(text: &str) -> Vec<Package> {
    text.lines()
        .filter(|line| line.starts_with('\''))
        .filter_map(|line| {
            let mut words = line.rsplit_once('\'')?.1.split_whitespace();
            Some(Package { file: words.next()?.to_owned(), bytes: words.next()?.parse().ok()? })
        })
        .collect()
}

/// Runs a program that only answers a question: whether it was content, and
/// what it said.
fn ask(program: &str, arguments: &[&str]) -> Result<(bool, String)> {
    let output = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Downloads `names` into `folder`, without root, and checks that each file is
/// whole; apt itself has checked its hash.
///
/// # Errors
/// [`Failure`] when a file does not arrive whole.
pub fn download(names: &[String], expected: &[Package], folder: &Path) -> Result<Vec<PathBuf>> {
    let status = Command::new("apt-get")
        // As root, apt warns that its own user may not read a private folder.
        .args(["--quiet", "-o", "APT::Sandbox::User=root", "download"])
        .args(names)
        .current_dir(folder)
        .stdin(Stdio::null())
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!(Failure::bad_input(format!(
            "apt-get could not download {} ({status}): check the network and run setup again",
            names.join(" ")
        )));
    }
    expected.iter().map(|package| whole(&folder.join(&package.file), package.bytes)).collect()
}

fn whole(file: &Path, bytes: u64) -> Result<PathBuf> {
    let arrived = std::fs::metadata(file).map(|data| data.len()).unwrap_or_default();
    let (is_package, _) = ask("dpkg-deb", &["--info", &file.to_string_lossy()])?;
    if arrived != bytes || !is_package {
        bail!(Failure::bad_input(format!(
            "{} arrived with {arrived} of {bytes} bytes: run setup again",
            file.display()
        )));
    }
    Ok(file.to_path_buf())
}

/// Unpacks a package into `folder`: nothing is installed on this machine.
///
/// # Errors
/// When dpkg cannot, for example for want of space.
pub fn unpack(package: &Path, folder: &Path) -> Result<()> {
    let output = Command::new("dpkg-deb")
        .arg("--extract")
        .args([package, folder])
        .output()
        .context("cannot run dpkg-deb")?;
    if !output.status.success() {
        bail!(Failure::bad_input(format!(
            "{} cannot be unpacked: {}",
            package.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(())
}

/// The command that installs `packages`, as root would type it.
#[must_use]
pub fn install_command(packages: &[&str]) -> String {
    format!("apt-get install --yes --no-install-recommends {}", packages.join(" "))
}

/// Installs `packages` on this machine. Needs root.
///
/// # Errors
/// [`Failure`] when apt does not succeed.
pub fn install(packages: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(["install", "--yes", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!(Failure::bad_input(format!(
            "apt-get could not install {} ({status}): its own words are above",
            packages.join(" ")
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_kernel_package_is_what_the_meta_package_depends_on() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(
            first_dependency(text, "linux-image-").as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        assert_eq!(first_dependency(text, "linux-modules-"), None);
    }

    #[test]
    fn sizes_come_from_apts_list_of_uris() {
        let text = "Reading package lists...\n'http://a/b%2bc.deb' b_1%3a2_amd64.deb 26713492 SHA256:e7d0\n";
        let expected = Package { file: "b_1%3a2_amd64.deb".to_owned(), bytes: 26_713_492 };
        assert_eq!(printed_uris(text), [expected]);
    }

    #[test]
    fn a_file_that_arrived_half_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("half.deb");
        std::fs::write(&file, b"!<arch>\n").expect("a file");
        let error = whole(&file, 1000).map(|_| ()).map_err(|error| error.to_string());
        // Without dpkg-deb the check cannot even be asked for; that is an error too.
        assert!(error.is_err_and(|text| text.contains("8 of 1000 bytes") || text.contains("dpkg-deb")));
    }
}
