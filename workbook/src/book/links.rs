//! Checks that every link of the built book leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use html5gum::{Token, Tokenizer};

/// What the check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// HTML files that were read.
    pub pages: usize,
    /// Links within the book.
    pub internal: usize,
    /// Those that lead nowhere, each with its page and what is missing.
    pub broken: Vec<String>,
    /// Links that lead out of the book.
    pub external: BTreeSet<String>,
}

/// A page's links and the ids that links can lead to.
#[derive(Default)]
struct Page {
    links: Vec<String>,
    ids: BTreeSet<String>,
}

/// mdBook's page for a server that finds nothing; its links are relative to the
/// server's root, whatever that is.
const NOT_FOUND_PAGE: &str = "404.html";

/// Reads every page below `folder` and follows its links.
///
/// # Errors
/// When a file cannot be read.
pub fn check(folder: &Path) -> Result<Report> {
    let mut files = BTreeSet::new();
    list(folder, Path::new(""), &mut files).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut pages = BTreeMap::new();
    for file in files.iter().filter(|file| is_page(file)) {
        let html = fs::read(folder.join(file)).with_context(|| format!("cannot read {}", file.display()))?;
        pages.insert(file.clone(), read(&html));
    }
    let mut report = Report { pages: pages.len(), ..Report::default() };
    for (file, page) in &pages {
        for link in &page.links {
            if leads_out(link) {
                report.external.insert(link.clone());
                continue;
            }
            report.internal += 1;
            if let Err(missing) = follow(file, link, &files, &pages) {
                report.broken.push(format!("{}: {link}: {missing}", file.display()));
            }
        }
    }
    Ok(report)
}

fn list(folder: &Path, inside: &Path, files: &mut BTreeSet<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let inside = inside.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &inside, files)?;
        } else {
            files.insert(inside);
        }
    }
    Ok(())
}

fn is_page(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "html") && !file.ends_with(NOT_FOUND_PAGE)
}

/// The links and the ids of one page.
fn read(html: &[u8]) -> Page {
    let mut page = Page::default();
    for Ok(token) in Tokenizer::new(html) {
        let Token::StartTag(tag) = token else { continue };
        for (name, value) in &tag.attributes {
            let value = String::from_utf8_lossy(value).into_owned();
            match name.as_slice() {
                b"href" | b"src" => page.links.push(value),
                b"id" => _ = page.ids.insert(value),
                b"name" if tag.name.as_slice() == b"a" => _ = page.ids.insert(value),
                _ => {}
            }
        }
    }
    page
}

/// Whether a link names a scheme (`https:`, `mailto:`) or another server.
fn leads_out(link: &str) -> bool {
    let scheme = link.split_once(':').map_or("", |(scheme, _)| scheme);
    let is_scheme = !scheme.is_empty() && scheme.chars().all(|letter| letter.is_ascii_alphanumeric());
    is_scheme || link.starts_with("//")
}

/// Follows `link` from the page `from`; says what is missing if it leads nowhere.
fn follow(
    from: &Path,
    link: &str,
    files: &BTreeSet<PathBuf>,
    pages: &BTreeMap<PathBuf, Page>,
) -> Result<(), String> {
    let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let target = if path.is_empty() {
        from.to_path_buf()
    } else {
        resolve(from, &decode(path)).ok_or_else(|| "leads out of the book's folder".to_owned())?
    };
    if !files.contains(&target) {
        return Err(format!("there is no {}", target.display()));
    }
    let fragment = decode(fragment);
    match pages.get(&target) {
        Some(page) if !fragment.is_empty() && !page.ids.contains(&fragment) => {
            Err(format!("{} has no id {fragment}", target.display()))
        }
        _ => Ok(()),
    }
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The file that `path` means on the page `from`; a folder means its index.
fn resolve(from: &Path, path: &str) -> Option<PathBuf> {
    let mut target = from.parent().unwrap_or(Path::new("")).to_path_buf();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => target.push(name),
            Component::CurDir => {}
            Component::ParentDir if target.pop() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    if path.ends_with('/') || target.as_os_str().is_empty() {
        target.push("index.html");
    }
    Some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A book of two pages; `body` is the body of the first.
    fn broken_links(body: &str) -> Vec<String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("inside the folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        };
        write("index.html", &format!("<h1 id=\"top\">Book</h1>{body}"));
        write("deep/page.html", "<h2 id=\"cr0-und-cr4\">CR0</h2><a href=\"../index.html#top\">back</a>");
        check(folder.path()).expect("readable files").broken
    }

    #[test]
    fn links_that_lead_somewhere_are_fine() {
        let body = "<a href='deep/page.html'></a><a href='deep/page.html#cr0-und-cr4'></a><a href='#top'></a>\
                    <a href='#'></a><a href='./?q=1#top'></a><a href='https://example.org/#x'></a>\
                    <a href='mailto:a@example.org'></a>";
        assert_eq!(broken_links(body), Vec::<String>::new());
    }

    #[test]
    fn a_missing_file_and_a_missing_id_are_named_with_their_page() {
        assert_eq!(broken_links("<img src='no.svg'>"), ["index.html: no.svg: there is no no.svg"]);
        assert_eq!(
            broken_links("<a href='deep/page.html#cr3'>x</a>"),
            ["index.html: deep/page.html#cr3: deep/page.html has no id cr3"]
        );
        assert_eq!(
            broken_links("<a href='#nowhere'>x</a>"),
            ["index.html: #nowhere: index.html has no id nowhere"]
        );
    }

    #[test]
    fn a_link_out_of_the_folder_is_broken() {
        assert_eq!(
            broken_links("<a href='../secret.html'>x</a>"),
            ["index.html: ../secret.html: leads out of the book's folder"]
        );
    }

    #[test]
    fn text_that_looks_like_a_link_is_none() {
        assert_eq!(broken_links("<!-- <a href='no'> --><p>&lt;a href='no'&gt;</p>"), Vec::<String>::new());
    }
}
