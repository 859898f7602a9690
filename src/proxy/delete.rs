//! Forwarding of deletes. A confirmed delete also deletes the stored task.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request};
use serde::Deserialize;

use super::ClientPort;
use super::passthrough::{ForwardedResponse, forward_buffered};
use crate::api_error::ApiError;
use crate::auth::Caller;
use crate::task::{Service, TaskId};
use crate::upstream;

/// Longest response to a delete that is examined, in bytes.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// Request to delete a task.
pub(super) struct DeleteRequest<'a> {
    pub(super) caller: &'a Caller,
    pub(super) service: Service,
    pub(super) id: TaskId,
    /// Body as the client sent it.
    pub(super) body: Bytes,
}

/// Forwards a delete. If the upstream confirms it, the task is deleted here before the client gets
/// the response.
pub(super) async fn forward_delete(
    port: &ClientPort,
    parts: Parts,
    delete: DeleteRequest<'_>,
) -> Result<Response, ApiError> {
    let DeleteRequest { caller, service, id, body } = delete;
    let team_token = port.charge(Some(caller));
    let request = Request::from_parts(parts, Body::from(body));
    match forward_buffered(&port.passthrough, request, team_token, MAX_RESPONSE_BYTES).await? {
        ForwardedResponse::Streaming(response) => Ok(response),
        ForwardedResponse::Buffered(response) => {
            let parts = &response.parts;
            if parts.status.is_success() && is_confirmed(&parts.headers, &response.body, &id) {
                delete_stored(port, caller, service, id).await;
            }
            Ok(response.into_response())
        }
    }
}

/// Deletes the stored task in a separate task, which ends even if the client disconnects.
async fn delete_stored(port: &ClientPort, caller: &Caller, service: Service, id: TaskId) {
    let (lookups, caller) = (Arc::clone(&port.lookups), caller.clone());
    let deletion = tokio::spawn(async move {
        if let Err(error) = lookups.delete(&caller, &service, &id).await {
            tracing::error!(%error, "cannot delete a stored task; it is hidden until the delete succeeds");
        }
    });
    if deletion.await.is_err() {
        tracing::error!("the delete of a stored task panicked");
    }
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
