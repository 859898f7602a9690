//! Phases of a simulated task, and the JSON of a song with all documented fields in the documented
//! order.
//!
//! The same task in the same phase always has the same bytes.

use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use serde::Serialize;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::songs::SONGS;

/// Phase of a task. Times are Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    /// Accepted but not started: there is no `response` yet.
    Queued,
    /// Started. The response has previews.
    Processing { started_at: f64, percent: u8 },
    /// Ended with a result.
    Succeeded { started_at: f64, finished_at: f64 },
    /// Ended without a result: `response.success` is false.
    Failed { started_at: f64, finished_at: f64 },
}

impl Phase {
    /// Returns whether the task has succeeded or failed.
    pub(super) fn has_ended(self) -> bool {
        matches!(self, Phase::Succeeded { .. } | Phase::Failed { .. })
    }

    /// Returns `started_at` and `finished_at`.
    pub(super) fn times(self) -> (Option<f64>, Option<f64>) {
        match self {
            Phase::Queued => (None, None),
            Phase::Processing { started_at, .. } => (Some(started_at), None),
            Phase::Succeeded { started_at, finished_at } | Phase::Failed { started_at, finished_at } => {
                (Some(started_at), Some(finished_at))
            }
        }
    }
}

/// Fields of a task that never change. The others follow from the phase.
pub(super) struct TaskFields<'a> {
    /// Seed of everything random: the songs, their ids and lengths.
    pub(super) seed: u64,
    pub(super) id: &'a str,
    pub(super) service: &'a str,
    pub(super) kind: &'a str,
    pub(super) trace_id: &'a str,
    /// Body of the call that started the task. `None` if no call did and its service has an example.
    pub(super) request: Option<&'a RawValue>,
    pub(super) created_at: f64,
    pub(super) account: Account,
}

impl TaskFields<'_> {
    /// Returns `_id`, the id of the record itself.
    pub(super) fn record_id(&self) -> String {
        format!("{:08x}{:016x}", self.created_at as u32, Rng::with_seed(self.seed).u64(..))
    }
}

/// Ids of a token's owner in its tasks.
pub(super) struct Account {
    pub(super) user_id: String,
    pub(super) application_id: String,
    pub(super) credential_id: String,
}

impl Account {
    /// Returns the account of a token. The same token always has the same account.
    pub(super) fn of(token: &str, seed: u64) -> Self {
        let mut rng = Rng::with_seed(xxh3_64_with_seed(token.as_bytes(), seed));
        Self { user_id: uuid(&mut rng), application_id: uuid(&mut rng), credential_id: uuid(&mut rng) }
    }
}

/// Returns a UUID (version 4) from a seeded source.
pub(super) fn uuid(rng: &mut Rng) -> String {
    uuid::Builder::from_random_bytes(rng.u128(..).to_le_bytes()).into_uuid().to_string()
}

/// Returns the request of a task that was created without one.
pub(super) fn sample_request(seed: u64, kind: &str) -> Box<RawValue> {
    let song = &SONGS[Rng::with_seed(seed).usize(..SONGS.len())];
    let request = SampleRequest {
        action: if kind == "audios" { "generate" } else { kind },
        model: MODEL,
        instrumental: false,
        lyric: song.lyric,
        custom: true,
        r#async: true,
    };
    serde_json::value::to_raw_value(&request).expect("plain data can be serialized")
}

/// Returns the task record of a song.
pub(super) fn song_record(fields: &TaskFields<'_>, phase: Phase) -> String {
    let record_id = fields.record_id();
    let api_id = uuid(&mut Rng::with_seed(xxh3_64_with_seed(fields.service.as_bytes(), 0)));
    let (started_at, finished_at) = phase.times();
    let record = RecordJson {
        _id: &record_id,
        id: fields.id,
        api_id: &api_id,
        application_id: &fields.account.application_id,
        created_at: millis(fields.created_at),
        started_at: started_at.map(millis),
        credential_id: &fields.account.credential_id,
        request: fields.request,
        trace_id: fields.trace_id,
        r#type: fields.kind,
        user_id: &fields.account.user_id,
        response: response(fields, phase),
        elapsed: finished_at.map(|at| millis(at - fields.created_at)),
        finished_at: finished_at.map(millis),
    };
    serde_json::to_string(&record).expect("plain data can be serialized")
}

