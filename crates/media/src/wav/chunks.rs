//! The chunks of a RIFF file. `hound` does not skip the byte that follows a chunk of odd length.

use super::WavError;

/// The parts of a WAV file that say how it sounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunks<'a> {
    /// The content of `fmt `.
    pub(super) format: &'a [u8],
    /// The content of `data`.
    pub(super) data: &'a [u8],
}

/// The length that programs declare which cannot know it: their output is a pipe.
const UNKNOWN: u32 = u32::MAX;

/// Finds the chunks of a file, in any order and among others.
///
/// # Errors
/// It is no WAV file, a length is larger than what is there, or a chunk is missing or repeated.
pub(super) fn find(content: &[u8]) -> Result<Chunks<'_>, WavError> {
    let (head, mut rest) = content.split_first_chunk::<12>().ok_or(WavError::NotWav)?;
    let [b'R', b'I', b'F', b'F', a, b, c, d, b'W', b'A', b'V', b'E'] = *head else {
        return Err(WavError::NotWav);
    };
    // What follows the declared end belongs to no chunk.
    let declared = u32::from_le_bytes([a, b, c, d]);
    if declared != 0 && declared != UNKNOWN {
        // `WAVE` is in it.
        (rest, _) = split(rest, "RIFF", declared.saturating_sub(4))?;
    }
    let (mut format, mut data) = (None, None);
    while let Some((head, after)) = rest.split_first_chunk::<8>() {
        let [name @ .., a, b, c, d] = *head;
        let size = u32::from_le_bytes([a, b, c, d]);
        let (found, chunk) = match &name {
            b"fmt " => (&mut format, "fmt"),
            b"data" => (&mut data, "data"),
            other => {
                let (_, after) = split(after, &other.escape_ascii().to_string(), size)?;
                rest = after.get(usize::from(size % 2 == 1)..).unwrap_or_default();
                continue;
            }
        };
        let (content, after) = if size == UNKNOWN && chunk == "data" && declared == UNKNOWN {
            (after, &[][..])
        } else {
            split(after, chunk, size)?
        };
        if found.replace(content).is_some() {
            return Err(WavError::Repeated { chunk });
        }
        rest = after.get(usize::from(size % 2 == 1)..).unwrap_or_default();
    }
    let format = format.ok_or(WavError::Missing { chunk: "fmt" })?;
    let data = data.ok_or(WavError::Missing { chunk: "data" })?;
    Ok(Chunks { format, data })
}

/// The content of a chunk, and what follows it.
fn split<'a>(bytes: &'a [u8], chunk: &str, size: u32) -> Result<(&'a [u8], &'a [u8]), WavError> {
    let found = usize::try_from(size).ok().and_then(|size| bytes.split_at_checked(size));
    found.ok_or_else(|| WavError::CutShort {
        chunk: chunk.to_owned(),
        declared: size.into(),
        found: bytes.len() as u64,
    })
}
