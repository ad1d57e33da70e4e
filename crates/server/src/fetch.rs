//! The one place that asks other servers for something, and the rules against asking the wrong ones.
//!
//! A client that names an address must not make this server reach what the client cannot: services of this machine and
//! of its network. The name is resolved once, every address that it has is checked, and the connection goes to an
//! address that was checked. Redirects are not followed, because they would need the same checks.

use crate::config::ConfigError;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// The longest time of a request.
const MOST_TIME: Duration = Duration::from_secs(10);
/// The most bytes of an answer that are read.
const MOST_BYTES: u64 = 20 << 20;

/// Which servers may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum FetchPolicy {
    /// None.
    #[default]
    Off,
    /// Those with these names.
    Hosts(Vec<String>),
    /// All that have public addresses.
    Public,
}

impl FromStr for FetchPolicy {
    type Err = ConfigError;

    /// Parses `public`, or names of hosts separated by commas.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if text == "public" {
            return Ok(Self::Public);
        }
        let hosts: Vec<String> = text.split(',').map(|host| host.trim().to_ascii_lowercase()).collect();
        let is_name = |host: &String| {
            !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
        };
        match hosts.iter().find(|host| !is_name(host)) {
            None => Ok(Self::Hosts(hosts)),
            Some(wrong) => Err(ConfigError::FetchHost { given: wrong.clone() }),
        }
    }
}

/// Why a server is not asked, or has not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FetchError {
    /// The address may not be asked.
    #[error("{0}")]
    Refused(&'static str),
    /// There was no answer.
    #[error("{0}")]
    Failed(String),
}

/// What another server has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetched {
    /// The status.
    pub(crate) status: u16,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// Asks other servers.
#[derive(Debug, Clone)]
pub(crate) struct Fetcher {
    policy: FetchPolicy,
    /// True in tests, which have no other servers than their own.
    is_local_allowed: bool,
}

impl Fetcher {
    /// Asks the servers that a policy allows.
    pub(crate) fn new(policy: FetchPolicy) -> Self {
        Self { policy, is_local_allowed: false }
    }

    /// Asks servers of this machine.
    #[cfg(test)]
    pub(crate) fn local() -> Self {
        Self { policy: FetchPolicy::Public, is_local_allowed: true }
    }

    /// Checks an address as far as its text goes.
    ///
    /// # Errors
    /// It may not be asked.
    pub(crate) fn check(&self, url: &str) -> Result<Uri, FetchError> {
        let refused = |why| Err(FetchError::Refused(why));
        if self.policy == FetchPolicy::Off {
            return refused("the operator has not allowed this server to ask others");
        }
        let Ok(uri) = url.parse::<Uri>() else { return refused("it is not an address") };
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return refused("it has no scheme or no host");
        };
        let usual = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return refused("its scheme is neither http nor https"),
        };
        if authority.as_str().contains('@') {
            return refused("it has a user");
        }
        if !self.is_local_allowed && !matches!(authority.port_u16().unwrap_or(usual), 80 | 443) {
            return refused("its port is neither 80 nor 443");
        }
        let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
        match &self.policy {
            FetchPolicy::Hosts(hosts) if !hosts.contains(&host) => {
                refused("its host is not among those that the operator allows")
            }
            _ => Ok(uri),
        }
    }

    /// Posts a body, and returns the answer.
    ///
    /// # Errors
    /// The address may not be asked, or there is no answer.
    pub(crate) fn post(
        &self,
        url: &str,
        headers: &[(&str, String)],
        body: &[u8],
    ) -> Result<Fetched, FetchError> {
        self.ask("POST", url, headers, body)
    }

    /// Gets what is at an address.
    ///
    /// # Errors
    /// The address may not be asked, there is no answer, or its status is not 200.
    pub(crate) fn get(&self, url: &str) -> Result<Vec<u8>, FetchError> {
        let Fetched { status, body } = self.ask("GET", url, &[], b"")?;
        if status == 200 { Ok(body) } else { Err(FetchError::Failed(format!("it has answered {status}"))) }
    }

    fn ask(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, String)],
        body: &[u8],
    ) -> Result<Fetched, FetchError> {
        let uri = self.check(url)?;
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(MOST_TIME))
            .build();
        let resolver = Checked { inner: DefaultResolver::default(), is_local_allowed: self.is_local_allowed };
        let agent = ureq::Agent::with_parts(config, DefaultConnector::new(), resolver);
        let mut request = ureq::http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let request = request.body(body).map_err(|error| FetchError::Failed(error.to_string()))?;
        let sent = match method {
            // Without a body, and so without its length.
            "GET" => agent.run(request.map(|_body| ())),
            _ => agent.run(request),
        };
        let mut response = sent.map_err(|error| match error {
            ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                FetchError::Refused("its host has an address that is not public")
            }
            error => FetchError::Failed(error.to_string()),
        })?;
        let mut body = Vec::new();
        let read = response.body_mut().as_reader().take(MOST_BYTES + 1).read_to_end(&mut body);
        read.map_err(|error| FetchError::Failed(error.to_string()))?;
        if body.len() as u64 > MOST_BYTES {
            return Err(FetchError::Failed("its answer is too long".to_owned()));
        }
        Ok(Fetched { status: response.status().as_u16(), body })
    }
}

