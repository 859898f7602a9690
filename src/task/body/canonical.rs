//! Bodies as nearly every client writes them: an object of strings, or of a list of strings, in visible ASCII on one line and
//! without escapes. Reading one of these takes a fraction of what serde takes for any JSON; whatever is not plain is
//! left to it.

use memchr::memchr;

use super::{Fields, Ids, Verb};
use crate::task::TaskId;

/// What a plain body holds; `None` for any other, which says nothing about it.
pub(super) fn fields(body: &[u8], max_ids: usize) -> Option<Fields> {
    // All of them, without a stop at the first: the compiler looks at many at a time.
    let is_plain =
        body.iter().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~') & (*byte != b'\\'));
    let mut text = Text { rest: std::str::from_utf8(body).ok().filter(|_| is_plain)? };
    let mut fields = Fields::default();
    let mut has_action = false;
    text.expect(b'{')?;
    loop {
        let key = text.string()?;
        text.expect(b':')?;
        match key {
            "action" if !has_action => {
                has_action = true;
                fields.action = Verb::of(text.string()?);
            }
            "id" if fields.id.is_none() => fields.id = Some(TaskId::parse(text.string()?)?),
            "ids" if fields.ids.is_none() => fields.ids = Some(text.ids(max_ids)?),
            _ => return None,
        }
        match text.next()? {
            b',' => {}
            b'}' => break,
            _ => return None,
        }
    }
    text.next().is_none().then_some(fields)
}

/// What is still to be read of a plain body: a `"` in it is an end of a string.
struct Text<'a> {
    rest: &'a str,
}

impl<'a> Text<'a> {
    /// Takes white space and the byte after it.
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

    fn ids(&mut self, max_ids: usize) -> Option<Ids> {
        let mut ids = Ids::default();
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
    fn what_clients_send_is_plain() {
        for body in [
            r#"{"action":"retrieve","id":"1a6ac2ad-10f2-4e2b-b500-66ec27fe82ad"}"#,
            r#"{"action": "retrieve", "id": "a"}"#,
            r#" { "ids" : [ "a", "b" ] , "action" : "retrieve_batch" } "#,
            r#"{"action":"delete","id":"a"}"#,
        ] {
            assert!(fields(body.as_bytes(), 10).is_some(), "{body}");
        }
    }

    proptest! {
        /// Bodies put together from pieces of JSON, most of them broken: what is read here reads the same elsewhere.
        #[test]
        fn a_plain_body_means_what_it_means_to_serde(pieces in proptest::collection::vec(
            prop_oneof![
                8 => proptest::sample::select(vec![
                    "{", "}", "[", "]", ":", ",", " ", "\n", "\u{b}", "\u{0}", "\u{7f}", "\"", "\\", "1", "null", "é", "{}", "[]",
                    "\"\"", "\"a\"", "\"b\\n\"", "\"é\"", "\"id\"", "\"ids\"", "\"action\"", "\"user_id\"",
                ]),
                4 => proptest::sample::select(vec![
                    "\"action\":\"retrieve\"", "\"action\": \"retrieve_batch\"", "\"action\":\"delete\"", "\"id\":\"a\"",
                    "\"id\": \"b\"", "\"ids\":[\"a\",\"b\"]", "\"ids\":[ \"a\" ]", "\"ids\":[]", "\"user_id\":\"u\"", ",", ",",
                ]),
            ],
            0..8,
        ), is_object in any::<bool>()) {
            let inner = pieces.concat();
            let body = if is_object { format!("{{{inner}}}") } else { inner };
            if let Some(plain) = fields(body.as_bytes(), 1) {
                prop_assert_eq!(Some(plain), Fields::parse(body.as_bytes(), 1), "{}", body);
            }
        }
    }
}
