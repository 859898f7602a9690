//! An HTTP client of the proxy.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

/// A complete response.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    /// Reads a response to its end. An incomplete one is an error.
    pub async fn read(response: reqwest::Response) -> reqwest::Result<Self> {
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Self { status, headers, body: response.bytes().await? })
    }

    /// Value of a header, empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("visible ASCII"))
    }

    pub fn x_cache(&self) -> &str {
        self.header("x-cache")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    /// `error.code` of the body.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// A client of a proxy that may be killed: every request returns a `Result`.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    pub http: reqwest::Client,
}

/// Builds a client with its own connections.
pub fn client(address: SocketAddr) -> Client {
    Client { address, http: http_client() }
}

/// Builds an HTTP client that retries nothing and follows no redirects.
pub fn http_client() -> reqwest::Client {
    // An error means that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .retry(reqwest::retry::never())
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(60))
        .build()
        .expect("a client")
}

impl Client {
    /// Sends a `retrieve`. An incomplete response is an error.
    pub async fn retrieve(&self, token: &str, id: &str) -> reqwest::Result<Reply> {
        self.look_up(token, serde_json::json!({"action": "retrieve", "id": id}).to_string(), &[]).await
    }

    /// Sends a `retrieve_batch`.
    pub async fn batch(&self, token: &str, ids: &[String]) -> reqwest::Result<Reply> {
        self.look_up(token, serde_json::json!({"action": "retrieve_batch", "ids": ids}).to_string(), &[])
            .await
    }

    /// Sends any body with more headers.
    pub async fn look_up(
        &self,
        token: &str,
        body: impl Into<reqwest::Body>,
        headers: &[(&str, &str)],
    ) -> reqwest::Result<Reply> {
        let mut request = self
            .http
            .post(format!("http://{}/producer/tasks", self.address))
            .bearer_auth(token)
            .header("content-type", "application/json")
            .body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Reply::read(request.send().await?).await
    }
}
