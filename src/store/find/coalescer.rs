//! Look-ups at the same time share statements: those that come while others are read wait, and the next statement
//! answers as many of them as fit into it. What a statement costs besides its rows, above all the ways to SQLite's thread and
//! back, is then paid once for many. Nobody waits for company: who finds a free turn goes at once.
//!
//! A statement begins after all it answers were asked, so that each sees what was committed before it. It belongs to
//! the store: a look-up that is dropped harms none of the others.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::Sqlite;
use sqlx::pool::PoolConnection;
use tokio::sync::oneshot;

use super::{FIND_STEP, Found, Joined, Wanted, find_joined};
use crate::store::FIND_TIMEOUT;
use crate::store::state::Shared;
use crate::task::{Service, TaskId};
use crate::token::Digest;

/// Statements at a time: one that waits for the disk does not hold up everybody.
pub(in crate::store) const TURNS: usize = 2;

/// A statement that takes longer is given up. Those who asked have counted it by then: each of them gives up after
/// [`FIND_TIMEOUT`].
pub(super) const LONGEST: Duration = FIND_TIMEOUT.saturating_add(Duration::from_millis(500));

/// Once so many wait, those that were withdrawn meanwhile are taken out: a disk that hangs does not let them pile up.
const MANY: usize = 4096;

/// A longer text comes alone, in bytes: what one statement brings is bounded.
const LONGEST_TEXT: i64 = 64 << 10;

/// The same in a statement that others share, who wait for what stands beside theirs.
const LONGEST_SHARED_TEXT: i64 = 16 << 10;

/// Who waits. Bounded by the requests in hand, each of which waits for one answer here and not longer than
/// [`FIND_TIMEOUT`].
#[derive(Default)]
pub(in crate::store) struct ReadCoalescer(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    asked: VecDeque<Asked>,
    turns: usize,
    /// For the next statements, at most [`TURNS`]. Not given back to the pool in between: it asks every connection that
    /// comes back whether it still answers, which is as many changes of thread as a statement takes.
    idle: Vec<PoolConnection<Sqlite>>,
    /// Which pool these are of, counted up by [`ReadCoalescer::release`].
    pool: u64,
}

struct Asked {
    reader: Digest,
    service: Service,
    ids: Vec<TaskId>,
    answer: oneshot::Sender<Joined>,
}

impl ReadCoalescer {
    /// Sections under this lock are short and leave nothing half done if they panic.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the connections of the pool so far. Those in use are not kept either: a statement may last longer than
    /// its pool.
    pub(in crate::store) fn release(&self) {
        let idle = {
            let mut waiting = self.lock();
            waiting.pool += 1;
            std::mem::take(&mut waiting.idle)
        };
        drop(idle);
    }

    /// How many connections are kept at the moment.
    #[cfg(test)]
    pub(in crate::store) fn kept(&self) -> usize {
        self.lock().idle.len()
    }
}

/// What `reader` may read of `ids`, at most [`FIND_STEP`]. `None` if that could not be read, which is counted here.
pub(super) async fn find(
    shared: &Arc<Shared>,
    reader: &Digest,
    service: &Service,
    ids: &[&TaskId],
) -> Option<Joined> {
    let (answer, answered) = oneshot::channel();
    let ids = ids.iter().copied().cloned().collect();
    let asked = Asked { reader: *reader, service: service.clone(), ids, answer };
    if let Some(turn) = Turn::take(shared, asked) {
        shared.background.spawn(turn.run());
    }
    answered.await.ok()
}

/// The right to read for others, one statement after the other while somebody waits.
struct Turn {
    shared: Arc<Shared>,
    /// Given back already, together with the look that found nobody waiting.
    is_over: bool,
}

impl Turn {
    /// Puts `asked` into the queue, and gives a turn if there is a free one.
    fn take(shared: &Arc<Shared>, asked: Asked) -> Option<Self> {
        let mut waiting = shared.groups.lock();
        if waiting.asked.len() >= MANY {
            waiting.asked.retain(|asked| !asked.answer.is_closed());
        }
        waiting.asked.push_back(asked);
        (waiting.turns < TURNS).then(|| {
            waiting.turns += 1;
            Self { shared: Arc::clone(shared), is_over: false }
        })
    }

    async fn run(mut self) {
        while let Some(group) = self.next() {
            // What one statement does is not to hold up those who wait for the next.
            if AssertUnwindSafe(self.read(group)).catch_unwind().await.is_err() {
                self.shared.metrics.panics.inc();
                tracing::error!("a look-up in the task store panicked");
            }
        }
    }

    /// Those who wait, of one service and up to [`FIND_STEP`] ids; never empty.
    fn next(&mut self) -> Option<Vec<Asked>> {
        let mut waiting = self.shared.groups.lock();
        let (mut group, mut ids) = (Vec::<Asked>::new(), 0);
        while let Some(asked) = waiting.asked.pop_front_if(|asked| {
            asked.answer.is_closed()
                || (ids + asked.ids.len() <= FIND_STEP
                    && group.first().is_none_or(|first| first.service == asked.service))
        }) {
            // Withdrawn, if it is closed.
            if !asked.answer.is_closed() {
                ids += asked.ids.len();
                group.push(asked);
            }
        }
        if group.is_empty() {
            waiting.turns -= 1;
            self.is_over = true;
            return None;
        }
        Some(group)
    }

