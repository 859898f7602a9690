//! Logging to stderr: one line a record, for people or for machines. A record never breaks out of its line, and a
//! stderr that is closed is nobody's problem.
//!
//! Called once by the command line. What is logged is up to each room; tokens and bodies never are.

use std::fmt::{self, Write as _};
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

/// Sends every record to stderr from now on; `with_colour` is for a terminal and `pretty` alone.
///
/// # Errors
/// The filter is none, or logging was set up before.
pub fn init(config: &LogConfig, with_colour: bool) -> anyhow::Result<()> {
    subscriber(config, with_colour, io::stderr)?.try_init()?;
    Ok(())
}

/// Libraries that carry requests show header fields and more below `info`, tokens among them, whatever the filter asks
/// for; our own records never do.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    target == "refrain" || target.starts_with("refrain::") || *metadata.level() <= Level::INFO
}

/// A panic is one record like any other. Its message may hold anything, a request's bytes too, so only the place is
/// told.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(location, "a panic was caught; please report it with this place");
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
    // Else a failed write is told on stderr, and `eprintln!` panics where stderr is closed.
    let layer = log::layer().log_internal_errors(false);
    let layer = match config.format {
        LogFormat::Pretty => layer
            .compact()
            .with_ansi(with_colour)
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .with_writer(Quiet { target, is_json: false })
            .boxed(),
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_writer(Quiet { target, is_json: true })
            .boxed(),
    };
    Ok(tracing_subscriber::registry().with(filter).with(layer.with_filter(filter_fn(may_be_logged))))
}

/// `name=value`, the message alone without its name.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    match field.name() {
        "message" => write!(Escaped(writer), "{value:?}"),
        // Where a record of the `log` crate came from: its target says it already.
        name if name.starts_with("log.") => Ok(()),
        name => write!(Escaped(writer), "{name}={value:?}"),
    }
}

/// Escapes what would end the line, steer a terminal or turn the direction of the text.
struct Escaped<'a, 'w>(&'a mut Writer<'w>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut plain_from = 0;
        for (at, character) in text.char_indices().filter(|(_, character)| is_unsafe(*character)) {
            self.0.write_str(&text[plain_from..at])?;
            write!(self.0, "{}", character.escape_default())?;
            plain_from = at + character.len_utf8();
        }
        self.0.write_str(&text[plain_from..])
    }
}

fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// A writer of whole records that takes every failure as done: there is nobody left to tell.
struct Quiet<W> {
    target: W,
    is_json: bool,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Quiet<W> {
    type Writer = QuietWriter<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        QuietWriter { target: self.target.make_writer(), is_json: self.is_json }
    }
}

struct QuietWriter<W> {
    target: W,
    is_json: bool,
}

impl<W: io::Write> io::Write for QuietWriter<W> {
    /// Called once a record, with the whole of it.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        // JSON escapes up to U+001F; the others stand inside its strings alone, so they can be escaped here.
        let escaped = self.is_json.then(|| escape_json(record)).flatten();
        let _ = self.target.write_all(escaped.as_deref().unwrap_or(record));
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.target.flush();
        Ok(())
    }
}

/// The record with what JSON leaves unescaped; `None` where there is nothing to do.
fn escape_json(record: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(record).ok()?;
    let is_left = |character: char| character != '\n' && is_unsafe(character);
    text.contains(is_left).then(|| {
        let mut escaped = String::with_capacity(text.len() + 16);
        for character in text.chars() {
            if is_left(character) {
                write!(escaped, "\\u{:04x}", u32::from(character)).expect("a String takes all");
            } else {
                escaped.push(character);
            }
        }
        escaped.into_bytes()
    })
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

    const NAUGHTY: &str = "a\nb\r\u{1b}[31mred\u{0}\u{7f}\u{9b}2J\u{2028}\u{202e}ä";

    fn log_naughty_values() {
        let span = tracing::info_span!("request", id = NAUGHTY, shown = %NAUGHTY);
        let _inside = span.enter();
        let error = io::Error::other(NAUGHTY);
        tracing::info!(
            text = NAUGHTY,
            shown = %NAUGHTY,
            debug = ?NAUGHTY,
            error = &error as &dyn std::error::Error,
            "message {NAUGHTY}"
        );
    }

    #[test]
    fn a_record_is_one_harmless_line() {
        for format in [LogFormat::Pretty, LogFormat::Json] {
            let text = logged(format, "info", log_naughty_values);
            let line = text.strip_suffix('\n').unwrap();
            assert!(!line.contains(is_unsafe), "{line:?}");
            assert!(line.contains("ä"), "plain text stays: {line}");
            assert!(line.contains("request"), "{line}");
        }
    }

    #[test]
    fn pretty_reads_like_a_sentence() {
        let text = logged(LogFormat::Pretty, "info", || tracing::info!(answer = 42, name = "x", "it works"));
        assert!(text.contains(" INFO ") && text.ends_with("it works answer=42 name=\"x\"\n"), "{text:?}");
    }

    #[test]
    fn json_holds_the_values_as_they_were() {
        let text = logged(LogFormat::Json, "info", log_naughty_values);
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(record["text"], NAUGHTY);
        assert_eq!(record["level"], "INFO");
        assert_eq!(record["message"], format!("message {NAUGHTY}"));
    }

    #[test]
    fn the_filter_is_heeded() {
        let log = || {
            tracing::info!("quiet");
            tracing::warn!("loud");
        };
        let text = logged(LogFormat::Pretty, "warn", log);
        assert!(text.contains("loud") && !text.contains("quiet"), "{text}");
    }

    #[test]
    fn a_closed_target_harms_nobody() {
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
            with_default(subscriber(&config, false, || Closed).unwrap(), || tracing::error!("nobody hears"));
        }
    }
}
