//! Default settings of a clip, and the origin of each value.

pub use crate::solver::{MAX_STEPS, ScheduleKind, SolverKind};

use crate::geometry::PixelSize;
use crate::timesteps::{GuidanceUntil, ListedSteps};
use crate::units::{FrameRate, GuidanceScale, Shift};
use crate::{Error, Field};
use serde::{Deserialize, Serialize};

/// The origin of a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// `rushes.json` in the folder of the checkpoint.
    Checkpoint,
    /// The catalogue of known models.
    Catalogue,
    /// The catalogue, for a checkpoint that resembles the model but may be another one.
    CatalogueGuess,
    /// The checkpoint's scheduler config.
    SchedulerConfig,
    /// The official code, whose checkpoints have no scheduler config.
    OfficialCode,
    /// The built-in value, used if no other source has one.
    Fallback,
}

crate::named!(
    Origin,
    "rushes.json" => Checkpoint, "catalogue" => Catalogue, "catalogue, a guess" => CatalogueGuess,
    "scheduler config" => SchedulerConfig, "official code" => OfficialCode, "built in" => Fallback,
);

/// A default and its origin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Default<T> {
    /// The value.
    pub value: T,
    /// Its origin.
    pub from: Origin,
}

/// The resolved defaults of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Defaults {
    /// Frame size.
    pub size: Default<PixelSize>,
    /// Frames of the clip.
    pub frames: Default<usize>,
    /// Frame rate.
    pub fps: Default<FrameRate>,
    /// Denoising steps.
    pub steps: Default<usize>,
    /// Guidance scale of each expert, from the noisiest down.
    pub guidance: Default<Vec<GuidanceScale>>,
    /// Shift of the sigma grid.
    pub shift: Default<Shift>,
    /// Solver.
    pub sampler: Default<SolverKind>,
    /// Sigma grid.
    pub schedule: Default<ScheduleKind>,
    /// Negative prompt.
    pub negative: Default<String>,
    /// A list of timesteps in place of the grid. `steps` and `sampler` are those of the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timesteps: Option<Default<ListedSteps>>,
    /// The end of guidance; all steps are guided if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_until: Option<Default<GuidanceUntil>>,
    /// Notes for the user on how these values were found, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Recommended settings, the content of `rushes.json`. Absent values are looked up elsewhere.
#[derive(Debug, Clone, PartialEq, std::default::Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recommended {
    /// Frame size.
    pub size: Option<PixelSize>,
    /// Frames of the clip.
    pub frames: Option<usize>,
    /// Frame rate.
    pub fps: Option<FrameRate>,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Guidance scale of each expert, from the noisiest down.
    pub guidance: Option<Vec<f32>>,
    /// Shift of the sigma grid.
    pub shift: Option<f64>,
    /// Solver.
    pub sampler: Option<SolverKind>,
    /// Sigma grid.
    pub schedule: Option<ScheduleKind>,
    /// Negative prompt.
    pub negative: Option<String>,
    /// A list of timesteps, in place of `steps`, `shift`, `sampler` and `schedule`.
    pub timesteps: Option<ListedSteps>,
    /// The end of guidance.
    pub guidance_until: Option<GuidanceUntil>,
}

impl Recommended {
    /// Returns true if it has a part of the sigma grid.
    fn has_grid(&self) -> bool {
        self.steps.is_some() || self.shift.is_some() || self.sampler.is_some() || self.schedule.is_some()
    }

    /// Checks that it has a list of timesteps or a grid, not both.
    ///
    /// # Errors
    /// It has both.
    pub fn check(&self) -> Result<(), Error> {
        if self.timesteps.is_none() || !self.has_grid() {
            return Ok(());
        }
        let rule = "a list of timesteps replaces `steps`, `shift`, `sampler` and `schedule`";
        Err(Error::value(Field::Timesteps, "used with a grid", rule, "leave these out, or the list"))
    }
}

impl Defaults {
    /// Resolves every default. The first of `sources` that has a value is used, else the built-in value.
    ///
    /// # Errors
    /// Returns an error if a recommended value is out of range, or if a source has both a list of timesteps and a grid.
    pub fn resolve(sources: &[(Origin, &Recommended)], experts: usize) -> Result<Self, Error> {
        fn first<T>(
            sources: &[(Origin, &Recommended)],
            get: impl Fn(&Recommended) -> Option<T>,
            otherwise: T,
        ) -> Default<T> {
            sources
                .iter()
                .find_map(|(from, source)| get(source).map(|value| Default { value, from: *from }))
                .unwrap_or(Default { value: otherwise, from: Origin::Fallback })
        }
        fn checked<T, U>(
            default: Default<T>,
            check: impl FnOnce(T) -> Result<U, Error>,
        ) -> Result<Default<U>, Error> {
            Ok(Default { value: check(default.value)?, from: default.from })
        }
        sources.iter().try_for_each(|(_, source)| source.check())?;
        // A source that has a part of the grid stands before the lists of later ones.
        let listed = sources
            .iter()
            .find(|(_, source)| source.timesteps.is_some() || source.has_grid())
            .and_then(|(from, source)| Some(Default { value: source.timesteps.clone()?, from: *from }));
        let guidance_until = sources
            .iter()
            .find_map(|(from, source)| source.guidance_until.map(|value| Default { value, from: *from }));
        let mut steps = first(sources, |s| s.steps, 40);
        let mut sampler = first(sources, |s| s.sampler, SolverKind::UniPc);
        if let Some(Default { value, from }) = &listed {
            steps = Default { value: value.list.steps(), from: *from };
            sampler = Default { value: value.sampler, from: *from };
        }
        let frames = first(sources, |s| s.frames, 81);
        let guidance = first(sources, |s| s.guidance.clone(), vec![5.0]);
        Ok(Self {
            size: first(sources, |s| s.size, PixelSize { width: 832, height: 480 }),
            frames: checked(frames, |n| crate::geometry::FrameCount::try_new(n).map(|n| n.get()))?,
            fps: first(sources, |s| s.fps, FrameRate::WAN),
            steps: checked(steps, check_steps)?,
            guidance: checked(guidance, |scales| {
                per_expert(&scales.into_iter().map(GuidanceScale).collect::<Vec<_>>(), experts)
            })?,
            shift: checked(first(sources, |s| s.shift, 5.0), Shift::try_new)?,
            sampler,
            schedule: first(sources, |s| s.schedule, ScheduleKind::Diffusers),
            negative: first(sources, |s| s.negative.clone(), String::new()),
            timesteps: listed,
            guidance_until,
            notes: Vec::new(),
        })
    }
}

