//! `greeter`: gRPC's well-known `helloworld.Greeter` with both kinds of streams, health and reflection. It counts the
//! calls that clients gave up, so that a test sees whether a cancel came through.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::net::TcpListener;
use tonic::codegen::Service as _;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::{Place, Shutdown, server};
use proto::greeter_server::{Greeter, GreeterServer};
use proto::{CountersReply, CountersRequest, HelloReply, HelloRequest};

/// The code made from `proto/helloworld.proto`: messages, server and client.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/helloworld.rs"));
}

/// The descriptors of `proto/helloworld.proto`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/helloworld.bin"));

/// Serves `greeter` on `listener` until `shutdown`.
///
/// # Errors
/// When the listener fails for good or the descriptors are broken.
pub async fn serve(listener: TcpListener, place: Place, shutdown: Shutdown) -> io::Result<()> {
    let service = GreeterServer::new(Service { place, calls: Arc::default() });
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<GreeterServer<Service>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = Routes::new(service)
        .add_service(health_service)
        .add_service(reflection().build_v1().map_err(io::Error::other)?)
        // Python's reflection client asks for the older version.
        .add_service(reflection().build_v1alpha().map_err(io::Error::other)?)
        .prepare();
    // Not tonic's own server: that one ends calls by the deadline in their header, with the status CANCELLED, in a race with
    // the client's own clock. Here only the client's reset ends a call, so that a test sees whether it came through.
    server::serve(listener, shutdown, move |request| {
        let mut routes = routes.clone();
        async move {
            let Ok(response) = routes.call(request).await;
            response
        }
    })
    .await
}

struct Service {
    place: Place,
    calls: Arc<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    started: AtomicU64,
    finished: AtomicU64,
    cancelled: AtomicU64,
}

/// Counts one call: tonic drops a call's future or stream when the client resets it or goes away; what is dropped before
/// [`Call::finish`] was cancelled.
struct Call {
    calls: Arc<Calls>,
    finished: bool,
}

impl Call {
    fn begin(calls: &Arc<Calls>) -> Self {
        calls.started.fetch_add(1, Ordering::Relaxed);
        Self { calls: Arc::clone(calls), finished: false }
    }

    fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let counter = if self.finished { &self.calls.finished } else { &self.calls.cancelled };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<HelloReply, Status>> + Send>>;

#[tonic::async_trait]
impl Greeter for Service {
    type SayHelloStreamStream = Replies;
    type ChatStream = Replies;

    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let call = Call::begin(&self.calls);
        let request = request.into_inner();
        wait(request.delay_ms).await;
        let reply = reply(&self.place, &request.name);
        call.finish();
        Ok(Response::new(reply))
    }

    async fn say_hello_stream(&self, request: Request<HelloRequest>) -> Result<Response<Replies>, Status> {
        let state = (Call::begin(&self.calls), self.place.clone(), request.into_inner());
        let replies = stream::unfold(state, |(call, place, mut request)| async move {
            if request.replies == 0 {
                call.finish();
                return None;
            }
            request.replies -= 1;
            wait(request.delay_ms).await;
            Some((Ok(reply(&place, &request.name)), (call, place, request)))
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn chat(&self, request: Request<Streaming<HelloRequest>>) -> Result<Response<Replies>, Status> {
        let state = (Call::begin(&self.calls), self.place.clone(), request.into_inner());
        let replies = stream::unfold(state, |(call, place, mut requests)| async move {
            // A broken request stream ends the answer, too; the call then counts as cancelled.
            let Some(request) = requests.message().await.ok()? else {
                call.finish();
                return None;
            };
            wait(request.delay_ms).await;
            Some((Ok(reply(&place, &request.name)), (call, place, requests)))
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn counters(&self, _request: Request<CountersRequest>) -> Result<Response<CountersReply>, Status> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Ends before beginnings, so that a call between the reads cannot make the difference negative.
        let (finished, cancelled) = (read(&self.calls.finished), read(&self.calls.cancelled));
        let started = read(&self.calls.started);
        Ok(Response::new(CountersReply { started, finished, cancelled, in_flight: started - finished - cancelled }))
    }
}

async fn wait(millis: u32) {
    if millis > 0 {
        tokio::time::sleep(Duration::from_millis(millis.into())).await;
    }
}

fn reply(place: &Place, name: &str) -> HelloReply {
    HelloReply {
        message: format!("Hello {name} from {} on {}", place.pod, place.node),
        pod: place.pod.clone(),
        node: place.node.clone(),
    }
}
