//! Restarts with a kept certificate: what is taken up again, what is not, and what the API server is asked for then.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Mutex;
use std::{fs, io};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::task::JoinHandle;

use super::cache::{Unusable, read, write};
use super::*;
use crate::material::{MaterialError, Problem};
use crate::roots::Verdict;
use crate::test_ca::{Ca, id};

const WAIT: Duration = Duration::from_secs(30);

/// An API server with a trust bundle, and a controller that signs whatever is asked for.
struct Api {
    ca: Ca,
    roots: String,
    bundle: &'static str,
    away: bool,
    /// Requests, with the bundle that each names, and the certificates for them.
    requests: Mutex<Vec<(String, String)>>,
}

impl Api {
    fn new(ca: Ca, bundle: &'static str) -> Self {
        Self { roots: ca.pem(), ca, bundle, away: false, requests: Mutex::default() }
    }

    fn named(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|(bundle, _)| bundle.clone()).collect()
    }

    fn sign(&self, body: &[u8]) -> Value {
        let request: CertificateSigningRequest = serde_json::from_slice(body).unwrap();
        let pem = String::from_utf8(request.spec.request.0).unwrap();
        let mut params = CertificateSigningRequestParams::from_pem(&pem).unwrap();
        params.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.params.not_after = OffsetDateTime::now_utc() + time::Duration::hours(24);
        let certificate = params.signed_by(self.ca.issuer()).unwrap().pem();
        let bundle = request.metadata.annotations.unwrap()[BUNDLE_ANNOTATION].clone();
        let mut requests = self.requests.lock().unwrap();
        requests.push((bundle, certificate));
        self.request(requests.len() - 1, None)
    }

    fn request(&self, number: usize, certificate: Option<&str>) -> Value {
        let certificate = certificate.map(|text| serde_json::to_value(ByteString(text.as_bytes().to_vec())).unwrap());
        json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"name": number.to_string()}, "spec": {"request": "", "signerName": SIGNER},
            "status": {"certificate": certificate},
        })
    }

    async fn answer(&self, request: Request<Body>) -> io::Result<Response<Body>> {
        if self.away {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (head, body) = request.into_parts();
        let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
        let object = match (&head.method, path.rsplit('/').next().unwrap()) {
            (_, "configmaps") if query.contains("watch=true") => std::future::pending().await,
            (_, "configmaps") => json!({
                "apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "1"},
                "items": [{
                    "metadata": {"name": BUNDLE, "annotations": {BUNDLE_ANNOTATION: self.bundle}},
                    "data": {BUNDLE_KEY: self.roots},
                }],
            }),
            (&Method::POST, _) => self.sign(&body.collect().await.map_err(io::Error::other)?.to_bytes()),
            (_, name) => {
                let number: usize = name.parse().unwrap();
                let certificate = self.requests.lock().unwrap()[number].1.clone();
                self.request(number, Some(&certificate))
            }
        };
        Ok(Response::new(Body::from(object.to_string().into_bytes())))
    }
}

