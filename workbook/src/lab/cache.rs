//! What setup has put aside for the lab, and whether it is whole.
//!
//! ```text
//! ~/.cache/vmexit/          or $VMEXIT_CACHE, or $XDG_CACHE_HOME/vmexit
//!   lab/
//!     stamp.json            written last; names every other file and its size
//!     vmlinuz
//!     shell.cpio            an initramfs for chapter 16
//!     modules/*.ko          uncompressed, unsigned
//!     bochs/*               the ROMs and the CD's boot loader
//!   setup-*/                a setup at work, or one that was cut short
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmexit::boot::kept;

use super::Machine;
use crate::failure::Failure;

/// The layout's version. Raise it when an older cache can no longer be used.
pub const VERSION: u32 = 1;

/// What a setup that is at work calls its folder: this and something random.
pub const UNFINISHED_PREFIX: &str = "setup-";

const STAMP: &str = "stamp.json";

/// What is in the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// [`VERSION`] of the tool that wrote it.
    pub version: u32,
    /// The kernel's release, or the file that it was taken from.
    pub kernel: String,
    /// The modules of each machine, by [`Machine::name`], in loading order.
    pub modules: BTreeMap<String, Vec<String>>,
    /// Where the emulators are when they are not to be looked for in the PATH.
    pub qemu: Option<PathBuf>,
    pub bochs: Option<PathBuf>,
    /// Every file, by its path inside the folder, with its size in bytes.
    pub files: BTreeMap<String, u64>,
}

/// A cache that is whole.
#[derive(Clone, Debug)]
pub struct Lab {
    /// Its folder.
    pub folder: PathBuf,
    /// What is in it.
    pub stamp: Stamp,
}

/// Why there is no lab to use. Setup mends each of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// There was never a setup.
    Missing,
    /// Another version of this tool made it.
    OtherVersion(u32),
    /// Something that the stamp promises is not there.
    Damaged(String),
}

impl Unusable {
    /// What is wrong, as the beginning of a sentence.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::Missing => "the lab is not set up yet".to_owned(),
            Self::OtherVersion(version) => {
                format!(
                    "the lab was set up by another version of this tool (layout {version}, not {VERSION})"
                )
            }
            Self::Damaged(what) => format!("the lab's cache is damaged: {what}"),
        }
    }
}

impl From<Unusable> for Failure {
    fn from(unusable: Unusable) -> Self {
        Self::bad_input(format!("{}; run `cargo vmexit lab setup`", unusable.reason()))
    }
}

/// The cache's folder, by the environment.
///
/// # Errors
/// [`Failure`] when the environment names neither a cache nor a home.
pub fn folder() -> Result<PathBuf, Failure> {
    let folder = kept::folder().ok_or_else(|| {
        Failure::bad_input("there is no HOME to keep the lab in: set VMEXIT_CACHE to a folder of yours")
    })?;
    std::path::absolute(&folder).map_err(|error| {
        Failure::bad_input(format!("{} is no folder for a cache: {error}", folder.display()))
    })
}

impl Lab {
    /// Opens the lab inside the cache's `folder` if it is whole.
    ///
    /// # Errors
    /// [`Unusable`], which says what is wrong with it.
    pub fn open(folder: &Path) -> Result<Self, Unusable> {
        let folder = folder.join("lab");
        if !folder.exists() {
            return Err(Unusable::Missing);
        }
        let text = fs::read_to_string(folder.join(STAMP))
            .map_err(|error| Unusable::Damaged(format!("its {STAMP} cannot be read ({error})")))?;
        // The version is read by itself: the rest may have looked different then.
        let json: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| Unusable::Damaged(format!("its {STAMP} is not JSON ({error})")))?;
        let version = json["version"].as_u64().and_then(|version| u32::try_from(version).ok());
        match version {
            Some(VERSION) => {}
            Some(other) => return Err(Unusable::OtherVersion(other)),
            None => return Err(Unusable::Damaged(format!("its {STAMP} has no version"))),
        }
        let stamp: Stamp = serde_json::from_value(json)
            .map_err(|error| Unusable::Damaged(format!("its {STAMP} says too little ({error})")))?;
        for (file, &size) in &stamp.files {
            match fs::metadata(folder.join(file)) {
                Ok(found) if found.len() == size => {}
                Ok(found) => {
                    let found = found.len();
                    return Err(Unusable::Damaged(format!("{file} has {found} bytes, not {size}")));
                }
                Err(_) => return Err(Unusable::Damaged(format!("{file} is gone"))),
            }
        }
        Ok(Self { folder, stamp })
    }

    /// The modules that make KVM on `machine`, in loading order.
    ///
    /// # Errors
    /// [`Failure`] when the lab was set up for the other machine only.
    pub fn modules(&self, machine: Machine) -> Result<Vec<PathBuf>, Failure> {
        let names = self.stamp.modules.get(machine.name()).ok_or_else(|| {
            Failure::bad_input(format!(
                "the lab was set up without its {machine} machine; run `cargo vmexit lab setup`"
            ))
        })?;
        Ok(names.iter().map(|name| self.folder.join(name)).collect())
    }

    /// The kernel, a bzImage.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.folder.join(kept::KERNEL)
    }

    /// The initramfs that chapter 16 boots with it, if setup could make one.
    #[must_use]
    pub fn shell(&self) -> Option<PathBuf> {
        self.stamp.files.contains_key(kept::SHELL).then(|| self.folder.join(kept::SHELL))
    }
}

/// Makes `prepared`, which holds every file of `stamp` but the stamp, the lab
/// inside the cache's `folder`. A lab that was there before is replaced whole.
///
/// # Errors
/// When the file system refuses.
pub fn install(folder: &Path, prepared: &Path, mut stamp: Stamp) -> std::io::Result<()> {
    stamp.version = VERSION;
    stamp.files = sizes(prepared)?;
    fs::write(prepared.join(STAMP), serde_json::to_vec_pretty(&stamp)?)?;
    let lab = folder.join("lab");
    let retired = prepared.with_extension("old");
    if lab.exists() {
        fs::rename(&lab, &retired)?;
    }
    fs::rename(prepared, &lab)?;
    if retired.exists() {
        fs::remove_dir_all(&retired)?;
    }
    Ok(())
}

/// Removes what setups that were cut short have left in the cache's `folder`;
/// returns how many there were.
///
/// # Errors
/// When the file system refuses.
pub fn remove_unfinished(folder: &Path) -> std::io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED_PREFIX) {
            fs::remove_dir_all(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Every file below `folder`, by its path inside it.
fn sizes(folder: &Path) -> std::io::Result<BTreeMap<String, u64>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let inside =
                    path.strip_prefix(folder).expect("found below it").to_string_lossy().into_owned();
                files.insert(inside, fs::metadata(&path)?.len());
            }
        }
    }
    Ok(files)
}
