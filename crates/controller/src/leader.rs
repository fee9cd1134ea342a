//! Which replica acts. A Lease names the leader; who sees it unchanged for its whole duration may take it. That is measured on
//! the own clock from when a change was seen, so that clocks need not agree, and the API server refuses a write by
//! somebody who has not seen the last one. Same rules as client-go's `leaderelection`.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use posthouse_model::chain;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::keeper::owner;

/// The Lease.
pub(crate) const LEASE: &str = "posthouse-controller";

/// The times of an election; the defaults are client-go's for the control plane's own components.
#[derive(Clone, Copy, Debug)]
pub struct Election {
    /// How long others leave a silent leader alone.
    pub lease: Duration,
    /// How long a leader that cannot renew goes on; less than `lease`, so that it stops before another begins.
    pub renew: Duration,
    /// Between two tries.
    pub retry: Duration,
}

impl Default for Election {
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), renew: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

/// One replica's part in the election.
pub(crate) struct Elector {
    api: Api<Lease>,
    deployments: Api<Deployment>,
    /// The replica's name, which no other has: its pod's.
    identity: String,
    times: Election,
    /// The Lease as it was seen last, and since when it is so.
    seen: Option<(LeaseSpec, Instant)>,
}

/// What one try came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Ours,
    Theirs,
    /// The API did not answer, or somebody wrote in between.
    Unknown,
}

impl Elector {
    pub(crate) fn new(client: &Client, namespace: &str, identity: String, times: Election) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            deployments: Api::namespaced(client.clone(), namespace),
            identity,
            times,
            seen: None,
        }
    }

    /// Stands for election until `stop`, then gives the Lease up. `leads` says whether this replica leads, `asked` is set
    /// once the API has answered for the first time.
    pub(crate) async fn run(
        mut self,
        leads: &watch::Sender<bool>,
        asked: &watch::Sender<bool>,
        mut stop: watch::Receiver<()>,
    ) {
        // A leader's last success; measured from before the request, since others measure from after it.
        let mut renewed: Option<Instant> = None;
        loop {
            let begun = Instant::now();
            let until = renewed.map_or(begun + self.times.renew, |at| at + self.times.renew);
            let tried = tokio::select! {
                tried = timeout_at(until, self.attempt()) => tried.unwrap_or(Outcome::Unknown),
                _ = stop.changed() => break,
            };
            match tried {
                Outcome::Ours => {
                    if renewed.is_none() {
                        tracing::info!(identity = self.identity, "this replica leads");
                    }
                    renewed = Some(begun);
                }
                Outcome::Theirs if renewed.is_some() => {
                    tracing::warn!(identity = self.identity, "another replica took the lease: this one stops acting");
                    renewed = None;
                }
                Outcome::Unknown if renewed.is_some_and(|at| at.elapsed() >= self.times.renew) => {
                    tracing::warn!(
                        identity = self.identity,
                        limit = ?self.times.renew,
                        "the lease could not be renewed in time: this replica stops acting"
                    );
                    renewed = None;
                }
                Outcome::Theirs | Outcome::Unknown => {}
            }
            if tried != Outcome::Unknown {
                asked.send_replace(true);
            }
            leads.send_if_modified(|leads| std::mem::replace(leads, renewed.is_some()) != renewed.is_some());
            // A tenth of jitter, so that replicas do not ask in step.
            let wait = self.times.retry.mul_f64(1.0 + fastrand::f64() / 10.0);
            let wait =
                renewed.map_or(wait, |at| wait.min((at + self.times.renew).saturating_duration_since(Instant::now())));
            tokio::select! {
                () = sleep(wait) => {}
                _ = stop.changed() => break,
            }
        }
        leads.send_replace(false);
        if renewed.is_some() {
            // The next leader waits the lease out if this does not succeed.
            let _ = timeout_at(Instant::now() + self.times.retry, self.release()).await;
        }
    }

    async fn attempt(&mut self) -> Outcome {
        match self.take().await {
            Ok(true) => Outcome::Ours,
            Ok(false) => Outcome::Theirs,
            Err(error) => {
                tracing::debug!(error = chain(&error), "the lease cannot be asked for or written");
                Outcome::Unknown
            }
        }
    }

    /// Renews the Lease or takes it if it may be taken.
    async fn take(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(LEASE).await? else {
            // Without its owner this is an uninstall, which nothing may outlive.
            let Some(owner) = owner(&self.deployments).await? else {
                return Ok(false);
            };
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(LEASE.to_owned()),
                    owner_references: Some(vec![owner]),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(&LeaseSpec::default())),
            };
            let made = self.api.create(&PostParams::default(), &lease).await?;
            self.saw(made.spec.unwrap_or_default());
            return Ok(true);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let since = self.saw(spec.clone());
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or_default();
        if !holder.is_empty() && holder != self.identity && since.elapsed() < Duration::from_secs(seconds) {
            return Ok(false);
        }
        lease.spec = Some(self.spec(&spec));
        // With the version that was read: who wrote in between wins.
        let written = self.api.replace(LEASE, &PostParams::default(), &lease).await?;
        self.saw(written.spec.unwrap_or_default());
        Ok(true)
    }

    /// Notes the Lease and says since when it is as it is.
    fn saw(&mut self, spec: LeaseSpec) -> Instant {
        match &self.seen {
            Some((known, since)) if *known == spec => *since,
            _ => {
                let now = Instant::now();
                self.seen = Some((spec, now));
                now
            }
        }
    }

    /// The Lease as ours.
    fn spec(&self, before: &LeaseSpec) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = before.holder_identity.as_deref() == Some(&*self.identity);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.times.lease.as_secs().max(1)).unwrap_or(i32::MAX)),
            acquire_time: if ours { before.acquire_time.clone() } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0).saturating_add(i32::from(!ours))),
            ..LeaseSpec::default()
        }
    }

    async fn release(&self) -> Result<(), kube::Error> {
        let mut lease = self.api.get(LEASE).await?;
        if let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(&*self.identity))
        {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            self.api.replace(LEASE, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}