/// A process, as far as its certificate goes.
struct Process {
    certificates: Certificates,
    task: JoinHandle<()>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Process {
    fn start(api: &Arc<Api>, cache: &Path) -> Self {
        let api = Arc::clone(api);
        let service = tower::service_fn(move |request| {
            let api = Arc::clone(&api);
            async move { api.answer(request).await }
        });
        let client = Client::new(service, "posthouse");
        let certificates = Certificates::new(id("node-a"));
        let timing = Timing {
            look: (Duration::from_millis(1), Duration::from_millis(10)),
            backoff: (Duration::from_millis(10), Duration::from_millis(100)),
            // What the controller is to hear it hears at once.
            spread: Duration::ZERO,
            ..Timing::default()
        };
        let (filled, cache) = (certificates.clone(), cache.to_owned());
        let task = tokio::spawn(async move { keep(client, "posthouse", filled, Some(cache), timing).await });
        Self { certificates, task }
    }

    async fn has(&self, what: &str, is_so: impl Fn(&crate::Current) -> bool) -> Arc<crate::Current> {
        until(what, || self.certificates.current().filter(|current| is_so(current))).await
    }
}

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(WAIT, looking).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// The file, once it has the certificate of `serial`.
async fn kept(path: &Path, serial: &str) -> Kept {
    let of = |kept: &Kept| kept.material(&id("node-a"), SystemTime::now()).unwrap().serial().to_owned();
    until("it is kept", || read(path).unwrap().filter(|kept| of(kept) == serial)).await
}

/// What a process with this certificate would have kept.
fn of(ca: &Ca, node: &str, hours: (i64, i64), told: &str) -> Kept {
    let now = OffsetDateTime::now_utc();
    let issued = ca.node_valid(node, now + time::Duration::hours(hours.0), now + time::Duration::hours(hours.1));
    Kept {
        chain: issued.certificate.trim().into(),
        key: issued.key.trim().to_owned(),
        roots: ca.pem().trim().to_owned(),
        told: (!told.is_empty()).then(|| told.to_owned()),
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn a_restart_without_the_api_server_has_the_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("identity.pem");
    let api = Arc::new(Api::new(Ca::new("ca"), "one"));
    let first = Process::start(&api, &file);
    let issued = first.has("a certificate", |_| true).await;
    assert_eq!(issued.source, SOURCE);
    assert_eq!(kept(&file, issued.material.serial()).await.told.as_deref(), Some("one"));
    assert_eq!(mode(&file), 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no half file is left");
    drop(first);

    let away = Arc::new(Api { away: true, ..Api::new(Ca::new("of nobody"), "none") });
    let second = Process::start(&away, &file);
    let taken = second.has("the kept certificate", |_| true).await;
    assert!(taken.material.same_as(&issued.material));
    assert_eq!(taken.source, format!("cache {}", file.display()));
    assert_eq!(second.certificates.state().certificate.unwrap().source, taken.source, "/identity says so");
    until("a word of the API server", || second.certificates.state().rejected).await;
    assert!(second.certificates.current().unwrap().material.same_as(&issued.material), "it stays");
}

#[tokio::test]
async fn one_past_its_half_life_is_renewed_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("identity.pem");
    let api = Api::new(Ca::new("ca"), "one");
    let old = of(&api.ca, "node-a", (-20, 4), "one");
    let serial = old.material(&id("node-a"), SystemTime::now()).unwrap().serial().to_owned();
    write(&file, &old).unwrap();
    let api = Arc::new(api);
    let process = Process::start(&api, &file);
    let new = process.has("a renewal", |current| current.material.serial() != serial).await;
    assert_eq!(new.epoch, 2, "the kept one was in use until then");
    assert_eq!(api.named(), ["one"]);
    kept(&file, new.material.serial()).await;
}

/// New roots are taken up with the kept certificate, and only such as the controller was not told of are a reason to ask.
#[tokio::test]
async fn one_before_its_half_life_is_used_on_with_the_roots_of_now() {
    for (told, asked) in [("two", false), ("one", true), ("", true)] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("identity.pem");
        let mut api = Api::new(Ca::new("ca"), "two");
        let fresh = of(&api.ca, "node-a", (-1, 23), told);
        let serial = fresh.material(&id("node-a"), SystemTime::now()).unwrap().serial().to_owned();
        write(&file, &fresh).unwrap();
        api.roots.push_str(&Ca::new("next").pem());
        let api = Arc::new(api);
        let process = Process::start(&api, &file);
        if asked {
            let new = process.has("a new one", |current| current.material.serial() != serial).await;
            assert_eq!((new.epoch, api.named()), (3, vec!["two".to_owned()]), "kept, new roots, new certificate");
            assert_eq!(kept(&file, new.material.serial()).await.told.as_deref(), Some("two"));
        } else {
            let current = process.has("the new roots", |current| current.material.roots().count() == 2).await;
            assert_eq!((current.material.serial(), current.epoch), (serial.as_str(), 2));
            until("they are kept", || read(&file).unwrap().filter(|kept| kept.roots.contains(api.roots.trim()))).await;
            assert_eq!(api.named(), [""; 0]);
        }
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_or_written_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("identity.pem");
    fs::write(&file, "rubbish").unwrap();
    let api = Arc::new(Api::new(Ca::new("ca"), "one"));
    let process = Process::start(&api, &file);
    let issued = process.has("a certificate", |_| true).await;
    assert_eq!((issued.epoch, issued.source.as_str()), (1, SOURCE));
    until("it takes the place", || read(&file).ok().flatten()).await;
    assert_eq!(mode(&file), 0o600);

    let process = Process::start(&api, &folder.path().join("no/such/identity.pem"));
    process.has("a certificate", |_| true).await;
    assert!(!folder.path().join("no").exists());
}

#[test]
fn what_is_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("identity.pem");
    assert!(read(&file).unwrap().is_none());
    let ca = Ca::new("ca");
    // What was left behind: an open file, and a link to somebody else's in the way of the new one.
    let other = folder.path().join("other");
    fs::write(&other, "other").unwrap();
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    symlink(&other, folder.path().join("identity.pem.new")).unwrap();
    for (told, again) in [("0123abc", Some("0123abc")), ("", None), ("a\nb", None), ("a b", None)] {
        let one = of(&ca, "node-a", (-1, 1), told);
        write(&file, &one).unwrap();
        let found = read(&file).unwrap().unwrap();
        assert!((&found.chain, &found.key, &found.roots) == (&one.chain, &one.key, &one.roots), "{told:?}");
        assert_eq!(found.told.as_deref(), again, "{told:?}: one that is no name is forgotten");
        found.material(&id("node-a"), SystemTime::now()).unwrap();
    }
    assert_eq!(mode(&file), 0o600);
    assert_eq!(fs::read_to_string(&other).unwrap(), "other");
    let large = Kept { roots: "x".repeat(256 << 10), ..of(&ca, "node-a", (-1, 1), "") };
    assert!(write(&file, &large).unwrap_err().to_string().contains("bytes"));
    assert!(read(&file).unwrap().is_some(), "the one before stays");
}

#[test]
fn a_file_that_others_may_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("identity.pem");
    write(&file, &of(&Ca::new("ca"), "node-a", (-1, 1), "")).unwrap();
    for open in [0o640, 0o604, 0o660, 0o620, 0o602, 0o644] {
        fs::set_permissions(&file, fs::Permissions::from_mode(open)).unwrap();
        let why = read(&file).err().unwrap();
        assert!(matches!(why, Unusable::Open(mode) if mode == open), "{open:o}: {why}");
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
    assert!(read(&file).unwrap().is_some());
    // Of another user: given away by root, or one of root's.
    let mut theirs = file.clone();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&file, Some(1), None).unwrap();
    } else {
        theirs = "/etc/passwd".into();
    }
    assert!(matches!(read(&theirs), Err(Unusable::Owner { .. })));

    let link = folder.path().join("link");
    symlink(&file, &link).unwrap();
    assert!(matches!(read(&link), Err(Unusable::NoFile)));
    assert!(matches!(read(folder.path()), Err(Unusable::NoFile)));
}

