//! The documentation: its links have targets, the tests and variables that it names exist.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use refrain::config::Config;
use refrain::task::{CATALOGUE, CatalogueEntry, ServiceClass};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The files below a folder of the repository, as paths from its root.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(ROOT).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if extension.is_empty() || path.extension().is_some_and(|found| found == extension) {
                found.push(path.strip_prefix(ROOT).expect("below the root").to_owned());
            }
        }
    }
    assert!(!found.is_empty(), "{folder}");
    found.sort();
    found
}

/// The Markdown files at the top and everything in `docs`.
fn pages() -> Vec<PathBuf> {
    let mut pages = files("docs", "md");
    let top = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(PathBuf::from);
    pages.extend(top.into_iter().filter(|page| Path::new(ROOT).join(page).exists()));
    pages
}

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(ROOT).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The parts of a Markdown page that these tests check.
#[derive(Default)]
struct Page {
    /// Targets of the links.
    links: Vec<String>,
    /// Anchors of the headings, as GitHub forms them.
    anchors: Vec<String>,
    /// Code spans, and lines of code blocks.
    code: Vec<String>,
    tables: Vec<Table>,
}

#[derive(Default)]
struct Table {
    /// Text of the header cells, in lower case.
    header: Vec<String>,
    /// Code spans of each row.
    rows: Vec<Vec<String>>,
}

impl Page {
    fn read(path: impl AsRef<Path>) -> Self {
        let text = read(path);
        let mut page = Self::default();
        let mut place = Place::Other;
        let mut heading = String::new();
        for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(dest_url.into_string());
                }
                Event::Start(Tag::Heading { .. }) => (place, heading) = (Place::Heading, String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    page.add_anchor(&heading);
                    place = Place::Other;
                }
                Event::Start(Tag::CodeBlock(_)) => place = Place::CodeBlock,
                Event::Start(Tag::Table(_)) => page.tables.push(Table::default()),
                Event::Start(Tag::TableHead) => place = Place::TableHead,
                Event::Start(Tag::TableRow) => page.last_table().rows.push(Vec::new()),
                Event::Start(Tag::TableCell) if place == Place::TableHead => {
                    page.last_table().header.push(String::new());
                }
                Event::End(TagEnd::CodeBlock | TagEnd::TableHead) => place = Place::Other,
                Event::Text(text) => match place {
                    Place::CodeBlock => page.code.extend(text.lines().map(|line| line.trim().to_owned())),
                    Place::Heading => heading.push_str(&text),
                    Place::TableHead => {
                        let cell = page.last_table().header.last_mut();
                        cell.expect("text is in a cell").push_str(&text.to_lowercase());
                    }
                    Place::Other => {}
                },
                Event::Code(code) => {
                    if place == Place::Heading {
                        heading.push_str(&code);
                    }
                    if let Some(row) = page.tables.last_mut().and_then(|table| table.rows.last_mut()) {
                        row.push(code.to_string());
                    }
                    page.code.push(code.into_string());
                }
                _ => {}
            }
        }
        page
    }

    fn last_table(&mut self) -> &mut Table {
        self.tables.last_mut().expect("inside a table")
    }

    /// Adds a heading's anchor: lower case, no punctuation, `-` for a space, a number where it
    /// repeats.
    fn add_anchor(&mut self, heading: &str) {
        let letters = heading.to_lowercase();
        let letters = letters.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = letters.map(|c| if c == ' ' { '-' } else { c }).collect();
        let numbered =
            |number: usize| if number == 0 { anchor.clone() } else { format!("{anchor}-{number}") };
        let free = (0..).map(numbered).find(|candidate| !self.anchors.contains(candidate));
        self.anchors.extend(free);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Heading,
    CodeBlock,
    TableHead,
    Other,
}

/// Asserts that a link on this page, or a mention in this file, has a target.
fn assert_resolves(from: &Path, folder: &Path, link: &str) {
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() { from.to_owned() } else { folder.join(path) };
    assert!(Path::new(ROOT).join(&target).exists(), "{}: {link}", from.display());
    assert!(
        anchor.is_empty() || Page::read(&target).anchors.iter().any(|found| found == anchor),
        "{}: {link}",
        from.display()
    );
}

#[test]
fn every_link_of_the_documentation_has_a_target() {
    let mut checked = 0;
    for path in pages() {
        for link in Page::read(&path).links.iter().filter(|link| !link.starts_with("https://")) {
            assert_resolves(&path, path.parent().unwrap(), link);
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked}");
}

#[test]
fn every_page_named_in_a_deployment_file_exists() {
    let mut checked = 0;
    for file in files("config", "") {
        let text = read(&file);
        for (at, _) in text.match_indices(" docs/") {
            let mention = text[at + 1..].split_whitespace().next().unwrap_or_default();
            assert_resolves(&file, Path::new(""), mention.trim_end_matches(['.', ',', ':', ';']));
            checked += 1;
        }
    }
    assert!(checked > 0);
}

#[test]
fn every_page_of_the_documentation_is_linked() {
    let linked = Page::read("README.md").links;
    for path in files("docs", "md") {
        let is_top = path.parent() == Some(Path::new("docs"));
        // Records of decisions are linked from any page.
        let is_linked = |from: &Path| {
            let folder = from.parent().expect("a folder");
            Page::read(from).links.iter().any(|link| {
                let link = folder.join(link.split('#').next().unwrap_or_default());
                normal(&link) == path
            })
        };
        let found = linked.iter().any(|link| Path::new(link) == path)
            || !is_top && pages().iter().filter(|page| **page != path).any(|page| is_linked(page));
        assert!(found, "{}", path.display());
    }
}

/// A relative path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut normal, part| {
        match part {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            part => normal.push(part),
        }
        normal
    })
}

