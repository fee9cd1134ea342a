//! A load client over kept-alive HTTP/1.1 connections that shows each gap (a proxy's upgrade, a pod's death): it keeps its
//! rate when answers stop coming, counts each request in the second in which it was sent, and tells each failure with its
//! time. For throughput take wrk.

mod tally;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::Full;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::client::{Connection, Failure, Protocol, in_one_line};
use crate::proxies::Proxies;
use crate::target::Target;
use crate::{Place, unix_seconds};
use tally::Tally;

/// How long a closed loop waits after a failure: a server that refuses at once must not make it a busy loop.
const PAUSE: Duration = Duration::from_millis(10);

/// What to send.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is asked for, `http://…`.
    pub url: Uri,
    /// The way to it.
    pub proxies: Proxies,
    /// The local address to send from.
    pub local: Option<IpAddr>,
    /// GET, POST, PUT and so on.
    pub method: Method,
    /// The body of each request.
    pub body: Bytes,
    /// When each request is sent.
    pub pace: Pace,
    /// How long to send; `None` is until told to stop.
    pub seconds: Option<u32>,
    /// A request without an answer after this time has failed.
    pub timeout: Duration,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// This many a second, answers or not. A request that finds no free connection opens one; above `max_connections`
    /// it is not sent and has failed.
    Rate {
        /// Requests a second.
        rate: u32,
        /// The most connections at once.
        max_connections: u32,
    },
    /// On each of this many connections, the next one as soon as the last one ended.
    Closed(u32),
}

/// What [`run`] tells while it sends.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Line {
    /// A second whose requests have all ended. Seconds come in order, none is left out.
    Second(Second),
    /// A failure, as it happens; at most 20 of one second.
    Failed(Failed),
}

/// The requests that were sent in one second.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Second {
    /// When the second began, in seconds since 1970.
    pub time: f64,
    /// Answered with a status below 400, body complete.
    pub ok: u64,
    /// All others.
    pub failed: u64,
    /// Median time to the end of a good answer; 0 without one, as the next two.
    pub p50_ms: f64,
    /// 99th percentile of it.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// How late a request was sent at most: a large value says that this client had no CPU time.
    pub late_ms: f64,
    /// Good answers by the pod that gave them, where the answer says it.
    pub by_pod: BTreeMap<String, u64>,
    /// Failures that had no line of their own.
    pub unlisted: u64,
}

/// One request that failed.
#[derive(Clone, Debug, Serialize)]
pub struct Failed {
    /// When it was sent, in seconds since 1970.
    pub time: f64,
    /// Why.
    pub failure: String,
    /// How long it took to fail.
    pub took_ms: f64,
}

/// What came of it all.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Sum of the seconds.
    pub ok: u64,
    /// Sum of the seconds.
    pub failed: u64,
    /// Median time to the end of a good answer.
    pub p50_ms: f64,
    /// 99th percentile of it.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// Sums of the seconds; beyond a thousand pods the rest come under `others`.
    pub by_pod: BTreeMap<String, u64>,
    /// Why requests failed, and how often; beyond a hundred reasons the rest come under `others`.
    pub reasons: BTreeMap<String, u64>,
    /// How many seconds were told.
    pub seconds: u64,
}

/// Sends the planned requests until their time is over or `stop` is cancelled, and waits for their answers.
///
/// # Errors
/// When the URL has no host or its name cannot be resolved.
pub async fn run(plan: &Plan, stop: CancellationToken, mut tell: impl FnMut(Line)) -> Result<Report, Failure> {
    let target = Target::of(&plan.url, &plan.proxies).await?;
    // Made once: a URL that makes no request must not fail as many times as it is asked for.
    target.request(target.form, plan.method.clone(), HeaderMap::new(), Bytes::new())?;
    let mut sending = Sending {
        tally: Tally::new(SystemTime::now()),
        plan: plan.clone(),
        target,
        begun: Instant::now(),
        sent: 0,
        idle: Vec::new(),
        under_way: JoinSet::new(),
    };
    sending.run(stop, &mut tell).await;
    Ok(sending.tally.report())
}

struct Sending {
    plan: Plan,
    target: Target,
    begun: Instant,
    /// Requests of a rate so far, sent or not: the next one's number.
    sent: u64,
    /// Free connections; the one used last is used next, so that the others may end.
    idle: Vec<Connection>,
    under_way: JoinSet<Done>,
    tally: Tally,
}

/// A request that ended.
struct Done {
    connection: Connection,
    sent: Sent,
    took: Duration,
    /// Who answered, or why nobody did.
    outcome: Result<Option<Place>, String>,
}

/// A request's number of the second and its wall-clock time.
#[derive(Clone, Copy)]
struct Sent {
    second: u64,
    time: f64,
}

