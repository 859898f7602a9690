//! Callers and whether the upstream still accepts their tokens.
//!
//! In `token` mode a caller is identified by the token that goes upstream. In `shared` mode a
//! client is identified by its key, the proxy adds the team's token, and grants belong to the team.
//! No HTTP types and no SQL here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock;
use crate::config::{AccessConfig, AccessMode};
use crate::lru::evict_least_recently_used;
use crate::store::{Store, TokenAcceptance};
use crate::telemetry::{ClientLabel, Metrics};
use crate::token::{Digest, DigestKey, Token};

/// How long hits are served after an inconclusive recheck, before the next one.
const RECHECK_PAUSE: Duration = Duration::from_secs(60);

/// Most tokens whose status is held in memory. The least recently used are evicted; the store still
/// has theirs.
const MAX_TOKENS: usize = 100_000;

/// Longest token, in bytes, that a connection's [`CallerCache`] holds. It bounds the memory of many
/// connections.
const MAX_CACHED_TOKEN_BYTES: usize = 4096;

/// Resolution of the time at which a token was last used.
const LAST_USE_RESOLUTION: Duration = Duration::from_secs(1);

/// Identified sender of a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Name in log and metrics: of the client in `shared` mode, else of the token.
    pub client: ClientLabel,
    /// Token that goes upstream.
    pub token: Token,
    /// Digest of `token`: the key of queues, rate limiters and token status.
    pub digest: Digest,
    /// Owner of the grants in the store: the token, or the team.
    pub reader: Digest,
}

/// Caller of a connection's last request, with the token or key that it presented.
///
/// Most connections present the same one on every request, which then need not be digested again.
#[derive(Debug, Default)]
pub struct CallerCache(Mutex<Option<(Token, Arc<Caller>)>>);

impl CallerCache {
    /// Not contended: a connection handles one request at a time.
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Token, Arc<Caller>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The presented key is not a key of `access.clients`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown client key")]
pub struct UnknownKey;

/// Whether a token's hits may be served.
#[derive(Debug)]
pub enum AccessDecision {
    /// The upstream accepted the token recently, or its last recheck was inconclusive.
    Allowed,
    /// The last acceptance is too old. The caller that gets the [`Recheck`] has to make the
    /// upstream call.
    Recheck(Recheck),
    /// Another caller makes the recheck, and its result counts for this caller too.
    Wait(RunningRecheck),
    /// The upstream refused the token. It has no hits until a lookup with it succeeds.
    Refused,
}

/// Obligation to make an upstream call with a token. Dropping it wakes the callers that wait for
/// it. If [`Recheck::finish`] was not called, one of them gets the next `Recheck`.
#[derive(Debug)]
pub struct Recheck {
    auth: Arc<Auth>,
    digest: Digest,
    done: Arc<RecheckSender>,
}

/// Recheck that another caller makes.
#[derive(Debug)]
pub struct RunningRecheck(watch::Receiver<Option<RecheckResult>>);

/// Holds the result of a recheck once it is known.
type RecheckSender = watch::Sender<Option<RecheckResult>>;

/// Result of a recheck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecheckResult {
    /// The upstream accepted the token.
    Accepted,
    /// The upstream refused the token.
    Refused,
    /// The response does not say whether the token is accepted, or there is none.
    Inconclusive,
}

/// Identifies callers and tracks the status of their tokens.
#[derive(Debug)]
pub struct Auth {
    key: DigestKey,
    /// Only in `shared` mode.
    team: Option<Team>,
    /// Names of tokens, in `token` mode.
    names: HashMap<Digest, ClientLabel>,
    recheck_after: Duration,
    store: Store,
    metrics: Arc<Metrics>,
    tokens: Mutex<TokenStatuses>,
}

/// With a fast hash: a client cannot choose the digest of its token.
type TokenStatuses = HashMap<Digest, TokenStatus, foldhash::fast::RandomState>;

#[derive(Debug)]
struct Team {
    token: Token,
    /// Names and keys.
    clients: Vec<(ClientLabel, Token)>,
}

/// Status of one token, from the upstream's responses to it.
#[derive(Debug)]
struct TokenStatus {
    accepted_at: Option<Instant>,
    is_refused: bool,
    /// No recheck before this time, since the last one was inconclusive.
    paused_until: Option<Instant>,
    /// Wakes the callers that wait for the running recheck.
    recheck: Option<Arc<RecheckSender>>,
    saved_at: Option<Instant>,
    used_at: Instant,
}

impl TokenStatus {
    /// Status of a token without any response.
    fn unknown(now: Instant) -> Self {
        Self {
            accepted_at: None,
            is_refused: false,
            paused_until: None,
            recheck: None,
            saved_at: None,
            used_at: now,
        }
    }

    /// Whether hits may be served without a recheck.
    fn is_allowed(&self, now: Instant, recheck_after: Duration) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < recheck_after;
        !self.is_refused
            && (self.accepted_at.is_some_and(is_recent) || self.paused_until.is_some_and(|until| until > now))
    }
}

