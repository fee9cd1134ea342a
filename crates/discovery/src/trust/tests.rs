//! Certificates of Services from annotations, Secrets and ConfigMaps: what comes of them, what is touched, what stays when one
//! goes, and that nothing of a Secret is shown or written.

use super::*;
use crate::manifest::{self, Context, Parsed};
use crate::object::Object;
use crate::snapshot;
use crate::view::{Settled, View};

fn view() -> View {
    View::new(Arc::from("node-a"), "mesh")
}

fn take(view: &mut View, text: &str) -> Settled {
    match manifest::yaml(text, &mut Context::new(Arc::from("node-a"))) {
        Ok(Parsed::Object(reduced)) => match reduced.object {
            Some(object) => view.put(reduced.key, object),
            None => view.remove(&reduced.key),
        },
        other => panic!("{other:?} of {text}"),
    }
    view.settle()
}

fn drop_object(view: &mut View, kind: Kind, name: &str) -> Settled {
    view.remove(&Key { kind, name: name.into() });
    view.settle()
}

fn service(name: &str, annotations: &str, protocol: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop, annotations: {{{annotations}}}}}\n\
         spec: {{ports: [{{port: 443, appProtocol: '{protocol}'}}]}}"
    )
}

/// The texts are told apart by their numbers; `0` leaves one out.
fn secret(name: &str, certificate: u8, key: u8, roots: u8) -> String {
    let entry = |name: &str, text: &str, number: u8| match number {
        0 => String::new(),
        number => format!("{name}: {text}-{number}, "),
    };
    format!(
        "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {{name: {name}, namespace: shop}}\n\
         stringData: {{{}{}{}}}",
        entry("tls.crt", "CRT", certificate),
        entry("tls.key", "KEY", key),
        entry("ca.crt", "CA", roots)
    )
}

fn config_map(name: &str, roots: u8) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: shop}}\ndata: {{ca.crt: CA-{roots}, n: 5}}"
    )
}

const WEB_TLS: &str = "posthouse.io/tls-secret: web-tls";

fn tls(view: &View, service: &str) -> Arc<ServiceTls> {
    Arc::clone(view.directory().service(service).unwrap().tls.as_ref().unwrap())
}

fn backend(view: &View, service: &str) -> Arc<BackendTls> {
    Arc::clone(view.directory().service(service).unwrap().backend.as_ref().unwrap())
}

/// Certificate, key and roots of a Service that has them all.
fn texts(tls: &ServiceTls) -> [&str; 3] {
    assert_eq!(tls.problem, None);
    [&tls.certificates, &tls.key, &tls.roots].map(|pem| std::str::from_utf8(pem).unwrap())
}

#[test]
fn a_service_has_the_certificate_that_it_names() {
    let mut view = view();
    take(&mut view, &service("web", WEB_TLS, "http"));
    let lacking = tls(&view, "shop/web");
    assert_eq!(lacking.problem.as_deref(), Some("there is no Secret shop/web-tls of type kubernetes.io/tls"));
    take(&mut view, &service("plain", "other.io/x: 'y'", "http"));
    assert!(view.directory().service("shop/plain").unwrap().tls.is_none());

    let came = take(&mut view, &secret("web-tls", 1, 1, 1));
    assert_eq!((came.rebuilt, came.changed), (1, true));
    assert_eq!(came.tls_notes, [(Arc::from("shop/web"), vec![])]);
    assert_eq!(texts(&tls(&view, "shop/web")), ["CRT-1", "KEY-1", "CA-1"]);

    take(&mut view, &service("web", "", "http"));
    assert!(view.directory().service("shop/web").unwrap().tls.is_none(), "it is annotated no more");
    assert_eq!(take(&mut view, &secret("web-tls", 2, 2, 2)).rebuilt, 0, "nobody names it");
}

#[test]
fn data_is_base64_and_of_one_type_only() {
    let mut view = view();
    take(&mut view, &service("web", WEB_TLS, "http"));
    let data = "{tls.crt: Q1JULTE=, tls.key: \"S0VZ\\n LTE=\", ca.crt: Q0EtMQ==, other: 5}";
    let written = |kind: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\ntype: {kind}\nmetadata: {{name: web-tls, namespace: shop}}\ndata: {data}"
        )
    };
    take(&mut view, &written("Opaque"));
    assert!(tls(&view, "shop/web").problem.is_some());
    take(&mut view, &written("kubernetes.io/tls"));
    assert_eq!(texts(&tls(&view, "shop/web")), ["CRT-1", "KEY-1", "CA-1"]);
}

