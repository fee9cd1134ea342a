//! One worker: what its connections share within its thread, how it accepts, and how it drains. Nothing in here is shared
//! with other workers but through `Proxy`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::HeaderValue;
use metrics::counter;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::authorise::{PolicyWatch, Protected};
use crate::backend::Backend;
use crate::client::{self, Client, Origin};
use crate::error::{Error, ErrorKind};
use crate::inbound;
use crate::link::Links;
use crate::metrics::{
    CLIENTS_REFUSED, Direction, LINK_STREAMS, MetricsCache, OpenGauge, ServiceMetrics, limit_reached,
};
use crate::outbound::Names;
use crate::pods::{Far, Pods};
use crate::serve;
use crate::status::Proxy;
use crate::stream::{BufferedIo, Stream, tune};

/// Client connections that one worker holds at once; more wait in the kernel's backlog. 32,768 at about 10 KiB each is
/// 320 MiB, and below half of the usual descriptor limit of 1,048,576 with 16 workers.
const MAX_CLIENTS: usize = 32_768;
/// Connections of one address that one worker holds: an eighth of all, so that one pod cannot lock the others out.
const MAX_PER_CLIENT: usize = MAX_CLIENTS / 8;
/// Links that one worker takes at once. 16,384: four workers on each of 4,096 other nodes.
const MAX_LINKS: usize = 16_384;
/// Clients of unknown address that a worker holds at once; more are refused.
const MAX_HELD: usize = 1_024;

/// How long a delivery waits for its pod to be shown by the API. The watch of pods lags that of slices by milliseconds.
const POD_APPEARS: Duration = Duration::from_millis(500);
/// A timer that fires so late tells of a machine that stood still.
const LATE: Duration = Duration::from_millis(100);

/// A worker's shared state.
pub(crate) struct Worker {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) pods: Rc<Pods>,
    /// Connections to hosts outside of the cluster, never mixed with those to pods.
    pub(crate) outside: Rc<Pods>,
    /// What such hosts' names came to.
    pub(crate) names: Names,
    pub(crate) links: Links,
    pub(crate) outbound: MetricsCache,
    pub(crate) inbound: MetricsCache,
    /// Our entry in Via.
    pub(crate) via: HeaderValue,
    pub(crate) drain: Rc<Drain>,
    /// `posthouse_link_streams` of direction `in`.
    pub(crate) link_streams: metrics::Gauge,
    /// Targets that were admitted under the directory of this version.
    admitted: RefCell<(u64, HashMap<SocketAddr, Rc<Admitted>>)>,
    pub(crate) policies: PolicyWatch,
    /// Connections by client address.
    shares: RefCell<HashMap<IpAddr, usize>>,
    held: Cell<usize>,
    warned: RefCell<Option<Instant>>,
    pub(crate) failure_log: FailureLog,
}

/// Tells connections to end after what they are doing: first by an answer's `Connection: close` or a GOAWAY, later also those
/// on which nothing is asked. A client that reuses a kept-alive connection at the moment in which it is closed cannot know
/// whether its request was read, and may not send a POST again.
#[derive(Default)]
pub(crate) struct Drain {
    draining: Cell<bool>,
    begun: Notify,
    idle_over: Cell<bool>,
    idle_ends: Notify,
}

impl Drain {
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Ready when draining has begun.
    pub(crate) async fn begun(&self) {
        let notified = self.begun.notified();
        if !self.draining.get() {
            notified.await;
        }
    }

    /// Ready when idle connections of clients that speak HTTP/1 shall end.
    pub(crate) async fn idle_ends(&self) {
        let notified = self.idle_ends.notified();
        if !self.idle_over.get() {
            notified.await;
        }
    }

    fn begin(&self) {
        self.draining.set(true);
        self.begun.notify_waiters();
    }

    fn end_idle(&self) {
        self.idle_over.set(true);
        self.idle_ends.notify_waiters();
    }
}

/// A target to which requests may be delivered.
pub(crate) struct Admitted {
    /// The counters of its Service.
    pub(crate) metrics: Rc<ServiceMetrics>,
    /// The policies that concern it, if any do.
    pub(crate) protected: Option<Protected>,
    /// How the pod is spoken to.
    pub(crate) backend: Backend,
}

/// What a worker listens on.
pub(crate) struct Listeners {
    pub(crate) outbound: Vec<TcpListener>,
    pub(crate) link: TcpListener,
}

/// How the thread's owner ends a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Serve,
    /// Close listeners, finish what is under way, end what is idle after this time.
    Drain(Duration),
    /// End at once.
    Stop,
}

