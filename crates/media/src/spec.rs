//! Output specifications, parsed from a path or an address.

use bundle::output_path::identity;
use bundle::{Error, Field};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A file format for one clip.
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

    /// The file extension, without the dot.
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

    /// Returns true if `head` may be the start of a file of this format, complete or truncated.
    pub(super) fn matches_head(self, head: &[u8]) -> bool {
        let matches =
            |at: usize, magic: &[u8]| head.iter().skip(at).zip(magic).all(|(found, wanted)| found == wanted);
        match self {
            Self::Mp4 => matches(0, b"\0\0\0") && matches(4, b"ftyp"),
            Self::Mkv | Self::WebM => matches(0, b"\x1a\x45\xdf\xa3"),
            Self::Gif => matches(0, b"GIF89a"),
            Self::WebP => matches(0, b"RIFF") && matches(8, b"WEBPVP8X"),
            Self::Y4m => matches(0, b"YUV4MPEG2 W"),
        }
    }

    fn from_extension(path: &Path) -> Option<Self> {
        let extension = path.extension()?;
        Self::ALL.into_iter().find(|format| extension.eq_ignore_ascii_case(format.extension()))
    }
}

/// An output as the user names it. Parsing does not access the file system or the network.
///
/// ```
/// use media::{FileFormat, OutputSpec};
///
/// let file: OutputSpec = "clips/cat.mp4".parse()?;
/// assert_eq!(file, OutputSpec::File { path: "clips/cat.mp4".into(), format: FileFormat::Mp4 });
/// assert_eq!("frames/".parse::<OutputSpec>()?, OutputSpec::Frames { folder: "frames/".into() });
/// let stream: OutputSpec = "rtsp://127.0.0.1/cat".parse()?;
/// assert_eq!(stream.to_string(), "rtsp://127.0.0.1:8554/cat");
/// assert!(stream.is_live());
/// let error = "cat.avi".parse::<OutputSpec>().unwrap_err();
/// assert!(error.to_string().contains(".mp4, .webm, .mkv"));
/// # Ok::<(), bundle::Error>(())
/// ```
/// In files it is the text that a user writes; the token of a `whip:` address is not written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum OutputSpec {
    /// A file. The extension selects the format.
    File {
        /// The path.
        path: PathBuf,
        /// The format.
        format: FileFormat,
    },
    /// A folder of numbered PNGs: `DIR/`.
    Frames {
        /// The folder.
        folder: PathBuf,
    },
    /// YUV4MPEG2 on standard output: `-`, or a path like `/dev/stdout`.
    Stdout,
    /// A folder with an HLS playlist and its segments: `hls:DIR`.
    Hls {
        /// The folder.
        folder: PathBuf,
    },
    /// A stream to an RTMP server: `rtmp://HOST/APP/KEY`.
    Rtmp {
        /// The URL of server and stream.
        url: String,
    },
    /// An RTSP server on this machine: `rtsp://HOST:PORT/NAME`.
    Rtsp {
        /// The address to listen on, like `127.0.0.1:8554`.
        address: String,
        /// The name of the stream.
        name: String,
    },
    /// A stream to a WHIP server: `whip:https://HOST/PATH`.
    Whip {
        /// The endpoint, `http` or `https`.
        url: String,
        /// The bearer token of the client.
        token: Option<Token>,
    },
    /// A window on this machine's screen: `window`.
    Window,
}

/// A bearer token. `Debug` does not print it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(String);

impl Token {
    /// Returns `None` unless the text is one or more visible ASCII characters.
    pub fn new(text: impl Into<String>) -> Option<Self> {
        let text = text.into();
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then_some(Self(text))
    }

    /// The value of an `Authorization` header.
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
                Field::WhipToken,
                "the given text",
                "it is not a bearer token",
                "use letters, digits and ASCII punctuation",
            )
        })
    }
}

/// The default RTSP port. Binding the port of the standard, 554, requires root.
const RTSP_PORT: &str = "8554";
/// The paths of standard output on Linux.
const STANDARD_OUTPUT_PATHS: [&str; 3] = ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

impl OutputSpec {
    /// Returns true for a stream to a server whose protocol has no place for the AI mark. GStreamer writes only the title
    /// into the metadata of RTMP, and WHIP has no metadata.
    pub fn loses_mark(&self) -> bool {
        matches!(self, Self::Rtmp { .. } | Self::Whip { .. })
    }

    /// Returns true if viewers watch the output while it is written, so that it is paced in real time.
    pub fn is_live(&self) -> bool {
        match self {
            Self::Hls { .. } | Self::Rtmp { .. } | Self::Rtsp { .. } | Self::Whip { .. } | Self::Window => {
                true
            }
            Self::File { .. } | Self::Frames { .. } | Self::Stdout => false,
        }
    }

