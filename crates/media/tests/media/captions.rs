//! Rendered captions: none is dropped, cut off or drawn over another.

use crate::clip::format;
use bundle::{Diagnose, ErrorClass};
use media::Error;
use media::post_process::{Caption, PostProcess, PostProcessSpec};
use ndarray::{Array3, Axis, s};
use std::ops::Range;
use std::time::Duration;

const FRAMES: usize = 16;

fn caption(millis: Range<u64>, text: &str) -> Caption {
    let time = Duration::from_millis;
    Caption { start: time(millis.start), end: time(millis.end), text: text.into() }
}

fn open(captions: Vec<Caption>, size: &str) -> Result<PostProcess, Error> {
    PostProcessSpec { captions, ..PostProcessSpec::default() }.open(format(size, 16, FRAMES))
}

/// The rows that captions change, in each frame of one second.
fn rows(mut post_process: PostProcess) -> Vec<Option<Range<usize>>> {
    let size = post_process.format().size;
    let grey = Array3::from_elem((3, size.height, size.width), 0.25);
    let changed = |frame: Array3<f32>| {
        let is_changed = |row: &usize| frame.index_axis(Axis(1), *row).iter().any(|value| *value != 0.25);
        let first = (0..size.height).find(is_changed)?;
        Some(first..(0..size.height).rfind(is_changed)? + 1)
    };
    (0..FRAMES).flat_map(|_| post_process.push(grey.clone()).unwrap()).map(changed).collect()
}

/// The rows of a caption that is always shown, and the notes about it.
fn shown(text: &str, size: &str) -> (Range<usize>, Vec<String>) {
    let post_process = open(vec![Caption::always(text)], size).unwrap();
    let notes = post_process.notes().to_vec();
    (rows(post_process)[0].clone().unwrap(), notes)
}

#[test]
fn a_caption_is_wrapped_then_shrunk_then_refused() {
    let (one, notes) = shown("Hello", "320x192");
    assert_eq!(notes, Vec::<String>::new());
    assert!(one.start > 192 / 2 && one.end <= 192, "{one:?}");
    let words = "every word of this must be visible ".repeat(4);
    let (more, notes) = shown(&words, "320x192");
    assert!(more.len() > 2 * one.len() && notes.is_empty(), "{more:?} {notes:?}");
    let (full, notes) = shown(&words.repeat(4), "320x192");
    assert!(full.len() > more.len(), "{full:?}");
    assert!(notes[0].contains("drawn in letters of"), "{notes:?}");

    let error = open(vec![Caption::always(words.repeat(16))], "320x192").unwrap_err().report();
    assert_eq!(error.class, ErrorClass::BadInput);
    assert!(error.what.contains("`every word") && error.why.contains("320x192"), "{error}");
}

#[test]
fn no_caption_disappears_at_any_size() {
    let long_word = "Donaudampfschifffahrtsgesellschaftskapitän".repeat(3);
    let lines = "one\ntwo\nthree\nfour";
    for size in ["320x192", "192x320", "832x480", "128x96", "96x64", "64x32", "48x32", "32x32", "640x64"] {
        for text in ["a", "A < B & C", "Hello, world", &long_word, lines] {
            match open(vec![Caption::always(text)], size) {
                Ok(post_process) => {
                    let height = post_process.format().size.height;
                    let found = rows(post_process);
                    assert!(found.iter().all(|rows| *rows == found[0]), "{text} at {size}");
                    let rows = found[0].clone().unwrap_or_else(|| panic!("{text} at {size} is not visible"));
                    assert!(rows.len() >= 8 && rows.end <= height, "{text} at {size}: {rows:?}");
                }
                Err(error) => assert!(matches!(error, Error::Caption { .. }), "{text} at {size}: {error}"),
            }
        }
    }
    // Ordinary texts at ordinary sizes are never refused.
    for size in ["320x192", "832x480", "1280x720", "480x832"] {
        shown(&long_word, size);
        shown(lines, size);
    }
    for text in ["", " ", "\n", "\u{200b}", "\u{feff} "] {
        let error = open(vec![Caption::always(text)], "320x192").unwrap_err();
        assert!(matches!(error, Error::Caption { .. }), "{text:?}: {error}");
    }
}

