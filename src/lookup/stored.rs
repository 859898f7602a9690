//! Stored records of a lookup, once the upstream has accepted the token recently enough.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{LookupError, LookupRequest, LookupService};
use crate::auth::{AccessDecision, Recheck, RecheckResult};
use crate::batcher::{LookupFailure, LookupKind, LookupOptions, RecordSource, TaskOutcome};
use crate::store::{ResultTooLarge, StoredTask};
use crate::task::TaskId;

/// Longest time that hits wait for a recheck of their token.
const RECHECK_TIMEOUT: Duration = Duration::from_secs(5);

impl From<StoredTask> for TaskOutcome {
    fn from(StoredTask { record, stored_at }: StoredTask) -> Self {
        Self::Final { record, source: RecordSource::Store { stored_at } }
    }
}

impl LookupService {
    /// Returns the outcomes of the distinct ids, filled in as far as the caller may read stored
    /// records.
    ///
    /// # Errors
    /// [`LookupError::Failed`] if a recheck found that the upstream refuses the token,
    /// [`LookupError::TooLarge`] if the records exceed the limit.
    pub(super) async fn stored(
        &self,
        request: &LookupRequest<'_>,
    ) -> Result<Vec<Option<TaskOutcome>>, LookupError> {
        let LookupRequest { caller, service, ids, received_at, .. } = request;
        if self.auth.is_allowed(&caller.digest, *received_at)
            && let Some(outcomes) = self.store.get_cached(
                &caller.reader,
                &service.name,
                ids.distinct(),
                self.max_response_bytes,
                |task| Some(task.into()),
            )
        {
            return Ok(outcomes);
        }
        // Boxed, so that a hit in memory does not carry the size of this future.
        Box::pin(self.stored_after_recheck(request)).await
    }

    async fn stored_after_recheck(
        &self,
        request: &LookupRequest<'_>,
    ) -> Result<Vec<Option<TaskOutcome>>, LookupError> {
        let ids = request.ids.distinct();
        loop {
            let outcomes = self.read_stored(request).await?;
            if outcomes.iter().all(Option::is_none) {
                return Ok(outcomes);
            }
            match self.auth.decide(&request.caller.digest).await {
                AccessDecision::Allowed => return Ok(outcomes),
                AccessDecision::Refused => return Ok(vec![None; ids.len()]),
                AccessDecision::Wait(running) => match running.result().await {
                    // Without another decision, which would recheck again if `access.recheck_after`
                    // is zero.
                    Some(RecheckResult::Accepted | RecheckResult::Inconclusive) => {
                        return self.read_stored(request).await;
                    }
                    Some(RecheckResult::Refused) | None => {}
                },
                AccessDecision::Recheck(recheck) => {
                    // An id that is not stored, if there is one: its record is needed anyway.
                    let index = outcomes.iter().position(Option::is_none).unwrap_or(0);
                    match self.recheck(request, ids[index].clone(), recheck).await {
                        (RecheckResult::Refused, Some(failure)) => return Err(LookupError::Failed(failure)),
                        (RecheckResult::Refused, None) => {}
                        // Read again: the recheck may have stored a record.
                        _ => return self.read_stored(request).await,
                    }
                }
            }
        }
    }

    /// Looks `id` up in the upstream to recheck the token. Also returns the failure of that lookup,
    /// if it failed.
    async fn recheck(
        &self,
        request: &LookupRequest<'_>,
        id: TaskId,
        recheck: Recheck,
    ) -> (RecheckResult, Option<LookupFailure>) {
        let options = LookupOptions {
            max_age: Some(Duration::ZERO),
            client: request.caller.client,
            ..LookupOptions::new(LookupKind::Single)
        };
        let (batcher, (key, credentials)) = (self.batcher.clone(), self.queue_key_and_credentials(request));
        let (sender, result) = oneshot::channel();
        // A separate task: other callers of the token need the result even if this one disconnects.
        self.background.spawn("recheck", async move {
            let (since, ids) = (Instant::now(), [id]);
            let result = tokio::select! {
                result = batcher.look_up(key, &credentials, &ids, &options, vec![None]) => Some(result),
                () = recheck.inconclusive() => None,
                () = tokio::time::sleep(RECHECK_TIMEOUT) => None,
            };
            let failure = match result.and_then(|mut result| result.outcomes.pop().flatten()) {
                Some(TaskOutcome::Failed(failure)) => Some(failure),
                _ => None,
            };
            // Fails if the caller has left.
            let _ = sender.send((recheck.finish(since), failure));
        });
        // The task has panicked if it sent no result.
        result.await.unwrap_or((RecheckResult::Inconclusive, None))
    }

    async fn read_stored(
        &self,
        request: &LookupRequest<'_>,
    ) -> Result<Vec<Option<TaskOutcome>>, LookupError> {
        let LookupRequest { caller, service, ids, .. } = request;
        let tasks =
            self.store.get(&caller.reader, &service.name, ids.distinct(), self.max_response_bytes).await;
        let tasks = tasks.map_err(|ResultTooLarge| LookupError::TooLarge)?;
        Ok(tasks.into_iter().map(|task| task.map(TaskOutcome::from)).collect())
    }
}