impl Auth {
    /// `team_token` is `upstream.token`, which `shared` mode requires. `metrics` know the names of
    /// `config`.
    pub fn new(
        config: &AccessConfig,
        team_token: Option<Token>,
        store: Store,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let clients = config.clients.iter().map(|client| (metrics.client(&client.name), client.key.clone()));
        let team = match config.mode {
            AccessMode::Token => None,
            AccessMode::Shared => team_token.map(|token| Team { token, clients: clients.collect() }),
        };
        Arc::new(Self {
            key: DigestKey::new(store.digest_key()),
            team,
            names: config.tokens.iter().map(|token| (token.digest, metrics.client(&token.name))).collect(),
            recheck_after: config.recheck_after,
            store,
            metrics,
            tokens: Mutex::default(),
        })
    }

    /// Whether `access.mode` is `shared`, so that every request needs a client's key.
    pub fn is_shared(&self) -> bool {
        self.team.is_some()
    }

    /// Returns the caller that presents a bearer token or key. `None` if it is not a valid token.
    ///
    /// # Errors
    /// In `shared` mode, if it is not a client's key. It is compared with all keys, each in
    /// constant time.
    pub fn identify(&self, presented: &str, cache: &CallerCache) -> Option<Result<Arc<Caller>, UnknownKey>> {
        let mut last = cache.lock();
        if let Some((token, caller)) = &*last
            && token.matches(presented)
        {
            return Some(Ok(Arc::clone(caller)));
        }
        let presented = Token::parse(presented)?;
        Some(self.caller(&presented).map(Arc::new).inspect(|caller| {
            if presented.expose().len() <= MAX_CACHED_TOKEN_BYTES {
                *last = Some((presented, Arc::clone(caller)));
            }
        }))
    }

    fn caller(&self, presented: &Token) -> Result<Caller, UnknownKey> {
        let Some(Team { token, clients }) = &self.team else {
            let digest = self.key.digest(presented);
            let client = self.client(&digest);
            return Ok(Caller { client, token: presented.clone(), digest, reader: digest });
        };
        // Without an early exit, so that the time does not depend on which key matches.
        let known = clients
            .iter()
            .fold(None, |known, (name, key)| if key == presented { Some(*name) } else { known });
        Ok(Caller {
            client: known.ok_or(UnknownKey)?,
            token: token.clone(),
            digest: self.key.digest(token),
            reader: self.key.team(),
        })
    }

    /// Returns the label of a token: its name in `access.tokens`, if it has one.
    fn client(&self, token: &Digest) -> ClientLabel {
        self.names.get(token).copied().unwrap_or(ClientLabel::OTHER)
    }

    /// Returns the reader that gets grants from responses to this token: the token itself, or the
    /// team.
    pub fn reader(&self, digest: &Digest) -> Digest {
        if self.is_shared() { self.key.team() } else { *digest }
    }

    /// Whether the token's hits may be served now, judged by the statuses in memory only. After
    /// `false`, call [`Auth::decide`].
    pub fn is_allowed(&self, digest: &Digest, now: Instant) -> bool {
        let mut tokens = self.lock();
        let Some(status) = tokens.get_mut(digest) else { return false };
        // Not on every request: a write would move the cache line from one processor to another.
        if now.saturating_duration_since(status.used_at) > LAST_USE_RESOLUTION {
            status.used_at = now;
        }
        status.is_allowed(now, self.recheck_after)
    }

    /// Decides whether the token's hits may be served now. Reads the store for a token that is not
    /// in memory.
    pub async fn decide(self: &Arc<Self>, digest: &Digest) -> AccessDecision {
        if let Some(decision) = self.decide_from_memory(digest) {
            return decision;
        }
        let saved = self.store.acceptance(digest).await;
        let now = Instant::now();
        let status = TokenStatus {
            accepted_at: saved.as_ref().and_then(|saved| accepted_instant(saved, now)),
            is_refused: saved.is_some_and(|saved| saved.is_refused),
            ..TokenStatus::unknown(now)
        };
        {
            let mut tokens = self.lock();
            make_room(&mut tokens);
            // A response that arrived during the read is newer.
            tokens.entry(*digest).or_insert(status);
        }
        self.decide_from_memory(digest).unwrap_or(AccessDecision::Allowed)
    }

    fn decide_from_memory(self: &Arc<Self>, digest: &Digest) -> Option<AccessDecision> {
        let now = Instant::now();
        let mut tokens = self.lock();
        let status = tokens.get_mut(digest)?;
        status.used_at = now;
        if status.is_refused {
            return Some(AccessDecision::Refused);
        }
        if status.is_allowed(now, self.recheck_after) {
            return Some(AccessDecision::Allowed);
        }
        if let Some(running) = &status.recheck {
            return Some(AccessDecision::Wait(RunningRecheck(running.subscribe())));
        }
        let done = Arc::new(RecheckSender::new(None));
        status.recheck = Some(Arc::clone(&done));
        Some(AccessDecision::Recheck(Recheck { auth: Arc::clone(self), digest: *digest, done }))
    }

