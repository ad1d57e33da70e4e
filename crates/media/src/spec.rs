//! What an output is, from how it is typed: a path or an address.

use super::standard_output;
use bundle::Error;
use bundle::output_path::identity;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A kind of file that holds one clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileFormat {
    /// H.264 in mp4.
    Mp4,
    /// VP9 in WebM.
    WebM,
    /// H.264 in Matroska.
    Mkv,
    /// An animated GIF: 256 colours a frame.
    Gif,
    /// An animated WebP.
    WebP,
    /// Uncompressed I420 as YUV4MPEG2.
    Y4m,
}

impl FileFormat {
    /// All formats.
    pub const ALL: [Self; 6] = [Self::Mp4, Self::WebM, Self::Mkv, Self::Gif, Self::WebP, Self::Y4m];

    /// The end of the names of its files.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Mp4 => "mp4",
            Self::WebM => "webm",
            Self::Mkv => "mkv",
            Self::Gif => "gif",
            Self::WebP => "webp",
            Self::Y4m => "y4m",
        }
    }

    /// Whether a file that begins like this may be what a run of this format left: whole, or cut anywhere.
    pub(super) fn may_begin(self, head: &[u8]) -> bool {
        let begins =
            |at: usize, mark: &[u8]| head.iter().skip(at).zip(mark).all(|(found, wanted)| found == wanted);
        match self {
            Self::Mp4 => begins(0, b"\0\0\0") && begins(4, b"ftyp"),
            Self::Mkv | Self::WebM => begins(0, b"\x1a\x45\xdf\xa3"),
            Self::Gif => begins(0, b"GIF89a"),
            Self::WebP => begins(0, b"RIFF") && begins(8, b"WEBPVP8X"),
            Self::Y4m => begins(0, b"YUV4MPEG2 W"),
        }
    }

    fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?;
        Self::ALL.into_iter().find(|format| extension.eq_ignore_ascii_case(format.extension()))
    }
}

/// Where a clip goes, as it was asked for. Nothing of it has been looked at yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutputSpec {
    /// A file; its extension says of which format.
    File {
        /// Its name.
        path: PathBuf,
        /// Its format.
        format: FileFormat,
    },
    /// A folder of numbered PNGs: `DIR/`.
    Frames {
        /// The folder.
        folder: PathBuf,
    },
    /// YUV4MPEG2 on standard output: `-`, or one of its paths like `/dev/stdout`.
    Stdout,
    /// A folder with an HLS playlist and its segments: `hls:DIR`.
    Hls {
        /// The folder.
        folder: PathBuf,
    },
    /// An RTMP server that takes a stream: `rtmp://HOST/APP/KEY`.
    Rtmp {
        /// The server and the stream.
        url: String,
    },
    /// An address of this machine from which players can read: `rtsp://HOST:PORT/NAME`.
    Rtsp {
        /// The address to listen at, like `127.0.0.1:8554`.
        address: String,
        /// The name of the stream.
        name: String,
    },
    /// A server that takes a stream by WHIP: `whip:https://HOST/PATH`.
    Whip {
        /// Where the offer goes, `http` or `https`.
        url: String,
        /// What the server knows us by.
        token: Option<Token>,
    },
    /// A window on this machine's screen: `window`.
    Window,
}

/// A bearer token. It is never printed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(String);

impl Token {
    /// A token of visible ASCII characters.
    pub fn new(text: impl Into<String>) -> Option<Self> {
        let text = text.into();
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then_some(Self(text))
    }

    /// It as a header says it.
    #[cfg(feature = "whip")]
    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::new(text).ok_or_else(|| {
            Error::value(
                "--whip-token",
                "what was given",
                "it is no bearer token",
                "use letters, digits and signs",
            )
        })
    }
}

/// The port that RTSP has when none is given; the one of the standard, 554, is root's.
const RTSP_PORT: &str = "8554";

impl OutputSpec {
    /// Whether viewers look at it while it is made, so that it must keep to the clock.
    pub fn is_live(&self) -> bool {
        match self {
            Self::Hls { .. } | Self::Rtmp { .. } | Self::Rtsp { .. } | Self::Whip { .. } | Self::Window => {
                true
            }
            Self::File { .. } | Self::Frames { .. } | Self::Stdout => false,
        }
    }

    /// Whether two outputs are one file, folder or stream, however their paths are spelled.
    pub fn is_same_place(&self, other: &Self) -> bool {
        let places = self.path().zip(other.path());
        let same = places.and_then(|(one, two)| Some(identity(one).ok()? == identity(two).ok()?));
        self == other || same == Some(true)
    }

