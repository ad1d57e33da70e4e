//! A simulation as text.

use runtime::scheduler::{Order, Outcome, Seconds};
use runtime::simulation::{JobTimes, Scenario, Summary};
use std::fmt::Write;

/// The table of the jobs in one order, and the totals of both.
pub(super) fn draw(
    about: &str,
    scenario: &Scenario,
    (order, shown): (Order, &Summary),
    (other, compared): (Order, &Summary),
) -> String {
    // Writing into a String cannot fail.
    let mut text = format!("{about}\n\n");
    let width = scenario.clips.values().map(|clip| clip.chars().count()).max().unwrap_or_default().max(4);
    let _ = writeln!(
        text,
        "{:>5}  {:<width$}  {:<8} {:>10} {:>10} {:>10} {:>10}  ended",
        "job", "clip", "priority", "arrived", "waited", "started", "finished"
    );
    for job in &shown.jobs {
        let clip = scenario.clips.get(&job.job).map_or("", String::as_str);
        let time = |time: Option<Seconds>| time.map_or("-".to_owned(), clock);
        let _ = writeln!(
            text,
            "{:>5}  {clip:<width$}  {:<8} {:>10} {:>10} {:>10} {:>10}  {}",
            job.job.0,
            job.priority.name(),
            clock(job.arrived),
            time(job.waited()),
            time(job.started),
            time(job.finished),
            outcome(job)
        );
    }
    let _ = writeln!(text, "\n{:<22} {:>12} {:>12}", "", order.name(), other.name());
    let mut total = |name: &str, of: &dyn Fn(&Summary) -> String| {
        let _ = writeln!(text, "{name:<22} {:>12} {:>12}", of(shown), of(compared));
    };
    total("swaps", &|summary| summary.counts.swaps.to_string());
    total("sessions opened", &|summary| summary.counts.loads.to_string());
    total("waves", &|summary| summary.counts.waves.to_string());
    total("groups of previews", &|summary| summary.counts.preview_groups.to_string());
    total("time", &|summary| clock(summary.seconds));
    total("mean time to the clip", &mean_time);
    total("clips per hour", &|summary| format!("{:.2}", summary.clips_per_hour));
    for (index, device) in shown.devices.iter().enumerate() {
        total(&format!("{} busy", device.device), &|summary| {
            summary.devices.get(index).map_or(String::new(), |share| percent(share.busy))
        });
        if device.in_pair > 0.0 {
            total(&format!("{} in a pair", device.device), &|summary| {
                summary.devices.get(index).map_or(String::new(), |share| percent(share.in_pair))
            });
        }
        total(&format!("{} opening", device.device), &|summary| {
            summary.devices.get(index).map_or(String::new(), |share| percent(share.loading))
        });
    }
    text
}

/// The mean time from arrival to end of the jobs that were done.
fn mean_time(summary: &Summary) -> String {
    let done = summary.jobs.iter().filter(|job| job.outcome == Some(Outcome::Done));
    let times: Vec<Seconds> = done.filter_map(|job| Some(job.finished?.since(job.arrived))).collect();
    let count = u32::try_from(times.len()).unwrap_or(u32::MAX);
    if count == 0 {
        return "-".to_owned();
    }
    let sum: Seconds = times.into_iter().sum();
    Seconds::try_new(sum.get() / f64::from(count)).map_or("-".to_owned(), clock)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn outcome(job: &JobTimes) -> String {
    match job.outcome {
        Some(Outcome::Done) => "done".to_owned(),
        Some(Outcome::Failed) => "failed".to_owned(),
        Some(Outcome::Cancelled) => "cancelled".to_owned(),
        Some(Outcome::DoesNotFit { needed, budget }) => format!("does not fit: needs {needed} of {budget}"),
        None => "-".to_owned(),
    }
}

/// A time as `H:MM:SS.s`.
pub(super) fn clock(time: Seconds) -> String {
    let tenths = (time.get() * 10.0).round();
    let seconds = tenths / 10.0;
    let hours = (seconds / 3600.0).floor();
    let minutes = ((seconds - 3600.0 * hours) / 60.0).floor();
    let rest = seconds - 3600.0 * hours - 60.0 * minutes;
    format!("{hours:.0}:{minutes:02.0}:{rest:04.1}")
}
