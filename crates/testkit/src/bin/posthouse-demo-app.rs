//! The demo's workloads as one static program: the servers `hello`, `echo`, `greeter` and `tcp`; the clients `load`, `follow` and
//! `get`, which take their proxy from the standard variables; `sleep`, a pod to run the clients in. Made to be process 1 of
//! an empty image: it handles SIGTERM itself and needs no shell.

use std::future::Future;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use clap::{Args, Parser, Subcommand};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use posthouse_testkit::client::Protocol;
use posthouse_testkit::proxies::Proxies;
use posthouse_testkit::{Place, Shutdown, echo, follow, get, greeter, hello, load, tcp};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Small workloads for showing and testing a proxy.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    app: App,
}

#[derive(Subcommand)]
enum App {
    /// HTTP/1.1: one line that names the pod and its node.
    Hello(Serve),
    /// HTTP/1.1 and HTTP/2: the request as JSON; /status/N, /delay/MS, /bytes/N, /sink, /stall/MS, /trailers, /ws, /counters.
    Echo(Serve),
    /// gRPC helloworld.Greeter with health and reflection.
    Greeter(Serve),
    /// TCP where the server speaks first: one line that names the pod and its node, then every byte comes back.
    Tcp(Serve),
    /// Sends requests at a fixed rate and counts them by time; JSON lines, the last one is the whole report. Exit code 1
    /// when a request failed.
    Load(Load),
    /// Asks on one connection and prints a JSON line whenever another pod answers, or with another status.
    Follow(Follow),
    /// Asks once and prints the answer as a JSON object. Exit code 0 when there was an answer, whatever its status.
    Get(Get),
    /// Does nothing until SIGTERM.
    Sleep {
        /// End after this time.
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        time: Option<Duration>,
    },
}

#[derive(Args)]
struct Serve {
    /// Where to listen [default: port 8080 of every address; 50051 for greeter, 9000 for tcp].
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// The pod's name, told in each answer.
    #[arg(long, env = "POD_NAME")]
    pod: String,
    /// The node's name, told in each answer.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// How long requests under way may take after SIGTERM.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    grace: Duration,
}

/// What the clients share.
#[derive(Args)]
struct Way {
    /// A proxy for all hosts, instead of http_proxy, HTTP_PROXY, no_proxy and NO_PROXY.
    #[arg(long, value_name = "http://HOST:PORT")]
    proxy: Option<String>,
    /// The local address to send from, such as a pod's of the demo.
    #[arg(long, value_name = "IP")]
    from: Option<IpAddr>,
    /// A request without an answer after this time has failed.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    timeout: Duration,
}

#[derive(Args)]
struct Load {
    /// What to ask for.
    #[arg(long)]
    url: Uri,
    #[command(flatten)]
    way: Way,
    /// GET, POST, PUT and so on.
    #[arg(long, default_value = "GET")]
    method: Method,
    /// Length of each request's body.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    body: usize,
    /// Requests a second, also when answers stop coming; 0 is as fast as they come.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// Most connections of a rate; a request that finds none free has failed.
    #[arg(long, default_value_t = 256)]
    max_connections: u32,
    /// Connections of --rate 0, each with one request at a time.
    #[arg(long, default_value_t = 8)]
    concurrency: u32,
    /// How long to send; 0 is until SIGTERM.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
}

#[derive(Args)]
struct Follow {
    /// What to ask for.
    #[arg(long)]
    url: Uri,
    #[command(flatten)]
    way: Way,
    /// Time between two requests; each waits for the last one's answer.
    #[arg(long, value_name = "DURATION", default_value = "2ms", value_parser = duration)]
    every: Duration,
    /// How long to ask; 0 is until SIGTERM.
    #[arg(long, default_value_t = 0)]
    seconds: u32,
}

#[derive(Args)]
struct Get {
    /// What to ask for; may be left out with --connect.
    #[arg(required_unless_present = "connect")]
    url: Option<Uri>,
    #[command(flatten)]
    way: Way,
    /// Open a tunnel to this through the proxy, and do the rest inside of it.
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<Authority>,
    /// Speak TCP: read a line, send this one, read the line that comes back.
    #[arg(long, value_name = "TEXT", requires = "connect")]
    line: Option<String>,
    /// Open a WebSocket at this path and send one message, which comes back.
    #[arg(long, value_name = "PATH")]
    websocket: Option<String>,
    /// GET, POST, PUT and so on.
    #[arg(long, default_value = "GET")]
    method: Method,
    /// A header, also another Host; repeat.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The request's body; the WebSocket's message.
    #[arg(long, value_name = "TEXT")]
    body: Option<String>,
    /// HTTP/2 with prior knowledge.
    #[arg(long)]
    http2: bool,
    /// How often to ask, on one connection while the server keeps it.
    #[arg(long, default_value_t = 1)]
    times: u32,
    /// A new connection each time.
    #[arg(long)]
    fresh: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let app = Arguments::parse().app;
    // Process 1 of a container has no default action for SIGTERM.
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let begun = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        begun.cancel();
    });
    match app {
        App::Hello(pod) => serve(pod, 8080, stop, hello::serve).await,
        App::Echo(pod) => serve(pod, 8080, stop, echo::serve).await,
        App::Greeter(pod) => serve(pod, 50051, stop, greeter::serve).await,
        App::Tcp(pod) => serve(pod, 9000, stop, tcp::serve).await,
        App::Load(load) => run_load(load, stop).await,
        App::Follow(follow) => run_follow(follow, stop).await,
        App::Get(get) => run_get(get, stop).await,
        App::Sleep { time } => {
            let over = tokio::time::sleep(time.unwrap_or(Duration::MAX));
            let _ = stop.run_until_cancelled(over).await;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn serve<F: Future<Output = io::Result<()>>>(
    pod: Serve,
    default_port: u16,
    stop: CancellationToken,
    server: impl FnOnce(TcpListener, Place, Shutdown) -> F,
) -> anyhow::Result<ExitCode> {
    let Serve { listen, pod, node, grace } = pod;
    let listen = listen.unwrap_or(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), default_port));
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    server(listener, Place::new(pod, node), Shutdown { begun: stop, grace }).await?;
    Ok(ExitCode::SUCCESS)
}

