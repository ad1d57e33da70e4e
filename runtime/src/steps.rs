//! The steps of a clip: a grid, or a list of timesteps.

use crate::Error;
use crate::sampler::Schedule;
use bundle::Field;
use bundle::settings::{Defaults, ScheduleKind, SolverKind, check_steps};
use bundle::timesteps::{ListedSteps, Start, TimestepChoice, TimestepList, check_list_solver};
use bundle::units::Shift;
use std::fmt;

/// The steps that a clip is asked to have. `None` takes the bundle's default.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StepChoice<'a> {
    /// Number of steps.
    pub(crate) steps: Option<usize>,
    /// Shift of the grid.
    pub(crate) shift: Option<f64>,
    /// Solver.
    pub(crate) sampler: Option<SolverKind>,
    /// Name of the grid.
    pub(crate) schedule: Option<ScheduleKind>,
    /// A list, or the grid.
    pub(crate) timesteps: Option<&'a TimestepChoice>,
    /// The latent that sampling begins with.
    pub(crate) start: Option<Start>,
}

/// The steps of a clip, with every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChosenSteps {
    /// The noise levels.
    pub(crate) schedule: Schedule,
    /// The solver.
    pub(crate) solver: SolverKind,
    /// Name of the grid. With a list, of the grid that a fork can go over to.
    pub(crate) schedule_kind: ScheduleKind,
    /// Shift of the grid. With a list, of the grid that a fork can go over to.
    pub(crate) shift: Shift,
    /// The list, if there is one.
    pub(crate) timesteps: Option<TimestepList>,
    /// The latent that sampling begins with.
    pub(crate) start: Start,
}

impl ChosenSteps {
    /// Chooses the steps: the list or the grid of a request, else the list of the bundle, else its grid.
    ///
    /// # Errors
    /// A value is out of range, or the request has a part of a grid beside a list.
    pub(crate) fn new(defaults: &Defaults, request: &StepChoice<'_>) -> Result<Self, Error> {
        let schedule_kind = request.schedule.unwrap_or(defaults.schedule.value);
        let shift = request.shift.map_or(Ok(defaults.shift.value), Shift::try_new)?;
        let solver = request.sampler.unwrap_or(defaults.sampler.value);
        let (list, own_start) = match (request.timesteps, &defaults.timesteps) {
            (Some(TimestepChoice::Grid), _) | (None, None) => (None, Start::Noise),
            (Some(TimestepChoice::List(list)), _) => (Some(list.clone()), Start::Noise),
            (None, Some(listed)) => {
                let ListedSteps { list, start, .. } = &listed.value;
                (Some(list.clone()), *start)
            }
        };
        let start = request.start.unwrap_or(own_start);
        let schedule = match &list {
            None => {
                let steps = check_steps(request.steps.unwrap_or(defaults.steps.value))?;
                Schedule::new(solver, schedule_kind, steps, shift)
            }
            Some(list) => {
                check_list_solver(solver)?;
                check_no_grid(request, list)?;
                Schedule::of_list(list)
            }
        };
        Ok(Self { schedule, solver, schedule_kind, shift, timesteps: list, start })
    }
}

/// Refuses parts of a grid beside a list. The number of its own steps is no other number.
pub(crate) fn check_no_grid(request: &StepChoice<'_>, list: &TimestepList) -> Result<(), bundle::Error> {
    fn text(value: &impl fmt::Display) -> String {
        value.to_string()
    }
    let steps = request.steps.filter(|steps| *steps != list.steps());
    let given = [
        (Field::Steps, steps.as_ref().map(text)),
        (Field::Shift, request.shift.as_ref().map(text)),
        (Field::Schedule, request.schedule.as_ref().map(text)),
    ];
    for (field, given) in given {
        if let Some(given) = given {
            let rule =
                format!("the clip has a list of {} timesteps, {list}, which replaces it", list.steps());
            let fix = "leave it out, choose another `preset`, or set `timesteps` to grid";
            return Err(bundle::Error::value(field, given, rule, fix));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::settings::{Origin, Recommended};

    fn listed() -> Defaults {
        let timesteps = ListedSteps {
            list: "1000,757,522".parse().unwrap(),
            sampler: SolverKind::Renoise,
            start: Start::ScaledNoise,
        };
        let recommended = Recommended { timesteps: Some(timesteps), ..Recommended::default() };
        Defaults::resolve(&[(Origin::Checkpoint, &recommended)], 1).unwrap()
    }

    fn grid() -> Defaults {
        Defaults::resolve(&[], 1).unwrap()
    }

    fn request() -> StepChoice<'static> {
        StepChoice::default()
    }

    fn choice(text: &str) -> TimestepChoice {
        text.parse().unwrap()
    }

    fn refused(defaults: &Defaults, request: &StepChoice<'_>) -> String {
        ChosenSteps::new(defaults, request).unwrap_err().to_string()
    }

    #[test]
    fn the_list_of_a_bundle_is_used_unless_the_request_has_its_own_or_a_grid() {
        let chosen = ChosenSteps::new(&listed(), &request()).unwrap();
        assert_eq!((chosen.schedule.steps(), chosen.solver), (3, SolverKind::Renoise));
        assert_eq!((chosen.start, chosen.schedule.sigmas()[1].0), (Start::ScaledNoise, 0.757));
        let two = choice("1000,500");
        let own = StepChoice { timesteps: Some(&two), ..request() };
        let chosen = ChosenSteps::new(&listed(), &own).unwrap();
        assert_eq!((chosen.schedule.steps(), chosen.start), (2, Start::Noise));
        let grid = StepChoice { timesteps: Some(&TimestepChoice::Grid), steps: Some(8), ..request() };
        let chosen = ChosenSteps::new(&listed(), &grid).unwrap();
        assert_eq!((chosen.schedule.steps(), chosen.timesteps, chosen.start), (8, None, Start::Noise));
    }

    #[test]
    fn a_part_of_a_grid_beside_a_list_is_refused_by_name() {
        let same = StepChoice { steps: Some(3), ..request() };
        assert!(ChosenSteps::new(&listed(), &same).is_ok());
        let steps = StepChoice { steps: Some(8), ..request() };
        insta::assert_snapshot!(refused(&listed(), &steps), @"steps cannot be 8: the clip has a list of 3 timesteps, 1000,757,522, which replaces it (leave it out, choose another `preset`, or set `timesteps` to grid)");
        let shift = StepChoice { shift: Some(3.0), ..request() };
        assert!(refused(&listed(), &shift).starts_with("shift"));
        let schedule = StepChoice { schedule: Some(ScheduleKind::Official), ..request() };
        assert!(refused(&listed(), &schedule).starts_with("schedule"));
    }

    #[test]
    fn a_list_needs_a_solver_that_follows_it() {
        let two = choice("1000,500");
        let list = StepChoice { timesteps: Some(&two), ..request() };
        insta::assert_snapshot!(refused(&grid(), &list), @"sampler cannot be unipc: a list of timesteps is followed by euler or renoise (choose one of these, or set `timesteps` to grid)");
        let euler = StepChoice { sampler: Some(SolverKind::Euler), ..list };
        assert!(ChosenSteps::new(&grid(), &euler).is_ok());
    }
}
