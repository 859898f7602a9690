//! `refrain demo`: a simulated upstream with some tasks, and the proxy, in one process. Needs no
//! account.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use super::options::GlobalOptions;
use super::{CliError, print, serve, signals};
use crate::config::{FlagValue, LoadedConfig};
use refrain_simulator::{Simulator, SimulatorConfig};

/// The simulated upstream accepts any token.
const TOKEN: &str = "demo-token";

/// Leaves time to paste a lookup before the first task is finished.
const TASK_DURATION: Duration = Duration::from_secs(60);

pub(super) fn config(options: &GlobalOptions) -> Result<LoadedConfig, CliError> {
    let client_listen = options.listen.clone().unwrap_or_else(|| free_address(8080));
    let admin_listen = options.admin_listen.clone().unwrap_or_else(|| {
        if client_listen.ends_with(":8081") { "127.0.0.1:0".to_owned() } else { free_address(8081) }
    });
    let set = |key, value| FlagValue { flag: "demo", key, value };
    let extra = [
        options.listen.is_none().then(|| set("server.listen", client_listen)),
        options.admin_listen.is_none().then(|| set("admin.listen", admin_listen)),
    ];
    let allowed = ["--listen", "--admin-listen", "--log-format", "--log-filter"];
    options.load_flags_only("demo", &allowed, extra.into_iter().flatten())
}

/// Returns the loopback address with this port, or with any free port if it is taken.
fn free_address(port: u16) -> String {
    let usual = SocketAddr::from(([127, 0, 0, 1], port));
    match TcpListener::bind(usual) {
        Ok(_) => usual.to_string(),
        Err(_) => "127.0.0.1:0".to_owned(),
    }
}

pub(super) async fn demo(mut loaded: LoadedConfig) -> Result<(), CliError> {
    let shutdown = signals::shutdown_token()?;
    let directory = TemporaryDirectory::create()?;
    let simulator = Simulator::start(SimulatorConfig {
        // Pasted lines that follow each other quickly stay below the limit: passed-through requests
        // do not wait.
        burst: 5,
        task_duration: TASK_DURATION,
        max_recorded_bytes: 1 << 20,
        ..SimulatorConfig::default()
    })
    .await
    .context("cannot start the simulated upstream")?;
    let config = &mut loaded.config;
    config.upstream.base_url = simulator.base_url().parse().context("address of the simulated upstream")?;
    config.store.url = format!("sqlite://{}", directory.0.join("refrain.db").display());
    loaded.set_by("demo", &["upstream.base_url", "store.url"]);

    let finished: Vec<String> = (0..3).map(|_| simulator.create_finished("producer", TOKEN)).collect();
    let pending: Vec<String> = (0..2).map(|_| simulator.create_task("producer", TOKEN)).collect();

    let store = loaded.config.store.url.clone();
    let Some(app) = serve::start(loaded, &shutdown).await? else { return Ok(()) };
    print(&explanation(&DemoSetup {
        client: app.client_address(),
        admin: app.admin_address(),
        upstream: simulator.base_url(),
        store,
        finished,
        pending,
    }));
    app.run(shutdown).await?;
    Ok(())
}

/// The addresses and tasks of a running demo.
struct DemoSetup {
    client: SocketAddr,
    admin: Option<SocketAddr>,
    upstream: String,
    store: String,
    finished: Vec<String>,
    pending: Vec<String>,
}

fn explanation(setup: &DemoSetup) -> String {
    let DemoSetup { client, admin, upstream, store, finished, pending } = setup;
    let admin_url = admin.map_or_else(|| "off".to_owned(), |admin| format!("http://{admin}"));
    let post = |path: &str, extra: &str, body: &str| {
        format!(
            "    curl -si http://{client}/producer/{path} -H 'authorization: Bearer {TOKEN}' \
             -H 'content-type: application/json'{extra} -d '{body}'"
        )
    };
    let retrieve = |id: &str| format!(r#"{{"action":"retrieve","id":"{id}"}}"#);
    let ids: Vec<String> = finished.iter().chain(pending).map(|id| format!("\"{id}\"")).collect();
    let batch = format!(r#"{{"action":"retrieve_batch","ids":[{}]}}"#, ids.join(","));
    let mut steps = vec![
        (
            "Look up a finished task. The proxy fetches it from the upstream and stores it: x-cache: MISS.",
            post("tasks", "", &retrieve(&finished[0])),
        ),
        (
            "The same again. The response comes from the store, without an upstream call: x-cache: HIT.",
            post("tasks", "", &retrieve(&finished[0])),
        ),
        (
            "Look up five tasks at once: one from the store, the others in one upstream call.",
            post("tasks", "", &batch),
        ),
        (
            "Wait up to 30 s for a pending task (finished about 60 s after the start).",
            post("tasks", " -H 'prefer: wait=30'", &retrieve(&pending[0])),
        ),
        (
            "Create a task. The request passes through unchanged; look up the task_id of the response as above.",
            post("audios", "", r#"{"action":"generate","prompt":"a song about patience","async":true}"#),
        ),
    ];
    if admin.is_some() {
        steps.push(("Check whether the proxy is ready.", format!("    curl -si {admin_url}/readyz")));
    }
    let mut text = format!(
        "\nrefrain demo\n\n  proxy      http://{client}   apps point their base URL here\n  \
         admin      {admin_url}   dashboard, health and metrics\n  \
         upstream   {upstream}   simulated: one call a second, tasks take 60 s\n  \
         store      {store}   removed when the demo stops\n\nTry in another terminal:\n"
    );
    for (number, (title, command)) in (1..).zip(steps) {
        write!(text, "\n  {number}. {title}\n\n{command}\n").expect("writing to a String cannot fail");
    }
    text.push_str("\nPress Ctrl-C to stop.\n\n");
    text
}

/// A temporary directory, removed on drop.
struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    fn create() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("refrain-demo-{}", uuid::Uuid::new_v4()));
        // Fails if the name exists, so another user cannot have prepared the directory.
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove the directory of the demo");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_one_line_of_shell() {
        let setup = DemoSetup {
            client: "127.0.0.1:8080".parse().unwrap(),
            admin: None,
            upstream: "http://127.0.0.1:9".to_owned(),
            store: "sqlite:///tmp/x/refrain.db".to_owned(),
            finished: vec!["a".to_owned(), "b".to_owned()],
            pending: vec!["c".to_owned()],
        };
        let text = explanation(&setup);
        let commands: Vec<_> = text.lines().filter(|line| line.trim_start().starts_with("curl ")).collect();
        assert_eq!(commands.len(), 5, "{text}");
        assert!(commands.iter().all(|line| line.matches('\'').count() % 2 == 0), "{text}");
        assert!(commands[2].contains(r#"{"action":"retrieve_batch","ids":["a","b","c"]}"#), "{text}");
        assert!(!text.contains("readyz"), "{text}");
        let with_admin = explanation(&DemoSetup { admin: Some("127.0.0.1:8081".parse().unwrap()), ..setup });
        assert!(with_admin.contains("curl -si http://127.0.0.1:8081/readyz"), "{with_admin}");
    }
}
