//! Rules: which calls get another response than the default, and which response.
//!
//! A rule without a response of its own changes the default response: its headers, its batch items
//! or its delivery.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::calls::RecordedCall;
use super::hold::{Gate, Hold};
use super::matcher::Matcher;
use super::response::{BatchItem, Content, Response, gzip};

/// Conditions on a call and the response to it. Added with
/// [`Simulator::add_rule`](super::Simulator::add_rule).
#[derive(Default)]
pub struct Rule {
    pub(super) matcher: Matcher,
    /// Number of first matches that the rule leaves to the next rules.
    pub(super) skip: u64,
    /// Number of matches after those that the rule applies to. `None` for all.
    pub(super) times: Option<u64>,
    /// Whether the rule responds before the request body is read.
    pub(super) responds_early: bool,
    pub(super) gate: Option<Arc<Gate>>,
    pub(super) delay: Option<Duration>,
    pub(super) reply: Reply,
    headers: Vec<(String, String)>,
    edits: Vec<Edit>,
    pub(super) delivery: Delivery,
    pub(super) gzip: bool,
    pub(super) close_afterwards: bool,
}

/// Response of a rule.
#[derive(Default)]
pub(super) enum Reply {
    /// Response without the rule.
    #[default]
    Default,
    Error {
        status: u16,
        code: String,
    },
    Body {
        status: u16,
        content_type: String,
        body: Bytes,
    },
    Raw {
        bytes: Bytes,
        keep_open: bool,
    },
    Reset,
    Close,
    BlackHole,
    Stream {
        content_type: String,
        pieces: Vec<Bytes>,
        interval: Duration,
        endless: bool,
    },
    Large {
        length: u64,
    },
    GzipBomb {
        length: u64,
    },
    Echo,
    Mirror,
}

/// How a well-formed response is sent.
#[derive(Clone, Copy, Default)]
pub(super) enum Delivery {
    #[default]
    Whole,
    /// Correct `content-length`, but the connection is closed or reset after this many bytes of the
    /// body.
    Cut {
        after: usize,
        reset: bool,
    },
    /// Correct `content-length`, but nothing is sent after this many bytes of the body.
    Stall {
        after: usize,
    },
    WrongLength {
        declared: u64,
    },
    Drip {
        interval: Duration,
    },
    Chunked {
        finished: bool,
    },
}

type ItemsEdit = Box<dyn Fn(Vec<BatchItem>) -> Vec<BatchItem> + Send + Sync>;
type BodyEdit = Box<dyn Fn(Bytes) -> Bytes + Send + Sync>;

/// Change of the default response.
enum Edit {
    Items(ItemsEdit),
    Body(BodyEdit),
}

/// Conditions on the call.
impl Rule {
    /// Creates a rule for every call.
    pub fn any() -> Self {
        Self::default()
    }

    /// Creates a rule for `retrieve` and `retrieve_batch` on `POST /{service}/tasks`.
    pub fn lookups() -> Self {
        let mut rule = Self::default();
        rule.matcher.lookups_only = true;
        rule
    }

    /// Creates a rule for calls on exactly this path, with any query.
    pub fn path(path: &str) -> Self {
        Self::any().on_path(path)
    }

    /// Requires exactly this path, with any query.
    pub fn on_path(mut self, path: &str) -> Self {
        self.matcher.path = Some(path.to_owned());
        self
    }

    /// Requires this method.
    pub fn method(mut self, method: &str) -> Self {
        self.matcher.method = Some(method.to_owned());
        self
    }

    /// Requires this `action` in the body.
    pub fn action(mut self, action: &str) -> Self {
        self.matcher.action = Some(action.to_owned());
        self
    }

    /// Requires this id among the requested ids.
    pub fn containing_id(mut self, id: &str) -> Self {
        self.matcher.id = Some(id.to_owned());
        self
    }

    /// Requires more than this many requested ids.
    pub fn more_ids_than(mut self, count: usize) -> Self {
        self.matcher.more_ids_than = Some(count);
        self
    }

    /// Requires this token.
    pub fn token(mut self, token: &str) -> Self {
        self.matcher.token = Some(token.to_owned());
        self
    }

    /// Requires that the predicate holds. The predicate must not call the simulator.
    pub fn matching(mut self, predicate: impl Fn(&RecordedCall) -> bool + Send + Sync + 'static) -> Self {
        self.matcher.predicate = Some(Box::new(predicate));
        self
    }

    /// Limits the rule to this many matches, counted after those of [`Rule::skip_first`]. Later
    /// ones are left to the next rules.
    pub fn times(mut self, count: u64) -> Self {
        self.times = Some(count);
        self
    }

