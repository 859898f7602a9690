//! Tests of connections: TLS, HTTP/2 and outgoing proxies, for both clients.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::upstream::connect::{OutgoingProxy, tls_config};

/// Certificate for `localhost`, used only by these tests.
const CERTIFICATE: &[u8] = include_bytes!("certificate.der");
const KEY: &[u8] = include_bytes!("key.der");

/// Returns a TLS configuration that trusts [`CERTIFICATE`].
fn trusting() -> rustls::ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(CERTIFICATE)).unwrap();
    tls_config(roots).unwrap()
}

/// Responds with a description of the request.
async fn describe(request: Request<Incoming>) -> Result<Response<Full<bytes::Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let host = parts.headers.get("host").map_or("none", |host| host.to_str().unwrap());
    if parts.uri.path() == "/te" {
        let values = |name| {
            parts.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>()
        };
        let lines = ["te", "connection"].map(|name| (name, values(name).join(" ")));
        let lines = lines.iter().filter(|(_, values)| !values.is_empty());
        let description = lines.map(|(name, values)| format!("{name}: {values}")).collect::<Vec<_>>();
        return Ok(Response::new(Full::from(description.join("; "))));
    }
    let description = format!("{:?} {} {host} {}", parts.version, parts.uri, String::from_utf8_lossy(&body));
    Ok(Response::new(Full::from(description)))
}

/// Serves [`describe`] over TLS on a connection.
async fn serve_tls(stream: TcpStream, protocol: &'static str) {
    let key = PrivateKeyDer::try_from(KEY).unwrap();
    let mut config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(CERTIFICATE)], key)
            .unwrap();
    config.alpn_protocols = vec![protocol.into()];
    let Ok(stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await else { return };
    let io = TokioIo::new(stream);
    let _ = if protocol == "h2" {
        http2::Builder::new(TokioExecutor::new()).serve_connection(io, service_fn(describe)).await
    } else {
        http1::Builder::new().serve_connection(io, service_fn(describe)).await
    };
}

fn https(address: SocketAddr) -> UpstreamConfig {
    UpstreamConfig {
        base_url: format!("https://localhost:{}", address.port()).parse().unwrap(),
        ..config(address)
    }
}

/// Sends a lookup and a passed-through request, and returns the response bodies.
async fn both_responses(clients: &(UpstreamClient, Passthrough)) -> [String; 2] {
    let lookup = soon(clients.0.look_up(&producer(), &credentials(), &ids(&["a"]))).await.unwrap();
    let request = Request::post("//x/%2f?y").body(Body::from("hi")).unwrap();
    let passthrough = soon(clients.1.send(request)).await.unwrap().into_body().collect().await.unwrap();
    [lookup.body.into(), passthrough.to_bytes().into()].map(|body: Vec<u8>| String::from_utf8(body).unwrap())
}

#[tokio::test]
async fn tls_supports_http1_and_http2() {
    for protocol in ["http/1.1", "h2"] {
        let (listener, address) = listen().await;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_tls(stream, protocol));
            }
        });
        let clients = build(&https(address), trusting(), None).unwrap();
        let authority = format!("localhost:{}", address.port());
        let [lookup_body, passthrough_body] = both_responses(&clients).await;
        if protocol == "h2" {
            let origin = format!("https://{authority}");
            assert_eq!(
                lookup_body,
                format!("HTTP/2.0 {origin}/producer/tasks none {{\"action\":\"retrieve\",\"id\":\"a\"}}")
            );
            assert_eq!(passthrough_body, format!("HTTP/2.0 {origin}//x/%2f?y none hi"));
        } else {
            assert_eq!(passthrough_body, format!("HTTP/1.1 //x/%2f?y {authority} hi"));
        }
        // An untrusted certificate prevents the connection.
        let strict = build(&https(address), tls_config(RootCertStore::empty()).unwrap(), None).unwrap();
        let error = soon(strict.0.look_up(&producer(), &credentials(), &ids(&["a"]))).await.unwrap_err();
        assert_eq!(error, UpstreamError::Unreachable(Unreachable::Tls));
        let request = Request::get("/").body(Body::empty()).unwrap();
        let error = soon(strict.1.send(request)).await.unwrap_err();
        assert_eq!(error, UpstreamError::Unreachable(Unreachable::Tls));
    }
}

#[tokio::test]
async fn te_trailers_reaches_an_http1_and_an_http2_upstream() {
    for protocol in ["http/1.1", "h2"] {
        let (listener, address) = listen().await;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_tls(stream, protocol));
            }
        });
        let (_, passthrough) = build(&https(address), trusting(), None).unwrap();
        let request = Request::post("/te").header("te", "trailers").header("connection", "te");
        let response = soon(passthrough.send(request.body(Body::empty()).unwrap())).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let expected =
            if protocol == "h2" { "te: trailers" } else { "te: trailers; connection: keep-alive te" };
        assert_eq!(body, expected);
    }
}

