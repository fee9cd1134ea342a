//! One pod of the demo as a process: `hello`, `echo` or `greeter`; and `load`, a client that counts.

use std::future::Future;
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use http::Uri;
use posthouse_testkit::{Place, echo, greeter, hello, load};
use serde_json::json;
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
    /// Sends GET requests at a fixed rate and counts; one JSON line a second, the last line is the whole report.
    Load(Load),
}

#[derive(Args)]
struct Serve {
    /// Where to listen.
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    /// The pod's name, told in each answer.
    #[arg(long)]
    pod: String,
    /// The node's name, told in each answer.
    #[arg(long)]
    node: String,
}

#[derive(Args)]
struct Load {
    /// The proxy; without it the URL's host is asked directly.
    #[arg(long, value_name = "http://IP:PORT", env = "http_proxy")]
    proxy: Option<String>,
    /// What to ask for.
    #[arg(long)]
    url: Uri,
    /// The local address to send from, such as a pod's of the demo.
    #[arg(long, value_name = "IP")]
    from: Option<IpAddr>,
    /// Connections, each with one request at a time.
    #[arg(long, default_value_t = 8)]
    concurrency: u32,
    /// Requests a second in total; 0 is as fast as answers come.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// How long to send.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().app {
        App::Hello(pod) => serve(pod, hello::serve).await,
        App::Echo(pod) => serve(pod, echo::serve).await,
        App::Greeter(pod) => serve(pod, greeter::serve).await,
        App::Load(load) => run_load(load).await,
    }
}

async fn serve<F: Future<Output = io::Result<()>>>(
    pod: Serve,
    server: impl FnOnce(TcpListener, Place, CancellationToken) -> F,
) -> anyhow::Result<()> {
    let Serve { listen, pod, node } = pod;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    let shutdown = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let end = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        end.cancel();
    });
    Ok(server(listener, Place::new(pod, node), shutdown).await?)
}

async fn run_load(load: Load) -> anyhow::Result<()> {
    let Load { proxy, url, from, concurrency, rate, seconds } = load;
    let proxy = match proxy.filter(|proxy| !proxy.is_empty()) {
        Some(proxy) => Some(proxy_address(&proxy).await?),
        None => None,
    };
    let plan = load::Plan { proxy, url, local: from, concurrency, rate, seconds };
    let say = |line: &str| writeln!(io::stdout(), "{line}");
    let report = load::run(&plan, |second, counted| {
        let line = json!({"second": second, "ok": counted.ok, "failed": counted.failed});
        // A closed pipe does not stop the load.
        let _ = say(&line.to_string());
    })
    .await
    .map_err(|error| anyhow::anyhow!(error))?;
    say(&serde_json::to_string(&report)?)?;
    if report.failed > 0 {
        bail!("{} of {} requests failed", report.failed, report.ok + report.failed);
    }
    Ok(())
}

/// `http://host:port[/]`, as the proxy variables have it.
async fn proxy_address(proxy: &str) -> anyhow::Result<SocketAddr> {
    let hint = || format!("the proxy '{proxy}' is not of the form http://HOST:PORT");
    let uri: Uri = proxy.parse().with_context(hint)?;
    let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else { bail!(hint()) };
    tokio::net::lookup_host((host.trim_matches(['[', ']']), port))
        .await?
        .next()
        .with_context(|| format!("the proxy's host '{host}' has no address"))
}
