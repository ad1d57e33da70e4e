//! Small files of every container, whole, truncated and damaged.

use super::*;
use crate::matroska::ebml::{element, id};
use crate::record_code::{EncodedRecord, GIF_APPLICATION, KEY};
use crate::xmp_box::xmp_box;
use proptest::prelude::*;
use std::io::Cursor;

const RECORD: &str = r#"{"spec":{"prompt":"一只猫 & a ball","seed":42},"latents":["a0b1","c2d3"]}"#;

fn encoded() -> EncodedRecord {
    EncodedRecord::new(RECORD).unwrap()
}

fn packet() -> String {
    format!("<x><rushes:job>{}</rushes:job></x>", encoded().as_str())
}

fn boxed(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(content.len() + 8).unwrap();
    [&size.to_be_bytes()[..], kind, content].concat()
}

fn mp4(xmp: &[u8], items: &[u8]) -> Vec<u8> {
    let meta = boxed(b"meta", &[&[0; 4], &*boxed(b"hdlr", b"mdir"), &boxed(b"ilst", items)].concat());
    let movie = boxed(b"moov", &boxed(b"udta", &meta));
    [boxed(b"ftyp", b"isom"), movie, xmp.to_vec(), boxed(b"mdat", b"frames")].concat()
}

fn item(kind: &[u8; 4], text: &str) -> Vec<u8> {
    boxed(kind, &boxed(b"data", &[b"\0\0\0\x01\0\0\0\0", text.as_bytes()].concat()))
}

fn matroska(name: &str, text: &str) -> Vec<u8> {
    let simple = [element(id::TAG_NAME, name.as_bytes()), element(id::TAG_STRING, text.as_bytes())].concat();
    let tag = [element(id::TARGETS, b""), element(id::SIMPLE_TAG, &simple)].concat();
    let info = element(id::INFO, &element(id::WRITING_APP, b"Lavf59.27.100"));
    let segment =
        [info, element(id::CLUSTER, b"frames"), element(id::TAGS, &element(id::TAG, &tag))].concat();
    [element(id::EBML, b"head"), element(id::SEGMENT, &segment)].concat()
}

fn png(kind: &[u8; 4], text: &[u8]) -> Vec<u8> {
    let chunk = |kind: &[u8; 4], content: &[u8]| {
        let length = u32::try_from(content.len()).unwrap();
        [&length.to_be_bytes()[..], kind, content, &[0; 4]].concat()
    };
    [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &[0; 13]), &chunk(kind, text), &chunk(b"IEND", b"")].concat()
}

fn webp(xmp: &str) -> Vec<u8> {
    let chunk = |kind: &[u8; 4], content: &[u8]| {
        let length = u32::try_from(content.len()).unwrap();
        [&kind[..], &length.to_le_bytes(), content, &vec![0; content.len() % 2]].concat()
    };
    let chunks = [&b"WEBP"[..], &chunk(b"VP8X", &[0; 9]), &chunk(b"XMP ", xmp.as_bytes())];
    chunk(b"RIFF", &chunks.concat())
}

fn gif(application: &[u8], record: &str) -> Vec<u8> {
    let mut bytes = [&b"GIF89a\0\0\0\0\x80\0\0"[..], &[0; 6], b"\x21\xfe\x02hi\0\x21\xff\x0b"].concat();
    bytes.extend(application);
    for block in record.as_bytes().chunks(255) {
        bytes.push(u8::try_from(block.len()).unwrap());
        bytes.extend(block);
    }
    bytes.extend(b"\0\x2cpicture");
    bytes
}

