//! The tasks the simulated upstream knows: who owns them, how they move on with time, when they are forgotten.
//!
//! Plain data on a given `now`; called by [`super::api`] and by the test handles of [`super::Simulator`]. A task
//! belongs to the tokens that own it and does not exist for any other.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::answers::BatchItem;
use super::text::{self, Account, Facts, Phase};

/// The share of a task's duration that it stands in the queue.
const QUEUED_SHARE: f64 = 0.15;

/// How a task goes on.
#[derive(Clone, Debug)]
enum Course {
    /// Settles by itself, `duration` seconds after its creation.
    Timed { duration: f64, fails: bool },
    /// Processing until told otherwise.
    Pending,
    /// Settled; `at` in seconds since the start.
    Settled { at: f64, failed: bool },
    /// Whatever a test put there.
    Raw(Bytes),
}

/// One task.
pub(super) struct Task {
    sequence: u64,
    pub(super) id: String,
    service: String,
    kind: String,
    owners: Vec<String>,
    trace_id: String,
    request: Box<RawValue>,
    /// Seconds since the start; before it for tasks that were made as finished.
    created: f64,
    /// Seconds since the start at which it was put here, which is what retention counts from.
    kept_since: f64,
    course: Course,
}

/// How new tasks behave.
pub(super) struct Habits {
    pub(super) seed: u64,
    pub(super) duration: Duration,
    pub(super) retention: Duration,
    /// The share of timed tasks that fail, from 0 to 1.
    pub(super) failure_rate: f64,
    pub(super) max_tasks: usize,
}

/// How a task is made.
pub(super) enum Start {
    /// Moves on with time.
    Timed(Option<Box<RawValue>>),
    /// Never settles by itself.
    Pending,
    /// Settled already.
    Finished,
}

/// What a listing asks for; `None` leaves a filter out.
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

/// All tasks, oldest first.
pub(super) struct Tasks {
    habits: Habits,
    start: Instant,
    /// The wall clock at `start`, in Unix seconds.
    epoch: f64,
    next: u64,
    tasks: BTreeMap<u64, Task>,
    by_id: HashMap<String, Vec<u64>>,
}

impl Tasks {
    /// No tasks yet; `unix_now` is the wall clock at `now`.
    pub(super) fn new(habits: Habits, now: Instant, unix_now: i64) -> Self {
        let epoch = unix_now as f64;
        Self { habits, start: now, epoch, next: 0, tasks: BTreeMap::new(), by_id: HashMap::new() }
    }

    /// Makes a task with an id of its own, and gives the id.
    pub(super) fn create(
        &mut self,
        service: &str,
        kind: &str,
        token: &str,
        start: Start,
        now: Instant,
    ) -> String {
        let mut rng = Rng::with_seed(self.seed_of(self.next));
        let (id, trace_id, fails) = (text::uuid(&mut rng), text::uuid(&mut rng), rng.f64());
        let now = self.seconds(now);
        let duration = self.habits.duration.as_secs_f64();
        let (created, request, course) = match start {
            Start::Timed(request) => {
                (now, request, Course::Timed { duration, fails: fails < self.habits.failure_rate })
            }
            Start::Pending => (now, None, Course::Pending),
            Start::Finished => (now - duration, None, Course::Settled { at: now, failed: false }),
        };
        let request = request.unwrap_or_else(|| text::sample_request(self.seed_of(self.next), kind));
        self.insert(Task {
            sequence: self.next,
            id: id.clone(),
            service: service.to_owned(),
            kind: kind.to_owned(),
            owners: vec![token.to_owned()],
            trace_id,
            request,
            created,
            kept_since: now,
            course,
        });
        id
    }

    /// Puts exact bytes in place of whatever this token had under this id.
    pub(super) fn put_record(&mut self, service: &str, token: &str, id: &str, text: Bytes, now: Instant) {
        let known = self
            .by_id
            .get(id)
            .into_iter()
            .flatten()
            .copied()
            .find(|sequence| self.tasks.get(sequence).is_some_and(|task| task.is_for(service, token)));
        if let Some(task) = known.and_then(|sequence| self.tasks.get_mut(&sequence)) {
            task.course = Course::Raw(text);
            return;
        }
        let now = self.seconds(now);
        self.insert(Task {
            sequence: self.next,
            id: id.to_owned(),
            service: service.to_owned(),
            kind: "audios".to_owned(),
            owners: vec![token.to_owned()],
            trace_id: String::new(),
            request: text::sample_request(self.next, "audios"),
            created: now,
            kept_since: now,
            course: Course::Raw(text),
        });
    }

