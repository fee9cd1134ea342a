//! The `dir` source: a thread that watches a folder of manifests. The operating system tells which files changed; a slow
//! poll finds what it did not tell (a file changed behind a symlink, a network file system, a replaced folder). What
//! is read, what is kept and what goes is decided in `folder`.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use crate::status::{Kind, Phase};
use crate::writer::Writer;

mod folder;
mod pods;

pub(crate) use pods::FolderPods;

use folder::{Folder, Stamp};

/// A change is applied once nothing more happened this long: editors and `cp` touch a file several times.
const QUIET: Duration = Duration::from_millis(20);
/// ... but never later than this after its first sign, so that a change is in force within 100 ms.
const LATEST: Duration = Duration::from_millis(60);
/// How often the folder is looked at without a sign. 2 s: the time a user waits before doubting.
const POLL: Duration = Duration::from_secs(2);
/// A poll may take this share of the time (1/50), so that a folder of 100,000 files does not keep a core busy.
const POLL_SHARE: u32 = 50;

/// A running `dir` source. Dropping it ends its thread.
pub(crate) struct DirSource {
    stop: Arc<AtomicBool>,
    wake: Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

enum Message {
    Event(notify::Result<notify::Event>),
    Stop,
}

impl DirSource {
    /// Starts watching `path`.
    ///
    /// # Errors
    /// The folder is missing or unreadable, or the thread cannot be made.
    pub(crate) fn start(path: PathBuf, mut writer: Writer, pods: Arc<FolderPods>) -> io::Result<Self> {
        // Whether it can be read at all is the configuration's business, what is in it is not.
        std::fs::read_dir(&path)?;
        let (wake, messages) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        writer.keep_every_pod(Arc::clone(&pods.roster));
        let scanner = Scanner {
            source: path.display().to_string(),
            path,
            folder: Folder::default(),
            writer,
            pods,
            stop: Arc::clone(&stop),
            identity: None,
            watcher: None,
            events: wake.clone(),
        };
        let thread = std::thread::Builder::new().name("discovery-dir".to_owned()).spawn(move || {
            scanner.run(&messages);
        })?;
        Ok(Self { stop, wake, thread: Some(thread) })
    }
}

impl Drop for DirSource {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Fails only when the thread has ended already.
        let _ = self.wake.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Scanner {
    source: String,
    path: PathBuf,
    folder: Folder,
    writer: Writer,
    pods: Arc<FolderPods>,
    stop: Arc<AtomicBool>,
    /// Device and inode of the folder that is watched.
    identity: Option<(u64, u64)>,
    watcher: Option<RecommendedWatcher>,
    events: Sender<Message>,
}

impl Scanner {
    fn run(mut self, messages: &Receiver<Message>) {
        for kind in Kind::ALL {
            self.writer.board.set_phase(kind, Phase::Listing);
        }
        let mut next = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            match messages.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Message::Event(event)) => {
                    let mut batch = Batch::default();
                    batch.add(event, &self.path);
                    if !batch.is_empty() {
                        batch.collect(messages, &self.path);
                        self.apply(&batch);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let began = Instant::now();
                    self.watch();
                    self.scan();
                    next = Instant::now() + POLL.max(began.elapsed() * POLL_SHARE);
                }
            }
        }
    }

