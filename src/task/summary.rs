//! What people want to know of a task at a glance, read from its text: title, outcome, links, progress.
//!
//! Nothing here decides anything. Tasks of different services look different, so every part may be missing, and what
//! cannot be read is told as not known.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::finality;

/// Longer texts, in bytes, are not read for a summary.
pub const MAX_SUMMARIZED_BYTES: usize = 64 << 10;

/// Most links of one task.
const MAX_LINKS: usize = 8;

/// Longest URL that is taken for a link, in bytes.
const LONGEST_URL: usize = 2048;

/// Longest title, type, state and error, in characters.
const LONGEST_WORDS: usize = 300;

/// What a task's text tells at a glance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskSummary {
    /// `type`: what was made, `audios` for example.
    pub kind: Option<String>,
    /// The first title in `response`.
    pub title: Option<String>,
    /// Whether the work succeeded: `response.success`, else what the status words in `response` say.
    pub succeeded: Option<bool>,
    /// `response.error`, or its `message`.
    pub error: Option<String>,
    /// `created_at`, in Unix seconds by the upstream's clock.
    pub created_at: Option<f64>,
    /// `finished_at`, in Unix seconds by the upstream's clock.
    pub finished_at: Option<f64>,
    /// What was made, in the order of the text.
    pub links: Vec<Link>,
    /// The first word under `state` or `status` in `response`.
    pub state: Option<String>,
    /// The first progress in `response`, from 0 to 1.
    pub progress: Option<f64>,
}

/// Where something that was made can be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What it is, by the name of the member.
    pub kind: LinkKind,
    /// An `http` or `https` URL without blanks or control characters.
    pub url: String,
}

/// What a link leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A picture.
    Image,
    /// Something to listen to.
    Audio,
    /// Something to watch.
    Video,
    /// Anything else.
    Other,
}

impl LinkKind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Audio => "audio",
            Self::Video => "video",
            Self::Other => "other",
        }
    }

    fn of(member: &str) -> Self {
        let words = [
            ("image", Self::Image),
            ("cover", Self::Image),
            ("thumbnail", Self::Image),
            ("audio", Self::Audio),
            ("video", Self::Video),
        ];
        words.into_iter().find(|(word, _)| member.contains(word)).map_or(Self::Other, |(_, kind)| kind)
    }
}

impl TaskSummary {
    /// Reads a task's text. A text that is longer than [`MAX_SUMMARIZED_BYTES`] or no JSON object gives an empty summary;
    /// one that turns out unsound on the way gives what was read until then.
    pub fn parse(text: &[u8]) -> Self {
        let mut found = Found::default();
        if text.len() <= MAX_SUMMARIZED_BYTES {
            let mut parser = serde_json::Deserializer::from_slice(text);
            // What was read before a fault is worth showing. The parser bounds the depth.
            let _ = Walk { found: &mut found, place: Place::Task, member: "" }.deserialize(&mut parser);
        }
        found.summary()
    }
}

/// Where in a task a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It is the task.
    Task,
    /// A member of the task.
    Head,
    /// A member of `response`.
    Response,
    /// An item of the list `response.data`.
    Data,
    /// A member of `response.data` or of one of its items.
    Item,
    /// A member of `response.error`.
    Error,
    /// Deeper inside `response`.
    Inside,
}

#[derive(Default)]
struct Found {
    summary: TaskSummary,
    title_of_response: Option<String>,
    success: Option<bool>,
    words: Words,
}

/// What the status words come to.
#[derive(Default)]
struct Words {
    any: bool,
    any_open: bool,
    any_failed: bool,
}

impl Found {
    fn summary(self) -> TaskSummary {
        let Self { mut summary, title_of_response, success, words } = self;
        summary.title = summary.title.or(title_of_response);
        let said = (words.any && !words.any_open).then_some(!words.any_failed);
        summary.succeeded = success.or(said);
        summary
    }

