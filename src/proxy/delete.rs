//! Forwarding of deletes. A confirmed delete also deletes the stored task.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request};
use serde::Deserialize;
use tokio::sync::{Semaphore, oneshot};

use super::ClientPort;
use super::error;
use super::passthrough::{ForwardedResponse, forward_buffered};
use crate::api_error::ApiError;
use crate::auth::Caller;
use crate::lifecycle::{Shutdown, Supervisor};
use crate::task::{Service, TaskId};
use crate::upstream;

/// Longest response to a delete that is examined, in bytes.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Time limit for the rest of a delete after its client has left.
const ABANDONED_TIMEOUT: Duration = Duration::from_secs(60);

/// Most deletes whose clients have left. A further one ends with its client.
const MAX_ABANDONED: usize = 1024;

/// Request to delete a task.
pub(super) struct DeleteRequest<'a> {
    pub(super) caller: &'a Caller,
    pub(super) service: Service,
    pub(super) id: TaskId,
    /// Body as the client sent it.
    pub(super) body: Bytes,
}

/// Background tasks that forward deletes. They go on when their client leaves: the upstream may have
/// deleted the task, so the response has to be examined.
pub(super) struct DeleteTasks {
    supervisor: Supervisor,
    shutdown: Shutdown,
    /// One permit for each delete whose client has left.
    abandoned: Arc<Semaphore>,
}

impl DeleteTasks {
    pub(super) fn new(supervisor: Supervisor, shutdown: Shutdown) -> Self {
        Self { supervisor, shutdown, abandoned: Arc::new(Semaphore::new(MAX_ABANDONED)) }
    }

    /// Completes `forwarding` in a background task. Returns `None` if it panicked.
    ///
    /// If the future is dropped, the task goes on for at most [`ABANDONED_TIMEOUT`].
    async fn run<T: Send + 'static>(
        &self,
        forwarding: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (mut sender, result) = oneshot::channel();
        let (shutdown, abandoned) = (self.shutdown.clone(), Arc::clone(&self.abandoned));
        let task = async move {
            let mut forwarding = pin!(forwarding);
            let result = tokio::select! {
                result = &mut forwarding => Some(result),
                () = sender.closed() => match abandoned.try_acquire() {
                    Ok(_permit) => tokio::time::timeout(ABANDONED_TIMEOUT, forwarding).await.ok(),
                    Err(_) => None,
                },
            };
            match result {
                // Fails if the client has left.
                Some(result) => drop(sender.send(result)),
                None => tracing::warn!(
                    "the client of a delete left, and its response did not arrive in time; \
                     if the upstream deleted the task, it is still stored here"
                ),
            }
        };
        self.supervisor.spawn("delete", async move {
            shutdown.until_abort(task).await;
        });
        result.await.ok()
    }
}

/// Forwards a delete. If the upstream confirms it, the task is deleted here before the client gets
/// the response.
pub(super) async fn forward_delete(
    port: &ClientPort,
    parts: Parts,
    delete: DeleteRequest<'_>,
) -> Result<Response, ApiError> {
    let DeleteRequest { caller, service, id, body } = delete;
    let team_token = port.charge(Some(caller)).cloned();
    let request = Request::from_parts(parts, Body::from(body));
    let (passthrough, lookups, caller) =
        (port.passthrough.clone(), Arc::clone(&port.lookups), caller.clone());
    let forwarding = async move {
        match forward_buffered(&passthrough, request, team_token.as_ref(), MAX_RESPONSE_BYTES).await? {
            ForwardedResponse::Streaming(response) => Ok(response),
            ForwardedResponse::Buffered(response) => {
                let parts = &response.parts;
                if parts.status.is_success()
                    && is_confirmed(&parts.headers, &response.body, &id)
                    && let Err(error) = lookups.delete(&caller, &service, &id).await
                {
                    tracing::error!(%error, "cannot delete a stored task; it is hidden until the delete succeeds");
                }
                Ok(response.into_response())
            }
        }
    };
    let result = port.deletes.run(forwarding).await;
    result.unwrap_or_else(|| Err(error::panicked(port.passthrough.host())))
}

/// Whether a response is `{"id":…,"deleted":true}` with this id. Other members are ignored,
/// repeated ones make it invalid. A body in an unknown content coding counts as a confirmation:
/// when in doubt, a task that may be deleted is not served.
fn is_confirmed(headers: &HeaderMap, body: &[u8], id: &TaskId) -> bool {
    let Ok(body) = upstream::decode_body(headers, body, MAX_RESPONSE_BYTES) else { return true };
    // serde would also accept an array of the members.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return false;
    }
    #[derive(Deserialize)]
    struct Confirmation {
        id: String,
        deleted: bool,
    }
    serde_json::from_slice::<Confirmation>(&body)
        .is_ok_and(|response| response.deleted && response.id == id.as_str())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn delete_counts_only_if_the_response_confirms_it() {
        let id = TaskId::parse("a").unwrap();
        for (body, expected) in [
            (r#"{"id":"a","deleted":true}"#, true),
            (r#"{"deleted":true,"id":"\u0061","more":1}"#, true),
            (r#"{"id":"a","deleted":false}"#, false),
            (r#"{"id":"b","deleted":true}"#, false),
            (r#"{"id":"a","deleted":"true"}"#, false),
            (r#"{"id":"a","deleted":true,"deleted":true}"#, false),
            (r#"{"deleted":true}"#, false),
            (r#"["a",true]"#, false),
            ("", false),
        ] {
            assert_eq!(is_confirmed(&HeaderMap::new(), body.as_bytes(), &id), expected, "{body}");
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            std::io::Write::write_all(&mut encoder, body.as_bytes()).unwrap();
            let mut headers = HeaderMap::new();
            headers.insert("content-encoding", HeaderValue::from_static("gzip"));
            assert_eq!(is_confirmed(&headers, &encoder.finish().unwrap(), &id), expected, "gzip {body}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("content-encoding", HeaderValue::from_static("br"));
        assert!(is_confirmed(&headers, b"?", &id));
    }
}
