//! Kernel modules: which ones KVM needs, and what the lab's kernel is given.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use elf::ElfBytes;
use elf::endian::LittleEndian;

use crate::failure::Failure;

/// A module that is ready to be loaded.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its name, with underscores: `kvm_amd`.
    pub name: String,
    /// Its uncompressed, unsigned ELF file.
    pub image: Vec<u8>,
}

/// Finds module `wanted` and all that it depends on below `folder`; returns
/// them in loading order, `wanted` last.
///
/// # Errors
/// [`Failure`] when one is not there, or cannot be read as a module.
pub fn with_dependencies(folder: &Path, wanted: &str) -> Result<Vec<Module>> {
    let mut files = Vec::new();
    list(folder, &mut files)
        .map_err(|error| Failure::bad_input(format!("{} cannot be read: {error}", folder.display())))?;
    let mut order = Vec::new();
    add(folder, &files, wanted, &mut order)?;
    Ok(order)
}

fn add(folder: &Path, files: &[PathBuf], name: &str, order: &mut Vec<Module>) -> Result<()> {
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let file = files.iter().find(|file| module_name(file).as_deref() == Some(name)).ok_or_else(|| {
        Failure::bad_input(format!(
            "there is no kernel module {name} below {}: choose the folder /lib/modules/RELEASE of the same kernel",
            folder.display()
        ))
    })?;
    let mut image = uncompressed(file).with_context(|| format!("cannot read {}", file.display()))?;
    let dependencies = dependencies(&image)
        .ok_or_else(|| Failure::bad_input(format!("{} is no kernel module", file.display())))?;
    for dependency in dependencies {
        add(folder, files, &dependency, order)?;
    }
    remove_signature(&mut image);
    order.push(Module { name: name.to_owned(), image });
    Ok(())
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Links are left alone: `build` and `source` lead out of the folder.
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// `kvm_amd` for `kvm-amd.ko`, `kvm-amd.ko.xz` and `kvm-amd.ko.zst`.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let (name, packing) = name.split_once(".ko")?;
    matches!(packing, "" | ".xz" | ".zst").then(|| name.replace('-', "_"))
}

/// The module's ELF file; distributions also store it as `.xz` or `.zst`.
fn uncompressed(file: &Path) -> Result<Vec<u8>> {
    let stored = fs::read(file)?;
    let mut image = Vec::new();
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => lzma_rs::xz_decompress(&mut stored.as_slice(), &mut image)
            .map_err(|error| anyhow::anyhow!("it cannot be unpacked: {error:?}"))?,
        Some("zst") => {
            ruzstd::decoding::StreamingDecoder::new(stored.as_slice())?.read_to_end(&mut image)?;
        }
        _ => image = stored,
    }
    Ok(image)
}

/// What the module says that it needs: the line `depends=` of its `.modinfo`.
fn dependencies(image: &[u8]) -> Option<Vec<String>> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(image).ok()?;
    let header = elf.section_header_by_name(".modinfo").ok()??;
    let (modinfo, _) = elf.section_data(&header).ok()?;
    let lines = modinfo.split(|&byte| byte == 0).map(String::from_utf8_lossy);
    let depends = lines.filter_map(|line| line.strip_prefix("depends=").map(str::to_owned)).next()?;
    Some(depends.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

/// Cuts off the distribution's signature. Checking it takes the interpreter
/// more than a second for each module, and a kernel that does not insist on
/// signatures loads the module without one.
///
/// ```text
/// ELF file | signature | 12 bytes, the last 4 its length, big-endian | MAGIC
/// ```
/// Linux, `include/linux/module_signature.h`.
fn remove_signature(image: &mut Vec<u8>) {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    const DESCRIPTION: usize = 12;
    let Some(before_magic) = image.strip_suffix(MAGIC) else { return };
    let Some((_, description)) = before_magic.split_last_chunk::<DESCRIPTION>() else { return };
    let length = u32::from_be_bytes(description[8..12].try_into().expect("four bytes"));
    if let Some(end) = image.len().checked_sub(MAGIC.len() + DESCRIPTION + length as usize) {
        image.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_known_by_its_name_however_it_is_packed() {
        for file in ["kvm-amd.ko", "kvm-amd.ko.xz", "deep/down/kvm_amd.ko.zst"] {
            assert_eq!(module_name(Path::new(file)).as_deref(), Some("kvm_amd"), "{file}");
        }
        assert_eq!(module_name(Path::new("modules.dep")), None);
        assert_eq!(module_name(Path::new("kvm.ko.orig")), None);
    }

    #[test]
    fn a_signature_is_cut_off_and_nothing_else() {
        let signed =
            [b"ELF".as_slice(), &[7; 5], &[0; 8], &[0, 0, 0, 5], b"~Module signature appended~\n"].concat();
        for (mut image, expected) in [(signed, b"ELF".to_vec()), (b"ELF".to_vec(), b"ELF".to_vec())] {
            remove_signature(&mut image);
            assert_eq!(image, expected);
        }
    }

    #[test]
    fn a_folder_without_the_module_is_named_in_the_error() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let error = with_dependencies(folder.path(), "kvm_amd").expect_err("an empty folder");
        assert!(error.to_string().starts_with("there is no kernel module kvm_amd below "), "{error}");
    }
}