impl Worker {
    pub(crate) fn new(proxy: Arc<Proxy>) -> Rc<Self> {
        // Node names are DNS names; anything else falls back to the bare product name.
        let via = HeaderValue::try_from(format!("1.1 {}.posthouse", proxy.config.node_name))
            .unwrap_or_else(|_| HeaderValue::from_static("1.1 posthouse"));
        Rc::new(Self {
            pods: Pods::new(Arc::clone(&proxy), Far::Pod),
            outside: Pods::new(Arc::clone(&proxy), Far::Outside),
            names: Names::default(),
            links: Links::new(),
            outbound: MetricsCache::new(Direction::Outbound),
            inbound: MetricsCache::new(Direction::Inbound),
            via,
            drain: Rc::new(Drain::default()),
            link_streams: metrics::gauge!(LINK_STREAMS, "direction" => "in"),
            admitted: RefCell::new((0, HashMap::new())),
            policies: PolicyWatch::default(),
            shares: RefCell::new(HashMap::new()),
            held: Cell::new(0),
            warned: RefCell::new(None),
            failure_log: FailureLog::default(),
            proxy,
        })
    }

    /// Serves until told to stop; returns when the last connection has ended, or at once on [`Phase::Stop`].
    pub(crate) async fn run(self: Rc<Self>, listeners: Listeners, mut phase: watch::Receiver<Phase>) {
        let mut tasks: JoinSet<()> = JoinSet::new();
        let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
        let links = Arc::new(Semaphore::new(MAX_LINKS));
        let (done, mut connections) = mpsc::unbounded_channel::<Infallible>();
        for listener in listeners.outbound {
            let worker = Rc::clone(&self);
            let drain = Rc::clone(&self.drain);
            tasks.spawn_local(accept(
                listener,
                drain,
                Arc::clone(&clients),
                "connections",
                done.clone(),
                move |stream, remote| Rc::clone(&worker).client(stream, remote),
            ));
        }
        let worker = Rc::clone(&self);
        let drain = Rc::clone(&self.drain);
        tasks.spawn_local(accept(
            listeners.link,
            drain,
            links,
            "link_connections",
            done.clone(),
            move |stream, remote| crate::link_server::serve(Rc::clone(&worker), stream, remote),
        ));
        let worker = Rc::clone(&self);
        let mut sweeper = JoinSet::new();
        sweeper.spawn_local(async move {
            let mut turns = 0u64;
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                worker.pods.sweep();
                worker.outside.sweep();
                worker.links.sweep(&worker.proxy);
                turns += 1;
                if turns.is_multiple_of(60) {
                    worker.admitted.borrow_mut().1.clear();
                }
            }
        });
        let worker = Rc::clone(&self);
        sweeper.spawn_local(async move { worker.policies.follow(&worker.proxy.directory).await });
        drop(done);
        // An error means that the owner is gone, which ends the worker, too.
        let told = phase.wait_for(|p| *p != Phase::Serve).await.map(|phase| *phase);
        let idle = if let Ok(Phase::Drain(idle)) = told { idle } else { Duration::ZERO };
        // The accept loops take what the kernel has accepted already, then end, which closes the listeners.
        self.drain.begin();
        while tasks.join_next().await.is_some() {}
        drop(sweeper);
        let end_idle = async {
            tokio::time::sleep(idle).await;
            self.drain.end_idle();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            // Every connection holds a sender; none is ever sent on.
            _ = connections.recv() => {}
            _ = phase.wait_for(|p| *p == Phase::Stop) => {}
            () = end_idle => {}
        }
    }

    /// Whether a request may be delivered to `target` (see [`inbound::admit`]), and the counters of its Service. The verdict
    /// is kept until the directory changes; only a refusal is worked out each time. A slice may be known a moment before its
    /// pod is, so a pod that may yet appear is waited for.
    pub(crate) async fn admit(&self, target: SocketAddr, now: Instant) -> Result<Rc<Admitted>, Error> {
        match self.admit_now(target, now) {
            Ok(admitted) => Ok(admitted),
            Err(refusal) if !refusal.may_appear => Err(refusal.error),
            Err(_) => Box::pin(self.admit_soon(target, now)).await,
        }
    }

    /// [`Self::admit`], when the pod may yet appear.
    async fn admit_soon(&self, target: SocketAddr, now: Instant) -> Result<Rc<Admitted>, Error> {
        // Subscribed before the next look, so that no change is missed.
        let mut changes = self.proxy.directory.subscribe();
        let mut wait = pin!(awake(POD_APPEARS));
        loop {
            let refusal = match self.admit_now(target, now) {
                Ok(admitted) => return Ok(admitted),
                Err(refusal) if !refusal.may_appear => return Err(refusal.error),
                Err(refusal) => refusal,
            };
            tokio::select! {
                biased;
                // An error means that nobody publishes any more: the wait is over, too.
                changed = changes.changed() => if changed.is_err() { return Err(refusal.error) },
                () = &mut wait => return Err(refusal.error),
            }
        }
    }

    fn admit_now(&self, target: SocketAddr, now: Instant) -> Result<Rc<Admitted>, inbound::NotAdmitted> {
        let directory = self.proxy.directory.load();
        let mut all = self.admitted.borrow_mut();
        if all.0 != directory.version {
            *all = (directory.version, HashMap::new());
        }
        if let Some(admitted) = all.1.get(&target) {
            return Ok(Rc::clone(admitted));
        }
        let key = inbound::admit(target, &self.proxy.config.node_name, &directory)?;
        let metrics = self.inbound.service(key, now);
        let admitted = Rc::new(Admitted {
            metrics,
            protected: Protected::find(target, &directory),
            backend: Backend::find(target, &directory),
        });
        all.1.insert(target, Rc::clone(&admitted));
        Ok(admitted)
    }

    /// One connection to the outbound port.
    async fn client(self: Rc<Self>, stream: TcpStream, remote: SocketAddr) {
        let _open = OpenGauge::connection("client");
        tune(&stream);
        match self.judge(remote).await {
            Ok(_) if !self.has_share(remote) => limit_reached("client_connections"),
            Ok(pod) => {
                let _share = Share::take(&self, client::canonical(remote));
                let client = Rc::new(Client::new(self, pod.as_deref(), client::canonical(remote)));
                serve::connection(client, BufferedIo::new(Stream::Tcp(stream), BytesMut::new())).await;
            }
            Err(reason) => {
                counter!(CLIENTS_REFUSED, "reason" => reason).increment(1);
                self.warn_of_stranger(remote, reason);
                Box::pin(serve::refuse_stranger(stream, remote)).await;
            }
        }
    }

    /// Whether a client of this address may have one more connection.
    fn has_share(&self, remote: SocketAddr) -> bool {
        self.shares.borrow().get(&client::canonical(remote)).is_none_or(|count| *count < MAX_PER_CLIENT)
    }

    /// Who the client is, after waiting for the directory to learn of it if need be; or why it is refused.
    async fn judge(&self, remote: SocketAddr) -> Result<Option<Arc<posthouse_model::Pod>>, &'static str> {
        let config = &self.proxy.config;
        let ip = client::canonical(remote);
        let look = || client::identify(ip, &config.node_name, &config.node_ips, &self.proxy.directory.load());
        let mut changes = self.proxy.directory.subscribe();
        let settle = |origin| match origin {
            Origin::Pod(pod) => Some(Ok(Some(pod))),
            Origin::Node => Some(Ok(None)),
            Origin::Foreign => Some(Err("foreign")),
            Origin::Unknown { .. } => None,
        };
        if let Some(verdict) = settle(look()) {
            return verdict;
        }
        if self.held.get() >= MAX_HELD {
            limit_reached("unknown_clients");
            return Err("unknown");
        }
        let _held = Held::new(&self.held);
        let known = async {
            loop {
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                if let Some(verdict) = settle(look()) {
                    return verdict;
                }
            }
        };
        tokio::select! {
            biased;
            verdict = known => verdict,
            () = awake(config.timeouts.unknown_client) => match look() {
                Origin::Unknown { in_pod_range: true } => Ok(None),
                _ => Err("unknown"),
            },
        }
    }

    /// At most one line in ten seconds, so that a stranger cannot fill the log.
    fn warn_of_stranger(&self, remote: SocketAddr, reason: &str) {
        let mut warned = self.warned.borrow_mut();
        if warned.is_none_or(|at| at.elapsed() > Duration::from_secs(10)) {
            *warned = Some(std::time::Instant::now());
            info!(client = %remote.ip(), reason, "client refused: only pods of this node and the node itself may use the outbound port");
        }
    }
}

