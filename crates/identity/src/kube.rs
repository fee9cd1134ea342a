//! The node's certificate from Kubernetes: a fresh key, a CertificateSigningRequest for this node's one name, and the controller
//! signs it. The roots come from the ConfigMap `posthouse-trust`, which is watched: new ones are installed at once, with the
//! certificate that is there, and a request tells the controller that they are. While the API is away, what there is goes on;
//! with `--identity-cache` after a restart, too. Without it the key never leaves the memory.

mod cache;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use posthouse_model::chain;
use posthouse_model::issuance::{BUNDLE, BUNDLE_ANNOTATION, BUNDLE_KEY, Grant, SIGNER, Scope};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use self::cache::{Cache, Kept};
use crate::certificates::Certificates;
use crate::spiffe::SpiffeId;

/// Everything that a node asks of the API server for its certificate.
pub const PERMISSIONS: &[Grant] = &[
    Grant {
        scope: Scope::Cluster,
        group: "certificates.k8s.io",
        resource: "certificatesigningrequests",
        names: &[],
        verbs: &["create", "get"],
        why: "this node's certificate",
    },
    Grant {
        scope: Scope::Namespace,
        group: "",
        resource: "configmaps",
        names: &[BUNDLE],
        verbs: &["list", "watch"],
        why: "the roots of the other nodes' certificates; asked for with metadata.name = posthouse-trust",
    },
];

/// Where certificates come from, for people.
const SOURCE: &str = "signer posthouse.io/node";
/// Clocks jump and machines sleep: nothing waits longer than this without looking at the time.
const LOOK: Duration = Duration::from_secs(30);

/// The waits; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long the API server may take for one answer. 60 s: its own limit for a request (`--request-timeout`).
    pub answer: Duration,
    /// Between two looks at a request that is not signed yet, first and longest; doubled each time. A signature takes tens of
    /// milliseconds; a controller that is away is not helped by haste.
    pub look: (Duration, Duration),
    /// After this a request is given up for a new one. An hour: Kubernetes keeps unsigned ones for a day.
    pub patience: Duration,
    /// Before the next request after one that failed or was denied, first and longest; doubled each time, with jitter. A denial
    /// is mended by people.
    pub backoff: (Duration, Duration),
    /// New roots are told to the controller within this time, spread evenly, so that a whole cluster does not ask at once.
    pub spread: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(60),
            look: (Duration::from_millis(200), Duration::from_secs(5)),
            patience: Duration::from_secs(3600),
            backoff: (Duration::from_secs(1), Duration::from_secs(300)),
            spread: Duration::from_secs(60),
        }
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{what}: {}", chain(&**.source))]
    Api {
        what: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("{0} within {1:?}")]
    Slow(&'static str, Duration),
    #[error("certificate request {name} was denied ({reason}): {message}")]
    Denied { name: String, reason: String, message: String },
    #[error("certificate request {0} waits for its signature: does posthouse-controller run?")]
    Waiting(String),
    #[error("certificate request {0} was not signed within {1:?}: does posthouse-controller run?")]
    Unsigned(String, Duration),
    #[error("certificate request {0} is gone before it was signed")]
    Gone(String),
    #[error("no key or request can be made: {0}")]
    Key(#[from] rcgen::Error),
}

/// The published roots.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bundle {
    roots: String,
    /// As the controller calls it.
    id: Option<String>,
}

/// What was issued last.
struct Issued {
    chain: Vec<u8>,
    key: String,
    renew: SystemTime,
    /// The bundle that the controller was told of.
    told: Bundle,
}

/// Keeps `certificates` filled for ever. `namespace` is the release's. `cache` is a file for what was issued, from which a restart
/// begins.
pub async fn keep(client: Client, namespace: &str, certificates: Certificates, cache: Option<PathBuf>, timing: Timing) {
    let cache = cache.map(Cache::new);
    let issued = match &cache {
        Some(cache) => warm(cache, &certificates).await,
        None => None,
    };
    let (bundles, bundle) = watch::channel(None);
    let (kept, keeping) = watch::channel(None);
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let node = Node { requests: Api::all(client), certificates: certificates.clone(), kept, timing };
    let write = async {
        if let Some(cache) = cache {
            cache.follow(keeping).await;
        }
    };
    tokio::join!(follow(maps, bundles, certificates), Arc::new(node).run(bundle, issued), write);
}

/// Takes what the process before this one had, if it is good.
async fn warm(cache: &Cache, certificates: &Certificates) -> Option<Issued> {
    let source = cache.source();
    match cache.read(certificates.id()).await {
        Ok(Some((material, kept))) => {
            let renew = half_life(material.not_before(), material.not_after());
            certificates.install(material, &source);
            let Kept { chain, key, roots, told: id } = kept;
            Some(Issued { chain, key, renew, told: Bundle { roots, id } })
        }
        Ok(None) => None,
        Err(why) => {
            tracing::warn!(source, %why, "the kept certificate is not used, a new one is asked for");
            None
        }
    }
}