impl Sending {
    async fn run(&mut self, stop: CancellationToken, tell: &mut impl FnMut(Line)) {
        if let Pace::Closed(connections) = self.plan.pace {
            for _ in 0..connections.max(1) {
                let connection = self.connection();
                self.send(connection, Instant::now(), Duration::ZERO);
            }
        }
        let mut open = true;
        loop {
            let now = Instant::now();
            let due = self.due();
            open &= match due {
                Some(due) => self.end().is_none_or(|end| due < end),
                None => self.end().is_none_or(|end| now < end),
            };
            // The second that may still get requests: this one, or none when the sending is over.
            self.tally.close_until(if open { self.second(now) } else { self.second(now) + 1 }, tell);
            if !open && self.under_way.is_empty() {
                return;
            }
            let next_second = self.begun + Duration::from_secs((now - self.begun).as_secs() + 1);
            tokio::select! {
                Some(done) = self.under_way.join_next() => {
                    // One that is lost would leave its second without an end.
                    self.finish(done.expect("a request's task neither panics nor is aborted"), open, tell);
                }
                () = sleep_until(due.unwrap_or(next_second)), if open && due.is_some() => self.send_due(tell),
                () = sleep_until(next_second) => {}
                () = stop.cancelled(), if open => {
                    open = false;
                    // This second is the last one.
                    self.plan.seconds = u32::try_from(self.second(Instant::now()) + 1).ok();
                }
            }
        }
    }

    /// When the next request of a rate is due.
    fn due(&self) -> Option<Instant> {
        match self.plan.pace {
            Pace::Rate { rate, .. } => {
                let rate = u64::from(rate.max(1));
                let nanos = self.sent % rate * 1_000_000_000 / rate;
                Some(self.begun + Duration::from_secs(self.sent / rate) + Duration::from_nanos(nanos))
            }
            Pace::Closed(_) => None,
        }
    }

    fn end(&self) -> Option<Instant> {
        self.plan.seconds.map(|seconds| self.begun + Duration::from_secs(seconds.into()))
    }

    /// The number of the second at `now`; what a late timer sends after the end belongs to the last second.
    fn second(&self, now: Instant) -> u64 {
        let second = (now - self.begun).as_secs();
        self.plan.seconds.map_or(second, |seconds| second.min(u64::from(seconds).saturating_sub(1)))
    }

    /// Sends all requests of a rate whose time has come.
    fn send_due(&mut self, tell: &mut impl FnMut(Line)) {
        let Pace::Rate { max_connections, .. } = self.plan.pace else { return };
        let now = Instant::now();
        let end = self.end();
        while let Some(due) = self.due().filter(|due| *due <= now && end.is_none_or(|end| *due < end)) {
            self.sent += 1;
            let connection = match self.idle.pop() {
                Some(connection) => connection,
                None if self.under_way.len() < max_connections as usize => self.connection(),
                None => {
                    let sent = self.begin(now, now - due);
                    let outcome = Err("no connection free".to_owned());
                    self.tally.ended(sent, Duration::ZERO, outcome, tell);
                    continue;
                }
            };
            self.send(connection, now, now - due);
        }
    }

    fn connection(&self) -> Connection {
        Connection::new(self.plan.local, self.target.address, Protocol::Http1)
    }

    fn begin(&mut self, now: Instant, late: Duration) -> Sent {
        let second = self.second(now);
        self.tally.sent(second, late);
        Sent { second, time: unix_seconds(SystemTime::now()) }
    }

    fn send(&mut self, mut connection: Connection, now: Instant, late: Duration) {
        let (method, body) = (self.plan.method.clone(), self.plan.body.clone());
        // It could be made at the start, so it can be made now.
        let Ok(request) = self.target.request(self.target.form, method, HeaderMap::new(), body) else { return };
        let sent = self.begin(now, late);
        let limit = self.plan.timeout;
        let pause = matches!(self.plan.pace, Pace::Closed(_)).then_some(PAUSE);
        self.under_way.spawn(async move {
            let outcome = ask(&mut connection, request, limit).await;
            let took = now.elapsed();
            if let Some(pause) = pause.filter(|_| outcome.is_err()) {
                tokio::time::sleep(pause).await;
            }
            Done { connection, sent, took, outcome }
        });
    }

    fn finish(&mut self, done: Done, open: bool, tell: &mut impl FnMut(Line)) {
        let Done { connection, sent, took, outcome } = done;
        self.tally.ended(sent, took, outcome, tell);
        let now = Instant::now();
        match self.plan.pace {
            Pace::Rate { .. } => self.idle.push(connection),
            Pace::Closed(_) if open && self.end().is_none_or(|end| now < end) => {
                self.send(connection, now, Duration::ZERO);
            }
            Pace::Closed(_) => {}
        }
    }
}

async fn ask(
    connection: &mut Connection,
    request: Request<Full<Bytes>>,
    limit: Duration,
) -> Result<Option<Place>, String> {
    match timeout(limit, connection.send(request)).await {
        Ok(Ok((head, _))) => judge(&head),
        Ok(Err(error)) => Err(in_one_line(&*error)),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs_f64())),
    }
}

/// A proxy's own answers say in Proxy-Status (RFC 9209) what went wrong.
fn judge(head: &Parts) -> Result<Option<Place>, String> {
    let status = head.status.as_u16();
    if status < 400 {
        return Ok(Place::marked(&head.headers));
    }
    match head.headers.get("proxy-status") {
        Some(why) => Err(format!("status {status}: {}", String::from_utf8_lossy(why.as_bytes()))),
        None => Err(format!("status {status}")),
    }
}
