//! Conditions under which a rule applies to a call.

use super::calls::RecordedCall;

type Predicate = Box<dyn Fn(&RecordedCall) -> bool + Send + Sync>;

/// Conditions on a call, all of which must hold. `None` and `false` accept every call.
#[derive(Default)]
pub(super) struct Matcher {
    pub(super) method: Option<String>,
    pub(super) path: Option<String>,
    pub(super) action: Option<String>,
    pub(super) id: Option<String>,
    pub(super) token: Option<String>,
    pub(super) lookups_only: bool,
    pub(super) more_ids_than: Option<usize>,
    pub(super) predicate: Option<Predicate>,
}

impl Matcher {
    /// Returns whether the conditions on the head hold.
    pub(super) fn matches_head(&self, call: &RecordedCall) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == found)
        };
        let may_be_lookup = || call.method == "POST" && call.path().ends_with("/tasks");
        is(&self.method, Some(&call.method))
            && is(&self.path, Some(call.path()))
            && (!self.lookups_only || may_be_lookup())
            && is(&self.token, call.token.as_deref())
    }

    /// Returns whether all conditions are on the head.
    pub(super) fn is_head_only(&self) -> bool {
        !self.lookups_only
            && self.action.is_none()
            && self.id.is_none()
            && self.more_ids_than.is_none()
            && self.predicate.is_none()
    }

    /// Returns whether all conditions hold.
    pub(super) fn matches(&self, call: &RecordedCall) -> bool {
        self.matches_head(call)
            && (!self.lookups_only || call.is_lookup())
            && self.action.as_deref().is_none_or(|action| call.action() == Some(action))
            && self.id.as_ref().is_none_or(|id| call.ids().contains(id))
            && self.more_ids_than.is_none_or(|count| call.ids().len() > count)
            && self.predicate.as_ref().is_none_or(|predicate| predicate(call))
    }
}
