//! The table of jobs that are made, as it fits on a terminal.

use super::table::{
    MODEL, OUTPUT, PROMPT, align, at, end, left, model, prompt, right, total, width_of, within,
};
use super::times::clock;
use ::jobs::owner::JobStatus;
use ::jobs::store::State;
use bundle::routing::ExpertIndex;
use media::OutputSpec;
use runtime::driver::Activity;
use runtime::scheduler::{DeviceName, Stage, Unit};

/// The most jobs in the table.
const MOST: usize = 20;
/// The most columns of an output.
const LONGEST_OUTPUT: usize = 24;
/// The columns of a prompt below which outputs are left out.
const READABLE: usize = 20;
/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Screen {
    rows: usize,
    columns: usize,
}

impl Screen {
    /// The terminal of standard error.
    pub(super) fn of_standard_error() -> Self {
        let found =
            console::Term::stderr().size_checked().filter(|(rows, columns)| *rows > 0 && *columns > 0);
        let (rows, columns) = found.unwrap_or((24, 80));
        Self { rows: rows.into(), columns: columns.into() }
    }
}

/// The table of jobs, how many there are, and what each device is doing. It fits on the screen.
pub(super) fn table(jobs: &[JobStatus], devices: &[(DeviceName, Activity)], screen: Screen) -> String {
    let is_running = |job: &JobStatus| job.state == State::Running;
    let running = jobs.iter().filter(|job| is_running(job)).count();
    let devices = device_lines(devices, screen.columns);
    // The headings, the number of jobs, and the line of the cursor.
    let around = devices.len() + 3;
    let room = screen.rows.saturating_sub(around).min(MOST);
    // Jobs that run come first.
    let mut shown: Vec<&JobStatus> = jobs.iter().collect();
    shown.sort_by_key(|job| (!is_running(job), job.id));
    if shown.len() > room {
        shown.truncate(room.saturating_sub(1));
    }
    let more = jobs.len() - shown.len();
    let mut text = if shown.is_empty() { String::new() } else { job_lines(&shown, screen.columns) };
    let mut line = |line: &str| {
        text.push_str(&within(line, Some(screen.columns)));
        text.push('\n');
    };
    if more > 0 && !shown.is_empty() {
        line(&format!("… and {more} more"));
    }
    match jobs.len() {
        0 => line("waiting for jobs"),
        count => line(&format!("{running} running, {} queued", count - running)),
    }
    text.push_str(&devices.join("\n"));
    text
}

/// Headings and jobs. The output is shown if there is room for it.
fn job_lines(jobs: &[&JobStatus], width: usize) -> String {
    let columns = [
        right("id"),
        left("state"),
        left("priority"),
        MODEL,
        right("steps"),
        left("at"),
        right("left"),
        OUTPUT,
        PROMPT,
    ];
    let [id, state, priority, model, steps, at, left, _, prompt] = columns;
    let rows: Vec<[String; 9]> = jobs.iter().map(|job| cells(job)).collect();
    let mut widths = columns.map(|column| column.heading.len());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(width_of(cell));
        }
    }
    widths[8] = widths[8].min(READABLE);
    if total(&widths) <= width {
        return align(&columns, &rows, Some(width));
    }
    let without = rows.into_iter().map(|[id, state, priority, model, steps, at, left, _, prompt]| {
        [id, state, priority, model, steps, at, left, prompt]
    });
    let columns = [id, state, priority, model, steps, at, left, prompt];
    align(&columns, &without.collect::<Vec<_>>(), Some(width))
}

/// What each device is doing, in lines of at most `width` columns.
fn device_lines(devices: &[(DeviceName, Activity)], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (device, activity) in devices {
        let text = format!("{device}: {}", doing(activity));
        match lines.last_mut() {
            Some(line) if width_of(line) + 2 + width_of(&text) <= width => {
                line.push_str("; ");
                line.push_str(&text);
            }
            _ => lines.push(within(&text, Some(width))),
        }
    }
    lines
}

fn cells(job: &JobStatus) -> [String; 9] {
    let progress = &job.progress;
    let is_running = job.state == State::Running;
    let state = if progress.held.is_some() { "held" } else { job.state.name() };
    let left = progress.seconds_left.filter(|_| is_running);
    [
        job.id.0.to_string(),
        state.to_owned(),
        job.priority.name().to_owned(),
        model(&job.model),
        format!("{}/{}", progress.steps_done, progress.steps),
        if is_running { at(progress) } else { "-".to_owned() },
        left.map_or_else(|| "-".to_owned(), clock),
        output(&job.outputs),
        prompt(&job.prompt),
    ]
}

