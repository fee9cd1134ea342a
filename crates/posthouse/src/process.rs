//! This process as the kernel sees it: its limit on open files, which every connection needs two of, and the numbers
//! behind the `process_*` metrics.

use std::fs;
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit on open files to what the administrator allows, and returns the limit that is then in force.
/// `None` means unlimited. The soft limit is 1024 on many systems, for the sake of programs that use select(2).
pub(crate) fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, wanted) {
            tracing::warn!(%error, "the limit on open files cannot be raised");
            return limit.current;
        }
    }
    limit.maximum
}

/// A look at the process; what cannot be read is missing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system time.
    pub(crate) cpu: Option<Duration>,
    pub(crate) resident_bytes: Option<u64>,
    pub(crate) virtual_bytes: Option<u64>,
    pub(crate) threads: Option<u64>,
    pub(crate) open_files: Option<usize>,
    pub(crate) max_files: Option<u64>,
}

impl Usage {
    /// Reads /proc/self.
    pub(crate) fn now() -> Self {
        let mut usage = Self {
            open_files: fs::read_dir("/proc/self/fd").ok().map(Iterator::count),
            max_files: getrlimit(Resource::Nofile).current,
            ..Self::default()
        };
        if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
            usage.read_stat(&stat);
        }
        usage
    }

    /// proc_pid_stat(5). The command's name is in parentheses and may hold spaces and parentheses, so fields are
    /// counted from the last one; the first after it is field 3.
    fn read_stat(&mut self, stat: &str) {
        let Some((_, rest)) = stat.rsplit_once(')') else { return };
        let fields: Vec<u64> = rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
        let field = |number: usize| fields.get(number - 3).copied();
        if let (Some(user), Some(system)) = (field(14), field(15)) {
            let ticks = rustix::param::clock_ticks_per_second().max(1);
            self.cpu = Some(Duration::from_millis((user + system).saturating_mul(1000) / ticks));
        }
        self.threads = field(20);
        self.virtual_bytes = field(23);
        self.resident_bytes = field(24).map(|pages| pages.saturating_mul(rustix::param::page_size() as u64));
    }
}

/// Unix time of `at` in seconds.
pub(crate) fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_limit_is_raised_to_the_hard_limit() {
        let raised = raise_open_files();
        assert_eq!(raised, getrlimit(Resource::Nofile).current);
        assert_eq!(raised, getrlimit(Resource::Nofile).maximum);
    }

    #[test]
    fn stat_is_read_behind_a_name_with_parentheses() {
        let mut usage = Usage::default();
        usage.read_stat(
            "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 1000 123456 10 18446744073709551615",
        );
        let ticks = rustix::param::clock_ticks_per_second();
        assert_eq!(usage.cpu, Some(Duration::from_millis(300 * 1000 / ticks)));
        assert_eq!(usage.threads, Some(9));
        assert_eq!(usage.virtual_bytes, Some(123_456));
        assert_eq!(usage.resident_bytes, Some(10 * rustix::param::page_size() as u64));
        usage.read_stat("nonsense");
    }

    #[test]
    fn the_own_process_has_threads_memory_and_files() {
        let usage = Usage::now();
        assert!(usage.threads >= Some(1) && usage.resident_bytes > Some(0) && usage.open_files > Some(0));
    }
}
