//! Tokens that commands read from stdin or from a file, never from the command line, where other users
//! of the machine could see them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::CliError;
use crate::token::Token;

/// Longest line with a token, in bytes.
const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// Reads a token from the first line of the file of `--token-file`.
pub(super) fn from_file(path: &Path) -> Result<Token, CliError> {
    let from = format!("--token-file {}", path.display());
    let file = File::open(path)
        .map_err(|error| CliError::Usage(vec![format!("{from}: cannot be read: {error}")]))?;
    read(&mut BufReader::new(file), &from)
}

/// Reads a token from the first line of stdin. `from` is what messages call it.
pub(super) fn from_stdin(from: &str) -> Result<Token, CliError> {
    read(&mut io::stdin().lock(), from)
}

fn read(input: &mut impl BufRead, from: &str) -> Result<Token, CliError> {
    let line = first_line(input)
        .map_err(|error| CliError::Usage(vec![format!("{from}: cannot be read: {error}")]))?;
    Token::parse(&line).ok_or_else(|| {
        CliError::Usage(vec![format!(
            "{from}: the first line must be only the token: visible ASCII characters without \"Bearer\""
        )])
    })
}

/// Reads the first line without its line break.
fn first_line(input: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    input.take(MAX_TOKEN_BYTES).read_line(&mut line)?;
    let line_alone = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line_alone.strip_suffix('\r').unwrap_or(line_alone).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_the_first_line() {
        for (input, expected) in [("a", "a"), ("a\n", "a"), ("a\r\n{}", "a"), ("", ""), ("\na", "")] {
            assert_eq!(first_line(&mut input.as_bytes()).unwrap(), expected);
        }
    }
}
