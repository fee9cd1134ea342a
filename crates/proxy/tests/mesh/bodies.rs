//! Bodies that go well: every way to delimit one, trailers, long ones, and both directions at once.

use bytes::Bytes;
use http::Request;
use posthouse_model::AppProtocol;

use crate::harness::{A, B, H2, Mesh, Pod, Svc, Wire, assert_same, pattern, read_body, within};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn chunks_and_trailers_pass_in_both_directions() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            while let Some(head) = wire.try_head().await {
                assert!(head.all("content-length").is_empty(), "{head:?}");
                let (body, trailers) = wire.body(&head).await;
                assert_eq!((body.as_slice(), head.field("trailer")), (b"hello world".as_slice(), "X-Sum"));
                assert_eq!(trailers, [("x-sum".to_owned(), "11".to_owned())], "the field that frames is dropped");
                wire.send(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Back\r\n\r\n\
                     4;ext=1\r\nback\r\n00001\r\n!\r\n0\r\nX-Back: 5\r\nposthouse-error: x\r\n\r\n",
                )
                .await;
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        for _ in 0..3 {
            client
                .send(
                    "POST / HTTP/1.1\r\nHost: web.demo\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                     5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nX-Sum: 11\r\nContent-Length: 3\r\n\r\n",
                )
                .await;
            let answer = client.answer().await;
            assert_eq!(answer.text(), "back!");
            assert_eq!(answer.head.names(), ["trailer", "transfer-encoding"]);
            assert_eq!(answer.trailers, [("x-back".to_owned(), "5".to_owned())]);
        }
        assert_eq!(pod.accepted(), 1);
    }
}

#[tokio::test]
async fn an_empty_post_says_that_it_is_empty() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            while let Some(head) = wire.try_head().await {
                let expected: &[&str] = if head.line.starts_with("POST") { &["0"] } else { &[] };
                assert_eq!(head.all("content-length"), expected, "{head:?}");
                assert!(head.all("transfer-encoding").is_empty());
                wire.send(OK).await;
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
        let mut client = Wire::connect(mesh.a.outbound).await;
        for request in ["POST / HTTP/1.1\r\n", "POST / HTTP/1.1\r\nContent-Length: 0\r\n", "GET / HTTP/1.1\r\n"] {
            assert_eq!(client.ask(format!("{request}Host: web.demo\r\n\r\n")).await.text(), "ok");
        }
        let h2 = H2::connect(mesh.a.outbound).await;
        assert_eq!(h2.call(Request::post("http://web.demo/").body(()).unwrap(), b"").await.unwrap().text(), "ok");
    }
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_clean() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            while let Some((head, _)) = wire.request().await {
                let answer = match head.line.split(' ').next() {
                    Some("HEAD") => "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n",
                    Some("OPTIONS") => "HTTP/1.1 204 No Content\r\n\r\n",
                    Some("GET") if head.line.contains("/same") => {
                        "HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 77\r\n\r\n"
                    }
                    _ => OK,
                };
                wire.send(answer).await;
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        for _ in 0..2 {
            client.send("HEAD / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
            let head = client.head().await;
            assert_eq!((head.line.as_str(), head.field("content-length")), ("HTTP/1.1 200 OK", "1234"));
            let answer = client.ask("OPTIONS * HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
            assert_eq!(answer.status, 204);
            assert!(answer.head.all("content-length").is_empty() && answer.head.all("transfer-encoding").is_empty());
            let answer = client.get("web.demo", "/same").await;
            assert_eq!((answer.status, answer.head.field("content-length")), (304, "77"));
            assert_eq!(client.get("web.demo", "/").await.text(), "ok");
        }
        assert_eq!(pod.accepted(), 1, "and the pod's connection, too");
    }
}

#[tokio::test]
async fn an_http10_client_gets_what_it_understands() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            while let Some((head, _)) = wire.request().await {
                assert!(head.line.ends_with(" HTTP/1.1"), "{head:?}");
                let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n";
                wire.send(if head.line.contains("/chunked") { chunked } else { OK }).await;
            }
        })
        .await;
        let mesh = Mesh::start();
        mesh.web(&[&pod]);
        let mut client = Wire::connect(mesh.a.outbound).await;
        for _ in 0..2 {
            let answer = client.ask("GET / HTTP/1.0\r\nHost: web.demo\r\nConnection: keep-alive\r\n\r\n").await;
            assert_eq!((answer.text().as_str(), answer.head.field("connection")), ("ok", "keep-alive"));
        }
        // Without Host, by the absolute target alone.
        let answer = client.ask("GET http://web.demo/ HTTP/1.0\r\n\r\n").await;
        assert_eq!((answer.text().as_str(), answer.head.field("connection")), ("ok", "close"));
        client.ended().await;
        // A length that is not known ends with the connection, even for one that would keep it.
        let mut client = Wire::connect(mesh.a.outbound).await;
        client.send("GET /chunked HTTP/1.0\r\nHost: web.demo\r\nConnection: keep-alive\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.all("transfer-encoding").is_empty());
        assert_eq!(head.field("connection"), "close");
        assert_eq!(client.rest().await, b"ok");
    }
}