/// Resolves names to public addresses only.
#[derive(Debug)]
struct Checked {
    inner: DefaultResolver,
    is_local_allowed: bool,
}

impl Resolver for Checked {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let is_refused = |address: &SocketAddr| !self.is_local_allowed && !is_public(address.ip());
        if found.iter().any(is_refused) {
            // Also if another of its addresses is public: such a name is meant to deceive.
            return Err(ureq::Error::Io(std::io::ErrorKind::PermissionDenied.into()));
        }
        Ok(found)
    }
}

/// Returns true if an address belongs to the public network. Everything is refused that leads, or may be translated, to
/// this machine or a network around it.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let is_shared = a == 100 && (64..128).contains(&b);
    let is_benchmark = a == 198 && (18..20).contains(&b);
    let is_protocol = (a, b, c) == (192, 0, 0) || (a, b, c) == (192, 88, 99);
    !(a == 0
        || ip.is_loopback()
        || ip.is_private()
        || ip.is_link_local()
        || is_shared
        || is_benchmark
        || is_protocol
        || ip.is_documentation()
        || ip.is_multicast()
        || a >= 240)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let [a, b, ..] = ip.segments();
    // Only 2000::/3 is given out. Outside are ::1, v4-mapped and v4-compatible addresses, NAT64 (64:ff9b::/96 and
    // 64:ff9b:1::/48), unique local, link-local and multicast ones.
    let is_given_out = (0x2000..0x4000).contains(&a);
    let is_teredo_or_special = a == 0x2001 && (b < 0x0200 || b == 0x0db8);
    let is_6to4 = a == 0x2002;
    let is_documentation = a == 0x3fff && b < 0x1000;
    is_given_out && !is_teredo_or_special && !is_6to4 && !is_documentation
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    #[test]
    fn only_public_addresses_are_asked() {
        for public in [
            "8.8.8.8",
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for refused in [
            "127.0.0.1",
            "127.255.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "198.18.0.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::8.8.8.8",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
        ] {
            assert!(!is_public(refused.parse().unwrap()), "{refused}");
        }
    }

    #[test]
    fn addresses_are_refused_by_their_text() {
        let public = Fetcher::new(FetchPolicy::Public);
        for url in ["http://example.com", "https://example.com:443/x?y", "http://example.com:80/"] {
            assert!(public.check(url).is_ok(), "{url}");
        }
        for url in [
            "",
            "example.com",
            "ftp://example.com",
            "file:///etc/passwd",
            "http://example.com:8080",
            "https://u:p@example.com",
            "gopher://x",
            "http://",
        ] {
            assert!(public.check(url).is_err(), "{url}");
        }
        assert!(Fetcher::new(FetchPolicy::Off).check("https://example.com").is_err());
        let some = Fetcher::new("hooks.example, b.example".parse().unwrap());
        assert!(
            some.check("https://HOOKS.example/x").is_ok() && some.check("https://hooks.example./x").is_ok()
        );
        for url in ["https://example", "https://hooks.example.evil", "https://evil.hooks.example"] {
            assert!(some.check(url).is_err(), "{url}");
        }
        assert_eq!("public".parse::<FetchPolicy>().unwrap(), FetchPolicy::Public);
        assert!("a b".parse::<FetchPolicy>().is_err() && "".parse::<FetchPolicy>().is_err());
    }

    #[test]
    fn servers_of_this_machine_are_not_reached_by_any_name() {
        let fetcher = Fetcher::new(FetchPolicy::Public);
        for url in [
            "http://127.0.0.1/",
            "http://localhost/",
            "http://[::1]/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://127.1/",
            "http://[::ffff:127.0.0.1]/",
        ] {
            let error = fetcher.post(url, &[], b"x").unwrap_err();
            let is_no_name =
                |why: &str| ["resolve", "not found", "lookup"].iter().any(|part| why.contains(part));
            let is_unknown = matches!(&error, FetchError::Failed(why) if is_no_name(why));
            assert!(matches!(error, FetchError::Refused(_)) || is_unknown, "{url}: {error:?}");
        }
    }

    /// A server that answers once.
    fn server(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer);
        });
        url
    }

    #[test]
    fn what_is_at_an_address_is_read_up_to_a_limit() {
        let url = server(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello!");
        assert_eq!(Fetcher::local().get(&url).unwrap(), b"hello!");
        let gone = server(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        assert!(matches!(Fetcher::local().get(&gone), Err(FetchError::Failed(why)) if why.contains("404")));
        for url in ["http://127.0.0.1/", "http://localhost:80/", "file:///etc/passwd"] {
            assert!(Fetcher::new(FetchPolicy::Public).get(url).is_err(), "{url}");
        }
    }

    #[test]
    fn redirects_are_not_followed() {
        let secret = server(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret");
        let answer = format!("HTTP/1.1 302 Found\r\nlocation: {secret}\r\ncontent-length: 0\r\n\r\n");
        let redirecting = server(Box::leak(answer.into_boxed_str()).as_bytes());
        let fetched = Fetcher::local().post(&redirecting, &[], b"x");
        assert!(fetched.is_ok_and(|fetched| fetched.status == 302 && fetched.body.is_empty()));
    }
}
