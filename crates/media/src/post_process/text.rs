//! Text rendering with Pango.

use super::load::colours;
use super::overlay::Overlay;
use crate::plugins::{self, MissingElement};
use crate::{Error, PixelLayout, buffers, frames::RgbLayout};
use bundle::geometry::PixelSize;
use bundle::units::FrameRate;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::{AppSink, AppSrc};
use ndarray::Array3;
use std::process::Command;

/// The most characters of a caption in errors and notes.
const MAX_QUOTED_CHARS: usize = 40;

/// Checks that the `textoverlay` element and a font for every character are installed.
///
/// # Errors
/// Returns an error with the Debian package of a missing element or font.
pub(crate) fn check(texts: &[&str]) -> Result<(), Error> {
    plugins::survey()?;
    if !plugins::installed("textoverlay") {
        let missing = MissingElement { element: "textoverlay", package: "gstreamer1.0-x" };
        return Err(Error::MissingElements { output: "a caption".into(), elements: vec![missing] });
    }
    let mut characters: Vec<char> = texts
        .iter()
        .flat_map(|text| text.chars())
        .filter(|c| !c.is_whitespace() && !c.is_control())
        .collect();
    characters.sort_unstable();
    characters.dedup();
    let code_points: Vec<String> = characters.iter().map(|c| format!("{:x}", u32::from(*c))).collect();
    if code_points.is_empty() || has_font(&code_points) {
        return Ok(());
    }
    let missing =
        characters.iter().zip(&code_points).find(|(_, code)| !has_font(std::slice::from_ref(*code)));
    // Pango combines several fonts.
    let Some((character, _)) = missing else { return Ok(()) };
    let package = match u32::from(*character) {
        0x2e80..=0x9fff | 0xf900..=0xfaff | 0xff00..=0xffef | 0x20000.. => "fonts-wqy-microhei",
        0xac00..=0xd7ff => "fonts-unfonts-core",
        0..0x530 => "fonts-dejavu-core",
        _ => "fonts-noto-core",
    };
    Err(Error::NoFont { character: *character, package })
}

/// Returns true if fontconfig finds a font with all these characters, or if it cannot be run.
fn has_font(code_points: &[String]) -> bool {
    let pattern = format!(":charset={}", code_points.join(" "));
    let found = Command::new("fc-list").args([&pattern, "family"]).output();
    found.map_or(true, |found| !found.status.success() || !found.stdout.is_empty())
}

/// Draws a text with a font size in pixels, wrapped to the width of `room`. Returns `None` if the text is higher than
/// `room` or if nothing is visible.
///
/// # Errors
/// Returns an error if the pipeline fails.
pub(crate) fn draw(text: &str, pixels: usize, room: PixelSize) -> Result<Option<Overlay>, Error> {
    let failed = |why: String| Error::Caption { caption: short(text), why };
    let broken = |error: gst::glib::BoolError| failed(error.to_string());
    // A text that is too high touches the upper edge of the frame, which is detected below.
    let size = PixelSize { width: room.width, height: room.height + 2 };
    let caps = buffers::caps(size, FrameRate::try_new(1)?, PixelLayout::Rgb).map_err(broken)?;
    let source = AppSrc::builder().caps(&caps).format(gst::Format::Time).build();
    let overlay = gst::ElementFactory::make("textoverlay")
        .property("text", escaped(text))
        .property("font-desc", format!("Sans {pixels}px"))
        .property("auto-resize", false)
        .property("shaded-background", true)
        .property("ypad", 0)
        .property_from_str("valignment", "bottom")
        .property_from_str("wrap-mode", "wordchar")
        .build()
        .map_err(broken)?;
    let sink = AppSink::builder().caps(&caps).sync(false).build();
    let pipeline = gst::Pipeline::new();
    let chain = [source.upcast_ref(), &overlay, sink.upcast_ref()];
    pipeline.add_many(chain).map_err(broken)?;
    gst::Element::link_many(chain).map_err(broken)?;
    pipeline.set_state(gst::State::Playing).map_err(|error| failed(error.to_string()))?;
    let layout =
        RgbLayout::new(size.width, size.height).ok_or_else(|| failed(format!("a picture cannot be {size}")));
    let bytes = layout?.bytes();
    let drawn = |number: usize, grey: u8| {
        let buffer = gst::Buffer::from_mut_slice(vec![grey; bytes]);
        source
            .push_buffer(buffers::timed(buffer, number, FrameRate::try_new(1)?))
            .map_err(|e| failed(e.to_string()))?;
        let sample = sink.try_pull_sample(gst::ClockTime::from_seconds(20));
        let colours: Option<Array3<f32>> = sample.and_then(|sample| colours(&sample, size));
        colours.map(|colours| colours * 0.5 + 0.5).ok_or_else(|| failed("it could not be drawn".into()))
    };
    let both = drawn(0, 0).and_then(|black| Ok((black, drawn(1, 255)?)));
    // An error does not matter after the last frame.
    let _ = pipeline.set_state(gst::State::Null);
    let (black, white) = both?;
    let drawn = Overlay::from_black_and_white(black.view(), white.view());
    Ok(drawn.filter(|drawn| drawn.top() > 0 && drawn.height() <= room.height))
}

/// The start of a text, in backticks.
pub(super) fn short(text: &str) -> String {
    let line = text.replace('\n', " ");
    let mut short: String = line.chars().take(MAX_QUOTED_CHARS).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    format!("`{short}`")
}

/// Escapes a text for Pango markup.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