    /// The file or folder, if it is one.
    fn path(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } => Some(path),
            Self::Frames { folder } | Self::Hls { folder } => Some(folder),
            _ => None,
        }
    }

    /// The same with a token, where it is a WHIP server without one.
    #[must_use]
    pub fn with_token(self, token: Option<&Token>) -> Self {
        match self {
            Self::Whip { url, token: None } => Self::Whip { url, token: token.cloned() },
            other => other,
        }
    }
}

impl FromStr for OutputSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let path = Path::new(text);
        match text {
            "-" => return Ok(Self::Stdout),
            "window" => return Ok(Self::Window),
            _ if standard_output::is_its_path(path) => return Ok(Self::Stdout),
            _ => {}
        }
        if let Some(url) = text.strip_prefix("whip:") {
            return whip(url);
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return match scheme {
                "rtmp" | "rtmps"
                    if rest
                        .split_once('/')
                        .is_some_and(|(host, key)| !host.is_empty() && !key.is_empty()) =>
                {
                    Ok(Self::Rtmp { url: text.into() })
                }
                "rtmp" | "rtmps" => {
                    Err(refused(text, "it names no stream", "write it like rtmp://HOST/APP/KEY"))
                }
                "rtsp" => rtsp(text, rest),
                _ => Err(unknown(text)),
            };
        }
        if let Some(folder) = text.strip_prefix("hls:") {
            return if folder.is_empty() {
                Err(refused(text, "it names no folder", "write it like hls:FOLDER"))
            } else {
                Ok(Self::Hls { folder: folder.into() })
            };
        }
        if text.ends_with('/') {
            return Ok(Self::Frames { folder: path.into() });
        }
        match FileFormat::of(path) {
            Some(format) => Ok(Self::File { path: path.into(), format }),
            None => Err(unknown(text)),
        }
    }
}

fn rtsp(text: &str, rest: &str) -> Result<OutputSpec, Error> {
    let (address, name) = rest.split_once('/').unwrap_or((rest, "clip"));
    let name = if name.is_empty() { "clip" } else { name };
    let port = address.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map(|(_, port)| port);
    if address.is_empty() || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(refused(text, "it names no address", "write it like rtsp://127.0.0.1:8554/clip"));
    }
    let address = if port.is_some() { address.to_owned() } else { format!("{address}:{RTSP_PORT}") };
    Ok(OutputSpec::Rtsp { address, name: name.into() })
}

