//! Answers the certificate requests of our signer: denies or approves, then signs. Requests come by a watch, a few at a time;
//! what fails is tried again, later and later. Each write carries the version that was read, so that a request that
//! somebody else decided in between is looked at anew.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use posthouse_model::chain;
use posthouse_model::issuance::SIGNER;

use crate::authority::{Authority, Bad};
use crate::reports::Reports;
use crate::review::{Denial, Granted, Rules, review};
use crate::{Settings, metrics};

/// Requests that are answered at the same time: 16 of some 10 ms are more than 1,000 a second, while the API server sees no
/// more than 16 of our writes at once.
const CONCURRENT: u16 = 16;
/// A request that waits for the authority is looked at again after this.
const UNREADY: Duration = Duration::from_secs(1);

const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";
const FAILED: &str = "Failed";

/// What the requests and the authority have to do with each other; shared by the keeper and the signer of one leader.
#[derive(Default)]
pub(crate) struct Signing {
    authority: ArcSwapOption<(BTreeSet<String>, Authority)>,
    pub(crate) reports: Reports,
}

impl Signing {
    /// From now on this authority signs.
    pub(crate) fn install(&self, authority: Authority, roots: BTreeSet<String>) {
        let before = self.authority.load();
        if before.as_ref().is_some_and(|before| before.0 == roots && before.1.same_as(&authority)) {
            return;
        }
        tracing::info!(roots = ?roots, "certificates are signed from now on by the authority under these roots");
        self.authority.store(Some(Arc::new((roots, authority))));
    }

    /// Whether the authority under these roots signs.
    pub(crate) fn settled(&self, roots: &BTreeSet<String>) -> bool {
        self.authority.load().as_ref().is_some_and(|authority| authority.0 == *roots)
    }

    /// Whether some authority signs.
    pub(crate) fn can_sign(&self) -> bool {
        self.authority.load().is_some()
    }
}