/// The middle of a certificate's life, and up to a tenth earlier; it may be over.
fn half_life(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    let half = not_after.duration_since(not_before).unwrap_or_default() / 2;
    not_before + early(half)
}

/// Up to a tenth earlier, so that nodes that were started together drift apart.
fn early(wait: Duration) -> Duration {
    wait.mul_f64(0.9 + fastrand::f64() / 10.0)
}

/// Watches the roots.
async fn follow(maps: Api<ConfigMap>, bundles: watch::Sender<Option<Bundle>>, certificates: Certificates) {
    let watched = watcher::watch_object(maps, BUNDLE).default_backoff();
    let mut watched = std::pin::pin!(watched);
    let mut failed = None;
    while let Some(found) = watched.next().await {
        let problem = match found {
            Ok(Some(map)) => match read(&map) {
                Some(bundle) => {
                    failed = None;
                    bundles.send_if_modified(|known| {
                        let changed = known.as_ref() != Some(&bundle);
                        *known = Some(bundle);
                        changed
                    });
                    continue;
                }
                None => format!("ConfigMap {BUNDLE} has no {BUNDLE_KEY}"),
            },
            // The roots that are known stay.
            Ok(None) => format!("ConfigMap {BUNDLE} is not there: does posthouse-controller run?"),
            Err(error) => format!("ConfigMap {BUNDLE} cannot be watched: {}", chain(&error)),
        };
        if bundles.borrow().is_none() {
            certificates.rejected(SOURCE, &problem);
        } else if failed.as_ref() != Some(&problem) {
            tracing::warn!(problem, "the trust bundle is not followed, the one that is known stays");
        }
        failed = Some(problem);
    }
}

fn read(map: &ConfigMap) -> Option<Bundle> {
    let roots = map.data.as_ref()?.get(BUNDLE_KEY).filter(|text| !text.trim().is_empty())?.clone();
    let id = map.metadata.annotations.as_ref().and_then(|all| all.get(BUNDLE_ANNOTATION)).cloned();
    Some(Bundle { roots, id })
}

struct Node {
    requests: Api<CertificateSigningRequest>,
    certificates: Certificates,
    /// What is to outlive this process.
    kept: watch::Sender<Option<Arc<Kept>>>,
    timing: Timing,
}

type Asking = Pin<Box<dyn Future<Output = Result<(Vec<u8>, String), Refusal>> + Send>>;

