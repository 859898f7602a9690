//! Rules: which calls are answered otherwise than usual, and how.
//!
//! Built by tests and given to [`super::Simulator::script`]; the first rule that matches a call decides. A rule
//! without a reply of its own leaves the usual answer, changed by what else it says (headers, items, delivery).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::answers::BatchItem;
use super::hold::{Gate, Hold};
use super::record::RecordedCall;
use super::rulebook::Matcher;

/// One rule: what it matches, and what happens then.
#[derive(Default)]
pub struct Rule {
    pub(super) matcher: Matcher,
    /// How many matches fall to the next rules first.
    pub(super) skip: u64,
    /// For how many matches after those it is.
    pub(super) times: Option<u64>,
    pub(super) early: bool,
    pub(super) gate: Option<Arc<Gate>>,
    pub(super) delay: Option<Duration>,
    pub(super) reply: Reply,
    pub(super) headers: Vec<(String, String)>,
    pub(super) edits: Vec<Edit>,
    pub(super) delivery: Delivery,
    pub(super) gzip: bool,
    pub(super) close_afterwards: bool,
}

/// What is answered.
#[derive(Default)]
pub(super) enum Reply {
    /// What would have been answered without the rule.
    #[default]
    Usual,
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

/// How a well-formed answer goes over the wire.
#[derive(Clone, Copy, Default)]
pub(super) enum Delivery {
    #[default]
    Whole,
    /// The right length, then the connection is closed (or reset) after so many bytes of the body.
    Cut {
        after: usize,
        reset: bool,
    },
    /// The right length, then silence after so many bytes of the body.
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

/// A change to the usual answer.
pub(super) enum Edit {
    Items(ItemsEdit),
    Body(BodyEdit),
}

/// Which calls.
impl Rule {
    /// Matches every call.
    pub fn any() -> Self {
        Self::default()
    }

    /// Matches `retrieve` and `retrieve_batch` on `POST /{service}/tasks`.
    pub fn lookups() -> Self {
        let mut rule = Self::default();
        rule.matcher.look_ups = true;
        rule
    }

    /// Matches calls on exactly this path, whatever the query.
    pub fn path(path: &str) -> Self {
        Self::any().on_path(path)
    }

    /// Only on exactly this path, whatever the query.
    pub fn on_path(mut self, path: &str) -> Self {
        self.matcher.path = Some(path.to_owned());
        self
    }

    /// Only with this method.
    pub fn method(mut self, method: &str) -> Self {
        self.matcher.method = Some(method.to_owned());
        self
    }

    /// Only if the body's `action` is this.
    pub fn action(mut self, action: &str) -> Self {
        self.matcher.action = Some(action.to_owned());
        self
    }

    /// Only if this id is among those asked for.
    pub fn containing_id(mut self, id: &str) -> Self {
        self.matcher.id = Some(id.to_owned());
        self
    }

    /// Only if more than so many ids are asked for.
    pub fn more_ids_than(mut self, count: usize) -> Self {
        self.matcher.more_ids_than = Some(count);
        self
    }

    /// Only with this token.
    pub fn token(mut self, token: &str) -> Self {
        self.matcher.token = Some(token.to_owned());
        self
    }

    /// Only if the predicate says so; it must not call the simulator.
    pub fn matching(mut self, predicate: impl Fn(&RecordedCall) -> bool + Send + Sync + 'static) -> Self {
        self.matcher.predicate = Some(Box::new(predicate));
        self
    }

    /// Only for so many matching calls (those after [`Rule::after`]'s); later ones fall to the next rules.
    pub fn times(mut self, count: u64) -> Self {
        self.times = Some(count);
        self
    }

