//! Keeps the authority: makes or reads its Secret, publishes the trust bundle, rotates. One pass reads everything that
//! matters from the API and does at most what is due; it may end anywhere and be begun anew by this or another replica. The
//! Secret is written with the version that was read, so that two leaders could not both replace an authority.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ListParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use posthouse_model::chain;
use posthouse_model::issuance::BUNDLE;
use rustls_pki_types::CertificateDer;

use crate::authority::{self, Authority, Bad, certificates};
use crate::bundle::{Bundle, fingerprint};
use crate::reports::{self, ROTATION};
use crate::rotation::{Facts, Step, step};
use crate::signer::Signing;
use crate::{Ca, Settings, metrics};

/// The Secret with the authority.
pub(crate) const SECRET: &str = "posthouse-ca";
/// The Deployment that owns what we make, so that an uninstall takes it away.
pub(crate) const DEPLOYMENT: &str = "posthouse-controller";
/// The Service by whose EndpointSlices the proxies find each other.
const SERVICE: &str = "posthouse";

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOT: &str = "ca.crt";
/// The authority that will sign next, while a rotation is under way.
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";

/// On what we made. A Secret without it is somebody else's: read, never written.
const MADE: (&str, &str) = ("posthouse.io/made-by", "posthouse-controller");

/// Why a pass ended early; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API does not do what it is asked.
    #[error("{what}: {}", chain(&**.source))]
    Api {
        what: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    /// The Secret cannot be used.
    #[error("Secret {SECRET}: {0}")]
    Authority(#[from] Bad),
    /// There is no Secret, and we are not to make it.
    #[error("Secret {SECRET} is missing, and --ca is 'adopt': make it (type kubernetes.io/tls, with ca.crt)")]
    Missing,
    /// Somebody else has an object of a name of ours.
    #[error("ConfigMap {0} is not by this controller: delete it, or rename what makes it")]
    Foreign(&'static str),
    /// An uninstall: what is made now would stay behind.
    #[error("Deployment {DEPLOYMENT} is not there, which owns what is made here: nothing is made")]
    Orphan,
}

/// Says what was tried.
trait Tried<T> {
    fn tried(self, what: &'static str) -> Result<T, Error>;
}

impl<T> Tried<T> for Result<T, kube::Error> {
    fn tried(self, what: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Api { what, source: Box::new(source) })
    }
}

/// One leader's work on the authority.
pub(crate) struct Keeper {
    settings: Arc<Settings>,
    signing: Arc<Signing>,
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    slices: Api<EndpointSlice>,
    deployments: Api<Deployment>,
    /// The last error, so that it is logged once.
    failed: Option<String>,
}

impl Keeper {
    pub(crate) fn new(client: &Client, settings: Arc<Settings>, signing: Arc<Signing>) -> Self {
        let namespace = &settings.namespace;
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            maps: Api::namespaced(client.clone(), namespace),
            slices: Api::namespaced(client.clone(), namespace),
            deployments: Api::namespaced(client.clone(), namespace),
            settings,
            signing,
            failed: None,
        }
    }

    /// Passes for ever.
    pub(crate) async fn run(mut self) {
        loop {
            // Each request has its own limit; this one is for what nobody thought of.
            let pass = tokio::time::timeout(self.settings.timing.pass_limit, self.pass()).await;
            let error = match pass {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("the API server took longer than {:?}", self.settings.timing.pass_limit)),
            };
            let wait = match &error {
                None => self.settings.timing.pass,
                Some(error) => {
                    ::metrics::counter!(metrics::FAILURES, "task" => "authority").increment(1);
                    if self.failed.as_ref() != Some(error) {
                        tracing::error!(
                            error,
                            "the certificate authority cannot be kept up; what signed so far goes on"
                        );
                    }
                    self.settings.timing.retry
                }
            };
            if error.is_none() && self.failed.is_some() {
                tracing::info!("the certificate authority is kept up again");
            }
            self.failed = error;
            tokio::time::sleep(wait).await;
        }
    }

    async fn pass(&self) -> Result<(), Error> {
        let now = (self.settings.clock)();
        let mut secret = match self.secrets.get_opt(SECRET).await.tried("Secret posthouse-ca cannot be read")? {
            Some(secret) => self.owned(secret).await?,
            None if self.settings.ca == Ca::Adopt => return Err(Error::Missing),
            None => self.create(now).await?,
        };
        let ours = is_ours(&secret.metadata);
        let mut authority = read(&secret)?;

        if ours && self.step(&secret, &authority, now, false) == Step::Begin {
            secret = self.begin(secret, now).await?;
        }
        let (bundle, id) = self.publish(&authority, next_roots(&secret)?, now).await?;
        let informed = self.informed(&bundle, &authority, &secret, &id).await?;
        if ours && let Step::Switch { forced } = self.step(&secret, &authority, now, informed == Some(true)) {
            secret = self.switch(secret, forced).await?;
            authority = read(&secret)?;
            // Also notes until when the old root has to stay.
            self.publish(&authority, next_roots(&secret)?, now).await?;
        }
        self.hand_over(authority, &bundle, informed, now);
        Ok(())
    }

    fn step(&self, secret: &Secret, authority: &Authority, now: SystemTime, known: bool) -> Step {
        step(&Facts {
            now,
            not_after: authority.not_after,
            lifetime: authority.lifetime(),
            longest: self.settings.certificate_lifetime,
            next: value(secret, NEXT_CERTIFICATE).is_some() && value(secret, NEXT_KEY).is_some(),
            known_everywhere: known,
        })
    }

    /// Makes the first authority.
    async fn create(&self, now: SystemTime) -> Result<Secret, Error> {
        let made = authority::make(now, self.settings.ca_lifetime)?;
        let secret = Secret {
            metadata: self.metadata(SECRET).await?,
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(BTreeMap::from([
                (CERTIFICATE.to_owned(), ByteString(made.certificate.clone().into_bytes())),
                (KEY.to_owned(), ByteString(made.key.into_bytes())),
                (ROOT.to_owned(), ByteString(made.certificate.into_bytes())),
            ])),
            ..Secret::default()
        };
        let made = self.secrets.create(&PostParams::default(), &secret).await;
        let made = made.tried("Secret posthouse-ca cannot be made")?;
        tracing::info!(lifetime = ?self.settings.ca_lifetime, "certificate authority made");
        Ok(made)
    }

    /// Makes the second authority.
    async fn begin(&self, mut secret: Secret, now: SystemTime) -> Result<Secret, Error> {
        let made = authority::make(now, self.settings.ca_lifetime)?;
        let data = secret.data.get_or_insert_default();
        data.insert(NEXT_CERTIFICATE.to_owned(), ByteString(made.certificate.into_bytes()));
        data.insert(NEXT_KEY.to_owned(), ByteString(made.key.into_bytes()));
        let secret = self.replace(&secret).await?;
        tracing::info!("rotation begins: the next certificate authority is made and published, it does not sign yet");
        Ok(secret)
    }

    /// Lets the second authority sign.
    async fn switch(&self, mut secret: Secret, forced: bool) -> Result<Secret, Error> {
        let data = secret.data.get_or_insert_default();
        if let (Some(certificate), Some(key)) = (data.remove(NEXT_CERTIFICATE), data.remove(NEXT_KEY)) {
            data.insert(ROOT.to_owned(), certificate.clone());
            data.insert(CERTIFICATE.to_owned(), certificate);
            data.insert(KEY.to_owned(), key);
        }
        let secret = self.replace(&secret).await?;
        if forced {
            tracing::warn!(
                "rotation: the next authority signs from now on, since the old one ends soon; nodes that have not said that they know it are not waited for"
            );
        } else {
            tracing::info!("rotation: every node knows the next authority, which signs from now on");
        }
        Ok(secret)
    }

    async fn replace(&self, secret: &Secret) -> Result<Secret, Error> {
        let written = self.secrets.replace(SECRET, &PostParams::default(), secret).await;
        written.tried("Secret posthouse-ca cannot be written")
    }

    /// Publishes the roots in use and those that still have to be trusted.
    async fn publish(
        &self,
        authority: &Authority,
        next: Vec<CertificateDer<'static>>,
        now: SystemTime,
    ) -> Result<(Bundle, String), Error> {
        let found = self.maps.get_opt(BUNDLE).await.tried("ConfigMap posthouse-trust cannot be read")?;
        if found.as_ref().is_some_and(|map| !is_ours(&map.metadata)) {
            return Err(Error::Foreign(BUNDLE));
        }
        let before = found.as_ref().map(Bundle::read).unwrap_or_default();
        let used = authority.roots.iter().chain(&next);
        let bundle = before.wanted(used, now, self.settings.certificate_lifetime);
        let mut map = match &found {
            Some(map) => map.clone(),
            None => ConfigMap { metadata: self.metadata(BUNDLE).await?, ..ConfigMap::default() },
        };
        let id = bundle.id();
        let changed = bundle.write(&mut map);
        let owner_changed = found.is_some() && self.own(&mut map.metadata).await?;
        if changed || owner_changed {
            let written = match &found {
                Some(_) => self.maps.replace(BUNDLE, &PostParams::default(), &map).await,
                None => self.maps.create(&PostParams::default(), &map).await,
            };
            written.tried("ConfigMap posthouse-trust cannot be written")?;
            if before.id() != id {
                tracing::info!(roots = bundle.len(), bundle = id, "trust bundle published");
            }
        }
        ::metrics::gauge!(metrics::ROOTS).set(bundle.len() as f64);
        Ok((bundle, id))
    }

    /// Whether every node with a ready proxy has loaded the bundle `id`; `None` when nothing depends on that. No ready proxy
    /// at all tells nothing, so that nothing is taken for known then.
    async fn informed(
        &self,
        bundle: &Bundle,
        authority: &Authority,
        secret: &Secret,
        id: &str,
    ) -> Result<Option<bool>, Error> {
        let rotating = is_ours(&secret.metadata) && value(secret, NEXT_CERTIFICATE).is_some();
        let held = authority.roots.iter().any(|root| bundle.newcomer(root).is_some_and(|(newcomer, _)| newcomer))
            && !self.signing.settled(&names(&authority.roots));
        if !rotating && !held {
            ::metrics::gauge!(metrics::UNINFORMED).set(0.0);
            return Ok(None);
        }
        let kept = self.maps.get_opt(ROTATION).await.tried("ConfigMap posthouse-rotation cannot be read")?;
        let before = kept.as_ref().map(|map| reports::read(map, id)).unwrap_or_default();
        let mut nodes = self.signing.reports.informed(id);
        nodes.extend(before.iter().cloned());
        if nodes != before {
            let mut map = match &kept {
                Some(map) => map.clone(),
                None => ConfigMap { metadata: self.metadata(ROTATION).await?, ..ConfigMap::default() },
            };
            reports::write(&mut map, id, &nodes);
            let written = match &kept {
                Some(_) => self.maps.replace(ROTATION, &PostParams::default(), &map).await,
                None => self.maps.create(&PostParams::default(), &map).await,
            };
            written.tried("ConfigMap posthouse-rotation cannot be written")?;
        }
        let ready = self.ready_nodes().await?;
        let missing: Vec<&String> = ready.iter().filter(|node| !nodes.contains(*node)).collect();
        ::metrics::gauge!(metrics::UNINFORMED).set(missing.len() as f64);
        tracing::debug!(ready = ready.len(), missing = ?missing.iter().take(5).collect::<Vec<_>>(), "who knows the bundle");
        Ok(Some(!ready.is_empty() && missing.is_empty()))
    }

    /// The nodes on which a proxy is ready.
    async fn ready_nodes(&self) -> Result<BTreeSet<String>, Error> {
        /// As client-go's pager.
        const PAGE: u32 = 500;
        let mut params = ListParams::default().labels(&format!("kubernetes.io/service-name={SERVICE}")).limit(PAGE);
        let mut nodes = BTreeSet::new();
        loop {
            let page = self.slices.list(&params).await.tried("the proxies' EndpointSlices cannot be listed")?;
            for endpoint in page.items.iter().flat_map(|slice| slice.endpoints.iter().flatten()) {
                // Unset means ready (EndpointConditions).
                if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true) {
                    nodes.extend(endpoint.node_name.clone());
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(nodes),
            }
        }
    }

    /// Gives the authority to the signer, unless nodes may not know it yet: then a while later, or when all of them do. The
    /// one that signed before goes on meanwhile, if this replica has it.
    fn hand_over(&self, authority: Authority, bundle: &Bundle, informed: Option<bool>, now: SystemTime) {
        let names = names(&authority.roots);
        let known = authority.roots.iter().all(|root| match bundle.newcomer(root) {
            Some((true, since)) => {
                now.duration_since(since).is_ok_and(|age| age >= self.settings.timing.settle) || informed == Some(true)
            }
            Some((false, _)) => true,
            None => false,
        });
        if known || self.signing.settled(&names) {
            let expiry = authority.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            ::metrics::gauge!(metrics::CA_EXPIRY).set(expiry.as_secs_f64());
            self.signing.install(authority, names);
        }
    }

    /// What everything that we make has in common.
    async fn metadata(&self, name: &str) -> Result<ObjectMeta, Error> {
        let (label, value) = MADE;
        let mut metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.settings.namespace.clone()),
            labels: Some(BTreeMap::from([
                (label.to_owned(), value.to_owned()),
                ("app.kubernetes.io/name".to_owned(), "posthouse".to_owned()),
                ("app.kubernetes.io/component".to_owned(), "controller".to_owned()),
            ])),
            ..ObjectMeta::default()
        };
        self.own(&mut metadata).await?;
        Ok(metadata)
    }

    /// Takes a Secret of ours over from a Deployment that is gone: it would be collected with that one.
    async fn owned(&self, mut secret: Secret) -> Result<Secret, Error> {
        if is_ours(&secret.metadata) && self.own(&mut secret.metadata).await? {
            return self.replace(&secret).await;
        }
        Ok(secret)
    }

    /// Makes our Deployment the owner of what we made, and says whether that was a change.
    async fn own(&self, metadata: &mut ObjectMeta) -> Result<bool, Error> {
        if !is_ours(metadata) {
            return Ok(false);
        }
        let owner = owner(&self.deployments).await.tried("Deployment posthouse-controller cannot be read")?;
        let owners = Some(vec![owner.ok_or(Error::Orphan)?]);
        let changed = metadata.owner_references != owners;
        metadata.owner_references = owners;
        Ok(changed)
    }
}

