//! What the store has for a caller, once the upstream's word on the token is recent enough.

use std::time::Duration;

use tokio::time::Instant;

use super::{LookupRequest, LookupService, ResponseContent};
use crate::auth::{AccessDecision, RecheckResult};
use crate::batcher::{LookupKind, LookupOptions, TaskOutcome};
use crate::store::{ResultTooLarge, StoredTask};
use crate::task::TaskId;

/// How long hits wait for the upstream's word on their token.
const RECHECK_PATIENCE: Duration = Duration::from_secs(5);

impl LookupService {
    /// What may be shown of `ids`, in their order.
    ///
    /// # Errors
    /// The answer in place of what was found: the upstream's refusal of the token, or that it would be too long.
    pub(super) async fn stored(
        &self,
        question: &LookupRequest<'_>,
        ids: &[TaskId],
    ) -> Result<Vec<Option<StoredTask>>, ResponseContent> {
        let (caller, service) = (question.caller, question.service);
        if self.access.is_allowed(&caller.digest, question.at)
            && let Some(found) = self.store.get_cached(&caller.reader, service, ids, self.max_response_bytes)
        {
            return Ok(found);
        }
        // In a box, for its size: nothing of it is on the way of a hit in memory.
        Box::pin(self.stored_and_allowed(question, ids)).await
    }

    async fn stored_and_allowed(
        &self,
        question: &LookupRequest<'_>,
        ids: &[TaskId],
    ) -> Result<Vec<Option<StoredTask>>, ResponseContent> {
        loop {
            let known = self.find(question, ids).await?;
            if !known.iter().any(Option::is_some) {
                return Ok(known);
            }
            let digest = question.caller.digest;
            match self.access.decide(&digest).await {
                AccessDecision::Allowed => return Ok(known),
                AccessDecision::Refused => return Ok(vec![None; ids.len()]),
                AccessDecision::Wait(mut done) => {
                    // An error only says that the one who asked is done. What that brought is in the gate.
                    let _ = done.changed().await;
                }
                AccessDecision::Recheck(recheck) => {
                    // The first id that is not stored, so that the call serves the look-up too.
                    let lacking = known.iter().position(Option::is_none);
                    let id = [ids[lacking.unwrap_or(0)].clone()];
                    let options = LookupOptions {
                        max_age: Some(Duration::ZERO),
                        ..LookupOptions::new(LookupKind::Single)
                    };
                    // A task of its own: whoever asked may hang up, the token's other callers still want the verdict.
                    let (batcher, (queue, credentials)) = (self.batcher.clone(), self.queue(question));
                    let asking = tokio::spawn(async move {
                        let since = Instant::now();
                        let answer = tokio::select! {
                            answer = batcher.look_up(queue, &credentials, &id, &options, vec![None]) => Some(answer),
                            () = recheck.inconclusive() => None,
                            () = tokio::time::sleep(RECHECK_PATIENCE) => None,
                        };
                        (recheck.finish(since), answer)
                    });
                    let (verdict, answer) = asking.await.unwrap_or((RecheckResult::Inconclusive, None));
                    match answer.and_then(|answer| answer.outcomes.into_iter().next().flatten()) {
                        Some(TaskOutcome::Failed(failure)) if verdict == RecheckResult::Refused => {
                            return Err(ResponseContent::Failed(failure));
                        }
                        _ if verdict == RecheckResult::Refused => {}
                        // Hits go on, from the store as it is now: the call may have added to it.
                        _ => return self.find(question, ids).await,
                    }
                }
            }
        }
    }

    async fn find(
        &self,
        question: &LookupRequest<'_>,
        ids: &[TaskId],
    ) -> Result<Vec<Option<StoredTask>>, ResponseContent> {
        let (reader, service) = (&question.caller.reader, question.service);
        let found = self.store.get(reader, service, ids, self.max_response_bytes).await;
        found.map_err(|ResultTooLarge| ResponseContent::TooLarge)
    }
}
