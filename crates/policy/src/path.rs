//! A path in the one form in which policies match it and pods get it. Whoever enforces by paths must read a path as the pod
//! will: what servers read in different ways is refused, the rest is put into the form of RFC 3986, section 6.2.2.

use std::borrow::Cow;

/// A path in the form in which policies match it and pods get it: unreserved characters decoded and the hex digits of the
/// others in capitals (RFC 3986, 6.2.2), slashes that follow each other merged, then dot segments resolved, which never leads
/// above the root. Doing it again changes nothing. `*` (of `OPTIONS *`) stays as it is.
///
/// # Errors
/// A path that servers read in different ways: not absolute; with a query, fragment, backslash, control character, byte
/// beyond ASCII or broken percent-encoding; with an encoded slash, backslash, control character or percent sign that begins
/// another encoding; with overlong UTF-8; with `;`, encoded or not, which some servers (Tomcat, Jetty, Spring) cut out of
/// a segment: `/admin;x/` is `/admin/` to them.
pub fn normalise_path(path: &str) -> Result<Cow<'_, str>, &'static str> {
    if path == "*" {
        return Ok(Cow::Borrowed(path));
    }
    if !path.starts_with('/') {
        return Err("the path is not absolute");
    }
    if is_normal(path.as_bytes())? {
        return Ok(Cow::Borrowed(path));
    }
    let normal = rewritten(path.as_bytes());
    // What was decoded may complete another encoding: `%252%65`.
    is_normal(normal.as_bytes())?;
    Ok(Cow::Owned(normal))
}

/// Whether nothing is to be done, which is decided without a copy.
fn is_normal(path: &[u8]) -> Result<bool, &'static str> {
    let mut normal = true;
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        match byte {
            b'%' => {
                normal &= check_encoded(path, at)?;
                at += 3;
                continue;
            }
            b'/' => {
                let rest = path.get(at + 1..).unwrap_or_default();
                let dots = rest.iter().take_while(|byte| **byte == b'.').count();
                let dot_segment = (dots == 1 || dots == 2) && matches!(rest.get(dots), None | Some(b'/'));
                normal &= !dot_segment && rest.first() != Some(&b'/');
            }
            b'\\' => return Err("the path has a backslash"),
            b'?' => return Err("the path has a query"),
            b'#' => return Err("the path has a '#'"),
            b';' => return Err("the path has a ';', which some servers cut out"),
            0..=0x1f | 0x7f => return Err("the path has a control character"),
            0x80.. => return Err("the path has a byte beyond ASCII"),
            _ => {}
        }
        at += 1;
    }
    Ok(normal)
}

/// Whether the percent-encoding at `at` is as it should be; `false`: it is to be decoded or to be written in capitals.
fn check_encoded(path: &[u8], at: usize) -> Result<bool, &'static str> {
    let Some(byte) = encoded(path, at) else {
        return Err("the path has a '%' without two hex digits");
    };
    let next = encoded(path, at + 3);
    match byte {
        b'/' => Err("the path has an encoded slash"),
        b'\\' => Err("the path has an encoded backslash"),
        b';' => Err("the path has an encoded ';', which some servers cut out"),
        0..=0x1f | 0x7f => Err("the path has an encoded control character"),
        // Some servers decode twice.
        b'%' if hex_pair(path, at + 3).is_some() => Err("the path is percent-encoded twice"),
        // Never in UTF-8; servers that decode by hand take %C0%AE for a dot.
        0xc0 | 0xc1 | 0xf5.. => Err("the path has overlong UTF-8"),
        0xe0 if matches!(next, Some(0x80..=0x9f)) => Err("the path has overlong UTF-8"),
        0xf0 if matches!(next, Some(0x80..=0x8f)) => Err("the path has overlong UTF-8"),
        byte if is_unreserved(byte) => Ok(false),
        _ => Ok(!path.get(at + 1..at + 3).unwrap_or_default().iter().any(u8::is_ascii_lowercase)),
    }
}

/// The byte that `%XX` at `at` stands for.
fn encoded(path: &[u8], at: usize) -> Option<u8> {
    (path.get(at) == Some(&b'%')).then(|| hex_pair(path, at + 1))?
}