    /// Returns true if two outputs are the same file, folder or stream, even if their paths are spelled differently.
    pub fn is_same_destination(&self, other: &Self) -> bool {
        let paths = self.path().zip(other.path());
        let same = paths.and_then(|(one, two)| Some(identity(one).ok()? == identity(two).ok()?));
        self == other || same == Some(true)
    }

    /// The path of a file or folder.
    fn path(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } => Some(path),
            Self::Frames { folder } | Self::Hls { folder } => Some(folder),
            _ => None,
        }
    }

    /// Adds a token to a WHIP output without one.
    #[must_use]
    pub fn with_token(self, token: Option<&Token>) -> Self {
        match self {
            Self::Whip { url, token: None } => Self::Whip { url, token: token.cloned() },
            other => other,
        }
    }
}

impl TryFrom<String> for OutputSpec {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<OutputSpec> for String {
    fn from(output: OutputSpec) -> Self {
        output.to_string()
    }
}

impl FromStr for OutputSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let path = Path::new(text);
        match text {
            "-" => return Ok(Self::Stdout),
            "window" => return Ok(Self::Window),
            _ if STANDARD_OUTPUT_PATHS.iter().any(|known| path == Path::new(known)) => {
                return Ok(Self::Stdout);
            }
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
                    Err(refused(text, "it has no stream name", "write it like rtmp://HOST/APP/KEY"))
                }
                "rtsp" => rtsp(text, rest),
                _ => Err(unknown(text)),
            };
        }
        if let Some(folder) = text.strip_prefix("hls:") {
            return if folder.is_empty() {
                Err(refused(text, "it has no folder", "write it like hls:FOLDER"))
            } else {
                Ok(Self::Hls { folder: folder.into() })
            };
        }
        if text.ends_with('/') {
            return Ok(Self::Frames { folder: path.into() });
        }
        match FileFormat::from_extension(path) {
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
        return Err(refused(text, "it has no valid address", "write it like rtsp://127.0.0.1:8554/clip"));
    }
    let address = if port.is_some() { address.to_owned() } else { format!("{address}:{RTSP_PORT}") };
    Ok(OutputSpec::Rtsp { address, name: name.into() })
}

/// Parses a WHIP address. A token may precede the host, like a user name in other URLs. Errors never contain the
/// address.
fn whip(url: &str) -> Result<OutputSpec, Error> {
    let unusable = || refused("whip:…", "it has no valid server", "write it like whip:https://HOST/PATH");
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
    Error::value(Field::Output, format!("`{text}`"), rule, fix)
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
    fn the_extension_of_a_file_selects_its_format_in_any_case() {
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
    fn a_truncated_file_is_recognized_by_its_head() {
        let clips: [(FileFormat, &[u8]); 6] = [
            (FileFormat::Mp4, b"\0\0\0\x1cftypmp42"),
            (FileFormat::Mkv, b"\x1a\x45\xdf\xa3\x01"),
            (FileFormat::WebM, b"\x1a\x45\xdf\xa3\x01"),
            (FileFormat::Gif, b"GIF89a@"),
            (FileFormat::WebP, b"RIFF\x10\0\0\0WEBPVP8X"),
            (FileFormat::Y4m, b"YUV4MPEG2 W64"),
        ];
        for (format, clip) in clips {
            assert!((0..=clip.len()).all(|cut| format.matches_head(&clip[..cut])), "{format:?}");
            for (other, head) in clips.iter().filter(|(_, head)| head[..4] != clip[..4]) {
                assert!(!format.matches_head(head), "{format:?}, {other:?}");
            }
            assert!(
                !format.matches_head(b"mine")
                    && !format.matches_head(b"precious notes")
                    && !format.matches_head(b"RIFF\0\0\0\0WAVEfmt "),
                "{format:?}"
            );
        }
    }

    #[test]
    fn addresses_are_parsed() {
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
    fn the_error_of_a_whip_address_does_not_contain_its_token() {
        for text in [
            "whip:",
            "whip:s3cret@h/a",
            "whip:ftp://s3cret@h/a",
            "whip:http://s3cret@",
            "whip:http://s\u{e9}@h",
        ] {
            let error = text.parse::<OutputSpec>().unwrap_err().to_string();
            assert!(error.starts_with("output cannot be `whip:…`: ") && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn other_text_is_refused_with_the_valid_forms() {
        insta::assert_snapshot!(report("clip.avi"), @"output cannot be `clip.avi`: its name does not end in one of .mp4, .webm, .mkv, .gif, .webp, .y4m (name a file like clip.mp4, a folder for PNGs like frames/, `-` for y4m on standard output, hls:FOLDER, rtmp://…, rtsp://…, whip:https://… or window)");
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
            assert!(report(text).starts_with(&format!("output cannot be `{text}`: ")), "{}", report(text));
        }
    }
}