#[test]
fn a_changed_secret_touches_its_service_alone() {
    let mut view = view();
    for name in ["web", "api", "db"] {
        take(&mut view, &service(name, &format!("posthouse.io/tls-secret: {name}-tls"), "http"));
        take(&mut view, &secret(&format!("{name}-tls"), 1, 1, 1));
    }
    let before = ["web", "api", "db"].map(|name| tls(&view, &format!("shop/{name}")));
    let changed = view.directory().service("shop/web").unwrap().changed;
    let settled = take(&mut view, &secret("web-tls", 2, 2, 1));
    assert_eq!((settled.rebuilt, settled.changed), (1, true));
    let after = ["web", "api", "db"].map(|name| tls(&view, &format!("shop/{name}")));
    let same: Vec<bool> = before.iter().zip(&after).map(|(before, after)| Arc::ptr_eq(before, after)).collect();
    assert_eq!(same, [false, true, true]);
    assert_eq!(texts(&after[0]), ["CRT-2", "KEY-2", "CA-1"]);
    assert_eq!(view.directory().service("shop/web").unwrap().changed, changed, "its endpoints did not change");

    // What comes again is no news, nor is a change of the Service itself to its certificate.
    let again = take(&mut view, &secret("web-tls", 2, 2, 1));
    assert_eq!((again.rebuilt, again.changed), (0, false));
    take(&mut view, &service("web", WEB_TLS, "grpc"));
    assert!(Arc::ptr_eq(&after[0], &tls(&view, "shop/web")));
    assert_eq!(drop_object(&mut view, Kind::Service, "shop/web").rebuilt, 1);
    assert_eq!(take(&mut view, &secret("web-tls", 3, 3, 3)).rebuilt, 0);
}

#[test]
fn a_good_certificate_stays_until_another_one_is_there() {
    let mut view = view();
    take(&mut view, &service("web", WEB_TLS, "http"));
    take(&mut view, &secret("web-tls", 1, 1, 1));
    let good = tls(&view, "shop/web");
    let kept = |view: &View, settled: Settled, why: &str| {
        assert!(Arc::ptr_eq(&good, &tls(view, "shop/web")), "{why}");
        let [(service, notes)] = &settled.tls_notes[..] else { panic!("{settled:?}") };
        assert_eq!((&**service, notes.join("; ")), ("shop/web", format!("{why}; what was read last is used on")));
    };
    let gone = drop_object(&mut view, Kind::Secret, "shop/web-tls");
    kept(&view, gone, "there is no Secret shop/web-tls of type kubernetes.io/tls");
    let incomplete = take(&mut view, &secret("web-tls", 2, 0, 2));
    kept(&view, incomplete, "Secret shop/web-tls has no tls.key");
    let incomplete = take(&mut view, &secret("web-tls", 2, 2, 0));
    let hint = "put the issuer's certificate there or name a ConfigMap by posthouse.io/tls-ca-configmap";
    kept(&view, incomplete, &format!("Secret shop/web-tls has no ca.crt: {hint}"));
    let renamed = take(&mut view, &service("web", "posthouse.io/tls-secret: other-tls", "http"));
    kept(&view, renamed, "there is no Secret shop/other-tls of type kubernetes.io/tls");
    let settled = take(&mut view, &secret("other-tls", 3, 3, 3));
    assert_eq!(settled.tls_notes, [(Arc::from("shop/web"), vec![])], "and that is mended");
    assert_eq!(texts(&tls(&view, "shop/web")), ["CRT-3", "KEY-3", "CA-3"]);
}

#[test]
fn roots_may_be_in_a_config_map() {
    let mut view = view();
    take(&mut view, &service("web", "posthouse.io/tls-secret: web-tls, posthouse.io/tls-ca-configmap: ca", "http"));
    take(&mut view, &secret("web-tls", 1, 1, 1));
    assert_eq!(tls(&view, "shop/web").problem.as_deref(), Some("there is no ConfigMap shop/ca with a ca.crt"));
    take(&mut view, &config_map("ca", 7));
    assert_eq!(texts(&tls(&view, "shop/web")), ["CRT-1", "KEY-1", "CA-7"]);
    assert_eq!(take(&mut view, &config_map("ca", 8)).rebuilt, 1);
    assert_eq!(texts(&tls(&view, "shop/web")), ["CRT-1", "KEY-1", "CA-8"]);
}

