//! The table, and whether refrain kept its targets.

use std::fmt;
use std::time::{Duration, Instant};

use refrain::config::{Config, UpstreamConfig};

use crate::arguments::Arguments;
use crate::client::{Known, Seen};
use crate::scenario::Scenario;
use crate::side::Kind;

/// One round trip to the upstream and back to the client, with both servers and all clients in one process.
const TOLERANCE: Duration = Duration::from_millis(250);

/// How much above rate × time calls may be.
const CALLS_FACTOR: f64 = 1.1;

/// What one side of a scenario brought.
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) seen: Seen,
    pub(crate) upstream_calls: usize,
    pub(crate) too_many_requests_sent: u64,
    /// Pairs of a client and a task it asks for.
    pub(crate) never_known: usize,
    pub(crate) tokens: Vec<TokenCalls>,
}

/// One token's calls as the upstream saw them.
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

    /// The most there may be between the first call and the last.
    fn bound(&self, upstream: &UpstreamConfig) -> f64 {
        let time = (self.last - self.first).as_secs_f64();
        CALLS_FACTOR * upstream.requests_per_second * time + f64::from(upstream.burst)
    }
}

/// Everything that is printed.
pub(crate) struct Report {
    head: String,
    rows: Vec<String>,
    notes: Vec<String>,
    targets: Vec<Target>,
    upstream: UpstreamConfig,
}

struct Target {
    is_met: bool,
    text: String,
}

impl Report {
    pub(crate) fn new(arguments: &Arguments) -> Self {
        let head = format!(
            "refrain {} · seed {} · {} s a scenario · the upstream forgives {} ms",
            env!("CARGO_PKG_VERSION"),
            arguments.seed,
            arguments.length.as_secs(),
            arguments.leeway.as_millis()
        );
        let upstream = Config::default().upstream;
        Self { head, rows: Vec::new(), notes: Vec::new(), targets: Vec::new(), upstream }
    }

    /// Whether every target was met.
    pub(crate) fn holds(&self) -> bool {
        self.targets.iter().all(|target| target.is_met)
    }

    pub(crate) fn add(&mut self, scenario: &Scenario, row: &Row) {
        let (seen, known) = (&row.seen, &row.seen.known);
        self.rows.push(format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            scenario.title,
            row.kind.as_str(),
            seen.polls,
            row.upstream_calls,
            row.too_many_requests_sent,
            seen.too_many_requests,
            seen.errors.values().sum::<u64>(),
            at_share(known, 0.5),
            at_share(known, 0.95),
            at_share(known, 1.0),
            row.never_known,
            seconds(seen.longest_answer),
        ));
        if !seen.errors.is_empty() {
            self.notes.push(format!("{}, {}: {:?}", scenario.title, row.kind.as_str(), seen.errors));
        }
        if row.kind == Kind::Refrain && scenario.has_targets {
            self.judge(scenario, row);
        }
    }

    fn judge(&mut self, scenario: &Scenario, row: &Row) {
        let mut target = |is_met: bool, what: String| {
            self.targets.push(Target { is_met, text: format!("{}: {what}", scenario.title) });
        };
        let seen = &row.seen;
        target(
            seen.too_many_requests == 0,
            format!("no 429 reaches a client ({} did)", seen.too_many_requests),
        );
        let errors: u64 = seen.errors.values().sum();
        target(errors == 0, format!("no other error reaches a client ({errors} did)"));

        let excess = |token: &TokenCalls| f64::from(token.calls) / token.bound(&self.upstream);
        match row.tokens.iter().max_by(|one, other| excess(one).total_cmp(&excess(other))) {
            None => target(false, "no call reached the upstream".to_owned()),
            Some(token) => target(
                excess(token) <= 1.0,
                format!(
                    "a token's calls within {CALLS_FACTOR} × rate × time + burst ({} in {}, {:.1} allowed)",
                    token.calls,
                    seconds(token.last - token.first),
                    token.bound(&self.upstream)
                ),
            ),
        }

        let calls =
            u32::try_from(scenario.most_wanted().div_ceil(self.upstream.max_batch)).unwrap_or(u32::MAX);
        let cycle = Duration::from_secs_f64(f64::from(calls) / self.upstream.requests_per_second);
        let beyond_pause = |known: &Known| known.after.saturating_sub(known.pause);
        let worst = seen.known.iter().map(beyond_pause).max().unwrap_or_default();
        target(
            worst <= cycle + TOLERANCE && !seen.known.is_empty(),
            format!(
                "a finish is known within a cycle of {} + the client's pause + {} (the last after its pause + {})",
                seconds(cycle),
                seconds(TOLERANCE),
                seconds(worst)
            ),
        );
        target(row.never_known == 0, format!("every finish becomes known ({} did not)", row.never_known));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.head)?;
        writeln!(
            f,
            "| scenario | side | client polls | upstream calls | 429s sent by the upstream | 429s seen by clients \
             | other errors | known after: median | p95 | max | never known | longest answer |"
        )?;
        writeln!(f, "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |")?;
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        for note in &self.notes {
            writeln!(f, "\nother errors: {note}")?;
        }
        writeln!(f)?;
        for Target { is_met, text } in &self.targets {
            writeln!(f, "{} {text}", if *is_met { "pass" } else { "FAIL" })?;
        }
        let missed = self.targets.iter().filter(|target| !target.is_met).count();
        writeln!(f, "\n{} targets, {missed} missed", self.targets.len())
    }
}

/// The time within which this share of the sorted finishes was known.
fn at_share(sorted: &[Known], share: f64) -> String {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).map_or_else(|| "–".to_owned(), |known| seconds(known.after))
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
