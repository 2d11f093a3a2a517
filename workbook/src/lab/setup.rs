//! `vmexit lab setup`: puts the lab together in the cache.
//!
//! Everything is made in a folder of its own and becomes the lab by one rename,
//! so a setup that is cut short leaves nothing that looks like a lab.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use tempfile::TempDir;
use vmexit::boot::kept;

use super::cache::{self, Lab, Stamp};
use super::packages::{self, Package};
use super::{Choice, Machine, bochs, modules, program, qemu, shell, single};
use crate::failure::Failure;
use crate::interrupt::Interrupt;

/// Room that a setup needs, in bytes: a kernel package, unpacked, and some.
const ROOM: u64 = 300 << 20;

/// What `vmexit lab setup` was asked for.
#[derive(Debug, Args)]
pub struct SetupArguments {
    /// Do it without asking
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    machines: Choice,

    /// A kernel of yours instead of the distribution's package: its bzImage
    #[arg(long, value_name = "BZIMAGE", requires = "modules")]
    kernel: Option<PathBuf>,

    /// That kernel's modules: a folder like /lib/modules/RELEASE
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,

    /// A QEMU of yours: its qemu-system-x86_64
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,

    /// A Bochs of yours
    #[arg(long, value_name = "PATH")]
    bochs: Option<PathBuf>,

    /// A static busybox of yours, for chapter 16's shell
    #[arg(long, value_name = "PATH")]
    busybox: Option<PathBuf>,
}

impl SetupArguments {
    /// Whether the reader names something to make the lab of.
    fn names_anything(&self) -> bool {
        self.kernel.is_some()
            || self.modules.is_some()
            || self.qemu.is_some()
            || self.bochs.is_some()
            || self.busybox.is_some()
    }
}

/// Sets the lab up; returns the tool's exit code.
///
/// # Errors
/// [`Failure`] with what to do when this host cannot.
pub fn run(arguments: &SetupArguments, interrupt: &Interrupt) -> Result<u8> {
    let machines = arguments.machines.chosen().unwrap_or_else(|| Machine::ALL.to_vec());
    let folder = cache::folder()?;
    match Lab::open(&folder) {
        Ok(lab)
            if !arguments.names_anything()
                && lab.shell().is_some()
                && single::check_emulators(&lab, &machines).is_ok() =>
        {
            println!("The lab in {} is ready already; delete that folder to begin again.", folder.display());
            return Ok(0);
        }
        Ok(_) => println!("There is a lab in {}; it will be replaced.", folder.display()),
        Err(cache::Unusable::Missing) => {}
        Err(unusable) => println!("It will be made anew: {}.", unusable.reason()),
    }
    let missing = missing_packages(arguments, &machines);
    check_own(arguments)?;
    let source = Source::choose(arguments)?;
    announce(&folder, &source, &missing)?;
    if !missing.is_empty() && !rustix::process::geteuid().is_root() {
        bail!(Failure::bad_input(format!(
            "installing needs root: run `sudo {}` and then this again",
            packages::install_command(&missing)
        )));
    }
    if !arguments.yes && !agreed()? {
        return Ok(0);
    }
    make_room(&folder)?;
    if !missing.is_empty() {
        packages::install(&missing)?;
    }
    interrupt.check()?;
    let work = tempfile::Builder::new()
        .prefix(cache::UNFINISHED_PREFIX)
        .tempdir_in(&folder)
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    let stamp = prepare(arguments, &machines, &source, &work);
    // Ctrl-C ends apt too; that is no failure of it.
    interrupt.check()?;
    let stamp = stamp?;
    check(&stamp, &machines)?;
    cache::install(&folder, &work.path().join("lab"), stamp).with_context(|| space(&folder))?;
    drop(work);
    Lab::open(&folder).map_err(Failure::from)?;
    println!("The lab is ready. Try: cargo vmexit lab ch01");
    Ok(0)
}