/// Checks a number of denoising steps.
///
/// # Errors
/// Returns an error for 0 and above [`MAX_STEPS`].
pub fn check_steps(steps: usize) -> Result<usize, Error> {
    if (1..=MAX_STEPS).contains(&steps) {
        Ok(steps)
    } else {
        Err(Error::value(
            Field::Steps,
            steps,
            format!("a clip is denoised in 1 to {MAX_STEPS} steps"),
            "use the default by leaving it out",
        ))
    }
}

/// Returns one guidance scale per expert. A single scale is used for all experts.
///
/// # Errors
/// Returns an error if the number of scales is neither 1 nor the number of experts.
pub fn per_expert(scales: &[GuidanceScale], experts: usize) -> Result<Vec<GuidanceScale>, Error> {
    match scales {
        [one] => Ok(vec![*one; experts]),
        all if all.len() == experts => Ok(all.to_vec()),
        other => Err(Error::value(
            Field::Guidance,
            format!("{} scales", other.len()),
            format!("this model has {experts} expert{}", if experts == 1 { "" } else { "s" }),
            "give one scale for all experts, or one for each",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_source_with_a_value_is_used_and_recorded() {
        let checkpoint = Recommended { steps: Some(20), ..Recommended::default() };
        let catalogue = Recommended { steps: Some(40), shift: Some(12.0), ..Recommended::default() };
        let sources = [(Origin::Checkpoint, &checkpoint), (Origin::Catalogue, &catalogue)];
        let defaults = Defaults::resolve(&sources, 2).unwrap();
        assert_eq!(defaults.steps, Default { value: 20, from: Origin::Checkpoint });
        assert_eq!(defaults.shift, Default { value: Shift(12.0), from: Origin::Catalogue });
        assert_eq!(defaults.fps.from, Origin::Fallback);
        assert_eq!(defaults.guidance.value.len(), 2);
    }

    #[test]
    fn a_recommendation_out_of_range_is_refused() {
        for wrong in [
            Recommended { steps: Some(0), ..Recommended::default() },
            Recommended { frames: Some(0), ..Recommended::default() },
            Recommended { shift: Some(-1.0), ..Recommended::default() },
            Recommended { guidance: Some(vec![1.0, 2.0, 3.0]), ..Recommended::default() },
        ] {
            assert!(Defaults::resolve(&[(Origin::Checkpoint, &wrong)], 2).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_list_of_timesteps_replaces_the_grid_of_its_source_and_of_later_ones() {
        let listed = ListedSteps {
            list: "1000,757,522".parse().unwrap(),
            sampler: SolverKind::Renoise,
            start: crate::timesteps::Start::Noise,
        };
        let list = Recommended { timesteps: Some(listed.clone()), ..Recommended::default() };
        let grid = Recommended { steps: Some(8), sampler: Some(SolverKind::UniPc), ..Recommended::default() };
        let resolve = |first: &Recommended, second: &Recommended| {
            Defaults::resolve(&[(Origin::Checkpoint, first), (Origin::SchedulerConfig, second)], 2).unwrap()
        };
        let defaults = resolve(&list, &grid);
        assert_eq!(defaults.timesteps, Some(Default { value: listed, from: Origin::Checkpoint }));
        assert_eq!(defaults.steps, Default { value: 3, from: Origin::Checkpoint });
        assert_eq!(defaults.sampler, Default { value: SolverKind::Renoise, from: Origin::Checkpoint });
        let defaults = resolve(&grid, &list);
        assert_eq!((defaults.timesteps, defaults.steps.value), (None, 8));
        let both = Recommended { shift: Some(3.0), ..list };
        assert!(Defaults::resolve(&[(Origin::Checkpoint, &both)], 2).is_err());
    }

    #[test]
    fn unknown_names_are_refused_with_the_list_of_names() {
        insta::assert_snapshot!("ddim".parse::<SolverKind>().unwrap_err(), @"sampler cannot be `ddim`: unknown sampler; expected one of unipc, dpmpp, euler, renoise (use one of these)");
        assert_eq!("official".parse::<ScheduleKind>().unwrap(), ScheduleKind::Official);
    }
}
