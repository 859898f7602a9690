//! The files of the dashboard on the admin port: headers, revalidation, no data.

use std::path::Path;

use http::header::{ETAG, HOST, IF_NONE_MATCH};
use http::{Method, StatusCode};
use refrain::token::Token;
use sha2::{Digest, Sha256};

use crate::support::{Reply, TestApp, assert_error};

const SECRET: &str = "the-admin-token";

/// Quoted texts after `before`, for example `src="assets/…"` in the page or `from "./…"` in a
/// script.
fn references<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

fn text(reply: &Reply) -> &str {
    std::str::from_utf8(&reply.body).expect("text")
}

/// Paths of the page and of all files it needs, found as a browser finds them.
async fn files(app: &TestApp) -> Vec<String> {
    let shell = app.admin("/").await;
    let mut paths: Vec<String> = vec!["/".into()];
    for prefix in ["href=\"assets/", "src=\"assets/"] {
        paths.extend(references(text(&shell), prefix).iter().map(|path| format!("/assets/{path}")));
    }
    let mut place = 0;
    while place < paths.len() {
        let reply = app.admin(&paths[place]).await;
        for path in references(text(&reply), "from \"./") {
            let path = format!("/assets/{path}");
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        place += 1;
    }
    paths
}

#[tokio::test]
async fn every_dashboard_file_is_served_with_a_strict_policy() {
    let app = TestApp::spawn().await;
    let files = files(&app).await;
    assert!(files.len() >= 19, "{files:?}");
    for path in files {
        let reply = app.admin(&path).await;
        assert_eq!(reply.status, StatusCode::OK, "{path}");
        let policy = reply.header("content-security-policy");
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.split("; ").any(|one| one == rule), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{path}: {policy}");
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(reply.header("referrer-policy"), "no-referrer", "{path}");
        assert_eq!(reply.header("cross-origin-opener-policy"), "same-origin", "{path}");
        assert_eq!(reply.header("cache-control"), "no-cache", "{path}");
        let content_type = match Path::new(&path).extension().and_then(|extension| extension.to_str()) {
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("svg") => "image/svg+xml",
            None if path == "/" => "text/html; charset=utf-8",
            _ => "text/plain; charset=utf-8",
        };
        assert_eq!(reply.header("content-type"), content_type, "{path}");
    }
}

#[tokio::test]
async fn unchanged_file_is_not_sent_again() {
    let app = TestApp::spawn().await;
    for path in ["/", "/assets/dashboard.js"] {
        let whole = app.admin(path).await;
        let tag = whole.headers[ETAG].clone();
        let send = |tags: String| {
            let request = app.http.get(format!("http://{}{path}", app.admin)).header(IF_NONE_MATCH, tags);
            app.send(request)
        };
        let tag = tag.to_str().unwrap();
        for tags in [tag.to_owned(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            let reply = send(tags.clone()).await;
            assert_eq!((reply.status, reply.body.len()), (StatusCode::NOT_MODIFIED, 0), "{path} {tags}");
            assert_eq!(reply.headers[ETAG], tag);
            assert_eq!(reply.header("content-security-policy"), whole.header("content-security-policy"));
        }
        let other = send("\"other\"".to_owned()).await;
        assert_eq!((other.status, other.body), (StatusCode::OK, whole.body));
    }
}

#[tokio::test]
async fn dashboard_files_need_no_token_and_have_no_data() {
    let app = TestApp::spawn_with(|config| config.admin.token = Token::parse(SECRET)).await;
    let id = app.upstream.create_finished("producer", "t");
    app.retrieve("t", &id).await;
    let fresh = TestApp::spawn().await;
    for path in files(&app).await {
        let (reply, before) = (app.admin(&path).await, fresh.admin(&path).await);
        assert_eq!(reply.status, StatusCode::OK, "{path}");
        assert_eq!(reply.body, before.body, "{path} is the same whatever is stored");
        assert!(!text(&reply).contains(SECRET) && !text(&reply).contains(&id), "{path}");
        for name in ["set-cookie", "www-authenticate"] {
            assert!(!reply.headers.contains_key(name), "{path}: {name}");
        }
    }
    assert_error(&app.admin("/metrics").await, 401, "invalid_token");
}

#[tokio::test]
async fn page_has_no_inline_script_or_style_and_names_no_other_host() {
    let app = TestApp::spawn().await;
    let reply = app.admin("/").await;
    let shell = text(&reply);
    for word in ["<style", " style=", "javascript:", "://", " onclick=", " onload="] {
        assert!(!shell.contains(word), "{word}");
    }
    for tag in shell.split("<script").skip(1) {
        let (attributes, rest) = tag.split_once('>').expect("a complete tag");
        assert!(attributes.contains("src=\"assets/") && rest.starts_with("</script>"), "{tag:.80}");
    }
    for path in files(&app).await.iter().filter(|path| path.ends_with(".js") && !path.contains("vendor")) {
        let reply = app.admin(path).await;
        for word in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "://"]
        {
            assert!(!text(&reply).contains(word), "{path}: {word}");
        }
    }
}

#[tokio::test]
async fn dashboard_without_a_token_accepts_only_loopback_hosts() {
    let app = TestApp::spawn().await;
    for path in ["/", "/assets/dashboard.js"] {
        for (host, status) in
            [("localhost", 200), ("[::1]:8081", 200), ("evil.example", 403), ("127.0.0.1.evil.example", 403)]
        {
            let request = app.http.get(format!("http://{}{path}", app.admin)).header(HOST, host);
            assert_eq!(app.send(request).await.status.as_u16(), status, "{path} at {host}");
        }
    }
}

#[tokio::test]
async fn unknown_asset_is_not_found() {
    let app = TestApp::spawn().await;
    for path in [
        "/assets",
        "/assets/",
        "/assets/none.js",
        "/assets/index.html",
        "/assets/../dashboard.rs",
        "/assets/%2e%2e/dashboard.rs",
        "/assets/vendor",
        "/assets//dashboard.js",
        "/assets/dashboard%2ejs",
        "/assets/%ff",
    ] {
        assert_eq!(app.admin(path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
    let posted = app.http.request(Method::POST, format!("http://{}/", app.admin));
    assert_eq!(app.send(posted).await.status, StatusCode::METHOD_NOT_ALLOWED);
    // On the client port the path is forwarded to the upstream.
    let client = app.send(app.http.get(app.url("/assets/dashboard.js"))).await;
    assert_eq!(client.header("cache-status"), "refrain; fwd=bypass");
}

#[tokio::test]
async fn chart_library_is_unmodified_and_has_its_licence() {
    let app = TestApp::spawn().await;
    let readme = include_str!("../../dashboard/vendor/README.md");
    for file in ["uplot-1.6.31/uPlot.iife.min.js", "uplot-1.6.31/uPlot.min.css"] {
        let reply = app.admin(&format!("/assets/vendor/{file}")).await;
        let digest: String = Sha256::digest(&reply.body).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(readme.contains(&format!("{digest}  {file}")), "{file} is {digest}");
    }
    let licence = app.admin("/assets/vendor/uplot-1.6.31/LICENSE").await;
    assert!(text(&licence).contains("The MIT License") && text(&licence).contains("Leon Sorokin"));
}