/// Why a request is not answered yet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API does not do what it is asked.
    #[error("{}", chain(.0))]
    Api(#[from] kube::Error),
    /// It cannot be signed.
    #[error(transparent)]
    Authority(#[from] Bad),
    /// It took too long.
    #[error("the API server took longer than {0:?}")]
    Slow(Duration),
}

struct Context {
    api: Api<CertificateSigningRequest>,
    settings: Arc<Settings>,
    signing: Arc<Signing>,
    rules: Rules,
}

/// Answers requests for ever; dropping it stops at once.
pub(crate) async fn run(client: &Client, settings: Arc<Settings>, signing: Arc<Signing>) {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let rules = Rules {
        trust_domain: settings.trust_domain.clone(),
        username: format!("system:serviceaccount:{}:{}", settings.namespace, settings.proxy_account),
    };
    let context = Arc::new(Context { api: api.clone(), settings, signing, rules });
    let watched = watcher::Config::default().fields(&format!("spec.signerName={SIGNER}"));
    let answers = Controller::new(api, watched).with_config(Config::default().concurrency(CONCURRENT)).run(
        answer,
        |csr, error, context| again(&csr, error, &context),
        context,
    );
    let mut answers = std::pin::pin!(answers);
    while let Some(outcome) = answers.next().await {
        match outcome {
            Ok(_) => {}
            // Told by `again`, or the object is gone.
            Err(
                kube::runtime::controller::Error::ReconcilerFailed(..)
                | kube::runtime::controller::Error::ObjectNotFound(_),
            ) => {}
            Err(error) => {
                ::metrics::counter!(metrics::FAILURES, "task" => "request").increment(1);
                tracing::warn!(error = chain(&error), "certificate requests cannot be watched");
            }
        }
    }
}

/// When a request that could not be answered is tried again.
fn again(csr: &CertificateSigningRequest, error: &Error, context: &Context) -> Action {
    // Somebody wrote in between: the watch brings the new version, this is for when it does not.
    if matches!(error, Error::Api(kube::Error::Api(status)) if status.code == 409 || status.code == 404) {
        return Action::requeue(context.settings.timing.retry);
    }
    ::metrics::counter!(metrics::FAILURES, "task" => "request").increment(1);
    tracing::warn!(request = csr.name_any(), error = %error, "a certificate request cannot be answered yet");
    Action::requeue(context.settings.timing.retry.mul_f64(1.0 + fastrand::f64()))
}

async fn answer(csr: Arc<CertificateSigningRequest>, context: Arc<Context>) -> Result<Action, Error> {
    let limit = context.settings.timing.pass_limit;
    tokio::time::timeout(limit, context.answer(&csr)).await.unwrap_or(Err(Error::Slow(limit)))
}

impl Context {
    async fn answer(&self, csr: &CertificateSigningRequest) -> Result<Action, Error> {
        // The field selector says so already.
        if csr.spec.signer_name != SIGNER {
            return Ok(Action::await_change());
        }
        let has = |kind: &str| conditions(csr).iter().any(|condition| condition.type_ == kind);
        let issued =
            csr.status.as_ref().and_then(|status| status.certificate.as_ref()).is_some_and(|c| !c.0.is_empty());
        if has(DENIED) || has(FAILED) {
            return Ok(Action::await_change());
        }
        let granted = match review(csr, &self.rules) {
            Ok(granted) => granted,
            Err(_) if issued => return Ok(Action::await_change()),
            Err(denial) => return self.deny(csr, &denial, has(APPROVED)).await,
        };
        if let Some(bundle) = &granted.bundle {
            self.signing.reports.note(&granted.node, csr.metadata.creation_timestamp.clone(), bundle);
        }
        if issued {
            return Ok(Action::await_change());
        }
        if !self.signing.can_sign() {
            return Ok(Action::requeue(UNREADY));
        }
        let approved = match has(APPROVED) {
            true => csr.clone(),
            false => self.approve(csr).await?,
        };
        self.sign(approved, &granted).await
    }

    /// A request that somebody approved by hand cannot be denied any more; it fails.
    async fn deny(&self, csr: &CertificateSigningRequest, denial: &Denial, approved: bool) -> Result<Action, Error> {
        let Denial { reason, message } = denial;
        let (kind, subresource) = if approved { (FAILED, "status") } else { (DENIED, "approval") };
        let changed = with_condition(csr, kind, reason.as_str(), message);
        self.api.replace_subresource(subresource, &csr.name_any(), &PostParams::default(), &changed).await?;
        ::metrics::counter!(metrics::DENIED, "reason" => reason.as_str()).increment(1);
        tracing::warn!(request = csr.name_any(), reason = reason.as_str(), message, "certificate request denied");
        Ok(Action::await_change())
    }

    async fn approve(&self, csr: &CertificateSigningRequest) -> Result<CertificateSigningRequest, Error> {
        let message = "the asker's token was made for the node whose name it asks for";
        let changed = with_condition(csr, APPROVED, "NodeProven", message);
        Ok(self.api.replace_subresource("approval", &csr.name_any(), &PostParams::default(), &changed).await?)
    }

    async fn sign(&self, mut csr: CertificateSigningRequest, granted: &Granted) -> Result<Action, Error> {
        let signed = {
            let current = self.signing.authority.load();
            let Some(authority) = current.as_ref() else {
                return Ok(Action::requeue(UNREADY));
            };
            let Settings { trust_domain, certificate_lifetime, clock, .. } = &*self.settings;
            authority.1.sign(granted, trust_domain, clock(), *certificate_lifetime)?
        };
        csr.status.get_or_insert_default().certificate = Some(ByteString(signed.into_bytes()));
        self.api.replace_subresource("status", &csr.name_any(), &PostParams::default(), &csr).await?;
        ::metrics::counter!(metrics::SIGNED).increment(1);
        tracing::info!(request = csr.name_any(), node = granted.node, "certificate signed");
        Ok(Action::await_change())
    }
}

fn conditions(csr: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    csr.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

fn with_condition(
    csr: &CertificateSigningRequest,
    kind: &str,
    reason: &str,
    message: &str,
) -> CertificateSigningRequest {
    let now = Time(Timestamp::now());
    let mut csr = csr.clone();
    let status = csr.status.get_or_insert_with(CertificateSigningRequestStatus::default);
    status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    });
    csr
}
