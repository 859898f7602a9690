//! The timer of one connection. hyper starts a sleep for each head it awaits and drops it when the head is there, which
//! with tokio's own sleep is two visits to the runtime's shared timer a request. Here all of a connection's sleeps are
//! one, which is moved only when it fires before its time.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// hyper's timer for one connection, which has at most one sleep at a time.
#[derive(Clone, Default)]
pub(super) struct ConnectionTimer {
    /// Made by the first sleep. Short sections only.
    entry: Arc<Mutex<Option<Pin<Box<tokio::time::Sleep>>>>>,
}

struct ConnectionSleep {
    timer: ConnectionTimer,
    deadline: Instant,
}

impl Timer for ConnectionTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(ConnectionSleep { timer: self.clone(), deadline })
    }

    fn now(&self) -> Instant {
        // The runtime's clock, which tests may have stopped.
        tokio::time::Instant::now().into_std()
    }
}

impl Sleep for ConnectionSleep {}

impl Future for ConnectionSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = tokio::time::Instant::from_std(self.deadline);
        let mut entry = self.timer.entry.lock().unwrap_or_else(PoisonError::into_inner);
        let sleep = entry.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            // It was set for an earlier head.
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_sleep_ends_at_its_own_time() {
        let (timer, start) = (ConnectionTimer::default(), tokio::time::Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        // Dropped unfinished, as hyper does with each head that comes in time.
        for seconds in [10, 11, 12] {
            let sleep = timer.sleep_until(at(seconds).into_std());
            assert!(tokio::time::timeout(Duration::from_secs(1), sleep).await.is_err());
        }
        for seconds in [40, 30, 50] {
            let deadline = at(seconds).max(tokio::time::Instant::now());
            timer.sleep_until(deadline.into_std()).await;
            assert_eq!(tokio::time::Instant::now(), deadline);
        }
    }
}
