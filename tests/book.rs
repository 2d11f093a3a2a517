//! Holds the book to its word: every chapter has its page, every page its nine
//! parts, every listing and every output comes from what is compiled and tested,
//! and every link leads somewhere.
//!
//! mdBook is not needed: the pages are read as Markdown.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use vmexit::trace::record::{Record, VERSION};

/// What every chapter's page holds, in this order.
const PARTS: [&str; 9] = [
    "The question",
    "The idea",
    "The hypervisor's side",
    "The guest's side",
    "Run it",
    "What just happened",
    "Break it",
    "Exercises",
    "Further reading",
];

/// The lines that insta puts above the text of a snapshot.
const SNAPSHOT_HEADER: usize = 3;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files of a folder that end in `.extension`, by name.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).expect("the folder is part of the repository");
    let paths = entries.map(|entry| entry.expect("a readable entry").path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|this| this == extension)).collect();
    paths.sort();
    paths
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Fails with all complaints at once.
fn expect_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// A page of the book, taken apart.
struct Page {
    /// The file's name without `.md`: a chapter's page is called as its folder.
    name: String,
    folder: PathBuf,
    text: String,
    headings: Vec<(HeadingLevel, String)>,
    blocks: Vec<Block>,
    links: Vec<String>,
}

/// A code block; no language means one that is indented.
struct Block {
    language: Option<String>,
    text: String,
}

impl Page {
    fn new(path: &Path) -> Self {
        let folder = path.parent().expect("a page lies in a folder").to_owned();
        let mut page = Self {
            name: stem(path),
            folder,
            text: read(path),
            headings: Vec::new(),
            blocks: Vec::new(),
            links: Vec::new(),
        };
        let (mut heading, mut block) = (None, None);
        for event in Parser::new_ext(&page.text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Heading { level, .. }) => heading = Some((level, String::new())),
                Event::End(TagEnd::Heading(_)) => page.headings.extend(heading.take()),
                Event::Start(Tag::CodeBlock(kind)) => {
                    let language = match kind {
                        CodeBlockKind::Fenced(language) => Some(language.into_string()),
                        CodeBlockKind::Indented => None,
                    };
                    block = Some(Block { language, text: String::new() });
                }
                Event::End(TagEnd::CodeBlock) => page.blocks.extend(block.take()),
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(dest_url.into_string());
                }
                Event::Html(html) | Event::InlineHtml(html) => page.links.extend(references(&html)),
                Event::Text(text) | Event::Code(text) => {
                    if let Some((_, heading)) = &mut heading {
                        heading.push_str(&text);
                    }
                    if let Some(block) = &mut block {
                        block.text.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        page
    }

    fn is_chapter(&self) -> bool {
        self.name.starts_with(|first: char| first.is_ascii_digit())
    }

    fn includes(&self) -> Vec<Include> {
        let pieces = self.text.split("{{#include ").skip(1);
        pieces.map(|piece| Include::new(piece.split("}}").next().unwrap_or(piece))).collect()
    }

    /// The anchors that mdBook gives the headings: a repeated one gets a number.
    fn anchors(&self) -> BTreeSet<String> {
        let mut anchors = BTreeSet::new();
        for (_, heading) in &self.headings {
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            let id: String = kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect();
            let numbered = (1..).map(|number| format!("{id}-{number}"));
            let free = std::iter::once(id.clone()).chain(numbered).find(|id| !anchors.contains(id));
            anchors.extend(free);
        }
        anchors
    }
}

/// The `href`s in a piece of HTML.
fn references(html: &str) -> Vec<String> {
    let pieces = html.split("href=\"").skip(1);
    pieces.filter_map(|piece| piece.split_once('"')).map(|(link, _)| link.to_owned()).collect()
}

/// `{{#include FILE:SELECTION}}`
struct Include {
    file: String,
    /// Lines (`4:`, `:9`, `4:9`, `4`), an anchor's name, or nothing for the whole file.
    selection: String,
}

impl Include {
    fn new(inside: &str) -> Self {
        let (file, selection) = inside.trim().split_once(':').unwrap_or((inside.trim(), ""));
        Self { file: file.to_owned(), selection: selection.to_owned() }
    }

    fn is_snapshot(&self) -> bool {
        self.file.ends_with(".snap")
    }

    fn is_by_line(&self) -> bool {
        !self.selection.is_empty() && self.selection.chars().all(|c| c.is_ascii_digit() || c == ':')
    }

