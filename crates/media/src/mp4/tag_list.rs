//! The long description in the tags of an mp4.
//!
//! Programs that copy an mp4 drop boxes that they do not know, among them XMP. They keep the tags of iTunes, of which
//! the long description (`ldes`) has no limit on its length. ffmpeg calls it `synopsis`.

use super::boxes::{find, number};
use std::io;
use std::ops::Range;

/// The type of a value in UTF-8 (QuickTime File Format, well-known types).
const UTF_8: u32 = 1;

/// Adds a long description to the tag list of an index, which is a `moov` box.
///
/// # Errors
/// Returns an error, and does not change the index, if it has no tag list or would become too long.
pub(super) fn add_long_description(index: &mut Vec<u8>, text: &str) -> io::Result<()> {
    let unknown = || io::Error::other("its index has no list of tags");
    let movie = find(index, 0..index.len(), &[b"moov"]).ok_or_else(unknown)?;
    let meta = find(index, movie.clone(), &[b"udta", b"meta"]).ok_or_else(unknown)?;
    let user_data = find(index, movie.clone(), &[b"udta"]).ok_or_else(unknown)?;
    // After version and flags.
    let list = find(index, meta.start.saturating_add(4)..meta.end, &[b"ilst"]).ok_or_else(unknown)?;
    let data = boxed(b"data", &[&UTF_8.to_be_bytes()[..], &[0; 4], text.as_bytes()].concat())?;
    let item = boxed(b"ldes", &data)?;

    let grown = |content: &Range<usize>| {
        let at = content.start.checked_sub(8).ok_or_else(unknown)?;
        let size =
            number(index, at).filter(|size| *size as usize == content.len() + 8).ok_or_else(unknown)?;
        let size = u32::try_from(item.len()).ok().and_then(|more| size.checked_add(more));
        Ok((at, size.ok_or_else(|| io::Error::other("its index would have more than 4 GB"))?))
    };
    let sizes: Vec<_> =
        [&movie, &user_data, &meta, &list].map(grown).into_iter().collect::<io::Result<_>>()?;
    for (at, size) in sizes {
        index[at..at + 4].copy_from_slice(&size.to_be_bytes());
    }
    index.splice(list.end..list.end, item);
    Ok(())
}

fn boxed(kind: &[u8; 4], content: &[u8]) -> io::Result<Vec<u8>> {
    let size = u32::try_from(content.len() + 8).map_err(io::Error::other)?;
    Ok([&size.to_be_bytes()[..], kind, content].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index with a tag list and a box after it.
    fn index(items: &[u8], after: &[u8]) -> Vec<u8> {
        let list = boxed(b"ilst", items).unwrap();
        let meta = boxed(b"meta", &[&[0; 4][..], &boxed(b"hdlr", b"mdir").unwrap(), &list].concat()).unwrap();
        let user_data = boxed(b"udta", &meta).unwrap();
        boxed(b"moov", &[boxed(b"mvhd", b"x").unwrap(), user_data, after.to_vec()].concat()).unwrap()
    }

    #[test]
    fn the_item_is_last_and_all_sizes_grow() {
        let comment = boxed(b"\xa9cmt", b"a comment").unwrap();
        let after = boxed(b"free", b"abc").unwrap();
        let mut found = index(&comment, &after);
        add_long_description(&mut found, "猫").unwrap();
        let item = [&[0, 0, 0, 27][..], b"ldes", &[0, 0, 0, 19], b"data\0\0\0\x01\0\0\0\0", "猫".as_bytes()];
        assert_eq!(found, index(&[comment, item.concat()].concat(), &after));
    }

    #[test]
    fn other_indexes_are_not_changed() {
        let whole = index(b"", b"");
        let large_size =
            [&1_u32.to_be_bytes()[..], b"moov", &(whole.len() as u64 + 8).to_be_bytes(), &whole[8..]];
        let cases = (0..whole.len()).map(|length| whole[..length].to_vec());
        for case in cases.chain([large_size.concat(), boxed(b"moov", b"").unwrap()]) {
            let mut found = case.clone();
            assert!(add_long_description(&mut found, "text").is_err(), "{case:?}");
            assert_eq!(found, case);
        }
    }
}
