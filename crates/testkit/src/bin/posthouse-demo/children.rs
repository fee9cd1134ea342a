//! The demo's processes: started with their output in a log file each, watched while they come up, and ended together.
//! A child is told by the kernel to end when this process is gone, however it went.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use tokio::process::{Child, Command};

/// How long children may take to end by themselves.
const GRACE: Duration = Duration::from_secs(5);
/// Log lines shown of a child that failed.
const LAST_LINES: usize = 10;
/// The hidden first argument that makes this program become a child, see [`become_child`].
pub(crate) const BECOME_CHILD: &str = "__child";

/// One running process.
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) pid: u32,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

/// All of them; dropping it kills what still runs.
pub(crate) struct Children {
    logs: PathBuf,
    processes: Vec<Process>,
}

impl Children {
    /// None yet; each will log into the folder `logs`.
    pub(crate) fn new(logs: PathBuf) -> Self {
        Self { logs, processes: Vec::new() }
    }

    /// Starts `program`. Must be called on the main thread: the kernel ties a child to the thread that made it.
    ///
    /// # Errors
    /// When the log file or the process cannot be made.
    pub(crate) fn start(&mut self, name: &str, program: &Path, arguments: &[String]) -> anyhow::Result<u32> {
        let log = self.logs.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let child = Command::new(std::env::current_exe()?)
            .arg(BECOME_CHILD)
            .arg(getpid().as_raw_nonzero().to_string())
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C of the terminal reaches this process alone, which then ends the others in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let pid = child.id().context("a process that was just started has an id")?;
        self.processes.push(Process { name: name.to_owned(), pid, child, log, ended: None });
        Ok(pid)
    }

    /// Fails when a child has ended, with its name and its last words.
    ///
    /// # Errors
    /// See above.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.reap();
        let Some(dead) = self.processes.iter().find(|process| process.ended.is_some()) else {
            return Ok(());
        };
        let status = dead.ended.map_or_else(String::new, |status| status.to_string());
        bail!("{} ended at its start ({status}). {}", dead.name, dead.last_words());
    }

    /// Names of children that have ended although nobody asked them to.
    pub(crate) fn ended(&mut self) -> Vec<String> {
        self.reap();
        self.processes
            .iter()
            .filter_map(|process| process.ended.map(|status| format!("{} ({status})", process.name)))
            .collect()
    }

    /// The process called `name`.
    pub(crate) fn find(&self, name: &str) -> Option<&Process> {
        self.processes.iter().find(|process| process.name == name)
    }

    /// SIGTERM to all, then SIGKILL to those that are still there after [`GRACE`]; returns the names of the latter.
    pub(crate) async fn end(mut self) -> Vec<String> {
        self.reap();
        for process in self.processes.iter().filter(|process| process.ended.is_none()) {
            if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
                // It may have ended in the meantime.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let deadline = tokio::time::Instant::now() + GRACE;
        let mut stubborn = Vec::new();
        for process in &mut self.processes {
            if tokio::time::timeout_at(deadline, process.child.wait()).await.is_err() {
                stubborn.push(process.name.clone());
                let _ = process.child.kill().await;
            }
        }
        stubborn
    }

    fn reap(&mut self) {
        for process in self.processes.iter_mut().filter(|process| process.ended.is_none()) {
            process.ended = process.child.try_wait().ok().flatten();
        }
    }
}

impl Process {
    /// The end of the log.
    pub(crate) fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(LAST_LINES);
        if lines.is_empty() {
            return format!("It logged nothing ({}).", self.log.display());
        }
        format!("The end of {}:\n  {}", self.log.display(), lines[from..].join("\n  "))
    }
}

/// The other half of [`Children::start`], in the new process: asks the kernel for SIGTERM when the parent is gone, then
/// becomes the program. The request outlives the exec, and needs no unsafe code between fork and exec.
/// `arguments` are the parent's id, the program and its arguments.
///
/// # Errors
/// Always: on success this process is the program.
pub(crate) fn become_child(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> io::Error {
    let parent = arguments.next();
    let Some(program) = arguments.next() else {
        return io::Error::other("no program given");
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        return error.into();
    }
    // The parent may have gone before the request was made.
    let still_there = getppid().map(|pid| pid.as_raw_nonzero().to_string().into());
    if still_there != parent {
        return io::Error::other("the demo has ended");
    }
    let error = std::process::Command::new(&program).args(arguments).exec();
    io::Error::new(error.kind(), format!("{}: {error}", program.to_string_lossy()))
}
