//! The two text formats of metrics: which one is asked for, and the older one made from the newer.

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus text format 0.0.4.
    Prometheus,
}

impl Format {
    /// The format that an `accept` header asks for: OpenMetrics where it is named with a weight no smaller than that of
    /// plain text, else the format that everything understands.
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

    /// Its `content-type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// OpenMetrics as the older format: counters and infos are declared under the names of their samples, and there is neither a
/// unit nor an end (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
pub(super) fn as_prometheus_text(page: &str) -> String {
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
    use super::*;

    #[test]
    fn the_format_is_what_accept_asks_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          application/openmetrics-text;version=0.0.1;q=0.5,\
                          text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, expected) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/html", Format::Prometheus),
            ("text/plain;version=0.0.4", Format::Prometheus),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text; version=1.0.0", Format::OpenMetrics),
            ("application/openmetrics-text;q=0", Format::Prometheus),
            ("application/openmetrics-text;q=0.5,text/plain;q=0.9", Format::Prometheus),
            ("application/openmetrics-text;q=nonsense", Format::Prometheus),
            (prometheus, Format::OpenMetrics),
        ] {
            assert_eq!(Format::of(accept), expected, "{accept}");
        }
    }

    #[test]
    fn the_older_format_declares_counters_and_infos_under_their_samples_names() {
        let page = "# HELP a_b Of b.\n# TYPE a_b counter\na_b_total{x=\"# HELP\"} 1\n\
                    # HELP c_seconds C.\n# TYPE c_seconds gauge\n# UNIT c_seconds seconds\nc_seconds 2\n\
                    # HELP build What runs\n# TYPE build info\nbuild_info{version=\"1\"} 1\n# EOF\n";
        let expected = "# HELP a_b_total Of b.\n# TYPE a_b_total counter\na_b_total{x=\"# HELP\"} 1\n\
                        # HELP c_seconds C.\n# TYPE c_seconds gauge\nc_seconds 2\n\
                        # HELP build_info What runs\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n";
        assert_eq!(as_prometheus_text(page), expected);
    }
}