async fn run_load(load: Load, stop: CancellationToken) -> anyhow::Result<ExitCode> {
    let Load { url, way, method, body, rate, max_connections, concurrency, seconds } = load;
    let Way { proxy, from: local, timeout } = way;
    let pace = match rate {
        0 => load::Pace::Closed(concurrency),
        rate => load::Pace::Rate { rate, max_connections },
    };
    let (proxies, body, seconds) = (proxies(proxy), Bytes::from(vec![b'x'; body]), bounded(seconds));
    let plan = load::Plan { url, proxies, local, method, body, pace, seconds, timeout };
    // A closed pipe does not stop the load.
    let tell = |line| drop(say(&line));
    let report = load::run(&plan, stop, tell).await.map_err(|error| anyhow!(error))?;
    say(&report)?;
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run_follow(follow: Follow, stop: CancellationToken) -> anyhow::Result<ExitCode> {
    let Follow { url, way, every, seconds } = follow;
    let Way { proxy, from: local, timeout } = way;
    let plan = follow::Plan { url, proxies: proxies(proxy), local, every, seconds: bounded(seconds), timeout };
    let report = follow::run(&plan, stop, |change| drop(say(change))).await.map_err(|error| anyhow!(error))?;
    say(&report)?;
    Ok(ExitCode::SUCCESS)
}

async fn run_get(get: Get, stop: CancellationToken) -> anyhow::Result<ExitCode> {
    let Get { url, way, connect, line, websocket, method, headers, body, http2, times, fresh } = get;
    let Way { proxy, from: local, timeout } = way;
    let url = match (url, &connect) {
        (Some(url), _) => url,
        (None, Some(authority)) => format!("http://{authority}/").parse()?,
        (None, None) => bail!("no URL"),
    };
    let (url, task) = match (line, websocket) {
        (Some(line), _) => (url, get::Task::Line(line)),
        (None, Some(path)) => {
            let mut parts = url.into_parts();
            parts.path_and_query = Some(path.parse()?);
            (Uri::from_parts(parts)?, get::Task::WebSocket(body.unwrap_or_else(|| "hello".to_owned())))
        }
        (None, None) => {
            let protocol = if http2 { Protocol::Http2 } else { Protocol::Http1 };
            let body = Bytes::from(body.unwrap_or_default());
            (url, get::Task::Http { protocol, method, headers: HeaderMap::from_iter(headers), body })
        }
    };
    let plan = get::Plan { url, proxies: proxies(proxy), local, connect, task, timeout };
    let mut client = get::Client::new(plan).await.map_err(|error| anyhow!(error))?;
    let mut all_came = true;
    for _ in 0..times {
        let Some(answer) = stop.run_until_cancelled(client.ask()).await else {
            return Ok(ExitCode::FAILURE);
        };
        all_came &= answer.came();
        say(&answer)?;
        if fresh {
            client.forget();
        }
    }
    Ok(if all_came { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One JSON line, written at once.
fn say(line: &impl Serialize) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{}", serde_json::to_string(line)?)?)
}

fn proxies(given: Option<String>) -> Proxies {
    match given {
        Some(proxy) => Proxies::always(proxy),
        None => Proxies::from_variables(|name| std::env::var(name).ok()),
    }
}

fn bounded(seconds: u32) -> Option<u32> {
    (seconds > 0).then_some(seconds)
}

/// A number and its unit, `ms`, `s` or `m`.
fn duration(text: &str) -> Result<Duration, String> {
    let malformed = || format!("'{text}' is not a number with a unit, as in 2ms, 10s or 1m");
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(malformed)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| malformed())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err(malformed()),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("'{text}' is not of the form NAME: VALUE"))?;
    let name = name.trim().parse().map_err(|error| format!("'{name}': {error}"))?;
    let value = value.trim().parse().map_err(|error| format!("'{value}': {error}"))?;
    Ok((name, value))
}
