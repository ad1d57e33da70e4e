//! Drawing of captions at their times, as large as they fit. Simultaneous captions are stacked.

use super::Caption;
use super::overlay::Overlay;
use super::text;
use crate::{ClipFormat, Error};
use bundle::geometry::PixelSize;
use bundle::units::FrameRate;
use ndarray::Array3;
use std::ops::Range;
use std::time::Duration;

/// The smallest readable font size in pixels.
const MIN_PIXELS: usize = 10;
/// The ratio of the next smaller font size.
const SHRINK: (usize, usize) = (7, 8);

/// The captions of a clip.
#[derive(Debug, Default)]
pub(super) struct Captions {
    drawn: Vec<(Range<usize>, Overlay)>,
    /// Notes for the user.
    pub(super) notes: Vec<String>,
}

impl Captions {
    /// Draws all captions that are shown in a clip.
    ///
    /// # Errors
    /// Returns an error if a caption has no visible character or does not fit, or if a font or an element is missing.
    pub(super) fn open(captions: &[Caption], format: ClipFormat) -> Result<Self, Error> {
        let mut all = Self::default();
        if captions.is_empty() {
            return Ok(all);
        }
        text::check(&captions.iter().map(|caption| &*caption.text).collect::<Vec<_>>())?;
        let mut timed: Vec<(Range<usize>, &Caption)> = vec![];
        let (mut late, mut brief) = (vec![], vec![]);
        for caption in captions {
            if !caption.text.chars().any(is_visible) {
                return Err(refusal(caption, "it has no visible character"));
            }
            let frames = frames(caption, format.rate);
            match format.frames {
                _ if frames.is_empty() => brief.push(caption),
                Some(count) if frames.start >= count => late.push(caption),
                count => timed.push((frames.start..frames.end.min(count.unwrap_or(usize::MAX)), caption)),
            }
        }
        all.notes.extend(not_shown(&late, "begin after the end of the clip"));
        all.notes.extend(not_shown(&brief, "have no duration"));
        timed.sort_by_key(|(frames, _)| frames.start);
        for group in groups(&timed) {
            all.add(group, format.size)?;
        }
        Ok(all)
    }

    /// Draws the captions of a frame over it.
    pub(super) fn draw(&self, number: usize, frame: &mut Array3<f32>) {
        for (_, drawn) in self.drawn.iter().filter(|(frames, _)| frames.contains(&number)) {
            drawn.draw(frame);
        }
    }

    /// Draws simultaneous captions with the largest font size at which all of them fit.
    fn add(&mut self, group: &[(Range<usize>, &Caption)], size: PixelSize) -> Result<(), Error> {
        let usual = (size.width / 24).max(MIN_PIXELS + 2);
        let margin = size.height / 20;
        let without_margin = (MIN_PIXELS, 0);
        for (pixels, margin) in sizes(usual).map(|pixels| (pixels, margin)).chain([without_margin]) {
            let drawn: Option<Vec<Overlay>> = group
                .iter()
                .map(|(_, caption)| text::draw(&caption.text, pixels, size))
                .collect::<Result<_, _>>()?;
            let Some(drawn) = drawn else { continue };
            let shown: Vec<_> = group
                .iter()
                .zip(&drawn)
                .map(|((frames, _), drawn)| (frames.clone(), drawn.height()))
                .collect();
            let Some(tops) = stacked(&shown, size.height.saturating_sub(margin)) else { continue };
            if pixels < usual {
                self.notes.push(format!(
                    "{} drawn in letters of {pixels} pixels instead of {usual}, so that {}",
                    match group {
                        [(_, one)] => format!("the caption {} is", quoted(one)),
                        [(_, first), ..] => format!("{} captions from {} on are", group.len(), quoted(first)),
                        [] => String::new(),
                    },
                    if group.len() == 1 { "it fits" } else { "they fit" },
                ));
            }
            let placed = group.iter().zip(drawn).zip(tops);
            self.drawn
                .extend(placed.map(|(((frames, _), drawn), top)| (frames.clone(), drawn.moved_to(top))));
            return Ok(());
        }
        let [(_, first), rest @ ..] = group else { return Ok(()) };
        let with = match rest.len() {
            0 => String::new(),
            others => format!(" together with {others} that are shown at the same time"),
        };
        Err(refusal(
            first,
            &format!("it does not fit into {size}{with}, even in letters of {MIN_PIXELS} pixels"),
        ))
    }
}

/// Font sizes from the usual one to the smallest.
fn sizes(usual: usize) -> impl Iterator<Item = usize> {
    let smaller =
        |pixels: &usize| (*pixels > MIN_PIXELS).then(|| (pixels * SHRINK.0 / SHRINK.1).max(MIN_PIXELS));
    std::iter::successors(Some(usual), smaller)
}

/// The frames in which a caption is shown: those that start within its time, or else the one that is shown at its
/// start.
fn frames(caption: &Caption, rate: FrameRate) -> Range<usize> {
    let (rate, seconds) = rate.fraction();
    let (rate, second) = (u128::from(rate), Duration::from_secs(seconds.into()).as_nanos());
    let index = |number: u128| usize::try_from(number).unwrap_or(usize::MAX);
    let from = |time: Duration| index((time.as_nanos() * rate).div_ceil(second));
    let found = from(caption.start)..from(caption.end);
    if found.is_empty() && caption.end > caption.start {
        let shown = index(caption.start.as_nanos() * rate / second);
        return shown..shown.saturating_add(1);
    }
    found
}

