//! What the documentation claims and a machine can check: links lead somewhere, tests it names exist, variables are
//! keys.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The files below a folder of the repository, by their path in it.
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

/// The README and everything in `docs`.
fn pages() -> Vec<PathBuf> {
    let mut pages = files("docs", "md");
    pages.insert(0, "README.md".into());
    pages
}

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(ROOT).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines outside code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_block = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_block ^= is_fence;
        !in_block && !is_fence
    })
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let mut seen = HashMap::new();
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings
        .map(|heading| {
            let title = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
            let count = seen.entry(anchor.clone()).and_modify(|count| *count += 1).or_insert(0);
            if *count == 0 { anchor } else { format!("{anchor}-{count}") }
        })
        .collect()
}

/// What the links of a page point to.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        for (_, rest) in line.match_indices("](").map(|(at, _)| line.split_at(at + 2)) {
            found.extend(rest.split_once(')').map(|(target, _)| target.to_owned()));
        }
    }
    found
}

/// The code spans and lines of code blocks.
fn code(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            found.push(line.trim().to_owned());
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(ToOwned::to_owned));
        }
    }
    found
}

/// Asserts that a link on this page, or a mention in this file, leads somewhere.
fn assert_leads_somewhere(from: &Path, folder: &Path, link: &str) {
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() { from.to_owned() } else { folder.join(path) };
    assert!(Path::new(ROOT).join(&target).exists(), "{}: {link}", from.display());
    assert!(
        anchor.is_empty() || anchors(&read(&target)).iter().any(|found| found == anchor),
        "{}: {link}",
        from.display()
    );
}

#[test]
fn links_and_anchors_of_the_documentation_lead_somewhere() {
    let mut checked = 0;
    for page in pages() {
        for link in links(&read(&page)).iter().filter(|link| !link.starts_with("https://")) {
            assert_leads_somewhere(&page, page.parent().unwrap(), link);
            checked += 1;
        }
    }
    assert!(checked > 30, "{checked}");
}

#[test]
fn pages_that_deployment_files_point_to_exist() {
    let mut checked = 0;
    for file in files("config", "") {
        let text = read(&file);
        for (at, _) in text.match_indices(" docs/") {
            let mention = text[at + 1..].split_whitespace().next().unwrap_or_default();
            assert_leads_somewhere(&file, Path::new(""), mention.trim_end_matches(['.', ',', ':', ';']));
            checked += 1;
        }
    }
    assert!(checked > 0);
}

#[test]
fn every_page_of_the_documentation_is_linked_from_the_readme() {
    let linked = links(&read("README.md"));
    for page in files("docs", "md") {
        assert!(linked.iter().any(|link| Path::new(link) == page), "{}", page.display());
    }
}

/// The tests of this very program, as it lists them.
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

/// What is wrong with a command that runs tests: the filters that match none. `None` for any other command.
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
fn every_test_that_the_documentation_names_exists() {
    for page in pages() {
        for command in code(&read(&page)) {
            let unmatched = unmatched(&command).unwrap_or_default();
            assert!(unmatched.is_empty(), "{}: {command}: no test matches {unmatched:?}", page.display());
        }
    }
}

#[test]
fn every_promise_of_the_readme_is_held_by_a_test() {
    let readme = read("README.md");
    let (_, table) = readme.split_once("| promise | held by |").expect("the table of promises");
    let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    // As many as were made.
    assert!(rows.len() >= 12, "{rows:?}");
    for row in rows {
        assert!(code(row).iter().any(|command| unmatched(command).is_some()), "{row}");
    }
}

#[test]
fn every_variable_in_documentation_and_deployment_files_is_a_key() {
    // That this file has every key is checked beside the keys themselves.
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
