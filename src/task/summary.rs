//! Summary of a task record for display: title, success, links, progress.
//!
//! No decision depends on a summary. Records of different services differ, so every field may be
//! missing.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::finality;

/// Longest record that is summarized, in bytes.
pub const MAX_SUMMARIZED_BYTES: usize = 64 << 10;

/// Largest number of links in a summary.
const MAX_LINKS: usize = 8;

/// Longest URL of a link, in bytes.
const MAX_URL_BYTES: usize = 2048;

/// Longest title, type, state and error, in characters.
const MAX_TEXT_CHARS: usize = 300;

/// Summary of a task record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskSummary {
    /// `type`, the kind of work: `audios` for example.
    pub kind: Option<String>,
    /// The first title in `response`.
    pub title: Option<String>,
    /// Whether the task succeeded: `response.success`, or else by the status words.
    pub succeeded: Option<bool>,
    /// `response.error`, or its `message`.
    pub error: Option<String>,
    /// `created_at`, in Unix seconds by the upstream's clock.
    pub created_at: Option<f64>,
    /// `finished_at`, in Unix seconds by the upstream's clock.
    pub finished_at: Option<f64>,
    /// Links to the results, in the order of the record.
    pub links: Vec<Link>,
    /// First status word of the record, in `response` or beside it.
    pub state: Option<String>,
    /// The first progress in `response`, from 0 to 1.
    pub progress: Option<f64>,
}

/// Link to a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Kind of the result, by the key of the link.
    pub kind: LinkKind,
    /// `http` or `https` URL without white space or control characters.
    pub url: String,
}

/// Kind of a linked result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Image.
    Image,
    /// Audio.
    Audio,
    /// Video.
    Video,
    /// Any other kind.
    Other,
}

impl LinkKind {
    /// Returns the name used in the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Audio => "audio",
            Self::Video => "video",
            Self::Other => "other",
        }
    }

    fn from_key(key: &str) -> Self {
        let kinds = [
            ("image", Self::Image),
            ("cover", Self::Image),
            ("thumbnail", Self::Image),
            ("audio", Self::Audio),
            ("video", Self::Video),
        ];
        kinds.into_iter().find(|(part, _)| key.contains(part)).map_or(Self::Other, |(_, kind)| kind)
    }
}

impl TaskSummary {
    /// Summarizes a record. Longer records than [`MAX_SUMMARIZED_BYTES`] and values other than a
    /// JSON object have an empty summary. The summary of malformed JSON has the fields before the
    /// error.
    pub fn parse(json: &[u8]) -> Self {
        let mut collector = SummaryCollector::default();
        if json.len() <= MAX_SUMMARIZED_BYTES {
            let mut parser = serde_json::Deserializer::from_slice(json);
            // The fields before an error are still useful. The parser limits the depth.
            let _ = ValueVisitor { collector: &mut collector, place: Place::Task, key: "" }
                .deserialize(&mut parser);
        }
        collector.finish()
    }
}

/// Position of a value in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The record itself.
    Task,
    /// Member of the record.
    RecordMember,
    /// Member of `response`.
    ResponseMember,
    /// Item of the list `response.data`.
    DataItem,
    /// Member of `response.data` or of one of its items.
    DataMember,
    /// Member of `response.error`.
    ErrorMember,
    /// Any other position inside `response`.
    Deeper,
}

/// Fields of a summary while a record is parsed.
#[derive(Default)]
struct SummaryCollector {
    summary: TaskSummary,
    /// `response.title`, used if no item has a title.
    response_title: Option<String>,
    success: Option<bool>,
    status: StatusKinds,
}

/// Kinds of the status words.
#[derive(Default)]
struct StatusKinds {
    has_any: bool,
    has_pending: bool,
    has_failed: bool,
}

impl SummaryCollector {
    fn finish(self) -> TaskSummary {
        let Self { mut summary, response_title, success, status } = self;
        summary.title = summary.title.or(response_title);
        let by_status = (status.has_any && !status.has_pending).then_some(!status.has_failed);
        summary.succeeded = success.or(by_status);
        summary
    }

    fn add_string(&mut self, place: Place, key: &str, text: &str) {
        let summary = &mut self.summary;
        match (place, key) {
            (Place::Task, _) => {}
            (Place::RecordMember, "type") => set_first(&mut summary.kind, text),
            _ if finality::is_status_key(key) => {
                set_first(&mut summary.state, text);
                self.status.has_any = true;
                self.status.has_pending |= !finality::is_terminal(text);
                self.status.has_failed |= finality::is_failure(text);
            }
            (Place::RecordMember, _) => {}
            (Place::DataMember, "title") => set_first(&mut summary.title, text),
            (Place::ResponseMember, "title") => set_first(&mut self.response_title, text),
            (Place::ResponseMember, "error") | (Place::ErrorMember, "message") => {
                set_first(&mut summary.error, text);
            }
            (_, "progress") => self.set_progress(parse_progress(text)),
            _ => self.add_link(key, text),
        }
    }

