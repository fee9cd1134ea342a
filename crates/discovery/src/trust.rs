//! What Services have of TLS: their own certificates and how their pods' are verified, by their annotations and the Secrets and
//! ConfigMaps that these name. A change of one touches the Services that name it, and only if it comes to something else.
//! A good certificate is never given up for none: it stays until another one is there.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use posthouse_model::directory::{ServiceTls, service_key};
use posthouse_model::{AppProtocol, BackendTls, Service, ServiceKey};
use smallvec::SmallVec;

use crate::object::{Key, Material, ServiceObject, TlsAnnotations};
use crate::status::Kind;

#[cfg(test)]
mod tests;

/// Why something is missing.
#[derive(Debug, PartialEq, Eq)]
enum Lack {
    /// It may yet come: nobody is to be told.
    Unread(String),
    /// Somebody has to do something.
    Wrong(String),
}

/// Secrets and ConfigMaps, and who names them.
#[derive(Debug, Default)]
pub(crate) struct Trust {
    materials: HashMap<Key, Material>,
    /// The Services that name an object, whether it is known or not.
    users: HashMap<Key, SmallVec<[ServiceKey; 1]>>,
    names: HashMap<ServiceKey, SmallVec<[Key; 2]>>,
    /// The namespaces whose objects are read, and which kinds of them were; `None`: all, at once.
    pub(crate) namespaces: Option<HashMap<Arc<str>, Vec<Kind>>>,
}

/// What [`Trust::of`] found.
pub(crate) struct Found {
    pub(crate) tls: Option<Arc<ServiceTls>>,
    pub(crate) backend: Option<Arc<BackendTls>>,
    /// What somebody has to mend.
    pub(crate) notes: Vec<String>,
}

impl Trust {
    /// Takes a Secret or ConfigMap, and gives the Services that this touches.
    pub(crate) fn put(&mut self, key: Key, material: Material) -> &[ServiceKey] {
        if self.materials.get(&key) == Some(&material) {
            return &[];
        }
        let users = self.users.get(&key).map_or(&[][..], |users| users);
        self.materials.insert(key, material);
        users
    }

