//! Where the workbook's checkout is.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The workspace's folder: the nearest one at or above the current folder that
/// has chapters, else the checkout that this tool was built from.
///
/// # Errors
/// [`Failure`] when neither is there.
pub fn find() -> Result<PathBuf, Failure> {
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf);
    let current = std::env::current_dir().unwrap_or_default();
    current
        .ancestors()
        .map(Path::to_path_buf)
        .chain(built_from)
        .find(|folder| folder.join("chapters").is_dir() && folder.join("Cargo.toml").is_file())
        .ok_or_else(|| Failure::bad_input("this is not the workbook's folder: go to your clone of it first"))
}
