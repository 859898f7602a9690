//! Fast path for bodies as nearly every client writes them.
//!
//! Such a body is an object of strings, or of a list of strings, in printable ASCII without
//! escapes. All other bodies are left to serde, which takes 15 % more instructions for a stored
//! batch of 50 (docs/decisions/006-hit-path.md).

use memchr::memchr;

use super::{Action, BodyFields, IdList};
use crate::task::TaskId;

/// Parses a canonical body. `None` means that the body has another form, not that it is invalid.
pub(super) fn parse(body: &[u8], max_ids: usize) -> Option<BodyFields> {
    // Without an early exit, so that the compiler vectorises the loop.
    let is_plain =
        body.iter().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~') & (*byte != b'\\'));
    let mut scanner = Scanner { rest: std::str::from_utf8(body).ok().filter(|_| is_plain)? };
    let mut fields = BodyFields::default();
    scanner.expect(b'{')?;
    loop {
        let key = scanner.string()?;
        scanner.expect(b':')?;
        match key {
            "action" if fields.action.is_none() => fields.action = Some(Action::parse(scanner.string()?)),
            "id" if fields.id.is_none() => fields.id = Some(TaskId::parse(scanner.string()?)?),
            "ids" if fields.ids.is_none() => fields.ids = Some(scanner.ids(max_ids)?),
            _ => return None,
        }
        match scanner.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    scanner.next().is_none().then_some(fields)
}

/// Unread rest of a canonical body. It has no escapes, so every `"` starts or ends a string.
struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    /// Skips spaces and returns the byte after them.
    fn next(&mut self) -> Option<u8> {
        let rest = self.rest.as_bytes();
        let at = rest.iter().position(|byte| *byte != b' ')?;
        self.rest = &self.rest[at + 1..];
        Some(rest[at])
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        self.expect(b'"')?;
        let end = memchr(b'"', self.rest.as_bytes())?;
        let string = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Some(string)
    }

    fn ids(&mut self, max_ids: usize) -> Option<IdList> {
        let mut ids = IdList::default();
        self.expect(b'[')?;
        loop {
            ids.push(TaskId::parse(self.string()?)?, max_ids);
            match self.next()? {
                b',' => {}
                b']' => return Some(ids),
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn usual_client_bodies_are_canonical() {
        for body in [
            r#"{"action":"retrieve","id":"1a6ac2ad-10f2-4e2b-b500-66ec27fe82ad"}"#,
            r#"{"action": "retrieve", "id": "a"}"#,
            r#" { "ids" : [ "a", "b" ] , "action" : "retrieve_batch" } "#,
            r#"{"action":"delete","id":"a"}"#,
            r#"{"id":"1a6ac2ad-10f2-4e2b-b500-66ec27fe82ad"}"#,
        ] {
            assert!(parse(body.as_bytes(), 10).is_some(), "{body}");
        }
    }

    proptest! {
        /// Bodies made of pieces of JSON, most of them invalid.
        #[test]
        fn canonical_parser_agrees_with_serde(pieces in proptest::collection::vec(
            prop_oneof![
                8 => proptest::sample::select(vec![
                    "{", "}", "[", "]", ":", ",", " ", "\n", "\u{b}", "\u{0}", "\u{7f}", "\"", "\\", "1", "null", "é", "{}", "[]",
                    "\"\"", "\"a\"", "\"b\\n\"", "\"é\"", "\"id\"", "\"ids\"", "\"action\"", "\"user_id\"",
                ]),
                4 => proptest::sample::select(vec![
                    "\"action\":\"retrieve\"", "\"action\": \"retrieve_batch\"", "\"action\":\"delete\"", "\"id\":\"a\"",
                    "\"id\": \"b\"", "\"ids\":[\"a\",\"b\"]", "\"ids\":[ \"a\" ]", "\"ids\":[]", "\"id\":\"\"", "\"limit\":12",
                    "\"offset\":0", "\"user_id\":\"u\"", ",", ",",
                ]),
            ],
            0..8,
        ), is_object in any::<bool>()) {
            let inner = pieces.concat();
            let body = if is_object { format!("{{{inner}}}") } else { inner };
            if let Some(fields) = parse(body.as_bytes(), 1) {
                prop_assert_eq!(Some(fields), BodyFields::parse(body.as_bytes(), 1), "{}", body);
            }
        }
    }
}
