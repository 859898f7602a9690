//! The program as a separate process, for signals, exit codes and `kill -9`.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::TIMEOUT;

/// A running `refrain serve`; killed when it is dropped.
pub struct Program {
    child: Child,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Program {
    /// The binary under test, with an empty environment.
    pub fn command() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_refrain"));
        command.env_clear().stdin(Stdio::null());
        command
    }

    /// Starts `serve` on free ports and waits until it logs their addresses.
    pub fn serve(upstream: &str, folder: &Path, environment: &[(&str, &str)]) -> Self {
        let mut command = Self::command();
        command.arg("serve");
        Self::start(command, upstream, folder, environment)
    }

    /// Starts `serve` with a terminal as stderr.
    pub fn serve_on_terminal(upstream: &str, folder: &Path) -> Self {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&terminal).expect("granted");
        unlockpt(&terminal).expect("unlocked");
        let name = ptsname(&terminal, Vec::new()).expect("a name");
        let stderr = File::options().write(true).open(name.to_str().expect("UTF-8")).expect("opened");
        let mut command = Self::command();
        command.arg("serve").env("NO_COLOR", "1").stderr(stderr);
        Self::start_logging_to(command, Some(File::from(terminal)), upstream, folder, &[])
    }

    /// Starts a command that executes `serve`.
    pub fn start(mut command: Command, upstream: &str, folder: &Path, environment: &[(&str, &str)]) -> Self {
        command.stderr(Stdio::piped());
        Self::start_logging_to(command, None, upstream, folder, environment)
    }

    /// Starts a command whose log is read from `terminal`, else from its stderr.
    fn start_logging_to(
        mut command: Command,
        terminal: Option<File>,
        upstream: &str,
        folder: &Path,
        environment: &[(&str, &str)],
    ) -> Self {
        command
            .current_dir(folder)
            .env("REFRAIN_SERVER__LISTEN", "127.0.0.1:0")
            .env("REFRAIN_ADMIN__LISTEN", "127.0.0.1:0")
            .env("REFRAIN_UPSTREAM__BASE_URL", upstream)
            .env("REFRAIN_UPSTREAM__REQUESTS_PER_SECOND", "1000")
            .env("REFRAIN_UPSTREAM__BURST", "100")
            .envs(environment.iter().copied())
            .stdout(Stdio::null());
        let mut child = command.spawn().expect("the program starts");
        let log = Arc::new(Mutex::new(String::new()));
        drop(command);
        let stderr: Box<dyn std::io::Read + Send> = match terminal {
            Some(terminal) => Box::new(terminal),
            None => Box::new(child.stderr.take().expect("piped")),
        };
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            use std::io::BufRead;
            for line in std::io::BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = lines.lock().expect("no panic");
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut program =
            Self { child, address: ([0, 0, 0, 0], 0).into(), admin: ([0, 0, 0, 0], 0).into(), log };
        program.address = program.wait_for_address("client");
        program.admin = program.wait_for_address("dashboard");
        program
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no panic").clone()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, for example `TERM`.
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args(["-s", name, &self.id().to_string()]).status().expect("kill runs");
        assert!(status.success());
    }

    /// Waits for the process to end.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(start.elapsed() < TIMEOUT, "it does not end:\n{}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Waits for the first line of the log and returns the address in this field.
    fn wait_for_address(&mut self, field: &str) -> SocketAddr {
        let start = Instant::now();
        loop {
            let log = self.log();
            let found = log.lines().find(|line| line.contains(" is ready; ")).and_then(|line| {
                // `client=http://127.0.0.1:1` or `"client":"http://127.0.0.1:1"`
                let forms = [format!("{field}=http://"), format!("\"{field}\":\"http://")];
                let (_, rest) = forms.iter().find_map(|form| line.split_once(form))?;
                rest.split([' ', '"']).next()?.parse().ok()
            });
            if let Some(address) = found {
                return address;
            }
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none() && start.elapsed() < TIMEOUT, "it does not start: {ended:?}\n{log}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Variables that let the program listen on free ports.
pub const FREE_PORTS: [(&str, &str); 2] =
    [("REFRAIN_SERVER__LISTEN", "127.0.0.1:0"), ("REFRAIN_ADMIN__LISTEN", "127.0.0.1:0")];

/// Runs a command of the program to its end, in this folder.
pub fn run(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Program::command();
    command.current_dir(folder).args(arguments).envs(environment.iter().copied());
    command.output().expect("the program runs")
}

/// Asserts that a command failed with this exit code and one line on stderr that contains all these
/// words.
///
/// Returns the line.
pub fn assert_one_line_error(output: &Output, code: i32, words: &[&str]) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "one clear line: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

/// Runs `refrain health` against this program.
pub async fn health(program: &Program, folder: &Path) -> Output {
    let (admin, folder) = (program.admin.to_string(), folder.to_owned());
    tokio::task::spawn_blocking(move || run(&folder, &["health"], &[("REFRAIN_ADMIN__LISTEN", &admin)]))
        .await
        .expect("no panic")
}
