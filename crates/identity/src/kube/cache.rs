//! What the controller issued, kept in a file that only this process' user can read, so that a restart need not wait for an API
//! server that is away. The file is a convenience: whatever is wrong with it is told in one line, and the certificate is asked for.
//! It has one line of text, the chain, the key and the roots, in PEM.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::material::{Material, MaterialError, Pem};
use crate::spiffe::SpiffeId;

/// Bytes of the file: a hundred roots are less. Two of them, the old one and the new one, fit into the chart's volume of 1 MiB.
const MAX_FILE: usize = 256 << 10;
/// How long the file may take when the process starts; after that it counts as unreadable. It is in memory where the chart has it.
const READ: Duration = Duration::from_secs(5);
/// Before a file that could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// The first line, with the name of the roots that the controller was told of behind it.
const HEAD: &str = "# posthouse identity, of no use on another node; told: ";
/// Bytes of that name: a SHA-256 in hexadecimal has 64.
const MAX_TOLD: usize = 128;
const KEY_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const KEY_END: &str = "-----END PRIVATE KEY-----";

/// What outlives the process.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) chain: Vec<u8>,
    pub(super) key: String,
    pub(super) roots: String,
    /// The bundle that the controller was told of, as it calls it.
    pub(super) told: Option<String>,
}

/// Why the file is not used; never with any of its text.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is no regular file")]
    NoFile,
    #[error("others than its owner may use it (mode {0:o}), so its key is no secret; it has to have mode 600")]
    Open(u32),
    #[error("it belongs to the user {owner}, not to {user}, as whom this process runs")]
    Owner { owner: u32, user: u32 },
    #[error("it has more than {MAX_FILE} bytes")]
    Large,
    #[error("it is not what this program writes")]
    Broken,
    #[error(transparent)]
    Content(#[from] MaterialError),
    #[error("it cannot be read within {READ:?}")]
    Slow,
}

/// The file.
#[derive(Clone, Debug)]
pub(super) struct Cache(PathBuf);

impl Cache {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The source's name for people.
    pub(super) fn source(&self) -> String {
        format!("cache {}", self.0.display())
    }

    /// What the file has, if it is `expected`'s and valid now; none if there is no file.
    pub(super) async fn read(&self, expected: &SpiffeId) -> Result<Option<(Material, Kept)>, Unusable> {
        let (path, expected) = (self.0.clone(), expected.clone());
        // Files may be on a network.
        let reading = tokio::task::spawn_blocking(move || match read(&path)? {
            Some(kept) => Ok(Some((kept.material(&expected, SystemTime::now())?, kept))),
            None => Ok(None),
        });
        let read = timeout(READ, reading).await.map_err(|_| Unusable::Slow)?;
        read.map_err(io::Error::other)?
    }

    /// Writes whatever `kept` gets, the latest only, until its sender is gone.
    pub(super) async fn follow(self, mut kept: watch::Receiver<Option<Arc<Kept>>>) {
        let mut failed: Option<String> = None;
        loop {
            tokio::select! {
                changed = kept.changed() => if changed.is_err() { return },
                () = sleep(AGAIN), if failed.is_some() => {}
            }
            let Some(latest) = kept.borrow_and_update().clone() else { continue };
            let path = self.0.clone();
            let written = tokio::task::spawn_blocking(move || write(&path, &latest)).await;
            let problem = match written.map_err(io::Error::other).flatten() {
                Ok(()) => None,
                Err(error) => Some(error.to_string()),
            };
            if let Some(error) = problem.as_ref().filter(|_| problem != failed) {
                let file = self.0.display();
                tracing::warn!(%file, error, "--identity-cache cannot be written: a restart has to wait for the API server");
            }
            failed = problem;
        }
    }
}

impl Kept {
    pub(super) fn material(&self, expected: &SpiffeId, now: SystemTime) -> Result<Material, MaterialError> {
        let pem = Pem { certificates: &self.chain, key: self.key.as_bytes(), roots: self.roots.as_bytes() };
        Material::parse(&pem, expected, now)
    }

    fn text(&self) -> Vec<u8> {
        // The annotation is text of any kind, and a line of it must stay one.
        let plain = |told: &&str| {
            told.len() <= MAX_TOLD && told.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
        };
        let told = self.told.as_deref().filter(plain).unwrap_or_default();
        let parts: [&[u8]; 8] = [
            HEAD.as_bytes(),
            told.as_bytes(),
            b"\n",
            self.chain.trim_ascii(),
            b"\n",
            self.key.trim().as_bytes(),
            b"\n",
            self.roots.trim().as_bytes(),
        ];
        parts.concat()
    }

    /// The key is what parts the chain and the roots.
    fn parse(text: &str) -> Option<Self> {
        let (head, rest) = text.split_once('\n')?;
        let told = head.strip_prefix(HEAD)?;
        let begin = rest.find(KEY_BEGIN)?;
        let end = begin + rest.get(begin..)?.find(KEY_END)? + KEY_END.len();
        Some(Self {
            chain: rest.get(..begin)?.trim().as_bytes().to_vec(),
            key: rest.get(begin..end)?.to_owned(),
            roots: rest.get(end..)?.trim().to_owned(),
            told: (!told.is_empty()).then(|| told.to_owned()),
        })
    }
}

pub(super) fn read(path: &Path) -> Result<Option<Kept>, Unusable> {
    // Without waiting for the other end of a pipe, and not where a link leads.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(rustix::io::Errno::LOOP) => return Err(Unusable::NoFile),
        Err(error) => return Err(Unusable::Io(error.into())),
    };
    let about = file.metadata()?;
    let (mode, owner, user) = (about.mode() & 0o7777, about.uid(), rustix::process::geteuid().as_raw());
    if !about.is_file() {
        return Err(Unusable::NoFile);
    }
    if owner != user {
        return Err(Unusable::Owner { owner, user });
    }
    if mode & 0o077 != 0 {
        return Err(Unusable::Open(mode));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut text)?;
    if text.len() > MAX_FILE {
        return Err(Unusable::Large);
    }
    let text = String::from_utf8(text).map_err(|_| Unusable::Broken)?;
    Kept::parse(&text).ok_or(Unusable::Broken).map(Some)
}

/// Writes it whole or not at all, and never where others could read it.
pub(super) fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    let text = kept.text();
    if text.len() > MAX_FILE {
        return Err(io::Error::other(format!("it would have more than {MAX_FILE} bytes")));
    }
    let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    name.push(".new");
    let new = path.with_file_name(name);
    // One that was left behind may have another owner or mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    // Whatever the umask takes away.
    let written = file
        .set_permissions(Permissions::from_mode(0o600))
        .and_then(|()| file.write_all(&text))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // Half a key is of no use to anybody. What is wrong is in `written` already.
        let _gone = fs::remove_file(&new);
    }
    written
}
