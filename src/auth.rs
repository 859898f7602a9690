//! Who may read what: callers, the digests they are known by, and whether the upstream still accepts a token.
//!
//! In `token` mode everybody is known by the token that goes upstream; in `shared` mode clients are known by their
//! keys, the proxy adds the team's token, and rights belong to the team. No HTTP types and no SQL here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock;
use crate::config::{AccessConfig, AccessMode};
use crate::store::{Store, TokenAcceptance};
use crate::telemetry::Metrics;
use crate::token::{Digest, DigestKey, Token};

/// After a recheck that brought no verdict, how long hits go on before the next.
const RECHECK_PAUSE: Duration = Duration::from_secs(60);

/// Most tokens whose standing is held in memory; the longest unused leave first and are read again from the store.
const MAX_TOKENS: usize = 100_000;

/// A longer token is not remembered for its connection, in bytes: connections are many.
const LONGEST_REMEMBERED: usize = 4096;

/// How exactly the last use of a token is known.
const USE_STEP: Duration = Duration::from_secs(1);

/// Somebody who may ask.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The client's name, in `shared` mode.
    pub client: Option<Arc<str>>,
    /// The token that goes upstream.
    pub token: Token,
    /// That token's digest: what lanes, buckets and acceptance are kept by.
    pub digest: Digest,
    /// Whose rights in the store count: the token's, or the team's.
    pub reader: Digest,
}

/// The caller of a connection's last request, as what it presented: the next one most likely presents the same, and
/// need not be made out again.
#[derive(Debug, Default)]
pub struct CallerCache(Mutex<Option<(Token, Arc<Caller>)>>);

impl CallerCache {
    /// Short sections only, and one request at a time.
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Token, Arc<Caller>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key of a request is not a client's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a client's key")]
pub struct UnknownKey;

/// Whether a token's hits may be served.
#[derive(Debug)]
pub enum AccessDecision {
    /// The upstream accepted the token not long ago.
    Open,
    /// It has to be asked first; the caller who gets the [`Recheck`] asks, the others wait for it to end.
    Recheck(Recheck),
    /// Somebody asks already; resolves when that has ended.
    Joined(watch::Receiver<()>),
    /// The upstream refused the token: no hits until a look-up of it succeeds.
    Ended,
}

/// The duty to ask the upstream about a token, until it is dropped. Then everybody who waits goes on; without
/// [`Recheck::finish`] the next of them has the duty.
#[derive(Debug)]
pub struct Recheck {
    access: Arc<Auth>,
    digest: Digest,
    done: Arc<watch::Sender<()>>,
}

/// Who may read what.
#[derive(Debug)]
pub struct Auth {
    key: DigestKey,
    /// The team's token and its clients, in `shared` mode.
    team: Option<Team>,
    recheck_after: Duration,
    store: Store,
    metrics: Arc<Metrics>,
    standings: Mutex<Standings>,
}

/// Digests cannot be chosen without their key, so a fast hash will do.
type Standings = HashMap<Digest, Standing, foldhash::fast::RandomState>;

#[derive(Debug)]
struct Team {
    token: Token,
    /// Names and keys.
    clients: Vec<(Arc<str>, Token)>,
}

#[derive(Debug)]
struct Standing {
    accepted_at: Option<Instant>,
    ended: bool,
    /// A recheck without a verdict: none before then.
    paused_until: Option<Instant>,
    recheck: Option<Arc<watch::Sender<()>>>,
    saved_at: Option<Instant>,
    used_at: Instant,
}

impl Standing {
    /// Of a token that nothing was heard of.
    fn unknown(now: Instant) -> Self {
        Self {
            accepted_at: None,
            ended: false,
            paused_until: None,
            recheck: None,
            saved_at: None,
            used_at: now,
        }
    }

    /// Whether the upstream accepted the token not long ago, or would not say so a moment ago.
    fn is_open(&self, now: Instant, recheck_after: Duration) -> bool {
        let fresh = |at: Instant| now.saturating_duration_since(at) < recheck_after;
        !self.ended
            && (self.accepted_at.is_some_and(fresh) || self.paused_until.is_some_and(|until| until > now))
    }
}

impl Auth {
    /// Auth as configured. `team_token` is `upstream.token`, which `shared` mode has.
    pub fn new(
        config: &AccessConfig,
        team_token: Option<Token>,
        store: Store,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let clients = config.clients.iter().map(|client| (client.name.as_str().into(), client.key.clone()));
        let team = match config.mode {
            AccessMode::Token => None,
            AccessMode::Shared => team_token.map(|token| Team { token, clients: clients.collect() }),
        };
        Arc::new(Self {
            key: DigestKey::new(store.digest_key()),
            team,
            recheck_after: config.recheck_after,
            store,
            metrics,
            standings: Mutex::default(),
        })
    }

