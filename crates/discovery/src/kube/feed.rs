//! Between the watches and the one writer: reads pages and events object by object, so that one bad object spoils
//! nothing, and holds the rules on what an answer may do to the view. Only a complete list takes objects away, and an
//! empty one does not where objects were known before.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::Notify;

use super::SOURCE;
use super::api::{ApiStatus, Failure};
use super::watch::Taker;
use crate::manifest::{self, Parsed, Unfit};
use crate::object::{Key, Reduced};
use crate::snapshot::{ReadError, Snapshot};
use crate::status::{Board, Kind, Phase};
use crate::view::Objects;
use crate::writer::Writer;

/// See the module's text.
pub(crate) struct Feed {
    state: Mutex<State>,
    /// Told by the watches while nothing listens at the server's address.
    pub(crate) unreachable: Notify,
}

const KINDS: usize = Kind::ALL.len();

struct State {
    writer: Writer,
    /// Which kinds the API has listed, or does not have.
    listed: [bool; KINDS],
    /// Which kinds the snapshot tells of.
    warmed: [bool; KINDS],
    /// Of which kinds the last list was empty although objects were known, and was not believed.
    doubted: [bool; KINDS],
    /// The namespaces whose Secrets or ConfigMaps were not asked for yet: a Service that shows a certificate must have it
    /// before there are requests.
    unasked: HashSet<(Kind, Arc<str>)>,
}

/// What a list under way has shown so far.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    names: HashSet<Arc<str>>,
    items: usize,
    /// Items that do not even have a name.
    nameless: usize,
}

impl Seen {
    /// Hands each object of a page to `take`, which gives its name, if it has one.
    pub(crate) fn page(
        &mut self,
        text: &str,
        mut take: impl FnMut(&RawValue) -> Option<Arc<str>>,
    ) -> Result<Next, Failure> {
        let page: Page<'_> =
            serde_json::from_str(text).map_err(|e| Failure::Other(format!("the answer is no list: {e}")))?;
        for item in page.items.unwrap_or_default() {
            self.items += 1;
            match take(item) {
                Some(name) => {
                    self.names.insert(name);
                }
                None => self.nameless += 1,
            }
        }
        if let Some(token) = page.metadata.token.filter(|token| !token.is_empty()) {
            return Ok(Next::Page(token));
        }
        let version = page.metadata.resource_version.filter(|version| !version.is_empty());
        version
            .map(Next::Complete)
            .ok_or_else(|| Failure::Other("the list has no resourceVersion, so it cannot be trusted".to_owned()))
    }

    /// Whether the complete list says that the object is no more. What cannot be named may be any of those that are missing.
    pub(crate) fn ended(&self, name: &str) -> bool {
        self.nameless == 0 && !self.names.contains(name)
    }

    /// Whether the list had nothing at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.items == 0
    }
}

/// A page's frame.
#[derive(Deserialize)]
struct Page<'a> {
    metadata: PageMeta,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    token: Option<String>,
}

/// What follows a page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another page, by this token.
    Page(String),
    /// The list is complete as of this version.
    Complete(String),
}

/// A watch's line.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    event: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Versioned {
    metadata: VersionMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionMeta {
    resource_version: Option<String>,
}

/// One kind of the whole cluster, and the board on which its watch is shown.
pub(crate) struct OfKind {
    pub(crate) feed: Arc<Feed>,
    pub(crate) board: Arc<Board>,
    pub(crate) kind: Kind,
}

impl Taker for OfKind {
    fn page(&self, text: &str, seen: &mut Seen) -> Result<Next, Failure> {
        self.feed.page(self.kind, text, seen)
    }

    fn complete(&self, seen: &Seen) -> Result<(), Failure> {
        self.feed.complete(self.kind, seen)?;
        self.board.listed(self.kind);
        Ok(())
    }

    fn events(&self, lines: &[u8], version: &mut String) -> Result<(), Failure> {
        self.feed.events(self.kind, lines, version)
    }

    fn phase(&self, phase: Phase) {
        self.board.set_phase(self.kind, phase);
    }

    fn heard(&self) {
        self.board.heard(self.kind);
    }