    /// Leaves this many first matches to the next rules.
    pub fn skip_first(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// Limits the rule to the n-th match, counted from 1.
    pub fn nth(self, n: u64) -> Self {
        self.skip_first(n.saturating_sub(1)).times(1)
    }
}

/// Time of the response.
impl Rule {
    /// Holds the calls back until the handle is released or dropped.
    pub fn hold(mut self) -> (Self, Hold) {
        let (gate, hold) = Gate::new();
        self.gate = Some(gate);
        (self, hold)
    }

    /// Waits before the response.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Responds before the body is read, then reads and discards the body. Only conditions on
    /// method, path and token are possible.
    pub fn before_body(mut self) -> Self {
        self.responds_early = true;
        self
    }
}

/// Response.
impl Rule {
    fn reply(mut self, reply: Reply) -> Self {
        self.reply = reply;
        self
    }

    /// Responds with an error in the documented shape.
    pub fn error(self, status: u16, code: &str) -> Self {
        self.reply(Reply::Error { status, code: code.to_owned() })
    }

    /// Responds with status 200 and this body.
    pub fn body(self, content_type: &str, body: impl Into<Bytes>) -> Self {
        self.respond_with(200, content_type, body)
    }

    /// Responds with this status and body.
    pub fn respond_with(self, status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        self.reply(Reply::Body { status, content_type: content_type.to_owned(), body: body.into() })
    }

    /// Responds with status 200 and an HTML page.
    pub fn html(self) -> Self {
        self.body("text/html; charset=utf-8", "<!doctype html><title>Down</title><p>Back in a moment.</p>\n")
    }

    /// Redirects with status 302 to this URL.
    pub fn redirect(self, location: &str) -> Self {
        self.respond_with(302, "text/plain", "").header("location", location)
    }

    /// Sends exactly these bytes and closes the connection.
    pub fn raw(self, bytes: impl Into<Bytes>) -> Self {
        self.reply(Reply::Raw { bytes: bytes.into(), keep_open: false })
    }

    /// Sends exactly these bytes and keeps the connection open until the client closes it.
    pub fn raw_keep_open(self, bytes: impl Into<Bytes>) -> Self {
        self.reply(Reply::Raw { bytes: bytes.into(), keep_open: true })
    }

    /// Resets the connection (RST) without a response.
    pub fn reset_before_response(self) -> Self {
        self.reply(Reply::Reset)
    }

    /// Closes the connection in order without a response.
    pub fn close_without_response(self) -> Self {
        self.reply(Reply::Close)
    }

    /// Never responds and keeps the connection open.
    pub fn black_hole(self) -> Self {
        self.reply(Reply::BlackHole)
    }

    /// Streams lines of NDJSON, one per interval, the first at once.
    pub fn ndjson(self, lines: impl IntoIterator<Item = impl AsRef<[u8]>>, interval: Duration) -> Self {
        let pieces = lines.into_iter().map(|line| [line.as_ref(), b"\n"].concat().into()).collect();
        self.stream("application/x-ndjson", pieces, interval)
    }

    /// Streams server-sent events, one per interval, the first at once.
    pub fn sse(self, events: impl IntoIterator<Item = impl AsRef<[u8]>>, interval: Duration) -> Self {
        let pieces = events.into_iter().map(|event| [b"data: ", event.as_ref(), b"\n\n"].concat().into());
        self.stream("text/event-stream", pieces.collect(), interval)
    }

    /// Streams these pieces as chunks, one per interval, the first at once. With
    /// [`Rule::unfinished`] the last chunk is missing.
    pub fn stream(self, content_type: &str, pieces: Vec<Bytes>, interval: Duration) -> Self {
        self.reply(Reply::Stream { content_type: content_type.to_owned(), pieces, interval, endless: false })
    }

    /// Repeats the pieces of a stream for ever.
    pub fn endless(mut self) -> Self {
        if let Reply::Stream { endless, .. } = &mut self.reply {
            *endless = true;
        }
        self
    }

    /// Responds with status 200 and a body of this many bytes, which is never in memory as a whole.
    pub fn large(self, length: u64) -> Self {
        self.reply(Reply::Large { length })
    }

    /// Responds with a small gzip body that decompresses to this many zeros.
    pub fn gzip_bomb(self, length: u64) -> Self {
        self.reply(Reply::GzipBomb { length })
    }

    /// Responds with a JSON description of the request: `method`, `target`, `headers`,
    /// `body_length`, `body_sha256`.
    pub fn echo(self) -> Self {
        self.reply(Reply::Echo)
    }

