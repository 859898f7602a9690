//! A parser of the Prometheus text format 0.0.4 that checks its conventions.

use std::collections::{BTreeMap, BTreeSet};

/// A metric family.
#[derive(Debug, Default)]
pub struct Family {
    pub kind: String,
    pub samples: Vec<Sample>,
}

#[derive(Debug)]
pub struct Sample {
    /// Name with the suffix of a histogram series.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Family {
    /// Names of the labels, without `le`.
    pub fn labels(&self) -> BTreeSet<&str> {
        let labels = self.samples.iter().flat_map(|sample| sample.labels.keys());
        labels.map(String::as_str).filter(|label| *label != "le").collect()
    }
}

/// The families of a page by name.
pub type Page = BTreeMap<String, Family>;

/// Parses a page. Panics if it violates a rule of the format or of naming.
pub fn read(text: &str) -> Page {
    let mut page = Page::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a name and a help");
            assert!(!help.trim().is_empty(), "{line}");
            assert!(page.insert(name.to_owned(), Family::default()).is_none(), "declared twice: {name}");
            current = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert_eq!(name, current, "HELP comes first");
            page.get_mut(name).expect("declared").kind = kind.to_owned();
        } else {
            assert!(!line.starts_with('#') && !line.is_empty(), "{line:?}");
            let sample = sample(line);
            let family = page.get_mut(&current).unwrap_or_else(|| panic!("not declared: {line}"));
            let suffix =
                sample.name.strip_prefix(&current).unwrap_or_else(|| panic!("not of {current}: {line}"));
            let allowed: &[&str] = match family.kind.as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(allowed.contains(&suffix), "{line}");
            family.samples.push(sample);
        }
    }
    for (name, family) in &page {
        check_family(name, family);
    }
    page
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    // refrain has no label with a comma, a quote or a brace.
    let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()).map(|label| {
        let (name, value) = label.split_once('=').unwrap_or_else(|| panic!("no label: {line}"));
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        (name.to_owned(), value.unwrap_or_else(|| panic!("no quotes: {line}")).to_owned())
    });
    let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
    Sample { name: name.to_owned(), labels: labels.collect(), value }
}

/// Checks the rules of <https://prometheus.io/docs/practices/naming/>.
fn check_family(name: &str, family: &Family) {
    let words: Vec<&str> = name.split('_').collect();
    assert!(name.starts_with("refrain_") || name.starts_with("process_"), "{name}");
    assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
    assert!(["counter", "gauge", "histogram"].contains(&family.kind.as_str()), "{name}: {}", family.kind);
    assert_eq!(words.last() == Some(&"total"), family.kind == "counter", "{name}: {}", family.kind);
    for unit in ["ms", "milliseconds", "minutes", "kib", "mb", "percent"] {
        assert!(!words.contains(&unit), "{name} is not in a base unit");
    }
    let mut seen = BTreeSet::new();
    for sample in &family.samples {
        assert!(seen.insert((&sample.name, &sample.labels)), "twice: {sample:?}");
        assert!(sample.value >= 0.0, "{sample:?}");
    }
    if family.kind == "histogram" {
        check_histogram(name, family);
    }
}

/// Checks that buckets are cumulative, and that the last one, `+Inf`, equals the count.
fn check_histogram(name: &str, family: &Family) {
    let counts = family.samples.iter().filter(|sample| sample.name.ends_with("_count"));
    for count in counts {
        let buckets = family.samples.iter().filter(|sample| {
            let mut labels = sample.labels.clone();
            labels.remove("le").is_some() && labels == count.labels
        });
        let buckets: Vec<(&str, f64)> =
            buckets.map(|bucket| (bucket.labels["le"].as_str(), bucket.value)).collect();
        assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name}: {buckets:?}");
        let bound = |bucket: &(&str, f64)| bucket.0.parse::<f64>().expect("a bound");
        assert!(buckets.windows(2).all(|pair| bound(&pair[0]) < bound(&pair[1])), "{name}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&("+Inf", count.value)), "{name}");
    }
}
