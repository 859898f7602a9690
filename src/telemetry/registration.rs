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

/// Implements [`Registered`] for a type whose clones share their counts.
macro_rules! registered_as_clone {
    ($type:ty) => {
        impl $crate::telemetry::registration::Registered for $type {
            type Metric = Self;

            fn metric(&self) -> Self {
                self.clone()
            }
        }
    };
}

/// Implements [`Registered`] for plain values, as a gauge.
macro_rules! registered_as_gauge {
    ($($type:ty => $gauge:ty, $convert:expr;)+) => {
        $(impl Registered for $type {
            type Metric = ConstGauge<$gauge>;

            fn metric(&self) -> Self::Metric {
                ConstGauge::new($convert(*self))
            }
        })+
    };
}

registered_as_clone!(Counter);

registered_as_gauge! {
    usize => usize, usize::from;
    u64 => u64, u64::from;
    i64 => i64, i64::from;
    bool => u64, u64::from;
    Duration => f64, |value: Duration| value.as_secs_f64();
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

pub(super) use {metrics, registered_as_clone};

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
