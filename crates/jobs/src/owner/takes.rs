//! The contact sheet of an audition, once none of its takes is queued or running.

use crate::request::Take;
use crate::store::{JobRow, State, Store};
use bundle::Diagnose;
use media::ContactSheet;
use runtime::scheduler::JobId;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;

/// What decides about a take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Made {
    take: Take,
    job: JobId,
    seed: u64,
    state: State,
    /// True if its whole clip was asked for.
    is_kept: bool,
    has_picture: bool,
}

/// What is on a contact sheet, and what is missing there.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    shown: Vec<Made>,
    missing: Vec<String>,
}

/// The auditions that have no contact sheet.
pub(super) fn without_sheet(store: &Store, rows: &[JobRow]) -> BTreeSet<JobId> {
    let auditions: BTreeSet<JobId> = rows.iter().filter_map(|row| Some(row.request.take?.audition)).collect();
    auditions.into_iter().filter(|audition| !store.contact_sheet(*audition).exists()).collect()
}

/// Writes the contact sheet of an audition if none of its takes is queued or running, with those that have a picture.
/// Returns what to tell the user.
pub(super) fn write_sheet(store: &Store, rows: &[JobRow], audition: JobId) -> Option<String> {
    let of_audition = |row: &JobRow| row.request.take.filter(|take| take.audition == audition);
    let takes = rows.iter().filter_map(|row| {
        Some(Made {
            take: of_audition(row)?,
            job: row.id,
            seed: row.request.clip.seed.0,
            state: row.state,
            is_kept: !row.request.outputs.is_empty(),
            has_picture: store.take_picture(row.id).exists(),
        })
    });
    let Contents { shown, missing } = contents(takes.collect())?;
    let path = store.contact_sheet(audition);
    let written = draw(store, &shown).and_then(|(sheet, pictures)| {
        let views: Vec<_> = pictures.iter().map(|picture| picture.view()).collect();
        sheet.write(&path, &views, &[]).map_err(|error| error.report())
    });
    let but = if missing.is_empty() { String::new() } else { format!(", without {}", missing.join(", ")) };
    Some(match written {
        Ok(()) => format!(
            "the takes of the audition are on {}{but}; `rushes jobs keep ID` makes the whole clip of one",
            path.display()
        ),
        Err(report) => format!("warning: the contact sheet of the audition was not written: {report}"),
    })
}

/// What the contact sheet shows. `None` while a picture is being made or waits for it, or if there is no picture.
fn contents(mut takes: Vec<Made>) -> Option<Contents> {
    takes.sort_by_key(|made| made.take.number);
    let of = takes.first()?.take.of;
    // A take that is kept makes no picture any more.
    let is_open = |made: &Made| !made.is_kept && !made.state.has_ended();
    if takes.iter().any(is_open) || !takes.iter().any(|made| made.has_picture) {
        return None;
    }
    let mut missing = Vec::new();
    for number in 1..=of {
        match takes.iter().find(|made| made.take.number == number) {
            Some(made) if made.has_picture => {}
            Some(Made { job, state, is_kept: false, .. }) => {
                missing.push(format!("take {number} ({job}, {state})"));
            }
            Some(Made { job, .. }) => missing.push(format!("take {number} ({job}, kept without a picture)")),
            None => missing.push(format!("take {number} (removed)")),
        }
    }
    takes.retain(|made| made.has_picture);
    Some(Contents { shown: takes, missing })
}

fn draw(store: &Store, takes: &[Made]) -> Result<(ContactSheet, Vec<ndarray::Array3<f32>>), bundle::Report> {
    let mut pictures = Vec::new();
    let mut labels = Vec::new();
    for Made { take, job, seed, .. } in takes {
        let picture = store.take_picture(*job);
        pictures.push(media::still::read(&picture).map_err(|error| error.report())?);
        labels.push(format!("take {} · {job} · seed {seed}", take.number));
    }
    let (_, height, width) = pictures.first().map_or((3, 0, 0), |picture| picture.dim());
    let size = bundle::geometry::PixelSize { width, height };
    let sheet = ContactSheet::new(&labels, size, NonZeroUsize::MAX).map_err(|error| error.report())?;
    Ok((sheet, pictures))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The takes of an audition of four, from job 5 on.
    fn takes(states: &[(State, bool)]) -> Vec<Made> {
        let made = |(number, (state, has_picture)): (usize, &(State, bool))| Made {
            take: Take { audition: JobId(5), number, of: 4 },
            job: JobId(4 + number as u64),
            seed: 7,
            state: *state,
            is_kept: false,
            has_picture: *has_picture,
        };
        (1..).zip(states).map(made).collect()
    }

    #[test]
    fn a_sheet_shows_the_pictures_once_no_take_is_open() {
        let stopped = (State::Stopped, true);
        for open in [State::Queued, State::Running] {
            assert_eq!(contents(takes(&[stopped, stopped, stopped, (open, false)])), None);
        }
        let whole = contents(takes(&[stopped; 4])).unwrap();
        assert_eq!((whole.shown.len(), whole.missing.len()), (4, 0));
        let [failed, cancelled] = [(State::Failed, false), (State::Cancelled, false)];
        let some = contents(takes(&[failed, stopped, cancelled])).unwrap();
        assert_eq!(some.shown.iter().map(|made| made.take.number).collect::<Vec<_>>(), [2]);
        assert_eq!(some.missing, ["take 1 (job 5, failed)", "take 3 (job 7, cancelled)", "take 4 (removed)"]);
        assert_eq!(contents(takes(&[failed, cancelled, failed, failed])), None, "there is no picture");
        assert_eq!(contents(Vec::new()), None);
    }

    #[test]
    fn takes_that_are_kept_or_given_up_stay_on_the_sheet() {
        let mut kept = takes(&[(State::Running, true), (State::Cancelled, true), (State::Stopped, true)]);
        kept[0].is_kept = true;
        let contents = contents(kept).unwrap();
        assert_eq!((contents.shown.len(), contents.missing), (3, vec!["take 4 (removed)".to_owned()]));
    }
}