    /// Settles every task with this id now. One that settled before, or is raw, stays as it is.
    pub(super) fn settle(&mut self, id: &str, failed: bool, now: Instant) {
        let at = self.seconds(now);
        for sequence in self.by_id.get(id).into_iter().flatten() {
            let Some(task) = self.tasks.get_mut(sequence) else { continue };
            let settled = match task.course {
                Course::Pending => false,
                Course::Timed { duration, .. } => at >= task.created + duration,
                Course::Settled { .. } | Course::Raw(_) => true,
            };
            if !settled {
                task.course = Course::Settled { at, failed };
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

    /// Forgets every task with this id; says whether there was one.
    pub(super) fn remove(&mut self, id: &str) -> bool {
        let sequences = self.by_id.remove(id).unwrap_or_default();
        for sequence in &sequences {
            self.tasks.remove(sequence);
        }
        !sequences.is_empty()
    }

    /// The task of this id, if this token may see it in this service.
    pub(super) fn find(&mut self, service: &str, token: &str, id: &str, now: Instant) -> Option<&Task> {
        self.forget_old(now);
        let mut known = self.by_id.get(id)?.iter().filter_map(|sequence| self.tasks.get(sequence));
        known.find(|task| task.is_for(service, token))
    }

    /// The first task of this id, whoever owns it.
    pub(super) fn find_any(&mut self, id: &str, now: Instant) -> Option<&Task> {
        self.forget_old(now);
        self.by_id.get(id)?.iter().find_map(|sequence| self.tasks.get(sequence))
    }

    /// The task of this trace id, if this token may see it in this service.
    pub(super) fn find_trace(
        &mut self,
        service: &str,
        token: &str,
        trace_id: &str,
        now: Instant,
    ) -> Option<&Task> {
        self.forget_old(now);
        self.tasks
            .values()
            .find(|task| !trace_id.is_empty() && task.trace_id == trace_id && task.is_for(service, token))
    }

    /// This token's tasks that pass the filter, newest first: the page asked for, and how many there are in all.
    pub(super) fn list(
        &mut self,
        service: &str,
        token: &str,
        filter: &Filter<'_>,
        now: Instant,
    ) -> (Vec<BatchItem>, usize) {
        self.forget_old(now);
        let account = Account::of(token, self.habits.seed);
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
        (page.map(|task| BatchItem { id: task.id.clone(), record: self.text(task, now) }).collect(), count)
    }

    /// What `retrieve` answers for the task of this number; nothing if it left meanwhile.
    pub(super) fn text_of(&self, sequence: u64, now: Instant) -> Bytes {
        self.tasks.get(&sequence).map(|task| self.text(task, now)).unwrap_or_default()
    }

    fn text(&self, task: &Task, now: Instant) -> Bytes {
        if let Course::Raw(text) = &task.course {
            return text.clone();
        }
        text::task(&self.facts(task), self.phase(task, now)).into()
    }

    /// How the job of a task stands, for the call that started it; `None` once it is forgotten.
    pub(super) fn job(&mut self, service: &str, token: &str, id: &str, now: Instant) -> Option<Job> {
        let sequence = self.find(service, token, id, now)?.sequence;
        let task = self.tasks.get(&sequence)?;
        let phase = self.phase(task, now);
        let settles_in = match task.course {
            Course::Timed { duration, .. } => {
                Duration::try_from_secs_f64(task.created + duration - self.seconds(now)).ok()
            }
            _ => None,
        };
        Some(Job { text: text::result(&self.facts(task), phase), phase, settles_in })
    }

    fn phase(&self, task: &Task, now: Instant) -> Phase {
        let age = self.seconds(now) - task.created;
        let typical = self.habits.duration.as_secs_f64().max(0.001);
        let settled = |at: f64, failed: bool| {
            let (created_at, finished_at) = (self.epoch + task.created, self.epoch + at);
            let started_at = created_at + (finished_at - created_at) * QUEUED_SHARE;
            if failed {
                Phase::Failed { started_at, finished_at }
            } else {
                Phase::Succeeded { started_at, finished_at }
            }
        };
        match task.course {
            Course::Settled { at, failed } => settled(at, failed),
            Course::Timed { duration, fails } if age >= duration => settled(task.created + duration, fails),
            Course::Timed { duration, .. } if age < duration * QUEUED_SHARE => Phase::Queued,
            Course::Timed { duration, .. } => Phase::Processing {
                started_at: self.epoch + task.created + duration * QUEUED_SHARE,
                percent: (100.0 * age / duration).clamp(1.0, 99.0) as u8,
            },
            Course::Pending | Course::Raw(_) => Phase::Processing {
                started_at: self.epoch + task.created,
                percent: (95.0 * age / typical).clamp(5.0, 95.0) as u8,
            },
        }
    }

    fn facts<'a>(&self, task: &'a Task) -> Facts<'a> {
        let owner = task.owners.first().map_or("", String::as_str);
        Facts {
            seed: self.seed_of(task.sequence),
            id: &task.id,
            service: &task.service,
            kind: &task.kind,
            trace_id: &task.trace_id,
            request: &task.request,
            created_at: self.epoch + task.created,
            account: Account::of(owner, self.habits.seed),
        }
    }

    fn insert(&mut self, task: Task) {
        self.by_id.entry(task.id.clone()).or_default().push(task.sequence);
        self.tasks.insert(task.sequence, task);
        self.next += 1;
        while self.tasks.len() > self.habits.max_tasks {
            self.forget_oldest();
        }
    }

    fn forget_old(&mut self, now: Instant) {
        let oldest_kept = self.seconds(now) - self.habits.retention.as_secs_f64();
        while self.tasks.first_key_value().is_some_and(|(_, task)| task.kept_since < oldest_kept) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
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
        xxh3_64_with_seed(&sequence.to_le_bytes(), self.habits.seed)
    }
}

/// How a job stands.
pub(super) struct Job {
    /// What its caller is told by now.
    pub(super) text: String,
    pub(super) phase: Phase,
    /// How long until it settles by itself; `None` if it does not, or did.
    pub(super) settles_in: Option<Duration>,
}

impl Task {
    /// The task's number, in the order of creation.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The id under which its work is traced.
    pub(super) fn trace_id(&self) -> &str {
        &self.trace_id
    }

