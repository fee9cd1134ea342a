//! How links are secured, put together from the flags: the transport, the certificate that it uses, and what the process says
//! of it: not ready before there is one, and not while it is expired, since such a node cannot link.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use posthouse_identity::{Certificates, Files, Material, Options, Plain, Tls, kube as issued};
use posthouse_model::transport::LinkTransport;

use crate::Failure;
use crate::args::{Config, TlsConfig};
use crate::readiness::Readiness;

/// A connection to the API server on which nothing came for this long is dead: the server ends each watch before. 295 s: kube-rs'
/// own figure, which asks for watches of 290 s.
const SILENCE: Duration = Duration::from_secs(295);
/// How often the certificate's end is compared with the clock, which may be set in between.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(30);

/// The transport of links and the certificate behind it.
pub(crate) struct Security {
    pub(crate) transport: Arc<dyn LinkTransport>,
    secured: Option<Secured>,
}

struct Secured {
    config: TlsConfig,
    certificates: Certificates,
    from: From,
}

/// Where certificates come from.
enum From {
    /// Read once already.
    Files(Files, Box<Material>),
    /// The controller of the cluster, by its API, for the namespace of the release; and the file where that is kept.
    Cluster { client: kube::Client, namespace: String, cache: Option<PathBuf> },
}

impl Security {
    /// Reads what the flags name, and logs nothing yet.
    ///
    /// # Errors
    /// The files are not this node's certificate, key and roots, or there is no API server to ask for one.
    pub(crate) async fn new(config: &Config, connect_timeout: Duration) -> Result<Self, Failure> {
        let source = config.node_ips[0];
        let Some(tls) = &config.tls else {
            return Ok(Self { transport: Arc::new(Plain::new(source, connect_timeout)), secured: None });
        };
        let from = match &tls.files {
            Some(files) => {
                let first =
                    files.read(&tls.id, SystemTime::now()).map_err(|error| Failure::Usage(error.to_string()))?;
                From::Files(files.clone(), Box::new(first))
            }
            None => {
                let client = posthouse_discovery::connect(Some(SILENCE)).await;
                let client = client.map_err(|why| Failure::Usage(format!("no usable cluster configuration: {why}")))?;
                From::Cluster { client, namespace: config.namespace.clone(), cache: tls.cache.clone() }
            }
        };
        let certificates = Certificates::new(tls.id.clone());
        let options = Options {
            source,
            connect_timeout,
            permissive: tls.permissive,
            service_domain: tls.by_service.then(|| Arc::from(config.cluster_domain.as_str())),
        };
        let transport = Arc::new(Tls::new(certificates.clone(), options));
        Ok(Self { transport, secured: Some(Secured { config: tls.clone(), certificates, from }) })
    }

    /// None with `--tls off`.
    pub(crate) fn certificates(&self) -> Option<&Certificates> {
        self.secured.as_ref().map(|secured| &secured.certificates)
    }

    /// Takes the first certificate into use, if it is there; what this gives back has to run on, for those that come later.
    pub(crate) fn start(self, readiness: &Readiness) -> impl Future<Output = ()> + Send + use<> {
        if let Some(Secured { certificates, from, config }) = &self.secured {
            if let From::Files(files, first) = from {
                certificates.install(Material::clone(first), &files.source());
            }
            if config.permissive {
                tracing::warn!(
                    "--tls-permissive: peers without TLS are linked, too; take it away once posthouse_link_plain_connections_total stands still on every node"
                );
            }
        }
        let readiness = readiness.clone();
        async move {
            let Some(Secured { certificates, from, config: _ }) = self.secured else {
                return std::future::pending().await;
            };
            let follow = async {
                match from {
                    From::Files(files, _) => files.watch(certificates.clone()).await,
                    From::Cluster { client, namespace, cache } => {
                        let timing = issued::Timing::default();
                        issued::keep(client, &namespace, certificates.clone(), cache, timing).await;
                    }
                }
            };
            tokio::join!(follow, tell(&certificates, &readiness));
        }
    }
}

/// Why a node cannot link.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lack {
    Missing,
    Expired,
}

impl Lack {
    fn reason(self) -> &'static str {
        match self {
            Self::Missing => "identity: no certificate yet; /identity on --admin-listen says why",
            Self::Expired => {
                "identity: the certificate is expired; /identity on --admin-listen says why there is no newer one"
            }
        }
    }
}

/// Keeps the process unready while it has no valid certificate.
async fn tell(certificates: &Certificates, readiness: &Readiness) {
    let mut changed = certificates.changed();
    let mut told = None;
    loop {
        let lack = match certificates.current().map(|current| current.material.not_after()) {
            None => Some(Lack::Missing),
            Some(end) => (end < SystemTime::now()).then_some(Lack::Expired),
        };
        if told.as_ref().map(|(lack, _)| *lack) != lack {
            if lack == Some(Lack::Expired) {
                tracing::error!("the node's certificate is expired and there is no newer one: no links are made");
            }
            told = lack.map(|lack| (lack, readiness.pending(lack.reason())));
        }
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_AT_CLOCK) => {}
        }
    }
}

#[cfg(test)]
mod tests;
