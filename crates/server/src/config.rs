//! The configuration of a server, parsed and checked before anything is opened.

use crate::access::tokens::Tokens;
use crate::fetch::FetchPolicy;
use crate::loras::ServedLoras;
use crate::screening::{FrameClassifier, Screen};
use axum::http::HeaderValue;
use bundle::units::ByteCount;
use bundle::{Diagnose, Report};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// The configuration of a server.
#[derive(Debug)]
pub struct Config {
    /// The address to listen on. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The folder of the queue, the clips, the tokens and the keys. It is absolute.
    pub data: PathBuf,
    /// The bundles, each with the name that clients use. The first is the default.
    pub bundles: Vec<(String, PathBuf)>,
    /// Other names of models, in the order in which they are tried.
    pub aliases: Vec<Alias>,
    /// The address that clients reach the server at, which links are built from.
    pub public_url: Option<PublicUrl>,
    /// Origins whose pages may read answers.
    pub cors: Vec<String>,
    /// The folder of files of initial noise that clients may name.
    pub latents: Option<PathBuf>,
    /// The LoRAs that clients may name.
    pub loras: Option<ServedLoras>,
    /// True if answers may name paths of this machine.
    pub allow_paths: bool,
    /// Which other servers may be asked.
    pub fetch: FetchPolicy,
    /// Disk space for the text states of prompts that were encoded; nothing is kept if it is 0.
    pub text_cache: ByteCount,
    /// True if a request that asks for a finished clip again is answered with that clip.
    pub result_cache: bool,
    /// Bounds.
    pub limits: Limits,
    /// What can refuse texts.
    pub screen: Arc<dyn Screen>,
    /// What can refuse frames.
    pub classifier: Option<Arc<dyn FrameClassifier>>,
}

/// Bounds of a server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Jobs that may wait or run.
    pub queue: usize,
    /// Connections at a time. Others wait to be accepted.
    pub connections: usize,
    /// Bytes of a body that is not an upload.
    pub body: usize,
    /// How long the headers of a request may take, and how long a connection may be idle.
    pub headers: Duration,
    /// How long a body may take.
    pub body_time: Duration,
    /// How long a client may take no byte of an answer.
    pub stalled: Duration,
    /// How long the rest of a body is awaited whose request was answered before it was read.
    pub rest: Duration,
    /// How long requests may go on after the server was asked to end.
    pub drain: Duration,
    /// The most frames of a clip.
    pub frames: usize,
    /// The longest side of a clip in pixels.
    pub side: usize,
    /// The most steps of a clip.
    pub steps: usize,
    /// Bytes of an uploaded file.
    pub upload: usize,
    /// The longest side of an uploaded picture in pixels.
    pub upload_side: u32,
    /// The longest time of an uploaded sound.
    pub upload_sound: Duration,
    /// Uploads that a token may have at a time.
    pub uploads: usize,
    /// Bytes that they may take.
    pub upload_quota: u64,
    /// Clips that may be watched live at a time.
    pub live: usize,
    /// Bundles with LoRAs that are kept of each bundle.
    pub lora_bundles: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue: 1000,
            connections: 4096,
            body: 1 << 20,
            headers: Duration::from_secs(15),
            body_time: Duration::from_secs(30),
            stalled: Duration::from_secs(30),
            rest: Duration::from_secs(10),
            drain: Duration::from_secs(10),
            frames: 481,
            side: 2048,
            steps: 200,
            upload: 64 << 20,
            upload_side: 8192,
            upload_sound: Duration::from_secs(600),
            uploads: 100,
            upload_quota: 1 << 30,
            live: 4,
            lora_bundles: 16,
        }
    }
}

impl Config {
    /// Checks what does not depend on files.
    ///
    /// # Errors
    /// A name is used twice, or an alias names no bundle.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (index, (name, _)) in self.bundles.iter().enumerate() {
            if self.bundles.iter().take(index).any(|(other, _)| other == name) {
                return Err(ConfigError::SameName { name: name.clone() });
            }
        }
        match self.aliases.iter().find(|alias| self.bundles.iter().all(|(name, _)| *name != alias.bundle)) {
            Some(alias) => Err(ConfigError::NoBundle {
                alias: alias.to_string(),
                names: self.bundles.iter().map(|(name, _)| name.clone()).collect(),
            }),
            None => Ok(()),
        }
    }

    /// Returns true if requests need no token: there are none, and only this machine can connect.
    pub fn is_open(&self, tokens: &Tokens) -> bool {
        self.listen.ip().is_loopback() && !tokens.are_used()
    }

    /// The origin of the pages of this server, as browsers send it, if the public address is known.
    pub fn origin(&self) -> Option<&str> {
        self.public_url.as_ref().map(|url| url.origin())
    }

    /// Returns true if pages of an origin may read answers.
    pub fn allows_origin(&self, origin: &HeaderValue) -> bool {
        self.cors.iter().any(|allowed| origin.as_bytes() == allowed.as_bytes())
    }

    /// Returns true if clients reach the server by TLS, so that cookies are for TLS only.
    pub fn is_secure(&self) -> bool {
        self.public_url.as_ref().is_some_and(|url| url.origin().starts_with("https://"))
    }
}

/// Another name of a model: a pattern in which `*` stands for any text, and the name of a bundle. `PATTERN=BUNDLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    pattern: String,
    /// The name of the bundle.
    pub bundle: String,
}

