//! Registration of metrics in `prometheus-client`'s registry, with doc comments as help texts.

use std::fmt::Debug;
use std::time::Duration;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// A value that can be a field of a struct declared with [`metrics!`].
pub(super) trait Registered {
    /// The metric that stands for the value in the registry.
    type Metric: EncodeMetric + Debug + Send + Sync + 'static;

    /// Returns the metric: a handle to the same counts, or a gauge with the value of this moment.
    fn metric(&self) -> Self::Metric;
}

impl Registered for Counter {
    type Metric = Self;

    fn metric(&self) -> Self {
        self.clone()
    }
}

impl Registered for usize {
    type Metric = ConstGauge<usize>;

    fn metric(&self) -> Self::Metric {
        ConstGauge::new(*self)
    }
}

impl Registered for u64 {
    type Metric = ConstGauge<u64>;

    fn metric(&self) -> Self::Metric {
        ConstGauge::new(*self)
    }
}

impl Registered for i64 {
    type Metric = ConstGauge<i64>;

    fn metric(&self) -> Self::Metric {
        ConstGauge::new(*self)
    }
}

impl Registered for bool {
    type Metric = ConstGauge<u64>;

    fn metric(&self) -> Self::Metric {
        ConstGauge::new(u64::from(*self))
    }
}

impl Registered for Duration {
    type Metric = ConstGauge<f64>;

    fn metric(&self) -> Self::Metric {
        ConstGauge::new(self.as_secs_f64())
    }
}

/// Registers one field. `doc` is its doc comment.
pub(super) fn register(
    registry: &mut Registry,
    name: &str,
    unit: Option<Unit>,
    doc: &str,
    field: &impl Registered,
) {
    // The registry adds a full stop.
    let help = doc.trim().trim_end_matches('.');
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, field.metric()),
        None => registry.register(name, help, field.metric()),
    }
}

/// Declares a struct whose fields are metrics, and its method `register`.
///
/// A field with `#[metric("name")]` or `#[metric("name", Unit)]` is registered under that name, and
/// its doc comment is the help text. The registry adds the suffixes of the unit and of counters.
/// Other fields are left alone.
macro_rules! metrics {
    (
        $(#[$struct_attribute:meta])*
        $struct_visibility:vis struct $struct:ident {
            $(
                $(#[doc = $doc:literal])+
                $(#[metric($name:literal $(, $unit:ident)?)])?
                $visibility:vis $field:ident: $type:ty,
            )+
        }
    ) => {
        $(#[$struct_attribute])*
        $struct_visibility struct $struct {
            $($(#[doc = $doc])+ $visibility $field: $type,)+
        }

        impl $struct {
            /// Registers the fields that are metrics.
            pub(super) fn register(&self, registry: &mut ::prometheus_client::registry::Registry) {
                $(
                    let _help = concat!($($doc),+);
                    $(
                        let unit = [$(::prometheus_client::registry::Unit::$unit)?].into_iter().next();
                        $crate::telemetry::registration::register(registry, $name, unit, _help, &self.$field);
                    )?
                )+
            }
        }
    };
}

pub(super) use metrics;

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;

    metrics! {
        /// A struct to test with.
        struct Example {
            /// Requests that
            /// have ended.
            #[metric("requests")]
            pub requests: Counter,
            /// Longest wait
            #[metric("wait", Seconds)]
            wait: Duration,
            /// Not a metric.
            _name: &'static str,
        }
    }

    #[test]
    fn doc_comments_become_help_texts() {
        let example =
            Example { requests: Counter::default(), wait: Duration::from_millis(1500), _name: "example" };
        let mut registry = Registry::with_prefix("example");
        example.register(&mut registry);
        example.requests.inc();
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        let expected = "# HELP example_requests Requests that have ended.\n# TYPE example_requests counter\n\
                        example_requests_total 1\n\
                        # HELP example_wait_seconds Longest wait.\n# TYPE example_wait_seconds gauge\n\
                        # UNIT example_wait_seconds seconds\nexample_wait_seconds 1.5\n# EOF\n";
        assert_eq!(page, expected);
    }
}
