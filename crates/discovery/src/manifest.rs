//! From text to plain objects. One set of types takes JSON and YAML; it holds only the fields that we read, so that
//! unknown and future ones are no error. Whatever fits is taken, the rest is said in words: an object of wrong types is
//! an [`Unfit`] of its own, a part that makes no sense (an address, a podCIDR) is a note beside the object.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::intern::Interner;
use crate::object::{Key, Reduced};
use crate::status::Kind;

mod policy;
pub(crate) mod raw;
mod reduce;
pub(crate) mod split;
#[cfg(test)]
mod tests;

use raw::{RawHead, RawObject};
pub(crate) use reduce::TLS_SECRET;

/// What parsing needs to know and to share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) node_name: Arc<str>,
    /// Whether the Pods of all nodes are read. Otherwise those of other nodes are nobody's business.
    pub(crate) every_node: bool,
    pub(crate) interner: Interner,
}

impl Context {
    pub(crate) fn new(node_name: Arc<str>) -> Self {
        Self { node_name, every_node: false, interner: Interner::default() }
    }
}

/// What a document holds.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// One of our kinds.
    Object(Box<Reduced>),
    /// Another kind.
    Other,
    /// `kind: List` and the like: each item by itself.
    List(Vec<Result<Parsed, Unfit>>),
}

/// A text that is no object of ours although it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unfit {
    /// The object's name, if that much could be read.
    pub(crate) key: Option<Key>,
    pub(crate) error: String,
}

/// Parses a JSON document of any kind.
pub(crate) fn json(text: &str, context: &mut Context) -> Result<Parsed, Unfit> {
    /// Enough to see whether it is a list, without a copy of its items.
    #[derive(Deserialize)]
    struct Shell<'a> {
        kind: Option<String>,
        #[serde(borrow)]
        items: Option<Vec<&'a RawValue>>,
    }
    if let Ok(Shell { kind: Some(kind), items: Some(items) }) = serde_json::from_str(text)
        && let Some(of) = list_of(&kind)
    {
        return Ok(Parsed::List(items.iter().map(|item| json_item(item.get(), of, context)).collect()));
    }
    json_item(text, None, context)
}

/// Parses one JSON object. `kind` is given where the text itself may lack it: items of the API's typed lists do.
pub(crate) fn json_item(text: &str, kind: Option<Kind>, context: &mut Context) -> Result<Parsed, Unfit> {
    let whole = || serde_json::from_str(text).map_err(|error| error.to_string());
    if kind == Some(Kind::AuthorizationPolicy) {
        return policy::read(whole(), context);
    }
    match serde_json::from_str::<RawObject>(text) {
        Ok(raw) if is_policy(raw.kind.as_deref(), raw.api_version.as_deref()) => policy::read(whole(), context),
        Ok(raw) => reduce_any(&raw, kind, context),
        Err(error) => match serde_json::from_str::<RawHead>(text) {
            Ok(head) if is_policy(head.kind.as_deref(), head.api_version.as_deref()) => policy::read(whole(), context),
            head => unfit(head.ok(), kind, &error),
        },
    }
}

/// Parses one YAML document of any kind (no `---` inside; see [`split`]).
pub(crate) fn yaml(text: &str, context: &mut Context) -> Result<Parsed, Unfit> {
    let has_policy = |items: &[RawObject], of: Option<Kind>| {
        of == Some(Kind::AuthorizationPolicy)
            || items.iter().any(|item| is_policy(item.kind.as_deref(), item.api_version.as_deref()))
    };
    let whole = || serde_norway::from_str::<serde_norway::Value>(text).map_err(|error| error.to_string());
    let error = match serde_norway::from_str::<RawObject>(text) {
        Ok(raw) => match (&raw.items, raw.kind.as_deref().and_then(list_of)) {
            (Some(items), Some(of)) if !has_policy(items, of) => {
                return Ok(Parsed::List(items.iter().map(|item| reduce_any(item, of, context)).collect()));
            }
            (Some(_), Some(_)) => String::new(),
            _ if is_policy(raw.kind.as_deref(), raw.api_version.as_deref()) => {
                return policy::read(whole().and_then(|value| policy::json(&value)), context);
            }
            _ => return reduce_any(&raw, None, context),
        },
        Err(error) => error.to_string(),
    };
    // A list with one bad item or with a policy: only then is a tree of the whole document worth its memory.
    match serde_norway::from_str::<raw::RawItems>(text) {
        Ok(raw::RawItems { kind: Some(kind), items: Some(items) }) if list_of(&kind).is_some() => {
            let of = list_of(&kind).flatten();
            Ok(Parsed::List(items.into_iter().map(|item| yaml_item(item, of, context)).collect()))
        }
        _ => match serde_norway::from_str::<RawHead>(text) {
            Ok(head) if is_policy(head.kind.as_deref(), head.api_version.as_deref()) => {
                policy::read(whole().and_then(|value| policy::json(&value)), context)
            }
            head => unfit(head.ok(), None, &error),
        },
    }
}

