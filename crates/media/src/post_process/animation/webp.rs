//! WebP, still or animated. The container is parsed here, each picture is decoded by libwebp.

use super::canvas::{Area, Canvas, Disposal};
use super::{Animation, Picture, Pixels, damaged};
use ::webp::Decoder;
use bundle::geometry::PixelSize;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::time::Duration;

/// The most bytes of a file.
const MAX_BYTES: u64 = 1 << 31;

/// Flags of a picture: it is not blended; its area is cleared after it.
const REPLACE: u8 = 0x02;
const CLEAR: u8 = 0x01;

pub(super) fn open(file: BufReader<File>) -> io::Result<Animation> {
    let mut bytes = vec![];
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    let chunks: Vec<_> = chunks(bytes.get(12..).unwrap_or_default()).collect::<io::Result<_>>()?;
    let frames: Vec<Vec<u8>> =
        chunks.iter().filter(|(name, _)| **name == *b"ANMF").map(|(_, content)| content.to_vec()).collect();
    if frames.is_empty() {
        let (bytes, size) = decoded(&bytes)?;
        let still = Picture { bytes, duration: Duration::from_secs(1) };
        return Ok(Animation { pixels: Pixels::Rgba, size, pictures: Box::new(std::iter::once(Ok(still))) });
    }
    let head = chunks.iter().find(|(name, _)| **name == *b"VP8X").and_then(|(_, content)| content.get(4..10));
    let Some([a, b, c, d, e, f]) = head else { return Err(damaged("the WebP has no size")) };
    let size = PixelSize { width: u24([*a, *b, *c]) + 1, height: u24([*d, *e, *f]) + 1 };
    let mut canvas = Canvas::new(size).ok_or_else(|| damaged(format!("a WebP cannot be {size}")))?;
    let mut failed = false;
    let pictures = frames.into_iter().enumerate().map_while(move |(number, frame)| {
        let shown = (!failed).then(|| shown(&mut canvas, &frame))?;
        failed = shown.is_err();
        Some(shown.map_err(|error| damaged(format!("it is damaged in picture {number}: {error}"))))
    });
    Ok(Animation { pixels: Pixels::Rgba, size, pictures: Box::new(pictures) })
}

/// Decodes and composes the next picture.
fn shown(canvas: &mut Canvas, frame: &[u8]) -> io::Result<Picture> {
    let Some(([a, b, c, d, e, f, _, _, _, _, _, _, x, y, z, flags], content)) =
        frame.split_first_chunk::<16>()
    else {
        return Err(damaged("it is cut short"));
    };
    let mut still = vec![];
    for chunk in chunks(content) {
        let (name, content) = chunk?;
        if name == b"ALPH" {
            // Alpha requires the extended format, whose header contains the size.
            let head = [&[0x10_u8, 0, 0, 0][..], &frame[6..12]].concat();
            still.extend(riff_chunk(b"VP8X", &head));
        }
        if [b"ALPH", b"VP8 ", b"VP8L"].contains(&name) {
            still.extend(riff_chunk(name, content));
        }
    }
    let (bytes, size) = decoded(&riff_chunk(b"RIFF", &[b"WEBP".as_slice(), &still].concat()))?;
    let area = Area { left: 2 * u24([*a, *b, *c]), top: 2 * u24([*d, *e, *f]), size };
    let after = if flags & CLEAR == 0 { Disposal::Keep } else { Disposal::Clear };
    let bytes = canvas.compose(&bytes, area, flags & REPLACE == 0, after);
    let bytes = bytes.ok_or_else(|| damaged("a picture is outside of the WebP"))?;
    let milliseconds = u24([*x, *y, *z]) as u64;
    // As players do.
    let milliseconds = if milliseconds <= 10 { 100 } else { milliseconds };
    Ok(Picture { bytes, duration: Duration::from_millis(milliseconds) })
}

/// The `RGBA` bytes and the size of a still picture.
fn decoded(file: &[u8]) -> io::Result<(Vec<u8>, PixelSize)> {
    let picture =
        Decoder::new(file).decode().ok_or_else(|| damaged("libwebp cannot decode it, it is damaged"))?;
    let side = |pixels: u32| usize::try_from(pixels).unwrap_or(usize::MAX);
    let size = PixelSize { width: side(picture.width()), height: side(picture.height()) };
    let bytes = match picture.is_alpha() {
        true => picture.to_vec(),
        false => picture.as_chunks::<3>().0.iter().flat_map(|[r, g, b]| [*r, *g, *b, 255]).collect(),
    };
    Ok((bytes, size))
}

/// Names and contents of the chunks of a RIFF file.
fn chunks(mut bytes: &[u8]) -> impl Iterator<Item = io::Result<(&[u8; 4], &[u8])>> {
    let length = bytes.len();
    std::iter::from_fn(move || {
        let left = bytes.len();
        let (name, rest) = bytes.split_first_chunk::<4>()?;
        let whole = rest
            .split_first_chunk::<4>()
            .and_then(|(size, rest)| rest.split_at_checked(usize::try_from(u32::from_le_bytes(*size)).ok()?));
        let Some((content, rest)) = whole else {
            bytes = &[];
            return Some(Err(damaged(format!("it is damaged at byte {} of its chunks", length - left))));
        };
        // Chunks are padded to an even length.
        bytes = rest.get(content.len() % 2..).unwrap_or_default();
        Some(Ok((name, content)))
    })
}

fn riff_chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes();
    [&name[..], &length, content, &[0][..content.len() % 2]].concat()
}

fn u24([a, b, c]: [u8; 3]) -> usize {
    usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16
}
