//! The jobs as a table.

use super::rows::{clip, is_open_take, steps, steps_done};
use super::times::clock;
use ::jobs::store::{JobRow, Progress, State};
use std::fmt::Write;
use std::path::Path;

/// The most columns of a model, an output and a prompt.
const LONGEST: (usize, usize, usize) = (20, 32, 40);
/// The least columns of a model, an output and a prompt that are shortened for a narrow terminal.
const SHORTEST: (usize, usize, usize) = (6, 12, 12);
/// The column of models.
pub(super) const MODEL: Column = cut("model", Cut::KeepsStart(SHORTEST.0));
/// The column of outputs.
pub(super) const OUTPUT: Column = cut("output", Cut::KeepsEnd(SHORTEST.1));
/// The column of prompts.
pub(super) const PROMPT: Column = cut("prompt", Cut::KeepsStart(SHORTEST.2));

/// The table of jobs, in lines of at most `width` columns, and a line for each job that is held. Outputs below `here` are
/// shown without it.
pub(super) fn draw(rows: &[JobRow], here: &Path, width: Option<usize>) -> String {
    let columns = [
        right("id"),
        left("state"),
        left("priority"),
        MODEL,
        left("clip"),
        right("steps"),
        left("at"),
        right("left"),
        OUTPUT,
        PROMPT,
    ];
    let cells: Vec<[String; 10]> = rows.iter().map(|row| cells(row, here)).collect();
    let mut text = align(&columns, &cells, width);
    for row in rows {
        if let Some(held) = row.progress.held.as_deref().filter(|_| !row.state.has_ended()) {
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{} is held: {held}", row.id);
        }
    }
    text
}

/// How a cell is shortened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// It is not.
    Never,
    /// Its first characters are kept, and at least this many columns.
    KeepsStart(usize),
    /// Its last characters are kept, and at least this many columns.
    KeepsEnd(usize),
}

/// A column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) heading: &'static str,
    /// True if its cells end at the same place.
    pub(super) is_right: bool,
    /// How its cells are shortened if the table is too wide. The last column is shortened first.
    pub(super) cut: Cut,
}

/// A column whose cells begin at the same place and are not shortened.
pub(super) const fn left(heading: &'static str) -> Column {
    Column { heading, is_right: false, cut: Cut::Never }
}

/// A column whose cells end at the same place and are not shortened.
pub(super) const fn right(heading: &'static str) -> Column {
    Column { heading, is_right: true, cut: Cut::Never }
}

/// A column that is shortened.
pub(super) const fn cut(heading: &'static str, cut: Cut) -> Column {
    Column { heading, is_right: false, cut }
}

/// The columns of a terminal that a text takes.
pub(super) fn width_of(text: &str) -> usize {
    console::measure_text_width(text)
}

/// Cells below headings, in lines of at most `width` columns of the terminal.
pub(super) fn align<const N: usize>(
    columns: &[Column; N],
    rows: &[[String; N]],
    width: Option<usize>,
) -> String {
    let mut widths = columns.map(|column| column.heading.len());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(width_of(cell));
        }
    }
    let mut surplus = width.map_or(0, |width| total(&widths).saturating_sub(width));
    for (column, width) in columns.iter().zip(&mut widths).rev() {
        let least = match column.cut {
            Cut::Never => continue,
            Cut::KeepsStart(least) | Cut::KeepsEnd(least) => least.max(column.heading.len()),
        };
        let shorter = width.saturating_sub(surplus).max(least.min(*width));
        surplus -= *width - shorter;
        *width = shorter;
    }
    let mut text = String::new();
    let mut line = |cells: &[String; N]| {
        let mut line = String::new();
        for ((cell, width), column) in cells.iter().zip(widths).zip(columns) {
            let cell = match column.cut {
                Cut::Never => cell.clone(),
                Cut::KeepsStart(_) => beginning(cell, width),
                Cut::KeepsEnd(_) => end(cell, width),
            };
            let space = " ".repeat(width.saturating_sub(width_of(&cell)));
            let (first, second) = if column.is_right { (&space, &cell) } else { (&cell, &space) };
            line.push_str(first);
            line.push_str(second);
            line.push_str("  ");
        }
        text.push_str(&within(line.trim_end(), width));
        text.push('\n');
    };
    line(&columns.map(|column| column.heading.to_owned()));
    rows.iter().for_each(line);
    text
}

/// The columns of a line with cells of these widths.
pub(super) fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)
}

/// A line, shortened to a width.
pub(super) fn within(line: &str, width: Option<usize>) -> String {
    width.map_or_else(|| line.to_owned(), |width| beginning(line, width))
}

fn cells(row: &JobRow, here: &Path) -> [String; 10] {
    let is_running = row.state == State::Running;
    let nothing = || "-".to_owned();
    [
        row.id.0.to_string(),
        row.state.name().to_owned(),
        row.request.priority.name().to_owned(),
        model(&row.request.model),
        clip(row),
        format!("{}/{}", steps_done(row), steps(row)),
        if is_running { at(&row.progress) } else { nothing() },
        if is_running { row.progress.seconds_left.map_or_else(nothing, clock) } else { nothing() },
        end(&output(row, here), LONGEST.1),
        prompt(&row.request.clip.prompt),
    ]
}

/// What a running job is doing: its phase, or its expert.
pub(super) fn at(progress: &Progress) -> String {
    match (&*progress.phase, &progress.expert) {
        ("", _) => "-".to_owned(),
        ("denoise", Some(expert)) => expert.clone(),
        ("denoise", None) => "steps".to_owned(),
        ("decode", _) => format!("decode {}/{}", progress.frames_done, progress.frames),
        (phase, _) => phase.to_owned(),
    }
}

