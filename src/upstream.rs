//! stub
use crate::task::Token;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
#[derive(Clone, Debug)]
pub struct Credentials {
    pub token: Token,
    pub forwarded: Vec<(HeaderName, HeaderValue)>,
}
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamAnswer {
    pub status: StatusCode,
    pub content_type: Option<HeaderValue>,
    pub retry_after: Option<HeaderValue>,
    pub body: Bytes,
}
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("x")]
    Refused,
    #[error("t")]
    Timeout,
    #[error("i")]
    Interrupted,
    #[error("b")]
    TooLarge,
}
impl UpstreamError {
    pub fn was_reached(&self) -> bool {
        !matches!(self, Self::Refused)
    }
    pub fn kind(&self) -> &'static str {
        "x"
    }
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout)
    }
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::TooLarge)
    }
}
#[derive(Debug)]
pub struct UpstreamClient;
impl UpstreamClient {
    pub async fn look_up(
        &self,
        _: &crate::task::Service,
        _: &Credentials,
        _: &[crate::task::TaskId],
    ) -> Result<UpstreamAnswer, UpstreamError> {
        unreachable!()
    }
}