    fn text(&mut self, place: Place, member: &str, text: &str) {
        let summary = &mut self.summary;
        match (place, member) {
            (Place::Task, _) => {}
            (Place::Head, "type") => first(&mut summary.kind, text),
            (Place::Head, _) => {}
            (Place::Item, "title") => first(&mut summary.title, text),
            (Place::Response, "title") => first(&mut self.title_of_response, text),
            (Place::Response, "error") | (Place::Error, "message") => first(&mut summary.error, text),
            _ if member.eq_ignore_ascii_case("state") || member.eq_ignore_ascii_case("status") => {
                first(&mut summary.state, text);
                self.words.any = true;
                match finality::succeeded(text) {
                    Some(succeeded) => self.words.any_failed |= !succeeded,
                    None => self.words.any_open = true,
                }
            }
            (_, "progress") => self.progress(percentage(text)),
            _ => self.link(member, text),
        }
    }

    fn number(&mut self, place: Place, member: &str, number: f64, is_whole: bool) {
        match (place, member) {
            (Place::Task, _) => {}
            (Place::Head, "created_at") => self.summary.created_at = Some(number),
            (Place::Head, "finished_at") => self.summary.finished_at = Some(number),
            (Place::Head, _) => {}
            (_, "progress") => {
                self.progress(if is_whole || number > 1.0 { number / 100.0 } else { number });
            }
            _ => {}
        }
    }

    fn progress(&mut self, share: f64) {
        if (0.0..=1.0).contains(&share) && self.summary.progress.is_none() {
            self.summary.progress = Some(share);
        }
    }

    fn link(&mut self, member: &str, url: &str) {
        let links = &mut self.summary.links;
        let member = member.to_ascii_lowercase();
        let is_link = (member == "url" || member.ends_with("_url"))
            && url.len() <= LONGEST_URL
            && ["http://", "https://"].iter().any(|scheme| {
                url.len() > scheme.len()
                    && url.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
            })
            && !url.contains(|c: char| c.is_whitespace() || c.is_control());
        if is_link && links.len() < MAX_LINKS && links.iter().all(|link| link.url != url) {
            links.push(Link { kind: LinkKind::of(&member), url: url.to_owned() });
        }
    }
}

/// Takes the first text that says something, cut where it is long.
fn first(place: &mut Option<String>, text: &str) {
    if place.is_none() && !text.trim().is_empty() {
        *place = Some(text.chars().take(LONGEST_WORDS).collect());
    }
}

/// `40%` and `40` are 0.4, `0.4` is too; anything else is no number.
fn percentage(text: &str) -> f64 {
    let text = text.trim();
    let (number, is_percent) = match text.strip_suffix('%') {
        Some(number) => (number.trim(), true),
        None => (text, !text.contains('.')),
    };
    let number: f64 = number.parse().unwrap_or(f64::NAN);
    if is_percent || number > 1.0 { number / 100.0 } else { number }
}

