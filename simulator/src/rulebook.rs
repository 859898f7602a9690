//! The rules in force, and which of them a call falls under.
//!
//! [`super::rules`] says what a rule is; called by [`super::exchange`], twice a call: once its head is read, for rules
//! that answer so early, and once it came whole.

use std::sync::Arc;

use super::record::RecordedCall;
use super::rules::Rule;

type Predicate = Box<dyn Fn(&RecordedCall) -> bool + Send + Sync>;

/// What a call must be like; `None` asks for nothing.
#[derive(Default)]
pub(super) struct Matcher {
    pub(super) method: Option<String>,
    pub(super) path: Option<String>,
    pub(super) action: Option<String>,
    pub(super) id: Option<String>,
    pub(super) token: Option<String>,
    pub(super) look_ups: bool,
    pub(super) more_ids_than: Option<usize>,
    pub(super) predicate: Option<Predicate>,
}

impl Matcher {
    fn matches_head(&self, call: &RecordedCall) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == found)
        };
        let may_look_up = || call.method == "POST" && call.path().ends_with("/tasks");
        is(&self.method, Some(&call.method))
            && is(&self.path, Some(call.path()))
            && (!self.look_ups || may_look_up())
            && is(&self.token, call.token.as_deref())
    }

    /// Whether the head is all it looks at.
    fn is_head_only(&self) -> bool {
        !self.look_ups
            && self.action.is_none()
            && self.id.is_none()
            && self.more_ids_than.is_none()
            && self.predicate.is_none()
    }

    fn matches(&self, call: &RecordedCall) -> bool {
        self.matches_head(call)
            && (!self.look_ups || call.is_lookup())
            && self.action.as_deref().is_none_or(|action| call.action() == Some(action))
            && self.id.as_ref().is_none_or(|id| call.ids().contains(id))
            && self.more_ids_than.is_none_or(|count| call.ids().len() > count)
            && self.predicate.as_ref().is_none_or(|predicate| predicate(call))
    }
}

/// The rules in force, in the order they were given.
#[derive(Default)]
pub(super) struct Rules {
    rules: Vec<Active>,
}

struct Active {
    rule: Arc<Rule>,
    matched: u64,
}

impl Rules {
    pub(super) fn add(&mut self, rule: Rule) {
        self.rules.push(Active { rule: Arc::new(rule), matched: 0 });
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    /// The rule of a call whose body is still to come, if that can be told and the rule answers so early.
    pub(super) fn pick_early(&mut self, call: &RecordedCall) -> Option<Arc<Rule>> {
        for active in &mut self.rules {
            if !active.rule.matcher.matches_head(call) || active.is_spent() {
                continue;
            }
            if !active.rule.early || !active.rule.matcher.is_head_only() {
                return None;
            }
            // One that lets its first matches pass counts this one in `pick`.
            if active.matched >= active.rule.skip && active.count() {
                return Some(Arc::clone(&active.rule));
            }
        }
        None
    }

    /// The rule of a call that came whole.
    pub(super) fn pick(&mut self, call: &RecordedCall) -> Option<Arc<Rule>> {
        self.rules.iter_mut().find_map(|active| {
            (active.rule.matcher.matches(call) && active.count()).then(|| Arc::clone(&active.rule))
        })
    }
}

impl Active {
    /// Counts one more match; says whether the rule is for it.
    fn count(&mut self) -> bool {
        self.matched += 1;
        self.matched > self.rule.skip && !self.was_spent_before(self.matched)
    }

    fn is_spent(&self) -> bool {
        self.was_spent_before(self.matched + 1)
    }

    fn was_spent_before(&self, matched: u64) -> bool {
        self.rule.times.is_some_and(|times| matched > self.rule.skip.saturating_add(times))
    }
}