    fn failed(&self, failure: &Failure) {
        self.board.failed(self.kind, failure.text());
        if matches!(failure, Failure::Unreachable(_)) {
            self.feed.unreachable.notify_one();
        }
    }

    /// That is an answer, too. It is believed when it was said twice in a row, and not before: a server that is starting says
    /// so, and to forget a policy is to allow what it denies.
    fn absent(&self, _: &Failure, again: bool) {
        if again {
            self.feed.absent(self.kind);
            self.board.absent(self.kind);
        } else {
            self.board.heard(self.kind);
        }
    }

    fn crowd(&self) -> usize {
        self.feed.nodes()
    }
}

impl Feed {
    /// Beside the kinds of the whole cluster there are the Secrets and ConfigMaps of `namespaces`.
    pub(crate) fn new(mut writer: Writer, namespaces: &[Arc<str>]) -> Self {
        writer.view.read_secrets_of(namespaces);
        let unasked = namespaces
            .iter()
            .flat_map(|of| [Kind::Secret, Kind::ConfigMap].map(|kind| (kind, Arc::clone(of))))
            .collect();
        let [listed, warmed, doubted] = [[false; KINDS]; 3];
        let state = State { writer, listed, warmed, doubted, unasked };
        Self { state: Mutex::new(state), unreachable: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many Nodes are known.
    pub(crate) fn nodes(&self) -> usize {
        self.lock().writer.view.len(Kind::Node)
    }

    /// Whether every kind has been listed.
    pub(crate) fn is_complete(&self) -> bool {
        self.lock().listed == [true; KINDS]
    }

    /// Takes a page of a list.
    pub(crate) fn page(&self, kind: Kind, text: &str, seen: &mut Seen) -> Result<Next, Failure> {
        let mut state = self.lock();
        let next = seen.page(text, |item| state.object(kind, item));
        state.writer.publish();
        next
    }

    /// A list is complete: what it did not show is no more.
    pub(crate) fn complete(&self, kind: Kind, seen: &Seen) -> Result<(), Failure> {
        let mut state = self.lock();
        let known = state.writer.view.len(kind);
        // A cluster without Services, slices or Nodes is a server that lost its data or that we may not read; a node whose Pods
        // are all gone is one, too, since our own is among them.
        // Policies may all be deleted, and that while nobody watched: the second such list in a row is believed.
        let empty = seen.is_empty() && known > 0;
        let doubted = std::mem::replace(&mut state.doubted[kind.index()], empty);
        if empty && !(doubted && kind.is_optional()) {
            return Err(Failure::Other(format!(
                "the API lists no {kind} where {known} were known; that is not believed, the last good view stays"
            )));
        }
        let names = state.writer.view.names(kind);
        let gone: Vec<Key> = names.into_iter().filter(|name| seen.ended(name)).map(|name| Key { kind, name }).collect();
        state.writer.remove(&gone);
        for key in &gone {
            state.writer.board.mended(SOURCE, &key.to_string());
        }
        state.writer.board.mended(SOURCE, kind.as_str());
        state.doubted[kind.index()] = false;
        state.listed(kind);
        Ok(())
    }

    /// The API does not have this kind. What is known of it stays.
    fn absent(&self, kind: Kind) {
        let mut state = self.lock();
        let known = state.writer.view.len(kind);
        if known > 0 {
            let error = format!(
                "the API has no such kind any more; the {known} that were known stay in force. To be rid of them install the CRD again"
            );
            state.writer.board.problem(SOURCE, kind.as_str(), &error);
        }
        state.listed(kind);
    }

    /// The same of a list of one namespace's Secrets or ConfigMaps. All of them may be deleted, so an empty list is believed:
    /// no Service gives its certificate up for that.
    fn complete_in(&self, kind: Kind, namespace: &Arc<str>, seen: &Seen) {
        let mut state = self.lock();
        let within = |name: &Arc<str>| name.split_once('/').is_some_and(|(of, _)| *of == **namespace);
        let names = state.writer.view.names(kind).into_iter().filter(within);
        let gone: Vec<Key> = names.filter(|name| seen.ended(name)).map(|name| Key { kind, name }).collect();
        state.writer.remove(&gone);
        state.writer.view.secrets_read(namespace, kind);
        state.unasked.remove(&(kind, Arc::clone(namespace)));
        state.settle();
    }

    /// They cannot be read now. The other Services are not to wait for that.
    fn asked_in(&self, kind: Kind, namespace: &Arc<str>) {
        let mut state = self.lock();
        if state.unasked.remove(&(kind, Arc::clone(namespace))) {
            state.settle();
        }
    }

    /// Takes whole lines of a watch; publishes once for all. Moves `version` to that of the last object.
    pub(crate) fn events(&self, kind: Kind, lines: &[u8], version: &mut String) -> Result<(), Failure> {
        let mut state = self.lock();
        let result = events(lines, version, |change, object| match change {
            Change::Is => state.object(kind, object).map(drop).or(Some(())),
            Change::Gone => state.deleted(kind, object),
        });
        state.writer.publish();
        result
    }

    /// Takes the objects of a snapshot for those kinds that the API has not listed; whatever it did show is newer.
    ///
    /// # Errors
    /// There is none in it: then it is no view at all, and readiness must wait for the API.
    pub(crate) fn warm(&self, snapshot: &Snapshot) -> Result<(), ReadError> {
        let mut state = self.lock();
        if state.listed == [true; KINDS] {
            return Ok(());
        }
        let mut found = 0_usize;
        for item in snapshot.items() {
            let parsed = manifest::json_item(item, None, &mut state.writer.context);
            let Ok(Parsed::Object(reduced)) = parsed else {
                continue;
            };
            found += 1;
            // Of others (Secrets) a snapshot of ours has nothing.
            let listed = state.listed.get(reduced.key.kind.index()).is_none_or(|listed| *listed);
            if !listed && !state.writer.view.contains(&reduced.key) {
                state.writer.apply(*reduced);
            }
        }
        if found == 0 {
            return Err(ReadError::Broken("it has no objects".to_owned()));
        }
        for kind in Kind::ALL.into_iter().filter(|kind| snapshot.kinds.iter().any(|known| known == kind.as_str())) {
            state.warmed[kind.index()] = true;
            if !state.listed[kind.index()] {
                state.writer.board.warmed(kind, snapshot.written);
            }
        }
        state.settle();
        tracing::warn!(objects = found, "the API did not answer at once: serving by the snapshot of the last run");
        Ok(())
    }

    /// The objects to write into a snapshot, unless nothing changed since `written` or the API has yet to confirm them.
    pub(crate) fn to_keep(&self, written: Option<u64>) -> Option<(u64, Objects)> {
        let state = self.lock();
        let changes = state.writer.view.changes();
        (state.listed == [true; KINDS] && written != Some(changes)).then(|| (changes, state.writer.view.objects()))
    }
}

/// The Secrets or ConfigMaps of one namespace.
pub(crate) struct OfNamespace {
    pub(crate) feed: Arc<Feed>,
    pub(crate) board: Arc<Board>,
    pub(crate) kind: Kind,
    pub(crate) namespace: Arc<str>,
    /// How many namespaces there are.
    pub(crate) namespaces: usize,
}

impl OfNamespace {
    /// What the board calls it.
    fn name(&self) -> String {
        format!("{}s of namespace {}", self.kind, self.namespace)
    }
}

impl Taker for OfNamespace {
    fn page(&self, text: &str, seen: &mut Seen) -> Result<Next, Failure> {
        self.feed.page(self.kind, text, seen)
    }

    fn complete(&self, seen: &Seen) -> Result<(), Failure> {
        self.feed.complete_in(self.kind, &self.namespace, seen);
        Ok(())
    }

    fn events(&self, lines: &[u8], version: &mut String) -> Result<(), Failure> {
        self.feed.events(self.kind, lines, version)
    }

    fn phase(&self, _: Phase) {}

    fn heard(&self) {
        self.board.mended(SOURCE, &self.name());
    }

    fn failed(&self, failure: &Failure) {
        let text = format!("they cannot be read ({}); what was read last is used on", failure.text());
        self.board.problem(SOURCE, &self.name(), &text);
        self.feed.asked_in(self.kind, &self.namespace);
    }

    fn crowd(&self) -> usize {
        // `SHARE` reckons with as many watches a node as there are kinds.
        self.feed.nodes() * (KINDS + 2 * self.namespaces) / KINDS
    }
}

impl State {
    /// Everything is known of a kind.
    fn listed(&mut self, kind: Kind) {
        self.listed[kind.index()] = true;
        self.settle();
    }

    /// Publishes; the view is complete once each kind was listed or is in the snapshot. A snapshot is served without waiting
    /// for certificates, which it does not have.
    fn settle(&mut self) {
        let known = self.listed.iter().zip(&self.warmed).all(|(listed, warmed)| *listed || *warmed);
        if known && (self.unasked.is_empty() || self.warmed.contains(&true)) {
            self.writer.view.set_complete();
        }
        self.writer.publish();
    }

    /// Takes one object and gives its name, if it has one. One that does not fit changes nothing: the last good one
    /// stays.
    fn object(&mut self, kind: Kind, item: &RawValue) -> Option<Arc<str>> {
        self.writer.work.parsed += 1;
        match manifest::json_item(item.get(), Some(kind), &mut self.writer.context) {
            Ok(Parsed::Object(reduced)) => {
                let Reduced { key, notes, .. } = &*reduced;
                match notes.is_empty() {
                    true => self.writer.board.mended(SOURCE, &key.to_string()),
                    false => self.writer.board.problem(SOURCE, &key.to_string(), &notes.join("; ")),
                }
                let name = Arc::clone(&key.name);
                self.writer.apply(*reduced);
                Some(name)
            }
            Ok(Parsed::Other | Parsed::List(_)) => {
                self.skipped(&format!("a {kind}"), "an object of another kind");
                None
            }
            Err(Unfit { key: Some(key), error }) => {
                self.skipped(&key.to_string(), &format!("{error}; its last good state, if any, stays"));
                Some(key.name)
            }
            Err(Unfit { key: None, error }) => {
                self.skipped(&format!("a {kind} without a name"), &error);
                None
            }
        }
    }

    fn skipped(&mut self, object: &str, error: &str) {
        self.writer.work.skipped += 1;
        self.writer.board.problem(SOURCE, object, error);
    }

    /// Takes an object's deletion.
    fn deleted(&mut self, kind: Kind, object: &RawValue) -> Option<()> {
        self.writer.work.parsed += 1;
        let key = match manifest::json_item(object.get(), Some(kind), &mut self.writer.context) {
            Ok(Parsed::Object(reduced)) => Some(reduced.key),
            Ok(_) => None,
            Err(unfit) => unfit.key,
        }?;
        self.writer.remove([&key]);
        self.writer.board.mended(SOURCE, &key.to_string());
        Some(())
    }
}

/// What a watch tells of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is there, as it is now.
    Is,
    /// It is no more.
    Gone,
}

/// Reads whole lines of a watch and hands each change to `take`, which gives `None` for a deletion of nobody knows what. Moves
/// `version` to that of the last object.
pub(crate) fn events(
    lines: &[u8],
    version: &mut String,
    mut take: impl FnMut(Change, &RawValue) -> Option<()>,
) -> Result<(), Failure> {
    for line in lines.split(|b| *b == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
        // A line that cannot be read may have been any event: only a list tells what was lost.
        let lost = |error: &dyn std::fmt::Display| Failure::Gone(format!("the watch sends what is no event: {error}"));
        let Line { event, object } = serde_json::from_slice(line).map_err(|error| lost(&error))?;
        match event.as_str() {
            "ADDED" | "MODIFIED" => {
                take(Change::Is, object);
            }
            "DELETED" => take(Change::Gone, object).ok_or_else(|| lost(&"a deletion without a name"))?,
            "BOOKMARK" => {}
            "ERROR" => {
                let status: ApiStatus = serde_json::from_str(object.get()).unwrap_or_default();
                return Err(Failure::of_status(status.code, &status.message));
            }
            // A kind of event that is yet to be invented.
            _ => continue,
        }
        if let Ok(Versioned { metadata: VersionMeta { resource_version: Some(newer) } }) =
            serde_json::from_str(object.get())
            && !newer.is_empty()
        {
            *version = newer;
        }
    }
    Ok(())
}
