//! The mp4 box of an XMP packet, which players ignore.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

/// The identifier of a `uuid` box that holds XMP (XMP specification part 3, §1.2.8).
pub(super) const XMP: [u8; 16] =
    [0xbe, 0x7a, 0xcf, 0xcb, 0x97, 0xa9, 0x42, 0xe8, 0x9c, 0x71, 0x99, 0x94, 0x91, 0xe3, 0xaf, 0xac];

/// Appends a box to a finished mp4. After an error the file is unchanged.
///
/// # Errors
/// I/O errors.
pub(super) fn append(path: &Path, xmp: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    let before = file.metadata()?.len();
    let written = file.write_all(xmp);
    if written.is_err() {
        file.set_len(before)?;
    }
    written
}

/// The box of an XMP packet.
///
/// # Errors
/// Returns an error if the packet has more than 4 GB.
pub(super) fn xmp_box(packet: &str) -> io::Result<Vec<u8>> {
    let size = u32::try_from(8 + XMP.len() + packet.len()).map_err(io::Error::other)?;
    Ok([&size.to_be_bytes()[..], b"uuid", &XMP, packet.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_box_starts_with_its_size() {
        let bytes = xmp_box("<x/>").unwrap();
        assert_eq!(bytes[..8], [0, 0, 0, 28, b'u', b'u', b'i', b'd']);
        assert_eq!((bytes.len(), &bytes[24..]), (28, &b"<x/>"[..]));
    }
}
