//! One call and its answer: reads the body, records the call, finds its rule, and plays what the rule or the task API
//! says onto the socket.
//!
//! Called by [`super::server`] for each head it reads. Any failed write, and any end of the client's side before the
//! answer was sent whole, counts the call as aborted.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::sleep;

use super::answers::{Answer, CHUNKED_LINE, LAST_CHUNK, chunk, gzip_bomb, length_line};
use super::api::{self, Outcome, Route, StreamFormat};
use super::connection::{Body, Connection, Head};
use super::locked;
use super::record::{Captured, RecordedCall};
use super::rules::{Delivery, Reply, Rule};
use super::server::State;
use super::text::Phase;

/// How a call leaves its connection.
pub(super) enum End {
    KeepAlive,
    Close,
    Reset,
}

/// Answers one call.
pub(super) async fn exchange(
    state: &State,
    connection: &mut Connection,
    number: u64,
    raw_head: Bytes,
) -> End {
    let at = Instant::now();
    let parsed = Head::parse(&raw_head).and_then(|head| head.body().map(|body| (head, body)));
    let Some((head, mut body)) = parsed else {
        let head = Head::parse(&raw_head).unwrap_or_default();
        state.record.push(&mut RecordedCall::new(number, at, &head, raw_head));
        return refuse_head(state, connection).await;
    };
    let mut call = RecordedCall::new(number, at, &head, raw_head);
    let early = locked(&state.rules).pick_early(&call);
    let mirrors = early.as_ref().is_some_and(|rule| matches!(rule.reply, Reply::Mirror));
    let awaits_continue = head.has("expect", "100-continue");
    if awaits_continue
        && (early.is_none() || mirrors)
        && connection.write(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err()
    {
        return End::Close;
    }

    let mut captured = Captured::default();
    if early.is_none() {
        let read = read_body(connection, &mut body, &mut captured).await;
        call.set_body(std::mem::take(&mut captured));
        if let Err(error) = read {
            state.record.push(&mut call);
            if error.kind() == ErrorKind::InvalidData {
                state.answered(call.sequence, 400);
                return refuse_head(state, connection).await;
            }
            state.record.set_aborted(call.sequence);
            return End::Close;
        }
    }
    let is_early = early.is_some();
    let rule = early.or_else(|| locked(&state.rules).pick(&call));
    let verdict = api::admit(state, &call);
    state.record.push(&mut call);

    let mut play = Play {
        state,
        connection,
        call: &call,
        rule: rule.as_deref(),
        keep_alive: head.keep_alive,
        body: &mut body,
        captured: &mut captured,
    };
    let mut end = play.run(verdict).await;
    if is_early {
        if awaits_continue && !mirrors {
            // The client may have kept the body to itself, so where the next call begins is unknown.
            end = end.map(|_| End::Close);
        } else if matches!(end, Ok(End::KeepAlive)) {
            end = read_body(connection, &mut body, &mut captured).await.and(end);
        }
        state.record.set_body(&mut call, captured);
    }
    end.unwrap_or_else(|_| {
        state.record.set_aborted(call.sequence);
        End::Close
    })
}

/// Answers what is no sound request.
pub(super) async fn refuse_head(state: &State, connection: &mut Connection) -> End {
    let mut answer = state.error(400, "bad_request");
    let body = answer.finish(None);
    let head = answer.head(&length_line(body.len() as u64), false);
    // A client that left already does not miss it.
    let _ = connection.write(&[head.as_bytes(), &body].concat()).await;
    End::Close
}

async fn read_body(connection: &mut Connection, body: &mut Body, captured: &mut Captured) -> io::Result<()> {
    while let Some(piece) = body.next(connection).await? {
        captured.add(&piece);
    }
    captured.complete = true;
    Ok(())
}

/// A call being answered.
struct Play<'a> {
    state: &'a State,
    connection: &'a mut Connection,
    call: &'a RecordedCall,
    rule: Option<&'a Rule>,
    keep_alive: bool,
    body: &'a mut Body,
    captured: &'a mut Captured,
}

