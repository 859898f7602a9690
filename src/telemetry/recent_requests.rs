//! The last requests of the client port, for the JSON API and the dashboard.
//!
//! An entry has what the log line of the request has, and nothing else: no id of a task, token,
//! path or body. It is in memory only.

use std::cmp::Reverse;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::labels::{ClientLabel, Label, RequestAction, RequestKind, RequestOutcome, ServiceLabel};
use crate::token::Digest;

/// Longest request id, in bytes. `headers::request_id` accepts no longer one.
const MAX_ID_BYTES: usize = 128;

/// A request that has ended.
#[derive(Clone, Debug)]
pub struct RecentRequest {
    /// When the response head was complete, or when the client disconnected before, in microseconds
    /// since the Unix epoch.
    pub ended_at_micros: u64,
    /// Time from the head of the request to `ended_at_micros`.
    pub took: Duration,
    /// Method, `other` for one that is not registered.
    pub method: &'static str,
    /// Service of the path.
    pub service: ServiceLabel,
    /// Shape of the path, as in the log. `None` for `/{service}/tasks`, so that a hit allocates
    /// nothing.
    pub path: Option<String>,
    /// Type of the request.
    pub action: RequestAction,
    /// Result of the request.
    pub outcome: RequestOutcome,
    /// Status of the response. `None` if the client disconnected before.
    pub status: Option<u16>,
    /// Code of refrain's own error.
    pub error: Option<&'static str>,
    /// Why the status is 500 or above, as in the log.
    pub cause: Option<String>,
    /// Numbers of ids. `None` if the request is not a lookup.
    pub ids: Option<RequestIds>,
    /// Id of the request, as in the log.
    pub request_id: RecentRequestId,
    /// Digest of the token.
    pub token: Option<Digest>,
    /// Name of the client or token.
    pub client: ClientLabel,
}

impl RecentRequest {
    /// Returns the kind of the request, which has a part of the memory of its own.
    pub fn kind(&self) -> RequestKind {
        let is_success = self.status.is_some_and(|status| status < 400);
        let is_local =
            matches!(self.outcome, RequestOutcome::Hit | RequestOutcome::Pending | RequestOutcome::Answered)
                && self.ids.is_none_or(|ids| ids.fetched == 0);
        match (is_success, is_local) {
            (false, _) => RequestKind::Failed,
            (true, true) => RequestKind::Local,
            (true, false) => RequestKind::Upstream,
        }
    }
}

/// Numbers of ids of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestIds {
    /// Requested ids.
    pub asked: usize,
    /// Ids whose final record came from the store.
    pub hits: usize,
    /// Ids whose record is a snapshot.
    pub pending: usize,
    /// Ids that needed the upstream.
    pub fetched: usize,
}

/// A request id. It is copied: the header value would keep the other headers of its request in
/// memory.
#[derive(Clone, Copy)]
pub struct RecentRequestId {
    bytes: [u8; MAX_ID_BYTES],
    len: usize,
}

impl RecentRequestId {
    /// Copies an id of printable ASCII. Anything after 128 bytes is cut.
    pub fn new(id: &[u8]) -> Self {
        let len = id.len().min(MAX_ID_BYTES);
        let mut bytes = [0; MAX_ID_BYTES];
        bytes[..len].copy_from_slice(&id[..len]);
        Self { bytes, len }
    }

    /// Returns the id.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl std::fmt::Debug for RecentRequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The last requests of each kind. Each kind has a part of its own, so that many polls do not
/// displace the failures.
#[derive(Debug, Default)]
pub struct RecentRequests {
    parts: [Mutex<Ring>; RequestKind::ALL.len()],
}

impl RecentRequests {
    /// Number of requests of each kind that are kept.
    pub const KEPT_PER_KIND: usize = 200;