#[test]
fn text_without_spaces_is_wrapped() {
    // Without a font for these characters, the error names one of them.
    match open(vec![Caption::always("一只猫在雪地里跑".repeat(4))], "320x192") {
        Ok(post_process) => assert!(rows(post_process)[0].clone().unwrap().len() > 30),
        Err(error) => assert!(matches!(error, Error::NoFont { .. }), "{error}"),
    }
    let (wrapped, _) = shown(&"a".repeat(120), "320x192");
    let (one, _) = shown("a", "320x192");
    assert!(wrapped.len() > one.len() + 20, "{wrapped:?}");
}

#[test]
fn simultaneous_captions_are_stacked() {
    let alone = rows(open(vec![caption(0..500, "first")], "320x192").unwrap())[0].clone().unwrap();
    let both = vec![caption(0..500, "first"), caption(250..1000, "second"), caption(300..400, "third")];
    let both = rows(open(both, "320x192").unwrap());
    assert_eq!(both[0].clone().unwrap(), alone);
    // The second keeps its position after the first has ended.
    let second = both[12].clone().unwrap();
    assert!(second.end <= alone.start && second.len() >= alone.len() - 4, "{second:?} above {alone:?}");
    let all = both[5].clone().unwrap();
    assert!(all.start < second.start && all.end == alone.end, "{all:?}");
    // Consecutive captions have the same position.
    let consecutive =
        rows(open(vec![caption(0..500, "first"), caption(500..1000, "first")], "320x192").unwrap());
    assert!(consecutive.iter().all(|rows| *rows == Some(alone.clone())), "{consecutive:?}");

    // Many simultaneous captions are shrunk; too many are refused.
    let many = |count: u64| (0..count).map(|n| caption(n..1000, &format!("caption {n}"))).collect();
    let post_process = open(many(10), "320x192").unwrap();
    assert!(post_process.notes()[0].contains("10 captions"), "{:?}", post_process.notes());
    let error = open(many(40), "320x192").unwrap_err().to_string();
    assert!(error.contains("together with 39"), "{error}");
}

#[test]
fn captions_shown_in_no_frame_are_reported() {
    let post_process = open(
        vec![
            caption(0..1000, "shown"),
            caption(2000..3000, "late"),
            caption(4000..5000, "later"),
            caption(500..500, "never"),
        ],
        "320x192",
    )
    .unwrap();
    let notes = post_process.notes().join("\n");
    assert!(
        notes.contains("begin after the end of the clip") && notes.contains("`late` at 00:00:02,000"),
        "{notes}"
    );
    assert!(notes.contains("and 1 more") && notes.contains("`never`"), "{notes}");
    // Shorter than a frame, between two frames: shown in the frame on screen at that time.
    let brief = rows(open(vec![caption(70..80, "brief")], "320x192").unwrap());
    assert!(brief[1].is_some() && brief[0].is_none() && brief[2].is_none(), "{brief:?}");
}

#[test]
fn captions_are_not_cut_off_at_the_sides() {
    // The text is brighter than its background. None of it may touch the edge of the frame.
    for text in ["W".repeat(200), "wide words ".repeat(20), "i".repeat(300)] {
        let mut post_process = open(vec![Caption::always(text)], "160x240").unwrap();
        let frame = post_process.push(Array3::from_elem((3, 240, 160), -1.0)).unwrap().remove(0);
        for column in [0, 159] {
            let edge = frame.slice(s![.., .., column]);
            assert!(edge.iter().all(|value| *value < 0.9), "{}", edge.fold(-1.0_f32, |a, b| a.max(*b)));
        }
    }
}
