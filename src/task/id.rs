//! Task ids and service names. Each is created by one parsing function, so its value is always
//! valid.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Longest id of a lookup, in bytes. A request with a longer id is passed through.
const MAX_ID_BYTES: usize = 1024;

/// Longest id in a batch with other ids, in bytes.
const MAX_BATCHABLE_ID_BYTES: usize = 128;

/// Task id, compared as bytes: `a` and `A`, `1` and `01`, or the NFC and NFD forms of a text are
/// different tasks.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

impl TaskId {
    /// Parses an id of 1 to 1,024 bytes. `None` for any other length.
    pub fn parse(id: &str) -> Option<Self> {
        (1..=MAX_ID_BYTES).contains(&id.len()).then(|| Self(id.into()))
    }

    /// Returns the id as requested.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether the id may share an upstream call with other ids: `[A-Za-z0-9_-]{1,128}`.
    pub fn is_batchable(&self) -> bool {
        self.0.len() <= MAX_BATCHABLE_ID_BYTES && self.0.bytes().all(is_plain_byte)
    }
}

/// Escaped, so that a newline or terminal sequence in an id does no harm in a log.
impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_debug())
    }
}

/// Name of a service, the first path segment of `/{service}/tasks`: `[A-Za-z0-9_-]{1,64}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Service(Arc<str>);

impl Service {
    /// Parses a service name. `None` if it is not `[A-Za-z0-9_-]{1,64}`.
    pub fn parse(name: &str) -> Option<Self> {
        ((1..=64).contains(&name.len()) && name.bytes().all(is_plain_byte)).then(|| Self(name.into()))
    }

    /// Returns the name as in the path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serialize for Service {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
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

fn is_plain_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_plain_ids_are_batchable() {
        for (id, batchable) in [
            ("1a6ac2ad-10f2-4e2b-b500-66ec27fe82ad", true),
            ("a_B-9", true),
            ("a b", false),
            ("a,b", false),
            ("ä", false),
            ("a\u{0}", false),
            (&"x".repeat(128), true),
            (&"x".repeat(129), false),
        ] {
            assert_eq!(TaskId::parse(id).unwrap().is_batchable(), batchable, "{id:?}");
        }
    }

    #[test]
    fn ids_and_services_have_limited_lengths() {
        assert!(TaskId::parse("").is_none());
        assert!(TaskId::parse(&"x".repeat(1024)).is_some());
        assert!(TaskId::parse(&"x".repeat(1025)).is_none());
        assert!(Service::parse(&"x".repeat(64)).is_some());
        assert!(Service::parse(&"x".repeat(65)).is_none());
        assert!(Service::parse("a/b").is_none());
    }

    #[test]
    fn debug_of_an_id_is_one_line_without_controls() {
        let id = TaskId::parse("a\n\u{1b}[31m</script>").unwrap();
        let debug = format!("{id:?}");
        assert!(!debug.contains('\n') && !debug.contains('\u{1b}'), "{debug}");
    }
}
