//! Lists of timesteps, which replace a computed sigma grid. Few-step models are distilled for such a list.

use crate::solver::{MAX_STEPS, SolverKind};
use crate::units::{Sigma, Timestep};
use crate::{Error, Field};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Timesteps in the scale of the model: 1 to [`MAX_STEPS`] numbers above 0 and up to 1000, each below the one before.
///
/// # Examples
/// ```
/// use bundle::timesteps::TimestepList;
///
/// let list: TimestepList = "1000, 937.5,833.33,625".parse()?;
/// assert_eq!(list.steps(), 4);
/// assert!("625,1000".parse::<TimestepList>().is_err());
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f32>", into = "Vec<f32>")]
pub struct TimestepList(Vec<Timestep>);

impl TimestepList {
    /// Creates a list.
    ///
    /// # Errors
    /// There are no numbers or too many, one is out of range, or they do not fall.
    pub fn try_new(values: Vec<f32>) -> Result<Self, Error> {
        let refused = |given: String, rule: String| {
            let fix = "write it like 1000,937.5,833.33,625";
            Err(Error::value(Field::Timesteps, given, rule, fix))
        };
        if !(1..=MAX_STEPS).contains(&values.len()) {
            let rule = format!("a clip is denoised in 1 to {MAX_STEPS} steps");
            return refused(format!("{} numbers", values.len()), rule);
        }
        if let Some(wrong) =
            values.iter().find(|value| !(value.is_finite() && **value > 0.0 && **value <= 1000.0))
        {
            return refused(wrong.to_string(), "a timestep is above 0 and at most 1000".into());
        }
        if let Some(pair) = values.windows(2).find(|pair| pair[0] <= pair[1]) {
            let rule = "each timestep must be below the one before, from much noise to little";
            return refused(format!("{},{}", pair[0], pair[1]), rule.into());
        }
        Ok(Self(values.into_iter().map(Timestep).collect()))
    }

    /// The timesteps, falling.
    pub fn timesteps(&self) -> &[Timestep] {
        &self.0
    }

    /// The number of steps.
    pub fn steps(&self) -> usize {
        self.0.len()
    }

    /// The first `steps` timesteps; all of them if there are not more.
    #[must_use]
    pub fn first(&self, steps: usize) -> Self {
        Self(self.0.iter().copied().take(steps.max(1)).collect())
    }
}

impl TryFrom<Vec<f32>> for TimestepList {
    type Error = Error;

    fn try_from(values: Vec<f32>) -> Result<Self, Error> {
        Self::try_new(values)
    }
}

impl From<TimestepList> for Vec<f32> {
    fn from(list: TimestepList) -> Self {
        list.0.into_iter().map(|timestep| timestep.0).collect()
    }
}

impl FromStr for TimestepList {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let number = |part: &str| {
            part.trim().parse::<f32>().map_err(|_error| {
                let rule = "it is not a list of numbers";
                Error::value(
                    Field::Timesteps,
                    format!("`{text}`"),
                    rule,
                    "write it like 1000,937.5,833.33,625",
                )
            })
        };
        Self::try_new(text.split(',').map(number).collect::<Result<_, _>>()?)
    }
}

impl fmt::Display for TimestepList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, timestep) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            timestep.0.fmt(f)?;
        }
        Ok(())
    }
}

/// Where the timesteps of a clip come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredChoice", into = "StoredChoice")]
pub enum TimestepChoice {
    /// A grid of a number of steps, bent by a shift. Written `grid`.
    Grid,
    /// A list.
    List(TimestepList),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredChoice {
    Word(String),
    List(TimestepList),
}

impl TryFrom<StoredChoice> for TimestepChoice {
    type Error = Error;

