//! What is booted, and how much memory it gets: what the flags name, or what
//! `cargo vmexit lab setup` has put aside.

use std::path::PathBuf;

use vmexit::boot::kept;
use vmexit::chapter::BadInput;

/// The kernel, and the initramfs if there is one. A kernel that was named gets no
/// initramfs but one that was named.
pub fn files(kernel: Option<&str>, initrd: Option<&str>) -> Result<(PathBuf, Option<PathBuf>), BadInput> {
    let initrd = initrd.map(PathBuf::from);
    if let Some(kernel) = kernel {
        return Ok((kernel.into(), initrd));
    }
    let way_out = "`cargo vmexit lab setup` fetches one, or name yours with --kernel and --initrd";
    let lab = kept::folder().ok_or_else(|| BadInput(format!("there is no kernel: {way_out}")))?.join("lab");
    let (kernel, shell) = (lab.join(kept::KERNEL), lab.join(kept::SHELL));
    if let Some(missing) = [&kernel, &shell].into_iter().find(|file| !file.is_file()) {
        return Err(BadInput(format!("there is no {}: {way_out}", missing.display())));
    }
    Ok((kernel, initrd.or(Some(shell))))
}

/// Where the hole for devices below 4 GiB begins, of which this machine has no
/// memory above: bytes.
const MOST: u64 = 3 << 30;

/// `512M`, `1G`, `262144K`, or a number of bytes.
pub fn memory_size(text: &str) -> Result<usize, BadInput> {
    let (number, unit) = match text.chars().last() {
        Some('K' | 'k') => (&text[..text.len() - 1], 1 << 10),
        Some('M' | 'm') => (&text[..text.len() - 1], 1 << 20),
        Some('G' | 'g') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1u64),
    };
    let size = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    let Some(size) = size else {
        return Err(BadInput(format!("--memory takes a size such as 512M or 1G, and {text:?} is none")));
    };
    if size == 0 || size % 4096 != 0 {
        return Err(BadInput(format!(
            "memory comes in pages of 4096 bytes, and {text} is no whole number of them"
        )));
    }
    if size > MOST {
        return Err(BadInput(format!(
            "{text} is too much: this machine's memory ends at 3G, below the addresses of the interrupt controllers"
        )));
    }
    Ok(size as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_unit_or_is_in_bytes_and_is_whole_pages() {
        assert_eq!(memory_size("512M").ok(), Some(512 << 20));
        assert_eq!(memory_size("3g").ok(), Some(3 << 30));
        assert_eq!(memory_size("8192").ok(), Some(8192));
        for bad in
            ["", "M", "many", "-1M", "0", "1", "4097K1", "1K", "4G", "99999999999G", "512MB", "\u{b5}M"]
        {
            assert!(memory_size(bad).is_err(), "{bad:?}");
        }
    }
}