    fn is_for(&self, service: &str, token: &str) -> bool {
        self.service == service && self.owners.iter().any(|owner| owner == token)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn tasks() -> (Tasks, Instant) {
        let now = Instant::now();
        let habits = Habits {
            seed: 7,
            duration: Duration::from_secs(40),
            retention: Duration::from_secs(100),
            failure_rate: 0.0,
            max_tasks: 10,
        };
        (Tasks::new(habits, now, 1_767_119_745), now)
    }

    fn json(tasks: &mut Tasks, id: &str, now: Instant) -> Value {
        let task = tasks.find("producer", "a", id, now).unwrap().sequence();
        serde_json::from_slice(&tasks.text_of(task, now)).unwrap()
    }

    #[test]
    fn a_task_moves_on_with_time_and_stands_still_once_settled() {
        let (mut tasks, start) = tasks();
        let id = tasks.create("producer", "audios", "a", Start::Timed(None), start);
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
    fn a_pending_task_waits_to_be_told_and_a_settled_one_does_not_change() {
        let (mut tasks, start) = tasks();
        let id = tasks.create("producer", "audios", "a", Start::Pending, start);
        let later = start + Duration::from_secs(90);
        assert_eq!(json(&mut tasks, &id, later)["response"]["data"][1]["state"], "processing");
        tasks.settle(&id, true, later);
        tasks.settle(&id, false, later);
        let failed = json(&mut tasks, &id, later);
        assert_eq!(failed["response"]["success"], false);
        assert_eq!(failed["response"]["error"]["code"], "api_error");
        assert_eq!(failed["elapsed"], 90.0);
    }

    #[test]
    fn tasks_are_forgotten_with_age_and_in_number() {
        let (mut tasks, start) = tasks();
        let ids: Vec<_> =
            (0..11).map(|_| tasks.create("producer", "audios", "a", Start::Finished, start)).collect();
        assert!(tasks.find("producer", "a", &ids[0], start).is_none());
        assert!(tasks.find("producer", "a", &ids[1], start + Duration::from_secs(100)).is_some());
        assert!(tasks.find("producer", "a", &ids[1], start + Duration::from_secs(101)).is_none());
    }
}