/// Our Deployment as an owner; none when it is gone or about to go.
pub(crate) async fn owner(deployments: &Api<Deployment>) -> Result<Option<OwnerReference>, kube::Error> {
    let found = deployments.get_opt(DEPLOYMENT).await?.map(|deployment| deployment.metadata);
    let uid = found.filter(|metadata| metadata.deletion_timestamp.is_none()).and_then(|metadata| metadata.uid);
    Ok(uid.map(|uid| OwnerReference {
        api_version: "apps/v1".to_owned(),
        kind: "Deployment".to_owned(),
        name: DEPLOYMENT.to_owned(),
        uid,
        ..OwnerReference::default()
    }))
}

fn is_ours(metadata: &ObjectMeta) -> bool {
    let (label, value) = MADE;
    metadata.labels.as_ref().and_then(|labels| labels.get(label)).is_some_and(|found| found == value)
}

fn value<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    secret.data.as_ref()?.get(key).map(|value| value.0.as_slice())
}

fn read(secret: &Secret) -> Result<Authority, Error> {
    let get = |key: &str| value(secret, key).unwrap_or_default();
    Ok(Authority::read(get(CERTIFICATE), get(KEY), value(secret, ROOT))?)
}

/// The root of the authority that will sign next, if there is one.
fn next_roots(secret: &Secret) -> Result<Vec<CertificateDer<'static>>, Error> {
    match value(secret, NEXT_CERTIFICATE) {
        Some(pem) if is_ours(&secret.metadata) => {
            Ok(certificates(pem).map_err(|why| authority::Bad::of(NEXT_CERTIFICATE, &why))?)
        }
        _ => Ok(Vec::new()),
    }
}

fn names(roots: &[CertificateDer<'_>]) -> BTreeSet<String> {
    roots.iter().map(|root| fingerprint(root)).collect()
}
