//! Connection of the batcher to the upstream, the store and the status of tokens.

use std::sync::Arc;

use crate::auth::Auth;
use crate::batcher::{Backend, QueueKey};
use crate::store::{DeleteEpoch, Store};
use crate::task::{Durations, FinalRecord, Service, TaskId};
use crate::upstream::{Credentials, UpstreamClient, UpstreamError, UpstreamResponse};

/// The parts of the proxy that the batcher calls.
pub struct ProxyBackend {
    /// Client for upstream lookups.
    pub upstream: UpstreamClient,
    /// Store for final records.
    pub store: Store,
    /// Receiver of the responses to tokens.
    pub auth: Arc<Auth>,
    /// Learnt durations of tasks.
    pub durations: Arc<Durations>,
}

impl Backend for ProxyBackend {
    type Epoch = DeleteEpoch;

    fn epoch(&self) -> DeleteEpoch {
        self.store.epoch()
    }

    async fn look_up(
        &self,
        service: &Service,
        credentials: &Credentials,
        ids: &[TaskId],
    ) -> Result<UpstreamResponse, UpstreamError> {
        self.upstream.look_up(service, credentials, ids).await
    }

    async fn insert(&self, key: &QueueKey, epoch: DeleteEpoch, records: Vec<FinalRecord>) -> Vec<bool> {
        self.store.insert(&self.auth.reader(&key.token), &key.service, epoch, records).await
    }

    fn report_response(&self, key: &QueueKey, response: &UpstreamResponse) {
        self.auth.record_response(&key.token, response.status.as_u16(), &response.body);
    }

    fn durations(&self) -> &Arc<Durations> {
        &self.durations
    }
}
