//! The floor of `benches/compare.sh`: what a bare hyper server costs that reads a request's body whole and answers
//! fixed bytes with fixed header fields. No proxy can cost less on the same library.
//!
//! - `floor answer FILE`: every request gets the file: header fields, an empty line, the body, byte for byte
//! - `floor upstream FILE`: a stub of the API without any wait. Look-ups get the file as the task's text with each `{id}`
//!   in it replaced, `/bytes/N` gets N bytes, anything else `{}`
//!
//! Prints its address in one line and serves until it is killed. Connections are set up as refrain sets up its own:
//! HTTP/1.1, keep-alive, no delay, the same runtime; the allocator is the same too.

#![expect(clippy::print_stdout, reason = "its address is told there")]

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
    // `cargo bench` adds a flag of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [mode, file] = &arguments[..] else {
        println!("floor answer FILE, floor upstream FILE; benches/compare.sh runs it");
        return Ok(());
    };
    let text = std::fs::read(file).with_context(|| format!("read {file}"))?;
    let server = match mode.as_str() {
        "answer" => Server::Answer(fixed(&text)?),
        "upstream" => Server::Upstream(String::from_utf8(text).context("the task is no UTF-8")?),
        other => bail!("{other} is neither answer nor upstream"),
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
    let service = service_fn(move |request| answer(server.clone(), request));
    // The client that leaves is no error worth a word.
    let _ =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
}

enum Server {
    Answer(Response<Full<Bytes>>),
    Upstream(String),
}

async fn answer(
    server: Arc<Server>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    // A body that breaks off ends its connection anyhow.
    let body =
        request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Ok(match &*server {
        Server::Answer(response) => response.clone(),
        Server::Upstream(task) => json(upstream(task, &path, &body)),
    })
}

/// Header fields, an empty line, the body. What hyper sets itself is left to it.
fn fixed(text: &[u8]) -> anyhow::Result<Response<Full<Bytes>>> {
    let end =
        text.windows(2).position(|two| two == b"\n\n").context("no empty line after the header fields")?;
    let mut headers = HeaderMap::new();
    for line in std::str::from_utf8(&text[..end]).context("the header is no UTF-8")?.lines() {
        let (name, value) = line.split_once(": ").with_context(|| format!("no header field: {line}"))?;
        let name: HeaderName = name.parse()?;
        if name != header::CONTENT_LENGTH && name != header::DATE {
            headers.append(name, value.parse()?);
        }
    }
    let mut response = Response::new(Full::from(text[end + 2..].to_vec()));
    *response.headers_mut() = headers;
    Ok(response)
}

/// What a look-up asks for.
#[derive(Deserialize)]
struct Asked {
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
        Ok(Asked { ids, .. }) if !ids.is_empty() => {
            let items: Vec<_> = ids.iter().map(|id| task.replace("{id}", id)).collect();
            format!(r#"{{"items":[{}],"count":{}}}"#, items.join(","), ids.len()).into()
        }
        Ok(Asked { id, .. }) if !id.is_empty() => task.replace("{id}", &id).into(),
        _ => Bytes::from_static(b"{}"),
    }
}

fn json(body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // nginx and Varnish store by it; refrain goes by the text alone.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=86400"));
    response
}
