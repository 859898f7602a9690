//! The tables and the targets.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::time::{Duration, Instant};

use refrain::config::{Config, UpstreamConfig};

use crate::arguments::Arguments;
use crate::client::{Known, Observations};
use crate::scenario::{Comparison, Scenario};
use crate::side::{Kind, token};

/// Time for round trips, with two servers, a proxy and all clients in one process.
const TOLERANCE: Duration = Duration::from_millis(250);

/// No queued id waits for longer than this or two even cycles.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Allowed factor of calls above rate × time.
const CALLS_FACTOR: f64 = 1.1;

/// Result of one side of a scenario.
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) seen: Observations,
    pub(crate) upstream_calls: usize,
    pub(crate) too_many_requests_sent: u64,
    /// Pairs of client and task whose final record was not received.
    pub(crate) never_known: usize,
    pub(crate) tokens: BTreeMap<String, TokenCalls>,
}

/// Calls of one token, as counted by the upstream.
#[derive(Clone, Copy)]
pub(crate) struct TokenCalls {
    calls: u32,
    first: Instant,
    last: Instant,
}

impl TokenCalls {
    pub(crate) fn new(at: Instant) -> Self {
        Self { calls: 0, first: at, last: at }
    }

    pub(crate) fn count(&mut self, at: Instant) {
        self.calls += 1;
        self.first = self.first.min(at);
        self.last = self.last.max(at);
    }

    /// Allowed number of calls between the first and the last.
    fn bound(&self, upstream: &UpstreamConfig) -> f64 {
        let time = (self.last - self.first).as_secs_f64();
        CALLS_FACTOR * upstream.requests_per_second * time + f64::from(upstream.burst)
    }
}

/// The printed report.
pub(crate) struct Report {
    head: String,
    /// Rows of requests and errors.
    requests: Vec<String>,
    /// Rows of the time until a client knows that a task is final.
    times: Vec<String>,
    notes: Vec<String>,
    targets: Vec<Target>,
    upstream: UpstreamConfig,
}

struct Target {
    title: String,
    what: &'static str,
    found: String,
    allowed: String,
    is_met: bool,
}

