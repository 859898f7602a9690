//! Simulated tasks: their owners, their progress with time, their deletion.
//!
//! Every method computes on a given `now`. A task exists only for the tokens that own it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::example_json;
use super::response::BatchItem;
use super::services::{self, Examples, Form, Service};
use super::task_json::{self, Account, Phase, TaskFields};

/// Share of a task's duration that it spends queued.
const QUEUED_SHARE: f64 = 0.15;

/// Progress of a task.
#[derive(Clone, Debug)]
enum Progress {
    /// Ends `duration` seconds after its creation.
    Timed { duration: f64, fails: bool },
    /// Processing until a test ends it.
    Pending,
    /// Ended; `at` in seconds since the start of the simulator.
    Ended { at: f64, failed: bool },
    /// Exact record set by a test.
    Raw(Bytes),
}

/// Simulated task.
pub(super) struct Task {
    sequence: u64,
    pub(super) id: String,
    service: String,
    kind: String,
    owners: Vec<String>,
    trace_id: String,
    request: Option<Box<RawValue>>,
    /// Creation in seconds since the start of the simulator. Negative for some tasks that were
    /// created finished.
    created: f64,
    /// Insertion in seconds since the start of the simulator. The retention counts from it.
    inserted: f64,
    progress: Progress,
    /// Whether a lookup of the result was charged.
    is_charged: bool,
}

/// Settings that all tasks share.
pub(super) struct TaskDefaults {
    pub(super) seed: u64,
    pub(super) duration: Duration,
    pub(super) retention: Duration,
    /// Share of timed tasks that fail, from 0 to 1.
    pub(super) failure_rate: f64,
    pub(super) max_tasks: usize,
}

/// Kind of a new task.
pub(super) enum NewTask {
    /// Progresses with time. Has a sample request if it is `None`.
    Timed(Option<Box<RawValue>>),
    /// Progresses with time and ends this long after its creation.
    Lasting(Duration),
    /// Ends only when a test ends it.
    Pending,
    /// Has already succeeded.
    Finished,
}

/// Filter and page of a listing. `None` accepts every task.
#[derive(Default)]
pub(super) struct Filter<'a> {
    pub(super) kind: Option<&'a str>,
    pub(super) user_id: Option<&'a str>,
    pub(super) application_id: Option<&'a str>,
    pub(super) created_at_min: Option<f64>,
    pub(super) created_at_max: Option<f64>,
    pub(super) offset: usize,
    pub(super) limit: usize,
}

/// All tasks, by sequence number.
pub(super) struct Tasks {
    defaults: TaskDefaults,
    start: Instant,
    /// Wall-clock time at `start`, in Unix seconds.
    epoch: f64,
    next_sequence: u64,
    tasks: BTreeMap<u64, Task>,
    by_id: HashMap<String, Vec<u64>>,
}

impl Tasks {
    /// Creates an empty collection. `unix_now` is the wall-clock time at `now`.
    pub(super) fn new(defaults: TaskDefaults, now: Instant, unix_now: i64) -> Self {
        let epoch = unix_now as f64;
        Self { defaults, start: now, epoch, next_sequence: 0, tasks: BTreeMap::new(), by_id: HashMap::new() }
    }

    /// Creates a task and returns its new id. Without a kind it has that of the service.
    pub(super) fn create(
        &mut self,
        service: &str,
        kind: Option<&str>,
        token: &str,
        task: NewTask,
        now: Instant,
    ) -> String {
        let kind = kind.unwrap_or_else(|| natural_kind(service));
        let mut rng = Rng::with_seed(self.seed_of(self.next_sequence));
        let (id, trace_id, fails) = (task_json::uuid(&mut rng), task_json::uuid(&mut rng), rng.f64());
        let now = self.seconds(now);
        let duration = self.defaults.duration.as_secs_f64();
        let (created, request, progress) = match task {
            NewTask::Timed(request) => {
                (now, request, Progress::Timed { duration, fails: fails < self.defaults.failure_rate })
            }
            NewTask::Lasting(duration) => {
                let duration = duration.as_secs_f64();
                (now, None, Progress::Timed { duration, fails: fails < self.defaults.failure_rate })
            }
            NewTask::Pending => (now, None, Progress::Pending),
            NewTask::Finished => (now - duration, None, Progress::Ended { at: now, failed: false }),
        };
        let has_songs = services::find(service).is_none_or(|service| service.examples.is_none());
        let sample = || has_songs.then(|| task_json::sample_request(self.seed_of(self.next_sequence), kind));
        let request = request.or_else(sample);
        self.insert(Task {
            sequence: self.next_sequence,
            id: id.clone(),
            service: service.to_owned(),
            kind: kind.to_owned(),
            owners: vec![token.to_owned()],
            trace_id,
            request,
            created,
            inserted: now,
            progress,
            is_charged: false,
        });
        id
    }

