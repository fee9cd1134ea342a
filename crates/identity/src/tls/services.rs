//! Mode `service`: what a Service's own certificate makes of a handshake. Its PEM is read when it is first needed and again when
//! the directory has another; the last good one is kept while the new one is broken.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use posthouse_model::directory::{Service, ServiceKey, ServiceTls, service_key};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;

use super::configs::{Configs, Expected};
use super::failure::{Failure, Reason};
use crate::material::{Pem, read, read_roots};
use crate::roots::SharedRoots;

/// Services whose certificates are kept ready, at some KiB each (with sessions up to 2 MiB each in the worst case). A node that
/// meets more starts over.
const MAX_SERVICES: usize = 256;

/// How often one that cannot be used is looked at again: its time may have come.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

pub(super) struct Services {
    domain: Arc<str>,
    clients: Cache<SharedRoots, ClientConfig>,
    servers: Cache<Arc<CertifiedKey>, ServerConfig>,
}

impl Services {
    pub(super) fn new(domain: Arc<str>) -> Self {
        Self { domain, clients: Cache::default(), servers: Cache::default() }
    }

    /// The name that a Service's certificate must have.
    pub(super) fn name_of(&self, service: &Service) -> String {
        format!("{}.{}.svc.{}", service.name, service.namespace, self.domain)
    }

    /// The Service that `name` is the name of, in the way of [`Self::name_of`].
    pub(super) fn key_of(&self, name: &str) -> Option<ServiceKey> {
        let name = name.to_ascii_lowercase();
        let (name, namespace) = name.strip_suffix(&*self.domain)?.strip_suffix(".svc.")?.split_once('.')?;
        (!name.is_empty() && !namespace.is_empty() && !namespace.contains('.')).then(|| service_key(namespace, name))
    }

    /// What a sender verifies `service` by.
    pub(super) fn client(
        &self,
        service: &Service,
        configs: &Configs,
        now: SystemTime,
    ) -> Result<(Arc<ClientConfig>, SharedRoots), Failure> {
        let parse = |tls: &ServiceTls| match read_roots(&tls.roots) {
            Ok(roots) => Ok(Arc::new(roots)),
            Err(error) => Err(tls.problem.as_ref().map_or_else(|| error.to_string(), ToString::to_string)),
        };
        self.clients.find(service, configs, now, parse, |roots| configs.client_for_service(Arc::clone(roots)))
    }

    /// What a receiver presents as `service`.
    pub(super) fn server(
        &self,
        service: &Service,
        configs: &Configs,
        now: SystemTime,
    ) -> Result<Arc<ServerConfig>, Failure> {
        let name = self.name_of(service);
        let parse = |tls: &ServiceTls| match &tls.problem {
            Some(problem) => Err(problem.to_string()),
            None => certified(tls, &name, now),
        };
        let build = |certified: &Arc<CertifiedKey>| configs.server_for_service(certified);
        self.servers.find(service, configs, now, parse, build).map(|(config, _)| config)
    }
}

/// Reads a Service's certificate and checks it as a sender will.
fn certified(tls: &ServiceTls, name: &str, now: SystemTime) -> Result<Arc<CertifiedKey>, String> {
    let pem = Pem { certificates: &tls.certificates, key: &tls.key, roots: &tls.roots };
    let (certified, roots) = read(&pem).map_err(|error| error.to_string())?;
    let server = ServerName::try_from(name).map_err(|_| format!("'{name}' is no DNS name"))?;
    Expected::Service.check(&Arc::new(roots), &certified.cert, &server, now).map_err(|verdict| verdict.to_string())?;
    Ok(Arc::new(certified))
}

/// By Service: what was read of its PEM, and what was made of it for the node's current certificate.
struct Cache<P, C>(Mutex<HashMap<ServiceKey, Entry<P, C>>>);

impl<P, C> Default for Cache<P, C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

struct Entry<P, C> {
    /// The newest that was looked at, compared by pointer.
    seen: Arc<ServiceTls>,
    good: Option<P>,
    built: Option<(u64, Arc<C>)>,
    /// What is wrong with the newest, and when that was found.
    problem: Option<(String, SystemTime)>,
}

impl<P, C> Entry<P, C> {
    /// Whether there is nothing new to be read in `tls`. A certificate that is not yet valid becomes so without a change.
    fn knows(&self, tls: &Arc<ServiceTls>, now: SystemTime) -> bool {
        let lately = |found: SystemTime| now.duration_since(found).is_ok_and(|age| age < LOOK_AGAIN);
        Arc::ptr_eq(&self.seen, tls) && self.problem.as_ref().is_none_or(|(_, found)| lately(*found))
    }
}

impl<P: Clone, C> Cache<P, C> {
    fn find(
        &self,
        service: &Service,
        configs: &Configs,
        now: SystemTime,
        parse: impl FnOnce(&ServiceTls) -> Result<P, String>,
        build: impl FnOnce(&P) -> Result<Arc<C>, Failure>,
    ) -> Result<(Arc<C>, P), Failure> {
        let key = service.key();
        let failed = |problem: &str| {
            Failure::new(
                Reason::ServiceCertificate,
                format!("the certificate of Service {key} cannot be used: {problem}"),
            )
        };
        let Some(tls) = &service.tls else { return Err(failed("it has none")) };
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MAX_SERVICES && !entries.contains_key(&key) {
            entries.clear();
        }
        if !entries.get(&key).is_some_and(|entry| entry.knows(tls, now)) {
            let old = entries.remove(&key);
            let entry = match parse(tls) {
                Ok(good) => Entry { seen: Arc::clone(tls), good: Some(good), built: None, problem: None },
                Err(problem) => {
                    let (good, built, said) = old.map_or((None, None, None), |old| (old.good, old.built, old.problem));
                    if said.is_none_or(|(said, _)| said != problem) {
                        tracing::warn!(service = %key, error = problem, kept = good.is_some(), "a Service's certificate cannot be used");
                    }
                    Entry { seen: Arc::clone(tls), good, built, problem: Some((problem, now)) }
                }
            };
            entries.insert(Arc::clone(&key), entry);
        }
        let Some(entry) = entries.get_mut(&key) else { return Err(failed("it is gone")) };
        let Some(good) = entry.good.clone() else {
            return Err(failed(entry.problem.as_ref().map_or("it has none", |(problem, _)| problem)));
        };
        match &entry.built {
            Some((epoch, config)) if *epoch == configs.epoch() => Ok((Arc::clone(config), good)),
            _ => {
                let config = build(&good)?;
                entry.built = Some((configs.epoch(), Arc::clone(&config)));
                Ok((config, good))
            }
        }
    }
}