/// The tests of this program, as it lists them.
fn tests_of_it() -> Vec<String> {
    let listed = Command::new(std::env::current_exe().expect("its own path"))
        .args(["--list", "--format=terse"])
        .output();
    let listed = String::from_utf8(listed.expect("the list").stdout).expect("UTF-8");
    listed.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_owned())).collect()
}

/// The tests inside `src`, each by the path of its file and its name.
fn tests_of_the_library() -> Vec<String> {
    let mut found = Vec::new();
    for file in files("src", "rs") {
        let module = file
            .with_extension("")
            .components()
            .skip(1)
            .fold(String::new(), |module, part| module + &part.as_os_str().to_string_lossy() + "::");
        let text = read(&file);
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            let function = line.trim_start_matches("async ").strip_prefix("fn ");
            if let Some((name, _)) = function.filter(|_| is_test).and_then(|rest| rest.split_once('(')) {
                found.push(format!("{module}{name}"));
            }
            is_test = line.starts_with("#[test]")
                || line.starts_with("#[tokio::test")
                || is_test && line.starts_with("#[");
        }
    }
    found
}

/// The parts of `tests/extended`.
fn extended_parts() -> Vec<String> {
    let script = read("tests/extended");
    let (_, rest) = script.split_once("\nparts=(").expect("the parts");
    rest.split_once(')').expect("their end").0.split_whitespace().map(ToOwned::to_owned).collect()
}

/// Returns the filters of a command that match no test, or `None` if the command runs no tests.
fn unmatched(command: &str) -> Option<Vec<String>> {
    let words: Vec<&str> = command.split_whitespace().take_while(|word| *word != "#").collect();
    let (filters, tests, exact) = match words.as_slice() {
        ["cargo", "test", "--test", "it", filters @ ..] => (filters, tests_of_it(), false),
        ["cargo", "test", "--lib", filters @ ..] => (filters, tests_of_the_library(), false),
        ["tests/extended", parts @ ..] => (parts, extended_parts(), true),
        _ => return None,
    };
    let filters = filters.iter().filter(|word| !word.starts_with('-'));
    let matches = |test: &String, filter: &str| if exact { test == filter } else { test.contains(filter) };
    Some(
        filters
            .filter(|filter| !tests.iter().any(|test| matches(test, filter)))
            .map(|&filter| filter.to_owned())
            .collect(),
    )
}

#[test]
fn every_test_named_in_the_documentation_exists() {
    for path in pages() {
        for command in Page::read(&path).code {
            let unmatched = unmatched(&command).unwrap_or_default();
            assert!(unmatched.is_empty(), "{}: {command}: no test matches {unmatched:?}", path.display());
        }
    }
}

#[test]
fn every_documented_guarantee_names_its_tests() {
    let mut checked = 0;
    for path in pages() {
        for table in Page::read(&path).tables {
            if !table.header.iter().any(|cell| cell == "held by" || cell == "tests") {
                continue;
            }
            for row in table.rows {
                assert!(
                    row.iter().any(|command| unmatched(command).is_some()),
                    "{}: {row:?}",
                    path.display()
                );
                checked += 1;
            }
        }
    }
    assert!(checked >= 12, "{checked}");
}

#[test]
fn every_variable_named_in_documentation_is_a_key() {
    // A test in `config` checks that this file has every key.
    let keys: toml::Table = read("config/refrain.toml").parse().unwrap();
    let is_key = |variable: &str| {
        let name = variable.strip_prefix("REFRAIN_")?.to_ascii_lowercase();
        let (section, key) = name.split_once("__")?;
        keys.get(section)?.get(key)
    };
    let mut sources = pages();
    sources.extend(files("config", ""));
    sources.extend(["Dockerfile", "docker-compose.yml", "tests/container.sh"].map(PathBuf::from));
    let mut checked = 0;
    for source in sources {
        let text = read(&source);
        for (at, _) in text.match_indices("REFRAIN_") {
            let end = text[at..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let variable = &text[at..at + end.unwrap_or(text.len() - at)];
            if variable.contains("__") && variable != "REFRAIN_SECTION__KEY" {
                assert!(is_key(variable).is_some(), "{}: {variable}", source.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 10, "{checked}");
}

#[test]
fn table_of_services_is_the_catalogue() {
    let rows: Vec<String> = read("docs/services.md")
        .lines()
        .filter(|line| line.starts_with("| `") && line.matches('|').count() == 5)
        .map(|line| line.splitn(5, '|').take(4).collect::<Vec<_>>().join("|"))
        .collect();
    let expected = CATALOGUE.iter().map(|CatalogueEntry { name, rules }| {
        let max_batch = match (rules.class, rules.max_batch) {
            (ServiceClass::Pass, _) => "–".to_owned(),
            (_, Some(max_batch)) => max_batch.to_string(),
            (_, None) => Config::default().upstream.max_batch.to_string(),
        };
        format!("| `{name}` | `{}` | {max_batch} ", rules.class.as_str())
    });
    assert_eq!(rows, expected.collect::<Vec<_>>());
}