/// Checks the reader's own emulators before anything is downloaded for them.
fn check_own(arguments: &SetupArguments) -> Result<()> {
    if let Some(qemu) = &arguments.qemu {
        qemu::check(qemu)?;
    }
    if let Some(bochs) = &arguments.bochs {
        bochs::check(bochs)?;
    }
    Ok(())
}

/// Where the kernel comes from.
enum Source {
    /// The distribution's packages, and what apt says of them.
    Packages(Vec<String>, Vec<Package>),
    /// The reader's own.
    Own { kernel: PathBuf, modules: PathBuf },
}

impl Source {
    fn choose(arguments: &SetupArguments) -> Result<Self> {
        if let (Some(kernel), Some(modules)) = (&arguments.kernel, &arguments.modules) {
            return Ok(Self::Own { kernel: kernel.clone(), modules: modules.clone() });
        }
        if !packages::available() {
            bail!(Failure::bad_input(
                "this system has no apt: give the lab a kernel for x86-64 that is in your distribution's package, \
                 with --kernel BZIMAGE --modules DIR"
            ));
        }
        let mut names = packages::kernel_packages()?;
        if arguments.busybox.is_none() {
            names.push(packages::BUSYBOX.to_owned());
        }
        let sizes = packages::downloads(&names)?;
        Ok(Self::Packages(names, sizes))
    }
}

/// The Debian packages without which a machine cannot run here.
fn missing_packages(arguments: &SetupArguments, machines: &[Machine]) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if machines.contains(&Machine::Amd)
        && arguments.qemu.is_none()
        && qemu::check(&qemu::program(None)).is_err()
    {
        missing.push("qemu-system-x86");
    }
    if machines.contains(&Machine::Intel) {
        if arguments.bochs.is_none() && bochs::check(&bochs::program(None)).is_err() {
            missing.extend(["bochs", "bochs-term", "xorriso"]);
        }
        missing.extend(bochs::PARTS.iter().filter(|part| part.find().is_none()).map(|part| part.package));
    }
    missing
}

/// Says what will be done and how much comes over the network.
fn announce(folder: &Path, source: &Source, missing: &[&str]) -> Result<()> {
    println!("Setting up the lab in {}:", folder.display());
    let mut bytes = 0;
    match source {
        Source::Packages(names, files) => {
            let size = total(files);
            bytes += size;
            println!(
                "  download {} ({}) and unpack it there; it is not installed",
                names.join(" "),
                megabytes(size)
            );
        }
        Source::Own { kernel, modules } => {
            println!("  copy {} and the KVM modules below {}", kernel.display(), modules.display());
        }
    }
    if !missing.is_empty() {
        if !packages::available() {
            bail!(Failure::bad_input(format!(
                "this system has no apt to install the emulators with: install what Debian calls {} and run this \
                 again, or leave a machine out with --amd or --intel",
                missing.join(", ")
            )));
        }
        let files = packages::installation(missing)?;
        bytes += total(&files);
        println!("  install on this machine, with apt-get: {}", missing.join(" "));
        println!("  ({} packages with what they need, {})", files.len(), megabytes(total(&files)));
    }
    println!("  download in all: {}", megabytes(bytes));
    Ok(())
}

fn total(files: &[Package]) -> u64 {
    files.iter().map(|package| package.bytes).sum()
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}