    /// Records a request. A hit never waits for the lock: it is left out while another thread
    /// holds it. It costs a hit about 450 instructions, 2 %, most of them copies.
    pub fn record(&self, request: RecentRequest) {
        let kind = request.kind();
        let part = &self.parts[kind.index()];
        if kind != RequestKind::Local {
            lock(part).push(request);
            return;
        }
        match part.try_lock() {
            Ok(mut ring) => ring.push(request),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().push(request),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    /// Returns all recorded requests, the latest first.
    pub fn latest(&self) -> Vec<RecentRequest> {
        let mut requests = Vec::with_capacity(self.parts.len() * Self::KEPT_PER_KIND);
        for part in &self.parts {
            requests.extend(lock(part).latest().cloned());
        }
        requests.sort_by_key(|request| Reverse(request.ended_at_micros));
        requests
    }
}

/// A panic elsewhere leaves the ring consistent, so poisoning is ignored.
fn lock(part: &Mutex<Ring>) -> MutexGuard<'_, Ring> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last requests of one kind.
#[derive(Debug, Default)]
struct Ring {
    requests: Vec<RecentRequest>,
    /// Position of the oldest request once the ring is full.
    oldest: usize,
}

impl Ring {
    fn push(&mut self, request: RecentRequest) {
        if self.requests.len() < RecentRequests::KEPT_PER_KIND {
            self.requests.push(request);
            return;
        }
        self.requests[self.oldest] = request;
        self.oldest = (self.oldest + 1) % RecentRequests::KEPT_PER_KIND;
    }

    fn latest(&self) -> impl Iterator<Item = &RecentRequest> {
        let (newer, older) = self.requests.split_at(self.oldest);
        newer.iter().rev().chain(older.iter().rev())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    const KEPT: usize = RecentRequests::KEPT_PER_KIND;

    fn request(number: usize, outcome: RequestOutcome, status: Option<u16>) -> RecentRequest {
        RecentRequest {
            ended_at_micros: number as u64,
            took: Duration::from_millis(1),
            method: "POST",
            service: Metrics::default().service("producer"),
            path: None,
            action: RequestAction::Retrieve,
            outcome,
            status,
            error: None,
            cause: None,
            ids: None,
            request_id: RecentRequestId::new(number.to_string().as_bytes()),
            token: None,
            client: ClientLabel::OTHER,
        }
    }

    fn ids(requests: &RecentRequests) -> Vec<usize> {
        requests.latest().iter().map(|request| request.request_id.as_str().parse().unwrap()).collect()
    }

    #[test]
    fn last_requests_are_returned_latest_first() {
        let requests = RecentRequests::default();
        for count in [0, 1, KEPT, KEPT + 1, 3 * KEPT + 7] {
            let first = ids(&requests).first().map_or(0, |latest| latest + 1);
            (first..count).for_each(|n| requests.record(request(n, RequestOutcome::Miss, Some(200))));
            let expected: Vec<usize> = (count.saturating_sub(KEPT)..count).rev().collect();
            assert_eq!(ids(&requests), expected, "after {count}");
        }
    }

    #[test]
    fn requests_of_one_kind_do_not_displace_those_of_another() {
        let requests = RecentRequests::default();
        requests.record(request(0, RequestOutcome::Failed, Some(502)));
        requests.record(request(1, RequestOutcome::Bypass, Some(200)));
        (2..5000).for_each(|n| requests.record(request(n, RequestOutcome::Hit, Some(200))));
        let ids = ids(&requests);
        assert_eq!((ids.len(), &ids[KEPT..]), (KEPT + 2, &[1, 0][..]));
    }

    #[test]
    fn kind_follows_from_outcome_and_status() {
        for (outcome, status, kind) in [
            (RequestOutcome::Hit, Some(200), RequestKind::Local),
            (RequestOutcome::Pending, Some(200), RequestKind::Local),
            (RequestOutcome::Answered, Some(204), RequestKind::Local),
            (RequestOutcome::Answered, Some(400), RequestKind::Failed),
            (RequestOutcome::Miss, Some(200), RequestKind::Upstream),
            (RequestOutcome::Bypass, Some(302), RequestKind::Upstream),
            (RequestOutcome::Bypass, Some(429), RequestKind::Failed),
            (RequestOutcome::Refused, Some(401), RequestKind::Failed),
            (RequestOutcome::Aborted, None, RequestKind::Failed),
        ] {
            assert_eq!(request(0, outcome, status).kind(), kind, "{outcome:?} {status:?}");
        }
        let fetched = Some(RequestIds { asked: 1, hits: 0, pending: 0, fetched: 1 });
        let request = RecentRequest { ids: fetched, ..request(0, RequestOutcome::Pending, Some(200)) };
        assert_eq!(request.kind(), RequestKind::Upstream);
    }

    #[test]
    fn longest_request_id_is_kept_whole() {
        let longest = "x".repeat(MAX_ID_BYTES);
        assert_eq!(RecentRequestId::new(longest.as_bytes()).as_str(), longest);
        assert_eq!(RecentRequestId::new(format!("{longest}y").as_bytes()).as_str(), longest);
        assert_eq!(RecentRequestId::new(b"").as_str(), "");
    }
}