/// One value on the way through the text.
struct Walk<'a> {
    found: &'a mut Found,
    place: Place,
    /// The name of the member that holds the value, or the list it is in.
    member: &'a str,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a task")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        if self.place == Place::Response && self.member == "success" {
            self.found.success = Some(value);
        }
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.found.number(self.place, self.member, value as f64, true);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.found.number(self.place, self.member, value as f64, true);
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.found.number(self.place, self.member, value, false);
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.found.text(self.place, self.member, text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { found, place, member } = self;
        if matches!(place, Place::Task | Place::Head) {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        }
        let inside = match (place, member) {
            (Place::Response, "data") => Place::Data,
            _ => Place::Inside,
        };
        while items.next_element_seed(Walk { found: &mut *found, place: inside, member })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let Self { found, place, member } = self;
        let inside = match (place, member) {
            (Place::Task, _) => Place::Head,
            (Place::Head, "response") => Place::Response,
            (Place::Head, _) => Place::Task,
            (Place::Response, "data") => Place::Item,
            (Place::Data, "data") => Place::Item,
            (Place::Response, "error") => Place::Error,
            _ => Place::Inside,
        };
        while let Some(name) = members.next_key::<String>()? {
            // Backend `response` nothing but a few members of the task is of interest.
            let is_read = match place {
                Place::Task => matches!(name.as_str(), "type" | "created_at" | "finished_at" | "response"),
                _ => inside != Place::Task,
            };
            if is_read {
                members.next_value_seed(Walk { found: &mut *found, place: inside, member: &name })?;
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

    fn of(response: &str) -> TaskSummary {
        TaskSummary::parse(format!(r#"{{"id":"t","response":{response}}}"#).as_bytes())
    }

    #[test]
    fn the_documented_task_is_summed_up() {
        let summary = TaskSummary::parse(include_bytes!("../../tests/fixtures/retrieve.json"));
        assert_eq!(summary.kind.as_deref(), Some("audios"));
        assert_eq!(summary.title.as_deref(), Some("Woke up with the sun in my eyes"));
        assert_eq!(summary.succeeded, Some(true));
        assert_eq!(summary.error, None);
        assert_eq!((summary.created_at, summary.finished_at), (Some(1767119745.524), Some(1767119785.589)));
        assert_eq!((summary.state.as_deref(), summary.progress), (Some("succeeded"), Some(1.0)));
        let kinds: Vec<&str> = summary.links.iter().map(|link| link.kind.as_str()).collect();
        assert_eq!(kinds, ["image", "audio"], "those of the request are no links: {summary:?}");
        assert!(summary.links.iter().all(|link| link.url.starts_with("https://storage.googleapis.com/")));
    }

    #[test]
    fn the_title_is_the_first_that_says_something() {
        for (response, title) in [
            (r#"{"data":[{"title":""},{"title":"b"},{"title":"c"}]}"#, Some("b")),
            (r#"{"title":"outer","data":{"title":"inner"}}"#, Some("inner")),
            (r#"{"title":"outer","data":[]}"#, Some("outer")),
            (r#"{"data":[{"title":7}]}"#, None),
            (r#"{"data":[{"deep":{"title":"no"}}]}"#, None),
            (r#"[{"title":"no"}]"#, None),
            ("null", None),
        ] {
            assert_eq!(of(response).title.as_deref(), title, "{response}");
        }
        let long = of(&format!(r#"{{"title":"{}"}}"#, "ä".repeat(1000))).title.unwrap();
        assert_eq!(long.chars().count(), LONGEST_WORDS);
    }

    #[test]
    fn the_outcome_is_what_the_response_says() {
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
            assert_eq!(of(response).succeeded, succeeded, "{response}");
        }
        let error = |response: &str| of(response).error;
        assert_eq!(error(r#"{"error":{"code":"x","message":"no credit"}}"#).as_deref(), Some("no credit"));
        assert_eq!(error(r#"{"error":"no credit"}"#).as_deref(), Some("no credit"));
        assert_eq!(error(r#"{"error":null,"message":"x"}"#), None);
        let long = error(&format!(r#"{{"error":{{"message":"{}"}}}}"#, "x".repeat(5000))).unwrap();
        assert_eq!(long.len(), LONGEST_WORDS);
    }

    #[test]
    fn links_are_web_addresses_of_members_that_say_so() {
        let links = |response: &str| -> Vec<(LinkKind, String)> {
            of(response).links.into_iter().map(|link| (link.kind, link.url)).collect()
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
        assert_eq!(links(&format!(r#"{{"url":"https://a/{}"}}"#, "x".repeat(LONGEST_URL))), []);
    }

    #[test]
    fn progress_is_a_share() {
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
            assert_eq!(of(&format!(r#"{{"data":[{{"progress":{value}}}]}}"#)).progress, share, "{value}");
        }
        let later = of(r#"{"state":"","data":[{"state":"processing","progress":"x"},{"progress":7}]}"#);
        assert_eq!((later.state.as_deref(), later.progress), (Some("processing"), Some(0.07)));
    }

    #[test]
    fn odd_texts_give_what_can_be_read() {
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
        fn no_text_makes_it_panic(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            TaskSummary::parse(text.as_bytes());
            TaskSummary::parse(&bytes);
            of(&text);
        }
    }
}