    /// Watches the folder, anew when another one stands in its place.
    fn watch(&mut self) {
        let identity = std::fs::metadata(&self.path).ok().map(|meta| (meta.dev(), meta.ino()));
        if identity.is_none() || identity == self.identity {
            return;
        }
        let events = self.events.clone();
        let watcher = notify::recommended_watcher(move |event| {
            let _ = events.send(Message::Event(event));
        })
        .and_then(|mut watcher| {
            watcher.watch(&self.path, RecursiveMode::NonRecursive)?;
            if let Some(parent) = symlink_parent(&self.path) {
                watcher.watch(parent, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        });
        match watcher {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                self.identity = identity;
                self.writer.board.mended(&self.source, "watch");
            }
            Err(error) => {
                let text = format!("changes are found only by looking every {} s: {error}", POLL.as_secs());
                self.writer.board.problem(&self.source, "watch", &text);
            }
        }
    }

    fn apply(&mut self, batch: &Batch) {
        if batch.all {
            self.watch();
            self.scan();
            return;
        }
        for name in &batch.names {
            self.read(name, true);
        }
        self.finish();
    }

    /// Looks at every file; those whose stamp is the old one are not read.
    fn scan(&mut self) {
        let names = match self.names() {
            Ok(names) => names,
            Err(error) => {
                let text = format!("the folder cannot be read ({error}); the last good view is served");
                for kind in Kind::ALL {
                    self.writer.board.failed(kind, &text);
                }
                self.writer.board.problem(&self.source, "", &text);
                self.pods.away();
                return;
            }
        };
        self.writer.board.mended(&self.source, "");
        let here: HashSet<&str> = names.iter().map(String::as_str).collect();
        for name in self.folder.names() {
            if !here.contains(&*name) {
                self.folder.forget(&name, &mut self.writer);
            }
        }
        for name in &names {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.read(name, false);
        }
        self.finish();
    }

    fn names(&self) -> io::Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(&self.path)? {
            if let Some(name) = manifest_name(&entry?.file_name()) {
                names.insert(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Reads a file, unless `told` is false and it looks as it did.
    fn read(&mut self, name: &str, told: bool) {
        let path = self.path.join(name);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => {
                let stamp = Stamp::of(&meta);
                if told || self.folder.stamp(name) != Some(stamp) {
                    let text = std::fs::read_to_string(&path);
                    self.folder.read(name, stamp, text, &mut self.writer);
                }
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Gone, or a symlink to nowhere. While the folder itself is away this is not the file's doing.
                if self.path.is_dir() {
                    self.folder.forget(name, &mut self.writer);
                }
            }
            Err(error) => self.folder.read(name, Stamp::default(), Err(error), &mut self.writer),
        }
    }

    /// Settles what the files claimed and publishes.
    fn finish(&mut self) {
        for name in self.folder.contested() {
            self.read(&name, true);
        }
        match self.folder.settle(&mut self.writer) {
            Ok(()) => self.writer.board.mended(&self.source, "folder"),
            Err(text) => self.writer.board.problem(&self.source, "folder", &text),
        }
        for kind in Kind::ALL {
            self.writer.board.heard(kind);
            self.writer.board.listed_once(kind);
        }
        self.writer.view.set_complete();
        self.writer.publish();
        self.pods.read();
    }
}

/// The signs of one change.
#[derive(Default)]
struct Batch {
    /// Look at everything.
    all: bool,
    names: BTreeSet<String>,
    /// Files that were written to and not closed yet.
    writing: BTreeSet<String>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        !self.all && self.names.is_empty()
    }

    /// Takes further signs until it is quiet.
    fn collect(&mut self, messages: &Receiver<Message>, folder: &Path) {
        let latest = Instant::now() + LATEST;
        loop {
            let left = latest.saturating_duration_since(Instant::now());
            let wait = if self.writing.is_empty() { QUIET.min(left) } else { left };
            match messages.recv_timeout(wait) {
                Ok(Message::Event(event)) => self.add(event, folder),
                // A stop is seen by its flag.
                Ok(Message::Stop) | Err(_) => return,
            }
        }
    }

    fn add(&mut self, event: notify::Result<notify::Event>, folder: &Path) {
        // Events may have been lost: look at everything.
        let Ok(event) = event else {
            self.all = true;
            return;
        };
        if event.need_rescan() {
            self.all = true;
            return;
        }
        let closed = event.kind == EventKind::Access(AccessKind::Close(AccessMode::Write));
        if event.kind.is_access() && !closed {
            // Our own reading, above all.
            return;
        }
        let written = matches!(event.kind, EventKind::Modify(ModifyKind::Data(_)));
        for path in &event.paths {
            if path.parent() != Some(folder) {
                // The folder itself, or (where it is a symlink) its parent's entry for it.
                self.all |= path == folder;
                continue;
            }
            match path.file_name() {
                Some(name) if name.as_encoded_bytes().starts_with(b"..") => self.all = true,
                Some(name) => {
                    let Some(name) = manifest_name(name) else {
                        continue;
                    };
                    if written {
                        self.writing.insert(name.to_owned());
                    } else {
                        self.writing.remove(name);
                    }
                    self.names.insert(name.to_owned());
                }
                None => self.all = true,
            }
        }
    }
}

/// The name as text, when it is a manifest's: `.yaml`, `.yml` or `.json`, and not hidden.
fn manifest_name(name: &OsStr) -> Option<&str> {
    let name = name.to_str().filter(|name| !name.starts_with('.'))?;
    let extension = Path::new(name).extension()?.to_str()?;
    ["yaml", "yml", "json"].contains(&extension).then_some(name)
}

/// Where a folder that is itself a symlink has its entry: it may be swapped there.
fn symlink_parent(path: &Path) -> Option<&Path> {
    let linked = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
    path.parent().filter(|parent| linked && !parent.as_os_str().is_empty())
}
