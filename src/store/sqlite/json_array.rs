//! JSON arrays as parameters of statements: `json_each` makes a table of them, so that one
//! statement reads or writes many rows.

use std::fmt::Write as _;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Returns an array of hexadecimal strings. Each element is the concatenation of its parts. Any
/// bytes are allowed in an id, and hexadecimal needs no escapes.
pub(super) fn of_hex<'a, const PARTS: usize>(elements: impl Iterator<Item = [&'a [u8]; PARTS]>) -> String {
    let mut json = String::from("[");
    for parts in elements {
        json.push_str(if json.len() == 1 { "\"" } else { ",\"" });
        for byte in parts.into_iter().flatten() {
            json.push(char::from(HEX[usize::from(byte >> 4)]));
            json.push(char::from(HEX[usize::from(byte & 15)]));
        }
        json.push('"');
    }
    json.push(']');
    json
}

/// Returns an array of integers.
pub(super) fn of_integers(numbers: &[i64]) -> String {
    let mut json = String::from("[");
    for number in numbers {
        if json.len() > 1 {
            json.push(',');
        }
        write!(json, "{number}").expect("writing to a String does not fail");
    }
    json.push(']');
    json
}
