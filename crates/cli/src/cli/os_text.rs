//! Values that contain a path, which need not be UTF-8: the bytes of the path are kept.

use super::logo::Logo;
use bundle::{Error, Field};
use media::{OutputSpec, SigningKey};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Parses the value of `--output` and `--live`.
pub(super) fn output(value: OsString) -> Result<OutputSpec, Error> {
    let text = value.to_string_lossy();
    let spec = text.parse()?;
    if value.to_str().is_some() {
        return Ok(spec);
    }
    // The kind depends on ASCII parts only; the path is replaced by its original bytes.
    Ok(match spec {
        OutputSpec::File { format, .. } => OutputSpec::File { path: value.into(), format },
        OutputSpec::Frames { .. } => OutputSpec::Frames { folder: value.into() },
        OutputSpec::Hls { .. } => OutputSpec::Hls { folder: after(&value, b"hls:") },
        _ => {
            let (rule, fix) = ("an address must be UTF-8", "write the address in UTF-8");
            return Err(Error::value(Field::Output, format!("`{text}`"), rule, fix));
        }
    })
}

/// Parses the value of `--logo`.
pub(super) fn logo(value: OsString) -> Result<Logo, Error> {
    let mut logo: Logo = value.to_string_lossy().parse()?;
    if let Some(at) = value.as_bytes().iter().rposition(|byte| *byte == b'@') {
        logo.path = path(&value.as_bytes()[..at]);
    }
    Ok(logo)
}

/// Parses the value of `--sign`.
pub(super) fn signing_key(value: OsString) -> Result<SigningKey, Error> {
    let mut key: SigningKey = value.to_string_lossy().parse()?;
    if let Some(at) = value.as_bytes().iter().position(|byte| *byte == b',') {
        key.certificate = path(&value.as_bytes()[..at]);
        key.key = path(&value.as_bytes()[at + 1..]);
    }
    Ok(key)
}

fn after(value: &OsStr, start: &[u8]) -> PathBuf {
    path(value.as_bytes().strip_prefix(start).unwrap_or(value.as_bytes()))
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
    fn the_bytes_of_paths_are_kept() {
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
    fn other_values_that_are_not_utf8_are_refused() {
        for given in [&b"caf\xe9.avi"[..], b"rtmp://caf\xe9/a/b", b"rtsp://h/\xe9", b"whip:http://\xe9"] {
            assert!(output(os(given)).unwrap_err().to_string().contains("output cannot be"));
        }
    }
}