    /// Sets the exact record of this token under this id.
    pub(super) fn put_record(&mut self, service: &str, token: &str, id: &str, record: Bytes, now: Instant) {
        let known = self
            .by_id
            .get(id)
            .into_iter()
            .flatten()
            .copied()
            .find(|sequence| self.tasks.get(sequence).is_some_and(|task| task.is_for(service, token)));
        if let Some(task) = known.and_then(|sequence| self.tasks.get_mut(&sequence)) {
            task.progress = Progress::Raw(record);
            return;
        }
        let now = self.seconds(now);
        self.insert(Task {
            sequence: self.next_sequence,
            id: id.to_owned(),
            service: service.to_owned(),
            kind: natural_kind(service).to_owned(),
            owners: vec![token.to_owned()],
            trace_id: String::new(),
            request: None,
            created: now,
            inserted: now,
            progress: Progress::Raw(record),
            is_charged: false,
        });
    }

    /// Ends every task with this id now, except those that have already ended or have a raw record.
    pub(super) fn end(&mut self, id: &str, failed: bool, now: Instant) {
        let at = self.seconds(now);
        for sequence in self.by_id.get(id).into_iter().flatten() {
            let Some(task) = self.tasks.get_mut(sequence) else { continue };
            let has_ended = match task.progress {
                Progress::Pending => false,
                Progress::Timed { duration, .. } => at >= task.created + duration,
                Progress::Ended { .. } | Progress::Raw(_) => true,
            };
            if !has_ended {
                task.progress = Progress::Ended { at, failed };
            }
        }
    }

    /// Lets another token see every task with this id.
    pub(super) fn share(&mut self, id: &str, token: &str) {
        for sequence in self.by_id.get(id).into_iter().flatten() {
            if let Some(task) = self.tasks.get_mut(sequence)
                && !task.owners.iter().any(|owner| owner == token)
            {
                task.owners.push(token.to_owned());
            }
        }
    }

    /// Deletes every task with this id. Returns whether there was one.
    pub(super) fn remove(&mut self, id: &str) -> bool {
        let sequences = self.by_id.remove(id).unwrap_or_default();
        for sequence in &sequences {
            self.tasks.remove(sequence);
        }
        !sequences.is_empty()
    }

    /// Returns the task with this id if this token owns it in this service.
    pub(super) fn find(&mut self, service: &str, token: &str, id: &str, now: Instant) -> Option<&Task> {
        self.delete_expired(now);
        let mut known = self.by_id.get(id)?.iter().filter_map(|sequence| self.tasks.get(sequence));
        known.find(|task| task.is_for(service, token))
    }

    /// Returns the first task with this id, of any owner.
    pub(super) fn find_any(&mut self, id: &str, now: Instant) -> Option<&Task> {
        self.delete_expired(now);
        self.by_id.get(id)?.iter().find_map(|sequence| self.tasks.get(sequence))
    }

    /// Returns the task with this trace id if this token owns it in this service.
    pub(super) fn find_trace(
        &mut self,
        service: &str,
        token: &str,
        trace_id: &str,
        now: Instant,
    ) -> Option<&Task> {
        self.delete_expired(now);
        self.tasks
            .values()
            .find(|task| !trace_id.is_empty() && task.trace_id == trace_id && task.is_for(service, token))
    }

    /// Returns the requested page of this token's tasks that pass the filter, newest first, and
    /// their total number.
    pub(super) fn list(
        &mut self,
        service: &str,
        token: &str,
        filter: &Filter<'_>,
        now: Instant,
    ) -> (Vec<BatchItem>, usize) {
        self.delete_expired(now);
        let account = Account::of(token, self.defaults.seed);
        let is = |wanted: Option<&str>, found: &str| wanted.is_none_or(|wanted| wanted == found);
        let passes = |task: &&Task| {
            let created_at = self.epoch + task.created;
            task.is_for(service, token)
                && is(filter.kind, &task.kind)
                && is(filter.user_id, &account.user_id)
                && is(filter.application_id, &account.application_id)
                && filter.created_at_min.is_none_or(|min| created_at >= min)
                && filter.created_at_max.is_none_or(|max| created_at <= max)
        };
        let matching: Vec<&Task> = self.tasks.values().rev().filter(passes).collect();
        let count = matching.len();
        let page = matching.into_iter().skip(filter.offset).take(filter.limit);
        let item = |task: &Task| Some(BatchItem { id: task.id.clone(), record: self.record(task, now)? });
        (page.filter_map(item).collect(), count)
    }

    /// Returns the record of the task with this sequence number. `None` if the task was deleted or
    /// is not visible yet.
    pub(super) fn record_of(&self, sequence: u64, now: Instant) -> Option<Bytes> {
        self.record(self.tasks.get(&sequence)?, now)
    }

