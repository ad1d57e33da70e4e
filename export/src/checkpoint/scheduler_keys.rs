//! The keys of supported scheduler configs and their supported values.
//!
//! The keys are those of the classes of diffusers 0.42 and of the two classes of the official Wan code. A class only
//! reads its own keys, so a key of another class has no effect, as in diffusers. A key of no class is refused.
//! `check_config_keys` in `tests/golden/maker/schedules.py` compares the keys with diffusers.

use serde_json::Value;

/// A supported scheduler class.
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

/// A JSON value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Allowed {
    /// `false`, or `null`.
    False,
    True,
    /// `null`, or 0, which has the same effect in Python.
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

/// The treatment of a key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    /// The trajectory of a flow does not depend on it, or only together with a key that is refused.
    NoEffect,
    /// The shift of the sigma grid.
    Shift,
    /// The value must be one of these; the first is used in messages.
    OneOf(&'static [Allowed], &'static str),
    /// The same for a required key: the default of the class is not one of these.
    Needed(&'static [Allowed], &'static str),
}

struct Row(&'static [Class], &'static [&'static str], Rule);

use Allowed::{EmptyList, False, Nothing, Number, Text, True};
use Class::{Dpm, Euler, FlowDpm, FlowUniPc, UniPc};
use Rule::{Needed, NoEffect, OneOf, Shift};

const EVERY: &[Class] = &Class::ALL;
const MULTISTEP: &[Class] = &[UniPc, Dpm, FlowUniPc, FlowDpm];
const UNIPC: &[Class] = &[UniPc, FlowUniPc];
const DPM: &[Class] = &[Dpm, FlowDpm];
const IN_DIFFUSERS: &[Class] = &[UniPc, Dpm, Euler];

const VELOCITY: &str = "the denoiser predicts the velocity of a flow";
const LINEAR_GRID: &str = "the sigma grid is linear with a fixed shift";
const TO_CLEAN: &str = "the last step ends at the clean latent";
const NOT_CLIPPED: &str = "predicted latents are not clipped";

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
    // Both classes treat the types of the other as their default.
    Row(
        UNIPC,
        &["solver_type"],
        OneOf(
            &[Text("bh2"), Text("midpoint"), Text("heun"), Text("logrho")],
            "UniPC is supported in its B(h) = expm1(h) form",
        ),
    ),
    Row(
        DPM,
        &["solver_type"],
        OneOf(
            &[Text("midpoint"), Text("logrho"), Text("bh1"), Text("bh2")],
            "DPM-Solver is supported in its midpoint form",
        ),
    ),
    Row(UNIPC, &["predict_x0"], OneOf(&[True], "solvers work on predicted clean latents")),
    Row(
        UNIPC,
        &["lower_order_final"],
        OneOf(&[True], "the last step, to an infinite log SNR, is of order 1"),
    ),
    Row(UNIPC, &["disable_corrector"], OneOf(&[EmptyList], "every step is corrected")),
    Row(UNIPC, &["solver_p"], OneOf(&[Nothing], "UniPC uses its own predictor")),
    Row(&[UniPc, Euler], &["shift_terminal"], OneOf(&[Nothing], LINEAR_GRID)),
    Row(
        DPM,
        &["algorithm_type"],
        OneOf(&[Text("dpmsolver++")], "DPM-Solver works on predicted clean latents, without new noise"),
    ),
    Row(&[Dpm], &["use_lu_lambdas"], OneOf(&[False], LINEAR_GRID)),
    Row(&[Euler, FlowDpm], &["invert_sigmas"], OneOf(&[False], "sigmas fall from noise to the clean latent")),
    Row(&[Euler], &["stochastic_sampling"], OneOf(&[False, True], "noise is added between steps, or not")),
    // Noise schedules of models that predict noise; `use_flow_sigmas` replaces them.
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
    // For sigma grids that are refused.
    Row(&[UniPc], &["sigma_min", "sigma_max"], NoEffect),
    Row(IN_DIFFUSERS, &["time_shift_type"], NoEffect),
    Row(&[Euler], &["base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"], NoEffect),
    // For thresholding, which is refused.
    Row(MULTISTEP, &["dynamic_thresholding_ratio", "sample_max_value"], NoEffect),
    // The last step is of order 1 if it ends at 0; the other keys are for models that predict noise.
    Row(DPM, &["lower_order_final", "euler_at_final", "lambda_min_clipped", "variance_type"], NoEffect),
];

/// Returns the treatment of a key in the config of a class; none for an unknown key.
pub(super) fn rule(class: Class, key: &str) -> Option<Rule> {
    let named = || TABLE.iter().filter(|Row(_, keys, _)| keys.contains(&key));
    let found = named().find(|Row(classes, ..)| classes.contains(&class));
    match found {
        Some(Row(_, _, rule)) => Some(*rule),
        None => named().next().map(|_| NoEffect),
    }
}

/// Returns the required keys of a class.
pub(super) fn needed(class: Class) -> impl Iterator<Item = &'static str> {
    let rows = TABLE
        .iter()
        .filter(move |Row(classes, _, rule)| classes.contains(&class) && matches!(rule, Needed(..)));
    rows.flat_map(|Row(_, keys, _)| keys.iter().copied())
}

/// Returns true if a value is one of the allowed ones.
pub(super) fn is_allowed(allowed: &[Allowed], value: &Value) -> bool {
    allowed.iter().any(|allowed| allowed.is(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of the classes of diffusers 0.42.1.
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
    fn the_table_has_exactly_the_keys_of_each_class() {
        for (class, keys) in IN_DIFFUSERS {
            let mut expected: Vec<&str> = keys.split_whitespace().collect();
            let mut found: Vec<&str> = TABLE
                .iter()
                .filter(|Row(classes, ..)| classes.contains(&class))
                .flat_map(|Row(_, keys, _)| keys.iter().copied())
                .collect();
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected, "{class}");
        }
    }

    #[test]
    fn a_key_of_another_class_has_no_effect_and_other_keys_are_unknown() {
        assert_eq!(rule(UniPc, "stochastic_sampling"), Some(NoEffect));
        assert_eq!(rule(Euler, "solver_order"), Some(NoEffect));
        assert_eq!(rule(UniPc, "sigma_data"), None);
    }
}
