//! Files that are neither pictures nor sounds that this server reads, refused by their names where these are known.

use crate::fault::Fault;
use axum::http::StatusCode;

/// What to do with a sound in another format.
pub(super) const CONVERT: &str =
    "convert it to WAV, for example with `ffmpeg -i sound.mp3 -ac 2 -ar 48000 -c:a pcm_s16le sound.wav`";

/// The refusal of a file.
pub(super) fn refused(sent: &[u8]) -> Fault {
    let message = if is_video(sent) {
        "videos cannot be uploaded: no model of this server reads them".to_owned()
    } else if let Some(name) = sound(sent) {
        format!("{name} sounds are not read: {CONVERT}")
    } else if sent.is_empty() {
        "the file is empty".to_owned()
    } else {
        "the file is no picture or sound that this server reads: upload PNG, JPEG or WebP, or WAV".to_owned()
    };
    Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message).about("file")
}

fn is_video(sent: &[u8]) -> bool {
    match sent {
        // MP4, MOV and their like, but not pictures in the same container.
        [_, _, _, _, b'f', b't', b'y', b'p', a, b, c, d, ..] => {
            ![*b"heic", *b"avif", *b"mif1", *b"M4A "].contains(&[*a, *b, *c, *d])
        }
        // Matroska and WebM, AVI, MPEG, FLV, GIF.
        [0x1A, 0x45, 0xDF, 0xA3, ..]
        | [0, 0, 1, 0xBA | 0xB3, ..]
        | [b'F', b'L', b'V', ..]
        | [b'G', b'I', b'F', b'8', ..] => true,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', b' ', ..] => true,
        // MPEG transport stream.
        [0x47, ..] => sent.get(188) == Some(&0x47),
        _ => false,
    }
}

/// The name of the format of a sound.
fn sound(sent: &[u8]) -> Option<&'static str> {
    Some(match sent {
        [b'I', b'D', b'3', ..] | [0xFF, 0xFA | 0xFB | 0xF2 | 0xF3 | 0xE2 | 0xE3, ..] => "MP3",
        [0xFF, 0xF0 | 0xF1 | 0xF8 | 0xF9, ..] => "AAC",
        [b'f', b'L', b'a', b'C', ..] => "FLAC",
        [b'O', b'g', b'g', b'S', ..] => "Ogg",
        [_, _, _, _, b'f', b't', b'y', b'p', b'M', b'4', b'A', b' ', ..] => "M4A",
        [b'F', b'O', b'R', b'M', _, _, _, _, b'A', b'I', b'F', b'F' | b'C', ..] => "AIFF",
        [b'c', b'a', b'f', b'f', ..] => "CAF",
        [b'R', b'F', b'6', b'4', ..] | [b'B', b'W', b'6', b'4', ..] => "RF64",
        [b'R', b'I', b'F', b'X', ..] => "RIFX",
        [b'M', b'T', b'h', b'd', ..] => "MIDI",
        [b'#', b'!', b'A', b'M', b'R', ..] => "AMR",
        [b'.', b's', b'n', b'd', ..] => "AU",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_refused_by_name() {
        for (sent, word) in [
            (&b"\0\0\0\x18ftypmp42"[..], "videos"),
            (b"\x1A\x45\xDF\xA3 webm", "videos"),
            (b"RIFF....AVI LIST", "videos"),
            (b"GIF89a..", "videos"),
            (b"ID3\x04", "MP3 sounds"),
            (b"\xFF\xFB\x90\x44", "MP3 sounds"),
            (b"\xFF\xF1\x50\x80", "AAC sounds"),
            (b"fLaC\0\0\0\x22", "FLAC sounds"),
            (b"OggS\0\x02", "Ogg sounds"),
            (b"\0\0\0\x18ftypM4A ", "M4A sounds"),
            (b"FORM\0\0\0\x20AIFF", "AIFF sounds"),
            (b"RF64\xFF\xFF\xFF\xFFWAVE", "RF64 sounds"),
            (b"", "empty"),
            (b"<svg/>", "no picture or sound"),
            (b"%PDF-1.7", "no picture or sound"),
        ] {
            let fault = refused(sent);
            assert_eq!(fault.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
            assert!(fault.message.contains(word), "{}", fault.message);
            assert_eq!(
                fault.message.contains("convert it to WAV"),
                word.ends_with(" sounds"),
                "{}",
                fault.message
            );
        }
    }
}
