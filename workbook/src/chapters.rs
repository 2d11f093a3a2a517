//! `vmexit list`: the chapters that are there.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::root;

/// Prints a line for each chapter; returns the tool's exit code.
///
/// # Errors
/// When there is no workbook here.
pub fn list() -> Result<u8> {
    let root = root::find()?;
    let summary = fs::read_to_string(root.join("book/src/SUMMARY.md")).unwrap_or_default();
    for folder in folders(&root)? {
        let (number, _) = folder.split_once('-').unwrap_or((&folder, ""));
        println!("ch{number}  {}", title(&folder, &summary));
    }
    Ok(0)
}

/// The chapters' folders, in order: `05-protected-mode`.
fn folders(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join("chapters")).context("cannot list the chapters")? {
        let entry = entry.context("cannot list the chapters")?;
        if entry.path().join("main.rs").is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The chapter's title in the book's summary, a line `- [Title](05-….md)`;
/// without one, its folder's name in words.
fn title(folder: &str, summary: &str) -> String {
    let (number, words) = folder.split_once('-').unwrap_or(("", folder));
    let in_the_book = summary.lines().find_map(|line| {
        let (title, target) = line.split_once('[')?.1.split_once("](")?;
        let file = target.rsplit('/').next()?;
        let same = file.strip_prefix("ch").unwrap_or(file).starts_with(&format!("{number}-"));
        // The book's own numbers are the ones that `list` shows already.
        let words = title.strip_prefix(number).unwrap_or(title).trim_start_matches([' ', '.', ':']);
        (same || target.starts_with(&format!("{folder}/"))).then(|| words.to_owned())
    });
    in_the_book.unwrap_or_else(|| words.replace('-', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_comes_from_the_book_or_else_from_the_folder() {
        let summary = "# Summary\n- [05 Protected mode](05-protected-mode.md)\n";
        assert_eq!(title("05-protected-mode", summary), "Protected mode");
        assert_eq!(title("08-long-mode", summary), "long mode");
    }
}
