//! The corpus of spellings: each is stopped, and by what the corpus says.

use posthouse_model::{Authority, Unresolved};

use crate::fixture::{DOMAIN, cluster};

#[test]
fn no_spelling_reaches_what_is_not_in_the_directory() {
    let directory = cluster();
    let text = include_str!("../data/ssrf.txt");
    let mut count = 0;
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with("# ")) {
        let (spelling, verdict) = line.split_once('\t').unwrap_or_else(|| panic!("no verdict in '{line}'"));
        count += 1;
        for (namespace, port) in [(None, 80), (Some("shop"), 80), (Some("shop"), 443), (Some("svc"), 80)] {
            let got = match Authority::parse(spelling) {
                Err(_) => "syntax".to_owned(),
                Ok(authority) => match directory.resolve(&authority, port, namespace, DOMAIN) {
                    Err(Unresolved::Refused { refusal, .. }) => format!("{refusal:?}"),
                    Err(
                        Unresolved::UnknownName { .. }
                        | Unresolved::UnknownAddress { .. }
                        | Unresolved::NeedsNamespace { .. }
                        | Unresolved::UnknownHostname { .. },
                    ) => "unknown".to_owned(),
                    other => panic!("'{spelling}' leads to {other:?}"),
                },
            };
            assert_eq!(got, verdict, "'{spelling}' for a client in {namespace:?}");
        }
    }
    assert!(count >= 250, "the corpus has shrunk to {count}");
}
