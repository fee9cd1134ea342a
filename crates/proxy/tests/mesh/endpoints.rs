//! Which endpoint a request goes to: by state, by name, by address, by the client's namespace.

use posthouse_model::{AppProtocol, EndpointState, ServiceKind};

use crate::harness::{A, B, End, H2, Mesh, Pod, Svc, Wire};

#[tokio::test]
async fn requests_spread_over_the_ready_pods_of_all_nodes() {
    let pods = [Pod::named(A, 10, "a").await, Pod::named(B, 11, "b").await, Pod::named(B, 12, "c").await];
    let mesh = Mesh::start();
    mesh.web(&[&pods[0], &pods[1], &pods[2]]);
    let mut client = Wire::connect(mesh.a.outbound).await;
    for _ in 0..300 {
        assert_eq!(client.get("web.demo", "/").await.status, 200);
    }
    for pod in &pods {
        // 100 expected with a standard deviation of 8: six of them away is no chance.
        assert!((50..=150).contains(&pod.seen().len()), "{}", pod.seen().len());
    }
}

#[tokio::test]
async fn a_terminating_pod_gets_nothing_while_another_is_ready_and_serves_when_none_is() {
    for node in [A, B] {
        let (ready, draining) = (Pod::named(node, 10, "ready").await, Pod::named(node, 11, "draining").await);
        let gone = Pod::named(node, 12, "gone").await;
        let mesh = Mesh::start();
        let others = |svc: Svc| {
            let draining = End::from(&draining).state(EndpointState::Draining);
            svc.end(draining).end(End::from(&gone).state(EndpointState::NotReady))
        };
        mesh.put(&others(Svc::new("web").end(&ready)));
        let mut client = Wire::connect(mesh.a.outbound).await;
        for _ in 0..50 {
            assert_eq!(client.get("web.demo", "/").await.text(), "ready");
        }
        assert_eq!((draining.accepted(), gone.accepted()), (0, 0));
        // The client's connection and what it remembers of the destination are from before.
        mesh.put(&others(Svc::new("web").end(End::from(&ready).state(EndpointState::NotReady))));
        for _ in 0..10 {
            assert_eq!(client.get("web.demo", "/").await.text(), "draining");
        }
        assert_eq!(gone.accepted(), 0);
        mesh.put(&Svc::new("web").end(End::from(&gone).state(EndpointState::NotReady)));
        let answer = client.get("web.demo", "/").await;
        answer.is_error(503, "destination_unavailable");
        assert!(
            answer.text().contains("Service demo/web port 80 has 1 endpoint, none ready; last change"),
            "{answer:?}"
        );
        mesh.put(&Svc::new("web").end(&ready));
        assert_eq!(client.get("web.demo", "/").await.text(), "ready");
    }
}

/// A request that is under way at a pod when that one begins to terminate is not disturbed.
#[tokio::test]
async fn a_request_in_flight_outlives_its_endpoint() {
    let (started, go) =
        (std::sync::Arc::new(tokio::sync::Notify::new()), std::sync::Arc::new(tokio::sync::Notify::new()));
    let (pod_started, pod_go) = (started.clone(), go.clone());
    let pod = Pod::raw(B, 10, move |mut wire, _| {
        let (started, go) = (pod_started.clone(), pod_go.clone());
        async move {
            wire.request().await.unwrap();
            started.notify_one();
            go.notified().await;
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate").await;
        }
    })
    .await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let mut client = Wire::connect(mesh.a.outbound).await;
    client.send("GET / HTTP/1.1\r\nHost: web.demo\r\n\r\n").await;
    crate::harness::within("the request", started.notified()).await;
    mesh.update(|_, directory| {
        directory.remove_service("demo/web");
        directory.remove_pod(&format!("uid-{}", pod.address.ip()));
    });
    go.notify_one();
    assert_eq!(client.answer().await.text(), "late");
    client.get("web.demo", "/").await.is_error(500, "destination_not_found");
}

#[tokio::test]
async fn a_pods_name_and_a_pods_address_mean_exactly_that_pod() {
    let pods = [Pod::named(A, 10, "web-0").await, Pod::named(B, 11, "web-1").await, Pod::named(B, 12, "web-2").await];
    let mesh = Mesh::start();
    let names = ["web-0", "web-1", "web-2"];
    let svc = pods
        .iter()
        .zip(names)
        .fold(Svc::new("web").kind(ServiceKind::Headless), |svc, (pod, name)| svc.end(End::from(pod).hostname(name)));
    mesh.put(&svc);
    let mut client = Wire::connect(mesh.a.outbound).await;
    for (pod, name) in pods.iter().zip(names) {
        let hosts = [
            format!("{name}.web.demo.svc.cluster.local"),
            format!("{name}.web.demo.svc.cluster.local.:80"),
            format!("{}.WEB.demo", name.to_uppercase()),
            pod.address.to_string(),
        ];
        for host in hosts.iter().cycle().take(20) {
            assert_eq!(client.get(host, "/").await.text(), name, "{host}");
        }
        assert_eq!(pod.seen()[3].headers["host"], *hosts[3], "as the client wrote it");
    }
    let answer = client.get("web-9.web.demo", "/").await;
    answer.is_error(500, "destination_not_found");
    assert!(answer.text().contains("web-9"), "{answer:?}");
}

#[tokio::test]
async fn a_cluster_address_means_its_service() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    let address = "10.96.0.7".parse().unwrap();
    mesh.put(&Svc::new("web").kind(ServiceKind::ClusterIp([address].into_iter().collect())).end(&pod));
    let mut client = Wire::connect(mesh.a.outbound).await;
    for host in ["10.96.0.7", "10.96.0.7:80"] {
        assert_eq!(client.get(host, "/").await.text(), "pod");
    }
    client.get("10.96.0.7:81", "/").await.is_error(500, "destination_not_found");
    client.get("10.96.0.8", "/").await.is_error(500, "destination_not_found");
}

#[tokio::test]
async fn a_short_name_is_of_the_clients_own_namespace() {
    let pod = Pod::named(B, 10, "pod").await;
    let mesh = Mesh::start();
    mesh.web(&[&pod]);
    let (inside, outside) = ([127, 0, 61, 20].into(), [127, 0, 61, 21].into());
    mesh.pod(A, inside, "demo");
    mesh.pod(A, outside, "elsewhere");
    let mut client = Wire::connect_from(inside, mesh.a.outbound).await;
    for host in ["web", "web.", "WEB", "web:80", "web.demo", "web.demo.svc", "web.demo.svc.cluster.local"] {
        assert_eq!(client.get(host, "/").await.text(), "pod", "{host}");
    }
    let mut client = Wire::connect_from(outside, mesh.a.outbound).await;
    let answer = client.get("web", "/").await;
    answer.is_error(500, "destination_not_found");
    assert!(answer.text().contains("elsewhere"), "{answer:?}");
    assert_eq!(client.get("web.demo", "/").await.text(), "pod");
    // The node itself has no namespace.
    let answer = Wire::connect(mesh.a.outbound).await.get("web", "/").await;
    answer.is_error(500, "destination_not_found");
    assert!(answer.text().contains("namespace"), "{answer:?}");
    // The same by HTTP/2.
    mesh.put(&Svc::new("web").app(AppProtocol::H2c).end(&pod));
    let client = H2::connect_from(inside, mesh.a.outbound).await;
    assert_eq!(client.get("http://web/").await.unwrap().text(), "pod");
}