    /// What is wrong with it, if anything.
    fn complaint(&self, folder: &Path) -> Option<String> {
        let Ok(text) = fs::read_to_string(folder.join(&self.file)) else {
            return Some(format!("there is no file {}", self.file));
        };
        if self.is_snapshot() && self.selection != format!("{}:", SNAPSHOT_HEADER + 1) {
            let wanted = SNAPSHOT_HEADER + 1;
            return Some(format!("{} is not included from line {wanted} to its end", self.file));
        }
        if self.is_by_line() {
            let last = self.selection.split(':').filter_map(|line| line.parse::<usize>().ok()).max();
            let missing = last.is_some_and(|last| last == 0 || last > text.lines().count());
            return missing.then(|| format!("{} has no line {}", self.file, self.selection));
        }
        for mark in ["ANCHOR", "ANCHOR_END"] {
            let mark = format!("{mark}: {}", self.selection);
            if !self.selection.is_empty() && !text.lines().any(|line| line.ends_with(&mark)) {
                return Some(format!("{} has no line with {mark}", self.file));
            }
        }
        None
    }
}

fn pages() -> Vec<Page> {
    let paths = files("book/src", "md").into_iter().filter(|path| stem(path) != "SUMMARY");
    paths.map(|path| Page::new(&path)).collect()
}

fn snapshots() -> Vec<PathBuf> {
    files("tests/snapshots", "snap")
}

#[test]
fn every_chapter_has_a_page_and_every_page_a_chapter() {
    let entries = fs::read_dir(root().join("chapters")).expect("the folder is part of the repository");
    let folders = entries.map(|entry| entry.expect("a readable entry").path());
    let folders = folders.filter(|path| path.join("main.rs").is_file());
    let chapters: BTreeSet<String> = folders.map(|path| stem(&path)).collect();
    let pages: BTreeSet<String> =
        pages().into_iter().filter(Page::is_chapter).map(|page| page.name).collect();
    let mut complaints = Vec::new();
    complaints.extend(chapters.difference(&pages).map(|name| format!("chapters/{name} has no page")));
    complaints.extend(pages.difference(&chapters).map(|name| format!("{name}.md has no chapter")));
    expect_none(&complaints);
}

#[test]
fn every_page_is_in_the_summary_once() {
    let summary = Page::new(&root().join("book/src/SUMMARY.md"));
    let times =
        |page: &Page| summary.links.iter().filter(|link| **link == format!("{}.md", page.name)).count();
    let pages = pages();
    let wrong = pages.iter().filter(|page| times(page) != 1);
    expect_none(
        &wrong
            .map(|page| format!("SUMMARY.md has {}.md {} times", page.name, times(page)))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn a_chapters_page_has_the_nine_parts_in_their_order() {
    let mut complaints = Vec::new();
    for page in pages().into_iter().filter(Page::is_chapter) {
        let parts = page.headings.iter().filter(|(level, _)| *level == HeadingLevel::H2);
        let parts: Vec<&str> = parts.map(|(_, text)| text.as_str()).collect();
        if parts != PARTS {
            complaints.push(format!("{}.md has the parts {parts:?}", page.name));
        }
    }
    expect_none(&complaints);
}

/// Exceptions are shell commands, and tables of bits as text.
#[test]
fn every_code_block_is_an_include() {
    let printed: String = snapshots().iter().map(|path| read(path)).collect();
    let printed: BTreeSet<String> = printed.lines().map(words).collect();
    let mut complaints = Vec::new();
    for page in pages() {
        for block in &page.blocks {
            let text = block.text.trim();
            let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            let good = match block.language.as_deref() {
                _ if is_only_an_include(text) => true,
                Some("sh" | "console") => lines.all(|line| !printed.contains(&words(line))),
                Some("text") => lines.all(|line| line.starts_with(|c: char| c == '|' || c.is_ascii_digit())),
                _ => false,
            };
            if !good {
                let language = block.language.as_deref().unwrap_or("indented");
                complaints.push(format!("{}.md: a block ({language}) is no include:\n{text}", page.name));
            }
        }
    }
    expect_none(&complaints);
}

/// The words of a line, however they are aligned.
fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_only_an_include(text: &str) -> bool {
    text.lines().count() == 1 && text.starts_with("{{#include ") && text.ends_with("}}")
}

#[test]
fn every_include_finds_its_file_its_lines_and_its_anchor() {
    let mut complaints = Vec::new();
    for page in pages() {
        let wrong = page.includes().into_iter().filter_map(|include| include.complaint(&page.folder));
        complaints.extend(wrong.map(|complaint| format!("{}.md: {complaint}", page.name)));
    }
    expect_none(&complaints);
}

#[test]
fn a_snapshots_header_is_three_lines_and_a_runs_command_follows() {
    let mut complaints = Vec::new();
    let hosts = files("tests/hosts", "snap");
    for path in snapshots().iter().chain(&hosts) {
        let text = read(path);
        let lines: Vec<&str> = text.lines().collect();
        let header = lines.first() == Some(&"---")
            && lines.iter().skip(1).position(|line| *line == "---") == Some(SNAPSHOT_HEADER - 2);
        // A recorded host is judged without being run.
        let command = hosts.contains(path)
            || lines.get(SNAPSHOT_HEADER).is_some_and(|line| line.starts_with("$ cargo run"));
        if !header || !command {
            complaints.push(format!("{} does not begin like a snapshot", path.display()));
        }
    }
    expect_none(&complaints);
}

#[test]
fn every_broken_variant_is_named_on_its_chapters_page_with_its_ending() {
    let pages = pages();
    let mut complaints = Vec::new();
    for path in snapshots() {
        let name = stem(&path);
        let Some((chapter, variant)) = name.split_once("--break-") else { continue };
        if variant == "list" {
            continue;
        }
        let number = chapter.trim_start_matches("ch");
        let Some(page) = pages.iter().find(|page| page.name.starts_with(&format!("{number}-"))) else {
            complaints.push(format!("{chapter} has no page that could name {variant}"));
            continue;
        };
        // An ending that differs by vendor (`NAME@intel`) is shown under the variant's own heading.
        let variant = variant.split('@').next().unwrap_or(variant);
        if !page.headings.iter().any(|(_, heading)| heading == variant) {
            complaints.push(format!("{}.md has no heading {variant}", page.name));
        }
        if !page.includes().iter().any(|include| include.file.ends_with(&format!("/{name}.snap"))) {
            complaints.push(format!("{}.md does not show {name}.snap", page.name));
        }
    }
    expect_none(&complaints);
}

#[test]
fn every_link_inside_the_book_leads_somewhere() {
    let pages = pages();
    let mut complaints = Vec::new();
    for page in &pages {
        for link in page.links.iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file.trim_end_matches(".html").trim_end_matches(".md") {
                "" => Some(page),
                name => pages.iter().find(|page| page.name == name),
            };
            let resolves = match target {
                Some(target) => anchor.is_empty() || target.anchors().contains(anchor),
                None => anchor.is_empty() && page.folder.join(file).is_file(),
            };
            if !resolves {
                complaints.push(format!("{}.md: {link} leads nowhere", page.name));
            }
        }
    }
    expect_none(&complaints);
}

/// A blank line ends an HTML block in Markdown, and a picture without a title is
/// silence to a reader who cannot see it.
#[test]
fn every_picture_is_whole_titled_and_shown() {
    let shown: BTreeSet<String> =
        pages().iter().flat_map(Page::includes).map(|include| include.file).collect();
    let mut complaints = Vec::new();
    for path in files("book/src/img", "svg") {
        let (text, name) = (read(&path), format!("img/{}.svg", stem(&path)));
        if text.lines().any(|line| line.trim().is_empty()) {
            complaints.push(format!("{name} has a blank line"));
        }
        if !text.contains("<title") || !text.contains("</title>") {
            complaints.push(format!("{name} has no title"));
        }
        if !shown.contains(&name) {
            complaints.push(format!("no page shows {name}"));
        }
    }
    expect_none(&complaints);
}

/// A chapter's number stands in bold on the ladder once the chapter is written.
#[test]
fn the_ladder_shows_which_chapters_are_written() {
    let ladder = read(&root().join("book/src/img/ladder.svg"));
    let written: BTreeSet<String> =
        pages().iter().filter(|page| page.is_chapter()).map(|page| page.name[..2].to_owned()).collect();
    let bold = ladder.lines().filter(|line| line.contains("middle small head"));
    let numbers = bold.filter_map(|line| line.strip_suffix("</text>")?.rsplit('>').next());
    let shown: BTreeSet<String> = numbers
        .filter(|text| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit()))
        .map(str::to_owned)
        .collect();
    assert_eq!(shown, written);
}

#[test]
fn every_record_of_the_trace_has_its_section() {
    let schema = read(&root().join("src/trace/record.rs"));
    let page = Page::new(&root().join("book/src/trace.md"));
    let inside = schema.split("pub enum Record {").nth(1).and_then(|rest| rest.split("\n}").next());
    let variants = inside.expect("the schema is this enum").lines().filter_map(|line| line.split_once('('));
    let names: Vec<String> = variants.map(|(name, _)| name.trim().to_lowercase()).collect();
    assert!(names.len() > 5, "{names:?}");
    expect_none(
        &names
            .iter()
            .filter(|name| !page.headings.iter().any(|(_, heading)| heading == *name))
            .map(|name| format!("trace.md has no section {name}"))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn the_traces_example_lines_are_what_the_schema_writes() {
    for path in files("book/src/traces", "jsonl") {
        for line in read(&path).lines() {
            let record: Record = serde_json::from_str(line).expect("a record of this version");
            assert_eq!(serde_json::to_string(&record).expect("plain data"), line);
            if let Record::Run(run) = record {
                assert_eq!(run.version, VERSION);
            }
        }
    }
}

#[test]
fn the_table_of_exit_codes_is_the_one_in_the_code() {
    let code = read(&root().join("src/status.rs"));
    let page = read(&root().join("book/src/exit-codes.md"));
    let rows: Vec<&str> = code.lines().filter_map(|line| line.trim().strip_prefix("/// |")).collect();
    assert!(rows.len() > 2, "src/status.rs has no table");
    expect_none(
        &rows
            .iter()
            .filter(|row| !page.lines().any(|line| line == format!("|{row}")))
            .map(|row| format!("exit-codes.md lacks the row |{row}"))
            .collect::<Vec<_>>(),
    );
}
