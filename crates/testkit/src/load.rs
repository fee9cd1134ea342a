//! A small load client: a fixed rate over kept-alive HTTP/1.1 connections, through a proxy in absolute form or straight to a
//! server. It counts by second, so that a gap (a proxy's upgrade, a pod's death) can be seen. For throughput take wrk.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Connection, Failure, Protocol, in_one_line};
use crate::histogram::Histogram;

/// A request without an answer after this time has failed: longer than any proxy's connect and retry together.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What to send.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The proxy; `None` goes straight to the URL's host.
    pub proxy: Option<SocketAddr>,
    /// What is asked for, `http://…`.
    pub url: Uri,
    /// The local address to send from.
    pub local: Option<IpAddr>,
    /// Connections, each with at most one request under way.
    pub concurrency: u32,
    /// Requests a second over all connections; 0 sends as fast as answers come.
    pub rate: u32,
    /// How long.
    pub seconds: u32,
}

/// One second's requests, by the time they were sent.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Second {
    /// Answered with a status below 400, body complete.
    pub ok: u64,
    /// All others.
    pub failed: u64,
}

/// What came of it.
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
    /// Why requests failed, and how often.
    pub reasons: BTreeMap<String, u64>,
    /// By second from the start.
    pub seconds: Vec<Second>,
}

/// Sends the planned requests; `on_second` hears of each second when it is over.
///
/// # Errors
/// When the URL has no host or its name cannot be resolved.
pub async fn run(plan: &Plan, mut on_second: impl FnMut(usize, Second)) -> Result<Report, Failure> {
    let target = Arc::new(Target::of(plan).await?);
    let tally = Arc::new(Mutex::new(Tally::new(plan.seconds as usize)));
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut connections = JoinSet::new();
    for _ in 0..plan.concurrency.max(1) {
        let (plan, target) = (plan.clone(), Arc::clone(&target));
        let (tally, next) = (Arc::clone(&tally), Arc::clone(&next));
        connections.spawn(async move { send_all(&plan, &target, start, &next, &tally).await });
    }
    for second in 0..plan.seconds as usize {
        tokio::time::sleep_until(start + Duration::from_secs(second as u64 + 1)).await;
        on_second(second, lock(&tally).seconds[second]);
    }
    while connections.join_next().await.is_some() {}
    let tally = std::mem::take(&mut *lock(&tally));
    Ok(tally.report())
}

/// One connection's loop: takes the next number, waits for that number's time, sends.
async fn send_all(plan: &Plan, target: &Target, start: Instant, next: &AtomicU64, tally: &Mutex<Tally>) {
    let mut connection = Connection::new(plan.local, target.address, Protocol::Http1);
    let end = start + Duration::from_secs(plan.seconds.into());
    loop {
        if plan.rate > 0 {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let due = start + Duration::from_secs_f64(number as f64 / f64::from(plan.rate));
            if due >= end {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
        let sent = Instant::now();
        if sent >= end {
            return;
        }
        let sending = connection.send(target.request());
        let outcome = match tokio::time::timeout(REQUEST_TIMEOUT, sending).await {
            Ok(Ok((head, _))) => judge(head.status),
            Ok(Err(error)) => Err(in_one_line(&*error)),
            Err(_) => Err(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs())),
        };
        if outcome.is_err() && plan.rate == 0 {
            // A server that refuses at once must not make this a busy loop.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        lock(tally).count((sent - start).as_secs() as usize, sent.elapsed(), outcome);
    }
}

fn judge(status: StatusCode) -> Result<(), String> {
    if status.as_u16() < 400 { Ok(()) } else { Err(format!("status {}", status.as_u16())) }
}

struct Target {
    address: SocketAddr,
    uri: Uri,
    host: HeaderValue,
}

impl Target {
    async fn of(plan: &Plan) -> Result<Self, Failure> {
        let authority = plan.url.authority().ok_or("the URL has no host")?;
        let host = HeaderValue::from_str(authority.as_str())?;
        if let Some(address) = plan.proxy {
            let uri = plan.url.clone();
            return Ok(Self { address, uri, host });
        }
        let port = authority.port_u16().unwrap_or(80);
        let address =
            tokio::net::lookup_host((authority.host(), port)).await?.next().ok_or("the URL's host has no address")?;
        let path = plan.url.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self { address, uri: path.parse()?, host })
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().insert(HOST, self.host.clone());
        request
    }
}

#[derive(Debug, Default)]
struct Tally {
    seconds: Vec<Second>,
    latency: Histogram,
    reasons: BTreeMap<String, u64>,
}

impl Tally {
    fn new(seconds: usize) -> Self {
        Self { seconds: vec![Second::default(); seconds], ..Self::default() }
    }

    fn count(&mut self, second: usize, took: Duration, outcome: Result<(), String>) {
        let second = &mut self.seconds[second];
        match outcome {
            Ok(()) => {
                second.ok += 1;
                self.latency.record(took);
            }
            Err(reason) => {
                second.failed += 1;
                *self.reasons.entry(reason).or_default() += 1;
            }
        }
    }

    fn report(self) -> Report {
        let millis = |q| self.latency.quantile(q).map_or(0.0, |d| d.as_secs_f64() * 1000.0);
        Report {
            ok: self.seconds.iter().map(|second| second.ok).sum(),
            failed: self.seconds.iter().map(|second| second.failed).sum(),
            p50_ms: millis(0.5),
            p99_ms: millis(0.99),
            reasons: self.reasons,
            seconds: self.seconds,
        }
    }
}

/// A poisoned tally is still a tally.
fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