/// The address may carry the token where others have a user's name, which errors must not repeat.
fn whip(url: &str) -> Result<OutputSpec, Error> {
    let unusable = || refused("whip:…", "it names no server", "write it like whip:https://HOST/PATH");
    let (scheme, rest) = url.split_once("://").ok_or_else(unusable)?;
    let (server, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (token, host) = match server.rsplit_once('@') {
        Some((token, host)) => (Some(Token::new(token).ok_or_else(unusable)?), host),
        None => (None, server),
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if !matches!(scheme, "http" | "https") || host.is_empty() || !host.chars().all(is_plain) {
        return Err(unusable());
    }
    Ok(OutputSpec::Whip { url: format!("{scheme}://{host}{path}"), token })
}

fn refused(text: &str, rule: impl Into<String>, fix: impl Into<String>) -> Error {
    Error::value("--output", format!("`{text}`"), rule, fix)
}

fn unknown(text: &str) -> Error {
    let names: Vec<_> = FileFormat::ALL.iter().map(|format| format!(".{}", format.extension())).collect();
    refused(
        text,
        format!("its name does not end in one of {}", names.join(", ")),
        "name a file like clip.mp4, a folder for PNGs like frames/, `-` for y4m on standard output, hls:FOLDER, \
         rtmp://…, rtsp://…, whip:https://… or window",
    )
}

impl fmt::Display for OutputSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, .. } => write!(f, "{}", path.display()),
            Self::Frames { folder } => write!(f, "{}", folder.display()),
            Self::Stdout => f.write_str("standard output"),
            Self::Hls { folder } => write!(f, "hls:{}", folder.display()),
            Self::Rtmp { url } => f.write_str(url),
            Self::Rtsp { address, name } => write!(f, "rtsp://{address}/{name}"),
            Self::Whip { url, .. } => write!(f, "whip:{url}"),
            Self::Window => f.write_str("window"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> OutputSpec {
        text.parse().unwrap()
    }

    fn report(text: &str) -> String {
        text.parse::<OutputSpec>().unwrap_err().to_string()
    }

    #[test]
    fn files_are_known_by_their_extension_whatever_its_case() {
        for (name, format) in [
            ("clip.mp4", FileFormat::Mp4),
            ("a/clip.MP4", FileFormat::Mp4),
            ("clip.webm", FileFormat::WebM),
            ("my.clip.mkv", FileFormat::Mkv),
            ("c:lip.gif", FileFormat::Gif),
            ("clip.webp", FileFormat::WebP),
            ("clip.y4m", FileFormat::Y4m),
        ] {
            assert_eq!(parsed(name), OutputSpec::File { path: name.into(), format });
        }
    }

    #[test]
    fn a_leftover_is_known_by_how_it_begins() {
        let clips: [(FileFormat, &[u8]); 6] = [
            (FileFormat::Mp4, b"\0\0\0\x1cftypmp42"),
            (FileFormat::Mkv, b"\x1a\x45\xdf\xa3\x01"),
            (FileFormat::WebM, b"\x1a\x45\xdf\xa3\x01"),
            (FileFormat::Gif, b"GIF89a@"),
            (FileFormat::WebP, b"RIFF\x10\0\0\0WEBPVP8X"),
            (FileFormat::Y4m, b"YUV4MPEG2 W64"),
        ];
        for (format, clip) in clips {
            assert!((0..=clip.len()).all(|cut| format.may_begin(&clip[..cut])), "{format:?}");
            for (other, head) in clips.iter().filter(|(_, head)| head[..4] != clip[..4]) {
                assert!(!format.may_begin(head), "{format:?}, {other:?}");
            }
            assert!(
                !format.may_begin(b"mine")
                    && !format.may_begin(b"precious notes")
                    && !format.may_begin(b"RIFF\0\0\0\0WAVEfmt "),
                "{format:?}"
            );
        }
    }

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(parsed("-"), OutputSpec::Stdout);
        assert_eq!(parsed("window"), OutputSpec::Window);
        assert_eq!(parsed("frames/"), OutputSpec::Frames { folder: "frames/".into() });
        assert_eq!(parsed("hls:a/live"), OutputSpec::Hls { folder: "a/live".into() });
        assert_eq!(parsed("rtmp://host/app/key"), OutputSpec::Rtmp { url: "rtmp://host/app/key".into() });
        let rtsp =
            |address: &str, name: &str| OutputSpec::Rtsp { address: address.into(), name: name.into() };
        assert_eq!(parsed("rtsp://127.0.0.1:9000/a"), rtsp("127.0.0.1:9000", "a"));
        assert_eq!(parsed("rtsp://localhost"), rtsp("localhost:8554", "clip"));
        assert_eq!(parsed("rtsp://[::1]/"), rtsp("[::1]:8554", "clip"));
        let whip = |url: &str, token: Option<&str>| OutputSpec::Whip {
            url: url.into(),
            token: token.map(|token| Token::new(token).unwrap()),
        };
        assert_eq!(parsed("whip:http://h:8889/live/whip"), whip("http://h:8889/live/whip", None));
        let secret = parsed("whip:https://s3cret@[::1]?a=b");
        assert_eq!(secret, whip("https://[::1]?a=b", Some("s3cret")));
        assert_eq!(secret.to_string(), "whip:https://[::1]?a=b");
        assert!(!format!("{secret:?}").contains("s3cret"));
        let other = Token::new("other").unwrap();
        assert_eq!(secret.clone().with_token(Some(&other)), secret);
        assert_eq!(parsed("whip:http://h").with_token(Some(&other)), whip("http://h", Some("other")));
        for text in ["rtsp://127.0.0.1:9000/a", "hls:a/live", "clip.mp4", "rtmp://host/app/key", "window"] {
            assert_eq!(parsed(text).to_string(), text);
        }
    }

    #[test]
    fn a_token_is_not_repeated_when_its_address_is_refused() {
        for text in [
            "whip:",
            "whip:s3cret@h/a",
            "whip:ftp://s3cret@h/a",
            "whip:http://s3cret@",
            "whip:http://s\u{e9}@h",
        ] {
            let error = text.parse::<OutputSpec>().unwrap_err().to_string();
            assert!(
                error.starts_with("--output cannot be `whip:…`: ") && !error.contains("s3cret"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_none_of_these_is_refused_with_what_would_do() {
        insta::assert_snapshot!(report("clip.avi"), @"--output cannot be `clip.avi`: its name does not end in one of .mp4, .webm, .mkv, .gif, .webp, .y4m (name a file like clip.mp4, a folder for PNGs like frames/, `-` for y4m on standard output, hls:FOLDER, rtmp://…, rtsp://…, whip:https://… or window)");
        for text in [
            "",
            "clip",
            "mp4",
            ".mp4",
            "frames",
            "hls:",
            "rtmp://host",
            "rtsp://",
            "rtsp://h:x/",
            "ftp://a/b.mp4",
        ] {
            assert!(report(text).starts_with(&format!("--output cannot be `{text}`: ")), "{}", report(text));
        }
    }
}
