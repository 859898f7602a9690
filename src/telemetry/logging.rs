//! The log on stderr: one line for each record, as text for people or as JSON.
//!
//! A record never breaks out of its line. A closed stderr is ignored. Tokens and bodies are never
//! logged.

use std::fmt;
use std::io;

use tracing::field::Field;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{ParseError, filter_fn};
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::{self as log, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogConfig, LogFormat};
use crate::escape::{EscapingWriter, is_unsafe, printable_json};

/// Sends all records to stderr. `with_colour` applies to the format `pretty`.
///
/// # Errors
/// The filter is invalid, or logging was set up before.
pub fn init(config: &LogConfig, with_colour: bool) -> anyhow::Result<()> {
    subscriber(config, with_colour, io::stderr)?.try_init()?;
    Ok(())
}

/// Whether a record may be logged, whatever the filter says. HTTP libraries log headers with tokens
/// below `info`; records of refrain itself never contain them.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    target == "refrain" || target.starts_with("refrain::") || *metadata.level() <= Level::INFO
}

/// Logs panics as records. Only the location is logged: the message may contain bytes of a request.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(location, "caught a panic; please report it with this location");
    }));
}

fn subscriber<W>(
    config: &LogConfig,
    with_colour: bool,
    target: W,
) -> Result<impl Subscriber + Send + Sync + 'static, ParseError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder().parse(&config.filter)?;
    // Otherwise a failed write is reported with `eprintln!`, which panics if stderr is closed.
    let layer = log::layer().log_internal_errors(false);
    let layer = match config.format {
        LogFormat::Pretty => layer
            .compact()
            .with_ansi(with_colour)
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .with_writer(RecordWriter { target, format: LogFormat::Pretty })
            .boxed(),
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_writer(RecordWriter { target, format: LogFormat::Json })
            .boxed(),
    };
    Ok(tracing_subscriber::registry().with(filter).with(layer.with_filter(filter_fn(may_be_logged))))
}

/// Writes `name=value`, or the value alone for the message.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    use fmt::Write;
    match field.name() {
        "message" => write!(EscapingWriter(writer), "{value:?}"),
        // Origin of a record of the `log` crate, which its target also names.
        name if name.starts_with("log.") => Ok(()),
        name => write!(EscapingWriter(writer), "{name}={value:?}"),
    }
}

/// A writer of whole records that ignores failures, since there is no place left to report them.
#[derive(Clone)]
struct RecordWriter<W> {
    target: W,
    format: LogFormat,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for RecordWriter<W> {
    type Writer = RecordWriter<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        RecordWriter { target: self.target.make_writer(), format: self.format }
    }
}

impl<W: io::Write> io::Write for RecordWriter<W> {
    /// Called once for each record, with all of it.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        // JSON escapes control characters up to U+001F only.
        let escaped = match self.format {
            LogFormat::Pretty => None,
            LogFormat::Json => escape_json_line(record),
        };
        let _ = self.target.write_all(escaped.as_deref().unwrap_or(record));
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.target.flush();
        Ok(())
    }
}

/// Returns the line with unsafe characters escaped, or `None` if it has none.
fn escape_json_line(record: &[u8]) -> Option<Vec<u8>> {
    let line = std::str::from_utf8(record).ok()?.strip_suffix('\n')?;
    line.contains(is_unsafe).then(|| (printable_json(line) + "\n").into_bytes())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::subscriber::with_default;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: &str, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let config = LogConfig { format, filter: filter.to_owned() };
        let target = lines.clone();
        with_default(subscriber(&config, false, move || target.clone()).unwrap(), log);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const UNSAFE: &str = "a\nb\r\u{1b}[31mred\u{0}\u{7f}\u{9b}2J\u{2028}\u{202e}ä";

    fn log_unsafe_values() {
        let span = tracing::info_span!("request", id = UNSAFE, shown = %UNSAFE);
        let _inside = span.enter();
        let error = io::Error::other(UNSAFE);
        tracing::info!(
            text = UNSAFE,
            shown = %UNSAFE,
            debug = ?UNSAFE,
            error = &error as &dyn std::error::Error,
            "message {UNSAFE}"
        );
    }

    #[test]
    fn record_is_one_line_without_unsafe_characters() {
        for format in [LogFormat::Pretty, LogFormat::Json] {
            let text = logged(format, "info", log_unsafe_values);
            let line = text.strip_suffix('\n').unwrap();
            assert!(!line.contains(is_unsafe), "{line:?}");
            assert!(line.contains("ä"), "plain text stays: {line}");
            assert!(line.contains("request"), "{line}");
        }
    }

    #[test]
    fn pretty_format_shows_message_and_fields() {
        let text = logged(LogFormat::Pretty, "info", || tracing::info!(status = 200, name = "x", "it works"));
        assert!(text.contains(" INFO ") && text.ends_with("it works status=200 name=\"x\"\n"), "{text:?}");
    }

    #[test]
    fn json_format_keeps_the_values() {
        let text = logged(LogFormat::Json, "info", log_unsafe_values);
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(record["text"], UNSAFE);
        assert_eq!(record["level"], "INFO");
        assert_eq!(record["message"], format!("message {UNSAFE}"));
    }

    #[test]
    fn filter_selects_records_by_level() {
        let log = || {
            tracing::info!("quiet");
            tracing::warn!("loud");
        };
        let text = logged(LogFormat::Pretty, "warn", log);
        assert!(text.contains("loud") && !text.contains("quiet"), "{text}");
    }

    #[test]
    fn closed_target_does_not_panic() {
        struct Closed;

        impl io::Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }

        for format in [LogFormat::Pretty, LogFormat::Json] {
            let config = LogConfig { format, filter: "info".to_owned() };
            with_default(subscriber(&config, false, || Closed).unwrap(), || tracing::error!("lost"));
        }
    }
}
