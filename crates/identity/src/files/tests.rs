//! Files as Kubernetes, editors and careless scripts write them.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::test_ca::{Ca, Issued, id};

struct Folder {
    folder: tempfile::TempDir,
    files: Files,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let files = Files { certificates: at("tls.crt"), key: at("tls.key"), roots: at("ca.crt") };
        Self { folder, files }
    }

    fn write(&self, issued: &Issued, ca: &Ca) {
        fs::write(&self.files.certificates, &issued.certificate).unwrap();
        fs::write(&self.files.key, &issued.key).unwrap();
        fs::write(&self.files.roots, ca.pem()).unwrap();
    }

    fn look(&self, watch: Watch, now: Instant) -> (Seen, Watch) {
        watch.look(&self.files, &id("node-1"), now)
    }
}

fn good(seen: &Seen) -> bool {
    matches!(seen, Seen::Good(_))
}

fn nothing(seen: &Seen) -> bool {
    matches!(seen, Seen::Nothing)
}

fn fault(seen: Seen) -> String {
    match seen {
        Seen::Fault(error) => error.to_string(),
        Seen::Good(_) | Seen::Nothing => panic!("no fault"),
    }
}

#[test]
fn a_fault_names_flag_and_file() {
    let (folder, ca) = (Folder::new(), Ca::new("ca"));
    let read = || folder.files.read(&id("node-1"), SystemTime::now()).unwrap_err().to_string();
    let path = |name: &str| folder.folder.path().join(name).display().to_string();
    let line = format!(
        "--tls-cert {}: No such file or directory (os error 2); the file must exist and be readable",
        path("tls.crt")
    );
    assert_eq!(read(), line);
    let issued = ca.node("node-1");
    folder.write(&Issued { key: ca.node("node-1").key, ..issued }, &ca);
    let line = "the private key does not belong to the certificate; write both files from one issuance";
    assert_eq!(read(), format!("--tls-key {}: {line}", path("tls.key")));
    folder.write(&ca.node("node-1"), &ca);
    fs::write(&folder.files.roots, "").unwrap();
    let line = "the trust bundle has no certificate; it must have the CA's certificate in PEM";
    assert_eq!(read(), format!("--tls-ca {}: {line}", path("ca.crt")));
    fs::write(&folder.files.roots, vec![b' '; (1 << 20) + 1]).unwrap();
    assert!(read().contains("it has more than 1048576 bytes"), "{}", read());
}

#[test]
fn a_half_written_pair_is_waited_for() {
    let (folder, ca) = (Folder::new(), Ca::new("ca"));
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    folder.write(&ca.node("node-1"), &ca);
    let (seen, watch) = folder.look(Watch::default(), start);
    assert!(good(&seen));
    let (seen, watch) = folder.look(watch, after(1));
    assert!(nothing(&seen), "the same");

    // The new certificate beside the old key, then both.
    let next = ca.node("node-1");
    fs::write(&folder.files.certificates, &next.certificate).unwrap();
    let (seen, watch) = folder.look(watch, after(2));
    assert!(nothing(&seen));
    fs::write(&folder.files.key, &next.key).unwrap();
    let (seen, watch) = folder.look(watch, after(3));
    assert!(good(&seen));

    // One that stays half written is a fault after ten seconds, counted from its own beginning.
    fs::write(&folder.files.certificates, &ca.node("node-1").certificate).unwrap();
    let (seen, watch) = folder.look(watch, after(20));
    assert!(nothing(&seen));
    let (seen, watch) = folder.look(watch, after(29));
    assert!(nothing(&seen));
    let (seen, watch) = folder.look(watch, after(30));
    assert!(fault(seen).contains("--tls-key"));
    // Taken back: that is good again.
    fs::write(&folder.files.certificates, &next.certificate).unwrap();
    let (seen, watch) = folder.look(watch, after(31));
    assert!(good(&seen));
    let (seen, _) = folder.look(watch, after(32));
    assert!(nothing(&seen));
}

/// Mounted Secrets: files are links into `..data`, which is a link to a folder that is swapped by a rename.
#[test]
fn swapped_symlinks_are_seen() {
    let (folder, ca) = (Folder::new(), Ca::new("ca"));
    let root = folder.folder.path();
    let version = |name: &str, issued: &Issued| {
        let at = root.join(name);
        fs::create_dir(&at).unwrap();
        fs::write(at.join("tls.crt"), &issued.certificate).unwrap();
        fs::write(at.join("tls.key"), &issued.key).unwrap();
        fs::write(at.join("ca.crt"), ca.pem()).unwrap();
    };
    version("..2026_01", &ca.node("node-1"));
    symlink("..2026_01", root.join("..data")).unwrap();
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        symlink(Path::new("..data").join(name), root.join(name)).unwrap();
    }
    let (seen, watch) = folder.look(Watch::default(), Instant::now());
    assert!(good(&seen));
    version("..2026_02", &ca.node("node-1"));
    symlink("..2026_02", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    fs::remove_dir_all(root.join("..2026_01")).unwrap();
    let (seen, _) = folder.look(watch, Instant::now());
    assert!(good(&seen));
}

#[tokio::test(start_paused = true)]
async fn the_watch_installs_keeps_and_tells() {
    let (folder, ca) = (Folder::new(), Ca::new("ca"));
    let certificates = Certificates::new(id("node-1"));
    let mut changed = certificates.changed();
    folder.write(&ca.node("node-1"), &ca);
    let watch = tokio::spawn(folder.files.clone().watch(certificates.clone()));
    changed.changed().await.unwrap();
    assert_eq!(certificates.state().certificate.unwrap().source, folder.files.source());
    folder.write(&ca.node("node-1"), &ca);
    changed.changed().await.unwrap();
    assert_eq!(certificates.epoch(), 2);
    fs::remove_file(&folder.files.key).unwrap();
    while certificates.state().rejected.is_none() {
        tokio::time::sleep(LOOK_EACH).await;
    }
    let state = certificates.state();
    assert!(state.rejected.unwrap().error.starts_with("--tls-key "));
    assert_eq!(state.epoch, 2);
    watch.abort();
}
