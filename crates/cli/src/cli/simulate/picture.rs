//! A simulation as an SVG picture: one lane per device, a colour per job, openings of sessions hatched.

use super::table::clock;
use runtime::scheduler::{JobId, Seconds, Stage, Unit};
use runtime::simulation::{Activity, Scenario, SimulatedRun, Span};
use std::collections::BTreeSet;
use std::fmt::Write;

/// How every picture begins.
pub(super) const BEGIN: &str = "<svg class=\"rushes-simulate\" ";

/// Width of the time line in pixels.
const WIDTH: f64 = 1200.0;
/// Left of the time line: the names of the devices.
const LEFT: f64 = 90.0;
/// Top of the first lane.
const TOP: f64 = 48.0;
/// Height of a lane and of the gap below it.
const LANE: f64 = 44.0;
const GAP: f64 = 14.0;
/// Entries of the legend per row.
const PER_ROW: usize = 6;
/// The most jobs that the legend names.
const NAMED: usize = 60;

/// Draws the devices over time.
pub(super) fn draw(run: &SimulatedRun, scenario: &Scenario, about: &str) -> String {
    let end = run.spans.iter().map(|span| span.to).max().unwrap_or_default();
    let scale = if end > Seconds::ZERO { WIDTH / end.get() } else { 0.0 };
    let devices: Vec<String> =
        run.log.settings.devices.iter().map(|device| device.device.to_string()).collect();
    let jobs: BTreeSet<JobId> = run.spans.iter().map(|span| span.job).collect();
    let lanes = f64::from(u32::try_from(devices.len()).unwrap_or(u32::MAX));
    let rows = u32::try_from(jobs.len().min(NAMED).div_ceil(PER_ROW)).unwrap_or(u32::MAX);
    let axis = TOP + lanes * (LANE + GAP);
    let height = axis + 40.0 + 18.0 * f64::from(rows);
    // Writing into a String cannot fail.
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "{BEGIN}xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{height}\" viewBox=\"0 0 {w} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>",
        w = LEFT + WIDTH + 20.0
    );
    let _ = writeln!(svg, "<text x=\"8\" y=\"18\">{}</text>", escaped(about));
    hatches(&mut svg, &jobs);
    for (index, device) in devices.iter().enumerate() {
        let y = TOP + f64::from(u32::try_from(index).unwrap_or(u32::MAX)) * (LANE + GAP);
        let _ = writeln!(svg, "<text x=\"8\" y=\"{}\">{}</text>", y + LANE / 2.0 + 4.0, escaped(device));
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{LANE}\" fill=\"#f2f2f2\"/>"
        );
        for span in joined(run.spans.iter().filter(|span| span.device.to_string() == *device)) {
            rectangle(&mut svg, &span, (y, scale));
        }
    }
    time_axis(&mut svg, axis, end);
    for (index, job) in jobs.iter().take(NAMED).enumerate() {
        let (row, column) = (index / PER_ROW, index % PER_ROW);
        let x = LEFT + 200.0 * f64::from(u32::try_from(column).unwrap_or_default());
        let y = axis + 44.0 + 18.0 * f64::from(u32::try_from(row).unwrap_or_default());
        let clip = scenario.clips.get(job).map_or("", String::as_str);
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{}\" y=\"{y}\">{} {}</text>",
            y - 11.0,
            colour(*job),
            x + 17.0,
            job.0,
            escaped(clip)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// One hatch pattern per job.
fn hatches(svg: &mut String, jobs: &BTreeSet<JobId>) {
    svg.push_str("<defs>\n");
    for job in jobs {
        let _ = writeln!(
            svg,
            "<pattern id=\"hatch-{}\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" \
             patternTransform=\"rotate(45)\"><rect width=\"6\" height=\"6\" fill=\"#fff\"/>\
             <rect width=\"3\" height=\"6\" fill=\"{}\"/></pattern>",
            job.0,
            colour(*job)
        );
    }
    svg.push_str("</defs>\n");
}

/// Joins units of one job on one session that follow each other without a gap.
fn joined<'a>(spans: impl Iterator<Item = &'a Span>) -> Vec<Span> {
    let runs = |activity: Activity| match activity {
        Activity::Run { unit, in_pair } => Some((unit.stage(), in_pair)),
        Activity::Load { .. } => None,
    };
    let mut result: Vec<Span> = Vec::new();
    for span in spans.filter(|span| span.to > span.from) {
        match result.last_mut() {
            Some(last)
                if last.job == span.job
                    && last.to == span.from
                    && runs(last.activity).is_some()
                    && runs(last.activity) == runs(span.activity) =>
            {
                last.to = span.to;
            }
            _ => result.push(*span),
        }
    }
    result
}