/// Returns the current `response` of a song, for the call that started it.
pub(super) fn song_result(fields: &TaskFields<'_>, phase: Phase) -> String {
    response(fields, phase).map_or_else(
        || accepted(fields.id, fields.trace_id),
        |response| serde_json::to_string(&response).expect("plain data can be serialized"),
    )
}

/// Returns the immediate response to a call that starts work.
pub(super) fn accepted(id: &str, trace_id: &str) -> String {
    serde_json::json!({"success": true, "task_id": id, "trace_id": trace_id}).to_string()
}

fn response<'a>(fields: &'a TaskFields<'_>, phase: Phase) -> Option<ResponseJson<'a>> {
    let mut response = ResponseJson {
        success: true,
        task_id: fields.id,
        trace_id: fields.trace_id,
        data: None,
        error: None,
    };
    match phase {
        Phase::Queued => return None,
        Phase::Processing { percent, .. } => response.data = Some(works(fields, "processing", percent)),
        Phase::Succeeded { .. } => response.data = Some(works(fields, "succeeded", 100)),
        Phase::Failed { .. } => {
            response.success = false;
            response.error =
                Some(Failure { code: "api_error", message: "The song could not be made. Please try again." });
        }
    }
    Some(response)
}

fn works(fields: &TaskFields<'_>, state: &'static str, percent: u8) -> Vec<Work> {
    let mut rng = Rng::with_seed(fields.seed);
    let song = &SONGS[rng.usize(..SONGS.len())];
    let count = if fields.kind == "audios" { 2 } else { 1 };
    let done = percent == 100;
    (0..count)
        .map(|_| {
            let id = uuid(&mut rng);
            let folder = format!("https://media.example/{}/{}", fields.service, fields.account.user_id);
            let (audio, video) = match fields.kind {
                "videos" => (None, Some(format!("{folder}/video/{id}.mp4"))),
                "lyrics" => (None, None),
                "wav" => (Some(format!("{folder}/audio/{id}.wav")), None),
                _ if done => (Some(format!("{folder}/audio/{id}.m4a")), None),
                _ => (Some(format!("{folder}/preview/{id}.m4a")), None),
            };
            Work {
                title: song.title,
                image_url: format!("{folder}/image/{id}.jpg"),
                lyric: song.lyric,
                audio_url: audio,
                video_url: video,
                image_id: id.clone(),
                topic: None,
                seed: rng.u32(..).to_string(),
                sound: "",
                created_at: rfc3339(fields.created_at + rng.f64()),
                model: MODEL,
                progress: format!("{percent}%"),
                state,
                duration: done.then(|| (90.0 + 120.0 * rng.f64()).to_string()),
                id,
            }
        })
        .collect()
}

const MODEL: &str = "FUZZ-2.0 Pro";

/// Rounds a time to milliseconds.
pub(super) fn millis(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

fn rfc3339(seconds: f64) -> String {
    let since = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    humantime::format_rfc3339_micros(UNIX_EPOCH + since).to_string()
}

#[derive(Serialize)]
struct RecordJson<'a> {
    _id: &'a str,
    id: &'a str,
    api_id: &'a str,
    application_id: &'a str,
    created_at: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<f64>,
    credential_id: &'a str,
    request: Option<&'a RawValue>,
    trace_id: &'a str,
    r#type: &'a str,
    user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<ResponseJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    elapsed: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<f64>,
}

#[derive(Serialize)]
struct ResponseJson<'a> {
    success: bool,
    task_id: &'a str,
    trace_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Vec<Work>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

#[derive(Serialize)]
struct Failure {
    code: &'static str,
    message: &'static str,
}

#[derive(Serialize)]
struct Work {
    id: String,
    title: &'static str,
    image_url: String,
    lyric: &'static str,
    audio_url: Option<String>,
    video_url: Option<String>,
    image_id: String,
    topic: Option<String>,
    seed: String,
    sound: &'static str,
    created_at: String,
    model: &'static str,
    progress: String,
    state: &'static str,
    duration: Option<String>,
}

#[derive(Serialize)]
struct SampleRequest<'a> {
    action: &'a str,
    model: &'static str,
    instrumental: bool,
    lyric: &'static str,
    custom: bool,
    r#async: bool,
}
