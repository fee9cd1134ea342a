//! The API server: the client, questions with a time limit, and what a failed one means for the person who asks.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::api::ListParams;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config};
use posthouse_discovery::chain;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{Finding, Id};
use crate::args::CheckArgs;

/// Objects a page: client-go's pager.
const PAGE: u32 = 500;
/// EndpointSlice is `discovery.k8s.io/v1` since Kubernetes 1.21.
const OLDEST: (u32, u32) = (1, 21);
/// `/version` is some hundred bytes.
const MAX_VERSION: usize = 64 << 10;

/// How far clocks may be apart before it is said. A `Date` is of whole seconds and answers take their time, so less than two
/// would be noise; NTP keeps milliseconds.
const CLOCK_WARN: f64 = 5.0;
/// From here on short-lived credentials begin to fail: service account tokens and certificates are given out with little
/// or no back-dating.
const CLOCK_FAIL: f64 = 60.0;

/// The cluster, as the person who checks reaches it.
#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) client: Client,
    pub(super) namespace: String,
    /// For one question.
    pub(super) patience: Duration,
    /// The API server's address.
    pub(super) url: String,
}

/// What the API server told of itself.
pub(super) struct Server {
    /// Seconds by which its clock is ahead of this machine's. `None`: it did not say what time it is.
    pub(super) ahead: Option<f64>,
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{0}")]
    Forbidden(String),
    #[error("the credentials are refused (401)")]
    Unauthorized,
    #[error("there is none (404)")]
    Missing,
    #[error("no answer within {0:?}")]
    Slow(Duration),
    #[error("{0}")]
    Other(String),
    /// Not asked any more, since this many others all failed.
    #[error("not asked, since none of the first {0} could be")]
    GivenUp(usize),
}

impl Trouble {
    pub(super) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                401 => Self::Unauthorized,
                403 => Self::Forbidden(status.message.clone()),
                404 => Self::Missing,
                code => Self::Other(format!("the API server answers {code}: {}", status.message)),
            },
            kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(code)) => match *code {
                StatusCode::FORBIDDEN => Self::Forbidden("the API server answers 403".to_owned()),
                StatusCode::UNAUTHORIZED => Self::Unauthorized,
                StatusCode::NOT_FOUND => Self::Missing,
                code => Self::Other(format!("the API server answers {code}")),
            },
            // Its own words say no more than that there is a cause.
            kube::Error::Service(cause) => Self::Other(chain(cause.as_ref())),
            error => Self::Other(chain(error)),
        }
    }

    /// The finding when `what` could not be read. Who is not allowed to look gets no verdict about what is there.
    pub(super) fn finding(&self, id: Id, what: &str, permission: &str) -> Finding {
        match self {
            Self::Forbidden(why) => Finding::skipped(id, format!("{what} cannot be looked at: {why}"))
                .hint(format!("you need the permission to {permission}")),
            Self::GivenUp(_) => Finding::skipped(id, format!("{what} cannot be looked at: {self}")),
            Self::Unauthorized => Finding::fail(id, format!("{what} cannot be looked at: {self}"))
                .hint("log in again, or choose another --context"),
            Self::Missing | Self::Slow(_) | Self::Other(_) => {
                Finding::fail(id, format!("{what} cannot be looked at: {self}"))
            }
        }
    }
}

impl Cluster {
    /// Reads the configuration; asks nothing yet.
    ///
    /// # Errors
    /// It is missing or makes no sense; one line.
    pub(super) async fn connect(args: &CheckArgs) -> Result<Self, String> {
        let (mut config, proxy) = configuration(args).await?;
        config.connect_timeout = Some(args.timeout);
        config.read_timeout = None;
        // A failure is to be told, not waited for.
        config.default_retry = false;
        // kube takes HTTPS_PROXY from the environment. Within the mesh that is the mesh; the API server is no business
        // of its. A proxy that the kubeconfig itself names is meant.
        config.proxy_url = proxy;
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client =
            Client::try_from(config).map_err(|error| format!("the kubeconfig is of no use: {}", chain(&error)))?;
        Ok(Self { client, namespace: args.namespace.clone(), patience: args.timeout, url })
    }

    /// Asks with the time limit.
    pub(super) async fn ask<T>(&self, question: impl Future<Output = kube::Result<T>>) -> Result<T, Trouble> {
        match timeout(self.patience, question).await {
            Ok(answer) => answer.map_err(|error| Trouble::of(&error)),
            Err(_) => Err(Trouble::Slow(self.patience)),
        }
    }