    /// Whether every request needs a client's key.
    pub fn is_shared(&self) -> bool {
        self.team.is_some()
    }

    /// The caller behind a bearer token, looked for in `last` first. `None` for what is no token.
    ///
    /// # Errors
    /// In `shared` mode, if it is not a client's key. All keys are compared, each in constant time.
    pub fn identify(&self, presented: &str, last: &CallerCache) -> Option<Result<Arc<Caller>, UnknownKey>> {
        let mut last = last.lock();
        if let Some((token, caller)) = &*last
            && token.matches(presented)
        {
            return Some(Ok(Arc::clone(caller)));
        }
        let presented = Token::parse(presented)?;
        Some(self.caller(&presented).map(Arc::new).inspect(|caller| {
            if presented.expose().len() <= LONGEST_REMEMBERED {
                *last = Some((presented, Arc::clone(caller)));
            }
        }))
    }

    fn caller(&self, presented: &Token) -> Result<Caller, UnknownKey> {
        let Some(Team { token, clients }) = &self.team else {
            let digest = self.key.digest(presented);
            return Ok(Caller { client: None, token: presented.clone(), digest, reader: digest });
        };
        // All of them, so that the time says nothing of which it was.
        let known =
            clients.iter().fold(None, |known, (name, key)| if key == presented { Some(name) } else { known });
        let name = known.ok_or(UnknownKey)?;
        Ok(Caller {
            client: Some(Arc::clone(name)),
            token: token.clone(),
            digest: self.key.digest(token),
            reader: self.key.team(),
        })
    }

    /// Whose rights an answer to this token gives: the token's own, or the team's.
    pub fn reader(&self, digest: &Digest) -> Digest {
        if self.is_shared() { self.key.team() } else { *digest }
    }

    /// Whether the token's hits may be served now, as far as is known without waiting. `false` is a question for
    /// [`Auth::gate`].
    pub fn is_open(&self, digest: &Digest, now: Instant) -> bool {
        let mut standings = self.lock();
        let Some(standing) = standings.get_mut(digest) else { return false };
        // Not each time: what is not written need not go from one processor's cache to another's.
        if now.saturating_duration_since(standing.used_at) > USE_STEP {
            standing.used_at = now;
        }
        standing.is_open(now, self.recheck_after)
    }

    /// Whether the token's hits may be served now.
    pub async fn gate(self: &Arc<Self>, digest: &Digest) -> AccessDecision {
        if let Some(gate) = self.gate_in_memory(digest) {
            return gate;
        }
        let saved = self.store.acceptance(digest).await;
        let now = Instant::now();
        let standing = Standing {
            accepted_at: saved.as_ref().and_then(|saved| accepted_instant(saved, now)),
            ended: saved.is_some_and(|saved| saved.is_revoked),
            ..Standing::unknown(now)
        };
        {
            let mut standings = self.lock();
            make_room(&mut standings);
            // Somebody may have learnt more meanwhile.
            standings.entry(*digest).or_insert(standing);
        }
        self.gate_in_memory(digest).unwrap_or(AccessDecision::Open)
    }

    fn gate_in_memory(self: &Arc<Self>, digest: &Digest) -> Option<AccessDecision> {
        let now = Instant::now();
        let mut standings = self.lock();
        let standing = standings.get_mut(digest)?;
        standing.used_at = now;
        if standing.ended {
            return Some(AccessDecision::Ended);
        }
        if standing.is_open(now, self.recheck_after) {
            return Some(AccessDecision::Open);
        }
        if let Some(running) = &standing.recheck {
            return Some(AccessDecision::Joined(running.subscribe()));
        }
        let done = Arc::new(watch::Sender::new(()));
        standing.recheck = Some(Arc::clone(&done));
        Some(AccessDecision::Recheck(Recheck { access: Arc::clone(self), digest: *digest, done }))
    }