    /// Updates a token's status from the upstream's response to a lookup of it. Any 2xx accepts the
    /// token; 401, and 403 with code `disabled` or `token_expired`, refuse it. Other responses are
    /// inconclusive.
    pub fn record_response(&self, digest: &Digest, http_status: u16, body: &[u8]) {
        let accepted = match http_status {
            200..=299 => true,
            401 => false,
            403 if matches!(error_code(body).as_deref(), Some("disabled" | "token_expired")) => false,
            _ => {
                // Callers that wait for a recheck need not wait for the retries of its lookup.
                if let Some(status) = self.lock().get_mut(digest) {
                    self.end_inconclusive_recheck(digest, status);
                }
                return;
            }
        };
        let now = Instant::now();
        let mut tokens = self.lock();
        make_room(&mut tokens);
        let status = tokens.entry(*digest).or_insert_with(|| TokenStatus::unknown(now));
        let is_refused = !accepted;
        let changed = status.is_refused != is_refused;
        status.is_refused = is_refused;
        status.used_at = now;
        if accepted {
            status.accepted_at = Some(now);
            status.paused_until = None;
        }
        // Saved at once on a change, and else often enough that a restart loses little.
        let save_after = (self.recheck_after / 10).min(RECHECK_PAUSE);
        if changed || status.saved_at.is_none_or(|at| now.saturating_duration_since(at) >= save_after) {
            status.saved_at = Some(now);
            // Under the lock, so that changes are saved in the order in which they happened.
            self.store.record_acceptance(
                *digest,
                TokenAcceptance {
                    accepted_at: if accepted { clock::unix_now() } else { 0 },
                    is_refused: !accepted,
                },
            );
        }
    }

    /// Ends a running recheck without a result: hits are served for [`RECHECK_PAUSE`] before the
    /// next one.
    fn end_inconclusive_recheck(&self, digest: &Digest, status: &mut TokenStatus) {
        let Some(done) = status.recheck.take() else { return };
        status.paused_until = Some(Instant::now() + RECHECK_PAUSE);
        self.metrics.rechecks_failed.inc();
        tracing::warn!(
            token = %digest,
            "recheck of a token was inconclusive; its stored tasks are served until the next recheck"
        );
        done.send_replace(Some(RecheckResult::Inconclusive));
    }

    /// For short sections, never held across an await. A panic in one leaves the map consistent.
    fn lock(&self) -> std::sync::MutexGuard<'_, TokenStatuses> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recheck {
    /// Resolves when a response to the token was inconclusive.
    pub async fn inconclusive(&self) {
        // Cannot fail: `self` holds the sender.
        let _ = self.done.subscribe().wait_for(|result| *result == Some(RecheckResult::Inconclusive)).await;
    }

    /// Returns the result of an upstream call that began at `since`, also to the callers that wait
    /// for it. If it is inconclusive, hits are served for a minute before the next recheck.
    pub fn finish(&self, since: Instant) -> RecheckResult {
        let result = self.result(since);
        self.done.send_replace(Some(result));
        result
    }

    fn result(&self, since: Instant) -> RecheckResult {
        let mut tokens = self.auth.lock();
        let Some(status) = tokens.get_mut(&self.digest) else { return RecheckResult::Inconclusive };
        if status.is_refused {
            return RecheckResult::Refused;
        }
        if status.accepted_at.is_some_and(|at| at >= since) {
            return RecheckResult::Accepted;
        }
        if status.recheck.as_ref().is_some_and(|running| Arc::ptr_eq(running, &self.done)) {
            self.auth.end_inconclusive_recheck(&self.digest, status);
        }
        RecheckResult::Inconclusive
    }
}

impl RunningRecheck {
    /// Waits for the result; `None` if the recheck ended without one.
    pub async fn result(mut self) -> Option<RecheckResult> {
        *self.0.wait_for(Option::is_some).await.ok()?
    }
}

impl Drop for Recheck {
    fn drop(&mut self) {
        if let Some(status) = self.auth.lock().get_mut(&self.digest) {
            status.recheck.take_if(|running| Arc::ptr_eq(running, &self.done));
        }
    }
}

/// Converts a stored acceptance to the monotonic clock. `None` if it is in the future, since the
/// wall clock was set back.
fn accepted_instant(saved: &TokenAcceptance, now: Instant) -> Option<Instant> {
    let age = clock::unix_now().checked_sub(saved.accepted_at)?;
    now.checked_sub(Duration::from_secs(u64::try_from(age).ok()?))
}

/// Removes a tenth of the tokens if there are [`MAX_TOKENS`].
fn make_room(tokens: &mut TokenStatuses) {
    if tokens.len() >= MAX_TOKENS {
        evict_least_recently_used(tokens, MAX_TOKENS / 10, |status| Some(status.used_at));
    }
}

/// Returns `error.code` of a body in the upstream's error shape.
fn error_code(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Body {
        error: Detail,
    }
    #[derive(serde::Deserialize)]
    struct Detail {
        code: String,
    }
    serde_json::from_slice::<Body>(body).ok().map(|body| body.error.code)
}
