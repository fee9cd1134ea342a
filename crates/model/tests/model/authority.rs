//! The authority parser: a table of what it takes, and that no name it takes is an address to any other reader.

use std::net::{IpAddr, Ipv4Addr};

use posthouse_model::{Authority, AuthorityError, Host};
use proptest::prelude::*;

#[test]
fn what_is_taken_and_as_what() {
    let long_label = "a".repeat(63);
    let long_name = [&long_label, ".", &long_label, ".", &long_label, ".", &"a".repeat(61)].concat();
    assert_eq!(long_name.len(), 253);
    let name = |host| Ok((Host::Name(host), None));
    let with_port = |host, port| Ok((Host::Name(host), Some(port)));
    let ip = |ip: &str, port| Ok((Host::Ip(ip.parse::<IpAddr>().unwrap()), port));
    let longer_dot = [&long_name, "."].concat();
    let longer = [&long_name, "a"].concat();
    let long_last = ["a.", &long_label, "a"].concat();
    let long_first = [&long_label, "a.b"].concat();
    for (text, want) in [
        ("web", name("web")),
        ("Web.Shop", name("Web.Shop")),
        ("web.shop.svc.cluster.local.", name("web.shop.svc.cluster.local")),
        ("web:8080", with_port("web", 8080)),
        ("web.:1", with_port("web", 1)),
        ("web:65535", with_port("web", 65535)),
        ("_http._tcp.web", name("_http._tcp.web")),
        ("1.web", name("1.web")),
        ("1-2", name("1-2")),
        ("0xfg", name("0xfg")),
        ("10.0.0.1a", name("10.0.0.1a")),
        (&long_name, name(&long_name)),
        (&longer_dot, name(&long_name)),
        ("10.0.0.1", ip("10.0.0.1", None)),
        ("10.0.0.1:80", ip("10.0.0.1", Some(80))),
        ("255.255.255.255", ip("255.255.255.255", None)),
        ("[fd00::1]", ip("fd00::1", None)),
        ("[FD00::1]:443", ip("fd00::1", Some(443))),
        ("[::ffff:1.2.3.4]", ip("::ffff:1.2.3.4", None)),
        ("", Err(AuthorityError::Empty)),
        (".", Err(AuthorityError::Empty)),
        (":80", Err(AuthorityError::Empty)),
        ("a@web", Err(AuthorityError::Userinfo)),
        ("[::1]@web", Err(AuthorityError::Userinfo)),
        ("web:80@", Err(AuthorityError::Userinfo)),
        ("web:", Err(AuthorityError::Port)),
        ("web:0", Err(AuthorityError::Port)),
        ("web:080", Err(AuthorityError::Port)),
        ("web:65536", Err(AuthorityError::Port)),
        ("web:+1", Err(AuthorityError::Port)),
        ("web:8 0", Err(AuthorityError::Port)),
        ("web:80:80", Err(AuthorityError::Port)),
        ("fd00::1", Err(AuthorityError::Port)),
        ("[fd00::1", Err(AuthorityError::Bracket)),
        ("[fd00::1]80", Err(AuthorityError::Bracket)),
        ("[web]", Err(AuthorityError::Bracket)),
        ("[fe80::1%eth0]", Err(AuthorityError::Bracket)),
        ("web..shop", Err(AuthorityError::Host)),
        (".web", Err(AuthorityError::Host)),
        ("web shop", Err(AuthorityError::Host)),
        ("web%20", Err(AuthorityError::Host)),
        ("wéb", Err(AuthorityError::Host)),
        ("10.0.0.01", Err(AuthorityError::Host)),
        ("10.0.0", Err(AuthorityError::Host)),
        ("web.0x1f", Err(AuthorityError::Host)),
        ("web.7", Err(AuthorityError::Host)),
        (&longer, Err(AuthorityError::Host)),
        (&long_last, Err(AuthorityError::Host)),
        (&long_first, Err(AuthorityError::Host)),
    ] {
        assert_eq!(Authority::parse(text).map(|a| (a.host, a.port)), want, "{text}");
    }
}

#[test]
fn the_reference_reads_what_inet_aton_reads() {
    let loopback = Some(Ipv4Addr::LOCALHOST);
    for text in
        ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "017700000001", "0x7f.0.1", "127.0x0.01"]
    {
        assert_eq!(inet_aton(text), loopback, "{text}");
    }
    for text in ["", "127.0.0.1.", "256.0.0.1", "1.2.3.4.5", "0x", "08", "4294967296", "1.2.65536", "a", "1..2", "-1"] {
        assert_eq!(inet_aton(text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn a_name_is_an_address_to_nobody(text in "[0-9a-fxX.]{1,24}|([0-9]{1,10}|0x[0-9a-fA-F]{0,8}|0[0-7]{1,11})(\\.([0-9]{1,5}|0x[0-9a-f]{0,4}|0[0-7]{1,4})){0,4}\\.?") {
        match Authority::parse(&text).map(|a| a.host) {
            Ok(Host::Name(name)) => {
                prop_assert_eq!(inet_aton(name), None);
                prop_assert_eq!(inet_aton(&text), None);
                prop_assert!(name.parse::<IpAddr>().is_err() && text.parse::<IpAddr>().is_err());
            }
            Ok(Host::Ip(ip)) => {
                prop_assert_eq!(text.parse::<IpAddr>(), Ok(ip), "only the one usual spelling");
                prop_assert_eq!(ip.to_string(), text);
            }
            Err(_) => {}
        }
    }

    #[test]
    fn any_text_is_taken_as_what_it_would_be_written_as(text in "\\PC{0,40}|[a-z0-9.:@\\[\\]%_-]{0,40}") {
        if let Ok(authority) = Authority::parse(&text) {
            let host = match authority.host {
                Host::Name(name) => name.to_owned(),
                Host::Ip(IpAddr::V4(ip)) => ip.to_string(),
                Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
            };
            let written = authority.port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
            prop_assert_eq!(Authority::parse(&written), Ok(authority));
        }
    }

    #[test]
    fn usual_authorities_are_taken(host in "[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z]{1,10}){0,4}", port in prop::option::of(1_u16..)) {
        let text = port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
        prop_assert_eq!(Authority::parse(&text), Ok(Authority { host: Host::Name(&host), port }));
    }
}

/// What inet_aton(3) reads: one to four numbers, each decimal, octal or hexadecimal, the last one filling what is left.
fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() > 4 {
        return None;
    }
    let mut address: u64 = 0;
    for (at, part) in parts.iter().enumerate() {
        let (digits, radix) = match part.as_bytes() {
            [b'0', b'x' | b'X', ..] => (part.split_at(2).1, 16),
            [b'0', _, ..] => (part.split_at(1).1, 8),
            _ => (*part, 10),
        };
        if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
            return None;
        }
        let value = u64::from_str_radix(digits, radix).ok()?;
        let last = at + 1 == parts.len();
        let bits = if last { 8 * (4 - at) } else { 8 };
        if value >> bits != 0 {
            return None;
        }
        address |= value << if last { 0 } else { 8 * (3 - at) };
    }
    u32::try_from(address).ok().map(Ipv4Addr::from)
}