    /// A whole list, page by page; of each object only what `keep` makes of it stays in memory.
    pub(super) async fn list<K, T>(
        &self,
        api: &Api<K>,
        mut params: ListParams,
        mut keep: impl FnMut(K) -> Option<T>,
    ) -> Result<Vec<T>, Trouble>
    where
        K: Clone + DeserializeOwned + Debug,
    {
        params.limit = Some(PAGE);
        let mut kept = Vec::new();
        loop {
            let page = self.ask(api.list(&params)).await?;
            kept.extend(page.items.into_iter().filter_map(&mut keep));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(kept),
            }
        }
    }

    /// The proxies' namespace.
    pub(super) async fn namespace(&self) -> Result<Namespace, Trouble> {
        self.ask(Api::<Namespace>::all(self.client.clone()).get(&self.namespace)).await
    }

    /// All nodes or those of these names, sorted; with a finding for each name that is no node.
    pub(super) async fn nodes(&self, names: &[String]) -> Result<(Vec<Node>, Vec<Finding>), Trouble> {
        let api = Api::<Node>::all(self.client.clone());
        if names.is_empty() {
            let mut nodes = self.list(&api, ListParams::default(), |node| Some(lean(node))).await?;
            nodes.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
            return Ok((nodes, Vec::new()));
        }
        let (mut nodes, mut findings) = (Vec::new(), Vec::new());
        for name in names {
            match self.ask(api.get(name)).await {
                Ok(node) => nodes.push(lean(node)),
                Err(Trouble::Missing) => findings.push(
                    Finding::fail(Id::Node, "there is no such node").on(name).hint("kubectl get nodes lists them"),
                ),
                Err(trouble) => return Err(trouble),
            }
        }
        Ok((nodes, findings))
    }
}

/// A Node without its longest parts: image lists are most of it, and there may be thousands of nodes.
fn lean(mut node: Node) -> Node {
    node.metadata.managed_fields = None;
    if let Some(status) = &mut node.status {
        status.images = None;
    }
    node
}

/// The configuration that the flags name, and the proxy that it names itself.
async fn configuration(args: &CheckArgs) -> Result<(Config, Option<http::Uri>), String> {
    let read = match &args.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let kubeconfig = match read {
        Ok(kubeconfig) => kubeconfig,
        // In a pod there is no kubeconfig but a service account. Who named a file or a context meant it.
        Err(error) if args.kubeconfig.is_none() && args.context.is_none() => {
            let config = Config::incluster().map_err(|_| {
                format!("no cluster to check: {}; --kubeconfig or KUBECONFIG may name a kubeconfig", unread(&error))
            })?;
            return Ok((config, None));
        }
        Err(error) => return Err(unread(&error)),
    };
    let context = args.context.clone().or_else(|| kubeconfig.current_context.clone());
    let contexts: Vec<&str> = kubeconfig.contexts.iter().map(|named| named.name.as_str()).collect();
    if let Some(unknown) = context.as_deref().filter(|context| !contexts.contains(context)) {
        return Err(format!("the kubeconfig has no context '{unknown}'; it has: {}", contexts.join(", ")));
    }
    let cluster = kubeconfig.contexts.iter().find(|named| Some(&named.name) == context.as_ref());
    let cluster = cluster.and_then(|named| named.context.as_ref()).map(|context| &context.cluster);
    let cluster = kubeconfig.clusters.iter().find(|named| Some(&named.name) == cluster);
    let proxy = cluster.and_then(|named| named.cluster.as_ref()?.proxy_url.clone()).filter(|url| !url.is_empty());
    let proxy = match proxy.map(|url| url.parse()) {
        Some(Err(_)) => return Err("the kubeconfig's proxy-url is no URL".to_owned()),
        Some(Ok(url)) => Some(url),
        None => None,
    };
    let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|error| format!("the kubeconfig is of no use: {}", chain(&error)))?;
    Ok((config, proxy))
}

fn unread(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(error, path) => {
            format!("the kubeconfig {} cannot be read: {error}", path.display())
        }
        error => format!("the kubeconfig cannot be read: {}", chain(error)),
    }
}

/// As much of `/version` as matters.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Version {
    major: String,
    minor: String,
    git_version: String,
}

/// Is it there, is it new enough, and what time is it there?
pub(super) async fn reach(cluster: &Cluster) -> (Vec<Finding>, Option<Server>) {
    let (wall, begun) = (SystemTime::now(), Instant::now());
    let asked = timeout(cluster.patience, version(cluster)).await;
    let took = begun.elapsed();
    let (headers, version) = match asked.unwrap_or(Err(Trouble::Slow(cluster.patience))) {
        Ok(answer) => answer,
        Err(trouble) => return (vec![unreachable(&cluster.url, &trouble)], None),
    };
    let ahead = ahead(&headers, wall + took / 2);
    let mut findings = vec![judge_version(&version, &cluster.url).took(took)];
    findings.push(match ahead {
        Some(ahead) => judge_clock("this machine's", ahead),
        None => Finding::skipped(Id::Clock, "no clock can be compared: the API server's answers have no Date"),
    });
    (findings, Some(Server { ahead }))
}

