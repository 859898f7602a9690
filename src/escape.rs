//! Escaping of text from outside for terminals, logs and messages.

use std::fmt::{self, Write};

/// Whether a terminal may interpret the character as something else than a visible letter: control
/// characters, line separators, changes of the writing direction, and invisible characters.
pub fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// A writer that passes unsafe characters on as `\n`, `\u{1b}` and so on.
pub struct EscapingWriter<'a, W>(pub &'a mut W);

impl<W: Write> Write for EscapingWriter<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut written = 0;
        for (start, character) in text.char_indices().filter(|(_, character)| is_unsafe(*character)) {
            self.0.write_str(&text[written..start])?;
            write!(self.0, "{}", character.escape_default())?;
            written = start + character.len_utf8();
        }
        self.0.write_str(&text[written..])
    }
}

/// Returns the text with unsafe characters as `\n`, `\u{1b}` and so on.
pub fn printable(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    EscapingWriter(&mut escaped).write_str(text).expect("writing to a String cannot fail");
    escaped
}

/// Returns JSON with unsafe characters as JSON escapes. They occur only inside strings.
pub fn printable_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if is_unsafe(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(escaped, "\\u{unit:04x}").expect("writing to a String cannot fail");
            }
        } else {
            escaped.push(character);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_characters_are_escaped_and_others_are_kept() {
        let text = "a\n\u{1b}[31m\u{9b}2J\u{202e}\u{200b}\u{e0041}é\\'";
        assert_eq!(printable(text), "a\\n\\u{1b}[31m\\u{9b}2J\\u{202e}\\u{200b}\\u{e0041}é\\'");
        let json = printable_json(&serde_json::to_string(text).unwrap());
        assert!(!json.chars().any(is_unsafe), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