    /// Streams the request's body back while it arrives, with its content type. Only conditions on
    /// method, path and token are possible.
    pub fn mirror(mut self) -> Self {
        self.responds_early = true;
        self.reply(Reply::Mirror)
    }
}

/// Changes of a well-formed response, the default one included.
impl Rule {
    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a `retry-after` with any value.
    pub fn retry_after(self, value: &str) -> Self {
        self.header("retry-after", value)
    }

    /// Changes the items of a default batch response.
    pub fn items(mut self, edit: impl Fn(Vec<BatchItem>) -> Vec<BatchItem> + Send + Sync + 'static) -> Self {
        self.edits.push(Edit::Items(Box::new(edit)));
        self
    }

    /// Leaves these ids out of batch responses. `retrieve` still returns them.
    pub fn omit_ids<I: Into<String>>(self, ids: impl IntoIterator<Item = I>) -> Self {
        let ids: Vec<String> = ids.into_iter().map(Into::into).collect();
        self.items(move |mut items| {
            items.retain(|item| !ids.contains(&item.id));
            items
        })
    }

    /// Adds an item to batch responses.
    pub fn add_item(self, record: impl Into<Bytes>) -> Self {
        let record = record.into();
        self.items(move |mut items| {
            items.push(BatchItem { id: String::new(), record: record.clone() });
            items
        })
    }

    /// Repeats every item of batch responses directly after itself.
    pub fn repeat_items(self) -> Self {
        self.items(|items| items.into_iter().flat_map(|item| [item.clone(), item]).collect())
    }

    /// Reverses the items of batch responses.
    pub fn reverse_items(self) -> Self {
        self.items(|items| items.into_iter().rev().collect())
    }

    /// Changes the whole body of the default response.
    pub fn replace_body(mut self, edit: impl Fn(Bytes) -> Bytes + Send + Sync + 'static) -> Self {
        self.edits.push(Edit::Body(Box::new(edit)));
        self
    }

    /// Compresses the body with gzip, whatever the client accepts.
    pub fn gzip(mut self) -> Self {
        self.gzip = true;
        self
    }

    /// Applies these changes to a response, and returns its body.
    pub(super) fn apply(&self, response: &mut Response) -> Bytes {
        for edit in &self.edits {
            let content = std::mem::replace(&mut response.content, Content::Bytes(Bytes::new()));
            response.content = match (edit, content) {
                (Edit::Items(edit), Content::Items { items, count_key, .. }) => {
                    Content::Items { items: edit(items), count: None, count_key }
                }
                (Edit::Items(_), unchanged) => unchanged,
                (Edit::Body(edit), content) => Content::Bytes(edit(content.into_bytes())),
            };
        }
        let mut body = response.take_body();
        if self.gzip {
            body = gzip(&body);
            response.headers.push(("content-encoding".into(), "gzip".into()));
        }
        response.headers.extend(self.headers.iter().cloned());
        body
    }
}

/// Delivery.
impl Rule {
    fn delivered(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    /// Sends the correct `content-length`, but closes the connection after this many bytes of the
    /// body.
    pub fn cut_after(self, bytes: usize) -> Self {
        self.delivered(Delivery::Cut { after: bytes, reset: false })
    }

    /// Sends the correct `content-length`, but resets the connection after this many bytes of the
    /// body.
    pub fn reset_after(self, bytes: usize) -> Self {
        self.delivered(Delivery::Cut { after: bytes, reset: true })
    }

    /// Sends the correct `content-length`, but nothing after this many bytes of the body.
    pub fn stall_after(self, bytes: usize) -> Self {
        self.delivered(Delivery::Stall { after: bytes })
    }

    /// Sends this `content-length` with any body. If it is too long, the connection is closed
    /// early; if it is too short, more bytes follow.
    pub fn wrong_length(self, declared: u64) -> Self {
        self.delivered(Delivery::WrongLength { declared })
    }

    /// Sends one byte of the body per interval.
    pub fn drip(self, interval: Duration) -> Self {
        self.delivered(Delivery::Drip { interval })
    }

    /// Sends the body in chunks.
    pub fn chunked(self) -> Self {
        self.delivered(Delivery::Chunked { finished: true })
    }

    /// Sends the body in chunks, and closes the connection instead of sending the last chunk.
    pub fn unfinished(self) -> Self {
        self.delivered(Delivery::Chunked { finished: false })
    }

    /// Closes the connection after the response without announcing it, as a server closes an idle
    /// connection.
    pub fn close_afterwards(mut self) -> Self {
        self.close_afterwards = true;
        self
    }
}
