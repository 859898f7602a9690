//! The files in `config`, `.github` and `docker-compose.yml`: they are valid YAML, agree with each other, and name
//! files that exist. Part `container` of `tests/extended` starts them, as far as Docker runs them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use saphyr::{LoadableYamlNode, YamlOwned};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CHART: &str = "config/helm/refrain";

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(ROOT).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML file.
fn documents(path: &str) -> Vec<YamlOwned> {
    YamlOwned::load_from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The only document of a YAML file.
fn document(path: &str) -> YamlOwned {
    let mut documents = documents(path);
    assert_eq!(documents.len(), 1, "{path}");
    documents.remove(0)
}

/// The value at a path of keys, such as `image.tag`.
fn value<'a>(root: &'a YamlOwned, path: &str) -> Option<&'a YamlOwned> {
    path.split('.').try_fold(root, |node, key| node.as_mapping_get(key))
}

fn text<'a>(root: &'a YamlOwned, path: &str) -> &'a str {
    value(root, path).and_then(YamlOwned::as_str).unwrap_or_else(|| panic!("no text at {path}"))
}

/// The files of a folder, as paths from the root of the repository.
fn files(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(Path::new(ROOT).join(folder)).expect("a folder");
    let files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    let names = files.iter().filter(|path| path.is_file()).filter_map(|path| path.file_name()?.to_str());
    names.map(|name| format!("{folder}/{name}")).collect()
}

#[test]
fn every_yaml_file_is_valid() {
    let folders = ["config", CHART, ".github/workflows", ".github/ISSUE_TEMPLATE"];
    let mut checked = 0;
    for path in folders.into_iter().flat_map(files).chain(["docker-compose.yml".to_owned()]) {
        if path.ends_with(".yml") || path.ends_with(".yaml") {
            assert!(!documents(&path).is_empty(), "{path}");
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
}

#[test]
fn files_mounted_by_compose_exist() {
    let compose = document("docker-compose.yml");
    let services = value(&compose, "services").and_then(YamlOwned::as_mapping).expect("services");
    let mut mounted = Vec::new();
    for service in services.values() {
        let volumes = value(service, "volumes").and_then(YamlOwned::as_sequence);
        for volume in volumes.into_iter().flatten().filter_map(YamlOwned::as_str) {
            let Some((source, target)) = volume.strip_prefix("./").and_then(|rest| rest.split_once(':'))
            else {
                continue;
            };
            assert!(Path::new(ROOT).join(source).is_file(), "{volume}");
            mounted.push((source.to_owned(), target.trim_end_matches(":ro").to_owned()));
        }
    }
    assert!(mounted.len() >= 5, "{mounted:?}");

    let target_of = |source: &str| {
        let found = mounted.iter().find(|(mounted, _)| mounted == source);
        Path::new(&found.unwrap_or_else(|| panic!("{source} is not mounted")).1)
    };
    let provider = document("config/grafana-provider.yml");
    let provider =
        value(&provider, "providers").and_then(|list| list.as_sequence_get(0)).expect("a provider");
    let dashboard = target_of("config/grafana-dashboard.json");
    assert_eq!(dashboard.parent(), Some(Path::new(text(provider, "options.path"))));

    let prometheus = document("config/prometheus.yml");
    let rules = value(&prometheus, "rule_files").and_then(|list| list.as_sequence_get(0)).expect("a file");
    let folder = target_of("config/prometheus.yml").parent().expect("a folder");
    assert_eq!(target_of("config/prometheus-alerts.yml"), folder.join(rules.as_str().expect("a name")));

    let source = document("config/grafana-datasource.yml");
    let source =
        value(&source, "datasources").and_then(|list| list.as_sequence_get(0)).expect("a data source");
    assert_eq!(text(source, "url"), "http://prometheus:9090");
    assert!(value(&compose, "services.prometheus").is_some());
}

#[test]
fn variables_of_compose_are_in_the_example() {
    let example = read(".env.example");
    let names_of = |text: &str, start: &str| -> BTreeSet<String> {
        let starts = text.match_indices(start).map(|(at, _)| &text[at + start.len()..]);
        let names = starts.map(|rest| rest.split(|c: char| c != '_' && !c.is_ascii_uppercase()).next());
        names.flatten().filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect()
    };
    let listed: BTreeSet<String> = example
        .lines()
        .filter_map(|line| line.trim_start_matches('#').split_once('='))
        .map(|(name, _)| name.to_owned())
        .collect();
    assert_eq!(names_of(&read("docker-compose.yml"), "${"), listed);
}

/// The actions between `{{` and `}}` of the chart's templates.
fn actions() -> Vec<String> {
    let mut found = Vec::new();
    for path in files(&format!("{CHART}/templates")) {
        let text = read(&path);
        for rest in text.split("{{").skip(1) {
            let (action, _) = rest.split_once("}}").unwrap_or_else(|| panic!("{path}: an action has no end"));
            found.push(action.trim_matches(['-', ' ']).to_owned());
        }
    }
    found
}

/// The paths of the leaves below a value.
fn leaves(node: &YamlOwned, prefix: &str, found: &mut BTreeSet<String>) {
    for (key, child) in node.as_mapping().expect("a mapping") {
        let path = format!("{prefix}{}", key.as_str().expect("a name"));
        match child.as_mapping() {
            Some(mapping) if !mapping.is_empty() && path != "resources" => {
                leaves(child, &format!("{path}."), found);
            }
            _ => {
                found.insert(path);
            }
        }
    }
}

#[test]
fn chart_uses_exactly_the_values_that_it_has() {
    let mut used = BTreeSet::new();
    for action in actions() {
        for (at, _) in action.match_indices(".Values.") {
            let path = action[at + ".Values.".len()..].split([' ', ')', '|']).next().unwrap_or_default();
            used.insert(path.to_owned());
        }
    }
    let mut existing = BTreeSet::new();
    leaves(&document(&format!("{CHART}/values.yaml")), "", &mut existing);
    assert_eq!(used, existing);
}

#[test]
fn blocks_of_the_chart_are_closed() {
    for path in files(&format!("{CHART}/templates")) {
        let count = |words: &[&str]| {
            let text = read(&path);
            let actions = text.split("{{").skip(1).map(|action| action.trim_start_matches(['-', ' ']));
            actions.filter(|action| words.iter().any(|word| action.starts_with(word))).count()
        };
        assert_eq!(count(&["if ", "with ", "range "]), count(&["end "]), "{path}");
    }
}

/// The lines of the block below each `key:` line, without comments and with the indentation of the block removed.
fn blocks(text: &str, key: &str) -> Vec<Vec<String>> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        if line.trim() == format!("{key}:") {
            let own = depth(line);
            let block = lines[at + 1..].iter().take_while(|line| depth(line) > own);
            found.push(block.map(|line| line[own..].to_owned()).collect());
        }
    }
    found
}