    /// The same of one that is no more.
    pub(crate) fn remove(&mut self, key: &Key) -> &[ServiceKey] {
        match self.materials.remove(key) {
            Some(_) => self.users.get(key).map_or(&[], |users| users),
            None => &[],
        }
    }

    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.materials.contains_key(key)
    }

    /// The names of all objects of a kind.
    pub(crate) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<str>> {
        self.materials.keys().filter(move |key| key.kind == kind).map(|key| &key.name)
    }

    /// All of a kind in a namespace were read. Gives the Services that waited for that.
    pub(crate) fn read(&mut self, namespace: &str, kind: Kind) -> Vec<ServiceKey> {
        let Some(kinds) = self.namespaces.as_mut().and_then(|namespaces| namespaces.get_mut(namespace)) else {
            return Vec::new();
        };
        if kinds.contains(&kind) {
            return Vec::new();
        }
        kinds.push(kind);
        let within = |key: &ServiceKey| key.split_once('/').is_some_and(|(of, _)| of == namespace);
        self.names.keys().filter(|key| within(key)).cloned().collect()
    }

    /// Whether the Service names or named anything.
    pub(crate) fn concerns(&self, key: &ServiceKey, object: Option<&ServiceObject>) -> bool {
        self.names.contains_key(key) || object.is_some_and(|object| object.tls.is_some())
    }

    /// Keeps in mind what a Service names now.
    pub(crate) fn refer(&mut self, service: &ServiceKey, object: Option<&ServiceObject>) {
        if !self.concerns(service, object) {
            return;
        }
        for key in self.names.remove(service).unwrap_or_default() {
            if let Some(users) = self.users.get_mut(&key) {
                users.retain(|user| user != service);
                if users.is_empty() {
                    self.users.remove(&key);
                }
            }
        }
        let Some(object) = object else { return };
        let Some(annotations) = &object.tls else { return };
        let named: HashSet<Key> = named(annotations, &object.namespace).collect();
        for key in &named {
            self.users.entry(key.clone()).or_default().push(Arc::clone(service));
        }
        self.names.insert(Arc::clone(service), named.into_iter().collect());
    }

    /// What a Service has of TLS, the old values themselves where they are the same. `made` is the Service as far as it was made.
    pub(crate) fn of(&self, object: &ServiceObject, made: &Service, old: Option<&Service>) -> Found {
        let mut notes = Vec::new();
        let none = TlsAnnotations::default();
        let annotations = object.tls.as_deref().unwrap_or(&none);
        let tls = annotations.secret.as_ref().map(|secret| {
            let old = old.and_then(|old| old.tls.as_ref());
            let made = self.certificate(secret, annotations, &object.namespace);
            let problem = |problem| ServiceTls { problem: Some(problem), ..ServiceTls::default() };
            keep(made, old, |tls| tls.problem.is_none(), problem, &mut notes)
        });
        let https = made.ports.iter().any(|port| port.app_protocol == AppProtocol::Https);
        let backend = https.then(|| {
            let old = old.and_then(|old| old.backend.as_ref());
            let name = || Arc::from(format!("{}.{}.svc", object.name, object.namespace));
            let hostname: Arc<str> = annotations.backend_hostname.clone().unwrap_or_else(name);
            let made = self.backend(annotations, &object.namespace, &hostname);
            let problem = |problem| BackendTls { verify: true, roots: Vec::new(), hostname, problem: Some(problem) };
            let mut found = Vec::new();
            let kept = keep(made, old, |tls| tls.problem.is_none(), problem, &mut found);
            // Who has said nothing about it does not want it.
            if annotations.backend.is_some() || annotations.backend_ca.is_some() {
                notes.append(&mut found);
            }
            kept
        });
        Found { tls, backend, notes }
    }

    fn certificate(&self, secret: &str, annotations: &TlsAnnotations, namespace: &str) -> Result<ServiceTls, Lack> {
        let secret = Key { kind: Kind::Secret, name: service_key(namespace, secret) };
        let material = self.find(&secret, namespace)?;
        let entry =
            |name, entry: &Option<Vec<u8>>| entry.clone().ok_or_else(|| Lack::Wrong(format!("{secret} has no {name}")));
        let roots = match &annotations.ca_config_map {
            Some(name) => self.roots(&Key { kind: Kind::ConfigMap, name: service_key(namespace, name) }, namespace)?,
            None => material.roots.clone().ok_or_else(|| {
                let hint = "put the issuer's certificate there or name a ConfigMap by posthouse.io/tls-ca-configmap";
                Lack::Wrong(format!("{secret} has no ca.crt: {hint}"))
            })?,
        };
        Ok(ServiceTls {
            certificates: entry("tls.crt", &material.certificates)?,
            key: entry("tls.key", &material.key)?,
            roots,
            problem: None,
        })
    }

    fn backend(&self, annotations: &TlsAnnotations, namespace: &str, hostname: &Arc<str>) -> Result<BackendTls, Lack> {
        let made = |verify, roots| BackendTls { verify, roots, hostname: Arc::clone(hostname), problem: None };
        match annotations.backend.as_deref() {
            None | Some("verify") => {}
            Some("insecure") => return Ok(made(false, Vec::new())),
            Some(other) => {
                let text = format!("posthouse.io/backend-tls is '{other}': write 'verify' or 'insecure'");
                return Err(Lack::Wrong(text));
            }
        }
        let Some(written) = &annotations.backend_ca else {
            let text =
                "nothing says what the pods' certificates are verified by: name it by posthouse.io/backend-tls-ca";
            return Err(Lack::Wrong(text.to_owned()));
        };
        let Some(key) = ca_key(written, namespace) else {
            let text = format!("posthouse.io/backend-tls-ca is '{written}': write 'configmap/NAME' or 'secret/NAME'");
            return Err(Lack::Wrong(text));
        };
        Ok(made(true, self.roots(&key, namespace)?))
    }

    fn roots(&self, key: &Key, namespace: &str) -> Result<Vec<u8>, Lack> {
        let material = self.find(key, namespace)?;
        material.roots.clone().ok_or_else(|| Lack::Wrong(format!("{key} has no ca.crt")))
    }

    fn find(&self, key: &Key, namespace: &str) -> Result<&Material, Lack> {
        if let Some(namespaces) = &self.namespaces {
            match namespaces.get(namespace) {
                None => {
                    let text =
                        format!("namespace {namespace} is not among --tls-secret-namespaces, so {key} is not read");
                    return Err(Lack::Wrong(text));
                }
                Some(read) if !read.contains(&key.kind) && !self.materials.contains_key(key) => {
                    return Err(Lack::Unread(format!("{key} is not read yet")));
                }
                Some(_) => {}
            }
        }
        self.materials.get(key).ok_or_else(|| {
            Lack::Wrong(match key.kind {
                Kind::Secret => format!("there is no {key} of type kubernetes.io/tls"),
                _ => format!("there is no {key} with a ca.crt"),
            })
        })
    }
}

/// The old value where it is the same, or where it was good and the new one is not.
fn keep<T: PartialEq>(
    made: Result<T, Lack>,
    old: Option<&Arc<T>>,
    is_good: impl Fn(&T) -> bool,
    problem: impl FnOnce(Arc<str>) -> T,
    notes: &mut Vec<String>,
) -> Arc<T> {
    let new = match made {
        Ok(new) => new,
        Err(lack) => {
            let good = old.filter(|old| is_good(old));
            let (text, wrong) = match lack {
                Lack::Unread(text) => (text, false),
                Lack::Wrong(text) => (text, true),
            };
            if wrong {
                notes.push(if good.is_some() {
                    format!("{text}; what was read last is used on")
                } else {
                    text.clone()
                });
            }
            if let Some(good) = good {
                return Arc::clone(good);
            }
            problem(text.into())
        }
    };
    match old {
        Some(old) if **old == new => Arc::clone(old),
        _ => Arc::new(new),
    }
}

/// The object that `posthouse.io/backend-tls-ca` names.
fn ca_key(written: &str, namespace: &str) -> Option<Key> {
    let (kind, name) = written.split_once('/')?;
    let kind = match kind {
        "configmap" => Kind::ConfigMap,
        "secret" => Kind::Secret,
        _ => return None,
    };
    (!name.is_empty()).then(|| Key { kind, name: service_key(namespace, name) })
}

/// Everything that a Service names.
fn named(annotations: &TlsAnnotations, namespace: &str) -> impl Iterator<Item = Key> {
    let key =
        |kind, name: &Option<Arc<str>>| name.as_ref().map(|name| Key { kind, name: service_key(namespace, name) });
    [
        key(Kind::Secret, &annotations.secret),
        key(Kind::ConfigMap, &annotations.ca_config_map),
        annotations.backend_ca.as_ref().and_then(|written| ca_key(written, namespace)),
    ]
    .into_iter()
    .flatten()
}
