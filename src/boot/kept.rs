//! Where `cargo vmexit lab setup` keeps what it has fetched: a Linux kernel from
//! the distribution's package, and a shell for it.
//!
//! ```text
//! ~/.cache/vmexit/          or $VMEXIT_CACHE, or $XDG_CACHE_HOME/vmexit
//!   lab/
//!     vmlinuz               a bzImage
//!     shell.cpio            an initramfs: busybox, and an init that starts its shell
//! ```

use std::path::PathBuf;

/// The kernel, in the folder `lab`.
pub const KERNEL: &str = "vmlinuz";
/// The initramfs, beside it.
pub const SHELL: &str = "shell.cpio";

/// The cache's folder, by the environment; `None` where it names neither a cache
/// nor a home.
#[must_use]
pub fn folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("VMEXIT_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("vmexit")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/vmexit")))
}