#[test]
fn chart_and_manifest_agree() {
    let manifest = read("config/kubernetes.yaml");
    let chart: String = ["deployment", "services", "storage"]
        .map(|name| read(format!("{CHART}/templates/{name}.yaml")).replace("{{ .Release.Name }}", "refrain"))
        .concat();
    for key in [
        "strategy",
        "securityContext",
        "ports",
        "startupProbe",
        "readinessProbe",
        "livenessProbe",
        "volumeMounts",
        "volumes",
    ] {
        let expected = blocks(&manifest, key);
        assert!(!expected.is_empty() && expected.iter().all(|block| !block.is_empty()), "{key}");
        assert_eq!(blocks(&chart, key), expected, "{key}");
    }
    for line in [
        "  replicas: 1",
        "      terminationGracePeriodSeconds: 30",
        "  publishNotReadyAddresses: true",
        "            - {name: REFRAIN_ADMIN__LISTEN, value: \"0.0.0.0:8081\"}",
        "  accessModes: [ReadWriteOnce]",
    ] {
        assert!(manifest.lines().any(|found| found == line), "{line}");
        assert!(chart.lines().any(|found| found == line), "{line}");
    }

    let values = document(&format!("{CHART}/values.yaml"));
    let documents = documents("config/kubernetes.yaml");
    let of_kind =
        |kind: &str| documents.iter().find(|found| text(found, "kind") == kind).expect("a document");
    let pod = value(of_kind("Deployment"), "spec.template.spec.containers")
        .and_then(|list| list.as_sequence_get(0));
    assert_eq!(value(&values, "resources"), pod.and_then(|pod| value(pod, "resources")));
    let storage = text(of_kind("PersistentVolumeClaim"), "spec.resources.requests.storage");
    assert_eq!(text(&values, "storage.size"), storage);
    assert_eq!(value(&values, "admin.service").and_then(YamlOwned::as_bool), Some(false));
}

#[test]
fn versions_are_those_of_the_program() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = document(&format!("{CHART}/Chart.yaml"));
    assert_eq!(text(&chart, "version"), version);
    assert_eq!(text(&chart, "appVersion"), version);
    assert!(read("config/kubernetes.yaml").contains(&format!("image: refrain:{version}\n")));
}

#[test]
fn release_notes_are_the_section_of_the_version() {
    let folder = tempfile::tempdir().unwrap();
    let changelog = folder.path().join("CHANGELOG.md");
    let sections = "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-01-02\n\n### Added\n\n- **One.** More.\n\n\
                    ## [1.2.30] - 2026-01-01\n\n- Two.\n\n[1.2.3]: https://example.org\n";
    fs::write(&changelog, sections).unwrap();
    let notes = |version: &str| {
        let command = Path::new(ROOT).join("scripts/release-notes");
        let done = Command::new(command).arg(version).arg(&changelog).output().expect("bash");
        (done.status.success(), String::from_utf8(done.stdout).unwrap())
    };
    assert_eq!(notes("1.2.3"), (true, "### Added\n\n- **One.** More.\n".to_owned()));
    assert_eq!(notes("1.2.30"), (true, "- Two.\n".to_owned()));
    assert_eq!(notes("Unreleased"), (false, String::new()));
    assert_eq!(notes("9.9.9"), (false, String::new()));
}
