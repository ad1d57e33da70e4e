//! Flags with a path in them, which need not be text: the bytes of the path are kept as they were typed.

use super::logo::Logo;
use bundle::Error;
use media::{OutputSpec, SigningKey};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// An output.
pub(super) fn output(given: OsString) -> Result<OutputSpec, Error> {
    let text = given.to_string_lossy();
    let spec = text.parse()?;
    if given.to_str().is_some() {
        return Ok(spec);
    }
    // What kind it is shows in its ASCII; only the path has to be taken anew.
    Ok(match spec {
        OutputSpec::File { format, .. } => OutputSpec::File { path: given.into(), format },
        OutputSpec::Frames { .. } => OutputSpec::Frames { folder: given.into() },
        OutputSpec::Hls { .. } => OutputSpec::Hls { folder: after(&given, b"hls:") },
        _ => {
            let (rule, fix) = ("an address is text", "write the address in UTF-8");
            return Err(Error::value("--output", format!("`{text}`"), rule, fix));
        }
    })
}

/// A picture and its corner.
pub(super) fn logo(given: OsString) -> Result<Logo, Error> {
    let mut logo: Logo = given.to_string_lossy().parse()?;
    if let Some(at) = given.as_bytes().iter().rposition(|byte| *byte == b'@') {
        logo.path = path(&given.as_bytes()[..at]);
    }
    Ok(logo)
}

/// A certificate chain and its key.
pub(super) fn signing_key(given: OsString) -> Result<SigningKey, Error> {
    let mut key: SigningKey = given.to_string_lossy().parse()?;
    if let Some(at) = given.as_bytes().iter().position(|byte| *byte == b',') {
        key.certificate = path(&given.as_bytes()[..at]);
        key.key = path(&given.as_bytes()[at + 1..]);
    }
    Ok(key)
}

fn after(given: &OsStr, start: &[u8]) -> PathBuf {
    path(given.as_bytes().strip_prefix(start).unwrap_or(given.as_bytes()))
}

fn path(bytes: &[u8]) -> PathBuf {
    OsStr::from_bytes(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use media::FileFormat;

    fn os(bytes: &[u8]) -> OsString {
        OsStr::from_bytes(bytes).to_owned()
    }

    #[test]
    fn bytes_of_paths_are_kept() {
        let file = OutputSpec::File { path: path(b"caf\xe9.mp4"), format: FileFormat::Mp4 };
        assert_eq!(output(os(b"caf\xe9.mp4")).unwrap(), file);
        assert_eq!(output(os(b"\xe9/")).unwrap(), OutputSpec::Frames { folder: path(b"\xe9/") });
        assert_eq!(output(os(b"hls:\xe9")).unwrap(), OutputSpec::Hls { folder: path(b"\xe9") });
        assert_eq!(logo(os(b"\xe9@.png@top-left")).unwrap().path, path(b"\xe9@.png"));
        let key = signing_key(os(b"\xe9.pem,\xe8.pem")).unwrap();
        assert_eq!((key.certificate, key.key), (path(b"\xe9.pem"), path(b"\xe8.pem")));
        assert_eq!(output(os(b"clip.gif")).unwrap(), "clip.gif".parse().unwrap());
    }

    #[test]
    fn what_is_refused_says_why() {
        for given in [&b"caf\xe9.avi"[..], b"rtmp://caf\xe9/a/b", b"rtsp://h/\xe9", b"whip:http://\xe9"] {
            assert!(output(os(given)).unwrap_err().to_string().contains("--output"));
        }
    }
}