    /// One statement. Who gets no answer from it is told by the end of the channel.
    async fn read(&self, group: Vec<Asked>) {
        let Some(service) = group.first().map(|first| first.service.clone()) else { return };
        let wanted: Vec<Wanted<'_>> =
            group.iter().flat_map(|asked| asked.ids.iter().map(|id| (&asked.reader, id))).collect();
        let longest = if group.len() == 1 { LONGEST_TEXT } else { LONGEST_SHARED_TEXT };
        let reading = async {
            let (idle, pool) = {
                let mut waiting = self.shared.groups.lock();
                (waiting.idle.pop(), waiting.pool)
            };
            let mut conn = match idle {
                Some(conn) => conn,
                None => self.shared.readers().ok_or(sqlx::Error::PoolClosed)?.acquire().await?,
            };
            let joined = find_joined(&mut conn, &service, &wanted, longest).await?;
            // After anything but this the pool looks after the connection.
            self.keep(conn, pool);
            Ok(joined)
        };
        let joined = match tokio::time::timeout(LONGEST, reading).await {
            Ok(Ok(joined)) => joined,
            // Closed under our hands, by `close` or to set the file aside.
            Ok(Err(sqlx::Error::PoolClosed)) => return,
            Ok(Err(error)) => return self.shared.read_failed(&error),
            Err(_) => return,
        };
        hand_out(joined, group);
    }

    /// Keeps a connection for the next statement, if its pool is still the one in use.
    fn keep(&self, conn: PoolConnection<Sqlite>, pool: u64) {
        let mut waiting = self.shared.groups.lock();
        if waiting.pool == pool {
            waiting.idle.push(conn);
        }
    }
}

/// To each what it asked for.
fn hand_out(joined: Joined, group: Vec<Asked>) {
    let mut shares: Vec<Joined> = group.iter().map(|_| Vec::new()).collect();
    let places: Vec<(usize, usize)> = group
        .iter()
        .enumerate()
        .flat_map(|(share, asked)| (0..asked.ids.len()).map(move |index| (share, index)))
        .collect();
    for joined in joined {
        let (Ok(Found { index: at, .. }) | Err(at)) = joined;
        let (share, index) = places[at];
        shares[share].push(joined.map(|found| Found { index, ..found }).map_err(|_| index));
    }
    for (asked, share) in group.into_iter().zip(shares) {
        // Whoever left meanwhile needs none.
        let _ = asked.answer.send(share);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_over {
            self.shared.groups.lock().turns -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StoreConfig;
    use crate::store::Limits;

    fn shared() -> Arc<Shared> {
        let limits = Limits::from(&StoreConfig::default());
        Arc::new(Shared::new("unused".into(), limits, Arc::default(), [0; 32]))
    }

    fn ask(shared: &Arc<Shared>, service: &str, ids: usize) -> (Option<Turn>, oneshot::Receiver<Joined>) {
        let (answer, answered) = oneshot::channel();
        let ids = (0..ids).map(|n| TaskId::parse(&n.to_string()).unwrap()).collect();
        let service = Service::parse(service).unwrap();
        (Turn::take(shared, Asked { reader: Digest::from([1; 32]), service, ids, answer }), answered)
    }

    fn sizes(turn: &mut Turn) -> Option<Vec<usize>> {
        turn.next().map(|group| group.iter().map(|asked| asked.ids.len()).collect())
    }

    #[test]
    fn a_statement_is_for_one_service_and_for_so_many_ids_and_for_nobody_who_left() {
        let shared = shared();
        let (turn, _first) = ask(&shared, "one", 1);
        let mut turn = turn.expect("the first begins");
        let mut left: Vec<_> = (0..10).map(|_| ask(&shared, "one", 8).1).collect();
        let _other = ask(&shared, "other", 3);
        let _last = ask(&shared, "one", 2);
        left.truncate(9);
        assert_eq!(sizes(&mut turn), Some(vec![1, 8, 8, 8, 8, 8, 8, 8]));
        assert_eq!(sizes(&mut turn), Some(vec![8, 8]));
        assert_eq!(sizes(&mut turn), Some(vec![3]));
        assert_eq!(sizes(&mut turn), Some(vec![2]));
        assert_eq!(sizes(&mut turn), None);
    }

    #[test]
    fn turns_are_counted_however_they_end() {
        let shared = shared();
        let (turns, _answers): (Vec<_>, Vec<_>) = (0..5).map(|_| ask(&shared, "one", 1)).unzip();
        let mut turns: Vec<Turn> = turns.into_iter().flatten().collect();
        assert_eq!(turns.len(), TURNS);
        // Cut off.
        drop(turns.pop());
        let (again, _answer) = ask(&shared, "one", 1);
        turns.extend(again);
        assert_eq!(turns.len(), TURNS);
        // Nothing left to do.
        for turn in &mut turns {
            while turn.next().is_some() {}
        }
        drop(turns);
        assert_eq!(shared.groups.lock().turns, 0);
    }
}