/// The name of the first output, with the number of the others.
fn output(outputs: &[OutputSpec]) -> String {
    let Some(first) = outputs.first() else { return "-".to_owned() };
    let name = match first {
        OutputSpec::File { path, .. }
        | OutputSpec::Frames { folder: path }
        | OutputSpec::Hls { folder: path } => path.file_name().map(|name| name.display().to_string()),
        _ => None,
    };
    let name = end(&name.unwrap_or_else(|| first.to_string()), LONGEST_OUTPUT);
    match outputs.len() {
        1 => name,
        count => format!("{name} +{}", count - 1),
    }
}

/// What a device is doing.
pub(super) fn doing(activity: &Activity) -> String {
    match activity {
        Activity::Idle => "idle".to_owned(),
        Activity::Loading(session) => format!("opening {}", component(session.stage)),
        Activity::Evicting(session) => format!("closing {}", component(session.stage)),
        Activity::Running(job, Unit::Encode) => format!("text of {job}"),
        Activity::Running(job, Unit::Step { .. }) => format!("a step of {job}"),
        Activity::Running(job, Unit::Chunk { .. }) => format!("frames of {job}"),
    }
}

/// A component, with experts counted from 1.
fn component(stage: Stage) -> String {
    match stage {
        Stage::TextEncoder => "the text encoder".to_owned(),
        Stage::Expert(ExpertIndex(index)) => format!("expert {}", index.saturating_add(1)),
        Stage::Decoder => "the decoder".to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use ::jobs::store::Progress;
    use engines::Device;
    use runtime::scheduler::{JobId, ModelNumber, Priority, Session};

    /// A job of eight steps.
    pub(in super::super) fn job(
        id: u64,
        state: State,
        phase: &str,
        expert: Option<&str>,
        done: usize,
    ) -> JobStatus {
        let progress = Progress {
            phase: phase.to_owned(),
            expert: expert.map(str::to_owned),
            steps_done: done,
            steps: 8,
            frames: 17,
            seconds_left: Some(61.0),
            ..Progress::default()
        };
        JobStatus {
            id: JobId(id),
            state,
            priority: Priority::Normal,
            model: "mini".into(),
            prompt: format!("prompt {id}, with a fox that runs through deep snow"),
            outputs: vec![format!("/videos/clip-{id}.mp4").parse().unwrap()],
            progress,
        }
    }

    fn session(stage: Stage) -> Session {
        Session { model: ModelNumber(3), stage }
    }

    #[test]
    fn running_jobs_come_first_and_devices_last() {
        let devices = [
            (DeviceName(Device::CPU), Activity::Running(JobId(9), Unit::Encode)),
            (DeviceName("cuda:1".parse().unwrap()), Activity::Idle),
            (
                DeviceName("cuda:2".parse().unwrap()),
                Activity::Loading(session(Stage::Expert(ExpertIndex(1)))),
            ),
            (DeviceName("cuda:3".parse().unwrap()), Activity::Evicting(session(Stage::Decoder))),
        ];
        let idle = &devices[1..2];
        let mut jobs: Vec<JobStatus> = (1..=24).map(|id| job(id, State::Queued, "", None, 0)).collect();
        jobs[8] = job(9, State::Running, "denoise", Some("high_noise"), 3);
        jobs[9] = job(10, State::Running, "decode", Some("low_noise"), 8);
        jobs[9].progress.held = Some("the disk is full".into());
        let screen = |rows, columns| Screen { rows, columns };
        insta::assert_snapshot!(table(&jobs, &devices, screen(50, 120)));
        insta::assert_snapshot!(table(&jobs, &devices[..2], screen(10, 60)), @r"
        id  state    priority  model  steps  at           left  pro…
         9  running  normal    mini     3/8  high_noise   1:01  pro…
        10  held     normal    mini     8/8  decode 0/17  1:01  pro…
         1  queued   normal    mini     0/8  -               -  pro…
         2  queued   normal    mini     0/8  -               -  pro…
         3  queued   normal    mini     0/8  -               -  pro…
        … and 19 more
        2 running, 22 queued
        cpu: text of job 9; cuda:1: idle
        ");
        assert_eq!(table(&[], idle, screen(24, 80)), "waiting for jobs\ncuda:1: idle");
        for (rows, columns) in (4..40).flat_map(|rows| [(rows, 20), (rows, 79), (rows, 200)]) {
            let text = table(&jobs, &devices[..1], screen(rows, columns));
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines.len() < rows, "{rows}x{columns}:\n{text}");
            assert!(lines.iter().all(|line| width_of(line) <= columns), "{rows}x{columns}:\n{text}");
            assert_eq!(lines.last(), Some(&"cpu: text of job 9"));
            assert_eq!(lines[lines.len() - 2], within("2 running, 22 queued", Some(columns)));
            let shown =
                lines.iter().filter(|line| line.contains("prompt 1") && line.contains("queued")).count();
            let has_more = lines.iter().any(|line| line.starts_with("… and "));
            assert!(has_more || shown == 0, "{rows}x{columns}:\n{text}");
        }
    }
}
