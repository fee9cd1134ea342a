//! What the files of a folder say, file by file and document by document. Each document is known by a hash of its text: only
//! changed ones are parsed. A document that does not fit takes nothing away: as long as a file has one, what the file
//! said before stays. Files claim the objects that they name, so that an object moves between files without a gap.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::Metadata;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::manifest::split::{self, Document};
use crate::manifest::{self, Parsed, Unfit};
use crate::object::{Key, Reduced};
use crate::writer::Writer;

/// What a problem calls a file that could not be read at all.
const UNREADABLE: &str = "read";

/// By what a poll tells that a file is not the one that was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(meta: &Metadata) -> Self {
        Self {
            inode: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Folder {
    files: BTreeMap<Arc<str>, File>,
    /// Which files name an object, in the order of their names: the first one's word counts.
    claims: HashMap<Key, SmallVec<[Arc<str>; 1]>>,
    /// Objects that a file ceased to name and that are still in the view.
    gone: HashSet<Key>,
    /// Files to be read again in full, since another file ceased to name an object of theirs.
    contested: BTreeSet<Arc<str>>,
    hasher: RandomState,
}

#[derive(Default)]
struct File {
    stamp: Stamp,
    hash: u64,
    documents: Vec<Read>,
    /// Objects of earlier versions that are kept because this version does not fit wholly.
    kept: Vec<Key>,
}

/// A document that was read.
struct Read {
    hash: u64,
    keys: SmallVec<[Key; 1]>,
    /// What was wrong: which object, and why.
    problems: Vec<(String, String)>,
    /// Whether something in it did not fit, so that it may lack objects.
    failed: bool,
}

impl Folder {
    /// The files that were read.
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        self.files.keys().cloned().collect()
    }

    /// How a file looked when it was read.
    pub(crate) fn stamp(&self, name: &str) -> Option<Stamp> {
        self.files.get(name).map(|file| file.stamp)
    }

    /// Takes a file's text.
    pub(crate) fn read(&mut self, name: &str, stamp: Stamp, text: io::Result<String>, writer: &mut Writer) {
        let name: Arc<str> = Arc::from(name);
        let text = match text {
            Ok(text) => text,
            Err(error) => {
                self.files.entry(Arc::clone(&name)).or_default().stamp = stamp;
                writer.board.problem(
                    &name,
                    UNREADABLE,
                    &format!("the file cannot be read ({error}); its last good objects stay"),
                );
                return;
            }
        };
        let again = self.contested.remove(&name);
        let hash = self.hasher.hash_one(text.as_bytes());
        let old = self.files.remove(&name);
        if let Some(mut old) = old {
            if old.hash == hash && !again {
                old.stamp = stamp;
                writer.board.mended(&name, UNREADABLE);
                self.files.insert(name, old);
                return;
            }
            let file = self.version(&name, &text, Some((old, again)), writer);
            self.files.insert(name, File { stamp, hash, ..file });
        } else {
            let file = self.version(&name, &text, None, writer);
            self.files.insert(name, File { stamp, hash, ..file });
        }
    }

    /// Reads a new version of a file against its old one.
    fn version(&mut self, name: &Arc<str>, text: &str, old: Option<(File, bool)>, writer: &mut Writer) -> File {
        let is_json = name.ends_with(".json");
        let (documents, mut broken) = if is_json { split::json(text) } else { (split::yaml(text), None) };
        let (old, again) = old.unwrap_or_default();
        let before: Vec<Key> = old.documents.iter().flat_map(|d| &d.keys).chain(&old.kept).cloned().collect();
        if documents.is_empty() && broken.is_none() && !before.is_empty() {
            // Most likely between being truncated and being written.
            broken = Some("there is nothing in the file; delete it to remove its objects".to_owned());
        }
        let mut known: HashMap<u64, Read> = HashMap::new();
        if !again {
            known.extend(old.documents.into_iter().map(|document| (document.hash, document)));
        }
        let mut now: HashSet<Key> = HashSet::new();
        let mut read = Vec::with_capacity(documents.len());
        for (number, document) in documents.iter().enumerate() {
            let hash = self.hasher.hash_one(document.text.as_bytes());
            let document = match known.remove(&hash) {
                Some(same) => {
                    now.extend(same.keys.iter().cloned());
                    same
                }
                None => self.document(name, is_json, (number + 1, document), hash, &mut now, writer),
            };
            read.push(document);
        }
        let failed = broken.is_some() || read.iter().any(|document| document.failed);
        let mut kept = Vec::new();
        for key in before.into_iter().filter(|key| !now.contains(key)) {
            if failed {
                kept.push(key);
            } else {
                self.unclaim(name, key);
            }
        }
        self.report(name, broken, &read, writer);
        File { documents: read, kept, ..File::default() }
    }

    fn document(
        &mut self,
        name: &Arc<str>,
        is_json: bool,
        (number, document): (usize, &Document<'_>),
        hash: u64,
        now: &mut HashSet<Key>,
        writer: &mut Writer,
    ) -> Read {
        let place = || format!("document {number} (line {})", document.line);
        let mut read = Read { hash, keys: SmallVec::new(), problems: Vec::new(), failed: false };
        let parse = if is_json { manifest::json } else { manifest::yaml };
        let parsed = parse(document.text, &mut writer.context);
        let mut results = vec![parsed];
        while let Some(result) = results.pop() {
            match result {
                Ok(Parsed::List(items)) => results.extend(items.into_iter().rev()),
                Ok(Parsed::Other) => writer.work.ignored += 1,
                Ok(Parsed::Object(reduced)) => {
                    writer.work.parsed += 1;
                    self.object(name, *reduced, now, &mut read, writer);
                }
                Err(Unfit { key, error }) => {
                    writer.work.parsed += 1;
                    writer.work.skipped += 1;
                    read.failed = true;
                    let what = key.map_or_else(place, |key| format!("{key}, {}", place()));
                    read.problems.push((what, error));
                }
            }
        }
        read
    }

    fn object(
        &mut self,
        name: &Arc<str>,
        reduced: Reduced,
        now: &mut HashSet<Key>,
        read: &mut Read,
        writer: &mut Writer,
    ) {
        let key = reduced.key.clone();
        read.problems.extend(reduced.notes.iter().map(|note| (key.to_string(), note.clone())));
        if reduced.object.is_none() {
            return;
        }
        if !now.insert(key.clone()) {
            read.problems.push((key.to_string(), "it stands twice in this file; the first one counts".to_owned()));
            // Whichever goes, the file is to be read in full: as a failed document it is, and nothing is lost by it.
            read.hash = !read.hash;
            return;
        }
        let claims = self.claims.entry(key.clone()).or_default();
        if let Err(at) = claims.binary_search(name) {
            claims.insert(at, Arc::clone(name));
        }
        if let Some(other) = claims.iter().find(|claim| *claim != name) {
            let text = format!("it stands in the file {other}, too; the first file by name counts");
            read.problems.push((key.to_string(), text));
        }
        if claims.first() == Some(name) {
            writer.apply(reduced);
        }
        read.keys.push(key);
    }

    fn report(&self, name: &str, broken: Option<String>, read: &[Read], writer: &Writer) {
        let mut still = Vec::new();
        if let Some(error) = broken {
            writer.board.problem(name, "", &format!("{error}; its last good objects stay"));
            still.push(String::new());
        }
        for (object, error) in read.iter().flat_map(|document| &document.problems) {
            writer.board.problem(name, object, error);
            still.push(object.clone());
        }
        writer.board.mended_except(name, &still);
    }

    /// A file is no more.
    pub(crate) fn forget(&mut self, name: &str, writer: &mut Writer) {
        if let Some((name, file)) = self.files.remove_entry(name) {
            let keys: Vec<Key> = file.documents.into_iter().flat_map(|d| d.keys).chain(file.kept).collect();
            for key in keys {
                self.unclaim(&name, key);
            }
            self.contested.remove(&name);
        }
        writer.board.mended_except(name, &[]);
    }

    fn unclaim(&mut self, name: &Arc<str>, key: Key) {
        if let Some(claims) = self.claims.get_mut(&key) {
            claims.retain(|claim| claim != name);
            self.contested.extend(claims.iter().cloned());
            if claims.is_empty() {
                self.claims.remove(&key);
            }
        }
        self.gone.insert(key);
    }

    /// The files that must be read again since they share objects with a file that changed.
    pub(crate) fn contested(&self) -> Vec<Arc<str>> {
        self.contested.iter().cloned().collect()
    }

    /// Takes those objects away that no file names any more.
    ///
    /// # Errors
    /// Nothing at all would be left, which is not believed: the view stays as it is. Says so in words.
    pub(crate) fn settle(&mut self, writer: &mut Writer) -> Result<(), String> {
        self.gone.retain(|key| !self.claims.contains_key(key));
        if self.claims.is_empty() && !self.gone.is_empty() {
            return Err(format!("no file has an object any more; the last {} stay", self.gone.len()));
        }
        writer.remove(self.gone.iter());
        self.gone.clear();
        Ok(())
    }
}
