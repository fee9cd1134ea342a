//! Asking the API: one page of a list, or a watch as a stream of lines. Answers are left as text, for `feed` to read
//! object by object; here they are only checked for being whole.

use std::error::Error as StdError;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::client::Body;
use kube::core::Request;
use posthouse_model::chain;
use serde::Deserialize;
use tokio::time::timeout;

use super::Timing;
use super::permissions::{Permission, Verb};
use crate::manifest::TLS_SECRET;
use crate::status::Kind;

/// Why an answer is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The version or the page's token is too old, or the server does not like it: list anew.
    Gone(String),
    /// Nobody listens there, or nothing leads there: ask again soon, which costs the server nothing.
    Unreachable(String),
    /// The API does not have this kind, and may do without.
    Absent(String),
    /// Anything else: ask again later.
    Other(String),
}

impl Failure {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Gone(text) | Self::Unreachable(text) | Self::Absent(text) | Self::Other(text) => text,
        }
    }

    /// A request that got no answer.
    fn unanswered(error: &kube::Error) -> Self {
        match is_unreachable(error) {
            true => Self::Unreachable(chain(error)),
            false => Self::Other(chain(error)),
        }
    }

    /// By the status that the server gave, in HTTP or in an ERROR event.
    pub(crate) fn of_status(code: u16, message: &str) -> Self {
        let text = format!("the API server answers {code}: {message}");
        match code {
            // Expired, or "invalid resource version" and kin: asking the same again is of no use. Not so where we are
            // only not allowed (yet), too fast, or too slow.
            400..=499 if ![401, 403, 408, 429].contains(&code) => Self::Gone(text),
            _ => Self::Other(text),
        }
    }
}

/// What the API says when it does not do what it is asked.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ApiStatus {
    pub(crate) code: u16,
    pub(crate) message: String,
}

/// The longest line of a watch, in bytes. An object may have 1.5 MiB (etcd's limit); JSON escapes may stretch it.
const MAX_LINE: usize = 8 << 20;
/// As much of an error's body as is read.
const MAX_ERROR: usize = 64 << 10;

/// One kind's collection.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
    permission: Permission,
    request: Arc<Request>,
    fields: Option<String>,
    /// The first list may be as old as the server's cache, which has an index for `fields`; asked for the newest state, an
    /// older server goes through every object of the cluster in etcd. Later lists must not be older than what was seen.
    cached: bool,
    /// Whether the API may lack this kind.
    optional: bool,
    timing: Timing,
}

impl Api {
    /// Pods are asked for by node, everything else of the whole cluster.
    pub(crate) fn new(client: Client, kind: Kind, node_name: &str, timing: Timing) -> Self {
        let permission = Permission::to_read(kind);
        let fields = (kind == Kind::Pod).then(|| format!("spec.nodeName={node_name}"));
        let request = Arc::new(Request::new(permission.path()));
        Self { client, permission, request, fields, cached: false, optional: kind.is_optional(), timing }
    }

    /// The Pods of any node, one of many whose lists must be cheap.
    pub(crate) fn pods_of(client: Client, node: &str, timing: Timing) -> Self {
        Self { cached: true, ..Self::new(client, Kind::Pod, node, timing) }
    }

    /// The Secrets for TLS, or the ConfigMaps, of a namespace.
    pub(crate) fn of_namespace(client: Client, kind: Kind, namespace: &str, timing: Timing) -> Self {
        let permission = Permission::to_read(kind);
        let fields = (kind == Kind::Secret).then(|| format!("type={TLS_SECRET}"));
        let request = Arc::new(Request::new(permission.path_in(namespace)));
        Self { client, permission, request, fields, cached: false, optional: false, timing }
    }

    /// A list is complete.
    pub(crate) fn listed(&mut self) {
        self.cached = false;
    }

    /// By the status that the server gave to a request for the collection itself.
    fn refusal(&self, code: u16, message: &str) -> Failure {
        match Failure::of_status(code, message) {
            Failure::Gone(text) if code == 404 && self.optional => Failure::Absent(text),
            failure => failure,
        }
    }

