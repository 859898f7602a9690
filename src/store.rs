//! stub
#![allow(missing_docs, clippy::all)]
use crate::task::*;
use bytes::Bytes;
#[derive(Clone, Debug)]
pub struct Store;
#[derive(Clone, Copy, Debug)]
pub struct Epoch;
#[derive(Clone, Debug)]
pub struct StoredTask {
    pub text: Bytes,
    pub stored_at: i64,
}
#[derive(Clone, Debug)]
pub struct Acceptance {
    pub accepted_at: i64,
    pub ended: bool,
}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct StoreError;
pub enum Forget {
    Confirmed { reader: Digest, service: Service, id: TaskId },
}
impl Store {
    pub fn digest_key(&self) -> &[u8; 32] {
        &[0; 32]
    }
    pub fn epoch(&self) -> Epoch {
        Epoch
    }
    pub async fn acceptance(&self, _: &Digest) -> Option<Acceptance> {
        None
    }
    pub fn record_acceptance(&self, _: Digest, _: Acceptance) {}
    pub async fn find(&self, _: &Digest, _: &Service, _: &[TaskId]) -> Vec<Option<StoredTask>> {
        vec![]
    }
    pub fn find_in_memory(&self, _: &Digest, _: &Service, _: &TaskId) -> Option<StoredTask> {
        None
    }
    pub async fn keep(&self, _: &Digest, _: &Service, _: Epoch, _: Vec<FinishedTask>) -> Vec<bool> {
        vec![]
    }
    pub async fn forget(&self, _: Forget) -> Result<u64, StoreError> {
        Ok(0)
    }
}
