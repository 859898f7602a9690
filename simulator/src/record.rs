//! What the simulated upstream saw: every call with its exact head, its body and what became of it.
//!
//! Written by [`super::exchange`], read by tests. Bounded: the oldest calls leave first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::connection::Head;
use super::locked;

/// The longest part of a body that is kept.
pub const MAX_RECORDED_BODY: usize = 1024 * 1024;

/// About what a call costs besides its head and body.
const CALL_OVERHEAD: usize = 512;

/// One call as it arrived, and what became of it.
#[derive(Clone, Debug)]
pub struct RecordedCall {
    /// Counts all calls of this simulator from 0.
    pub sequence: u64,
    /// Which connection it came on; calls of one connection share the number.
    pub connection: u64,
    /// When its head was read.
    pub at: Instant,
    /// The request line and headers as they came, up to and with the empty line.
    pub raw_head: Bytes,
    /// The method; empty if the head was malformed.
    pub method: String,
    /// The raw target, query and all.
    pub target: String,
    /// The headers in their order, names in lower case, values without the white space around them.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body without its framing, at most [`MAX_RECORDED_BODY`] bytes of it.
    pub body: Bytes,
    /// The length of the whole body.
    pub body_length: u64,
    /// The SHA-256 of the whole body in hex.
    pub body_sha256: String,
    /// Whether the body came to its end.
    pub body_complete: bool,
    /// The bearer token.
    pub token: Option<String>,
    /// The status answered, set before the first byte is sent; `None` for no or a raw answer.
    pub status: Option<u16>,
    /// Whether the client hung up before the answer was sent whole.
    pub aborted: bool,
    asked: Arc<Asked>,
}

/// What a body asks for, read once.
#[derive(Debug, Default)]
struct Asked {
    json: Value,
    action: Option<String>,
    ids: Vec<String>,
}

impl RecordedCall {
    pub(super) fn new(connection: u64, at: Instant, head: &Head, raw_head: Bytes) -> Self {
        Self {
            sequence: 0,
            connection,
            at,
            raw_head,
            method: head.method.clone(),
            target: head.target.clone(),
            headers: head.headers.clone(),
            body: Bytes::new(),
            body_length: 0,
            body_sha256: hex(&Sha256::digest([])),
            body_complete: false,
            token: head.token(),
            status: None,
            aborted: false,
            asked: Arc::default(),
        }
    }

    /// The first header of this name (lower case), if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(found, _)| found == name)?;
        std::str::from_utf8(value).ok()
    }

    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&self.target, |(path, _)| path)
    }

    /// The first path segment, if the path is `/{service}/{something}`.
    pub fn service(&self) -> Option<&str> {
        self.route().map(|(service, _)| service)
    }

    /// The body's `action`, if it is a JSON object with one.
    pub fn action(&self) -> Option<&str> {
        self.asked.action.as_deref()
    }

    /// The ids the body asks for, by `id` or `ids`, in their order.
    pub fn ids(&self) -> Vec<String> {
        self.asked.ids.clone()
    }

    /// The body as JSON; `Null` if it is none.
    pub fn json(&self) -> &Value {
        &self.asked.json
    }

    /// Whether this is a `retrieve` or `retrieve_batch` on `POST /{service}/tasks`.
    pub fn is_lookup(&self) -> bool {
        self.method == "POST"
            && self.route().is_some_and(|(_, kind)| kind == "tasks")
            && matches!(self.action(), Some("retrieve" | "retrieve_batch"))
    }

    /// The two segments of `/{service}/{kind}`.
    pub(super) fn route(&self) -> Option<(&str, &str)> {
        let (service, kind) = self.path().strip_prefix('/')?.split_once('/')?;
        (!service.is_empty() && !kind.is_empty() && !kind.contains('/')).then_some((service, kind))
    }

    pub(super) fn set_body(&mut self, body: Captured) {
        self.body_length = body.length;
        self.body_sha256 = hex(&body.digest.finalize());
        self.body_complete = body.complete;
        self.body = body.kept.freeze();
        let json: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let action = json.get("action").and_then(Value::as_str).map(str::to_owned);
        let many = json.get("ids").and_then(Value::as_array).into_iter().flatten();
        let ids = json.get("id").into_iter().chain(many).filter_map(Value::as_str).map(str::to_owned);
        self.asked = Arc::new(Asked { action, ids: ids.collect(), json });
    }

    fn cost(&self) -> usize {
        CALL_OVERHEAD + 2 * self.raw_head.len() + 3 * self.body.len()
    }
}