    /// What the upstream answered to a look-up of the token: any 2xx renews; 401, and 403 with code `disabled` or
    /// `token_expired`, end its hits.
    pub fn answered(&self, digest: &Digest, status: u16, body: &[u8]) {
        let accepted = match status {
            200..=299 => true,
            401 => false,
            403 if matches!(error_code(body).as_deref(), Some("disabled" | "token_expired")) => false,
            _ => {
                // No verdict: whoever waits for one need not wait for the look-up's other tries.
                if let Some(standing) = self.lock().get_mut(digest) {
                    self.give_up_recheck(digest, standing);
                }
                return;
            }
        };
        let now = Instant::now();
        let mut standings = self.lock();
        make_room(&mut standings);
        let standing = standings.entry(*digest).or_insert_with(|| Standing::unknown(now));
        let changed = standing.ended == accepted;
        standing.ended = !accepted;
        standing.used_at = now;
        if accepted {
            standing.accepted_at = Some(now);
            standing.paused_until = None;
        }
        // Saved often enough that a restart forgets little, and at once when the verdict changed.
        let save_after = (self.recheck_after / 10).min(RECHECK_PAUSE);
        if changed || standing.saved_at.is_none_or(|at| now.saturating_duration_since(at) >= save_after) {
            standing.saved_at = Some(now);
            // Still under the lock, so that verdicts are saved in the order in which they came.
            self.store.record_acceptance(
                *digest,
                TokenAcceptance {
                    accepted_at: if accepted { clock::unix_now() } else { 0 },
                    is_revoked: !accepted,
                },
            );
        }
    }

    /// A recheck under way brought no verdict: hits go on for a minute before the upstream is asked again, and that is
    /// counted.
    fn give_up_recheck(&self, digest: &Digest, standing: &mut Standing) {
        let Some(done) = standing.recheck.take() else { return };
        standing.paused_until = Some(Instant::now() + RECHECK_PAUSE);
        self.metrics.rechecks_failed.inc();
        tracing::warn!(token = %digest, "the upstream did not say whether the token still holds; its hits go on");
        done.send_replace(());
    }

    /// Short sections only, never held over an await; a panic elsewhere leaves the map sound.
    fn lock(&self) -> std::sync::MutexGuard<'_, Standings> {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recheck {
    /// Resolves when an answer came that is no verdict.
    pub async fn given_up(&self) {
        // It cannot fail while this holds a sender.
        let _ = self.done.subscribe().changed().await;
    }

    /// The upstream was asked, `since` when. Where that brought no verdict, hits go on for a minute before it is asked
    /// again.
    pub fn finish(&self, since: Instant) -> RecheckResult {
        let mut standings = self.access.lock();
        let Some(standing) = standings.get_mut(&self.digest) else { return RecheckResult::None };
        if standing.ended {
            return RecheckResult::Ended;
        }
        if standing.accepted_at.is_some_and(|at| at >= since) {
            return RecheckResult::Accepted;
        }
        if standing.recheck.as_ref().is_some_and(|running| Arc::ptr_eq(running, &self.done)) {
            self.access.give_up_recheck(&self.digest, standing);
        }
        RecheckResult::None
    }
}

/// What a recheck brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecheckResult {
    /// The upstream accepted the token.
    Accepted,
    /// It refused the token.
    Ended,
    /// It said neither.
    None,
}

impl Drop for Recheck {
    fn drop(&mut self) {
        if let Some(standing) = self.access.lock().get_mut(&self.digest) {
            standing.recheck.take_if(|running| Arc::ptr_eq(running, &self.done));
        }
    }
}

/// A stored acceptance on the monotonic clock. One from the future (the wall clock was set back) counts as none.
fn accepted_instant(saved: &TokenAcceptance, now: Instant) -> Option<Instant> {
    let age = clock::unix_now().checked_sub(saved.accepted_at)?;
    now.checked_sub(Duration::from_secs(u64::try_from(age).ok()?))
}

fn make_room(standings: &mut Standings) {
    if standings.len() < MAX_TOKENS {
        return;
    }
    let mut unused: Vec<(Instant, Digest)> =
        standings.iter().map(|(digest, standing)| (standing.used_at, *digest)).collect();
    unused.sort_unstable();
    for (_, digest) in unused.into_iter().take(MAX_TOKENS / 10) {
        standings.remove(&digest);
    }
}

/// `error.code` of a body in the upstream's error shape.
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
