//! Task ids and service names, made by one parsing function each; after it the code trusts them.

use std::fmt;
use std::sync::Arc;

/// The longest id that is still a look-up, in bytes of UTF-8; a longer one makes the body "anything else".
const MAX_ID_BYTES: usize = 1024;

/// The longest id that may share an upstream call with others.
const MAX_FOLDABLE_ID_BYTES: usize = 128;

/// A task's id, compared as bytes: `a` and `A`, `1` and `01`, NFC and NFD are different tasks.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

impl TaskId {
    /// An id of 1 to 1,024 bytes; `None` for any other length.
    pub fn parse(id: &str) -> Option<Self> {
        (1..=MAX_ID_BYTES).contains(&id.len()).then(|| Self(id.into()))
    }

    /// The id as it was asked for.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the id may share an upstream call with others: `[A-Za-z0-9_-]{1,128}`.
    pub fn is_batchable(&self) -> bool {
        self.0.len() <= MAX_FOLDABLE_ID_BYTES && self.0.bytes().all(is_word_byte)
    }
}

/// Escaped, so that an id with a newline or a terminal sequence stays one harmless line in a log.
impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_debug())
    }
}

/// The name of a service, the first path segment of `/{service}/tasks`: `[A-Za-z0-9_-]{1,64}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service(Arc<str>);

impl Service {
    /// A service name; `None` where it is not `[A-Za-z0-9_-]{1,64}`.
    pub fn parse(name: &str) -> Option<Self> {
        ((1..=64).contains(&name.len()) && name.bytes().all(is_word_byte)).then(|| Self(name.into()))
    }

    /// The name as it stands in the path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foldable_ids_are_the_plain_ones() {
        for (id, foldable) in [
            ("1a6ac2ad-10f2-4e2b-b500-66ec27fe82ad", true),
            ("a_B-9", true),
            ("a b", false),
            ("a,b", false),
            ("ä", false),
            ("a\u{0}", false),
            (&"x".repeat(128), true),
            (&"x".repeat(129), false),
        ] {
            assert_eq!(TaskId::parse(id).unwrap().is_batchable(), foldable, "{id:?}");
        }
    }

    #[test]
    fn lengths_have_bounds() {
        assert!(TaskId::parse("").is_none());
        assert!(TaskId::parse(&"x".repeat(1024)).is_some());
        assert!(TaskId::parse(&"x".repeat(1025)).is_none());
        assert!(Service::parse(&"x".repeat(64)).is_some());
        assert!(Service::parse(&"x".repeat(65)).is_none());
        assert!(Service::parse("a/b").is_none());
    }

    #[test]
    fn debug_keeps_one_line() {
        let id = TaskId::parse("a\n\u{1b}[31m</script>").unwrap();
        let shown = format!("{id:?}");
        assert!(!shown.contains('\n') && !shown.contains('\u{1b}'), "{shown}");
    }
}