/// A body on its way in: the part that is kept, the length and digest of all of it.
#[derive(Default)]
pub(super) struct Captured {
    kept: BytesMut,
    length: u64,
    digest: Sha256,
    pub(super) complete: bool,
}

impl Captured {
    pub(super) fn add(&mut self, piece: &[u8]) {
        self.length += piece.len() as u64;
        self.digest.update(piece);
        let room = MAX_RECORDED_BODY - self.kept.len();
        self.kept.extend_from_slice(&piece[..piece.len().min(room)]);
    }
}

/// All calls seen.
pub(super) struct Record {
    max_bytes: usize,
    inner: Mutex<Inner>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    bytes: usize,
    /// How many calls came since the last [`Record::clear`], those that left included.
    count: usize,
    calls: VecDeque<RecordedCall>,
    aborted: u64,
}

impl Record {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, inner: Mutex::default(), changed: watch::Sender::new(()) }
    }

    /// Takes a call in and gives it its number.
    pub(super) fn push(&self, call: &mut RecordedCall) {
        let mut inner = locked(&self.inner);
        call.sequence = inner.next;
        inner.next += 1;
        inner.count += 1;
        inner.bytes += call.cost();
        inner.calls.push_back(call.clone());
        while inner.bytes > self.max_bytes && inner.calls.len() > 1 {
            if let Some(oldest) = inner.calls.pop_front() {
                inner.bytes -= oldest.cost();
            }
        }
        drop(inner);
        self.notify();
    }

    /// Notes the body of a call that was taken in before its body was read.
    pub(super) fn set_body(&self, call: &mut RecordedCall, body: Captured) {
        call.set_body(body);
        let mut inner = locked(&self.inner);
        let before = inner.find(call.sequence).map(|found| {
            let before = found.cost();
            found.clone_from(&RecordedCall { status: found.status, aborted: found.aborted, ..call.clone() });
            before
        });
        if let Some(before) = before {
            inner.bytes = inner.bytes + call.cost() - before;
        }
        drop(inner);
        self.notify();
    }

    pub(super) fn set_status(&self, sequence: u64, status: u16) {
        if let Some(call) = locked(&self.inner).find(sequence) {
            call.status = Some(status);
        }
        self.notify();
    }

    pub(super) fn set_aborted(&self, sequence: u64) {
        let mut inner = locked(&self.inner);
        inner.aborted += 1;
        if let Some(call) = inner.find(sequence) {
            call.aborted = true;
        }
        drop(inner);
        self.notify();
    }

    pub(super) fn calls(&self) -> Vec<RecordedCall> {
        locked(&self.inner).calls.iter().cloned().collect()
    }

    pub(super) fn count(&self) -> usize {
        locked(&self.inner).count
    }

    pub(super) fn aborted_calls(&self) -> u64 {
        locked(&self.inner).aborted
    }

    pub(super) fn clear(&self) {
        let mut inner = locked(&self.inner);
        inner.calls.clear();
        inner.bytes = 0;
        inner.count = 0;
    }

    /// Wakes who waits for something to have changed.
    pub(super) fn notify(&self) {
        self.changed.send_replace(());
    }

    /// Tells of every change from now on.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

impl Inner {
    fn find(&mut self, sequence: u64) -> Option<&mut RecordedCall> {
        let first = self.calls.front()?.sequence;
        let index = usize::try_from(sequence.checked_sub(first)?).ok()?;
        self.calls.get_mut(index)
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        text.extend([byte >> 4, byte & 15].map(|half| char::from(b"0123456789abcdef"[usize::from(half)])));
        text
    })
}