    fn try_from(stored: StoredChoice) -> Result<Self, Error> {
        match stored {
            StoredChoice::Word(word) => word.parse(),
            StoredChoice::List(list) => Ok(Self::List(list)),
        }
    }
}

impl From<TimestepChoice> for StoredChoice {
    fn from(choice: TimestepChoice) -> Self {
        match choice {
            TimestepChoice::Grid => Self::Word(GRID.into()),
            TimestepChoice::List(list) => Self::List(list),
        }
    }
}

/// The word for a computed grid.
const GRID: &str = "grid";

impl FromStr for TimestepChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == GRID { Ok(Self::Grid) } else { Ok(Self::List(text.parse()?)) }
    }
}

/// The latent that sampling begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Start {
    /// The noise.
    #[default]
    #[serde(rename = "noise")]
    Noise,
    /// The noise times the first sigma.
    #[serde(rename = "noise*sigma0")]
    ScaledNoise,
}

crate::named!(Start, Field::Start, "start", "noise" => Noise, "noise*sigma0" => ScaledNoise);

impl Start {
    /// The factor on the noise of a run whose first sigma is `first`.
    pub fn factor(self, first: Sigma) -> f32 {
        match self {
            Self::Noise => 1.0,
            Self::ScaledNoise => first.0,
        }
    }

    /// Returns true for [`Self::Noise`].
    pub fn is_noise(&self) -> bool {
        *self == Self::Noise
    }
}

/// The recommended steps of a few-step model: a list of timesteps, and how it is followed. It is `timesteps` in
/// `rushes.json`.
///
/// # Examples
/// ```
/// use bundle::timesteps::ListedSteps;
///
/// let json = r#"{"list": [1000, 757, 522], "sampler": "renoise"}"#;
/// assert_eq!(serde_json::from_str::<ListedSteps>(json)?.list.steps(), 3);
/// assert!(serde_json::from_str::<ListedSteps>(&json.replace("renoise", "unipc")).is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredSteps")]
pub struct ListedSteps {
    /// The timesteps.
    pub list: TimestepList,
    /// The solver: [`SolverKind::follows_lists`].
    pub sampler: SolverKind,
    /// The latent that sampling begins with.
    #[serde(skip_serializing_if = "Start::is_noise")]
    pub start: Start,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredSteps {
    list: TimestepList,
    sampler: SolverKind,
    #[serde(default)]
    start: Start,
}

impl TryFrom<StoredSteps> for ListedSteps {
    type Error = Error;

    fn try_from(StoredSteps { list, sampler, start }: StoredSteps) -> Result<Self, Error> {
        check_list_solver(sampler)?;
        Ok(Self { list, sampler, start })
    }
}

/// Checks that a solver can follow a list of timesteps.
///
/// # Errors
/// It follows only the grids that it was published with.
pub fn check_list_solver(solver: SolverKind) -> Result<(), Error> {
    if solver.follows_lists() {
        return Ok(());
    }
    let rule = "a list of timesteps is followed by euler or renoise";
    Err(Error::value(Field::Sampler, solver, rule, "choose one of these, or set `timesteps` to grid"))
}

/// The end of guidance: steps of lower noise are not guided.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredUntil", into = "StoredUntil")]
pub enum GuidanceUntil {
    /// Steps whose sigma is at least this are guided. 0 guides all steps.
    Sigma(Sigma),
    /// Only the first step is guided. Written `first`.
    FirstStep,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredUntil {
    Sigma(f32),
    Word(String),
}

/// The word for guidance of the first step only.
const FIRST: &str = "first";

impl GuidanceUntil {
    /// Guidance of all steps.
    pub const ALL_STEPS: Self = Self::Sigma(Sigma(0.0));

    /// The lowest sigma that is guided, of a run whose first sigma is `first`.
    pub fn sigma(self, first: Sigma) -> Sigma {
        match self {
            Self::Sigma(sigma) => sigma,
            Self::FirstStep => first,
        }
    }

    /// Guidance of steps whose sigma is at least `value`.
    ///
    /// # Errors
    /// The value is not in 0..=1.
    pub fn try_new(value: f32) -> Result<Self, Error> {
        if (0.0..=1.0).contains(&value) { Ok(Self::Sigma(Sigma(value))) } else { Err(wrong_until(value)) }
    }

