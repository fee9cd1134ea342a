//! The corpus of spellings: each is stopped, and by what the corpus says.

use posthouse_model::{Authority, Unresolved};

use crate::corpus;
use crate::fixture::{DOMAIN, cluster};

#[test]
fn no_spelling_reaches_what_is_not_in_the_directory() {
    let directory = cluster();
    for entry in corpus::over("request") {
        let spelling = entry.spelling;
        for (namespace, port) in [(None, 80), (Some("shop"), 80), (Some("shop"), 443), (Some("svc"), 80)] {
            let got = match Authority::parse(spelling) {
                Err(_) => "syntax".to_owned(),
                Ok(authority) => match directory.resolve(&authority, port, namespace, DOMAIN) {
                    Err(Unresolved::Refused { refusal, .. }) => format!("{refusal:?}"),
                    Err(
                        Unresolved::UnknownName { .. }
                        | Unresolved::NeedsNamespace { .. }
                        | Unresolved::UnknownHostname { .. }
                        | Unresolved::UnknownPort { .. },
                    ) => "unknown".to_owned(),
                    // Which of them are the cluster's own, only the egress list asks.
                    Err(Unresolved::UnknownAddress { .. }) if entry.verdict("model") == "unknown" => {
                        "unknown".to_owned()
                    }
                    Err(Unresolved::UnknownAddress { .. }) => "outside".to_owned(),
                    other => panic!("'{spelling}' leads to {other:?}"),
                },
            };
            assert_eq!(got, entry.verdict("model"), "'{spelling}' for a client in {namespace:?}");
        }
    }
}
