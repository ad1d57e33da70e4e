//! Elements of a Matroska file (RFC 8794 §5 to §7): an identifier, a size and content.

/// The most bytes of an identifier and a size.
pub(crate) const MAX_HEADER: usize = 12;

/// Identifiers, with their length marker (RFC 9559 §5).
pub(crate) mod id {
    /// The header of the file.
    pub(crate) const EBML: u32 = 0x1a45_dfa3;
    /// The rest of the file.
    pub(crate) const SEGMENT: u32 = 0x1853_8067;
    /// Frames.
    pub(crate) const CLUSTER: u32 = 0x1f43_b675;
    /// Duration and programs.
    pub(crate) const INFO: u32 = 0x1549_a966;
    /// The program that wrote the file, in [`INFO`].
    pub(crate) const WRITING_APP: u32 = 0x5741;
    /// All tags.
    pub(crate) const TAGS: u32 = 0x1254_c367;
    /// The tags of one target, in [`TAGS`].
    pub(crate) const TAG: u32 = 0x7373;
    /// What a tag is about. Without content, the whole file.
    pub(crate) const TARGETS: u32 = 0x63c0;
    /// A name and a value, in [`TAG`].
    pub(crate) const SIMPLE_TAG: u32 = 0x67c8;
    /// The name, in [`SIMPLE_TAG`].
    pub(crate) const TAG_NAME: u32 = 0x45a3;
    /// The language, in [`SIMPLE_TAG`].
    pub(crate) const TAG_LANGUAGE: u32 = 0x447a;
    /// True if the language is the original one, in [`SIMPLE_TAG`].
    pub(crate) const TAG_DEFAULT: u32 = 0x4484;
    /// The value, in [`SIMPLE_TAG`].
    pub(crate) const TAG_STRING: u32 = 0x4487;
    /// A checksum of the other children of an element.
    pub(crate) const CRC_32: u32 = 0xbf;
}

/// The header of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// The identifier.
    pub(crate) id: u32,
    /// Bytes of the content. `None` if unknown, as in a live stream.
    pub(crate) size: Option<u64>,
    /// Bytes of the identifier.
    pub(crate) id_length: usize,
    /// Bytes of identifier and size.
    pub(crate) length: usize,
}

impl Header {
    /// The header at the start of `bytes`. Returns `None` if it is incomplete or invalid.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let id_length = length_of(*bytes.first()?, 4)?;
        let id = bytes.get(..id_length)?.iter().fold(0, |id, byte| id << 8 | u32::from(*byte));
        let size = bytes.get(id_length..)?;
        let size_length = length_of(*size.first()?, 8)?;
        let (first, rest) = size.get(..size_length)?.split_first()?;
        // The marker is the first bit that is set.
        let bits = u32::try_from(7 * size_length).ok()?;
        let value = rest.iter().fold(u64::from(*first), |value, byte| value << 8 | u64::from(*byte));
        let value = value & !(1_u64 << bits);
        let size = (value != (1 << bits) - 1).then_some(value);
        Some(Self { id, size, id_length, length: id_length + size_length })
    }
}

/// The length of a number from its first byte, if it is at most `most`.
fn length_of(first: u8, most: usize) -> Option<usize> {
    let length = first.leading_zeros() as usize + 1;
    (length <= most).then_some(length)
}

/// A size in `length` bytes, 1 to 8. Returns `None` if it does not fit.
pub(super) fn size_field(size: u64, length: usize) -> Option<Vec<u8>> {
    let bits = u32::try_from(7 * length).ok().filter(|bits| (7..=56).contains(bits))?;
    // The largest number means an unknown size.
    let field = (size < (1 << bits) - 1).then_some(size | 1 << bits)?;
    Some(field.to_be_bytes()[8 - length..].to_vec())
}

/// An element with a size of 8 bytes.
pub(crate) fn element(id: u32, content: &[u8]) -> Vec<u8> {
    let id = id.to_be_bytes();
    let start = id.iter().position(|byte| *byte != 0).unwrap_or(3);
    // A slice is shorter than 2⁵⁶ bytes.
    let size = size_field(content.len() as u64, 8).unwrap_or_default();
    [&id[start..], &size, content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn elements_begin_with_their_identifier_and_size() {
        assert_eq!(element(id::TAG_NAME, b"ab"), b"\x45\xa3\x01\0\0\0\0\0\0\x02ab");
        assert_eq!(element(id::CRC_32, b""), b"\xbf\x01\0\0\0\0\0\0\0");
        let found = Header::parse(b"\x1a\x45\xdf\xa3\x9f").unwrap();
        assert_eq!(found, Header { id: id::EBML, size: Some(31), id_length: 4, length: 5 });
        let unknown = Header::parse(b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff").unwrap();
        assert_eq!((unknown.id, unknown.size, unknown.length), (id::SEGMENT, None, 12));
        assert_eq!(Header::parse(b"\xbf\xff").unwrap().size, None);
    }

    #[test]
    fn invalid_headers_are_refused() {
        for bytes in [&b""[..], b"\xbf", b"\x08\0\0\0\0\x81", b"\xbf\0", b"\x45\xa3\x40", b"\0\0"] {
            assert_eq!(Header::parse(bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn sizes_are_parsed_unchanged(size in 0..1_u64 << 56, length in 0..10_usize) {
            let least = (1..=8).find(|length| size < (1 << (7 * length)) - 1);
            match size_field(size, length) {
                Some(field) => {
                    prop_assert_eq!(field.len(), length);
                    let found = Header::parse(&[&[0xbf][..], &field].concat()).unwrap();
                    prop_assert_eq!((found.size, found.length), (Some(size), 1 + length));
                }
                None => prop_assert!(length > 8 || least.is_none_or(|least| length < least)),
            }
        }

        #[test]
        fn headers_end_within_their_bytes(bytes in prop::collection::vec(any::<u8>(), 0..16)) {
            if let Some(found) = Header::parse(&bytes) {
                prop_assert!(found.length <= bytes.len().min(MAX_HEADER));
                prop_assert!(found.size.is_none_or(|size| size < 1 << 56));
            }
        }
    }
}
