//! YUV4MPEG2 with 8 bits and 4:2:0.

use super::{Animation, Picture, Pixels, damaged};
use crate::frames::I420Layout;
use bundle::geometry::PixelSize;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::time::Duration;

/// The most bytes of a line of text.
const MAX_LINE_BYTES: u64 = 1024;
/// The longest side of a picture.
const MAX_SIDE: usize = 16_384;

pub(super) fn open(mut file: BufReader<File>) -> io::Result<Animation> {
    let line = line(&mut file)?.ok_or_else(|| damaged("it is empty"))?;
    let Head { size, duration } = Head::parse(&line).map_err(damaged)?;
    let refused = || damaged(format!("YUV4MPEG2 of {size} is not read; its sides must be even"));
    let layout = I420Layout::new(size.width, size.height).ok_or_else(refused)?;
    let frames = Frames { file, layout, duration, read: 0, ended: false };
    Ok(Animation { pixels: Pixels::I420, size, pictures: Box::new(frames) })
}

/// The fields of the first line.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    size: PixelSize,
    duration: Duration,
}

impl Head {
    fn parse(line: &str) -> Result<Self, String> {
        let field = |letter: char| line.split(' ').skip(1).find_map(|word| word.strip_prefix(letter));
        let side = |letter: char| {
            let pixels: Option<usize> = field(letter).and_then(|pixels| pixels.parse().ok());
            pixels
                .filter(|pixels| (1..=MAX_SIDE).contains(pixels))
                .ok_or(format!("its header has no valid {letter}"))
        };
        let size = PixelSize { width: side('W')?, height: side('H')? };
        match field('C').unwrap_or("420") {
            "420" | "420jpeg" | "420mpeg2" | "420paldv" => {}
            other => return Err(format!("YUV4MPEG2 of the kind {other} is not read, only 8 bits of 4:2:0")),
        }
        let rate = field('F').and_then(|rate| rate.split_once(':'));
        let rate = rate.and_then(|(a, b)| Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?)));
        let (frames, seconds) =
            rate.filter(|(a, b)| *a > 0 && *b > 0).ok_or("its header has no valid F, the rate")?;
        let nanoseconds = u64::from(seconds) * 1_000_000_000 / u64::from(frames);
        Ok(Self { size, duration: Duration::from_nanos(nanoseconds) })
    }
}

struct Frames {
    file: BufReader<File>,
    layout: I420Layout,
    duration: Duration,
    read: usize,
    ended: bool,
}

impl Frames {
    fn read(&mut self) -> io::Result<Option<Picture>> {
        let Some(head) = line(&mut self.file)? else { return Ok(None) };
        let number = self.read;
        if head.split(' ').next() != Some("FRAME") {
            return Err(damaged(format!("it is damaged at frame {number}, which does not begin with FRAME")));
        }
        let mut bytes = vec![0; self.layout.bytes()];
        for (start, stride, row, rows) in self.layout.planes() {
            for y in 0..rows {
                let row = &mut bytes[start + y * stride..][..row];
                let cut = self.file.read_exact(row).is_err();
                if cut {
                    return Err(damaged(format!("it is cut short in frame {number}")));
                }
            }
        }
        self.read += 1;
        Ok(Some(Picture { bytes, duration: self.duration }))
    }
}

impl Iterator for Frames {
    type Item = io::Result<Picture>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let read = self.read().transpose();
        self.ended = !matches!(read, Some(Ok(_)));
        read
    }
}

/// Reads the next line. Returns `None` at the end of the file.
fn line(file: &mut BufReader<File>) -> io::Result<Option<String>> {
    let mut line = vec![];
    file.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    let text = line.strip_suffix(b"\n").ok_or_else(|| damaged("a line of its text does not end"))?;
    String::from_utf8(text.to_vec()).map(Some).map_err(|_not_text| damaged("a line of its text is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_size_and_rate() {
        let head = Head::parse("YUV4MPEG2 W832 H480 F16:1 Ip A1:1 C420jpeg XCOLORRANGE=LIMITED").unwrap();
        assert_eq!(head.size, PixelSize { width: 832, height: 480 });
        assert_eq!(head.duration, Duration::from_micros(62_500));
        assert_eq!(Head::parse("YUV4MPEG2 W2 H2 F30000:1001").unwrap().duration.as_micros(), 33_366);
        for wrong in [
            "YUV4MPEG2 H480 F16:1",
            "YUV4MPEG2 W0 H480 F16:1",
            "YUV4MPEG2 W99999 H480 F16:1",
            "YUV4MPEG2 W2 H2",
            "YUV4MPEG2 W2 H2 F0:0",
            "YUV4MPEG2 W2 H2 F16:1 C444",
            "YUV4MPEG2 W2 H2 F16:1 C420p10",
        ] {
            assert!(Head::parse(wrong).is_err(), "{wrong}");
        }
    }
}
