//! The controller: keeps the certificate authority, publishes the trust bundle and signs nodes' certificate requests. The
//! door is [`run`]. Several replicas run, one of them leads (`leader.rs`) and does everything: `keeper.rs` the authority,
//! `signer.rs` the requests, `policies.rs` the status of AuthorizationPolicies. What is decided is in pure functions: `review.rs` (is this request signed), `rotation.rs` (is
//! the authority replaced), `bundle.rs` (which roots are trusted). All state is in the API, so that a leader may die at any time.

mod authority;
mod bundle;
mod keeper;
mod leader;
mod metrics;
mod permissions;
mod policies;
mod reports;
mod review;
mod rotation;
mod signer;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::Client;
use tokio::sync::watch;

pub use leader::Election;
pub use metrics::METRICS;
pub use permissions::PERMISSIONS;

/// Where the authority comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ca {
    /// It is made unless it is there.
    Create,
    /// Somebody else makes it.
    Adopt,
}

/// What the controller is told.
#[derive(Clone)]
pub struct Settings {
    /// The release's namespace.
    pub namespace: String,
    /// This replica's name, which no other has: its pod's.
    pub identity: String,
    /// The trust domain of the names in certificates.
    pub trust_domain: String,
    /// The proxies' service account.
    pub proxy_account: String,
    /// Where the authority comes from.
    pub ca: Ca,
    /// How long an authority that we make is valid. At least [`Settings::LIVES`] times `certificate_lifetime`.
    pub ca_lifetime: Duration,
    /// How long a node's certificate is valid at most.
    pub certificate_lifetime: Duration,
    /// The waits.
    pub timing: Timing,
    /// The time, which tests set.
    pub clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Settings {
    /// An authority must outlive a node's certificate by this factor: its last third has room for nodes to learn of the next
    /// one and for every certificate to be renewed.
    pub const LIVES: u32 = 6;
}

/// The waits of the controller; tests shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Of the election.
    pub election: Election,
    /// Between two looks at the authority and the bundle. 10 s: a handful of small requests.
    pub pass: Duration,
    /// Before what failed is tried again.
    pub retry: Duration,
    /// How long one look or one request may take. 60 s: the API server's own limit for a request (`--request-timeout`).
    pub pass_limit: Duration,
    /// After this a new root counts as known by every node, when not all say so: proxies load it within seconds and say so
    /// within a minute.
    pub settle: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            election: Election::default(),
            pass: Duration::from_secs(10),
            retry: Duration::from_secs(5),
            pass_limit: Duration::from_secs(60),
            settle: Duration::from_secs(180),
        }
    }
}

/// What is seen of a running controller. Clones see the same.
#[derive(Clone, Debug)]
pub struct Health {
    leads: watch::Sender<bool>,
    asked: watch::Sender<bool>,
}

impl Default for Health {
    fn default() -> Self {
        Self { leads: watch::channel(false).0, asked: watch::channel(false).0 }
    }
}

impl Health {
    /// Whether this replica leads.
    #[must_use]
    pub fn leads(&self) -> bool {
        *self.leads.borrow()
    }

    /// Whether the API has answered since the start: this replica leads or stands by.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.asked.borrow()
    }
}

/// Runs until `stop` changes or its sender is gone, then gives the lead up.
pub async fn run(client: Client, settings: Settings, health: Health, stop: watch::Receiver<()>) {
    let settings = Arc::new(settings);
    let elector =
        leader::Elector::new(&client, &settings.namespace, settings.identity.clone(), settings.timing.election);
    let mut leads = health.leads.subscribe();
    let work = async {
        loop {
            ::metrics::gauge!(metrics::LEADER).set(0.0);
            if leads.wait_for(|leads| *leads).await.is_err() {
                break;
            }
            ::metrics::gauge!(metrics::LEADER).set(1.0);
            tokio::select! {
                // Whatever the leader does is dropped in the moment in which it no longer leads.
                () = lead(&client, &settings) => {}
                _ = leads.wait_for(|leads| !*leads) => {}
            }
        }
    };
    tokio::select! {
        () = elector.run(&health.leads, &health.asked, stop) => {}
        () = work => {}
    }
    ::metrics::gauge!(metrics::LEADER).set(0.0);
}

/// What the leader does; all of its knowledge begins anew with each lead.
async fn lead(client: &Client, settings: &Arc<Settings>) {
    let signing = Arc::new(signer::Signing::default());
    let keeper = keeper::Keeper::new(client, Arc::clone(settings), Arc::clone(&signing));
    tokio::join!(
        keeper.run(),
        signer::run(client, Arc::clone(settings), signing),
        policies::run(client, Arc::clone(settings))
    );
}