/// Splits captions, sorted by their first frame, into groups that overlap in time.
fn groups<T>(captions: &[(Range<usize>, T)]) -> Vec<&[(Range<usize>, T)]> {
    let mut groups = vec![];
    let (mut from, mut end) = (0, 0);
    for (index, (frames, _)) in captions.iter().enumerate() {
        if frames.start >= end && index > from {
            groups.push(&captions[from..index]);
            from = index;
        }
        end = end.max(frames.end);
    }
    groups.extend((from < captions.len()).then(|| &captions[from..]));
    groups
}

/// Computes the upper rows of pictures of the given frames and heights above `bottom`, so that simultaneous pictures do
/// not overlap. Each is as low as the previous ones allow. Returns `None` if one is above the frame.
fn stacked(shown: &[(Range<usize>, usize)], bottom: usize) -> Option<Vec<usize>> {
    let mut placed: Vec<(Range<usize>, Range<usize>)> = vec![];
    for (frames, height) in shown {
        let mut lower = bottom;
        loop {
            let top = lower.checked_sub(*height)?;
            let overlapping = placed.iter().find(|(others, rows)| {
                others.start < frames.end && frames.start < others.end && rows.start < lower && top < rows.end
            });
            match overlapping {
                Some((_, rows)) => lower = rows.start,
                None => break placed.push((frames.clone(), top..lower)),
            }
        }
    }
    Some(placed.into_iter().map(|(_, rows)| rows.start).collect())
}

fn is_visible(c: char) -> bool {
    let invisible = ['\u{ad}', '\u{61c}', '\u{2060}', '\u{feff}'];
    let ranges = ['\u{200b}'..='\u{200f}', '\u{202a}'..='\u{202e}', '\u{2066}'..='\u{2069}'];
    !(c.is_whitespace()
        || c.is_control()
        || invisible.contains(&c)
        || ranges.iter().any(|range| range.contains(&c)))
}

/// A note about captions that are never shown.
fn not_shown(captions: &[&Caption], why: &str) -> Option<String> {
    let (first, rest) = captions.split_first()?;
    let others = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    Some(format!("warning: captions that {why} are not shown: {}{others}", quoted(first)))
}

fn refusal(caption: &Caption, why: &str) -> Error {
    Error::Caption { caption: quoted(caption), why: why.to_owned() }
}

/// A caption in messages: its text and its start.
fn quoted(caption: &Caption) -> String {
    let text = text::short(&caption.text);
    if caption.end == Duration::MAX {
        return text;
    }
    let (seconds, millis) = (caption.start.as_secs(), caption.start.subsec_millis());
    format!("{text} at {:02}:{:02}:{:02},{millis:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn caption(start: u64, end: u64) -> Caption {
        let millis = Duration::from_millis;
        Caption { start: millis(start), end: millis(end), text: "a".into() }
    }

    fn shown(start: u64, end: u64, rate: u32) -> Range<usize> {
        frames(&caption(start, end), FrameRate::try_new(rate).unwrap())
    }

    #[test]
    fn a_caption_is_shown_in_the_frames_of_its_time() {
        assert_eq!(shown(250, 500, 16), 4..8);
        assert_eq!(shown(0, 1000, 24), 0..24);
        assert_eq!(frames(&Caption::always("a"), FrameRate::try_new(240).unwrap()), 0..usize::MAX);
        // Shorter than a frame, between two frames: the frame that is shown at its start.
        assert_eq!(shown(70, 80, 16), 1..2);
        assert_eq!(shown(1, 2, 1), 0..1);
        assert!(shown(500, 500, 16).is_empty());
    }

    #[test]
    fn overlapping_captions_are_a_group() {
        let captions = [(0..4, 'a'), (2..6, 'b'), (5..9, 'c'), (9..10, 'd'), (20..21, 'e')];
        let found: Vec<String> =
            groups(&captions).into_iter().map(|group| group.iter().map(|c| c.1).collect()).collect();
        assert_eq!(found, ["abc", "d", "e"]);
        assert!(groups::<char>(&[]).is_empty());
    }

    #[test]
    fn simultaneous_captions_are_stacked() {
        assert_eq!(stacked(&[(0..4, 10), (2..6, 5), (5..9, 8), (3..4, 2)], 100), Some(vec![90, 85, 92, 83]));
        assert_eq!(stacked(&[(0..4, 60), (2..6, 41)], 100), None);
        assert_eq!(stacked(&[(0..4, 60), (4..6, 41)], 100), Some(vec![40, 59]));
    }

    #[test]
    fn font_sizes_shrink_to_the_smallest_readable_one() {
        assert_eq!(sizes(34).collect::<Vec<_>>(), [34, 29, 25, 21, 18, 15, 13, 11, 10]);
        assert_eq!(sizes(12).collect::<Vec<_>>(), [12, 10]);
    }

    proptest! {
        #[test]
        fn captions_never_overlap_and_stay_within_the_frame(
            shown in prop::collection::vec((0_usize..20, 1_usize..8, 1_usize..30), 0..12),
        ) {
            let shown: Vec<_> = shown.into_iter().map(|(from, long, high)| (from..from + long, high)).collect();
            if let Some(tops) = stacked(&shown, 100) {
                let rows: Vec<_> = shown.iter().zip(tops).map(|((_, high), top)| top..top + high).collect();
                for (a, (at_a, _)) in shown.iter().enumerate() {
                    prop_assert!(rows[a].end <= 100);
                    for (b, (at_b, _)) in shown.iter().enumerate().skip(a + 1) {
                        let together = at_a.start < at_b.end && at_b.start < at_a.end;
                        let crossing = rows[a].start < rows[b].end && rows[b].start < rows[a].end;
                        prop_assert!(!(together && crossing));
                    }
                }
            }
        }
    }
}