    /// Every request names its verb here, so that the tests end one that the list of permissions does not have.
    fn expect_allowed(&self, verb: Verb) {
        debug_assert!(self.permission.verbs.contains(&verb), "no permission to {verb} {}", self.permission.resource);
    }

    /// The text of one page: the first, or the one that `token` continues with.
    pub(crate) async fn page(&self, token: Option<&str>) -> Result<String, Failure> {
        self.expect_allowed(Verb::List);
        let params = ListParams {
            field_selector: self.fields.clone(),
            // A list from the cache comes whole; kube leaves the version out where there is a limit.
            limit: (!self.cached).then_some(self.timing.page_size),
            resource_version: self.cached.then(|| "0".to_owned()),
            continue_token: token.map(str::to_owned),
            ..ListParams::default()
        };
        let request = self.request.list(&params).map_err(|error| Failure::Other(chain(&error)))?;
        timeout(self.timing.page, self.client.request_text(request))
            .await
            .map_err(|_| Failure::Other(format!("no complete answer within {:?}", self.timing.page)))?
            .map_err(|error| match error {
                kube::Error::Api(status) => self.refusal(status.code, &status.message),
                error => Failure::unanswered(&error),
            })
    }

    /// Begins to watch what changes after `version`.
    pub(crate) async fn watch(&self, version: &str) -> Result<Lines, Failure> {
        self.expect_allowed(Verb::Watch);
        // Bookmarks are on by default; the server ends the watch after 290 s, and we begin the next.
        let params = WatchParams { field_selector: self.fields.clone(), ..WatchParams::default() };
        let request = self.request.watch(&params, version).map_err(|error| Failure::Other(chain(&error)))?;
        let open = async {
            let response =
                self.client.send(request.map(Body::from)).await.map_err(|error| Failure::unanswered(&error))?;
            let status = response.status();
            if status == StatusCode::OK {
                return Ok(Lines { body: response.into_body(), buffer: Vec::new() });
            }
            let body = Limited::new(response.into_body(), MAX_ERROR).collect().await;
            let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let said: ApiStatus = serde_json::from_slice(&body).unwrap_or_default();
            let message =
                if said.message.is_empty() { status.canonical_reason().unwrap_or("?") } else { &said.message };
            Err(self.refusal(status.as_u16(), message))
        };
        timeout(self.timing.open, open)
            .await
            .map_err(|_| Failure::Other(format!("the watch is not accepted within {:?}", self.timing.open)))?
    }
}

/// A watch's stream, cut into whole lines.
pub(crate) struct Lines {
    body: Body,
    buffer: Vec<u8>,
}

impl Lines {
    /// The lines that came since the last call, as one text that ends with a line's end; `None` at the end of the stream.
    /// Cancel-safe: what has come stays.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let Some(frame) = self.body.frame().await else {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(Failure::Other("the watch was cut off within an object".to_owned())),
                };
            };
            let frame = frame.map_err(|error| Failure::Other(format!("the watch was cut off: {}", chain(&error))))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let Some(end) = data.iter().rposition(|b| *b == b'\n') else {
                self.keep(&data)?;
                continue;
            };
            let whole = data.slice(..=end);
            let lines = if self.buffer.is_empty() {
                whole
            } else {
                self.buffer.extend_from_slice(&whole);
                Bytes::from(std::mem::take(&mut self.buffer))
            };
            self.keep(&data.slice(end + 1..))?;
            return Ok(Some(lines));
        }
    }

    fn keep(&mut self, part: &[u8]) -> Result<(), Failure> {
        if self.buffer.len() + part.len() > MAX_LINE {
            return Err(Failure::Other(format!("the watch sends an object of more than {MAX_LINE} bytes")));
        }
        self.buffer.extend_from_slice(part);
        Ok(())
    }
}

/// Whether the connection itself could not be made. What broke later may have cost the server work.
fn is_unreachable(error: &(dyn StdError + 'static)) -> bool {
    use std::io::ErrorKind;
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(
                io.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
            )
        {
            return true;
        }
        next = error.source();
    }
    false
}