/// Asks the reader, if there is one.
fn agreed() -> Result<bool> {
    if !io::stdin().is_terminal() {
        bail!(Failure::bad_input("nobody is there to agree to this: say --yes"));
    }
    print!("Go on? [Y/n] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "" | "y" | "Y" | "yes"))
}

/// Makes the cache's folder, clears it of setups that were cut short and checks
/// that there is room.
fn make_room(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| {
        Failure::bad_input(format!(
            "{} cannot be made: {error}; set VMEXIT_CACHE to a folder of yours",
            folder.display()
        ))
    })?;
    let removed = cache::remove_unfinished(folder)
        .with_context(|| format!("cannot clear {} of setups that were cut short", folder.display()))?;
    if removed > 0 {
        println!("Removed what a setup that was cut short had left.");
    }
    let system =
        rustix::fs::statvfs(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
    let free = system.f_bavail * system.f_frsize;
    if free < ROOM {
        bail!(Failure::bad_input(format!(
            "{} has {} free and setup needs {}: make room, or set VMEXIT_CACHE to a folder elsewhere",
            folder.display(),
            megabytes(free),
            megabytes(ROOM)
        )));
    }
    Ok(())
}

/// Fills `lab/` in the folder `work`.
fn prepare(
    arguments: &SetupArguments,
    machines: &[Machine],
    source: &Source,
    work: &TempDir,
) -> Result<Stamp> {
    let lab = work.path().join("lab");
    for folder in ["modules", "bochs"] {
        fs::create_dir_all(lab.join(folder)).with_context(|| space(work.path()))?;
    }
    let (kernel, tree, busybox) = match source {
        Source::Own { kernel, modules } => (kernel.clone(), modules.clone(), None),
        Source::Packages(names, files) => unpacked(names, files, work.path())?,
    };
    copy(&kernel, &lab.join(kept::KERNEL))?;
    match arguments.busybox.clone().or(busybox) {
        Some(busybox) => {
            program::check_static(&busybox)?;
            shell::write(&busybox, &lab.join(kept::SHELL))?;
        }
        None => println!("Without --busybox there is no shell for chapter 16."),
    }
    let mut stamp = Stamp {
        kernel: kernel.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        qemu: arguments.qemu.as_deref().map(std::path::absolute).transpose()?,
        bochs: arguments.bochs.as_deref().map(std::path::absolute).transpose()?,
        ..Stamp::default()
    };
    stamp.modules = modules_of(machines, &tree, &lab)?;
    if machines.contains(&Machine::Intel) {
        for part in &bochs::PARTS {
            let file = part.find().ok_or_else(|| {
                Failure::bad_input(format!("{} is not on this system: install {}", part.name, part.package))
            })?;
            copy(file, &lab.join("bochs").join(part.name))?;
        }
    }
    Ok(stamp)
}

/// Downloads and unpacks the packages; returns the bzImage, the folder with the
/// modules, and busybox.
fn unpacked(names: &[String], files: &[Package], work: &Path) -> Result<(PathBuf, PathBuf, Option<PathBuf>)> {
    let root = work.join("unpacked");
    for package in packages::download(names, files, work)? {
        packages::unpack(&package, &root)?;
    }
    let kernel = fs::read_dir(root.join("boot"))
        .context("the kernel's package has no /boot")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .context("the kernel's package has no /boot/vmlinuz")?;
    // Where /lib is a link to /usr/lib, packages have the latter.
    let modules = [root.join("lib/modules"), root.join("usr/lib/modules")];
    let modules =
        modules.into_iter().find(|folder| folder.is_dir()).context("the packages have no modules")?;
    let busybox = [root.join("bin/busybox"), root.join("usr/bin/busybox")];
    Ok((kernel, modules, busybox.into_iter().find(|file| file.is_file())))
}

fn modules_of(machines: &[Machine], tree: &Path, lab: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let mut order = BTreeMap::new();
    for machine in machines {
        let mut names = Vec::new();
        for module in modules::with_dependencies(tree, machine.kvm_module())? {
            let name = format!("modules/{}.ko", module.name);
            fs::write(lab.join(&name), module.image).with_context(|| space(lab))?;
            names.push(name);
        }
        order.insert(machine.name().to_owned(), names);
    }
    Ok(order)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map_err(|error| {
        Failure::bad_input(format!("{} cannot be copied to {}: {error}", from.display(), to.display()))
    })?;
    Ok(())
}

fn space(folder: &Path) -> String {
    format!("cannot write to {}: is the disk full?", folder.display())
}

/// Checks that the emulators, which may be the reader's own, can do it.
fn check(stamp: &Stamp, machines: &[Machine]) -> Result<()> {
    for machine in machines {
        match machine {
            Machine::Amd => qemu::check(&qemu::program(stamp.qemu.as_ref()))?,
            Machine::Intel => bochs::check(&bochs::program(stamp.bochs.as_ref()))?,
        }
    }
    Ok(())
}