impl Play<'_> {
    async fn run(&mut self, verdict: Result<Route, Answer>) -> io::Result<End> {
        let Some(rule) = self.rule else { return self.usual(verdict).await };
        if let Some(gate) = &rule.gate {
            self.connection.unless_hung_up(gate.pass()).await?;
        }
        if let Some(delay) = rule.delay {
            self.pause(delay).await?;
        }
        match &rule.reply {
            Reply::Usual => self.usual(verdict).await,
            Reply::Error { status, code } => self.answer(self.state.error(*status, code)).await,
            Reply::Body { status, content_type, body } => {
                self.answer(Answer::new(*status, content_type, body.clone())).await
            }
            Reply::GzipBomb { length } => {
                let answer = Answer::json(gzip_bomb(*length)).header("content-encoding", "gzip");
                self.answer(answer).await
            }
            Reply::Echo => self.answer(self.echo()).await,
            Reply::Mirror => self.mirror().await,
            Reply::Large { length } => self.large(*length).await,
            Reply::Stream { content_type, pieces, interval, endless } => {
                self.stream(content_type, pieces, *interval, *endless).await
            }
            Reply::Raw { bytes, keep_open } => {
                self.connection.write(bytes).await?;
                if *keep_open {
                    self.connection.hung_up().await;
                }
                Ok(End::Close)
            }
            Reply::Reset => Ok(End::Reset),
            Reply::Close => Ok(End::Close),
            Reply::BlackHole => self.silence().await,
        }
    }

    /// What is answered without a rule.
    async fn usual(&mut self, verdict: Result<Route, Answer>) -> io::Result<End> {
        let outcome = match verdict {
            Ok(route) => api::perform(self.state, self.call, &route),
            Err(refusal) => Outcome::Answer(refusal),
        };
        match outcome {
            Outcome::Answer(answer) => self.answer(self.allow_origin(answer)).await,
            Outcome::Job { service, id, stream: None } => {
                let answer = self.job_done(&service, &id).await?;
                self.answer(self.allow_origin(answer)).await
            }
            Outcome::Job { service, id, stream: Some(format) } => {
                self.stream_job(&service, &id, format).await
            }
        }
    }

    fn allow_origin(&self, mut answer: Answer) -> Answer {
        let name = "access-control-allow-origin";
        if self.call.header("origin").is_some() && !answer.headers.iter().any(|(found, _)| found == name) {
            answer.headers.push((name.to_owned(), "*".to_owned()));
        }
        answer
    }

    /// Waits until the job settles, and gives its result.
    async fn job_done(&mut self, service: &str, id: &str) -> io::Result<Answer> {
        let mut changes = self.state.task_changes();
        loop {
            let Some(job) = self.job(service, id) else { return Ok(self.state.error(500, "api_error")) };
            if job.phase.is_settled() {
                let failed = matches!(job.phase, Phase::Failed { .. });
                return Ok(Answer::new(if failed { 500 } else { 200 }, "application/json", job.text));
            }
            let due = job.settles_in.unwrap_or(Duration::from_secs(3600));
            self.connection
                .unless_hung_up(async {
                    tokio::select! {
                        () = sleep(due) => {}
                        _ = changes.changed() => {}
                    }
                })
                .await?;
        }
    }

    fn job(&self, service: &str, id: &str) -> Option<super::tasks::Job> {
        let token = self.call.token.as_deref().unwrap_or_default();
        locked(&self.state.tasks).job(service, token, id, Instant::now())
    }

    /// Tells how the job goes about ten times until it settles.
    async fn stream_job(&mut self, service: &str, id: &str, format: StreamFormat) -> io::Result<End> {
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
                StreamFormat::Ndjson => format!("{}\n", job.text),
                StreamFormat::Sse => format!("data: {}\n\n", job.text),
            };
            self.connection.write(&chunk(line.as_bytes())).await?;
            if job.phase.is_settled() {
                break;
            }
            let due = job.settles_in.map_or(interval, |left| left.min(interval));
            self.connection
                .unless_hung_up(async {
                    tokio::select! {
                        () = sleep(due) => {}
                        _ = changes.changed() => {}
                    }
                })
                .await?;
        }
        self.close_stream().await
    }

    async fn stream(
        &mut self,
        content_type: &str,
        pieces: &[Bytes],
        interval: Duration,
        endless: bool,
    ) -> io::Result<End> {
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
        let mut answer = self.allow_origin(Answer::new(200, content_type, ""));
        answer.finish(self.rule);
        self.write_head(&answer, CHUNKED_LINE, &[]).await
    }

    async fn close_stream(&mut self) -> io::Result<End> {
        if matches!(self.delivery(), Delivery::Chunked { finished: false }) {
            return Ok(End::Close);
        }
        self.connection.write(LAST_CHUNK).await?;
        Ok(self.end())
    }

    async fn large(&mut self, length: u64) -> io::Result<End> {
        let mut answer = Answer::new(200, "application/octet-stream", "");
        answer.finish(self.rule);
        self.write_head(&answer, &length_line(length), &[]).await?;
        let piece: Vec<u8> = (0..=250).cycle().take(64 * 1024).collect();
        let mut left = length;
        while left > 0 {
            let now = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
            self.connection.write(&piece[..now]).await?;
            left -= now as u64;
        }
        Ok(self.end())
    }

    fn echo(&self) -> Answer {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let headers: Vec<_> =
            self.call.headers.iter().map(|(name, value)| (name.clone(), text(value))).collect();
        let told = serde_json::json!({
            "method": self.call.method,
            "target": self.call.target,
            "headers": headers,
            "body_length": self.call.body_length,
            "body_sha256": self.call.body_sha256,
        });
        Answer::json(told.to_string())
    }

    async fn mirror(&mut self) -> io::Result<End> {
        let content_type = self.call.header("content-type").unwrap_or("application/octet-stream");
        let mut answer = Answer::new(200, content_type, "");
        answer.finish(self.rule);
        self.write_head(&answer, CHUNKED_LINE, &[]).await?;
        while let Some(piece) = self.body.next(self.connection).await? {
            self.captured.add(&piece);
            self.connection.write(&chunk(&piece)).await?;
        }
        self.close_stream().await
    }

    /// Sends a well-formed answer the way the rule delivers it.
    async fn answer(&mut self, mut answer: Answer) -> io::Result<End> {
        let mut body = answer.finish(self.rule);
        let bare = matches!(answer.status, 204 | 304);
        if bare || self.call.method == "HEAD" {
            // RFC 9110 8.6: no content-length beside a 204.
            let framing = if bare { String::new() } else { length_line(body.len() as u64) };
            self.write_head(&answer, &framing, &[]).await?;
            return Ok(self.end());
        }
        let length = length_line(body.len() as u64);
        match self.delivery() {
            Delivery::Whole => self.write_head(&answer, &length, &body).await?,
            Delivery::Cut { after, reset } => {
                body.truncate(after);
                self.write_head(&answer, &length, &body).await?;
                if reset {
                    // A reset overtakes what the client has not read yet.
                    self.pause(Duration::from_millis(20)).await?;
                    return Ok(End::Reset);
                }
                return Ok(End::Close);
            }
            Delivery::Stall { after } => {
                body.truncate(after);
                self.write_head(&answer, &length, &body).await?;
                return self.silence().await;
            }
            Delivery::WrongLength { declared } => {
                self.write_head(&answer, &length_line(declared), &body).await?;
                if declared > body.len() as u64 {
                    return Ok(End::Close);
                }
            }
            Delivery::Drip { interval } => {
                self.write_head(&answer, &length, &[]).await?;
                for byte in &body {
                    self.connection.write(&[*byte]).await?;
                    self.pause(interval).await?;
                }
            }
            Delivery::Chunked { .. } => {
                self.write_head(&answer, CHUNKED_LINE, &[]).await?;
                for piece in body.chunks(1000) {
                    self.connection.write(&chunk(piece)).await?;
                }
                return self.close_stream().await;
            }
        }
        Ok(self.end())
    }

    async fn write_head(&mut self, answer: &Answer, framing: &str, body: &[u8]) -> io::Result<()> {
        self.state.answered(self.call.sequence, answer.status);
        let head = answer.head(framing, self.keep_alive);
        self.connection.write(&[head.as_bytes(), body].concat()).await
    }

    fn delivery(&self) -> Delivery {
        self.rule.map(|rule| rule.delivery).unwrap_or_default()
    }

    fn end(&self) -> End {
        let closes = self.rule.is_some_and(|rule| rule.close_afterwards);
        if self.keep_alive && !closes { End::KeepAlive } else { End::Close }
    }

    async fn pause(&mut self, pause: Duration) -> io::Result<()> {
        self.connection.unless_hung_up(sleep(pause)).await
    }

    /// Says nothing more until the client gives up.
    async fn silence(&mut self) -> io::Result<End> {
        self.connection.hung_up().await;
        Err(ErrorKind::ConnectionAborted.into())
    }
}
