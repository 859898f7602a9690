//! Response to one call: sends the rule's response or that of the task API.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::sleep;

use super::api::{self, Outcome, Route, StreamFormat};
use super::calls::{BodyRecorder, RecordedCall};
use super::connection::{Connection, RequestBody};
use super::locked;
use super::response::{CHUNKED_LINE, LAST_CHUNK, Response, chunk, gzip_bomb, length_line};
use super::rules::{Delivery, Reply, Rule};
use super::state::SharedState;
use super::task_json::Phase;
use super::tasks::JobStatus;

/// State of the connection after a call.
pub(super) enum ConnectionEnd {
    KeepAlive,
    Close,
    Reset,
}

/// Call that is being responded to.
pub(super) struct Responder<'a> {
    pub(super) state: &'a SharedState,
    pub(super) connection: &'a mut Connection,
    pub(super) call: &'a RecordedCall,
    pub(super) rule: Option<&'a Rule>,
    /// Whether the client allows the connection to stay open.
    pub(super) keep_alive: bool,
    /// Rest of the request body, with its recorder.
    pub(super) body: &'a mut RequestBody,
    pub(super) recorder: &'a mut BodyRecorder,
}

impl Responder<'_> {
    /// Sends the response. `admission` is the result of [`api::admit`].
    pub(super) async fn run(&mut self, admission: Result<Route, Response>) -> io::Result<ConnectionEnd> {
        let Some(rule) = self.rule else { return self.default(admission).await };
        if let Some(gate) = &rule.gate {
            self.connection.unless_closed(gate.pass()).await?;
        }
        if let Some(delay) = rule.delay {
            self.pause(delay).await?;
        }
        match &rule.reply {
            Reply::Default => self.default(admission).await,
            Reply::Error { status, code } => self.send(self.state.error(*status, code)).await,
            Reply::Body { status, content_type, body } => {
                self.send(Response::new(*status, content_type, body.clone())).await
            }
            Reply::GzipBomb { length } => {
                let response = Response::json(gzip_bomb(*length)).header("content-encoding", "gzip");
                self.send(response).await
            }
            Reply::Echo => self.send(self.echo()).await,
            Reply::Mirror => self.mirror().await,
            Reply::Large { length } => self.large(*length).await,
            Reply::Stream { content_type, pieces, interval, endless } => {
                self.stream(content_type, pieces, *interval, *endless).await
            }
            Reply::Raw { bytes, keep_open } => {
                self.connection.write(bytes).await?;
                if *keep_open {
                    self.connection.closed().await;
                }
                Ok(ConnectionEnd::Close)
            }
            Reply::Reset => Ok(ConnectionEnd::Reset),
            Reply::Close => Ok(ConnectionEnd::Close),
            Reply::BlackHole => self.silence().await,
        }
    }

    /// Sends the response of the task API.
    async fn default(&mut self, admission: Result<Route, Response>) -> io::Result<ConnectionEnd> {
        let outcome = match admission {
            Ok(route) => api::perform(self.state, self.call, &route),
            Err(refusal) => Outcome::Response(refusal),
        };
        match outcome {
            Outcome::Response(response) => self.send(self.allow_origin(response)).await,
            Outcome::Job { service, id, stream: None } => {
                let response = self.job_done(&service, &id).await?;
                self.send(self.allow_origin(response)).await
            }
            Outcome::Job { service, id, stream: Some(format) } => {
                self.stream_job(&service, &id, format).await
            }
        }
    }

    fn allow_origin(&self, mut response: Response) -> Response {
        let name = "access-control-allow-origin";
        if self.call.header("origin").is_some() && !response.headers.iter().any(|(found, _)| found == name) {
            response.headers.push((name.to_owned(), "*".to_owned()));
        }
        response
    }

    /// Waits until the job ends and returns its result.
    async fn job_done(&mut self, service: &str, id: &str) -> io::Result<Response> {
        let mut changes = self.state.task_changes();
        loop {
            let Some(job) = self.job(service, id) else { return Ok(self.state.error(500, "api_error")) };
            if job.phase.has_ended() {
                let failed = matches!(job.phase, Phase::Failed { .. });
                return Ok(Response::new(if failed { 500 } else { 200 }, "application/json", job.json));
            }
            let due = job.ends_in.unwrap_or(Duration::from_secs(3600));
            self.wait_for_change(&mut changes, due).await?;
        }
    }

    /// Waits until `due` has passed or a test has changed a task.
    async fn wait_for_change(&mut self, changes: &mut watch::Receiver<()>, due: Duration) -> io::Result<()> {
        self.connection
            .unless_closed(async {
                tokio::select! {
                    () = sleep(due) => {}
                    _ = changes.changed() => {}
                }
            })
            .await
    }

    fn job(&self, service: &str, id: &str) -> Option<JobStatus> {
        let token = self.call.token.as_deref().unwrap_or_default();
        locked(&self.state.tasks).job(service, token, id, Instant::now())
    }

    /// Streams the state of the job about ten times until it ends.
    async fn stream_job(
        &mut self,
        service: &str,
        id: &str,
        format: StreamFormat,
    ) -> io::Result<ConnectionEnd> {
        let content_type = match format {
            StreamFormat::Ndjson => "application/x-ndjson",
            StreamFormat::Sse => "text/event-stream",
        };
        let interval =
            (self.state.config.task_duration / 10).clamp(Duration::from_millis(50), Duration::from_secs(2));
        self.open_stream(content_type).await?;
        let mut changes = self.state.task_changes();
        while let Some(job) = self.job(service, id) {
            let line = match format {
                StreamFormat::Ndjson => format!("{}\n", job.json),
                StreamFormat::Sse => format!("data: {}\n\n", job.json),
            };
            self.connection.write(&chunk(line.as_bytes())).await?;
            if job.phase.has_ended() {
                break;
            }
            let due = job.ends_in.map_or(interval, |left| left.min(interval));
            self.wait_for_change(&mut changes, due).await?;
        }
        self.close_stream().await
    }

    async fn stream(
        &mut self,
        content_type: &str,
        pieces: &[Bytes],
        interval: Duration,
        endless: bool,
    ) -> io::Result<ConnectionEnd> {
        self.open_stream(content_type).await?;
        let mut first = true;
        loop {
            for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
                if !std::mem::take(&mut first) {
                    self.pause(interval).await?;
                }
                self.connection.write(&chunk(piece)).await?;
            }
            if !endless || first {
                return self.close_stream().await;
            }
        }
    }

    async fn open_stream(&mut self, content_type: &str) -> io::Result<()> {
        let mut response = self.allow_origin(Response::new(200, content_type, ""));
        self.finish(&mut response);
        self.write_head(&response, CHUNKED_LINE, &[]).await
    }

    async fn close_stream(&mut self) -> io::Result<ConnectionEnd> {
        if matches!(self.delivery(), Delivery::Chunked { finished: false }) {
            return Ok(ConnectionEnd::Close);
        }
        self.connection.write(LAST_CHUNK).await?;
        Ok(self.end())
    }

    async fn large(&mut self, length: u64) -> io::Result<ConnectionEnd> {
        let mut response = Response::new(200, "application/octet-stream", "");
        self.finish(&mut response);
        self.write_head(&response, &length_line(length), &[]).await?;
        let piece: Vec<u8> = (0..=250).cycle().take(64 * 1024).collect();
        let mut left = length;
        while left > 0 {
            let now = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
            self.connection.write(&piece[..now]).await?;
            left -= now as u64;
        }
        Ok(self.end())
    }

    fn echo(&self) -> Response {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let headers: Vec<_> =
            self.call.headers.iter().map(|(name, value)| (name.clone(), text(value))).collect();
        let description = serde_json::json!({
            "method": self.call.method,
            "target": self.call.target,
            "headers": headers,
            "body_length": self.call.body_length,
            "body_sha256": self.call.body_sha256,
        });
        Response::json(description.to_string())
    }

    async fn mirror(&mut self) -> io::Result<ConnectionEnd> {
        let content_type = self.call.header("content-type").unwrap_or("application/octet-stream");
        let mut response = Response::new(200, content_type, "");
        self.finish(&mut response);
        self.write_head(&response, CHUNKED_LINE, &[]).await?;
        while let Some(piece) = self.body.next(self.connection).await? {
            self.recorder.add(&piece);
            self.connection.write(&chunk(&piece)).await?;
        }
        self.close_stream().await
    }

    /// Applies the rule's changes to a response, and returns its body.
    fn finish(&self, response: &mut Response) -> Bytes {
        match self.rule {
            Some(rule) => rule.apply(response),
            None => response.take_body(),
        }
    }

    /// Sends a well-formed response with the rule's delivery.
    async fn send(&mut self, mut response: Response) -> io::Result<ConnectionEnd> {
        let mut body = self.finish(&mut response);
        let has_no_body = matches!(response.status, 204 | 304);
        if has_no_body || self.call.method == "HEAD" {
            // A 204 has no content-length (RFC 9110 8.6).
            let framing = if has_no_body { String::new() } else { length_line(body.len() as u64) };
            self.write_head(&response, &framing, &[]).await?;
            return Ok(self.end());
        }
        let length = length_line(body.len() as u64);
        match self.delivery() {
            Delivery::Whole => self.write_head(&response, &length, &body).await?,
            Delivery::Cut { after, reset } => {
                body.truncate(after);
                self.write_head(&response, &length, &body).await?;
                if reset {
                    // A reset discards bytes that the client has not read yet.
                    self.pause(Duration::from_millis(20)).await?;
                    return Ok(ConnectionEnd::Reset);
                }
                return Ok(ConnectionEnd::Close);
            }
            Delivery::Stall { after } => {
                body.truncate(after);
                self.write_head(&response, &length, &body).await?;
                return self.silence().await;
            }
            Delivery::WrongLength { declared } => {
                self.write_head(&response, &length_line(declared), &body).await?;
                if declared > body.len() as u64 {
                    return Ok(ConnectionEnd::Close);
                }
            }
            Delivery::Drip { interval } => {
                self.write_head(&response, &length, &[]).await?;
                for byte in &body {
                    self.connection.write(&[*byte]).await?;
                    self.pause(interval).await?;
                }
            }
            Delivery::Chunked { .. } => {
                self.write_head(&response, CHUNKED_LINE, &[]).await?;
                for piece in body.chunks(1000) {
                    self.connection.write(&chunk(piece)).await?;
                }
                return self.close_stream().await;
            }
        }
        Ok(self.end())
    }

    async fn write_head(&mut self, response: &Response, framing: &str, body: &[u8]) -> io::Result<()> {
        self.state.record_status(self.call.sequence, response.status);
        let head = response.head(framing, self.keep_alive);
        self.connection.write(&[head.as_bytes(), body].concat()).await
    }

    fn delivery(&self) -> Delivery {
        self.rule.map(|rule| rule.delivery).unwrap_or_default()
    }

    fn end(&self) -> ConnectionEnd {
        let closes = self.rule.is_some_and(|rule| rule.close_afterwards);
        if self.keep_alive && !closes { ConnectionEnd::KeepAlive } else { ConnectionEnd::Close }
    }

    async fn pause(&mut self, pause: Duration) -> io::Result<()> {
        self.connection.unless_closed(sleep(pause)).await
    }

    /// Sends nothing until the client closes the connection.
    async fn silence(&mut self) -> io::Result<ConnectionEnd> {
        self.connection.closed().await;
        Err(ErrorKind::ConnectionAborted.into())
    }
}
