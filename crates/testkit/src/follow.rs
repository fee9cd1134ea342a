//! Asks one URL again and again on one connection and tells each change of who answers: how long it takes until a change
//! of a Service's endpoints moves its traffic.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::client::{Connection, Failure, Protocol, in_one_line};
use crate::proxies::Proxies;
use crate::target::Target;
use crate::{Place, unix_seconds};

/// What to ask.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is asked for, `http://…`.
    pub url: Uri,
    /// The way to it.
    pub proxies: Proxies,
    /// The local address to ask from.
    pub local: Option<IpAddr>,
    /// Time between two requests; a request is sent only after the last one's answer.
    pub every: Duration,
    /// How long to ask; `None` is until told to stop.
    pub seconds: Option<u32>,
    /// A request without an answer after this time has failed.
    pub timeout: Duration,
}

/// An answer that is not like the one before it.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// When the answer came, in seconds since 1970.
    pub time: f64,
    /// When it was asked for.
    pub sent: f64,
    /// What the answer says.
    #[serde(flatten)]
    pub answer: Answer,
}

/// Who answered and how.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Answer {
    /// The pod, when the answer names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The answer's status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why there is no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// How it went in all.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Report {
    /// Requests that had an answer, whatever its status.
    pub answers: u64,
    /// Requests that had none.
    pub failures: u64,
    /// How often `tell` was called.
    pub changes: u64,
}

/// Asks until the time is over or `stop` is cancelled.
///
/// # Errors
/// When the URL has no host or its name cannot be resolved.
pub async fn run(plan: &Plan, stop: CancellationToken, mut tell: impl FnMut(&Change)) -> Result<Report, Failure> {
    let target = Target::of(&plan.url, &plan.proxies).await?;
    let mut connection = Connection::new(plan.local, target.address, Protocol::Http1);
    let over = async {
        match plan.seconds {
            Some(seconds) => sleep(Duration::from_secs(seconds.into())).await,
            None => std::future::pending().await,
        }
    };
    let mut over = std::pin::pin!(over);
    let mut pace = interval(plan.every);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut report) = (None, Report::default());
    loop {
        tokio::select! {
            _ = pace.tick() => {}
            () = &mut over => return Ok(report),
            () = stop.cancelled() => return Ok(report),
        }
        let request = target.request(target.form, Method::GET, HeaderMap::new(), Bytes::new())?;
        let sent = unix_seconds(SystemTime::now());
        let answer = tokio::select! {
            answer = timeout(plan.timeout, connection.send(request)) => answer,
            () = stop.cancelled() => return Ok(report),
        };
        let answer = match answer {
            Ok(Ok((head, _))) => {
                let place = Place::marked(&head.headers);
                let (pod, node) = place.map(|place| (place.pod, place.node)).unzip();
                Answer { pod, node, status: Some(head.status.as_u16()), failure: None }
            }
            Ok(Err(error)) => Answer { failure: Some(in_one_line(&*error)), ..Answer::default() },
            Err(_) => {
                let failure = Some(format!("no answer within {} s", plan.timeout.as_secs_f64()));
                Answer { failure, ..Answer::default() }
            }
        };
        if answer.failure.is_none() {
            report.answers += 1;
        } else {
            report.failures += 1;
        }
        if last.as_ref() != Some(&answer) {
            report.changes += 1;
            tell(&Change { time: unix_seconds(SystemTime::now()), sent, answer: answer.clone() });
            last = Some(answer);
        }
    }
}
