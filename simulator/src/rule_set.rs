//! Active rules and the choice of the rule for a call.

use std::sync::Arc;

use super::calls::RecordedCall;
use super::rules::Rule;

/// Active rules in the order in which they were added.
#[derive(Default)]
pub(super) struct RuleSet {
    rules: Vec<ActiveRule>,
}

struct ActiveRule {
    rule: Arc<Rule>,
    /// Number of calls that matched so far.
    matched: u64,
}

impl RuleSet {
    pub(super) fn add(&mut self, rule: Rule) {
        self.rules.push(ActiveRule { rule: Arc::new(rule), matched: 0 });
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    /// Returns the rule of a call whose body was not read yet, if the head decides and the rule
    /// responds that early.
    pub(super) fn pick_early(&mut self, call: &RecordedCall) -> Option<Arc<Rule>> {
        for active in &mut self.rules {
            if !active.rule.matcher.matches_head(call) || active.is_used_up() {
                continue;
            }
            if !active.rule.responds_early || !active.rule.matcher.is_head_only() {
                return None;
            }
            // A rule that skips this match counts it in `pick`.
            if active.matched >= active.rule.skip && active.count() {
                return Some(Arc::clone(&active.rule));
            }
        }
        None
    }

    /// Returns the rule of a complete call.
    pub(super) fn pick(&mut self, call: &RecordedCall) -> Option<Arc<Rule>> {
        self.rules.iter_mut().find_map(|active| {
            (active.rule.matcher.matches(call) && active.count()).then(|| Arc::clone(&active.rule))
        })
    }
}

impl ActiveRule {
    /// Counts a match and returns whether the rule applies to it.
    fn count(&mut self) -> bool {
        self.matched += 1;
        self.matched > self.rule.skip && !self.is_beyond_limit(self.matched)
    }

    fn is_used_up(&self) -> bool {
        self.is_beyond_limit(self.matched + 1)
    }

    /// Returns whether the match with this number, counted from 1, is beyond [`Rule::times`].
    fn is_beyond_limit(&self, matched: u64) -> bool {
        self.rule.times.is_some_and(|times| matched > self.rule.skip.saturating_add(times))
    }
}
