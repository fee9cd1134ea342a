//! Whether a failed request may be sent again, where and when. Nothing is sent twice that a pod may have begun with unless
//! its method allows it, and no more than the Service's budget: retries must not turn an outage into a flood.

use std::sync::Arc;
use std::time::Duration;

use posthouse_model::stats::now_nanos;
use posthouse_model::{Endpoint, EndpointStats};

use super::pick;
use crate::balance::Tried;
use crate::client::Found;
use crate::error::{Error, ErrorKind, Retry, Side};

/// Further tries after failures such that nothing had reached a pod.
const MAX_SAFE_RETRIES: usize = 2;
/// Further tries where pods refuse the connection or their nodes do not know them (any more), which costs little time: when a
/// Service shrinks from 12 pods to 3, nine of them are gone before this node hears of it.
const MAX_GONE_RETRIES: usize = 9;
/// Further tries of an idempotent request after a failure in the middle. Two, as many as where nothing reached a pod: with one, a GET failed
/// where two pods in a row ended without care under it (design default: one; GEP-1731 has none).
const MAX_IDEMPOTENT_RETRIES: usize = 2;
/// Back-off before a try that follows at once on the same trouble: up to 25 ms, with full jitter. Source: the first step of
/// Envoy's and linkerd2-proxy's 25 to 250 ms; there is no second. A try elsewhere after a refused connection does not wait.
const BACKOFF: Duration = Duration::from_millis(25);

/// What was tried, and whether more may be.
#[derive(Default)]
pub(super) struct Retries {
    pub(super) tried: Tried,
    safe: usize,
    gone: usize,
    idempotent: usize,
    /// The failure of the try before.
    pub(super) last: Option<Error>,
}

impl Retries {
    /// After `error` at `endpoint`: how long to wait before the next try, or the error when there is none.
    pub(super) fn decide(
        &mut self,
        error: Error,
        endpoint: &Endpoint,
        idempotent: bool,
        replayable: bool,
        found: &Found,
    ) -> Result<Backoff, Error> {
        let now = now_nanos();
        let refused = matches!(error.kind, ErrorKind::ConnectionRefused | ErrorKind::ConnectionTimeout);
        match error.kind {
            ErrorKind::ConnectionTimeout => endpoint.stats.timed_out(now),
            ErrorKind::ConnectionRefused => endpoint.stats.refused(now),
            _ => {}
        }
        // Where there is no other endpoint, one that did not refuse the connection itself may be asked again.
        let again = is_alone(found, endpoint) && !refused && error.retry == Retry::Safe;
        let is_gone = is_gone(&error) && !found.outside && !again;
        let allowed = replayable
            && match error.retry {
                Retry::Safe if is_gone => self.gone < MAX_GONE_RETRIES,
                Retry::Safe => self.safe < MAX_SAFE_RETRIES,
                Retry::IfIdempotent => idempotent && self.idempotent < MAX_IDEMPOTENT_RETRIES,
                Retry::Never => false,
            };
        if !allowed {
            return Err(error);
        }
        if !again {
            self.tried.add(endpoint, error.side == Side::Link);
            if pick(found, self, now).is_err() {
                return Err(error);
            }
        }
        if !found.budget.withdraw(now) {
            found.metrics.retry("no_budget");
            return Err(error);
        }
        found.metrics.retry("sent");
        let elsewhere_unharmed = error.retry == Retry::Safe && !again;
        match error.retry {
            Retry::Safe if is_gone => self.gone += 1,
            Retry::Safe => self.safe += 1,
            Retry::IfIdempotent | Retry::Never => self.idempotent += 1,
        }
        self.last = Some(error);
        Ok(Backoff(if elsewhere_unharmed { Duration::ZERO } else { BACKOFF.mul_f64(fastrand::f64()) }))
    }
}

/// Whether nobody seems to be there (any more), as the pod's system says, or the receiver (we, for our own pods), whose directory has no
/// such endpoint. The latter is no reason to pass the endpoint over: that directory may be the older one.
fn is_gone(error: &Error) -> bool {
    match error.kind {
        ErrorKind::ConnectionRefused => true,
        ErrorKind::DestinationUnavailable => error.side == Side::Upstream,
        _ => false,
    }
}

/// Whether the destination has no usable endpoint but this one.
fn is_alone(found: &Found, endpoint: &Endpoint) -> bool {
    let only = match (&found.destination.endpoint, found.destination.service_port().endpoints.usable()) {
        (Some(only), _) | (None, [only]) => only,
        _ => return false,
    };
    only.address == endpoint.address
}

pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) async fn wait(self) {
        if !self.0.is_zero() {
            tokio::time::sleep(self.0).await;
        }
    }
}

/// Counts a request at its endpoint.
pub(crate) struct InFlight {
    pub(super) stats: Arc<EndpointStats>,
}

impl InFlight {
    pub(super) fn begin(stats: &Arc<EndpointStats>) -> Self {
        stats.begin();
        Self { stats: Arc::clone(stats) }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.stats.end();
    }
}
