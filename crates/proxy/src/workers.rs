//! The worker threads: one current-thread runtime each, with listeners (SO_REUSEPORT), links and pools of its own, so
//! that no lock, channel or task hop lies on a request's way.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};
use tracing::{error, info};

use crate::metrics::limit_reached;
use crate::status::Proxy;
use crate::worker::{Listeners, Phase, Worker};

/// Connections that wait in the kernel to be accepted. 4096: `net.core.somaxconn`'s default since Linux 5.4.
const BACKLOG: i32 = 4096;

/// How long a draining proxy waits for the next request of a kept-alive HTTP/1 connection, to tell the client by its answer. 5 s:
/// a client that sends less often rarely does so in the very moment in which the connection is closed; where no successor
/// stands beside us, our node has no proxy meanwhile. Envoy drains alike.
const DRAIN_IDLE: Duration = Duration::from_secs(5);

/// Running workers.
pub struct Workers {
    outbound: Vec<SocketAddr>,
    link: SocketAddr,
    phase: watch::Sender<Phase>,
    /// Closed when the last thread has ended.
    ended: mpsc::Receiver<()>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Workers {
    /// Binds the listeners (port 0 picks one port for all workers) and starts `count` threads.
    ///
    /// # Errors
    /// The first address that cannot be bound, named in the error's text.
    pub fn start(proxy: &Arc<Proxy>, count: usize, outbound: &[SocketAddr], link: SocketAddr) -> io::Result<Self> {
        let count = count.max(1);
        let mut sets: Vec<Sockets> = Vec::with_capacity(count);
        let (mut outbound, mut link) = (outbound.to_vec(), link);
        for _ in 0..count {
            let mut set = Sockets { outbound: Vec::new(), link: bind(&mut link, "--link-listen")? };
            for address in &mut outbound {
                set.outbound.push(bind(address, "--outbound-listen")?);
            }
            sets.push(set);
        }
        let (phase, watch) = watch::channel(Phase::Serve);
        let (alive, ended) = mpsc::channel(1);
        let mut threads = Vec::with_capacity(count);
        for (n, set) in sets.into_iter().enumerate() {
            let (proxy, watch, alive) = (Arc::clone(proxy), watch.clone(), alive.clone());
            let thread = std::thread::Builder::new().name(format!("worker-{n}")).spawn(move || {
                if let Err(failure) = work(proxy, set, watch) {
                    error!(worker = n, error = %failure, "worker could not start");
                }
                drop(alive);
            })?;
            threads.push(thread);
        }
        info!(workers = count, outbound = ?outbound, %link, "listening");
        Ok(Self { outbound, link, phase, ended, threads })
    }

    /// Where pods may connect, ports filled in.
    #[must_use]
    pub fn outbound_addresses(&self) -> &[SocketAddr] {
        &self.outbound
    }

    /// Where peers may connect, port filled in.
    #[must_use]
    pub fn link_address(&self) -> SocketAddr {
        self.link
    }

    /// Closes the listeners, tells clients and peers to go (`Connection: close`, GOAWAY), waits for requests in flight
    /// until `deadline` has passed, then ends the threads. Returns whether all were done in time.
    /// A kept-alive connection is told with its next answer; one without a request is closed after 5 s, or half of a
    /// shorter `deadline`.
    pub async fn drain(mut self, deadline: Duration) -> bool {
        self.phase.send_replace(Phase::Drain(DRAIN_IDLE.min(deadline / 2)));
        let in_time = tokio::time::timeout(deadline, self.ended.recv()).await.is_ok();
        if !in_time {
            limit_reached("drain_deadline");
            self.phase.send_replace(Phase::Stop);
            // A worker ends at its next turn; one that does not within a second is left to the process' end.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.ended.recv()).await;
        }
        in_time
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Stop);
        for thread in self.threads.drain(..) {
            if thread.is_finished() {
                // A panic outside of any task was logged by the panic hook.
                let _ = thread.join();
            }
        }
    }
}

struct Sockets {
    outbound: Vec<std::net::TcpListener>,
    link: std::net::TcpListener,
}

/// Tasks that run before sockets are looked at again while there is work. tokio's 61 is less than a busy worker's connections have
/// to do at a time; what is done in one turn leaves on a link in one write, so a longer turn costs less: at 64 connections 4 % of
/// a request's CPU time (docs/decisions.md).
const EVENT_INTERVAL: u32 = 256;

fn work(proxy: Arc<Proxy>, sockets: Sockets, phase: watch::Receiver<Phase>) -> io::Result<()> {
    let runtime = Builder::new_current_thread()
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build_local(LocalOptions::default())?;
    runtime.block_on(async move {
        let listeners = Listeners {
            outbound: sockets
                .outbound
                .into_iter()
                .map(tokio::net::TcpListener::from_std)
                .collect::<io::Result<Vec<_>>>()?,
            link: tokio::net::TcpListener::from_std(sockets.link)?,
        };
        Worker::new(proxy).run(listeners, phase).await;
        Ok(())
    })
}

/// Binds one worker's listener; the first worker's port 0 becomes the real port for the others.
fn bind(address: &mut SocketAddr, flag: &str) -> io::Result<std::net::TcpListener> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{flag} {address}: {error}"));
    let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP)).map_err(named)?;
    if address.is_ipv6() {
        // `[::]` means IPv6 here; who wants both lists both.
        socket.set_only_v6(true).map_err(named)?;
    }
    socket.set_reuse_address(true).map_err(named)?;
    socket.set_reuse_port(true).map_err(named)?;
    socket.set_nonblocking(true).map_err(named)?;
    socket.bind(&(*address).into()).map_err(named)?;
    socket.listen(BACKLOG).map_err(named)?;
    let listener: std::net::TcpListener = socket.into();
    *address = listener.local_addr()?;
    Ok(listener)
}
