//! Interface to the upstream, the store, the status of tokens and the learnt durations.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use crate::task::{Durations, FinalRecord, Service, TaskId};
use crate::token::Digest;
use crate::upstream::{Credentials, UpstreamError, UpstreamResponse};

/// Upstream, store, token status and learnt durations, as the batcher needs them.
pub trait Backend: Send + Sync + 'static {
    /// Point in the order of deletes and calls.
    type Epoch: Copy + Send + Sync;

    /// Returns the present epoch, which is taken before a call begins.
    fn epoch(&self) -> Self::Epoch;

    /// Sends one upstream call: `retrieve` for one id, `retrieve_batch` for more.
    fn look_up(
        &self,
        service: &Service,
        credentials: &Credentials,
        ids: &[TaskId],
    ) -> impl Future<Output = Result<UpstreamResponse, UpstreamError>> + Send;

    /// Stores final records before a client sees them. Returns for each record whether it is
    /// committed.
    fn insert(
        &self,
        key: &QueueKey,
        epoch: Self::Epoch,
        records: Vec<FinalRecord>,
    ) -> impl Future<Output = Vec<bool>> + Send;

    /// Reports the response to a lookup of a token, so that the token's access can be renewed or
    /// revoked.
    fn report_response(&self, key: &QueueKey, response: &UpstreamResponse);

    /// Learnt durations of tasks, to which the batcher adds those of new final records.
    fn durations(&self) -> &Arc<Durations>;
}

/// Key of a queue. Only lookups with the same key share calls (Isolation).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueueKey {
    /// Service of the tasks.
    pub service: Service,
    /// Digest of the token that is sent to the upstream.
    pub token: Digest,
    /// Forwarded client headers, by name and in order.
    pub forwarded: Vec<(HeaderName, HeaderValue)>,
}