    /// Checks the sigma.
    ///
    /// # Errors
    /// It is not in 0..=1.
    pub fn check(self) -> Result<Self, Error> {
        match self {
            Self::Sigma(Sigma(value)) => Self::try_new(value),
            Self::FirstStep => Ok(self),
        }
    }
}

fn wrong_until(given: impl fmt::Display) -> Error {
    let rule = "guidance ends at a sigma from 0 to 1, or after the first step";
    Error::value(Field::GuidanceUntil, given, rule, "write a number like 0.6, or first")
}

impl FromStr for GuidanceUntil {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == FIRST {
            return Ok(Self::FirstStep);
        }
        let value = text.trim().parse().map_err(|_error| wrong_until(format!("`{text}`")))?;
        Self::try_new(value)
    }
}

impl fmt::Display for GuidanceUntil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sigma(sigma) => sigma.0.fmt(f),
            Self::FirstStep => f.write_str(FIRST),
        }
    }
}

impl TryFrom<StoredUntil> for GuidanceUntil {
    type Error = Error;

    fn try_from(stored: StoredUntil) -> Result<Self, Error> {
        match stored {
            StoredUntil::Sigma(value) => Self::try_new(value),
            StoredUntil::Word(word) => word.parse(),
        }
    }
}

impl From<GuidanceUntil> for StoredUntil {
    fn from(until: GuidanceUntil) -> Self {
        match until {
            GuidanceUntil::Sigma(sigma) => Self::Sigma(sigma.0),
            GuidanceUntil::FirstStep => Self::Word(FIRST.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_falls_within_the_range_of_the_model() {
        let list: TimestepList = "1000,937.5, 833.333".parse().unwrap();
        assert_eq!(list.to_string(), "1000,937.5,833.333");
        assert_eq!(list.first(2).to_string(), "1000,937.5");
        for wrong in ["", "1000,", "x", "0", "-1", "1001", "nan", "inf", "500,500", "500,600"] {
            assert!(wrong.parse::<TimestepList>().is_err(), "{wrong}");
        }
        assert!(TimestepList::try_new(Vec::new()).is_err());
        insta::assert_snapshot!("1000,1000".parse::<TimestepList>().unwrap_err(), @"timesteps cannot be 1000,1000: each timestep must be below the one before, from much noise to little (write it like 1000,937.5,833.33,625)");
    }

    #[test]
    fn choices_are_a_word_or_a_list() {
        for json in [r#""grid""#, "[1000.0,500.0]"] {
            let choice: TimestepChoice = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&choice).unwrap(), json);
        }
        for json in [r#""gird""#, "[500.0,1000.0]", "7"] {
            assert!(serde_json::from_str::<TimestepChoice>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn listed_steps_need_a_solver_that_follows_them() {
        let json =
            |sampler: &str| format!(r#"{{"list":[1000.0],"sampler":"{sampler}","start":"noise*sigma0"}}"#);
        let read: ListedSteps = serde_json::from_str(&json("renoise")).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json("renoise"));
        assert_eq!(read.start.factor(Sigma(0.9)), 0.9);
        for sampler in SolverKind::ALL {
            assert_eq!(
                serde_json::from_str::<ListedSteps>(&json(sampler.name())).is_ok(),
                sampler.follows_lists()
            );
        }
    }

    #[test]
    fn guidance_ends_at_a_sigma_or_after_the_first_step() {
        let until = |text: &str| text.parse::<GuidanceUntil>();
        assert_eq!(until("0.6").unwrap().sigma(Sigma(1.0)), Sigma(0.6));
        assert_eq!(until("first").unwrap().sigma(Sigma(0.99)), Sigma(0.99));
        for wrong in ["", "1.1", "-0.1", "nan", "last"] {
            assert!(until(wrong).is_err(), "{wrong}");
        }
        for json in ["0.5", r#""first""#] {
            let until: GuidanceUntil = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&until).unwrap(), json);
        }
        assert!(serde_json::from_str::<GuidanceUntil>("2.0").is_err());
    }
}
