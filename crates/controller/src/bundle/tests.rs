use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;
use crate::authority::make;

const DAY: Duration = Duration::from_secs(86_400);

fn at(day: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + DAY * day
}

fn root(day: u32, lifetime: u32) -> CertificateDer<'static> {
    let made = make(at(day), DAY * lifetime).unwrap();
    certificates(made.certificate.as_bytes()).unwrap().remove(0)
}

/// Through the ConfigMap and back, as between two passes.
fn pass(bundle: &Bundle) -> Bundle {
    let mut map = ConfigMap::default();
    assert!(bundle.write(&mut map));
    assert!(!bundle.write(&mut map), "the same again changes nothing");
    let read = Bundle::read(&map);
    assert_eq!(read, *bundle);
    read
}

fn newcomer(bundle: &Bundle, root: &CertificateDer<'_>) -> Option<bool> {
    bundle.newcomer(root).map(|(newcomer, _)| newcomer)
}

#[test]
fn a_root_that_follows_another_stands_beside_it_until_the_last_certificate_has_ended() {
    let (old, new) = (root(0, 90), root(60, 90));
    let first = pass(&Bundle::default().wanted([&old].into_iter(), at(0), DAY));
    assert_eq!(newcomer(&first, &old), Some(false), "nobody trusts anything else");
    assert_eq!(newcomer(&first, &new), None);

    // The second is published before it signs.
    let both = pass(&first.wanted([&old, &new].into_iter(), at(60), DAY));
    assert_eq!(both.len(), 2);
    assert_eq!((newcomer(&both, &old), newcomer(&both, &new)), (Some(false), Some(true)));
    assert_eq!(both.newcomer(&new), Some((true, at(60))));
    assert_ne!(both.id(), first.id());

    // It signs: which one is in use changes nothing for nodes.
    let switched = pass(&both.wanted([&new].into_iter(), at(61), DAY));
    assert_eq!(switched.text(), both.text());
    assert_eq!(switched.id(), both.id());
    let later = pass(&switched.wanted([&new].into_iter(), at(61) + DAY / 2, DAY));
    assert_eq!(later, switched, "the time runs from when the old one was given up, not from each pass");
    let after = pass(&later.wanted([&new].into_iter(), at(62), DAY));
    assert_eq!(after.len(), 1);
    assert_eq!(after.text(), to_pem(&new));
    assert_eq!(newcomer(&after, &new), Some(false));
}

#[test]
fn a_root_that_is_used_again_stays() {
    let (one, two) = (root(0, 90), root(0, 90));
    let first = Bundle::default().wanted([&one].into_iter(), at(0), DAY);
    let other = pass(&first.wanted([&two].into_iter(), at(1), DAY));
    assert_eq!(other.len(), 2);
    let back = pass(&other.wanted([&one].into_iter(), at(1), DAY));
    let later = pass(&back.wanted([&one].into_iter(), at(30), DAY));
    assert_eq!(later.text(), to_pem(&one));
}

#[test]
fn an_expired_root_goes_at_once_unless_it_is_in_use() {
    let (old, new) = (root(0, 10), root(9, 10));
    let both = Bundle::default().wanted([&old, &new].into_iter(), at(9), 5 * DAY);
    assert_eq!(pass(&both.wanted([&new].into_iter(), at(10), 5 * DAY)).len(), 1);
    assert_eq!(pass(&both.wanted([&old, &new].into_iter(), at(30), 5 * DAY)).len(), 2);
}

#[test]
fn what_others_put_there_is_kept_for_a_while_and_what_nobody_can_read_is_not() {
    let (ours, theirs) = (root(0, 90), root(0, 90));
    let mut map = ConfigMap::default();
    Bundle::default().wanted([&ours].into_iter(), at(0), DAY).write(&mut map);
    let text = format!("{}{}", to_pem(&ours), to_pem(&theirs));
    map.data.as_mut().unwrap().insert(BUNDLE_KEY.to_owned(), text);
    let bundle = Bundle::read(&map).wanted([&ours].into_iter(), at(1), DAY);
    assert_eq!(bundle.len(), 2);
    assert_eq!(pass(&bundle.wanted([&ours].into_iter(), at(2), DAY)).len(), 1);

    for data in ["", "hello", "-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n"] {
        let map = ConfigMap {
            metadata: ObjectMeta {
                annotations: Some(BTreeMap::from([(ROOTS_ANNOTATION.to_owned(), "{not json".to_owned())])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(BUNDLE_KEY.to_owned(), data.to_owned())])),
            ..ConfigMap::default()
        };
        let bundle = Bundle::read(&map).wanted([&ours].into_iter(), at(0), DAY);
        assert_eq!(bundle.text(), to_pem(&ours));
    }
}