fn hex_pair(path: &[u8], at: usize) -> Option<u8> {
    let digit = |at: usize| path.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    u8::try_from(digit(at)? * 16 + digit(at + 1)?).ok()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// A path that passed [`is_normal`]'s checks, in normal form.
fn rewritten(path: &[u8]) -> String {
    let mut decoded = String::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        match encoded(path, at) {
            Some(byte) => {
                if is_unreserved(byte) {
                    decoded.push(char::from(byte));
                } else {
                    let digits = path.get(at + 1..at + 3).unwrap_or_default();
                    decoded.push('%');
                    decoded.extend(digits.iter().map(|digit| char::from(digit.to_ascii_uppercase())));
                }
                at += 3;
            }
            None => {
                decoded.push(char::from(byte));
                at += 1;
            }
        }
    }
    let mut out = String::with_capacity(decoded.len());
    let mut segments = decoded.split('/').filter(|segment| !segment.is_empty()).peekable();
    // A path that ends with a slash, or with a dot segment, is that of a folder.
    let mut folder = decoded.ends_with('/');
    while let Some(segment) = segments.next() {
        match segment {
            "." => folder |= segments.peek().is_none(),
            ".." => {
                out.truncate(out.rfind('/').unwrap_or(0));
                folder |= segments.peek().is_none();
            }
            segment => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
    if folder || out.is_empty() {
        out.push('/');
    }
    out
}

/// A path in normal form with its percent-encoding undone, as policies compare it: `/%40a` and `/@a` are one path to servers.
/// Nothing that separates segments is encoded in normal form. Bytes that are no UTF-8 become U+FFFD.
pub(crate) fn decoded(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match encoded(bytes, at) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_take_their_normal_form() {
        for (path, wanted) in [
            ("/", "/"),
            ("*", "*"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("//", "/"),
            ("/a//b///", "/a/b/"),
            ("/./a", "/a"),
            ("/a/.", "/a/"),
            ("/a/./b", "/a/b"),
            ("/a/..", "/"),
            ("/a/../", "/"),
            ("/a/b/..", "/a/"),
            ("/a/../b", "/b"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a/../../b", "/b"),
            ("/a//../b", "/b"),
            ("/%61dmin", "/admin"),
            ("/%2e%2E/a", "/a"),
            ("/a/%2e./b", "/b"),
            ("/a/.%2E", "/"),
            ("/%7Euser", "/~user"),
            ("/a%20b%c3%a9", "/a%20b%C3%A9"),
            ("/a%2Bb+c", "/a%2Bb+c"),
            ("/...", "/..."),
            ("/.../a", "/.../a"),
            ("/.a/..b/c..", "/.a/..b/c.."),
            ("/a./b", "/a./b"),
            ("/100%25", "/100%25"),
            ("/100%25/x", "/100%25/x"),
            ("/pkg.Service/Method", "/pkg.Service/Method"),
            ("/a:b@c!$&'()*,=", "/a:b@c!$&'()*,="),
        ] {
            assert_eq!(normalise_path(path).as_deref(), Ok(wanted), "{path}");
            let borrowed = matches!(normalise_path(path), Ok(Cow::Borrowed(_)));
            assert_eq!(borrowed, path == wanted, "{path} is copied only where it changes");
        }
    }

    #[test]
    fn what_servers_read_in_different_ways_is_refused() {
        for (path, why) in [
            ("", "absolute"),
            ("a", "absolute"),
            ("**", "absolute"),
            ("http://a/", "absolute"),
            ("/a?b", "query"),
            ("/a#b", "'#'"),
            ("/a\\b", "backslash"),
            ("/a%5cb", "backslash"),
            ("/a%2Fb", "encoded slash"),
            ("/a%2fb", "encoded slash"),
            ("/a%00", "control"),
            ("/a%0a", "control"),
            ("/a%7F", "control"),
            ("/a\u{0}", "control"),
            ("/a\tb", "control"),
            ("/a\u{7f}", "control"),
            ("/é", "ASCII"),
            ("/a%", "hex"),
            ("/a%4", "hex"),
            ("/a%zz", "hex"),
            ("/a%+1", "hex"),
            ("/a%25%", "hex"),
            ("/admin;x/", "';'"),
            ("/admin%3bx/", "';'"),
            ("/%252e%252e/a", "twice"),
            ("/%252Fa", "twice"),
            ("/%25252e", "twice"),
            ("/%252%65", "twice"),
            ("/%c0%ae", "overlong"),
            ("/%C1%9C", "overlong"),
            ("/%e0%80%af", "overlong"),
            ("/%F0%80%80%AF", "overlong"),
            ("/%ff", "overlong"),
        ] {
            let refused = normalise_path(path).expect_err(path);
            assert!(refused.contains(why), "{path}: {refused}");
        }
    }

    #[test]
    fn policies_compare_what_the_encoding_stands_for() {
        assert_eq!(decoded("/a%20b%40c"), "/a b@c");
        assert_eq!(decoded("/%C3%A9"), "/é");
        assert_eq!(decoded("/%E9"), "/\u{fffd}");
        assert!(matches!(decoded("/a"), Cow::Borrowed("/a")));
    }

    /// Paths out of the pieces that matter.
    fn any_path() -> impl Strategy<Value = String> {
        let pieces =
            ["/", ".", "..", "%2e", "%2E", "%41", "a", "b", "%20", "%c3%a9", "%25", "4", "~", "+", ";", "%", "é", "?"];
        prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..12)
            .prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_normal_form_is_stable_and_stays_below_the_root(path in any_path()) {
            if let Ok(once) = normalise_path(&path) {
                prop_assert!(matches!(normalise_path(&once), Ok(Cow::Borrowed(again)) if again == once), "{once}");
                prop_assert!(once.starts_with('/') && !once.contains("//"));
                let plain = decoded(&once).into_owned();
                prop_assert!(plain.split('/').all(|segment| segment != "." && segment != ".."), "{plain}");
            }
        }

        #[test]
        fn no_text_at_all_is_a_panic(path in ".{0,40}") {
            let _ = normalise_path(&path).map(|path| decoded(&path).into_owned());
        }
    }
}