/// A file of every kind with the record.
fn files() -> Vec<Vec<u8>> {
    let encoded = encoded();
    let text = |flags: &[u8]| [KEY.as_bytes(), flags, encoded.as_str().as_bytes()].concat();
    let custom =
        [boxed(b"name", b"\0\0\0\0RUSHES_JOB"), item(b"data", encoded.as_str())[8..].to_vec()].concat();
    vec![
        mp4(&xmp_box(&packet()).unwrap(), b""),
        mp4(b"", &item(b"ldes", &encoded.labelled())),
        mp4(b"", &boxed(b"----", &custom)),
        matroska(KEY, encoded.as_str()),
        matroska("SYNOPSIS", &encoded.labelled()),
        png(b"iTXt", &text(b"\0\0\0\0\0")),
        png(b"tEXt", &text(b"\0")),
        webp(&packet()),
        gif(&GIF_APPLICATION, encoded.as_str()),
    ]
}

fn read_bytes(bytes: &[u8]) -> Result<String, Fault> {
    read_from(Cursor::new(bytes))
}

#[test]
fn every_container_carries_the_record() {
    for (number, file) in files().iter().enumerate() {
        assert_eq!(read_bytes(file).unwrap(), RECORD, "file {number}");
    }
}

#[test]
fn a_truncated_file_has_the_same_record_or_none() {
    for file in files() {
        for length in 0..file.len() {
            match read_bytes(&file[..length]) {
                Ok(record) => assert_eq!(record, RECORD),
                Err(Fault::Absent(why)) => panic!("{why} in {length} bytes of {file:?}"),
                Err(Fault::Io(error)) => panic!("{error}"),
                Err(Fault::Damaged(_) | Fault::Format(_)) => {}
            }
        }
    }
}

#[test]
fn a_live_matroska_has_no_sizes() {
    let mut file = matroska(KEY, encoded().as_str());
    let unknown = |file: &mut Vec<u8>, id: u32| {
        let at = file.windows(4).position(|bytes| bytes == id.to_be_bytes()).unwrap();
        file[at + 4..at + 12].copy_from_slice(b"\x01\xff\xff\xff\xff\xff\xff\xff");
    };
    unknown(&mut file, id::SEGMENT);
    assert_eq!(read_bytes(&file).unwrap(), RECORD);
    let at = file.windows(6).position(|bytes| bytes == b"frames").unwrap();
    file.splice(at..at + 6, element(0xa3, b"frames"));
    unknown(&mut file, id::CLUSTER);
    assert_eq!(read_bytes(&file).unwrap(), RECORD);
}

#[test]
fn nested_boxes_end_at_a_limit() {
    let nested = (0..10_000).fold(vec![], |inner, _| boxed(b"moov", &inner));
    let file = [nested, boxed(b"mdat", b"frames")].concat();
    assert!(matches!(read_bytes(&file), Err(Fault::Absent(_))));
}

#[test]
fn the_number_of_elements_is_limited() {
    let many = [boxed(b"ftyp", b""), boxed(b"free", b"").repeat(1 << 20)].concat();
    let Err(Fault::Damaged(why)) = read_bytes(&many) else { panic!("the limit is not checked") };
    assert_eq!(why, "it has more than 1048576 parts, and no record precedes it");
}

#[test]
fn a_record_that_is_too_long_is_damaged() {
    let long = "e".repeat(100_000);
    for file in [
        mp4(b"", &item(b"ldes", &format!("RUSHES_JOB:{long}"))),
        mp4(&xmp_box(&format!("<rushes:job>{long}</rushes:job>")).unwrap(), b""),
        matroska(KEY, &long),
        png(b"iTXt", &[KEY.as_bytes(), b"\0\0\0\0\0", long.as_bytes()].concat()),
        gif(&GIF_APPLICATION, &long),
    ] {
        let Err(Fault::Damaged(why)) = read_bytes(&file) else { panic!("it is read") };
        assert_eq!(why, "it has more than 65536 bytes");
    }
}