    fn record(&self, task: &Task, now: Instant) -> Option<Bytes> {
        if let Progress::Raw(record) = &task.progress {
            return Some(record.clone());
        }
        let (fields, phase) = (self.fields(task), self.phase(task, now));
        let record = match task.examples() {
            Some((service, examples)) => example_json::record(service, examples, &fields, phase)?,
            None => task_json::song_record(&fields, phase),
        };
        Some(record.into())
    }

    /// Returns the response to a lookup of this task alone. `with_action` is whether the lookup has
    /// an `action`.
    pub(super) fn answer_to(&self, sequence: u64, with_action: bool, now: Instant) -> Option<Answer> {
        let task = self.tasks.get(&sequence)?;
        let record = self.record(task, now)?;
        let (mut status, mut is_charged, mut body) = (200, false, record);
        if let Some((service, _)) = task.examples()
            && !matches!(task.progress, Progress::Raw(_))
        {
            let phase = self.phase(task, now);
            match service.form {
                Form::Record => {}
                Form::Envelope => body = [b"{\"task\":", &body[..], b"}"].concat().into(),
                Form::Flat if with_action => {
                    let result = String::from_utf8_lossy(&body);
                    body = example_json::around(&result, &self.fields(task), phase).into();
                }
                Form::Flat => {}
                Form::Charged if matches!(phase, Phase::Failed { .. }) => status = 504,
                Form::Charged => is_charged = phase.has_ended() && !task.is_charged,
            }
        }
        Some(Answer { status, body, is_charged })
    }

    /// Records that the lookup of a task's result was charged.
    pub(super) fn set_charged(&mut self, sequence: u64) {
        if let Some(task) = self.tasks.get_mut(&sequence) {
            task.is_charged = true;
        }
    }

    /// Returns the state of a task for the call that started it. `None` if the task was deleted.
    pub(super) fn job(&mut self, service: &str, token: &str, id: &str, now: Instant) -> Option<JobStatus> {
        let sequence = self.find(service, token, id, now)?.sequence;
        let task = self.tasks.get(&sequence)?;
        let phase = self.phase(task, now);
        let ends_in = match task.progress {
            Progress::Timed { duration, .. } => {
                Duration::try_from_secs_f64(task.created + duration - self.seconds(now)).ok()
            }
            _ => None,
        };
        let fields = self.fields(task);
        let json = match task.examples() {
            Some((service, examples)) => example_json::result(service, examples, &fields, phase),
            None => task_json::song_result(&fields, phase),
        };
        Some(JobStatus { json, phase, ends_in })
    }

    fn phase(&self, task: &Task, now: Instant) -> Phase {
        let age = self.seconds(now) - task.created;
        let typical = self.defaults.duration.as_secs_f64().max(0.001);
        let ended = |at: f64, failed: bool| {
            let (created_at, finished_at) = (self.epoch + task.created, self.epoch + at);
            let started_at = created_at + (finished_at - created_at) * QUEUED_SHARE;
            if failed {
                Phase::Failed { started_at, finished_at }
            } else {
                Phase::Succeeded { started_at, finished_at }
            }
        };
        match task.progress {
            Progress::Ended { at, failed } => ended(at, failed),
            Progress::Timed { duration, fails } if age >= duration => ended(task.created + duration, fails),
            Progress::Timed { duration, .. } if age < duration * QUEUED_SHARE => Phase::Queued,
            Progress::Timed { duration, .. } => Phase::Processing {
                started_at: self.epoch + task.created + duration * QUEUED_SHARE,
                percent: (100.0 * age / duration).clamp(1.0, 99.0) as u8,
            },
            Progress::Pending | Progress::Raw(_) => Phase::Processing {
                started_at: self.epoch + task.created,
                percent: (95.0 * age / typical).clamp(5.0, 95.0) as u8,
            },
        }
    }

    fn fields<'a>(&self, task: &'a Task) -> TaskFields<'a> {
        let owner = task.owners.first().map_or("", String::as_str);
        TaskFields {
            seed: self.seed_of(task.sequence),
            id: &task.id,
            service: &task.service,
            kind: &task.kind,
            trace_id: &task.trace_id,
            request: task.request.as_deref(),
            created_at: self.epoch + task.created,
            account: Account::of(owner, self.defaults.seed),
        }
    }

    fn insert(&mut self, task: Task) {
        self.by_id.entry(task.id.clone()).or_default().push(task.sequence);
        self.tasks.insert(task.sequence, task);
        self.next_sequence += 1;
        while self.tasks.len() > self.defaults.max_tasks {
            self.delete_oldest();
        }
    }

    fn delete_expired(&mut self, now: Instant) {
        let expiry = self.seconds(now) - self.defaults.retention.as_secs_f64();
        while self.tasks.first_key_value().is_some_and(|(_, task)| task.inserted < expiry) {
            self.delete_oldest();
        }
    }

    fn delete_oldest(&mut self) {
        let Some((sequence, task)) = self.tasks.pop_first() else { return };
        if let Some(sequences) = self.by_id.get_mut(&task.id) {
            sequences.retain(|other| *other != sequence);
            if sequences.is_empty() {
                self.by_id.remove(&task.id);
            }
        }
    }

    fn seconds(&self, now: Instant) -> f64 {
        now.saturating_duration_since(self.start).as_secs_f64()
    }

    fn seed_of(&self, sequence: u64) -> u64 {
        xxh3_64_with_seed(&sequence.to_le_bytes(), self.defaults.seed)
    }
}

