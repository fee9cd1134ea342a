//! The server over real sockets, and the small client that the tests of its two users share.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

/// Longer than any answer takes on a busy machine; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer, taken apart.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// A running server that ends with its test.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stop: watch::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(handler: impl Handler) -> Self {
        let listener = bind("--test", "127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(());
        Self { address, stop, task: tokio::spawn(serve(Listener::Tcp(listener), Arc::new(handler), stopped)) }
    }

    /// Sends one request of HTTP/1.0, whose answer ends with the connection.
    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &str) -> Answer {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(format!("{method} {path} HTTP/1.0\r\n{headers}\r\n").as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text
        };
        let text = timeout(PATIENCE, exchange).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "Host: 127.0.0.1\r\n").await
    }

    /// Stops and waits for the end.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

struct Hello;

impl Handler for Hello {
    fn handle(&self, request: Parts) -> Pin<Box<dyn Future<Output = Response<Body>> + Send + '_>> {
        Box::pin(async move { text(StatusCode::OK, request.uri.path().to_owned()) })
    }
}

#[tokio::test]
async fn requests_are_answered_until_the_server_is_stopped() {
    let server = Running::start(Hello);
    assert_eq!(server.get("/one").await.body, "/one");
    let address = server.address;
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /kept HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 15];
    timeout(PATIENCE, idle.read_exact(&mut first)).await.unwrap().unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    server.stop().await;
    let mut rest = Vec::new();
    timeout(PATIENCE, idle.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "the listener is closed");
}

#[tokio::test]
async fn connections_that_only_sit_there_make_room_for_new_ones() {
    let server = Running::start(Hello);
    let mut idle = Vec::new();
    for _ in 0..MAX_CONNECTIONS + 5 {
        idle.push(TcpStream::connect(server.address).await.unwrap());
    }
    assert_eq!(server.get("/in").await.body, "/in");
    let mut nothing = [0];
    let closed = timeout(PATIENCE, idle[0].read(&mut nothing)).await.unwrap();
    assert!(matches!(closed, Ok(0) | Err(_)), "the oldest was closed");
    server.stop().await;
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let server = Running::start(Hello);
    let answer = server.ask("GET", "/", &format!("X: {}\r\n", "x".repeat(2 * MAX_HEAD))).await;
    assert_eq!(answer.status, 431);
    server.stop().await;
}

#[tokio::test]
async fn an_address_that_cannot_be_bound_is_named_with_its_flag() {
    let error = bind("--admin-listen", "192.0.2.1:0".parse().unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("--admin-listen 192.0.2.1:0: cannot listen") && error.contains("interface"), "{error}");
    assert_eq!(error, check_bind("--admin-listen", "192.0.2.1:0".parse().unwrap()).unwrap_err().to_string());
    let foreign = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = check_bind("--link-listen", foreign.local_addr().unwrap()).unwrap_err().to_string();
    assert!(error.contains("another program"), "{error}");
}

#[tokio::test]
async fn a_unix_socket_is_ours_alone_and_replaces_a_stale_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let first = bind_unix("--test", &path).unwrap();
    let error = bind_unix("--test", &path).unwrap_err().to_string();
    assert!(error.contains("another posthouse answers"), "{error}");
    drop(first);
    assert!(path.exists(), "a process that ends by force leaves its socket behind");
    let listener = bind_unix("--test", &path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
    let mut server = Listener::Unix(listener).accept().await.unwrap();
    server.write_all(b"hello").await.unwrap();
    drop(server);
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
}

#[tokio::test]
async fn a_file_in_the_unix_sockets_place_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    std::fs::write(&path, "precious").unwrap();
    let error = bind_unix("--test", &path).unwrap_err().to_string();
    assert!(error.contains("no socket") && error.contains("--test"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let error = bind_unix("--test", &folder.path().join("none/admin.sock")).unwrap_err().to_string();
    assert!(error.contains("its folder must exist"), "{error}");
}