async fn version(cluster: &Cluster) -> Result<(HeaderMap, Version), Trouble> {
    let request = Request::get("/version").body(Body::empty()).map_err(|error| Trouble::Other(error.to_string()))?;
    let response = cluster.client.send(request).await.map_err(|error| Trouble::of(&error))?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => return Err(Trouble::Unauthorized),
        status => return Err(Trouble::Other(format!("it answers {status}"))),
    }
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_VERSION).collect().await;
    let body = body.map_err(|error| Trouble::Other(error.to_string()))?.to_bytes();
    let version = serde_json::from_slice(&body)
        .map_err(|_| Trouble::Other("what answers there is no Kubernetes API server".to_owned()))?;
    Ok((head.headers, version))
}

fn unreachable(url: &str, trouble: &Trouble) -> Finding {
    let finding = Finding::fail(Id::Api, format!("the API server at {url} cannot be asked: {trouble}"));
    finding.hint(match trouble {
        Trouble::Unauthorized => "log in again, or choose another --context",
        _ => "does 'kubectl version' reach it? --context and --kubeconfig choose another cluster",
    })
}

fn judge_version(version: &Version, url: &str) -> Finding {
    let Version { major, minor, git_version } = version;
    // Some distributions write "21+".
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    let name = git_version.trim_start_matches('v');
    match (number(major), number(minor)) {
        (Some(major), Some(minor)) if (major, minor) < OLDEST => Finding::fail(
            Id::Api,
            format!("Kubernetes {name} is too old: it has no EndpointSlices (discovery.k8s.io/v1)"),
        )
        .hint(format!("Kubernetes {}.{} or newer is needed", OLDEST.0, OLDEST.1)),
        (Some(_), Some(_)) => Finding::ok(Id::Api, format!("Kubernetes {name} answers at {url}")),
        _ => Finding::warn(Id::Api, format!("the API server at {url} does not tell a version that makes sense")),
    }
}

/// Seconds by which the clock that wrote the `Date` of an answer is ahead of ours, which said `asked` half-way.
pub(super) fn ahead(headers: &HeaderMap, asked: SystemTime) -> Option<f64> {
    let date = headers.get(header::DATE)?.to_str().ok()?;
    let date = httpdate::parse_http_date(date).ok()?;
    // It is cut to whole seconds: half a second more is the best guess.
    Some(
        match date.duration_since(asked) {
            Ok(ahead) => ahead.as_secs_f64(),
            Err(behind) => -behind.duration().as_secs_f64(),
        } + 0.5,
    )
}

/// `ahead`: seconds by which the API server's clock is ahead of `whose`.
pub(super) fn judge_clock(whose: &str, ahead: f64) -> Finding {
    let seconds = ahead.abs().round();
    let apart = match ahead > 0.0 {
        true => format!("{whose} clock is {seconds} s behind the API server's"),
        false => format!("{whose} clock is {seconds} s ahead of the API server's"),
    };
    let hint = "set it by NTP: 'timedatectl' there shows whether it is";
    match ahead.abs() {
        off if off > CLOCK_FAIL => Finding::fail(Id::Clock, apart).hint(hint),
        off if off > CLOCK_WARN => Finding::warn(Id::Clock, apart).hint(hint),
        _ => Finding::ok(Id::Clock, format!("{whose} clock agrees with the API server's")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let judge = |major: &str, minor: &str| {
            let git_version = format!("v{major}.{minor}.3");
            judge_version(&Version { major: major.into(), minor: minor.into(), git_version }, "https://x").verdict
        };
        for (major, minor, verdict) in [
            ("1", "20", Verdict::Fail),
            ("1", "9+", Verdict::Fail),
            ("1", "21", Verdict::Ok),
            ("1", "21+", Verdict::Ok),
            ("1", "36", Verdict::Ok),
            ("2", "0", Verdict::Ok),
            ("", "", Verdict::Warn),
        ] {
            assert_eq!(judge(major, minor), verdict, "{major}.{minor}");
        }
    }

    #[test]
    fn clocks_are_judged_by_how_far_they_are_apart() {
        for (ahead, verdict, word) in [
            (0.4, Verdict::Ok, "agrees"),
            (-4.9, Verdict::Ok, "agrees"),
            (17.2, Verdict::Warn, "17 s behind"),
            (-17.2, Verdict::Warn, "17 s ahead of"),
            (61.0, Verdict::Fail, "61 s behind"),
            (-3600.0, Verdict::Fail, "3600 s ahead of"),
        ] {
            let finding = judge_clock("this machine's", ahead);
            assert_eq!(finding.verdict, verdict, "{ahead}");
            assert!(finding.message.contains(word), "{ahead}: {}", finding.message);
        }
    }

    #[test]
    fn a_date_tells_how_far_a_clock_is_ahead() {
        let asked = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let mut headers = HeaderMap::new();
        assert_eq!(ahead(&headers, asked), None);
        headers.insert(header::DATE, "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap());
        assert_eq!(ahead(&headers, asked), Some(0.5));
        assert_eq!(ahead(&headers, asked + Duration::from_secs(10)), Some(-9.5));
        assert_eq!(ahead(&headers, asked - Duration::from_secs(10)), Some(10.5));
        headers.insert(header::DATE, "yesterday".parse().unwrap());
        assert_eq!(ahead(&headers, asked), None);
    }
}
