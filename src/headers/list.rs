//! Comma-separated list headers (RFC 9110 5.6.1), such as `connection`, `prefer` and `accept`.

use http::HeaderValue;

/// Member of a list header, without the white space around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListMember<'a>(&'a [u8]);

/// Returns the members of all lines of a list header, in order. Empty members are skipped.
///
/// A comma always separates, also within quotes: none of the lists that are read here can have one
/// there.
pub fn list_members<'a>(
    lines: impl IntoIterator<Item = &'a HeaderValue>,
) -> impl Iterator<Item = ListMember<'a>> {
    let members = lines.into_iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    members.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty()).map(ListMember)
}

impl<'a> ListMember<'a> {
    /// The whole member.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Whether the whole member equals `token`, in any letter case.
    pub fn is(self, token: &str) -> bool {
        self.0.eq_ignore_ascii_case(token.as_bytes())
    }

    /// The name and, after `=`, the value without quotes. Parameters, which follow `;`, are left
    /// out. Both are empty if they are not UTF-8.
    pub fn name_and_value(self) -> (&'a str, Option<&'a str>) {
        split_at_equals(self.parts().next().unwrap_or_default())
    }

    /// The value of the first parameter of this name, in any letter case.
    pub fn parameter(self, name: &str) -> Option<&'a str> {
        let parameters = self.parts().skip(1).map(split_at_equals);
        parameters.filter(|(found, _)| found.eq_ignore_ascii_case(name)).find_map(|(_, value)| value)
    }

    fn parts(self) -> impl Iterator<Item = &'a [u8]> {
        self.0.split(|byte| *byte == b';')
    }
}

fn split_at_equals(part: &[u8]) -> (&str, Option<&str>) {
    let part = std::str::from_utf8(part).unwrap_or_default();
    match part.split_once('=') {
        Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
        None => (part.trim(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_all_lines_are_listed_in_order() {
        let lines = [" a ,, B=\"2\"; q = 0.5;x".parse().unwrap(), "c".parse::<HeaderValue>().unwrap()];
        let members: Vec<ListMember<'_>> = list_members(&lines).collect();
        assert_eq!(
            members.iter().map(|member| member.name_and_value()).collect::<Vec<_>>(),
            [("a", None), ("B", Some("2")), ("c", None)]
        );
        assert!(members[0].is("A") && !members[1].is("b"));
        assert_eq!(members[1].parameter("Q"), Some("0.5"));
        assert_eq!((members[1].parameter("x"), members[0].parameter("q")), (None, None));
        assert_eq!(list_members(&[HeaderValue::from_static("")]).count(), 0);
    }
}
