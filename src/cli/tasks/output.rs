//! How the store commands write: stdout that may be closed, text that is harmless on a terminal, files that are
//! complete or not there, progress.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, StdoutLock, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::CliError;

/// 9999-12-31T23:59:59Z, the last that RFC 3339 can tell.
const LAST_SECOND: u64 = 253_402_300_799;

/// Buffered stdout.
pub(super) struct Output(BufWriter<StdoutLock<'static>>);

impl Output {
    pub(super) fn new() -> Self {
        Self(BufWriter::new(io::stdout().lock()))
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.0.write_all(bytes).map_err(|error| stdout_failed(&error))
    }

    pub(super) fn line(&mut self, line: &str) -> Result<(), CliError> {
        self.write(line.as_bytes())?;
        self.write(b"\n")
    }

    /// An object as one line of JSON.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let json = serde_json::to_string(value).expect("plain data");
        self.line(&printable_json(&json))
    }

    pub(super) fn finish(mut self) -> Result<(), CliError> {
        self.0.flush().map_err(|error| stdout_failed(&error))
    }
}

pub(super) fn stdout_failed(error: &io::Error) -> CliError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::StdoutClosed,
        _ => CliError::Runtime(format!("write to stdout: {error}")),
    }
}

/// A line on stderr; that nobody reads it is no failure.
pub(super) fn write_stderr(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Whether a terminal could take the character for something else than a letter: control characters, line
/// separators, those that turn the direction of writing, those that cannot be seen.
fn is_harmful(character: char) -> bool {
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

/// The text with harmful characters as `\u{1b}`.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if is_harmful(character) {
            write!(shown, "{}", character.escape_unicode()).expect("a String takes everything");
        } else {
            shown.push(character);
        }
    }
    shown
}

/// The same for JSON text: harmful characters stand inside strings only, and get JSON's own escapes.
fn printable_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for character in json.chars() {
        if is_harmful(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(shown, "\\u{unit:04x}").expect("a String takes everything");
            }
        } else {
            shown.push(character);
        }
    }
    shown
}

/// A time since the Unix epoch as RFC 3339.
pub(super) fn time(unix: i64) -> String {
    let seconds = u64::try_from(unix).unwrap_or(0).min(LAST_SECOND);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// How long ago, in its largest unit.
pub(super) fn age(unix: i64, now: i64) -> String {
    let seconds = now.saturating_sub(unix).max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `1 task`, `2 tasks`.
pub(super) fn task_count(count: u64) -> String {
    format!("{count} task{}", if count == 1 { "" } else { "s" })
}

/// Progress on stderr, where that is a terminal.
pub(super) fn progress(length: Option<u64>, template: &str) -> ProgressBar {
    let bar = match length {
        Some(length) => ProgressBar::new(length),
        None => ProgressBar::no_length(),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("a sound template"))
}

/// A file under a temporary name until it is complete; removed if it never is. Readable for its owner alone, as
/// it holds everybody's tasks.
pub(super) struct NewFile {
    target: PathBuf,
    temporary: PathBuf,
    is_complete: bool,
}

impl NewFile {
    pub(super) fn create(target: &Path) -> io::Result<(Self, File)> {
        let target = std::path::absolute(target)?;
        let mut name = target.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_owned();
        name.push(format!(".partial-{:08x}", fastrand::u32(..)));
        let temporary = target.with_file_name(name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        let file = options.open(&temporary)?;
        Ok((Self { target, temporary, is_complete: false }, file))
    }

    pub(super) fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// On disk under its own name, in place of what was there.
    pub(super) fn replace(mut self) -> io::Result<()> {
        File::open(&self.temporary)?.sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
        self.is_complete = true;
        self.sync_folder()
    }

    /// On disk under its own name, unless that is taken.
    pub(super) fn publish(self) -> io::Result<()> {
        File::open(&self.temporary)?.sync_all()?;
        match fs::hard_link(&self.temporary, &self.target) {
            // The temporary name goes with `self`.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            // A file system without links.
            Err(_) if fs::symlink_metadata(&self.target).is_err() => {
                fs::rename(&self.temporary, &self.target)?;
            }
            Err(error) => return Err(error),
        }
        let folder = self.target.clone();
        drop(self);
        sync_folder_of(&folder)
    }

    fn sync_folder(&self) -> io::Result<()> {
        sync_folder_of(&self.target)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_complete {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// So that the name survives a power loss too.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_harmful_reaches_a_terminal() {
        let nasty = "a\n\u{1b}[31m\u{9b}2J\u{202e}\u{200b}\u{e0041}é\\'";
        assert_eq!(printable(nasty), "a\\u{a}\\u{1b}[31m\\u{9b}2J\\u{202e}\\u{200b}\\u{e0041}é\\'");
        let json = printable_json(&serde_json::to_string(nasty).unwrap());
        assert!(!json.chars().any(is_harmful), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), nasty);
    }

    #[test]
    fn times_have_bounds() {
        assert_eq!(time(1_767_119_785), "2025-12-30T18:36:25Z");
        assert_eq!(time(i64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(time(-1), "1970-01-01T00:00:00Z");
        for (ago, shown) in
            [(-5, "0s"), (59, "59s"), (60, "1m"), (7199, "1h"), (86_400, "1d"), (400 * 86_400, "400d")]
        {
            assert_eq!(age(1_000_000_000 - ago, 1_000_000_000), shown);
        }
    }

    #[test]
    fn a_new_file_is_complete_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x");
        let names = || fs::read_dir(folder.path()).unwrap().count();
        let (new, mut file) = NewFile::create(&target).unwrap();
        file.write_all(b"half").unwrap();
        drop(new);
        assert_eq!(names(), 0);
        for _ in 0..2 {
            let (new, mut file) = NewFile::create(&target).unwrap();
            file.write_all(b"whole").unwrap();
            new.replace().unwrap();
            assert_eq!((fs::read(&target).unwrap().as_slice(), names()), (&b"whole"[..], 1));
        }
        let (new, _) = NewFile::create(&target).unwrap();
        assert_eq!(new.publish().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!((fs::read(&target).unwrap().as_slice(), names()), (&b"whole"[..], 1));
        fs::remove_file(&target).unwrap();
        NewFile::create(&target).unwrap().0.publish().unwrap();
        assert_eq!(names(), 1);
    }
}
