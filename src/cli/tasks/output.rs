//! Output of the `tasks` commands: stdout that may be closed, files that appear only when complete,
//! progress.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, StdoutLock, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::CliError;
pub(super) use crate::escape::printable;
use crate::escape::printable_json;

/// 9999-12-31T23:59:59Z, the last second that RFC 3339 can express.
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

    /// Writes an object as one line of JSON.
    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let json = serde_json::to_string(value).expect("strings and numbers have a JSON form");
        self.line(&printable_json(&json))
    }

    pub(super) fn finish(mut self) -> Result<(), CliError> {
        self.0.flush().map_err(|error| stdout_failed(&error))
    }
}

pub(super) fn stdout_failed(error: &io::Error) -> CliError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::StdoutClosed,
        _ => CliError::Runtime(format!("cannot write to stdout: {error}")),
    }
}

/// Writes a line to stderr. Ignores errors, because a closed stderr is not a failure.
pub(super) fn write_stderr(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Formats seconds since the Unix epoch as in RFC 3339.
pub(super) fn time(unix: i64) -> String {
    let seconds = u64::try_from(unix).unwrap_or(0).min(LAST_SECOND);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// Formats the time since `unix` in its largest unit.
pub(super) fn age(unix: i64, now: i64) -> String {
    let seconds = now.saturating_sub(unix).max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Returns `1 task`, `2 tasks` and so on.
pub(super) fn task_count(count: u64) -> String {
    format!("{count} task{}", if count == 1 { "" } else { "s" })
}

/// Returns a progress bar on stderr. It is hidden if stderr is not a terminal.
pub(super) fn progress(length: Option<u64>, template: &str) -> ProgressBar {
    let bar = match length {
        Some(length) => ProgressBar::new(length),
        None => ProgressBar::no_length(),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("the template is valid"))
}

/// A file with a temporary name until it is complete. Removed on drop if it is not. Only its owner
/// may read it, because it contains the tasks of all readers.
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

    /// Syncs the file and gives it its final name. Replaces an existing file.
    pub(super) fn replace(mut self) -> io::Result<()> {
        File::open(&self.temporary)?.sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
        self.is_complete = true;
        sync_directory_of(&self.target)
    }

    /// Syncs the file and gives it its final name. Fails if a file with that name exists.
    pub(super) fn publish(self) -> io::Result<()> {
        File::open(&self.temporary)?.sync_all()?;
        match fs::hard_link(&self.temporary, &self.target) {
            // The temporary name is removed when `self` is dropped.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
            // The file system has no hard links.
            Err(_) if fs::symlink_metadata(&self.target).is_err() => {
                fs::rename(&self.temporary, &self.target)?;
            }
            Err(error) => return Err(error),
        }
        let target = self.target.clone();
        drop(self);
        sync_directory_of(&target)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_complete {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Syncs the directory, so that the name survives a power loss.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_out_of_range_are_clamped() {
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
    fn new_file_appears_only_when_complete() {
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
