//! The record in an XMP packet, as an element or an attribute `rushes:job`.

use super::findings::Findings;
use super::source::Source;
use crate::record_code::MAX_BYTES;
use std::io::{self, Read, Seek};
use std::ops::Range;

/// The most bytes of a packet that are read.
const MAX_PACKET: usize = 4 * MAX_BYTES;

const PROPERTY: &[u8] = b"rushes:job";

pub(super) fn scan<R: Read + Seek>(
    source: &mut Source<R>,
    area: Range<u64>,
    found: &mut Findings,
) -> io::Result<()> {
    let length = usize::try_from(area.end - area.start).unwrap_or(MAX_PACKET).min(MAX_PACKET);
    let packet = source.read_up_to(area.start, length)?;
    found.text(&packet);
    if let Some(record) = property(&packet) {
        found.encoded(record);
    }
    Ok(())
}

/// The value of the property.
fn property(packet: &[u8]) -> Option<&[u8]> {
    let at = packet.windows(PROPERTY.len()).position(|name| name == PROPERTY)?;
    let rest = &packet[at + PROPERTY.len()..];
    let (value, end) = match rest {
        [b'=', quote @ (b'"' | b'\''), value @ ..] => (value, *quote),
        _ => (&rest[rest.iter().position(|byte| *byte == b'>')? + 1..], b'<'),
    };
    Some(&value[..value.iter().position(|byte| *byte == end)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_property_is_an_element_or_an_attribute() {
        for packet in [
            &b"<x><rushes:job>e30</rushes:job></x>"[..],
            b"<rushes:job xmlns:rushes=\"urn:a\">e30</rushes:job>",
            b"<rdf:Description rushes:job=\"e30\" a='b'/>",
            b"<rdf:Description rushes:job='e30'/>",
        ] {
            assert_eq!(property(packet), Some(&b"e30"[..]), "{packet:?}");
        }
        for packet in [&b""[..], b"rushes:job", b"<rushes:job>e30", b"rushes:job=\"e30"] {
            assert_eq!(property(packet), None, "{packet:?}");
        }
    }
}
