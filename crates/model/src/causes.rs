//! Errors in words.

use std::error::Error as StdError;

/// An error of the Kubernetes client with its causes, in one line: hyper's own words are only "client error (Connect)".
#[must_use]
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}
