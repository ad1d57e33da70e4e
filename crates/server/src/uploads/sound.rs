//! Decoding of uploaded sounds: WAV, within limits, to 16-bit samples that are stored as a WAV file of this server.

use super::content::{Content, Decoded};
use super::foreign;
use crate::fault::Fault;
use axum::http::StatusCode;
use media::wav::{Wav, WavError};
use std::time::Duration;

/// Returns true if a file begins as a WAV file does.
pub(super) fn is_wav(sent: &[u8]) -> bool {
    matches!(sent, [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'A', b'V', b'E', ..])
}

/// Decodes a WAV file.
///
/// # Errors
/// It is damaged, compressed, or outside the limits.
pub(super) fn decoded(sent: &[u8], longest: Duration) -> Result<Decoded, Fault> {
    let wav = Wav::decode(sent, longest).map_err(|error| refused(&error))?;
    let file = wav.to_bytes().map_err(Fault::internal)?;
    let content = Content::Sound {
        duration: wav.duration().as_secs_f64(),
        sample_rate: wav.rate(),
        channels: wav.channels(),
    };
    Ok(Decoded { file, content })
}

fn refused(error: &WavError) -> Fault {
    let message = format!("the sound cannot be read: {error}");
    match error {
        WavError::Format { .. }
        | WavError::Bits { .. }
        | WavError::Channels { .. }
        | WavError::Rate { .. } => {
            let message = format!("{message}; {}", foreign::CONVERT);
            Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message).about("file")
        }
        _ => Fault::parameter("file", message),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A WAV file of 16 bits with so many samples of a channel.
    pub(in super::super) fn wav(rate: u32, channels: u16, moments: u32) -> Vec<u8> {
        let block = channels * 2;
        let size = moments * u32::from(block);
        let data: Vec<u8> = (0..size).map(|byte| byte as u8).collect();
        [
            &b"RIFF"[..],
            &(36 + size).to_le_bytes(),
            b"WAVEfmt \x10\0\0\0\x01\0",
            &channels.to_le_bytes(),
            &rate.to_le_bytes(),
            &(rate * u32::from(block)).to_le_bytes(),
            &block.to_le_bytes(),
            &16_u16.to_le_bytes(),
            b"data",
            &size.to_le_bytes(),
            &data,
        ]
        .concat()
    }

    const LONGEST: Duration = Duration::from_secs(2);

    #[test]
    fn samples_are_kept_and_nothing_else() {
        let plain = wav(44_100, 2, 100);
        assert_eq!(decoded(&plain, LONGEST).unwrap().file, plain);
        // A chunk that names its artist.
        let mut tagged = [&plain[..], b"LIST\x0C\0\0\0INFOIART\0\0\0\0"].concat();
        let size = u32::try_from(tagged.len() - 8).unwrap();
        tagged[4..8].copy_from_slice(&size.to_le_bytes());
        assert_eq!(decoded(&tagged, LONGEST).unwrap().file, plain);
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        let changed = |at: usize, bytes: &[u8]| {
            let mut file = wav(8000, 1, 100);
            file[at..at + bytes.len()].copy_from_slice(bytes);
            file
        };
        for (file, status, word) in [
            (changed(20, &[0x55, 0]), 415, "`format` is MP3"),
            (changed(34, &[12, 0]), 415, "`bits` is 12"),
            (changed(22, &[6, 0]), 415, "`channels` is 6"),
            (changed(24, &4000_u32.to_le_bytes()), 415, "`sample_rate` is 4000"),
            (changed(40, &1000_u32.to_le_bytes()), 400, "`data` is cut short"),
            (wav(8000, 1, 100)[..60].to_vec(), 400, "is cut short"),
            (wav(8000, 1, 16_001), 400, "`duration` is 2.000125 s"),
            (wav(8000, 1, 0), 400, "no sound"),
        ] {
            let fault = decoded(&file, LONGEST).unwrap_err();
            assert_eq!(
                (fault.status.as_u16(), fault.param.as_deref()),
                (status, Some("file")),
                "{}",
                fault.message
            );
            assert!(fault.message.contains(word), "{}", fault.message);
            assert_eq!(fault.message.contains("convert it"), status == 415, "{}", fault.message);
        }
    }
}
