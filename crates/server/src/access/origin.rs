//! Rules about hosts and origins. Pure.

use axum::http::{HeaderMap, Method, header};

/// Returns true if a method changes something.
pub(crate) fn is_write(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Returns true if the host of a request is this machine by name. Others may be names that an attacker lets resolve to
/// it.
pub(crate) fn is_local_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) else {
        return false;
    };
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) if port.is_empty() || is_port(port) => return name == "::1",
            _ => return false,
        },
        None => host.split_once(':').map_or(Some(host), |(name, port)| is_number(port).then_some(name)),
    };
    name.is_some_and(|name| name == "127.0.0.1" || name.eq_ignore_ascii_case("localhost"))
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(is_number)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.parse::<u16>().is_ok()
}

/// What a browser says about where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Provenance {
    /// From a page of the origin that the server has itself.
    Same,
    /// From a page elsewhere.
    Foreign,
    /// Not said, as by programs that are no browsers.
    Unknown,
}

/// Where a request comes from. `own` is the origin of the server, such as `https://video.example`; without it, it is
/// that of the host that was asked for, by http.
pub(crate) fn provenance(headers: &HeaderMap, own: Option<&str>) -> Provenance {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let site = text("sec-fetch-site");
    match headers.get(header::ORIGIN) {
        Some(origin) => {
            let asked = text("host").map(|host| format!("http://{host}"));
            let own = own.map(str::to_owned).or(asked);
            let is_own = own.is_some_and(|own| origin.as_bytes().eq_ignore_ascii_case(own.as_bytes()));
            if is_own && site.is_none_or(|site| site != "cross-site") {
                Provenance::Same
            } else {
                Provenance::Foreign
            }
        }
        None => match site {
            Some("same-origin") => Provenance::Same,
            // `none` is a request that the user made, such as by a bookmark.
            Some("none") | None => Provenance::Unknown,
            Some(_) => Provenance::Foreign,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(of: &[(&'static str, &str)]) -> HeaderMap {
        of.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_names_of_this_machine_are_local_hosts() {
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8080"] {
            assert!(is_local_host(&headers(&[("host", host)])), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "localhost:",
            "localhost:x",
            "localhost:99999",
            "0.0.0.0",
            "[::1",
            "[::1]x",
            "[::1]:",
            "[::ffff:127.0.0.1]",
            "user@localhost",
        ] {
            assert!(!is_local_host(&headers(&[("host", host)])), "{host}");
        }
        assert!(!is_local_host(&headers(&[])));
        assert!(!is_local_host(&headers(&[("host", "localhost"), ("host", "evil.example")])));
    }

    #[test]
    fn pages_of_other_origins_are_foreign() {
        let of = |given: &[(&'static str, &str)], own| provenance(&headers(given), own);
        let own = Some("https://video.example");
        assert_eq!(of(&[], own), Provenance::Unknown);
        assert_eq!(of(&[("sec-fetch-site", "none")], own), Provenance::Unknown);
        assert_eq!(of(&[("sec-fetch-site", "same-origin")], own), Provenance::Same);
        assert_eq!(of(&[("origin", "https://video.example")], own), Provenance::Same);
        assert_eq!(
            of(&[("origin", "http://127.0.0.1:80"), ("host", "127.0.0.1:80")], None),
            Provenance::Same
        );
        for foreign in [
            &[("sec-fetch-site", "cross-site")][..],
            &[("sec-fetch-site", "same-site")],
            &[("origin", "null")],
            &[("origin", "http://video.example")],
            &[("origin", "https://video.example:8443")],
            &[("origin", "https://video.example.evil")],
            // The host of the request does not replace that of the configuration.
            &[("origin", "http://evil.example"), ("host", "evil.example")],
            &[("origin", "https://video.example"), ("sec-fetch-site", "cross-site")],
        ] {
            assert_eq!(of(foreign, own), Provenance::Foreign, "{foreign:?}");
        }
    }
}