impl Alias {
    /// Returns true if a name matches the pattern.
    ///
    /// ```
    /// use server::Alias;
    ///
    /// let alias: Alias = "wan2.2-*-plus=a14b".parse()?;
    /// assert!(alias.matches("wan2.2-t2v-plus"));
    /// assert!(!alias.matches("wan2.2-plus"));
    /// # Ok::<(), server::ConfigError>(())
    /// ```
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.pattern.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else { return rest.is_empty() };
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

impl std::fmt::Display for Alias {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.pattern, self.bundle)
    }
}

impl FromStr for Alias {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text.rsplit_once('=') {
            Some((pattern, bundle)) if !pattern.is_empty() && !bundle.is_empty() => {
                Ok(Self { pattern: pattern.to_owned(), bundle: bundle.to_owned() })
            }
            _ => Err(ConfigError::Alias { given: text.to_owned() }),
        }
    }
}

/// The address that clients reach a server at: `http` or `https`, a host, and optionally a port and a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    text: String,
    origin: usize,
}

impl PublicUrl {
    /// The address of a path, which begins with a slash.
    pub fn with(&self, path: &str) -> String {
        format!("{}{path}", self.text)
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> &str {
        self.text.get(..self.origin).unwrap_or(&self.text)
    }

    /// The address of a server that listens somewhere and has no other.
    pub fn of_listener(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            // Nobody can connect to these.
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            ip => ip,
        };
        let text = format!("http://{}", SocketAddr::new(ip, address.port()));
        Self { origin: text.len(), text }
    }
}

impl FromStr for PublicUrl {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let refused = |why| Err(ConfigError::PublicUrl { given: text.to_owned(), why });
        let text = text.trim_end_matches('/');
        let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else {
            return refused("it must begin with http:// or https://");
        };
        if text.contains(['?', '#', '@', ' ', '\\']) || text.chars().any(char::is_control) {
            return refused("it has no query, fragment, user or spaces");
        }
        let host = rest.split('/').next().unwrap_or_default();
        if host.is_empty() || host.parse::<axum::http::uri::Authority>().is_err() {
            return refused("it has no host");
        }
        Ok(Self { origin: text.len() - rest.len() + host.len(), text: text.to_owned() })
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Two bundles have one name.
    SameName {
        /// The name.
        name: String,
    },
    /// An alias names no bundle.
    NoBundle {
        /// The alias.
        alias: String,
        /// The names of the bundles.
        names: Vec<String>,
    },
    /// A text is no alias.
    Alias {
        /// The text.
        given: String,
    },
    /// A text is not the name of a host.
    FetchHost {
        /// The text.
        given: String,
    },
    /// A text is no public address.
    PublicUrl {
        /// The text.
        given: String,
        /// The problem.
        why: &'static str,
    },
}

bundle::display_as_report!(ConfigError);

impl Diagnose for ConfigError {
    fn report(&self) -> Report {
        match self {
            Self::SameName { name } => Report::bad_input(
                format!("two bundles are named {name}"),
                "clients choose a bundle by its name",
                "give one of them as NAME=DIR with another name",
            ),
            Self::NoBundle { alias, names } => Report::bad_input(
                format!("the alias {alias} leads nowhere"),
                format!("the bundles are {}", names.join(", ")),
                "name one of them after the last `=`",
            ),
            Self::Alias { given } => Report::bad_input(
                format!("`{given}` is no alias"),
                "an alias is a pattern and the name of a bundle",
                "write PATTERN=BUNDLE, such as `wan2.2-t2v-*=a14b` or `*=mini`",
            ),
            Self::FetchHost { given } => Report::bad_input(
                format!("`{given}` is not the name of a host"),
                "only servers that are named are asked, or all public ones",
                "write `public`, or names such as hooks.example, separated by commas",
            ),
            Self::PublicUrl { given, why } => Report::bad_input(
                format!("`{given}` cannot be the public address"),
                *why,
                "write it as clients see it, such as https://video.example",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_whole_names() {
        let matches =
            |pattern: &str, name: &str| format!("{pattern}=b").parse::<Alias>().unwrap().matches(name);
        for (pattern, name) in [
            ("*", ""),
            ("*", "x"),
            ("sora-*", "sora-2"),
            ("*wan*", "wan2.2"),
            ("a*b*c", "a-b-b-c"),
            ("a=b*", "a=bc"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("sora", "sora-2"), ("sora-*", "my-sora-2"), ("a*a", "a"), ("a*b*c", "a-c")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        for wrong in ["", "=", "a=", "=b", "a"] {
            assert!(wrong.parse::<Alias>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_without_stars_matches_itself_only(name in "[a-z.0-9-]{1,12}", other in "[a-z.0-9-]{1,12}") {
            let alias: Alias = format!("{name}=b").parse().unwrap();
            prop_assert!(alias.matches(&name));
            prop_assert_eq!(alias.matches(&other), name == other);
        }
    }

    #[test]
    fn the_public_address_has_an_origin() {
        let url: PublicUrl = "https://video.example:8443/rushes/".parse().unwrap();
        assert_eq!(url.origin(), "https://video.example:8443");
        assert_eq!(url.with("/media/x"), "https://video.example:8443/rushes/media/x");
        for wrong in [
            "",
            "video.example",
            "ftp://a",
            "https://",
            "https:///x",
            "https://a?b",
            "https://u@a",
            "https://a b",
        ] {
            assert!(wrong.parse::<PublicUrl>().is_err(), "{wrong}");
        }
        let of = |text: &str| PublicUrl::of_listener(text.parse().unwrap()).with("/x");
        assert_eq!(of("0.0.0.0:8000"), "http://127.0.0.1:8000/x");
        assert_eq!(of("[::1]:8000"), "http://[::1]:8000/x");
    }
}