/// The first output, with the number of the others, or the number of the take.
fn output(row: &JobRow, here: &Path) -> String {
    if let Some(take) = row.request.take.filter(|_| is_open_take(row)) {
        return format!("take {} of {}", take.number, take.of);
    }
    let Some(first) = row.request.outputs.first() else { return "-".to_owned() };
    let first = first.to_string();
    let below = Path::new(&first).strip_prefix(here).ok().filter(|rest| !rest.as_os_str().is_empty());
    let shown = below.map_or(first.clone(), |rest| rest.display().to_string());
    match row.request.outputs.len() {
        1 => shown,
        count => format!("{shown} +{}", count - 1),
    }
}

/// The name of a model, shortened.
pub(super) fn model(name: &str) -> String {
    beginning(name, LONGEST.0)
}

/// A prompt, shortened.
pub(super) fn prompt(text: &str) -> String {
    beginning(text, LONGEST.2)
}

/// The first characters of a text, on one line of at most `longest` columns.
pub(super) fn beginning(text: &str, longest: usize) -> String {
    let text = on_one_line(text);
    if width_of(&text) <= longest {
        return text;
    }
    let start: String = fitting(text.chars(), longest.saturating_sub(1)).into_iter().collect();
    format!("{}…", start.trim_end())
}

/// The last characters of a text, on one line of at most `longest` columns.
pub(super) fn end(text: &str, longest: usize) -> String {
    let text = on_one_line(text);
    if width_of(&text) <= longest {
        return text;
    }
    let rest: String = fitting(text.chars().rev(), longest.saturating_sub(1)).into_iter().rev().collect();
    format!("…{rest}")
}

/// The characters at the start that take at most `width` columns.
fn fitting(characters: impl Iterator<Item = char>, width: usize) -> Vec<char> {
    let mut left = width;
    let taken = characters.map_while(|character| {
        left = left.checked_sub(width_of(character.encode_utf8(&mut [0; 4])))?;
        Some(character)
    });
    taken.collect()
}

fn on_one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::{outcome, refusal, row};
    use super::*;
    use ::jobs::request::Take;
    use runtime::scheduler::{JobId, Priority};

    fn rows() -> Vec<JobRow> {
        let mut running = row(8, State::Running);
        running.progress = Progress {
            phase: "denoise".into(),
            expert: Some("high_noise".into()),
            steps_done: 12,
            steps: 40,
            frames: 81,
            seconds_left: Some(3905.2),
            ..Progress::default()
        };
        running.request.clip.prompt = "two cats box on a stage\nunder a spotlight, in slow motion".into();
        running.request.outputs.push("/videos/of/a/very/long/project/name/cats.gif".parse().unwrap());
        running.request.outputs.rotate_left(1);
        let mut decoding = row(10, State::Running);
        decoding.progress = Progress {
            phase: "decode".into(),
            expert: Some("low_noise".into()),
            steps_done: 8,
            steps: 8,
            frames_done: 5,
            frames: 17,
            held: Some("the disk of /home is full".into()),
            ..Progress::default()
        };
        decoding.request.priority = Priority::Preview;
        let mut take = row(9, State::Stopped);
        take.request.take = Some(Take { audition: JobId(9), number: 1, of: 9 });
        take.request.outputs.clear();
        take.request.stop_after = Some(4);
        take.progress.steps_done = 4;
        take.request.clip.prompt = "猫".repeat(50);
        let mut failed = row(11, State::Failed);
        failed.outcome = Some(outcome(State::Failed, Some(refusal())));
        vec![row(7, State::Queued), running, take, decoding, failed]
    }

    #[test]
    fn jobs_are_drawn_as_a_table() {
        insta::assert_snapshot!(draw(&rows(), Path::new("/home/me"), None));
        insta::assert_snapshot!(draw(&[], Path::new("/"), None), @"id  state  priority  model  clip  steps  at  left  output  prompt");
    }

    #[test]
    fn a_narrow_terminal_cuts_prompts_first_and_no_line_is_wider() {
        let here = Path::new("/home/me");
        let widest = |text: &str| text.lines().map(width_of).max().unwrap();
        let whole = draw(&rows(), here, None);
        assert_eq!(draw(&rows(), here, Some(widest(&whole))), whole);
        for width in 0..widest(&whole) {
            let mut rows = rows();
            rows[3].progress.held = None;
            let text = draw(&rows, here, Some(width));
            assert!(widest(&text) <= width.max(1), "{width}:\n{text}");
        }
        let text = draw(&rows()[..2], here, Some(110));
        insta::assert_snapshot!(text, @r"
        id  state    priority  model  clip       steps  at             left  output                       prompt
         7  queued   normal    mini   112x64x17    0/8  -                 -  clip-7.mp4                   a red ball…
         8  running  normal    mini   112x64x17  12/40  high_noise  1:05:06  …g/project/name/cats.gif +1  two cats bo…
        ");
    }

    #[test]
    fn long_texts_are_shortened_at_one_end() {
        assert_eq!(beginning("abcdef", 6), "abcdef");
        assert_eq!(beginning("abcd fgh", 6), "abcd…");
        assert_eq!(end("abcdefgh", 6), "…defgh");
        assert_eq!([beginning("猫猫猫", 5), end("猫猫猫", 6)], ["猫猫…", "猫猫猫"], "two columns each");
        assert_eq!(beginning("a\u{1b}[31m\tb", 20), "a [31m b");
    }
}