    fn add_number(&mut self, place: Place, key: &str, number: f64, unit: ProgressUnit) {
        match (place, key) {
            (Place::Task, _) => {}
            (Place::RecordMember, "created_at") => self.summary.created_at = Some(number),
            (Place::RecordMember, "finished_at") => self.summary.finished_at = Some(number),
            (Place::RecordMember, _) => {}
            (_, "progress") => {
                self.set_progress(unit.share(number));
            }
            _ => {}
        }
    }

    fn set_progress(&mut self, share: f64) {
        if (0.0..=1.0).contains(&share) && self.summary.progress.is_none() {
            self.summary.progress = Some(share);
        }
    }

    fn add_link(&mut self, key: &str, url: &str) {
        let links = &mut self.summary.links;
        let key = key.to_ascii_lowercase();
        let is_link = (key == "url" || key.ends_with("_url"))
            && url.len() <= MAX_URL_BYTES
            && ["http://", "https://"].iter().any(|scheme| {
                url.len() > scheme.len()
                    && url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
            })
            && !url.contains(|c: char| c.is_whitespace() || c.is_control());
        if is_link && links.len() < MAX_LINKS && links.iter().all(|link| link.url != url) {
            links.push(Link { kind: LinkKind::from_key(&key), url: url.to_owned() });
        }
    }
}

/// Sets `field` to the first text that is not blank, truncated to [`MAX_TEXT_CHARS`].
fn set_first(field: &mut Option<String>, text: &str) {
    if field.is_none() && !text.trim().is_empty() {
        *field = Some(text.chars().take(MAX_TEXT_CHARS).collect());
    }
}

/// Unit of a number under `progress`.
#[derive(Clone, Copy)]
enum ProgressUnit {
    /// Unit of an integer: `1` is 1 %.
    Percent,
    /// Unit of a decimal number: `0.4` is 40 %, `1.0` is 100 %, `1.5` is 1.5 %.
    ShareOrPercent,
}

impl ProgressUnit {
    /// Returns the number as a share.
    fn share(self, number: f64) -> f64 {
        match self {
            Self::ShareOrPercent if number <= 1.0 => number,
            Self::Percent | Self::ShareOrPercent => number / 100.0,
        }
    }
}

/// Parses a progress: `40%`, `40` and `0.4` are 0.4. Any other text is not a number.
fn parse_progress(text: &str) -> f64 {
    let text = text.trim();
    let (number, unit) = match text.strip_suffix('%') {
        Some(number) => (number.trim(), ProgressUnit::Percent),
        None if text.contains('.') => (text, ProgressUnit::ShareOrPercent),
        None => (text, ProgressUnit::Percent),
    };
    unit.share(number.parse().unwrap_or(f64::NAN))
}

/// Visitor of a JSON value.
struct ValueVisitor<'a> {
    collector: &'a mut SummaryCollector,
    place: Place,
    /// Key of the value, or of the list that contains it.
    key: &'a str,
}

