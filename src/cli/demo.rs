//! `refrain demo`: a simulated upstream, some tasks and the proxy in one process, to try without an account.

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

/// Any token will do for the simulated upstream.
const TOKEN: &str = "demo-token";

/// Long enough to paste a look-up before the first task is finished.
const TASK_DURATION: Duration = Duration::from_secs(60);

pub(super) fn config(options: &GlobalOptions) -> Result<LoadedConfig, CliError> {
    let client_listen = options.listen.clone().unwrap_or_else(|| free(8080));
    let admin_listen = options.admin_listen.clone().unwrap_or_else(|| {
        if client_listen.ends_with(":8081") { "127.0.0.1:0".to_owned() } else { free(8081) }
    });
    let own = |key, value| FlagValue { flag: "demo", key, value };
    let extra = [
        options.listen.is_none().then(|| own("server.listen", client_listen)),
        options.admin_listen.is_none().then(|| own("admin.listen", admin_listen)),
    ];
    let allowed = ["--listen", "--admin-listen", "--log-format", "--log-filter"];
    options.load_alone("demo", &allowed, extra.into_iter().flatten())
}

/// The usual port on loopback, or any where that one is taken.
fn free(port: u16) -> String {
    let usual = SocketAddr::from(([127, 0, 0, 1], port));
    match TcpListener::bind(usual) {
        Ok(_) => usual.to_string(),
        Err(_) => "127.0.0.1:0".to_owned(),
    }
}

pub(super) async fn demo(mut loaded: LoadedConfig) -> Result<(), CliError> {
    let shutdown = signals::shutdown_token()?;
    let folder = TemporaryFolder::create()?;
    let simulator = Simulator::start(SimulatorConfig {
        // So that lines pasted one after the other do not run into the limit: what passes through is not held back.
        burst: 5,
        task_duration: TASK_DURATION,
        max_recorded_bytes: 1 << 20,
        ..SimulatorConfig::default()
    })
    .await
    .context("start the simulated upstream")?;
    let config = &mut loaded.config;
    config.upstream.base_url = simulator.base_url().parse().context("the simulated upstream's address")?;
    config.store.url = format!("sqlite://{}", folder.0.join("refrain.db").display());
    loaded.set_by("demo", &["upstream.base_url", "store.url"]);

    let finished: Vec<String> = (0..3).map(|_| simulator.create_finished("producer", TOKEN)).collect();
    let pending: Vec<String> = (0..2).map(|_| simulator.create_task("producer", TOKEN)).collect();

    let store = loaded.config.store.url.clone();
    let Some(app) = serve::start(loaded, &shutdown).await? else { return Ok(()) };
    print(&explanation(&Scene {
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

/// What the explanation speaks of.
struct Scene {
    client: SocketAddr,
    admin: Option<SocketAddr>,
    upstream: String,
    store: String,
    finished: Vec<String>,
    pending: Vec<String>,
}

fn explanation(scene: &Scene) -> String {
    let Scene { client, admin, upstream, store, finished, pending } = scene;
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
            "Look up a finished task. It comes from upstream and is stored: x-cache: MISS.",
            post("tasks", "", &retrieve(&finished[0])),
        ),
        (
            "The same again: x-cache: HIT, and the upstream is not asked.",
            post("tasks", "", &retrieve(&finished[0])),
        ),
        (
            "Five tasks at once: stored ones from here, the others in one call upstream.",
            post("tasks", "", &batch),
        ),
        (
            "A task still in work, held for up to 30 s until it is finished (about 60 s after the start).",
            post("tasks", " -H 'prefer: wait=30'", &retrieve(&pending[0])),
        ),
        (
            "Start new work. It passes through untouched, once; the answer's task_id can be looked up as above.",
            post("audios", "", r#"{"action":"generate","prompt":"a song about patience","async":true}"#),
        ),
    ];
    if admin.is_some() {
        steps.push(("Is the proxy ready?", format!("    curl -si {admin_url}/readyz")));
    }
    let mut text = format!(
        "\nrefrain demo\n\n  proxy      http://{client}   apps point their base URL here\n  \
         admin      {admin_url}   the dashboard, for a browser; health and metrics\n  \
         upstream   {upstream}   simulated: one call a second, tasks take 60 s\n  \
         store      {store}   removed at the end\n\nTry, in another terminal:\n"
    );
    for (number, (what, command)) in (1..).zip(steps) {
        write!(text, "\n  {number}. {what}\n\n{command}\n").expect("a String takes all");
    }
    text.push_str("\nCtrl-C ends it.\n\n");
    text
}

/// A folder of our own that goes away with the demo.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn create() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("refrain-demo-{}", uuid::Uuid::new_v4()));
        // Fails where the name exists, so nobody can have laid it out for us.
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "remove the demo's folder");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_one_line_to_paste() {
        let scene = Scene {
            client: "127.0.0.1:8080".parse().unwrap(),
            admin: None,
            upstream: "http://127.0.0.1:9".to_owned(),
            store: "sqlite:///tmp/x/refrain.db".to_owned(),
            finished: vec!["a".to_owned(), "b".to_owned()],
            pending: vec!["c".to_owned()],
        };
        let text = explanation(&scene);
        let commands: Vec<_> = text.lines().filter(|line| line.trim_start().starts_with("curl ")).collect();
        assert_eq!(commands.len(), 5, "{text}");
        assert!(commands.iter().all(|line| line.matches('\'').count() % 2 == 0), "{text}");
        assert!(commands[2].contains(r#"{"action":"retrieve_batch","ids":["a","b","c"]}"#), "{text}");
        assert!(!text.contains("readyz"), "{text}");
        let with_admin = explanation(&Scene { admin: Some("127.0.0.1:8081".parse().unwrap()), ..scene });
        assert!(with_admin.contains("curl -si http://127.0.0.1:8081/readyz"), "{with_admin}");
    }
}