impl Node {
    /// `issued` is what the process before this one had.
    async fn run(self: Arc<Self>, mut bundles: watch::Receiver<Option<Bundle>>, mut issued: Option<Issued>) {
        // The request under way, and the bundle that it names.
        let mut asking: Option<(Asking, Bundle)> = None;
        let mut due = issued.as_ref().map_or_else(SystemTime::now, |issued| issued.renew);
        let mut failures = 0;
        loop {
            // Not marked as seen: new roots are installed below, whatever else happens at the same time.
            let known = bundles.borrow().clone();
            if let (None, Some(bundle)) = (&asking, &known)
                && SystemTime::now() >= due
            {
                let (node, id) = (Arc::clone(&self), bundle.id.clone());
                asking = Some((Box::pin(async move { node.obtain(id).await }), bundle.clone()));
            }
            // Without roots there is nothing to do but to wait for them.
            let left = known.as_ref().map_or(LOOK, |_| due.duration_since(SystemTime::now()).unwrap_or_default());
            tokio::select! {
                answer = async { match &mut asking { Some((asking, _)) => asking.await, None => std::future::pending().await } } => {
                    let told = asking.take().map(|(_, bundle)| bundle);
                    let current = bundles.borrow().clone().or(known);
                    let taken = match (answer, told, current) {
                        (Ok((chain, key)), Some(told), Some(current)) => self.take(chain, key, told, &current),
                        (Err(refusal), ..) => {
                            self.certificates.rejected(SOURCE, &refusal);
                            None
                        }
                        // A request is made with a bundle.
                        (Ok(_), ..) => None,
                    };
                    match taken {
                        Some(new) => {
                            failures = 0;
                            due = self.due(&new, bundles.borrow().as_ref());
                            issued = Some(new);
                        }
                        None => {
                            due = SystemTime::now() + self.backoff(failures);
                            failures = failures.saturating_add(1);
                        }
                    }
                }
                changed = bundles.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if let (Some(issued), Some(bundle)) = (&issued, bundles.borrow().clone()) {
                        // Otherwise other nodes may refuse ours, or we theirs.
                        due = match self.install(&issued.chain, &issued.key, &issued.told, &bundle) {
                            true => self.due(issued, Some(&bundle)).min(due.max(SystemTime::now())),
                            false => SystemTime::now(),
                        };
                    } else if issued.is_none() && asking.is_none() {
                        due = SystemTime::now();
                    }
                }
                () = sleep(left.min(LOOK)), if asking.is_none() => {}
            }
        }
    }

    /// When the next request is due: at half life, or soon when the controller waits to hear of this bundle.
    fn due(&self, issued: &Issued, bundle: Option<&Bundle>) -> SystemTime {
        let told = bundle.is_none_or(|bundle| bundle.id == issued.told.id);
        if told {
            return issued.renew;
        }
        issued.renew.min(SystemTime::now() + self.timing.spread.mul_f64(fastrand::f64()))
    }

    fn backoff(&self, failures: u32) -> Duration {
        let (first, longest) = self.timing.backoff;
        let wait = first.saturating_mul(1_u32.checked_shl(failures.min(16)).unwrap_or(u32::MAX)).min(longest);
        wait.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Makes what was issued the node's certificate.
    fn take(&self, chain: Vec<u8>, key: String, told: Bundle, current: &Bundle) -> Option<Issued> {
        if !self.install(&chain, &key, &told, current) {
            return None;
        }
        let now = SystemTime::now();
        let end = self.certificates.current().map_or(now, |current| current.material.not_after());
        // Half of what is left: it was just issued.
        let renew = now + early(end.duration_since(now).unwrap_or_default() / 2);
        Some(Issued { chain, key, renew, told })
    }

    /// `told` is the bundle that the controller knows of, `bundle` the one to use.
    fn install(&self, chain: &[u8], key: &str, told: &Bundle, bundle: &Bundle) -> bool {
        let (chain, key, roots) = (chain.to_vec(), key.to_owned(), bundle.roots.clone());
        let kept = Kept { chain, key, roots, told: told.id.clone() };
        match kept.material(self.certificates.id(), SystemTime::now()) {
            Ok(material) => {
                self.certificates.install(material, SOURCE);
                self.kept.send_replace(Some(Arc::new(kept)));
                true
            }
            Err(error) => {
                self.certificates.rejected(SOURCE, &error);
                false
            }
        }
    }

    /// Asks for a certificate for a fresh key and waits for it: the chain and the key as PEM.
    async fn obtain(&self, bundle: Option<String>) -> Result<(Vec<u8>, String), Refusal> {
        let (key, request) = request(self.certificates.id())?;
        let annotations = bundle.map(|bundle| BTreeMap::from([(BUNDLE_ANNOTATION.to_owned(), bundle)]));
        let request = CertificateSigningRequest {
            metadata: ObjectMeta {
                generate_name: Some("posthouse-node-".to_owned()),
                annotations,
                ..ObjectMeta::default()
            },
            spec: CertificateSigningRequestSpec {
                request: ByteString(request.into_bytes()),
                signer_name: SIGNER.to_owned(),
                usages: Some(["digital signature", "client auth", "server auth"].map(str::to_owned).to_vec()),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let made = self
            .answer("a certificate request cannot be made", self.requests.create(&PostParams::default(), &request))
            .await?;
        let name = made.name_any();
        let Timing { look: (mut wait, longest), patience, .. } = self.timing;
        let signed = async {
            loop {
                sleep(wait.mul_f64(0.8 + fastrand::f64() / 5.0)).await;
                wait = (wait * 2).min(longest);
                match self.answer("the certificate request cannot be read", self.requests.get_opt(&name)).await {
                    Ok(Some(request)) => {
                        if let Some(chain) = decided(&name, request)? {
                            return Ok(chain);
                        }
                        if wait == longest {
                            self.certificates.rejected(SOURCE, &Refusal::Waiting(name.clone()));
                        }
                    }
                    Ok(None) => return Err(Refusal::Gone(name.clone())),
                    // The request is there, whatever became of this answer.
                    Err(refusal) => self.certificates.rejected(SOURCE, &refusal),
                }
            }
        };
        let chain = timeout(patience, signed).await.map_err(|_| Refusal::Unsigned(name.clone(), patience))??;
        Ok((chain, key))
    }

    async fn answer<T>(
        &self,
        what: &'static str,
        asked: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Refusal> {
        let limit = self.timing.answer;
        let answer = timeout(limit, asked).await.map_err(|_| Refusal::Slow(what, limit))?;
        answer.map_err(|source| Refusal::Api { what, source: Box::new(source) })
    }
}

/// A fresh key and a request for it, as PEM.
fn request(id: &SpiffeId) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    // The signer writes the subject.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    Ok((key.serialize_pem(), params.serialize_request(&key)?.pem()?))
}

/// The certificate, if there is one, or why there will be none.
fn decided(name: &str, request: CertificateSigningRequest) -> Result<Option<Vec<u8>>, Refusal> {
    let Some(status) = request.status else {
        return Ok(None);
    };
    for condition in status.conditions.unwrap_or_default() {
        if condition.type_ == "Denied" || condition.type_ == "Failed" {
            return Err(Refusal::Denied {
                name: name.to_owned(),
                reason: condition.reason.unwrap_or_default(),
                message: condition.message.unwrap_or_default(),
            });
        }
    }
    Ok(status.certificate.map(|certificate| certificate.0).filter(|certificate| !certificate.is_empty()))
}

#[cfg(test)]
mod tests;
