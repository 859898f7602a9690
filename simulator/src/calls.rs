//! Record of received calls: each with its exact head, its body and its outcome.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::connection::RequestHead;
use super::locked;

/// Largest part of a body that is recorded, in bytes.
pub const MAX_RECORDED_BODY: usize = 1024 * 1024;

/// Approximate memory of a call besides its head and body, in bytes.
const CALL_OVERHEAD: usize = 512;

/// Received call and its outcome.
#[derive(Clone, Debug)]
pub struct RecordedCall {
    /// Number of the call, counted from 0 over the life of the simulator.
    pub sequence: u64,
    /// Number of the connection. Calls on the same connection share it.
    pub connection: u64,
    /// Time at which the head was read.
    pub at: Instant,
    /// Request line and headers exactly as received, with the empty line.
    pub raw_head: Bytes,
    /// Method. Empty if the head was malformed.
    pub method: String,
    /// Raw request target with its query.
    pub target: String,
    /// Headers in order, with names in lower case and values without surrounding white space.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Body without its framing, at most its first [`MAX_RECORDED_BODY`] bytes.
    pub body: Bytes,
    /// Length of the whole body.
    pub body_length: u64,
    /// SHA-256 of the whole body in hexadecimal.
    pub body_sha256: String,
    /// Whether the whole body was received.
    pub body_complete: bool,
    /// Bearer token.
    pub token: Option<String>,
    /// Status of the response, set before its first byte is sent. `None` for no response or a raw
    /// one.
    pub status: Option<u16>,
    /// Whether the client closed the connection before the response was sent completely.
    pub aborted: bool,
    content: Arc<ParsedBody>,
}

/// JSON content of a body, parsed once.
#[derive(Debug, Default)]
struct ParsedBody {
    json: Value,
    action: Option<String>,
    ids: Vec<String>,
}

impl RecordedCall {
    pub(super) fn new(connection: u64, at: Instant, head: &RequestHead, raw_head: Bytes) -> Self {
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
            content: Arc::default(),
        }
    }

    /// Returns the first header of this lower-case name, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(found, _)| found == name)?;
        std::str::from_utf8(value).ok()
    }

    /// Returns the target without its query.
    pub fn path(&self) -> &str {
        self.target.split_once('?').map_or(&self.target, |(path, _)| path)
    }

    /// Returns the first path segment if the path has exactly two.
    pub fn service(&self) -> Option<&str> {
        self.route().map(|(service, _)| service)
    }

    /// Returns the body's `action`, if it is a JSON object with one.
    pub fn action(&self) -> Option<&str> {
        self.content.action.as_deref()
    }

    /// Returns the ids in the body's `id`, `task_id` and `ids`, in order. An empty `id` is not an id.
    pub fn ids(&self) -> Vec<String> {
        self.content.ids.clone()
    }

    /// Returns the body as JSON, or `Null` if it is not JSON.
    pub fn json(&self) -> &Value {
        &self.content.json
    }

    /// Returns whether this is a `retrieve` or `retrieve_batch` on `POST /{service}/tasks`. A body
    /// with an id and without `action` means `retrieve`.
    pub fn is_lookup(&self) -> bool {
        self.method == "POST"
            && self.route().is_some_and(|(_, kind)| kind == "tasks")
            && match self.json().get("action") {
                Some(action) => matches!(action.as_str(), Some("retrieve" | "retrieve_batch")),
                None => !self.content.ids.is_empty(),
            }
    }

    /// Returns the two segments of `/{service}/{kind}`.
    pub(super) fn route(&self) -> Option<(&str, &str)> {
        let (service, kind) = self.path().strip_prefix('/')?.split_once('/')?;
        (!service.is_empty() && !kind.is_empty() && !kind.contains('/')).then_some((service, kind))
    }

    pub(super) fn set_body(&mut self, body: BodyRecorder) {
        self.body_length = body.length;
        self.body_sha256 = hex(&body.digest.finalize());
        self.body_complete = body.is_complete;
        self.body = body.recorded.freeze();
        let json: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let action = json.get("action").and_then(Value::as_str).map(str::to_owned);
        let one_or_more = |key: &str| match json.get(key) {
            Some(Value::Array(ids)) => ids.as_slice(),
            Some(id) => std::slice::from_ref(id),
            None => &[],
        };
        let one = one_or_more("id").iter().filter(|id| *id != "");
        let more = one_or_more("task_id").iter().chain(one_or_more("ids"));
        let ids = one.chain(more).filter_map(Value::as_str).map(str::to_owned).collect();
        self.content = Arc::new(ParsedBody { action, ids, json });
    }

    fn cost(&self) -> usize {
        CALL_OVERHEAD + 2 * self.raw_head.len() + 3 * self.body.len()
    }
}

/// Recorder of a body while it is received: its first bytes, its length and its digest.
#[derive(Default)]
pub(super) struct BodyRecorder {
    recorded: BytesMut,
    length: u64,
    digest: Sha256,
    pub(super) is_complete: bool,
}

impl BodyRecorder {
    pub(super) fn add(&mut self, piece: &[u8]) {
        self.length += piece.len() as u64;
        self.digest.update(piece);
        let free = MAX_RECORDED_BODY - self.recorded.len();
        self.recorded.extend_from_slice(&piece[..piece.len().min(free)]);
    }
}

/// Recorded calls, bounded in memory. The oldest are dropped first.
pub(super) struct CallLog {
    max_bytes: usize,
    inner: Mutex<CallLogState>,
    /// Notified of each change.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct CallLogState {
    next_sequence: u64,
    bytes: usize,
    /// Number of calls since the last [`CallLog::clear`], dropped ones included.
    count: usize,
    calls: VecDeque<RecordedCall>,
    aborted: u64,
}

impl CallLog {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, inner: Mutex::default(), changed: watch::Sender::new(()) }
    }

    /// Adds a call and sets its sequence number.
    pub(super) fn push(&self, call: &mut RecordedCall) {
        let mut inner = locked(&self.inner);
        call.sequence = inner.next_sequence;
        inner.next_sequence += 1;
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

    /// Sets the body of a call that was added before its body was read.
    pub(super) fn set_body(&self, call: &mut RecordedCall, body: BodyRecorder) {
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

    /// Wakes the tasks that wait for a change.
    pub(super) fn notify(&self) {
        self.changed.send_replace(());
    }

    /// Returns a receiver that is notified of every later change.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

impl CallLogState {
    fn find(&mut self, sequence: u64) -> Option<&mut RecordedCall> {
        let first = self.calls.front()?.sequence;
        let index = usize::try_from(sequence.checked_sub(first)?).ok()?;
        self.calls.get_mut(index)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        hex.extend([byte >> 4, byte & 15].map(|half| char::from(b"0123456789abcdef"[usize::from(half)])));
        hex
    })
}
