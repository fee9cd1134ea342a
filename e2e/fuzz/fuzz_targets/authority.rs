//! Any text as an authority: no panic, nothing taken that another parser could read as something else.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use posthouse_model::{Authority, Directory, Host};

fuzz_target!(|text: &str| {
    let Ok(authority) = Authority::parse(text) else { return };
    let again = match authority.host {
        Host::Name(name) => {
            assert!(name.parse::<IpAddr>().is_err());
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)));
            // inet_aton takes a number alone, also in octal and hex.
            let last = name.rsplit('.').next().unwrap_or_default();
            assert!(!last.is_empty() && !last.bytes().all(|b| b.is_ascii_digit()));
            name.to_owned()
        }
        Host::Ip(IpAddr::V4(ip)) => ip.to_string(),
        Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
    };
    let again = authority.port.map_or_else(|| again.clone(), |port| format!("{again}:{port}"));
    assert_eq!(Authority::parse(&again), Ok(authority), "written in the usual way it is the same");
    let uri: http::uri::Authority = text.parse().expect("the http crate takes what we take");
    assert_eq!(uri.port_u16(), authority.port);
    assert_eq!(uri.as_str(), text);
    // Nothing is known to an empty directory.
    assert!(Directory::default().resolve(&authority, 80, Some("demo"), "cluster.local").is_err());
});