#[test]
fn https_ports_have_backends() {
    let mut view = view();
    take(&mut view, &config_map("ca", 1));
    for protocol in ["http", "tls", ""] {
        take(&mut view, &service("api", "posthouse.io/backend-tls: insecure", protocol));
        assert!(view.directory().service("shop/api").unwrap().backend.is_none(), "{protocol}");
    }
    let settled = take(&mut view, &service("api", "", "https"));
    assert!(backend(&view, "shop/api").problem.as_deref().unwrap().contains("posthouse.io/backend-tls-ca"));
    assert!(settled.tls_notes.iter().all(|(_, notes)| notes.is_empty()), "nobody asked for it");

    take(&mut view, &service("api", "posthouse.io/backend-tls: insecure", "https"));
    let made = backend(&view, "shop/api");
    assert_eq!((made.verify, &*made.hostname, made.problem.clone()), (false, "api.shop.svc", None));
    let ca = "posthouse.io/backend-tls-ca: configmap/ca, posthouse.io/backend-tls-hostname: api.example";
    take(&mut view, &service("api", ca, "https"));
    let good = backend(&view, "shop/api");
    assert_eq!((good.verify, &*good.hostname, &good.roots[..]), (true, "api.example", &b"CA-1"[..]));
    take(&mut view, &secret("ca", 0, 0, 2));
    take(&mut view, &service("api", "posthouse.io/backend-tls-ca: secret/ca", "https"));
    let good = backend(&view, "shop/api");
    assert_eq!((good.verify, &*good.hostname, &good.roots[..]), (true, "api.shop.svc", &b"CA-2"[..]));
    for (annotations, why) in [
        ("posthouse.io/backend-tls: on", "posthouse.io/backend-tls is 'on': write 'verify' or 'insecure'"),
        ("posthouse.io/backend-tls-ca: ca", "is 'ca': write 'configmap/NAME' or 'secret/NAME'"),
        ("posthouse.io/backend-tls-ca: configmap/x", "there is no ConfigMap shop/x with a ca.crt"),
    ] {
        let annotations = annotations.replace(": on", ": 'on'");
        let settled = take(&mut view, &service("api", &annotations, "https"));
        assert!(settled.tls_notes[0].1[0].contains(why), "{settled:?}");
        assert!(Arc::ptr_eq(&good, &backend(&view, "shop/api")));
    }
}

#[test]
fn only_namespaces_that_are_read_have_certificates() {
    let mut view = view();
    view.read_secrets_of(&[Arc::from("shop")]);
    let settled = take(&mut view, &service("web", WEB_TLS, "http").replace("namespace: shop", "namespace: other"));
    let text = "namespace other is not among --tls-secret-namespaces, so Secret other/web-tls is not read";
    assert_eq!(tls(&view, "other/web").problem.as_deref(), Some(text));
    assert_eq!(settled.tls_notes[0].1, [text]);

    let settled = take(&mut view, &service("web", WEB_TLS, "http"));
    assert_eq!(tls(&view, "shop/web").problem.as_deref(), Some("Secret shop/web-tls is not read yet"));
    assert_eq!(settled.tls_notes, [(Arc::from("shop/web"), vec![])], "it may yet come");
    view.secrets_read("shop", Kind::Secret);
    let settled = view.settle();
    assert_eq!(settled.tls_notes[0].1, ["there is no Secret shop/web-tls of type kubernetes.io/tls"]);
}

#[test]
fn nothing_of_a_secret_is_shown_or_written() {
    let mut view = view();
    take(&mut view, &service("web", WEB_TLS, "https"));
    take(&mut view, &secret("web-tls", 1, 1, 1));
    assert_eq!(texts(&tls(&view, "shop/web")), ["CRT-1", "KEY-1", "CA-1"]);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot");
    snapshot::write(&path, &view.objects()).unwrap();
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written.contains("posthouse.io/tls-secret") && written.contains("web-tls"), "{written}");
    let service = view.directory().service("shop/web").unwrap();
    for shown in [written, format!("{service:?}"), format!("{:?}", view.directory())] {
        for hidden in ["CRT-1", "KEY-1", "Secret\"", "[75, 69, 89", "tls.key"] {
            assert!(!shown.contains(hidden), "{hidden} in {shown}");
        }
    }
    let mut context = Context::new(Arc::from("node-a"));
    let parsed = format!("{:?}", manifest::yaml(&secret("web-tls", 1, 1, 1), &mut context));
    assert!(parsed.contains("shop/web-tls") && !parsed.contains("KEY-1") && !parsed.contains("75, 69"), "{parsed}");
    let Ok(Parsed::Object(reduced)) = manifest::yaml(&secret("web-tls", 1, 1, 1), &mut context) else { panic!() };
    assert!(matches!(reduced.object, Some(Object::Material(_))));
}

#[test]
fn what_does_not_fit_is_said_without_quoting_it() {
    let head = "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {name: web-tls, namespace: shop}\n";
    for (body, why) in [
        ("data: HUSH", "its data is no map"),
        ("data: [HUSH, {a: HUSH}]", "its data is no map"),
        ("data: {tls.key: 'HUSH!'}", "its tls.key is no base64"),
        ("data: {tls.key: {HUSH: HUSH}}", "its tls.key is no text"),
        ("data: {tls.key: [HUSH]}", "its tls.key is no text"),
        ("stringData: {tls.key: 5713}", "its tls.key is no text"),
        ("stringData: 5713", "its data is no map"),
    ] {
        let yaml = format!("{head}{body}");
        let json = serde_json::to_string(&serde_norway::from_str::<serde_json::Value>(&yaml).unwrap()).unwrap();
        let mut context = Context::new(Arc::from("node-a"));
        let of_yaml = manifest::yaml(&yaml, &mut context).unwrap_err();
        let of_json = manifest::json(&json, &mut context).unwrap_err();
        let of_list = manifest::json_item(&json, Some(Kind::Secret), &mut context).unwrap_err();
        for unfit in [of_yaml, of_json, of_list] {
            assert_eq!(unfit.error, why, "{body}");
            assert_eq!(unfit.key.unwrap().to_string(), "Secret shop/web-tls");
        }
    }
}
