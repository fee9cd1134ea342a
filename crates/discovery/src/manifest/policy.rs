//! AuthorizationPolicies. Unlike other objects they are never skipped for not fitting: a policy that cannot be understood
//! denies, so it is kept as a broken one. Only where not even a name can be read is there nothing to keep.

use std::sync::Arc;

use posthouse_model::directory::service_key;
use posthouse_policy::{GROUP, KIND, Policy, Problem, VERSION};
use serde_json::Value;

use super::raw::RawMeta;
use super::{Context, Parsed, Unfit, reduce};
use crate::object::{Object, PolicyObject, Reduced};
use crate::status::Kind;

/// A policy out of its whole manifest.
pub(super) fn read(manifest: Result<Value, String>, context: &mut Context) -> Result<Parsed, Unfit> {
    let manifest = manifest.map_err(|error| Unfit { key: None, error })?;
    let text = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    if text("/kind").is_some_and(|kind| kind != KIND) {
        return Ok(Parsed::Other);
    }
    let meta = RawMeta { name: text("/metadata/name"), namespace: text("/metadata/namespace"), ..RawMeta::default() };
    let kind = Kind::AuthorizationPolicy;
    let key = reduce::key(kind, &meta, context).map_err(|error| Unfit { key: None, error })?;
    let (namespace, name) = key.name.split_once('/').unwrap_or_default();
    let spec = manifest.get("spec").cloned().unwrap_or_default();
    let version = text("/apiVersion").unwrap_or_else(|| format!("{GROUP}/{VERSION}"));
    let policy = if version == format!("{GROUP}/{VERSION}") {
        Policy::read(namespace, name, &spec)
    } else {
        let why = format!("its version {version} is not known here, only {GROUP}/{VERSION}");
        Policy::broken(namespace, name, &spec, Problem::Unreadable(why))
    };
    let notes = policy.problem().map(|problem| match policy.is_dry_run() {
        false => format!("it is not accepted, so it denies every request to its targets: {problem}"),
        true => format!("it is not accepted, and denies nothing only since it is in dry run: {problem}"),
    });
    let name = Arc::from(name);
    let object = PolicyObject { name, spec: Arc::new(spec), policy: Arc::new(policy) };
    debug_assert_eq!(*service_key(object.policy.namespace(), &object.name), *key.name, "one name for both");
    let (object, notes) = (Some(Object::Policy(object)), notes.into_iter().collect());
    Ok(Parsed::Object(Box::new(Reduced { key, object, notes })))
}

/// What YAML says, as JSON. A part that JSON cannot say (a list as a key) becomes a text, so that the rest is known.
pub(super) fn json(value: &serde_norway::Value) -> Result<Value, String> {
    let parts = value.as_mapping().ok_or_else(|| "it is no mapping".to_owned())?;
    let part = |(name, part): (&serde_norway::Value, &serde_norway::Value)| {
        let part = serde_json::to_value(part).unwrap_or_else(|error| Value::String(error.to_string()));
        Some((name.as_str()?.to_owned(), part))
    };
    Ok(Value::Object(parts.iter().filter_map(part).collect()))
}
