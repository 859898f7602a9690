//! The response to `GET /metrics`, as OpenMetrics or as Prometheus text.
//!
//! Series with known labels are listed from the start with 0, so that alerts on growth see the
//! first increment. `docs/metrics.md` lists all metrics.

use std::fmt;

use prometheus_client::encoding::text;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::family::FixedFamily;
use super::gauges::Gauges;
use super::metrics::Metrics;
use super::process::Process;

/// Encodes all metrics.
///
/// # Errors
/// None in practice: writing to a string does not fail.
pub fn expose(format: ExpositionFormat, metrics: &Metrics, gauges: &Gauges) -> Result<String, fmt::Error> {
    // A registry for each request takes microseconds, and lets gauges be plain values.
    let mut registry = Registry::with_prefix("refrain");
    metrics.register(&mut registry);
    gauges.register(&mut registry);
    gauges.queues.register(&mut registry);
    gauges.store.register(&mut registry);
    register_families(gauges, &mut registry);
    let mut process = Registry::with_prefix("process");
    Process::read().register(&mut process);

    let mut page = String::with_capacity(32 << 10);
    text::encode_registry(&mut page, &registry)?;
    text::encode_registry(&mut page, &process)?;
    text::encode_eof(&mut page)?;
    Ok(match format {
        ExpositionFormat::OpenMetrics => page,
        ExpositionFormat::Prometheus => as_prometheus_text(&page),
    })
}

/// Registers the gauges that have a label.
fn register_families(gauges: &Gauges, registry: &mut Registry) {
    let ids = [("queued", gauges.queues.queued as u64), ("in_flight", gauges.queues.in_flight as u64)];
    registry.register("queue_ids", "Ids in the queues, by state", family("state", ids));
    let files = [("database", gauges.store.database_bytes), ("wal", gauges.store.wal_bytes)];
    let help = "Size of the store's files";
    registry.register_with_unit("store_file", help, Unit::Bytes, family("file", files));
    let build = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("os", std::env::consts::OS),
        ("arch", std::env::consts::ARCH),
    ];
    registry.register("build", "Version and platform of refrain", Info::new(build));
}

type GaugeFamily = FixedFamily<[(&'static str, &'static str); 1], ConstGauge<u64>>;

fn family<const N: usize>(label: &'static str, values: [(&'static str, u64); N]) -> GaugeFamily {
    values.into_iter().map(|(name, value)| ([(label, name)], ConstGauge::new(value))).collect()
}

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpositionFormat {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus text format 0.0.4.
    Prometheus,
}

impl ExpositionFormat {
    /// Returns the format that an `accept` header requests: OpenMetrics if it has at least the
    /// weight of plain text, otherwise the Prometheus format, which all scrapers understand.
    pub fn of(accept: &str) -> Self {
        let weight = |media_type: &str| {
            let ranges = accept.split(',').filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let matches = parts.next().is_some_and(|found| found.eq_ignore_ascii_case(media_type));
                let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
                matches.then(|| weight.map_or(Some(1.0), |weight| weight.parse::<f32>().ok())).flatten()
            });
            ranges.fold(0.0, f32::max)
        };
        let open_metrics = weight("application/openmetrics-text");
        if open_metrics > 0.0 && open_metrics >= weight("text/plain") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// Returns the value of `content-type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Converts OpenMetrics to the Prometheus format. There, counters and infos are declared under the
