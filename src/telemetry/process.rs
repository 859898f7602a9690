//! Metrics of the operating system about this process, under the names that all exporters use
//! (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>).
//!
//! They are read from `/proc` for each request, and absent on systems without it.

use std::fs;

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// Metrics of this process; `None` for those that the system does not provide.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    /// User and system CPU time, in seconds.
    pub(super) cpu_seconds: Option<f64>,
    /// Resident memory.
    pub(super) resident_bytes: Option<u64>,
    /// Virtual memory.
    pub(super) virtual_bytes: Option<u64>,
    /// Start, in seconds since the Unix epoch.
    pub(super) start_seconds: Option<f64>,
    /// Number of threads.
    pub(super) threads: Option<u64>,
    /// Number of open file descriptors.
    pub(super) open_fds: Option<u64>,
    /// Limit on open file descriptors.
    pub(super) max_fds: Option<u64>,
}

impl Process {
    /// Reads the current values.
    #[cfg(target_os = "linux")]
    pub(super) fn read() -> Self {
        let mut process = Self {
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64),
            max_fds: rlimit::Resource::NOFILE.get_soft().ok().filter(|limit| *limit < rlimit::INFINITY),
            ..Self::default()
        };
        let units =
            Units { ticks: rustix::param::clock_ticks_per_second(), page: rustix::param::page_size() };
        if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
            let boot = fs::read_to_string("/proc/stat").ok().and_then(|stat| boot_time(&stat));
            process.read_stat(&stat, boot, units);
        }
        process
    }

    /// Returns no values, since there is no `/proc`.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn read() -> Self {
        Self::default()
    }

    /// Parses `/proc/self/stat`, see `proc_pid_stat(5)`. The second field is a name that may
    /// contain any character, so fields are counted from its end.
    #[expect(clippy::cast_precision_loss, reason = "ticks stay far below 2^53")]
    fn read_stat(&mut self, stat: &str, boot: Option<f64>, units: Units) {
        let Some((_, fields)) = stat.rsplit_once(')') else { return };
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        // Numbered as in the manual page; the first two are cut off.
        let field = |number: usize| fields.get(number - 3).and_then(|field| field.parse::<u64>().ok());
        let seconds = |ticks: u64| ticks as f64 / units.ticks as f64;
        self.cpu_seconds = field(14).zip(field(15)).map(|(user, system)| seconds(user + system));
        self.threads = field(20);
        self.start_seconds = field(22).zip(boot).map(|(start, boot)| boot + seconds(start));
        self.virtual_bytes = field(23);
        self.resident_bytes = field(24).map(|pages| pages * units.page as u64);
    }

    /// Registers the values that are known.
    pub(super) fn register(&self, registry: &mut Registry) {
        if let Some(seconds) = self.cpu_seconds {
            let help = "User and system CPU time";
            registry.register_with_unit("cpu", help, Unit::Seconds, ConstCounter::new(seconds));
        }
        if let Some(at) = self.start_seconds {
            let help = "Start of the process, in seconds since the Unix epoch";
            registry.register_with_unit("start_time", help, Unit::Seconds, ConstGauge::new(at));
        }
        for (name, help, unit, value) in [
            ("resident_memory", "Resident memory", Some(Unit::Bytes), self.resident_bytes),
            ("virtual_memory", "Virtual memory", Some(Unit::Bytes), self.virtual_bytes),
            ("open_fds", "Open file descriptors", None, self.open_fds),
            ("max_fds", "Limit on open file descriptors", None, self.max_fds),
            ("threads", "Threads", None, self.threads),
        ] {
            match (value.map(ConstGauge::new), unit) {
                (Some(gauge), Some(unit)) => registry.register_with_unit(name, help, unit, gauge),
                (Some(gauge), None) => registry.register(name, help, gauge),
                (None, _) => {}
            }
        }
    }
}

/// Units of the values in `/proc/self/stat`.
#[derive(Clone, Copy)]
struct Units {
    /// Clock ticks per second.
    ticks: u64,
    /// Bytes per page.
    page: usize,
}

/// Returns the boot time from `/proc/stat`, in seconds since the Unix epoch.
fn boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_name_with_brackets_and_blanks_is_skipped() {
        let stat = "4 (a) (b) c) S 1 4 4 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 9 0 12345 1000000 256 1844";
        let mut process = Process::default();
        process.read_stat(stat, boot_time("cpu 1 2\nbtime 1700000000\n"), Units { ticks: 100, page: 4096 });
        assert_eq!(process.cpu_seconds, Some(2.0));
        assert_eq!((process.threads, process.virtual_bytes), (Some(9), Some(1_000_000)));
        assert_eq!(process.resident_bytes, Some(256 * 4096));
        assert_eq!(process.start_seconds, Some(1_700_000_123.45));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn values_of_this_process_are_plausible() {
        let process = Process::read();
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 1 << 20), "{process:?}");
        assert!(process.open_fds.is_some_and(|open| open > 2), "{process:?}");
        assert!(process.threads.is_some_and(|threads| threads > 0), "{process:?}");
        #[expect(clippy::cast_precision_loss, reason = "seconds")]
        let now = crate::clock::unix_now() as f64;
        let start = process.start_seconds.expect("a start");
        assert!((now - 7200.0..now + 5.0).contains(&start), "{start} {now}");
    }
}
