//! Forwarding of requests that are not lookups.
//!
//! A request is sent once, byte for byte, streaming in both directions. Only hop-by-hop headers are
//! changed, and the response is not interpreted, except the confirmation of a delete.

mod body;
mod headers;
#[cfg(test)]
mod tests;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Version, header, response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use hyper::body::Incoming;

pub(super) use body::with_prefix;
use body::{ErrorTap, PrefixedBody, UnknownLengthBody};

use super::error::{self, FailedCall};
use crate::api_error::ApiError;
use crate::token::Token;
use crate::upstream::Passthrough;

/// Forwards a request and returns the upstream's response as it arrives. `authorization` replaces
/// the client's own, in `shared` mode.
///
/// # Errors
/// There is no valid response, or the client's body failed.
///
/// Cancel safe: dropping this future or the body of the response ends the upstream call.
pub(super) async fn forward(
    passthrough: &Passthrough,
    request: Request<Body>,
    authorization: Option<&Token>,
) -> Result<Response, ApiError> {
    let (mut parts, body) = request.into_parts();
    let is_head = parts.method == Method::HEAD;
    parts.headers = headers::for_upstream(&parts, body.size_hint().exact(), authorization);
    let (body, client_error) = ErrorTap::over(body);
    match passthrough.send(Request::from_parts(parts, body)).await {
        Ok(response) => Ok(relay(response, is_head)),
        Err(error) => Err(match client_error.get() {
            // The upstream call failed because the client's body did.
            Some(error) => error::cut_off((*error).into(), passthrough.host()),
            None => error::upstream_error(error, passthrough.host(), FailedCall::Forwarded),
        }),
    }
}

fn relay(response: Response<Incoming>, is_head: bool) -> Response {
    let (mut parts, body) = response.into_parts();
    parts.headers = headers::for_client(&parts.headers);
    // That of the client's connection, not of the upstream's.
    parts.version = Version::HTTP_11;
    let body = if is_head && !parts.headers.contains_key(header::CONTENT_LENGTH) {
        Body::new(UnknownLengthBody)
    } else {
        Body::new(body)
    };
    Response::from_parts(parts, body)
}

/// Response that was read completely if it is small.
#[derive(Debug)]
pub(super) enum ForwardedResponse {
    /// Complete response within the limit.
    Buffered(BufferedResponse),
    /// Response that exceeds the limit or breaks off. It can only be forwarded.
    Streaming(Response),
}

/// Complete response.
#[derive(Debug)]
pub(super) struct BufferedResponse {
    /// Status and headers for the client.
    pub(super) parts: response::Parts,
    /// Complete body.
    pub(super) body: Bytes,
    /// Trailers of a chunked response.
    trailers: Option<HeaderMap>,
}

impl BufferedResponse {
    /// Returns the response for the client.
    pub(super) fn into_response(self) -> Response {
        let Self { parts, body, trailers } = self;
        let body = match trailers {
            None => Body::from(body),
            Some(trailers) => {
                let trailers = Some(Ok(Frame::trailers(trailers)));
                Body::new(PrefixedBody::new(body, trailers, Body::empty()))
            }
        };
        Response::from_parts(parts, body)
    }
}

/// Forwards a request like [`forward`], but reads a response body of up to `limit` bytes
/// completely, so that the caller can act on it before the client sees it.
pub(super) async fn forward_buffered(
    passthrough: &Passthrough,
    request: Request<Body>,
    authorization: Option<&Token>,
    limit: usize,
) -> Result<ForwardedResponse, ApiError> {
    let is_head = request.method() == Method::HEAD;
    let response = forward(passthrough, request, authorization).await?;
    if is_head || response.body().size_hint().lower() > limit as u64 {
        return Ok(ForwardedResponse::Streaming(response));
    }
    let (parts, mut body) = response.into_parts();
    let (mut read, mut trailers) = (BytesMut::new(), None);
    let error = loop {
        match body.frame().await {
            None => {
                let body = read.freeze();
                return Ok(ForwardedResponse::Buffered(BufferedResponse { parts, body, trailers }));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    read.extend_from_slice(&data);
                    if read.len() > limit {
                        break None;
                    }
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
            Some(Err(error)) => break Some(Err(error)),
        }
    };
    let body = Body::new(PrefixedBody::new(read.freeze(), error, body));
    Ok(ForwardedResponse::Streaming(Response::from_parts(parts, body)))
}