impl Report {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let head = format!(
            "refrain {} · seed {} · {} s per scenario with uniform finishes · leeway {} ms",
            env!("CARGO_PKG_VERSION"),
            arguments.seed,
            arguments.length.as_secs(),
            arguments.leeway.as_millis()
        );
        Self {
            head,
            requests: Vec::new(),
            times: Vec::new(),
            notes: Vec::new(),
            targets: Vec::new(),
            upstream: Config::default().upstream,
        }
    }

    /// Whether every target was met.
    pub(crate) fn holds(&self) -> bool {
        self.targets.iter().all(|target| target.is_met)
    }

    /// Adds the sides of a scenario, the direct one first.
    pub(crate) fn add(&mut self, scenario: &Scenario, rows: &[Row]) {
        for row in rows {
            self.add_row(scenario, row);
        }
        let [direct, others @ ..] = rows else { return };
        for row in others {
            self.add_targets(scenario, direct, row);
        }
        if let (Some(comparison), [even, learnt]) = (scenario.comparison, others) {
            self.add_comparison(scenario, comparison, even, learnt);
        }
    }

    fn add_row(&mut self, scenario: &Scenario, row: &Row) {
        let (seen, known) = (&row.seen, &row.seen.known);
        let side = format!("| {} | {} |", scenario.title, row.kind.as_str());
        self.requests.push(format!(
            "{side} {} | {} | {} | {} | {} |",
            seen.polls,
            row.upstream_calls,
            row.too_many_requests_sent,
            seen.too_many_requests,
            seen.errors.values().sum::<u64>(),
        ));
        self.times.push(format!(
            "{side} {} | {} | {} | {} | {} |",
            seconds(at_share(known, 0.5)),
            seconds(at_share(known, 0.95)),
            seconds(at_share(known, 1.0)),
            row.never_known,
            seconds(Some(seen.longest_response)),
        ));
        let side = format!("{}, {}", scenario.title, row.kind.as_str());
        if !seen.errors.is_empty() {
            self.notes.push(format!("{side}: other errors: {:?}", seen.errors));
        }
        if seen.accepted_submissions + seen.refused_submissions > 0 {
            let (accepted, refused) = (seen.accepted_submissions, seen.refused_submissions);
            self.notes.push(format!("{side}: started tasks: {accepted} accepted, {refused} refused"));
        }
    }

    fn add_targets(&mut self, scenario: &Scenario, direct: &Row, row: &Row) {
        let title = format!("{}, {}", scenario.title, row.kind.as_str());
        let upstream = &self.upstream;
        let targets = &mut self.targets;
        let mut target = |what, found: String, allowed: String, is_met| {
            targets.push(Target { title: title.clone(), what, found, allowed, is_met });
        };
        let mut none = |what, found: u64| target(what, found.to_string(), "0".to_owned(), found == 0);
        let seen = &row.seen;
        none("429s received", seen.too_many_requests);
        none("other errors", seen.errors.values().sum());
        none("never known", row.never_known as u64);

        let excess = |token: &TokenCalls| f64::from(token.calls) / token.bound(upstream);
        if let Some(token) = row.tokens.values().max_by(|one, other| excess(one).total_cmp(&excess(other))) {
            let (found, allowed) = (token.calls.to_string(), format!("{:.1}", token.bound(upstream)));
            target("calls of a token", found, allowed, excess(token) <= 1.0);
        }
        let (calls, directly) = (row.upstream_calls, direct.upstream_calls);
        target("calls, directly", calls.to_string(), directly.to_string(), calls <= directly);

        let beyond_pause = |known: &Known| known.after.saturating_sub(known.pause);
        let mut beyond: Vec<Duration> = seen.known.iter().map(beyond_pause).collect();
        beyond.sort_unstable();
        let cycle = self.cycle(scenario);
        let mut latest = |what, share: f64, allowed: Duration| {
            let found = rank(&beyond, share).copied();
            let is_met = found.is_some_and(|found| found <= allowed);
            self.targets.push(Target {
                title: title.clone(),
                what,
                found: seconds(found),
                allowed: seconds(Some(allowed)),
                is_met,
            });
        };
        latest("p95 after the pause", 0.95, cycle + TOLERANCE);
        latest("max after the pause", 1.0, LONGEST_WAIT.max(2 * cycle) + TOLERANCE);
    }

    /// The time in which every id of the token with the most ids is fetched once.
    fn cycle(&self, scenario: &Scenario) -> Duration {
        let ids = scenario.ids_per_token().iter().map(HashSet::len).max().unwrap_or(0);
        let calls = u32::try_from(ids.div_ceil(self.upstream.max_batch)).unwrap_or(u32::MAX);
        let cycle = Duration::from_secs_f64(f64::from(calls) / self.upstream.requests_per_second);
        // Every second call may be for an unknown id of a single lookup.
        if scenario.has_single_unknown_ids() { 2 * cycle } else { cycle }
    }

    fn add_comparison(&mut self, scenario: &Scenario, comparison: Comparison, even: &Row, learnt: &Row) {
        let title = format!("{}, learnt", scenario.title);
        let mut target = |what, found: f64, allowed: f64| {
            let is_met = found <= allowed;
            let (found, allowed) = (format!("{found:.2}"), format!("{allowed:.2}"));
            self.targets.push(Target { title: title.clone(), what, found, allowed, is_met });
        };
        let at =
            |row: &Row, share| at_share(&row.seen.known, share).map_or(f64::NAN, |time| time.as_secs_f64());
        let median = at(learnt, 0.5) / at(even, 0.5);
        match comparison {
            Comparison::Measured => {}
            Comparison::Median { ratio } => target("median ÷ that of even order", median, ratio),
            Comparison::Calls { ratio, p95 } => {
                let calls = learnt.upstream_calls as f64 / even.upstream_calls as f64;
                target("calls ÷ those of even order", calls, ratio);
                target("p95 in seconds", at(learnt, 0.95), p95.as_secs_f64());
            }
        }
        self.notes.push(format!("{title}: median ÷ that of even order: {median:.2}"));
        let (even, learnt) = (calls_by_ids(scenario, even), calls_by_ids(scenario, learnt));
        let shares = even.iter().map(|(ids, calls)| {
            let learnt = learnt.get(ids).copied().unwrap_or(0);
            format!("{ids}: {learnt} instead of {calls}")
        });
        let shares: Vec<_> = shares.collect();
        self.notes.push(format!("{title}: calls by the number of the token's ids: {}", shares.join(", ")));
    }
}

/// Sums the calls of all tokens with the same number of ids.
fn calls_by_ids(scenario: &Scenario, row: &Row) -> BTreeMap<usize, u32> {
    let mut sums = BTreeMap::new();
    for (number, ids) in scenario.ids_per_token().iter().enumerate() {
        let calls = row.tokens.get(&token(number)).map_or(0, |calls| calls.calls);
        *sums.entry(ids.len()).or_default() += calls;
    }
    sums
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.head)?;
        writeln!(
            f,
            "| scenario | side | client polls | upstream calls | 429s sent | 429s received | other errors |"
        )?;
        writeln!(f, "| --- | --- | --: | --: | --: | --: | --: |")?;
        for row in &self.requests {
            writeln!(f, "{row}")?;
        }
        writeln!(f, "\n| scenario | side | median | p95 | max | never known | longest response |")?;
        writeln!(f, "| --- | --- | --: | --: | --: | --: | --: |")?;
        for row in &self.times {
            writeln!(f, "{row}")?;
        }
        if !self.notes.is_empty() {
            writeln!(f)?;
        }
        for note in &self.notes {
            writeln!(f, "- {note}")?;
        }
        writeln!(f, "\n| scenario, side | target | found | allowed | result |")?;
        writeln!(f, "| --- | --- | --: | --: | --- |")?;
        for Target { title, what, found, allowed, is_met } in &self.targets {
            let result = if *is_met { "pass" } else { "**FAIL**" };
            writeln!(f, "| {title} | {what} | {found} | {allowed} | {result} |")?;
        }
        let missed = self.targets.iter().filter(|target| !target.is_met).count();
        writeln!(f, "\n{} targets, {missed} missed", self.targets.len())
    }
}

/// The time within which this share of the sorted final records was known.
fn at_share(sorted: &[Known], share: f64) -> Option<Duration> {
    rank(sorted, share).map(|known| known.after)
}

/// The item of a sorted list below which this share of the items lies.
fn rank<T>(sorted: &[T], share: f64) -> Option<&T> {
    sorted.get(((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1))
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or_else(|| "–".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
}