/// names of their samples, and there are no units and no end marker
/// (<https://prometheus.io/docs/instrumenting/exposition_formats/>). prometheus-client encodes
/// OpenMetrics only.
fn as_prometheus_text(page: &str) -> String {
    let mut text = String::with_capacity(page.len() + 1024);
    let mut help = None;
    let mut line = |words: &[&str]| {
        text.push_str(&words.join(" "));
        text.push('\n');
    };
    for read in page.lines() {
        if let Some(rest) = read.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = read.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (name, kind) = match kind {
                "counter" => (format!("{name}_total"), kind),
                "info" => (format!("{name}_info"), "gauge"),
                _ => (name.to_owned(), kind),
            };
            if let Some((_, help)) = help.take() {
                line(&["# HELP", &name, help]);
            }
            line(&["# TYPE", &name, kind]);
        } else if !read.starts_with("# ") {
            line(&[read]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::{ClientLabel, RequestAction, RequestOutcome};

    #[test]
    fn accept_header_selects_the_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          application/openmetrics-text;version=0.0.1;q=0.5,\
                          text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, expected) in [
            ("", ExpositionFormat::Prometheus),
            ("*/*", ExpositionFormat::Prometheus),
            ("text/html", ExpositionFormat::Prometheus),
            ("text/plain;version=0.0.4", ExpositionFormat::Prometheus),
            ("application/openmetrics-text", ExpositionFormat::OpenMetrics),
            ("Application/OpenMetrics-Text; version=1.0.0", ExpositionFormat::OpenMetrics),
            ("application/openmetrics-text;q=0", ExpositionFormat::Prometheus),
            ("application/openmetrics-text;q=0.5,text/plain;q=0.9", ExpositionFormat::Prometheus),
            ("application/openmetrics-text;q=nonsense", ExpositionFormat::Prometheus),
            (prometheus, ExpositionFormat::OpenMetrics),
        ] {
            assert_eq!(ExpositionFormat::of(accept), expected, "{accept}");
        }
    }

    #[test]
    fn prometheus_format_declares_counters_and_infos_by_sample_name() {
        let page = "# HELP a_b Of b.\n# TYPE a_b counter\na_b_total{x=\"# HELP\"} 1\n\
                    # HELP c_seconds C.\n# TYPE c_seconds gauge\n# UNIT c_seconds seconds\nc_seconds 2\n\
                    # HELP build What runs\n# TYPE build info\nbuild_info{version=\"1\"} 1\n# EOF\n";
        let expected = "# HELP a_b_total Of b.\n# TYPE a_b_total counter\na_b_total{x=\"# HELP\"} 1\n\
                        # HELP c_seconds C.\n# TYPE c_seconds gauge\nc_seconds 2\n\
                        # HELP build_info What runs\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n";
        assert_eq!(as_prometheus_text(page), expected);
    }

    #[test]
    fn both_formats_have_the_same_samples() {
        let metrics = Metrics::new(["producer"]);
        metrics.panics.inc_by(3);
        let gauges = Gauges { is_ready: true, ..Gauges::default() };
        let samples = |format| {
            let page = expose(format, &metrics, &gauges).unwrap();
            let lines = page.lines().filter(|line| !line.starts_with('#') && !line.starts_with("process_"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let prometheus = samples(ExpositionFormat::Prometheus);
        assert_eq!(prometheus, samples(ExpositionFormat::OpenMetrics));
        assert!(prometheus.contains(&"refrain_panics_total 3".to_owned()));
        assert!(prometheus.contains(&"refrain_ready 1".to_owned()));
    }

    #[test]
    fn series_of_a_service_are_listed_once_it_is_used() {
        let metrics = Metrics::new(["producer"]);
        let page = || expose(ExpositionFormat::Prometheus, &metrics, &Gauges::default()).unwrap();
        let at_start = page();
        assert!(at_start.contains("{service=\"other\",action=\"other\",outcome=\"bypass\"} 0"));
        assert!(!at_start.contains("service=\"producer\""));
        let producer = metrics.service("producer");
        metrics.count_request(
            ClientLabel::OTHER,
            producer,
            RequestAction::Retrieve,
            RequestOutcome::Hit,
            Duration::ZERO,
        );
        let used = page();
        assert!(used.contains("{service=\"producer\",action=\"retrieve\",outcome=\"hit\"} 1"));
        assert!(used.contains("{service=\"producer\",action=\"retrieve\",outcome=\"miss\"} 0"));
        assert!(used.contains("refrain_upstream_calls_total{service=\"producer\",status=\"200\"} 0"));
        assert!(!used.contains("refrain_upstream_calls_total{service=\"other\""));
    }
}
