//! Certificate, key and trust bundle from files, watched by their content: editors, `kubectl cp` and the symlinks that
//! Kubernetes swaps for mounted Secrets all look different to a watcher of events, and the same to a reader.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio::time::Instant;

use crate::certificates::Certificates;
use crate::material::{Material, MaterialError, Part, Pem};
use crate::spiffe::SpiffeId;

/// How often the files are read. 1 s: three small files.
const LOOK_EACH: Duration = Duration::from_secs(1);
/// How long a fault may stay before it is one: who writes the files writes one after the other.
const SETTLE: Duration = Duration::from_secs(10);
/// Bytes of a file that are read: a hundred roots are less than half of it.
const MAX_FILE: u64 = 1 << 20;

/// The three files, as flags name them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `--tls-cert`.
    pub certificates: PathBuf,
    /// `--tls-key`.
    pub key: PathBuf,
    /// `--tls-ca`.
    pub roots: PathBuf,
}

/// What is wrong with the files, in one line that begins with the flag and the file.
#[derive(Debug, Error)]
pub enum FilesError {
    /// A file cannot be read.
    #[error("{flag} {}: {error}; the file must exist and be readable", .path.display())]
    Read {
        /// Which one.
        flag: &'static str,
        /// Which one.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// A file is no certificate, no key or no bundle.
    #[error("{flag} {}: {error}", .path.display())]
    Content {
        /// Which one.
        flag: &'static str,
        /// Which one.
        path: PathBuf,
        /// What is wrong.
        error: MaterialError,
    },
}

/// What the files had.
#[derive(PartialEq, Eq)]
struct Contents {
    certificates: Vec<u8>,
    key: Vec<u8>,
    roots: Vec<u8>,
}

impl Files {
    /// Reads and checks them once.
    pub fn read(&self, expected: &SpiffeId, now: SystemTime) -> Result<Material, FilesError> {
        self.parse(&self.contents()?, expected, now)
    }

    /// The source's name for people.
    #[must_use]
    pub fn source(&self) -> String {
        format!("file {}", self.certificates.display())
    }

    fn contents(&self) -> Result<Contents, FilesError> {
        let read = |part| {
            let (flag, path) = self.part(part);
            contents(path).map_err(|error| FilesError::Read { flag, path: path.clone(), error })
        };
        Ok(Contents { certificates: read(Part::Certificates)?, key: read(Part::Key)?, roots: read(Part::Roots)? })
    }

    fn parse(&self, contents: &Contents, expected: &SpiffeId, now: SystemTime) -> Result<Material, FilesError> {
        let pem = Pem { certificates: &contents.certificates, key: &contents.key, roots: &contents.roots };
        Material::parse(&pem, expected, now).map_err(|error| {
            let (flag, path) = self.part(error.part);
            FilesError::Content { flag, path: path.clone(), error }
        })
    }

    fn part(&self, part: Part) -> (&'static str, &PathBuf) {
        match part {
            Part::Certificates => ("--tls-cert", &self.certificates),
            Part::Key => ("--tls-key", &self.key),
            Part::Roots => ("--tls-ca", &self.roots),
        }
    }

    /// Installs what the files get, until it is dropped. A fault is told once it has stayed for some seconds; the certificate
    /// before stays in use.
    pub async fn watch(self, certificates: Certificates) {
        let source = self.source();
        let mut watch = Watch::default();
        let mut looks = tokio::time::interval(LOOK_EACH);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let (files, id) = (self.clone(), certificates.id().clone());
            // Files may be on a network.
            let look = tokio::task::spawn_blocking(move || watch.look(&files, &id, Instant::now()));
            let Ok((seen, watched)) = look.await else { return };
            watch = watched;
            match seen {
                Seen::Nothing => {}
                Seen::Good(material) => {
                    certificates.install(*material, &source);
                }
                Seen::Fault(error) => certificates.rejected(&source, &error),
            }
        }
    }
}

fn contents(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other(format!("it has more than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

/// What is known of the looks so far.
#[derive(Default)]
struct Watch {
    /// What was parsed last and is in use.
    installed: Option<Contents>,
    /// Since when there is a fault.
    faulty: Option<Instant>,
}

enum Seen {
    /// The same as before, or a fault that is too young to tell.
    Nothing,
    Good(Box<Material>),
    Fault(FilesError),
}

impl Watch {
    fn look(mut self, files: &Files, id: &SpiffeId, now: Instant) -> (Seen, Self) {
        let read = files.contents().and_then(|contents| {
            if self.installed.as_ref() == Some(&contents) {
                return Ok(None);
            }
            let material = files.parse(&contents, id, SystemTime::now())?;
            Ok(Some((contents, material)))
        });
        let seen = match read {
            Ok(None) if self.faulty.take().is_none() => Seen::Nothing,
            // Back to the old content: installing it again ends the fault that was told.
            Ok(None) => match files.read(id, SystemTime::now()) {
                Ok(material) => Seen::Good(Box::new(material)),
                Err(_) => Seen::Nothing,
            },
            Ok(Some((contents, material))) => {
                self.installed = Some(contents);
                self.faulty = None;
                Seen::Good(Box::new(material))
            }
            Err(error) => {
                let since = *self.faulty.get_or_insert(now);
                if now.saturating_duration_since(since) < SETTLE { Seen::Nothing } else { Seen::Fault(error) }
            }
        };
        (seen, self)
    }
}

#[cfg(test)]
mod tests;
