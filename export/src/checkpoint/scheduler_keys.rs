//! Every key of the scheduler configs that can be followed, and which of its values can.
//!
//! The keys are those of diffusers 0.42's classes and of the two that the official Wan code has in their place. A class
//! reads its own keys only, so a key of another class has no effect, as in diffusers; a key of none is refused.
//! `check_config_keys` in `tests/golden/maker/schedules.py` tries the keys on diffusers itself.

use serde_json::Value;

/// A scheduler class whose trajectories can be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// diffusers' UniPC.
    UniPc,
    /// diffusers' DPM-Solver.
    Dpm,
    /// diffusers' Euler for flows.
    Euler,
    /// The official code's UniPC.
    FlowUniPc,
    /// The official code's DPM-Solver.
    FlowDpm,
}

// The names in `_class_name`.
bundle::named!(
    Class,
    "UniPCMultistepScheduler" => UniPc, "DPMSolverMultistepScheduler" => Dpm,
    "FlowMatchEulerDiscreteScheduler" => Euler, "FlowUniPCMultistepScheduler" => FlowUniPc,
    "FlowDPMSolverMultistepScheduler" => FlowDpm,
);

/// A value as it stands in JSON.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Allowed {
    /// `false`, or `null` for nothing said.
    False,
    True,
    /// `null`, or 0, which Python takes for it here.
    Nothing,
    /// `[]`, or `null`.
    EmptyList,
    Text(&'static str),
    Number(u32),
}

impl Allowed {
    fn is(self, value: &Value) -> bool {
        match self {
            Self::False => value == &Value::Bool(false) || value.is_null(),
            Self::True => value == &Value::Bool(true),
            Self::Nothing => value.is_null() || value.as_f64() == Some(0.0),
            Self::EmptyList => value.is_null() || value.as_array().is_some_and(Vec::is_empty),
            Self::Text(text) => value.as_str() == Some(text),
            Self::Number(number) => value.as_f64() == Some(f64::from(number)),
        }
    }
}

impl std::fmt::Display for Allowed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::False => f.write_str("false"),
            Self::True => f.write_str("true"),
            Self::Nothing => f.write_str("null"),
            Self::EmptyList => f.write_str("[]"),
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    /// The trajectory of a flow does not depend on it, or does only together with a key that is refused.
    NoEffect,
    /// The shift of the sigma grid.
    Shift,
    /// One of these values is needed, the first of which is the plain one.
    OneOf(&'static [Allowed], &'static str),
    /// The same, and the class's own default is none of them, so that the key must be there.
    Needed(&'static [Allowed], &'static str),
}