#[tokio::test]
async fn slow_readers_do_not_stall_others_on_an_http2_connection() {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_tls(stream, "h2"));
        }
    });
    let (_, passthrough) = build(&https(address), trusting(), None).unwrap();
    let mut unread = Vec::new();
    // More than the 5 MB that hyper reads ahead on a connection by default. The responses are as
    // large as the requests.
    for _ in 0..32 {
        let request = Request::post("/x").body(Body::from(vec![b'x'; 1 << 20])).unwrap();
        unread.push(soon(passthrough.send(request)).await.unwrap());
    }
    let request = Request::post("/x").body(Body::from(vec![b'x'; 100_000])).unwrap();
    let response = soon(passthrough.send(request)).await.unwrap().into_body();
    assert!(soon(response.collect()).await.unwrap().to_bytes().len() > 100_000);
}

#[tokio::test]
async fn response_has_the_time_of_its_new_connection() {
    const SLOW: Duration = Duration::from_millis(150);
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // A delay before the handshake, as on a slow network.
                tokio::time::sleep(SLOW).await;
                serve_tls(stream, "http/1.1").await;
            });
        }
    });
    let (client, _) = build(&https(address), trusting(), None).unwrap();
    let first = client.look_up(&producer(), &credentials(), &ids(&["a"])).await.unwrap();
    assert!(first.connect_time >= SLOW, "{:?}", first.connect_time);
    let second = client.look_up(&producer(), &credentials(), &ids(&["a"])).await.unwrap();
    assert_eq!(second.connect_time, Duration::ZERO);
}

/// Returns an outgoing proxy at `address`.
fn through(address: SocketAddr) -> Option<OutgoingProxy> {
    Some(OutgoingProxy {
        uri: format!("http://{address}/").parse().unwrap(),
        authorization: Some(HeaderValue::from_static("Basic eA==")),
    })
}

#[tokio::test]
async fn https_upstream_is_reached_through_a_proxy_tunnel() {
    let (proxy, address) = listen().await;
    let mut upstream = https(address);
    upstream.base_url = "https://localhost:9443".parse().unwrap();
    let clients = Arc::new(build(&upstream, trusting(), through(address)).unwrap());
    let calls = {
        let clients = clients.clone();
        tokio::spawn(async move { both_responses(&clients).await })
    };
    for _ in 0..2 {
        let mut peer = RawPeer::accept(&proxy).await;
        let head = peer.read_head().await;
        assert!(head.starts_with("CONNECT localhost:9443 HTTP/1.1\r\n"), "{head}");
        assert_eq!(head.header("proxy-authorization"), Some("Basic eA=="));
        assert!(!head.contains("canary"));
        peer.write("HTTP/1.1 200 OK\r\n\r\n").await;
        tokio::spawn(serve_tls(peer.into_stream(), "http/1.1"));
    }
    let [lookup_body, passthrough_body] = soon(calls).await.unwrap();
    assert!(lookup_body.starts_with("HTTP/1.1 /producer/tasks localhost:9443 "), "{lookup_body}");
    assert_eq!(passthrough_body, "HTTP/1.1 //x/%2f?y localhost:9443 hi");

    // The proxy refuses the tunnel.
    let calls = tokio::spawn(async move {
        let request = Request::get("/").header("connection", "close").body(Body::empty()).unwrap();
        build(&upstream, trusting(), through(address)).unwrap().1.send(request).await.map(drop)
    });
    let mut peer = RawPeer::accept(&proxy).await;
    peer.read_head().await;
    peer.write("HTTP/1.1 403 Forbidden\r\n\r\n").await;
    assert_eq!(soon(calls).await.unwrap().unwrap_err(), UpstreamError::Unreachable(Unreachable::Proxy));
}

#[tokio::test]
async fn http_proxy_receives_the_whole_url() {
    let (proxy, address) = listen().await;
    let mut upstream = config(address);
    upstream.base_url = "http://upstream.example".parse().unwrap();
    let clients = Arc::new(build(&upstream, trusting(), through(address)).unwrap());
    let calls = {
        let clients = clients.clone();
        tokio::spawn(async move {
            let lookup_body = clients.0.look_up(&producer(), &credentials(), &ids(&["a"])).await.map(drop);
            let request = Request::get("//x?y").body(Body::empty()).unwrap();
            (lookup_body, clients.1.send(request).await.map(drop))
        })
    };
    let mut peer = RawPeer::accept(&proxy).await;
    let head = peer.read_head().await;
    assert!(head.starts_with("POST http://upstream.example/producer/tasks HTTP/1.1\r\n"), "{head}");
    assert_eq!(head.header("proxy-authorization"), Some("Basic eA=="));
    peer.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let mut peer = RawPeer::accept(&proxy).await;
    let head = peer.read_head().await;
    assert!(head.starts_with("GET http://upstream.example//x?y HTTP/1.1\r\n"), "{head}");
    assert_eq!(head.header("proxy-authorization"), Some("Basic eA=="));
    assert_eq!(head.header("host"), Some("upstream.example"));
    // The proxy requires credentials of refrain, not of the client.
    peer.write("HTTP/1.1 407 X\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n").await;
    let (lookup, passthrough) = soon(calls).await.unwrap();
    assert_eq!(lookup, Ok(()));
    assert_eq!(passthrough, Err(UpstreamError::Unreachable(Unreachable::Proxy)));
}

#[test]
fn invalid_base_url_is_refused() {
    for url in ["/x", "ftp://x", "x:80"] {
        let config = UpstreamConfig { base_url: url.parse().unwrap(), ..UpstreamConfig::default() };
        assert!(matches!(super::super::build_clients(&config), Err(UpstreamSetupError::BaseUrl)), "{url}");
    }
}