fn yaml_item(item: serde_norway::Value, kind: Option<Kind>, context: &mut Context) -> Result<Parsed, Unfit> {
    let head = RawHead::deserialize(&item).ok();
    let is_one = |head: &RawHead| match (&head.kind, kind) {
        (None, kind) => kind == Some(Kind::AuthorizationPolicy),
        (of, _) => is_policy(of.as_deref(), head.api_version.as_deref()),
    };
    if head.as_ref().is_some_and(is_one) {
        return policy::read(policy::json(&item), context);
    }
    match RawObject::deserialize(item) {
        Ok(raw) => reduce_any(&raw, kind, context),
        Err(error) => unfit(head, kind, &error),
    }
}

/// `Some` when `kind` is a list's: of anything (`List`) or of one kind (`ServiceList`).
fn list_of(kind: &str) -> Option<Option<Kind>> {
    let of = kind.strip_suffix("List")?;
    let kinds = Kind::ALL.into_iter().chain([Kind::Secret, Kind::ConfigMap]);
    Some(kinds.into_iter().find(|kind| kind.as_str() == of))
}

fn reduce_any(raw: &RawObject, kind: Option<Kind>, context: &mut Context) -> Result<Parsed, Unfit> {
    let Some(kind) = (match raw.kind.as_deref() {
        None if kind.is_none() => {
            return Err(Unfit { key: None, error: "it has no 'kind', so it is no manifest".to_owned() });
        }
        None => kind,
        Some(_) => known_kind(raw.kind.as_deref(), raw.api_version.as_deref()),
    }) else {
        return Ok(Parsed::Other);
    };
    let key = reduce::key(kind, &raw.metadata, context).map_err(|error| Unfit { key: None, error })?;
    match reduce::object(kind, raw, &key, context) {
        Ok((object, notes)) => Ok(Parsed::Object(Box::new(Reduced { key, object, notes }))),
        Err(error) => Err(Unfit { key: Some(key), error }),
    }
}

/// Whether it is a policy of ours, of whatever version: one that we do not know must not pass for none.
fn is_policy(kind: Option<&str>, api_version: Option<&str>) -> bool {
    let group = api_version.and_then(|api_version| api_version.split_once('/')).map(|(group, _)| group);
    kind == Some(posthouse_policy::KIND) && group == Some(posthouse_policy::GROUP)
}

fn known_kind(kind: Option<&str>, api_version: Option<&str>) -> Option<Kind> {
    match (api_version, kind?) {
        (Some("v1"), "Service") => Some(Kind::Service),
        (Some("v1"), "Pod") => Some(Kind::Pod),
        (Some("v1"), "Node") => Some(Kind::Node),
        (Some("v1"), "Secret") => Some(Kind::Secret),
        (Some("v1"), "ConfigMap") => Some(Kind::ConfigMap),
        (Some("discovery.k8s.io/v1"), "EndpointSlice") => Some(Kind::EndpointSlice),
        _ => None,
    }
}

/// A text that did not fit the types: nobody's business when it is of another kind, else named as well as possible.
fn unfit(head: Option<RawHead>, kind: Option<Kind>, error: &dyn std::fmt::Display) -> Result<Parsed, Unfit> {
    let Some(head) = head else {
        return Err(Unfit { key: None, error: error.to_string() });
    };
    let kind = match (&head.kind, kind) {
        (None, Some(kind)) => Some(kind),
        _ => known_kind(head.kind.as_deref(), head.api_version.as_deref()),
    };
    match kind {
        None if head.kind.is_some() => Ok(Parsed::Other),
        None => Err(Unfit { key: None, error: error.to_string() }),
        Some(kind) => {
            let mut plain = Context::new(Arc::from(""));
            Err(Unfit { key: reduce::key(kind, &head.metadata, &mut plain).ok(), error: error.to_string() })
        }
    }
}