/// Sleeps so long, and once more when the machine stood still meanwhile: after that every timer is over before the news that came are
/// read.
async fn awake(limit: Duration) {
    let until = tokio::time::Instant::now() + limit;
    tokio::time::sleep_until(until).await;
    if until.elapsed() >= LATE {
        tokio::time::sleep(limit).await;
    }
}

/// Counts a connection of one address.
struct Share {
    worker: Rc<Worker>,
    ip: IpAddr,
}

impl Share {
    fn take(worker: &Rc<Worker>, ip: IpAddr) -> Self {
        *worker.shares.borrow_mut().entry(ip).or_default() += 1;
        Self { worker: Rc::clone(worker), ip }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut shares = self.worker.shares.borrow_mut();
        if let Some(count) = shares.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                shares.remove(&self.ip);
            }
        }
    }
}

struct Held<'a>(&'a Cell<usize>);

impl<'a> Held<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Takes connections and gives each a task of its own, at most as many as `permits` allow. When draining begins, those that
/// the kernel has accepted already are still taken: closing the listener would reset them.
async fn accept<F>(
    listener: TcpListener,
    drain: Rc<Drain>,
    permits: Arc<Semaphore>,
    limit: &'static str,
    done: mpsc::UnboundedSender<Infallible>,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let mut draining = pin!(drain.begun());
    loop {
        let permit = match Arc::clone(&permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                limit_reached(limit);
                tokio::select! {
                    permit = Arc::clone(&permits).acquire_owned() => match permit {
                        Ok(permit) => permit,
                        // Never closed while this loop holds it.
                        Err(_) => return,
                    },
                    () = &mut draining => return,
                }
            }
        };
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = &mut draining => return,
        };
        match accepted {
            Ok((stream, remote)) => {
                let connection = tokio::task::spawn_local(serve(stream, remote));
                let done = done.clone();
                tokio::task::spawn_local(async move {
                    if let Err(error) = connection.await
                        && error.is_panic()
                    {
                        // Counted by the binary's panic hook.
                        warn!(%remote, "a connection ended by a panic; please report this");
                    }
                    drop((permit, done));
                });
            }
            Err(error) => {
                // Out of descriptors or memory: accepting again at once would spin.
                debug!(%error, "accept failed");
                limit_reached(limit);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Runs one stream's exchange as a task of its own. A panic in it ends that stream alone and is counted and logged by the
/// binary's panic hook; the task ends with its stream, by the limits on silence at the latest.
pub(crate) fn spawn_stream(exchange: impl Future<Output = ()> + 'static) {
    // Boxed: the runtime moves a task's future about (into its cell, out of it at the end), and this one is large.
    tokio::task::spawn_local(Box::pin(exchange));
}

/// Keeps failures from filling the log: one line for each kind and authority in ten seconds, with the count of those that
/// were left out. All of them are in the metrics.
#[derive(Default)]
pub(crate) struct FailureLog(RefCell<HashMap<(ErrorKind, Box<str>), LastLine>>);

/// When the last line was written, and how many were left out since.
type LastLine = (Instant, u64);

const LOG_AGAIN: Duration = Duration::from_secs(10);
/// Authorities are what clients write, so their number is bounded; above, new ones are not logged until old ones have aged.
const LOG_ENTRIES: usize = 256;

impl FailureLog {
    /// Whether a failure is logged now, and how many like it were not since the last time.
    pub(crate) fn due(&self, kind: ErrorKind, authority: &str, now: Instant) -> Option<u64> {
        let mut seen = self.0.borrow_mut();
        let key = (kind, Box::from(authority));
        if let Some((last, unlogged)) = seen.get_mut(&key) {
            if now.saturating_duration_since(*last) < LOG_AGAIN {
                *unlogged += 1;
                return None;
            }
            *last = now;
            return Some(std::mem::take(unlogged));
        }
        if seen.len() >= LOG_ENTRIES {
            seen.retain(|_, (last, _)| now.saturating_duration_since(*last) < LOG_AGAIN);
        }
        if seen.len() >= LOG_ENTRIES {
            return None;
        }
        seen.insert(key, (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_logged_once_in_ten_seconds_and_for_so_many_authorities() {
        let log = FailureLog::default();
        let start = Instant::now();
        assert_eq!(log.due(ErrorKind::DestinationNotFound, "a", start), Some(0));
        assert_eq!(log.due(ErrorKind::DestinationNotFound, "a", start), None);
        assert_eq!(log.due(ErrorKind::ConnectionRefused, "a", start), Some(0), "another kind");
        assert_eq!(log.due(ErrorKind::DestinationNotFound, "a", start + LOG_AGAIN), Some(1));
        let lines =
            (0..10_000).filter(|n| log.due(ErrorKind::HttpRequestError, &n.to_string(), start).is_some()).count();
        assert!(lines <= LOG_ENTRIES && log.0.borrow().len() <= LOG_ENTRIES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_ended_while_the_machine_stood_still_is_waited_once_more() {
        let limit = Duration::from_millis(500);
        let begun = tokio::time::Instant::now();
        awake(limit).await;
        assert!(begun.elapsed() < limit + LATE, "in time: {:?}", begun.elapsed());
        let wait = tokio::spawn(awake(limit));
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_secs(2)).await;
        tokio::task::yield_now().await;
        assert!(!wait.is_finished(), "two seconds passed at once");
        let resumed = tokio::time::Instant::now();
        wait.await.unwrap();
        assert!((limit..limit + LATE).contains(&resumed.elapsed()), "{:?}", resumed.elapsed());
    }
}
