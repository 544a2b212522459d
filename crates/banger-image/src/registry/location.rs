//! Addresses: where requests go, where answers send them on to.

use std::net::IpAddr;

use http::Uri;

/// Whether a host name or address with or without a port means this machine.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = host_of(authority);
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The host without its port; brackets stay.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Whether two addresses lead to the same server, so that what is meant for one may be sent to the
/// other.
pub(super) fn is_same_origin(one: &Uri, other: &Uri) -> bool {
    let origin = |uri: &Uri| {
        let scheme = uri.scheme_str().unwrap_or_default().to_owned();
        let port = uri.port_u16().or(match &*scheme {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        });
        (scheme, uri.host().unwrap_or_default().to_ascii_lowercase(), port)
    };
    origin(one) == origin(other)
}

/// Where a header `Location` in the answer of `base` leads.
pub(super) fn follow(base: &Uri, location: &str) -> Result<Uri, &'static str> {
    let scheme = base.scheme_str().unwrap_or("https");
    let authority = base.authority().map_or("", |authority| authority.as_str());
    let location = location.split('#').next().unwrap_or_default();
    let absolute = if location.contains("://") && !location.starts_with(['/', '?']) {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.is_empty() || location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let dir = base.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        format!("{scheme}://{authority}{dir}/{location}")
    };
    let uri: Uri = absolute.parse().map_err(|_| "that is no address")?;
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if scheme == "http" => {}
        // What was private would not stay so.
        Some("http") => return Err("that is an address without TLS"),
        _ => return Err("that is no address of the web"),
    }
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => Err("that address has a password"),
        Some(_) => Ok(uri),
        None => Err("that is no address"),
    }
}

/// A value for a query, so that it means nothing but itself.
pub(super) fn escaped(value: &str) -> impl std::fmt::Display + '_ {
    const PLAIN: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    percent_encoding::utf8_percent_encode(value, PLAIN)
}

/// The address with one more parameter.
pub(super) fn with_parameter(uri: &Uri, name: &str, value: &str) -> Result<Uri, &'static str> {
    let text = uri.to_string();
    let separator = if uri.query().is_some() { '&' } else { '?' };
    format!("{text}{separator}{name}={}", escaped(value)).parse().map_err(|_| "that is no address")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().expect("an address")
    }

    #[test]
    fn loopback_is_recognised() {
        for host in [
            "localhost",
            "LOCALHOST:5000",
            "127.0.0.1",
            "127.9.9.9:80",
            "[::1]",
            "[::1]:5000",
            "a.localhost:1",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["", "localhost.example", "10.0.0.1", "[::2]", "127.0.0.1.example:80", "notlocalhost"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn origins_are_scheme_host_and_port() {
        let same = |a: &str, b: &str| is_same_origin(&uri(a), &uri(b));
        assert!(same("https://a.example/x", "https://A.example:443/y?z"));
        assert!(same("http://a.example:80", "http://a.example"));
        assert!(!same("https://a.example", "http://a.example"));
        assert!(!same("https://a.example", "https://a.example:5000"));
        assert!(!same("https://a.example", "https://b.a.example"));
    }

    #[test]
    fn locations_are_followed() {
        let cases = [
            ("https://b.example/x?y=z", Ok("https://b.example/x?y=z")),
            ("/v2/up/1?s=2", Ok("https://a.example:5/v2/up/1?s=2")),
            ("//b.example/x", Ok("https://b.example/x")),
            ("?n=2", Ok("https://a.example:5/v2/x?n=2")),
            ("y/z", Ok("https://a.example:5/v2/y/z")),
            ("/x?back=http://c", Ok("https://a.example:5/x?back=http://c")),
            ("https://b.example/x#fragment", Ok("https://b.example/x")),
            ("http://a.example:5/x", Err("that is an address without TLS")),
            ("file:///etc/passwd", Err("that is no address")),
            ("ftp://a.example/x", Err("that is no address of the web")),
            ("https://u:p@b.example/", Err("that address has a password")),
            ("https://b example/", Err("that is no address")),
        ];
        for (location, want) in cases {
            let followed = follow(&uri("https://a.example:5/v2/x?q"), location);
            assert_eq!(followed.map(|uri| uri.to_string()), want.map(str::to_owned), "{location}");
        }
        let plain = follow(&uri("http://a.example/x"), "http://b.example/y").expect("as before");
        assert_eq!(plain, "http://b.example/y");
    }

    #[test]
    fn parameters_are_escaped() {
        let one = with_parameter(&uri("http://a/x"), "digest", "sha256:0&a=b").expect("fine");
        assert_eq!(one, "http://a/x?digest=sha256%3A0%26a%3Db");
        let two = with_parameter(&one, "n", "é").expect("fine");
        assert_eq!(two, "http://a/x?digest=sha256%3A0%26a%3Db&n=%C3%A9");
    }
}
