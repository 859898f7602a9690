//! The floor of `benches/compare.sh`: a bare hyper server that reads the request body and sends a
//! fixed response. No proxy with the same library can cost less.
//!
//! - `floor fixed FILE`: sends the file as response to every request: headers, an empty line, the
//!   body
//! - `floor upstream FILE`: a stub of the API without latency. Lookups receive the file with each
//!   `{id}` replaced, `/bytes/N` receives N bytes, anything else `{}`
//!
//! Prints its address in one line and serves until it is killed. HTTP/1.1, keep-alive,
//! `TCP_NODELAY`, runtime and allocator are the same as in refrain.

#![expect(clippy::print_stdout, reason = "the script reads the address from stdout")]

use std::convert::Infallible;
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    // `cargo bench` adds this flag.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [mode, file] = &arguments[..] else {
        println!("usage: floor fixed FILE, floor upstream FILE; benches/compare.sh runs it");
        return Ok(());
    };
    let text = std::fs::read(file).with_context(|| format!("read {file}"))?;
    let server = match mode.as_str() {
        "fixed" => Server::Fixed(fixed(&text)?),
        "upstream" => Server::Upstream(String::from_utf8(text).context("the record is not UTF-8")?),
        other => bail!("{other} is neither `fixed` nor `upstream`"),
    };
    tokio::runtime::Runtime::new().context("start the runtime")?.block_on(serve(Arc::new(server)))
}

async fn serve(server: Arc<Server>) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("listen")?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(connection(stream, server.clone()));
    }
}

async fn connection(stream: TcpStream, server: Arc<Server>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| respond(server.clone(), request));
    // A client may hang up.
    let _ =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
}

enum Server {
    Fixed(Response<Full<Bytes>>),
    Upstream(String),
}

async fn respond(
    server: Arc<Server>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    // hyper closes the connection after an incomplete body.
    let body =
        request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Ok(match &*server {
        Server::Fixed(response) => response.clone(),
        Server::Upstream(task) => json(upstream(task, &path, &body)),
    })
}

/// Parses headers, an empty line and the body. hyper adds `content-length` and `date`.
fn fixed(text: &[u8]) -> anyhow::Result<Response<Full<Bytes>>> {
    let end = text.windows(2).position(|two| two == b"\n\n").context("no empty line after the headers")?;
    let mut headers = HeaderMap::new();
    for line in std::str::from_utf8(&text[..end]).context("the headers are not UTF-8")?.lines() {
        let (name, value) = line.split_once(": ").with_context(|| format!("not a header: {line}"))?;
        let name: HeaderName = name.parse()?;
        if name != header::CONTENT_LENGTH && name != header::DATE {
            headers.append(name, value.parse()?);
        }
    }
    let mut response = Response::new(Full::from(text[end + 2..].to_vec()));
    *response.headers_mut() = headers;
    Ok(response)
}

/// The ids of a lookup.
#[derive(Deserialize)]
struct Lookup {
    #[serde(default)]
    id: String,
    #[serde(default)]
    ids: Vec<String>,
}

fn upstream(task: &str, path: &str, body: &[u8]) -> Bytes {
    if let Some(length) = path.strip_prefix("/bytes/").and_then(|length| length.parse().ok()) {
        return Bytes::from(vec![b'x'; length]);
    }
    match serde_json::from_slice(body) {
        Ok(Lookup { ids, .. }) if !ids.is_empty() => {
            let items: Vec<_> = ids.iter().map(|id| task.replace("{id}", id)).collect();
            format!(r#"{{"items":[{}],"count":{}}}"#, items.join(","), ids.len()).into()
        }
        Ok(Lookup { id, .. }) if !id.is_empty() => task.replace("{id}", &id).into(),
        _ => Bytes::from_static(b"{}"),
    }
}

fn json(body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // For nginx and Varnish. refrain decides by the record alone.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=86400"));
    response
}