impl<'de> DeserializeSeed<'de> for ValueVisitor<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a task record")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        if self.place == Place::ResponseMember && self.key == "success" {
            self.collector.success = Some(value);
        }
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.collector.add_number(self.place, self.key, value as f64, ProgressUnit::Percent);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.collector.add_number(self.place, self.key, value as f64, ProgressUnit::Percent);
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.collector.add_number(self.place, self.key, value, ProgressUnit::ShareOrPercent);
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.collector.add_string(self.place, self.key, text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { collector, place, key } = self;
        if matches!(place, Place::Task | Place::RecordMember) {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        }
        let child_place = match (place, key) {
            (Place::ResponseMember, "data") => Place::DataItem,
            _ => Place::Deeper,
        };
        while items
            .next_element_seed(ValueVisitor { collector: &mut *collector, place: child_place, key })?
            .is_some()
        {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let Self { collector, place, key } = self;
        let child_place = match (place, key) {
            (Place::Task, _) => Place::RecordMember,
            (Place::RecordMember, "response") => Place::ResponseMember,
            (Place::RecordMember, _) => Place::Task,
            (Place::ResponseMember, "data") => Place::DataMember,
            (Place::DataItem, "data") => Place::DataMember,
            (Place::ResponseMember, "error") => Place::ErrorMember,
            _ => Place::Deeper,
        };
        while let Some(name) = members.next_key::<String>()? {
            // Outside `response`, only a few members are used.
            let is_read = match place {
                Place::Task => {
                    matches!(name.as_str(), "type" | "created_at" | "finished_at" | "response")
                        || finality::is_status_key(&name)
                }
                _ => child_place != Place::Task,
            };
            if is_read {
                members.next_value_seed(ValueVisitor {
                    collector: &mut *collector,
                    place: child_place,
                    key: &name,
                })?;
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn summary_of(response: &str) -> TaskSummary {
        TaskSummary::parse(format!(r#"{{"id":"t","response":{response}}}"#).as_bytes())
    }

    #[test]
    fn documented_record_is_summarized() {
        let summary = TaskSummary::parse(include_bytes!("../../tests/fixtures/retrieve.json"));
        assert_eq!(summary.kind.as_deref(), Some("audios"));
        assert_eq!(summary.title.as_deref(), Some("Woke up with the sun in my eyes"));
        assert_eq!(summary.succeeded, Some(true));
        assert_eq!(summary.error, None);
        assert_eq!((summary.created_at, summary.finished_at), (Some(1767119745.524), Some(1767119785.589)));
        assert_eq!((summary.state.as_deref(), summary.progress), (Some("succeeded"), Some(1.0)));
        let kinds: Vec<&str> = summary.links.iter().map(|link| link.kind.as_str()).collect();
        assert_eq!(kinds, ["image", "audio"], "the request has no links: {summary:?}");
        assert!(summary.links.iter().all(|link| link.url.starts_with("https://storage.googleapis.com/")));
    }

    #[test]
    fn title_is_the_first_that_is_not_blank() {
        for (response, title) in [
            (r#"{"data":[{"title":""},{"title":"b"},{"title":"c"}]}"#, Some("b")),
            (r#"{"title":"outer","data":{"title":"inner"}}"#, Some("inner")),
            (r#"{"title":"outer","data":[]}"#, Some("outer")),
            (r#"{"data":[{"title":7}]}"#, None),
            (r#"{"data":[{"deep":{"title":"no"}}]}"#, None),
            (r#"[{"title":"no"}]"#, None),
            ("null", None),
        ] {
            assert_eq!(summary_of(response).title.as_deref(), title, "{response}");
        }
        let long = summary_of(&format!(r#"{{"title":"{}"}}"#, "ä".repeat(1000))).title.unwrap();
        assert_eq!(long.chars().count(), MAX_TEXT_CHARS);
    }

    #[test]
    fn success_follows_from_the_response() {
        for (response, succeeded) in [
            (r#"{"success":true,"data":[{"state":"failed"}]}"#, Some(true)),
            (r#"{"success":false}"#, Some(false)),
            (r#"{"success":"true"}"#, None),
            (r#"{"data":[{"state":"SUCCEEDED"},{"status":"complete"}]}"#, Some(true)),
            (r#"{"data":[{"state":"succeeded"},{"state":"failed"}]}"#, Some(false)),
            (r#"{"data":[{"state":"failed"},{"state":"running"}]}"#, None),
            (r#"{"status":["cancelled"]}"#, Some(false)),
            (r#"{"data":[]}"#, None),
        ] {
            assert_eq!(summary_of(response).succeeded, succeeded, "{response}");
        }
        let error = |response: &str| summary_of(response).error;
        assert_eq!(error(r#"{"error":{"code":"x","message":"no credit"}}"#).as_deref(), Some("no credit"));
        assert_eq!(error(r#"{"error":"no credit"}"#).as_deref(), Some("no credit"));
        assert_eq!(error(r#"{"error":null,"message":"x"}"#), None);
        let long = error(&format!(r#"{{"error":{{"message":"{}"}}}}"#, "x".repeat(5000))).unwrap();
        assert_eq!(long.len(), MAX_TEXT_CHARS);
    }

    #[test]
    fn links_are_http_urls_of_url_keys() {
        let links = |response: &str| -> Vec<(LinkKind, String)> {
            summary_of(response).links.into_iter().map(|link| (link.kind, link.url)).collect()
        };
        assert_eq!(
            links(
                r#"{"audio_url":"https://a/1","cover_url":"HTTP://a/2","Video_URL":"https://a/3","url":"https://a/4",
                    "file_url":["https://a/5","https://a/1"],"again_url":"https://a/1"}"#
            ),
            [
                (LinkKind::Audio, "https://a/1".to_owned()),
                (LinkKind::Image, "HTTP://a/2".to_owned()),
                (LinkKind::Video, "https://a/3".to_owned()),
                (LinkKind::Other, "https://a/4".to_owned()),
                (LinkKind::Other, "https://a/5".to_owned()),
            ]
        );
        for none in [
            r#"{"audio_url":"javascript:alert(1)"}"#,
            r#"{"audio_url":"https://"}"#,
            r#"{"audio_url":" https://a/1"}"#,
            r#"{"audio_url":"https://a/\u0000"}"#,
            r#"{"audio_url":"//a/1"}"#,
            r#"{"audio_url":7}"#,
            r#"{"lyric":"https://a/1"}"#,
            r#"{"curl":"https://a/1"}"#,
            r#"{"audio_url":"ä"}"#,
        ] {
            assert_eq!(links(none), [], "{none}");
        }
        let many: Vec<String> = (0..20).map(|n| format!(r#"{{"url":"https://a/{n}"}}"#)).collect();
        assert_eq!(links(&format!(r#"{{"data":[{}]}}"#, many.join(","))).len(), MAX_LINKS);
        assert_eq!(links(&format!(r#"{{"url":"https://a/{}"}}"#, "x".repeat(MAX_URL_BYTES))), []);
    }

    #[test]
    fn progress_is_parsed_as_a_share() {
        for (value, share) in [
            (r#""40%""#, Some(0.4)),
            (r#"" 40 % ""#, Some(0.4)),
            (r#""40""#, Some(0.4)),
            (r#""0.4""#, Some(0.4)),
            ("0.4", Some(0.4)),
            ("40", Some(0.4)),
            ("62.5", Some(0.625)),
            ("0", Some(0.0)),
            ("100", Some(1.0)),
            ("1.0", Some(1.0)),
            ("-1", None),
            ("101", None),
            (r#""soon""#, None),
            (r#""NaN""#, None),
            ("null", None),
        ] {
            assert_eq!(
                summary_of(&format!(r#"{{"data":[{{"progress":{value}}}]}}"#)).progress,
                share,
                "{value}"
            );
        }
        let later =
            summary_of(r#"{"state":"","data":[{"state":"processing","progress":"x"},{"progress":7}]}"#);
        assert_eq!((later.state.as_deref(), later.progress), (Some("processing"), Some(0.07)));
    }

    #[test]
    fn status_beside_the_response_is_summarized() {
        for (json, state, succeeded) in [
            (&include_bytes!("../../tests/fixtures/services/maestro/failed.json")[..], "failed", Some(false)),
            (
                include_bytes!("../../tests/fixtures/services/maestro/pending.constructed.json"),
                "producing",
                Some(true),
            ),
            (include_bytes!("../../tests/fixtures/services/happyhorse/pending.json"), "processing", None),
            (br#"{"id":"t","response":{"data":{"task_status":"dead"}}}"#, "dead", Some(false)),
            (br#"{"id":"t","Status":"running","response":{"state":"done"}}"#, "running", None),
        ] {
            let summary = TaskSummary::parse(json);
            let text = String::from_utf8_lossy(json);
            assert_eq!((summary.state.as_deref(), summary.succeeded), (Some(state), succeeded), "{text}");
        }
        let elsewhere = r#"{"request":{"status":"failed"},"status":["failed"],"state":{"state":"failed"}}"#;
        assert_eq!(TaskSummary::parse(elsewhere.as_bytes()), TaskSummary::default());
    }

    #[test]
    fn malformed_records_have_the_fields_before_the_error() {
        let deep = format!(r#"{{"type":"audios","response":{}1{}}}"#, "[".repeat(500), "]".repeat(500));
        let cut = TaskSummary { kind: Some("audios".to_owned()), ..TaskSummary::default() };
        assert_eq!(TaskSummary::parse(deep.as_bytes()), cut);
        assert_eq!(TaskSummary::parse(br#"{"type":"audios","x":1e999}"#), cut);
        assert_eq!(TaskSummary::parse(br#"{"type":"audios","response":{"#), cut);
        let long = format!(r#"{{"type":"audios","x":"{}"}}"#, "x".repeat(MAX_SUMMARIZED_BYTES));
        for nothing in [&long, "", "null", "[]", "7", r#""type""#, r#"[{"type":"audios"}]"#, "<html>", "{}"] {
            assert_eq!(TaskSummary::parse(nothing.as_bytes()), TaskSummary::default(), "{nothing:.60}");
        }
        let elsewhere = r#"{"type":{"type":"x"},"created_at":"1","finished_at":[1],"data":{"title":"x"}}"#;
        assert_eq!(TaskSummary::parse(elsewhere.as_bytes()), TaskSummary::default());
    }

    proptest! {
        #[test]
        fn parse_never_panics(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            TaskSummary::parse(text.as_bytes());
            TaskSummary::parse(&bytes);
            summary_of(&text);
        }
    }
}