#[tokio::test]
async fn a_foreign_old_or_broken_one_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("identity.pem");
    let cache = Cache::new(file.clone());
    let ca = Ca::new("ca");
    let verdict = |why: Unusable| match why {
        Unusable::Content(MaterialError { problem: Problem::Certificate { verdict, .. }, .. }) => verdict,
        other => panic!("{other}"),
    };
    for (node, hours, wrong) in
        [("node-b", (-1, 1), "OtherIdentity"), ("node-a", (-2, -1), "Expired"), ("node-a", (1, 2), "NotYetValid")]
    {
        write(&file, &of(&ca, node, hours, "")).unwrap();
        let found = verdict(cache.read(&id("node-a")).await.err().unwrap());
        assert!(format!("{found:?}").starts_with(wrong), "{wrong}: {found:?}");
    }
    let good = of(&ca, "node-a", (-1, 1), "one");
    write(&file, &Kept { roots: Ca::new("ca").pem(), ..good.clone() }).unwrap();
    let found = verdict(cache.read(&id("node-a")).await.err().unwrap());
    assert!(matches!(found, Verdict::UnknownIssuer(_) | Verdict::Chain(_)), "{found:?}");
    write(&file, &Kept { key: of(&ca, "node-a", (-1, 1), "").key, ..good.clone() }).unwrap();
    let why = cache.read(&id("node-a")).await.err().unwrap();
    assert!(matches!(&why, Unusable::Content(MaterialError { problem: Problem::KeyMismatch, .. })), "{why}");

    write(&file, &good).unwrap();
    assert!(cache.read(&id("node-a")).await.unwrap().is_some(), "so it is their faults that count");
    let whole = fs::read(&file).unwrap();
    for length in (0..whole.len() - 10).step_by(13) {
        fs::write(&file, &whole[..length]).unwrap();
        let why = cache.read(&id("node-a")).await.err().unwrap();
        assert!(matches!(why, Unusable::Broken | Unusable::Content(_)), "{length} bytes: {why}");
        assert!(!why.to_string().contains("-----BEGIN PRIVATE KEY-----\n"), "{why}");
    }
    fs::write(&file, [0xff; 100]).unwrap();
    assert!(matches!(cache.read(&id("node-a")).await, Err(Unusable::Broken)));
    fs::write(&file, vec![b'x'; (256 << 10) + 1]).unwrap();
    assert!(matches!(cache.read(&id("node-a")).await, Err(Unusable::Large)));
}

#[test]
fn half_life_is_counted_from_the_certificates_own_times() {
    let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    for _ in 0..100 {
        let at = half_life(begin, begin + Duration::from_secs(2000)).duration_since(begin).unwrap();
        assert!((900..=1000).contains(&at.as_secs()), "{at:?}");
    }
    assert_eq!(half_life(begin, begin - Duration::from_secs(1)), begin, "nonsense is renewed at once");
}
