//! Everything that is not a look-up: forwarded once, byte for byte, streaming both ways; nothing is learnt from the
//! answer, and none of it is ours to edit but the fields of this one hop.
//!
//! Soundness of the request is `soundness`'s business, who may send it `access`'s.

mod body;
mod headers;
#[cfg(test)]
mod tests;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Version, header, response};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use hyper::body::Incoming;

pub use body::with_prefix;
use body::{ErrorTap, PrefixedBody, Unsized};

use crate::api_error::ApiError;
use crate::token::Token;
use crate::upstream::Passthrough;

/// What passed through, for `cache-status` (RFC 9211).
const BYPASS: HeaderValue = HeaderValue::from_static("refrain; fwd=bypass");

/// Sends a request to the upstream and hands its answer on as it comes. `authorization` takes the place of the
/// client's own, in `shared` mode.
///
/// Safe to drop: the upstream call ends with this future, or with the body of the answer.
pub async fn forward(
    passthrough: &Passthrough,
    request: Request<Body>,
    authorization: Option<&Token>,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let is_head = parts.method == Method::HEAD;
    parts.headers = headers::for_upstream(&parts, body.size_hint().exact(), authorization);
    let (body, watch) = ErrorTap::over(body);
    match passthrough.send(Request::from_parts(parts, body)).await {
        Ok(response) => relay(response, is_head),
        Err(error) => match watch.failure() {
            // The client's fault shows up as the upstream call's.
            Some(failure) => ApiError::from(failure).into_response(),
            None => ApiError::from(error).into_response(),
        },
    }
}

fn relay(response: Response<Incoming>, is_head: bool) -> Response {
    let (mut parts, body) = response.into_parts();
    parts.headers = headers::for_client(&parts.headers);
    parts.headers.append("cache-status", BYPASS);
    // The version of the upstream's connection, not of the client's.
    parts.version = Version::HTTP_11;
    let body = if is_head && !parts.headers.contains_key(header::CONTENT_LENGTH) {
        Body::new(Unsized)
    } else {
        Body::new(body)
    };
    Response::from_parts(parts, body)
}

/// An answer that was read to its end, as far as it is not too large.
#[derive(Debug)]
pub enum Relayed {
    /// Small and whole: [`Buffered::into_response`] hands it on.
    Whole(Buffered),
    /// Larger than the limit, broken, or with trailers: to be handed on, not understood.
    Stream(Response),
}

/// A whole answer.
#[derive(Debug)]
pub struct Buffered {
    /// Status and fields as the client shall get them.
    pub parts: response::Parts,
    /// The body.
    pub body: Bytes,
}

impl Buffered {
    /// The answer for the client, byte for byte.
    pub fn into_response(self) -> Response {
        Response::from_parts(self.parts, Body::from(self.body))
    }
}

/// As [`forward`], but reads an answer of up to `limit` bytes whole, so that the caller can learn from it before
/// the client sees it.
pub async fn forward_whole(
    passthrough: &Passthrough,
    request: Request<Body>,
    authorization: Option<&Token>,
    limit: usize,
) -> Relayed {
    let is_head = request.method() == Method::HEAD;
    let response = forward(passthrough, request, authorization).await;
    if is_head || response.body().size_hint().lower() > limit as u64 {
        return Relayed::Stream(response);
    }
    let (parts, mut body) = response.into_parts();
    let mut read = BytesMut::new();
    let last = loop {
        match body.frame().await {
            None => return Relayed::Whole(Buffered { parts, body: read.freeze() }),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    read.extend_from_slice(&data);
                    if read.len() > limit {
                        break None;
                    }
                }
                Err(frame) => break Some(Ok(frame)),
            },
            Some(Err(error)) => break Some(Err(error)),
        }
    };
    let body = Body::new(PrefixedBody::new(read.freeze(), last, body));
    Relayed::Stream(Response::from_parts(parts, body))
}
