//! Limits against one client that wants too much: announced, kept, and paid for by that client alone.

use http::Request;
use posthouse_model::AppProtocol;

use crate::harness::{A, B, FrameKind, Frames, H2, Mesh, Pod, Svc, Wire, within};

const GET: &[(&[u8], &[u8])] =
    &[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"web.demo"), (b":path", b"/")];

/// The value of a setting in a SETTINGS frame (RFC 9113 §6.5).
fn setting(payload: &[u8], id: u16) -> Option<u32> {
    let entry = payload.chunks_exact(6).find(|entry| entry[..2] == id.to_be_bytes())?;
    Some(u32::from_be_bytes(entry[2..].try_into().unwrap()))
}

#[tokio::test]
async fn a_client_is_told_how_many_streams_and_fields_it_may_send_and_that_extended_connect_is_there() {
    let mesh = Mesh::start();
    let mut client = Frames::connect(mesh.a.outbound).await;
    let settings = client.next().await.unwrap();
    assert!(settings.is(FrameKind::Settings), "{settings:?}");
    assert_eq!(setting(&settings.payload, 3), Some(256), "SETTINGS_MAX_CONCURRENT_STREAMS");
    assert_eq!(setting(&settings.payload, 6), Some(64 * 1024), "SETTINGS_MAX_HEADER_LIST_SIZE");
    assert_eq!(setting(&settings.payload, 8), Some(1), "SETTINGS_ENABLE_CONNECT_PROTOCOL");
}

#[tokio::test]
async fn a_client_with_all_its_streams_open_holds_up_nobody_else() {
    for node in [A, B] {
        let pod = Pod::raw(node, 10, |mut wire, _| async move {
            wire.head().await;
            wire.rest().await;
        })
        .await;
        let other = Pod::named(node, 11, "other").await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::Http1).end(&pod));
        mesh.put(&Svc::new("other").end(&other));
        let mut client = Frames::connect(mesh.a.outbound).await;
        for n in 0..256 {
            client.headers(1 + 2 * n, GET, true).await;
        }
        pod.has_accepted(256).await;
        // One too many is refused, without harm to the others.
        client.headers(513, GET, true).await;
        let refused = within("the refusal", async {
            loop {
                match client.next().await {
                    Some(frame) if frame.stream == 513 => break frame,
                    Some(_) => {}
                    None => panic!("the connection ended"),
                }
            }
        })
        .await;
        // REFUSED_STREAM (RFC 9113 §7)
        assert!(refused.is(FrameKind::Reset) && refused.payload == 7u32.to_be_bytes(), "{refused:?}");
        assert_eq!(mesh.a.stats(pod.address).in_flight(), 256);
        let h2 = H2::connect(mesh.a.outbound).await;
        for _ in 0..20 {
            assert_eq!(h2.get("http://other.demo/").await.unwrap().text(), "other");
            assert_eq!(Wire::connect(mesh.a.outbound).await.get("other.demo", "/").await.text(), "other");
        }
        drop(client);
        pod.has_ended(256).await;
        mesh.is_quiet(pod.address).await;
    }
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_flooding_connection_and_harms_nobody_else() {
    for node in [A, B] {
        let pod = Pod::http(node, 10, |_| async {
            std::future::pending::<()>().await;
            crate::harness::answer("never")
        })
        .await;
        let other = Pod::named(node, 11, "other").await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
        mesh.put(&Svc::new("other").app(AppProtocol::H2c).end(&other));
        let outbound = mesh.a.outbound;
        let h2 = H2::connect(outbound).await;
        assert_eq!(h2.get("http://other.demo/").await.unwrap().text(), "other");
        let flood = tokio::spawn(async move {
            let mut client = Frames::connect(outbound).await;
            for n in 0..20_000 {
                let stream = 1 + 2 * n;
                let frames = [Frames::headers_bytes(stream, GET, true), Frames::reset_bytes(stream, 8)].concat();
                // Broken off by the proxy once it has enough, which is as good as an end.
                if tokio::io::AsyncWriteExt::write_all(&mut client.wire.stream, &frames).await.is_err() {
                    break;
                }
            }
            client
        });
        let mut served = 0;
        while !flood.is_finished() || served < 50 {
            assert_eq!(h2.get("http://other.demo/").await.unwrap().text(), "other");
            assert_eq!(Wire::connect(outbound).await.get("other.demo", "/").await.text(), "other");
            served += 1;
        }
        let mut client = within("the flood's end", flood).await.unwrap();
        let mut ended = false;
        while let Some(frame) = client.next().await {
            if frame.is(FrameKind::GoAway) {
                // ENHANCE_YOUR_CALM (RFC 9113 §7)
                assert_eq!(frame.payload[4..8], 11u32.to_be_bytes(), "{frame:?}");
                ended = true;
            }
        }
        assert!(ended, "the flooding connection was told to calm down");
        drop(client);
        assert_eq!(h2.get("http://other.demo/").await.unwrap().text(), "other");
        mesh.is_quiet(pod.address).await;
    }
}

/// Resets that come with work in between are what clients with deadlines do; they must not end the connection.
#[tokio::test]
async fn a_client_that_cancels_now_and_then_keeps_its_connection() {
    for node in [A, B] {
        let pod = Pod::http(node, 10, |_| async {
            std::future::pending::<()>().await;
            crate::harness::answer("never")
        })
        .await;
        let other = Pod::named(node, 11, "other").await;
        let mesh = Mesh::start();
        mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
        mesh.put(&Svc::new("other").app(AppProtocol::H2c).end(&other));
        let client = H2::connect(mesh.a.outbound).await;
        for n in 0..100 {
            let (_response, mut send) =
                client.open(Request::get("http://web.demo/").body(()).unwrap(), true).await.unwrap();
            crate::harness::eventually("the request at the pod", || pod.seen().len() > n).await;
            send.send_reset(h2::Reason::CANCEL);
            assert_eq!(client.get("http://other.demo/").await.unwrap().text(), "other");
        }
        mesh.is_quiet(pod.address).await;
        assert_eq!(pod.accepted(), 1, "nor does the pod's connection end");
    }
}