fn rectangle(svg: &mut String, span: &Span, (y, scale): (f64, f64)) {
    let (x, width) = (LEFT + span.from.get() * scale, (span.to.get() - span.from.get()) * scale);
    let (fill, what) = match span.activity {
        Activity::Load { session, swap } => {
            let swap = if swap { " (swap)" } else { "" };
            (format!("url(#hatch-{})", span.job.0), format!("opening of the {}{swap}", session.stage))
        }
        Activity::Run { unit, in_pair } => {
            let pair = if in_pair { " in a pair" } else { "" };
            (colour(span.job), format!("{}{pair}", name(unit)))
        }
    };
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"{LANE}\" fill=\"{fill}\"><title>{}: {what}, {} to {}\
         </title></rect>",
        span.job,
        clock(span.from),
        clock(span.to)
    );
    if width >= 26.0 {
        let label = match span.activity {
            Activity::Run { unit, in_pair } => match unit.stage() {
                Stage::TextEncoder => "text".to_owned(),
                Stage::Expert(expert) if in_pair => format!("e{}/2", expert.0),
                Stage::Expert(expert) => format!("e{}", expert.0),
                Stage::Decoder => "dec".to_owned(),
            },
            Activity::Load { .. } => String::new(),
        };
        let (x, y) = (x + width / 2.0, y + LANE / 2.0 + 4.0);
        let _ = writeln!(svg, "<text x=\"{x:.2}\" y=\"{y}\" text-anchor=\"middle\">{label}</text>");
    }
}

fn name(unit: Unit) -> &'static str {
    match unit {
        Unit::Encode => "text encoding",
        Unit::Step { .. } => "steps",
        Unit::Chunk { .. } => "decoding",
    }
}

fn time_axis(svg: &mut String, y: f64, end: Seconds) {
    for tick in 0..=8_u32 {
        let share = f64::from(tick) / 8.0;
        let x = LEFT + WIDTH * share;
        let time = Seconds::try_new(end.get() * share).unwrap_or_default();
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" y1=\"{TOP}\" x2=\"{x}\" y2=\"{y}\" stroke=\"#bbb\"/>\
             <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            y + 14.0,
            clock(time)
        );
    }
}

/// The colour of a job: hues a golden angle apart, so that neighbours differ. Written as RGB, which every viewer knows.
fn colour(JobId(number): JobId) -> String {
    let hue = number.wrapping_mul(137) % 360;
    // The largest and the smallest of the three channels, and one that rises or falls between them within 60 degrees.
    let (most, least) = (224, 123);
    let rising = least + (most - least) * (hue % 60) / 60;
    let falling = most + least - rising;
    let [red, green, blue] = match hue / 60 {
        0 => [most, rising, least],
        1 => [falling, most, least],
        2 => [least, most, rising],
        3 => [least, falling, most],
        4 => [rising, least, most],
        _ => [most, least, falling],
    };
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Text without the characters that XML uses.
fn escaped(text: &str) -> String {
    let visible = text.chars().filter(|c| !c.is_control());
    visible.fold(String::new(), |mut escaped, c| {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
        escaped
    })
}