#[test]
fn the_error_says_what_was_lost() {
    let folder = tempfile::tempdir().unwrap();
    let error = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = read(&path).unwrap_err().to_string();
        error.replace(&format!("{}/", folder.path().display()), "")
    };
    insta::assert_snapshot!(error("a.mkv", &matroska("COMMENTS", "AI-generated:Rushes/0.1.0")), @"a.mkv carries no record: rushes made the clip, and Lavf59.27.100 left the record out of this copy (give the file that rushes wrote; `ffmpeg -c copy` to mp4, mkv or webm keeps the record)");
    insta::assert_snapshot!(error("a.mp4", &mp4(b"", &item(b"\xa9too", "Lavf59.27.100"))), @"a.mp4 carries no record: Lavf59.27.100 wrote it, and if it is a copy of a clip of rushes, left the record out (give the file that rushes wrote; `ffmpeg -c copy` to mp4, mkv or webm keeps the record)");
    insta::assert_snapshot!(error("a.gif", &gif(b"NETSCAPE2.0", "x")), @"a.gif carries no record: nothing in it says that rushes wrote it (give the file that rushes wrote; `ffmpeg -c copy` to mp4, mkv or webm keeps the record)");
    insta::assert_snapshot!(error("2.png", &png(b"iTXt", b"Comment\0\0\0\0\0AI-generated: Rushes 0.1.0")), @"2.png carries no record: only the first picture that rushes writes to a folder carries it (give the file that rushes wrote; `ffmpeg -c copy` to mp4, mkv or webm keeps the record)");
    insta::assert_snapshot!(error("a.png", &png(b"iTXt", b"RUSHES_JOB\0\x01\0\0\0x\x9c")), @"the record of a.png cannot be read: a program has compressed or cut it (give another copy of the clip)");
    insta::assert_snapshot!(error("b.mkv", &matroska(KEY, "eyJh")), @"the record of b.mkv cannot be read: it is not JSON: EOF while parsing a string at line 1 column 3 (give another copy of the clip)");
    insta::assert_snapshot!(error("c.mkv", &matroska(KEY, encoded().as_str())[..60]), @"the record of c.mkv cannot be read: the file is damaged or incomplete at byte 28, and no record precedes it (give another copy of the clip)");
    insta::assert_snapshot!(error("a.y4m", b"YUV4MPEG2 W16"), @"a.y4m carries no record: it is y4m, which has no metadata (give an mp4, mkv, webm, WebP or GIF, or a folder of PNGs, that rushes wrote)");
    insta::assert_snapshot!(error("a.txt", b"text"), @"a.txt carries no record: it is not mp4, mkv, webm, PNG, WebP or GIF (give an mp4, mkv, webm, WebP or GIF, or a folder of PNGs, that rushes wrote)");
    std::fs::create_dir(folder.path().join("frames")).unwrap();
    let empty = read(&folder.path().join("frames")).unwrap_err();
    assert!(matches!(&empty, Error::Format { why, .. } if why == "the folder has no PNG"), "{empty}");
    assert!(matches!(read(&folder.path().join("none.mp4")), Err(Error::Unreadable { .. })));
}

proptest! {
    #[test]
    fn damaged_files_neither_panic_nor_read_beyond_their_end(
        number in 0..9_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        kept in any::<prop::sample::Index>(),
    ) {
        let mut file = files().swap_remove(number);
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        file.truncate(kept.index(file.len()) + 1);
        match read_bytes(&file) {
            Ok(record) => prop_assert!(serde_json::from_str::<serde_json::Value>(&record).is_ok()),
            Err(Fault::Io(error)) => return Err(TestCaseError::fail(error.to_string())),
            Err(Fault::Format(_) | Fault::Absent(_) | Fault::Damaged(_)) => {}
        }
    }

    #[test]
    fn garbage_after_a_known_head_is_read_without_panic(
        number in 0..9_usize,
        garbage in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let head = &files()[number][..12];
        let result = read_bytes(&[head, &garbage].concat());
        prop_assert!(!matches!(result, Err(Fault::Io(_))), "{:?}", result);
    }
}