    /// Lets the first so many matching calls fall to the next rules.
    pub fn after(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// Only the n-th matching call, counted from 1.
    pub fn nth(self, n: u64) -> Self {
        self.after(n.saturating_sub(1)).times(1)
    }
}

/// When.
impl Rule {
    /// Keeps the calls waiting until the handle is released or dropped; then they go on as the rule says.
    pub fn hold(mut self) -> (Self, Hold) {
        let (gate, hold) = Gate::new();
        self.gate = Some(gate);
        (self, hold)
    }

    /// Waits before the answer.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Answers before the body is read, then reads and drops the body. Matches by method, path and token only.
    pub fn before_body(mut self) -> Self {
        self.early = true;
        self
    }
}

/// What is answered.
impl Rule {
    fn reply(mut self, reply: Reply) -> Self {
        self.reply = reply;
        self
    }

    /// An error in the documented shape.
    pub fn error(self, status: u16, code: &str) -> Self {
        self.reply(Reply::Error { status, code: code.to_owned() })
    }

    /// Status 200 with this body.
    pub fn body(self, content_type: &str, body: impl Into<Bytes>) -> Self {
        self.respond_with(200, content_type, body)
    }

    /// Any status with this body.
    pub fn respond_with(self, status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        self.reply(Reply::Body { status, content_type: content_type.to_owned(), body: body.into() })
    }

    /// Status 200 with an HTML page.
    pub fn html(self) -> Self {
        self.body("text/html; charset=utf-8", "<!doctype html><title>Down</title><p>Back in a moment.</p>\n")
    }

    /// A 302 to this place.
    pub fn redirect(self, location: &str) -> Self {
        self.respond_with(302, "text/plain", "").header("location", location)
    }

    /// Exactly these bytes on the socket, which is then closed.
    pub fn raw(self, bytes: impl Into<Bytes>) -> Self {
        self.reply(Reply::Raw { bytes: bytes.into(), keep_open: false })
    }

    /// Exactly these bytes on the socket, which then stays open until the client closes it.
    pub fn raw_keep_open(self, bytes: impl Into<Bytes>) -> Self {
        self.reply(Reply::Raw { bytes: bytes.into(), keep_open: true })
    }

    /// A reset (RST) instead of an answer.
    pub fn reset_before_response(self) -> Self {
        self.reply(Reply::Reset)
    }

    /// The connection is closed in order, without an answer.
    pub fn close_without_response(self) -> Self {
        self.reply(Reply::Close)
    }

    /// Never an answer; the connection stays open.
    pub fn black_hole(self) -> Self {
        self.reply(Reply::BlackHole)
    }

    /// Lines of NDJSON, one each interval, the first at once.
    pub fn ndjson(self, lines: impl IntoIterator<Item = impl AsRef<[u8]>>, interval: Duration) -> Self {
        let pieces = lines.into_iter().map(|line| [line.as_ref(), b"\n"].concat().into()).collect();
        self.stream("application/x-ndjson", pieces, interval)
    }

    /// Server-sent events, one each interval, the first at once.
    pub fn sse(self, events: impl IntoIterator<Item = impl AsRef<[u8]>>, interval: Duration) -> Self {
        let pieces = events.into_iter().map(|event| [b"data: ", event.as_ref(), b"\n\n"].concat().into());
        let pieces = pieces.collect();
        self.stream("text/event-stream", pieces, interval)
    }

    /// These pieces in a chunked answer, one each interval, the first at once. With [`Rule::unfinished`] the last
    /// chunk is missing.
    pub fn stream(self, content_type: &str, pieces: Vec<Bytes>, interval: Duration) -> Self {
        self.reply(Reply::Stream { content_type: content_type.to_owned(), pieces, interval, endless: false })
    }

    /// The pieces of a stream are repeated for ever.
    pub fn endless(mut self) -> Self {
        if let Reply::Stream { endless, .. } = &mut self.reply {
            *endless = true;
        }
        self
    }

    /// Status 200 with so many bytes that nobody holds in memory.
    pub fn large(self, length: u64) -> Self {
        self.reply(Reply::Large { length })
    }

