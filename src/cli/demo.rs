//! `refrain demo`: a simulated upstream and the proxy in one process. Needs no account.
//!
//! First a comparison: the same clients call the upstream directly and through refrain. Then commands
//! to try.
//!
//! - `plan`: tasks of the comparison; `crowd`: clients; `comparison`: both crowds and their figures
//! - `screen`: the figures on the terminal

mod comparison;
mod crowd;
mod plan;
mod screen;

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use super::options::GlobalOptions;
use super::{CliError, serve, signals};
use crate::config::{FlagValue, LoadedConfig};
use refrain_simulator::{Simulator, SimulatorConfig};
use screen::Screen;

/// Token of the commands to try. The simulated upstream accepts any token.
const TOKEN: &str = "demo-token";

/// Duration of the tasks to try. `prefer: wait` may last as long.
const TASK_DURATION: Duration = Duration::from_secs(60);

/// Log filter without `--log-filter`. Each request of the crowd would be a line.
const LOG_FILTER: &str = "warn";

pub(super) fn config(options: &GlobalOptions) -> Result<LoadedConfig, CliError> {
    let client_listen = options.listen.clone().unwrap_or_else(|| free_address(8080));
    let admin_listen = options.admin_listen.clone().unwrap_or_else(|| {
        if client_listen.ends_with(":8081") { "127.0.0.1:0".to_owned() } else { free_address(8081) }
    });
    let set = |key, value| FlagValue { flag: "demo", key, value };
    let extra = [
        options.listen.is_none().then(|| set("server.listen", client_listen)),
        options.admin_listen.is_none().then(|| set("admin.listen", admin_listen)),
        options.log_filter.is_none().then(|| set("log.filter", LOG_FILTER.to_owned())),
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

/// Compares for `length`, prints commands to try, and serves until a signal.
pub(super) async fn demo(
    mut loaded: LoadedConfig,
    length: Duration,
    with_colour: bool,
) -> Result<(), CliError> {
    let shutdown = signals::shutdown_token()?;
    let directory = TemporaryDirectory::create()?;
    let simulator = Simulator::start(SimulatorConfig {
        task_duration: TASK_DURATION,
        max_recorded_bytes: 1 << 20,
        ..SimulatorConfig::default()
    })
    .await
    .context("cannot start the simulated upstream")?;
    let mut screen = Screen::new(loaded.config.log.filter != LOG_FILTER, with_colour);
    let config = &mut loaded.config;
    config.upstream.base_url = simulator.base_url().parse().context("address of the simulated upstream")?;
    config.store.url = format!("sqlite://{}", directory.0.join("refrain.db").display());
    loaded.set_by("demo", &["upstream.base_url", "store.url"]);

    let store = loaded.config.store.url.clone();
    let Some(app) = serve::start(None, loaded, &shutdown).await? else { return Ok(()) };
    let addresses = DemoAddresses {
        client: app.client_address(),
        admin: app.admin_address(),
        upstream: simulator.base_url(),
        store,
    };
    let shown = app.comparison();
    let presentation = async {
        screen.print(&addresses.introduction());
        if !length.is_zero() {
            let proxy_url = format!("http://{}", addresses.client);
            comparison::compare(&simulator, proxy_url, length, &shown, &mut screen).await;
        }
        let finished = [(); 2].map(|()| simulator.create_finished("producer", TOKEN));
        let pending = simulator.create_task("producer", TOKEN);
        screen.print(&addresses.commands(&finished, &pending));
    };
    let running = app.run(shutdown.clone());
    tokio::pin!(running);
    tokio::select! {
        result = &mut running => return Ok(result?),
        () = shutdown.cancelled() => {}
        () = presentation => {}
    }
    running.await?;
    Ok(())
}

/// The addresses of a running demo.
struct DemoAddresses {
    client: SocketAddr,
    admin: Option<SocketAddr>,
    upstream: String,
    store: String,
}

impl DemoAddresses {
    fn introduction(&self) -> String {
        let Self { client, upstream, store, .. } = self;
        let admin = self.admin_url().unwrap_or_else(|| "off".to_owned());
        format!(
            "\nrefrain demo\n\n  proxy      http://{client}   apps point their base URL here\n  \
             dashboard  {admin}\n  \
             upstream   {upstream}   simulated: one call a second for each token\n  \
             store      {store}\n             removed when the demo stops\n\n"
        )
    }

    fn admin_url(&self) -> Option<String> {
        self.admin.map(|admin| format!("http://{admin}"))
    }

    /// Returns commands to try with these tasks.
    fn commands(&self, finished: &[String], pending: &str) -> String {
        let post = |options: &str, path: &str, header: &str, body: &str| {
            format!(
                "curl {options} http://{}/producer/{path} -H 'authorization: Bearer {TOKEN}' \\\n      \
                 -H 'content-type: application/json'{header} \\\n      -d '{body}'",
                self.client
            )
        };
        // Status and headers, without the body.
        let head = "-so /dev/null -D -";
        let retrieve = |id: &str| format!(r#"{{"action":"retrieve","id":"{id}"}}"#);
        let ids: Vec<String> = finished.iter().map(|id| format!("\"{id}\"")).collect();
        let batch = format!(r#"{{"action":"retrieve_batch","ids":[{}]}}"#, ids.join(","));
        let create = r#"{"action":"generate","prompt":"a song about patience","async":true}"#;
        let steps = [
            (
                "Create a task. The request passes through unchanged, x-cache: BYPASS.",
                post(r"-siw '\n'", "audios", "", create),
            ),
            (
                "Look up a finished task. The proxy fetches and stores it, x-cache: MISS.",
                post(head, "tasks", "", &retrieve(&finished[0])),
            ),
            (
                "The same again, from the store, x-cache: HIT.",
                post(head, "tasks", "", &retrieve(&finished[0])),
            ),
            ("Two tasks at once, one of them stored, x-cache: PARTIAL.", post(head, "tasks", "", &batch)),
            (
                "Wait for a task that finishes a minute after these lines were printed.",
                post("-s -D -", "tasks", " -H 'prefer: wait=60'", &retrieve(pending))
                    + " \\\n      | grep -oiE '^(HTTP|x-cache).*|\"(finished_at|elapsed)\":[0-9.]+'",
            ),
        ];
        let mut text = "Try in another terminal:\n".to_owned();
        for (number, (title, command)) in (1..).zip(steps) {
            write!(text, "\n  {number}. {title}\n\n    {command}\n")
                .expect("writing to a String cannot fail");
        }
        let dashboard = self.admin_url().map_or_else(String::new, |url| format!("The dashboard is {url}\n"));
        text + "\n" + &dashboard + "Press Ctrl-C to stop.\n\n"
    }
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
    fn commands_are_complete_lines_of_shell() {
        let mut addresses = DemoAddresses {
            client: "127.0.0.1:8080".parse().unwrap(),
            admin: None,
            upstream: "http://127.0.0.1:9".to_owned(),
            store: "sqlite:///tmp/x/refrain.db".to_owned(),
        };
        let text = addresses.commands(&["a".to_owned(), "b".to_owned()], "c");
        let joined = text.replace("\\\n", " ");
        let commands: Vec<_> = joined.lines().filter(|line| line.trim_start().starts_with("curl ")).collect();
        assert_eq!(commands.len(), 5, "{text}");
        assert!(commands.iter().all(|line| line.matches('\'').count() % 2 == 0), "{text}");
        assert!(commands[3].contains(r#"{"action":"retrieve_batch","ids":["a","b"]}"#), "{text}");
        assert!(commands[4].contains("prefer: wait=60") && commands[4].contains(r#""id":"c""#), "{text}");
        assert!(!text.contains("dashboard"), "{text}");
        addresses.admin = Some("127.0.0.1:8081".parse().unwrap());
        assert!(addresses.commands(&["a".to_owned()], "c").contains("http://127.0.0.1:8081"));
    }
}
