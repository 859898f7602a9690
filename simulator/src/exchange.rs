//! One call: reads and records it, chooses its rule and sends its response.
//!
//! A call counts as aborted if a write fails or if the client closes the connection before the
//! response is complete.

use std::io::{self, ErrorKind};
use std::time::Instant;

use bytes::Bytes;

use super::api;
use super::calls::{BodyRecorder, RecordedCall};
use super::connection::{Connection, RequestBody, RequestHead};
use super::locked;
use super::responder::Responder;
use super::response::length_line;
use super::rules::Reply;
use super::state::SharedState;

pub(super) use super::responder::ConnectionEnd;

/// Responds to one call whose head has been read.
pub(super) async fn run(
    state: &SharedState,
    connection: &mut Connection,
    number: u64,
    raw_head: Bytes,
) -> ConnectionEnd {
    let at = Instant::now();
    let parsed = RequestHead::parse(&raw_head).and_then(|head| head.body().map(|body| (head, body)));
    let Some((head, mut body)) = parsed else {
        let head = RequestHead::parse(&raw_head).unwrap_or_default();
        state.calls.push(&mut RecordedCall::new(number, at, &head, raw_head));
        return refuse(state, connection).await;
    };
    let mut call = RecordedCall::new(number, at, &head, raw_head);
    let early_rule = locked(&state.rules).pick_early(&call);
    let mirrors = early_rule.as_ref().is_some_and(|rule| matches!(rule.reply, Reply::Mirror));
    let expects_continue = head.has("expect", "100-continue");
    if expects_continue
        && (early_rule.is_none() || mirrors)
        && connection.write(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_err()
    {
        return ConnectionEnd::Close;
    }

    let mut recorder = BodyRecorder::default();
    if early_rule.is_none() {
        let read = read_body(connection, &mut body, &mut recorder).await;
        call.set_body(std::mem::take(&mut recorder));
        if let Err(error) = read {
            state.calls.push(&mut call);
            if error.kind() == ErrorKind::InvalidData {
                state.record_status(call.sequence, 400);
                return refuse(state, connection).await;
            }
            state.calls.set_aborted(call.sequence);
            return ConnectionEnd::Close;
        }
    }
    let is_early = early_rule.is_some();
    let rule = early_rule.or_else(|| locked(&state.rules).pick(&call));
    let admission = api::admit(state, &call);
    state.calls.push(&mut call);

    let mut responder = Responder {
        state,
        connection,
        call: &call,
        rule: rule.as_deref(),
        keep_alive: head.keep_alive,
        body: &mut body,
        recorder: &mut recorder,
    };
    let mut end = responder.run(admission).await;
    if is_early {
        if expects_continue && !mirrors {
            // The client may not have sent the body, so the start of the next call is unknown.
            end = end.map(|_| ConnectionEnd::Close);
        } else if matches!(end, Ok(ConnectionEnd::KeepAlive)) {
            end = read_body(connection, &mut body, &mut recorder).await.and(end);
        }
        state.calls.set_body(&mut call, recorder);
    }
    end.unwrap_or_else(|_| {
        state.calls.set_aborted(call.sequence);
        ConnectionEnd::Close
    })
}

/// Responds to a malformed request.
pub(super) async fn refuse(state: &SharedState, connection: &mut Connection) -> ConnectionEnd {
    let mut response = state.error(400, "bad_request");
    let body = response.take_body();
    let head = response.head(&length_line(body.len() as u64), false);
    // The write fails if the client has left, which changes nothing.
    let _ = connection.write(&[head.as_bytes(), &body].concat()).await;
    ConnectionEnd::Close
}

async fn read_body(
    connection: &mut Connection,
    body: &mut RequestBody,
    recorder: &mut BodyRecorder,
) -> io::Result<()> {
    while let Some(piece) = body.next(connection).await? {
        recorder.add(&piece);
    }
    recorder.is_complete = true;
    Ok(())
}