    /// A small gzip body that unpacks to so many zeros.
    pub fn gzip_bomb(self, length: u64) -> Self {
        self.reply(Reply::GzipBomb { length })
    }

    /// JSON that tells what came: `method`, `target`, `headers`, `body_length`, `body_sha256`.
    pub fn echo(self) -> Self {
        self.reply(Reply::Echo)
    }

    /// The request's body and content type back, streaming while it comes. Matches by method, path and token only.
    pub fn mirror(mut self) -> Self {
        self.early = true;
        self.reply(Reply::Mirror)
    }
}

/// Changes to a well-formed answer, the usual one included.
impl Rule {
    /// One more header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// `retry-after` with any text.
    pub fn retry_after(self, value: &str) -> Self {
        self.header("retry-after", value)
    }

    /// Changes the items of a usual batch answer.
    pub fn items(mut self, edit: impl Fn(Vec<BatchItem>) -> Vec<BatchItem> + Send + Sync + 'static) -> Self {
        self.edits.push(Edit::Items(Box::new(edit)));
        self
    }

    /// Leaves these ids out of batch answers; asked for alone they are answered as usual.
    pub fn omit_ids<I: Into<String>>(self, ids: impl IntoIterator<Item = I>) -> Self {
        let ids: Vec<String> = ids.into_iter().map(Into::into).collect();
        self.items(move |mut items| {
            items.retain(|item| !ids.contains(&item.id));
            items
        })
    }

    /// Adds this text as one more item to batch answers.
    pub fn add_item(self, text: impl Into<Bytes>) -> Self {
        let text = text.into();
        self.items(move |mut items| {
            items.push(BatchItem { id: String::new(), record: text.clone() });
            items
        })
    }

    /// Gives every item of batch answers twice in a row.
    pub fn repeat_items(self) -> Self {
        self.items(|items| items.into_iter().flat_map(|item| [item.clone(), item]).collect())
    }

    /// Gives the items of batch answers in reverse.
    pub fn reverse_items(self) -> Self {
        self.items(|items| items.into_iter().rev().collect())
    }

    /// Changes the whole body of the usual answer.
    pub fn replace_body(mut self, edit: impl Fn(Bytes) -> Bytes + Send + Sync + 'static) -> Self {
        self.edits.push(Edit::Body(Box::new(edit)));
        self
    }

    /// Encodes the body with gzip, whatever the client accepts.
    pub fn gzip(mut self) -> Self {
        self.gzip = true;
        self
    }

    fn delivered(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    /// The right content-length, but the connection is closed after so many bytes of the body.
    pub fn cut_after(self, bytes: usize) -> Self {
        self.delivered(Delivery::Cut { after: bytes, reset: false })
    }

    /// The right content-length, but the connection is reset after so many bytes of the body.
    pub fn reset_after(self, bytes: usize) -> Self {
        self.delivered(Delivery::Cut { after: bytes, reset: true })
    }

    /// The right content-length, but silence after so many bytes of the body.
    pub fn stall_after(self, bytes: usize) -> Self {
        self.delivered(Delivery::Stall { after: bytes })
    }

    /// This content-length whatever the body: too long, and the connection is closed early; too short, and bytes follow.
    pub fn wrong_length(self, declared: u64) -> Self {
        self.delivered(Delivery::WrongLength { declared })
    }

    /// One byte of the body each interval.
    pub fn drip(self, interval: Duration) -> Self {
        self.delivered(Delivery::Drip { interval })
    }

    /// A chunked answer.
    pub fn chunked(self) -> Self {
        self.delivered(Delivery::Chunked { finished: true })
    }

    /// A chunked answer or stream whose last chunk never comes: the connection is closed instead.
    pub fn unfinished(self) -> Self {
        self.delivered(Delivery::Chunked { finished: false })
    }

    /// The connection is closed after the answer without having said so, as an idle one would be.
    pub fn close_afterwards(mut self) -> Self {
        self.close_afterwards = true;
        self
    }
}