/// Response to a lookup of one task.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Bytes,
    /// Whether this lookup costs money.
    pub(super) is_charged: bool,
}

/// State of a task for the call that started it.
pub(super) struct JobStatus {
    /// Current content of the response.
    pub(super) json: String,
    pub(super) phase: Phase,
    /// Time until the task ends by itself. `None` if it does not, or has ended.
    pub(super) ends_in: Option<Duration>,
}

impl Task {
    /// Returns the task's number in the order of creation.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns the trace id.
    pub(super) fn trace_id(&self) -> &str {
        &self.trace_id
    }

    /// Returns the service with its examples. `None` if its records are songs.
    fn examples(&self) -> Option<(&'static Service, &'static Examples)> {
        let service = services::find(&self.service)?;
        Some((service, service.examples.as_ref()?))
    }

    fn is_for(&self, service: &str, token: &str) -> bool {
        self.service == service && self.owners.iter().any(|owner| owner == token)
    }
}

/// Returns the kind of a task that no call started.
fn natural_kind(service: &str) -> &'static str {
    services::find(service).map_or("audios", |service| service.kind)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn tasks() -> (Tasks, Instant) {
        let now = Instant::now();
        let defaults = TaskDefaults {
            seed: 7,
            duration: Duration::from_secs(40),
            retention: Duration::from_secs(100),
            failure_rate: 0.0,
            max_tasks: 10,
        };
        (Tasks::new(defaults, now, 1_767_119_745), now)
    }

    fn json(tasks: &mut Tasks, id: &str, now: Instant) -> Value {
        let task = tasks.find("producer", "a", id, now).unwrap().sequence();
        serde_json::from_slice(&tasks.record_of(task, now).unwrap()).unwrap()
    }

    #[test]
    fn timed_task_progresses_and_does_not_change_after_its_end() {
        let (mut tasks, start) = tasks();
        let id = tasks.create("producer", None, "a", NewTask::Timed(None), start);
        let after = |seconds| start + Duration::from_secs(seconds);

        let queued = json(&mut tasks, &id, after(1));
        assert!(queued.get("response").is_none() && queued.get("started_at").is_none());

        let running = json(&mut tasks, &id, after(20));
        let song = &running["response"]["data"][0];
        assert_eq!((&song["state"], &song["progress"]), (&"processing".into(), &"50%".into()));
        assert!(song["audio_url"].as_str().unwrap().contains("preview"));
        assert!(running.get("finished_at").is_none() && running.get("elapsed").is_none());

        let done = json(&mut tasks, &id, after(40));
        assert_eq!(done["elapsed"], 40.0);
        assert_eq!(done["finished_at"], 1_767_119_785.0);
        assert_eq!(done["response"]["data"][0]["state"], "succeeded");
        assert_eq!(done, json(&mut tasks, &id, after(90)));
    }

    #[test]
    fn pending_task_ends_only_when_a_test_ends_it() {
        let (mut tasks, start) = tasks();
        let id = tasks.create("producer", None, "a", NewTask::Pending, start);
        let later = start + Duration::from_secs(90);
        assert_eq!(json(&mut tasks, &id, later)["response"]["data"][1]["state"], "processing");
        tasks.end(&id, true, later);
        tasks.end(&id, false, later);
        let failed = json(&mut tasks, &id, later);
        assert_eq!(failed["response"]["success"], false);
        assert_eq!(failed["response"]["error"]["code"], "api_error");
        assert_eq!(failed["elapsed"], 90.0);
    }

    #[test]
    fn tasks_beyond_the_retention_or_number_are_deleted() {
        let (mut tasks, start) = tasks();
        let ids: Vec<_> =
            (0..11).map(|_| tasks.create("producer", None, "a", NewTask::Finished, start)).collect();
        assert!(tasks.find("producer", "a", &ids[0], start).is_none());
        assert!(tasks.find("producer", "a", &ids[1], start + Duration::from_secs(100)).is_some());
        assert!(tasks.find("producer", "a", &ids[1], start + Duration::from_secs(101)).is_none());
    }
}