#[tokio::test]
async fn a_pods_answer_that_ends_with_its_connection_is_whole_for_the_client() {
    for node in [A, B] {
        for version in ["1.0", "1.1"] {
            let pod = Pod::raw(node, 10, move |mut wire, _| async move {
                wire.head().await;
                wire.send(format!("HTTP/{version} 200 OK\r\nConnection: close\r\n\r\n")).await;
                wire.send(pattern(100_000)).await;
            })
            .await;
            let mesh = Mesh::start();
            mesh.web(&[&pod]);
            let mut client = Wire::connect(mesh.a.outbound).await;
            for _ in 0..2 {
                let answer = client.get("web.demo", "/").await;
                assert_eq!(answer.head.names(), ["transfer-encoding"], "the client's connection need not end");
                assert_same(&answer.body, &pattern(100_000), "the answer");
            }
            assert_eq!(pod.accepted(), 2);
        }
    }
}

/// Every way through: client's version, same node or link, pod's version.
#[tokio::test]
async fn eight_mebibytes_go_each_way_unchanged() {
    let body = pattern(8 << 20);
    for node in [A, B] {
        let pod = Pod::echo(node, 10).await;
        let mesh = Mesh::start();
        for app in [AppProtocol::Http1, AppProtocol::H2c] {
            mesh.put(&Svc::new("web").app(app).end(&pod));
            let what = format!("{node} {app:?}");
            let mut client = Wire::connect(mesh.a.outbound).await;
            let head = "POST / HTTP/1.1\r\nHost: web.demo\r\n";
            client.send(format!("{head}Content-Length: {}\r\n\r\n", body.len())).await;
            client.pour(&body).await;
            assert_same(&client.answer().await.body, &body, &format!("{what} by length"));
            client.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n")).await;
            for piece in body.chunks(1 << 20) {
                client.pour(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()).await;
            }
            client.pour(b"0\r\n\r\n").await;
            assert_same(&client.answer().await.body, &body, &format!("{what} by chunks"));
            let client = H2::connect(mesh.a.outbound).await;
            let reply = client.call(Request::post("http://web.demo/").body(()).unwrap(), &body).await.unwrap();
            assert_same(&reply.body, &body, &format!("{what} by HTTP/2"));
        }
    }
}

#[tokio::test]
async fn an_answer_that_begins_before_its_request_ends_flows_both_ways_at_once() {
    for node in [A, B] {
        let pod = Pod::echo(node, 10).await;
        let mesh = Mesh::start();
        for app in [AppProtocol::Http1, AppProtocol::H2c] {
            mesh.put(&Svc::new("web").app(app).end(&pod));
            let client = H2::connect(mesh.a.outbound).await;
            let (response, mut send) =
                client.open(Request::post("http://web.demo/").body(()).unwrap(), false).await.unwrap();
            send.send_data(Bytes::from_static(b"first"), false).unwrap();
            let mut recv = within("the answer's head", response).await.unwrap().into_body();
            assert_eq!(within("the first piece", recv.data()).await.unwrap().unwrap(), "first");
            for n in 0..50 {
                let piece = Bytes::from(format!("piece {n}"));
                send.send_data(piece.clone(), false).unwrap();
                assert_eq!(within("its echo", recv.data()).await.unwrap().unwrap(), piece);
            }
            send.send_data(Bytes::new(), true).unwrap();
            assert!(within("the end", read_body(&mut recv)).await.unwrap().is_empty());
        }
    }
}
