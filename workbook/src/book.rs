//! `vmexit book`: builds the book with mdBook, opens it, checks it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use vmexit::status::Status;

use crate::failure::Failure;
use crate::root;

pub mod links;

/// What `vmexit book` was asked for.
#[derive(Debug, Args)]
pub struct BookArguments {
    /// Build it and open nothing
    #[arg(long)]
    no_open: bool,

    /// Also fail on mdBook's warnings and on links that lead nowhere; opens nothing
    #[arg(long)]
    check: bool,
}

/// How mdBook is installed when it is missing.
const INSTALL: [&str; 6] = ["install", "mdbook", "--no-default-features", "--features", "search", "--locked"];

/// Builds the book; returns the tool's exit code, 1 if a check failed.
///
/// # Errors
/// When mdBook is not to be had or does not build the book.
pub fn run(arguments: &BookArguments) -> Result<u8> {
    let source = root::find()?.join("book");
    if !source.join("book.toml").is_file() {
        bail!(Failure::bad_input(format!("there is no book in {}", source.display())));
    }
    if Command::new("mdbook").arg("--version").stdout(Stdio::null()).status().is_err() {
        install()?;
    }
    let (built, warnings) = build(&source)?;
    if arguments.check {
        return check(&built, &warnings);
    }
    let page = built.join("index.html");
    println!("{}", page.display());
    if !arguments.no_open && opener::open(&page).is_err() {
        eprintln!("vmexit: no browser opens from here; the page is the file above");
    }
    Ok(0)
}

fn install() -> Result<()> {
    eprintln!("mdBook is not installed; installing it: cargo {}", INSTALL.join(" "));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).args(INSTALL).status().context("cannot run cargo")?;
    if !status.success() {
        bail!(Failure::bad_input(
            "cargo could not install mdBook: its own words are above; the book's text is in book/src too"
        ));
    }
    Ok(())
}

/// Builds the book; returns the folder with its pages, and mdBook's warnings.
fn build(source: &Path) -> Result<(PathBuf, Vec<String>)> {
    let output = Command::new("mdbook").arg("build").arg(source).output().context("cannot run mdbook")?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!(Failure::bad_input(format!("mdBook cannot build the book:\n{}", words.trim_end())));
    }
    // With a single output format mdBook writes to `book`, with more to `book/html`.
    let folders = [source.join("book/html"), source.join("book")];
    let built = folders.into_iter().find(|folder| folder.join("index.html").is_file());
    Ok((built.context("mdBook built no index.html")?, warnings(&words)))
}

fn warnings(words: &str) -> Vec<String> {
    let is_warning = |line: &&str| ["WARN", "ERROR"].iter().any(|level| line.contains(level));
    words.lines().filter(is_warning).map(str::to_owned).collect()
}

fn check(built: &Path, warnings: &[String]) -> Result<u8> {
    for warning in warnings {
        println!("mdbook: {warning}");
    }
    let report = links::check(built)?;
    for broken in &report.broken {
        println!("{broken}");
    }
    println!(
        "{} pages, {} links within the book, {} broken, {} warnings",
        report.pages,
        report.internal,
        report.broken.len(),
        warnings.len()
    );
    println!("{} links lead out of the book and were not followed:", report.external.len());
    for link in &report.external {
        println!("  {link}");
    }
    let good = report.broken.is_empty() && warnings.is_empty();
    Ok(if good { 0 } else { Status::Bug as u8 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_told_from_information() {
        let words = " INFO Book building has started\n WARN the file x.md is not in the summary\n";
        assert_eq!(warnings(words), [" WARN the file x.md is not in the summary"]);
    }
}