struct Row(&'static [Class], &'static [&'static str], Rule);

use Allowed::{EmptyList, False, Nothing, Number, Text, True};
use Class::{Dpm, Euler, FlowDpm, FlowUniPc, UniPc};
use Rule::{Needed, NoEffect, OneOf, Shift};

const EVERY: &[Class] = &Class::ALL;
const MULTISTEP: &[Class] = &[UniPc, Dpm, FlowUniPc, FlowDpm];
const OF_UNIPC: &[Class] = &[UniPc, FlowUniPc];
const OF_DPM: &[Class] = &[Dpm, FlowDpm];
const IN_DIFFUSERS: &[Class] = &[UniPc, Dpm, Euler];

const VELOCITY: &str = "the denoiser predicts the velocity of a flow";
const LINEAR_GRID: &str = "the sigma grid is linear with a fixed shift";
const TO_CLEAN: &str = "the last step ends at the clean latent";
const NOT_CLIPPED: &str = "predicted latents are taken as they are";

const TABLE: &[Row] = &[
    Row(EVERY, &["num_train_timesteps"], OneOf(&[Number(1000)], "timesteps run from 0 to 1000")),
    Row(EVERY, &["use_dynamic_shifting"], OneOf(&[False], LINEAR_GRID)),
    Row(
        IN_DIFFUSERS,
        &["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"],
        OneOf(&[False], LINEAR_GRID),
    ),
    Row(&[UniPc, Dpm], &["flow_shift"], Shift),
    Row(&[Euler, FlowUniPc, FlowDpm], &["shift"], Shift),
    Row(&[UniPc, Dpm], &["prediction_type"], Needed(&[Text("flow_prediction")], VELOCITY)),
    Row(&[FlowUniPc, FlowDpm], &["prediction_type"], OneOf(&[Text("flow_prediction")], VELOCITY)),
    Row(&[UniPc, Dpm], &["use_flow_sigmas"], Needed(&[True], VELOCITY)),
    Row(MULTISTEP, &["solver_order"], OneOf(&[Number(2)], "solvers are of order 2")),
    Row(MULTISTEP, &["thresholding"], OneOf(&[False], NOT_CLIPPED)),
    Row(MULTISTEP, &["final_sigmas_type"], OneOf(&[Text("zero")], TO_CLEAN)),
    // Both classes take the types of the other for their own plain one.
    Row(
        OF_UNIPC,
        &["solver_type"],
        OneOf(
            &[Text("bh2"), Text("midpoint"), Text("heun"), Text("logrho")],
            "UniPC is in its B(h) = expm1(h) form",
        ),
    ),
    Row(
        OF_DPM,
        &["solver_type"],
        OneOf(
            &[Text("midpoint"), Text("logrho"), Text("bh1"), Text("bh2")],
            "DPM-Solver is in its midpoint form",
        ),
    ),
    Row(OF_UNIPC, &["predict_x0"], OneOf(&[True], "solvers work on predicted clean latents")),
    Row(
        OF_UNIPC,
        &["lower_order_final"],
        OneOf(&[True], "the last step, whose way in log SNR is infinite, is of order 1"),
    ),
    Row(OF_UNIPC, &["disable_corrector"], OneOf(&[EmptyList], "every step is corrected")),
    Row(OF_UNIPC, &["solver_p"], OneOf(&[Nothing], "UniPC has a predictor of its own")),
    Row(&[UniPc, Euler], &["shift_terminal"], OneOf(&[Nothing], LINEAR_GRID)),
    Row(
        OF_DPM,
        &["algorithm_type"],
        OneOf(&[Text("dpmsolver++")], "DPM-Solver works on predicted clean latents, without new noise"),
    ),
    Row(&[Dpm], &["use_lu_lambdas"], OneOf(&[False], LINEAR_GRID)),
    Row(&[Euler, FlowDpm], &["invert_sigmas"], OneOf(&[False], "sigmas fall from noise to the clean latent")),
    Row(&[Euler], &["stochastic_sampling"], OneOf(&[False], "no noise is added on the way")),
    // Noise schedules of models that predict noise; `use_flow_sigmas` puts the flow's in their place.
    Row(
        &[UniPc, Dpm],
        &[
            "beta_start",
            "beta_end",
            "beta_schedule",
            "trained_betas",
            "rescale_betas_zero_snr",
            "timestep_spacing",
            "steps_offset",
        ],
        NoEffect,
    ),
    Row(&[FlowUniPc], &["timestep_spacing", "steps_offset"], NoEffect),
    // Of grids of another form, which are refused.
    Row(&[UniPc], &["sigma_min", "sigma_max"], NoEffect),
    Row(IN_DIFFUSERS, &["time_shift_type"], NoEffect),
    Row(&[Euler], &["base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"], NoEffect),
    // Of thresholding, which is refused.
    Row(MULTISTEP, &["dynamic_thresholding_ratio", "sample_max_value"], NoEffect),
    // The last step is of order 1 whenever it ends at 0; the rest is for models that predict noise.
    Row(OF_DPM, &["lower_order_final", "euler_at_final", "lambda_min_clipped", "variance_type"], NoEffect),
];

/// What becomes of a key in the config of a class; none for a key of no class.
pub(super) fn rule(class: Class, key: &str) -> Option<Rule> {
    let named = || TABLE.iter().filter(|Row(_, keys, _)| keys.contains(&key));
    let own = named().find(|Row(classes, ..)| classes.contains(&class));
    match own {
        Some(Row(_, _, rule)) => Some(*rule),
        None => named().next().map(|_| NoEffect),
    }
}

/// The keys that must stand in the config of a class.
pub(super) fn needed(class: Class) -> impl Iterator<Item = &'static str> {
    let of_class = TABLE
        .iter()
        .filter(move |Row(classes, _, rule)| classes.contains(&class) && matches!(rule, Needed(..)));
    of_class.flat_map(|Row(_, keys, _)| keys.iter().copied())
}

/// Whether a value is one of those that can be followed.
pub(super) fn is_allowed(allowed: &[Allowed], value: &Value) -> bool {
    allowed.iter().any(|allowed| allowed.is(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the classes of diffusers 0.42.1 take.
    const IN_DIFFUSERS: [(Class, &str); 3] = [
        (
            UniPc,
            "num_train_timesteps beta_start beta_end beta_schedule trained_betas solver_order prediction_type \
             thresholding dynamic_thresholding_ratio sample_max_value predict_x0 solver_type lower_order_final \
             disable_corrector solver_p use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_flow_sigmas \
             flow_shift timestep_spacing steps_offset final_sigmas_type rescale_betas_zero_snr use_dynamic_shifting \
             time_shift_type sigma_min sigma_max shift_terminal",
        ),
        (
            Dpm,
            "num_train_timesteps beta_start beta_end beta_schedule trained_betas solver_order prediction_type \
             thresholding dynamic_thresholding_ratio sample_max_value algorithm_type solver_type lower_order_final \
             euler_at_final use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_lu_lambdas use_flow_sigmas \
             flow_shift final_sigmas_type lambda_min_clipped variance_type timestep_spacing steps_offset \
             rescale_betas_zero_snr use_dynamic_shifting time_shift_type",
        ),
        (
            Euler,
            "num_train_timesteps shift use_dynamic_shifting base_shift max_shift base_image_seq_len \
             max_image_seq_len invert_sigmas shift_terminal use_karras_sigmas use_exponential_sigmas use_beta_sigmas \
             time_shift_type stochastic_sampling",
        ),
    ];

    #[test]
    fn every_key_of_a_class_is_in_the_table_as_its_own_and_no_other() {
        for (class, keys) in IN_DIFFUSERS {
            let theirs: Vec<&str> = keys.split_whitespace().collect();
            let mut ours: Vec<&str> = TABLE
                .iter()
                .filter(|Row(classes, ..)| classes.contains(&class))
                .flat_map(|Row(_, keys, _)| keys.iter().copied())
                .collect();
            ours.sort_unstable();
            let mut sorted = theirs;
            sorted.sort_unstable();
            assert_eq!(ours, sorted, "{}", class.name());
        }
    }

    #[test]
    fn a_key_of_another_class_has_no_effect_and_one_of_none_is_unknown() {
        assert_eq!(rule(UniPc, "stochastic_sampling"), Some(NoEffect));
        assert_eq!(rule(Euler, "solver_order"), Some(NoEffect));
        assert_eq!(rule(UniPc, "sigma_data"), None);
    }
}
