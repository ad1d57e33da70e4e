//! Few steps, the end of guidance, and reuse of velocities: the arguments of every command that makes clips.

use bundle::preset::{Preset, Recipe};
use bundle::timesteps::{GuidanceUntil, Start, TimestepChoice};
use clap::Args;
use runtime::denoise::StepPolicy;
use runtime::plan::GenerateRequest;

/// How the steps of a clip are made, besides sampler, steps, shift and schedule.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct SamplingArgs {
    /// Recipe of a few-step model: timesteps, sampler and guidance. lightning-4, lightning-4-guided (guidance on the
    /// first step only), fastwan-3, self-forcing-4, rcm-1, rcm-2, rcm-3 or rcm-4. Other arguments override its settings
    #[arg(long, value_name = "NAME")]
    pub(super) preset: Option<Preset>,
    /// Timesteps in the scale of the model, falling from at most 1000, such as 1000,937.5,833.33,625: instead of --steps,
    /// --shift and --schedule, with --sampler euler or renoise. `grid` uses these with a model that has a list
    /// [default: the model's]
    #[arg(long, value_name = "LIST")]
    pub(super) timesteps: Option<TimestepChoice>,
    /// Latent that sampling begins with: noise, or noise*sigma0 for the noise times the first sigma [default: the model's]
    #[arg(long, value_name = "NAME")]
    pub(super) start: Option<Start>,
    /// Leave guidance out in steps whose sigma is below this, from 0 to 1; first guides the first step only [default:
    /// the model's]
    #[arg(long, value_name = "SIGMA")]
    pub(super) guidance_until: Option<GuidanceUntil>,
    /// Reuse the velocities of a step while they change little: easycache, easycache=T with a threshold T, or off
    /// [default: off]
    #[arg(long, value_name = "NAME")]
    pub(super) step_cache: Option<StepPolicy>,
}

impl SamplingArgs {
    /// The recipe of the preset, if there is one.
    pub(super) fn recipe(&self) -> Option<Recipe> {
        self.preset.map(Preset::recipe)
    }

    /// Returns true if the steps themselves are other ones.
    pub(super) fn has_grid(&self) -> bool {
        self.preset.is_some() || self.timesteps.is_some()
    }

    /// The request with these settings.
    pub(super) fn apply(&self, mut base: GenerateRequest) -> GenerateRequest {
        if let Some(Recipe { steps, guidance, guidance_until }) = self.recipe() {
            (base.steps, base.shift, base.schedule) = (None, None, None);
            base.timesteps = Some(TimestepChoice::List(steps.list));
            (base.sampler, base.start) = (Some(steps.sampler), Some(steps.start));
            (base.guidance, base.guidance_until) = (Some(vec![guidance]), Some(guidance_until));
            base.step_cache = Some(StepPolicy::ComputeAll);
        }
        if let Some(choice) = &self.timesteps {
            if matches!(choice, TimestepChoice::List(_)) {
                (base.steps, base.shift, base.schedule) = (None, None, None);
            }
            // That of the list that it replaces, unless a preset sets it.
            base.start = base.start.filter(|_| self.preset.is_some()).or(Some(Start::Noise));
            base.timesteps = Some(choice.clone());
        }
        base.start = self.start.or(base.start);
        base.guidance_until = self.guidance_until.or(base.guidance_until);
        base.step_cache = self.step_cache.or(base.step_cache);
        base
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::settings::SolverKind;
    use bundle::units::{GuidanceScale, Seed};

    fn base() -> GenerateRequest {
        GenerateRequest {
            steps: Some(40),
            shift: Some(12.0),
            guidance: Some(vec![GuidanceScale(4.0), GuidanceScale(3.0)]),
            step_cache: Some(StepPolicy::EasyCache { threshold: 0.1 }),
            ..GenerateRequest::new("a boat", Seed(1))
        }
    }

    #[test]
    fn a_preset_sets_everything_and_flags_override_it() {
        let mut args = SamplingArgs { preset: Some(Preset::Rcm2), ..SamplingArgs::default() };
        let made = args.apply(base());
        assert_eq!((made.steps, made.shift, made.sampler), (None, None, Some(SolverKind::Renoise)));
        assert_eq!((made.start, made.guidance), (Some(Start::ScaledNoise), Some(vec![GuidanceScale(1.0)])));
        assert_eq!(made.step_cache, Some(StepPolicy::ComputeAll));
        (args.start, args.timesteps) = (Some(Start::Noise), Some("900,500".parse().unwrap()));
        let made = args.apply(base());
        assert_eq!((made.start, made.timesteps), (Some(Start::Noise), args.timesteps));
    }

    #[test]
    fn a_list_replaces_the_grid_of_another_clip_and_keeps_the_rest() {
        let args = SamplingArgs { timesteps: Some("900,500".parse().unwrap()), ..SamplingArgs::default() };
        let made = args.apply(GenerateRequest { start: Some(Start::ScaledNoise), ..base() });
        assert_eq!((made.steps, made.shift, made.start), (None, None, Some(Start::Noise)));
        assert_eq!(made.guidance, base().guidance);
        let grid = SamplingArgs { timesteps: Some(TimestepChoice::Grid), ..SamplingArgs::default() };
        assert_eq!(grid.apply(base()).steps, Some(40));
        assert_eq!(SamplingArgs::default().apply(base()), base());
    }
}
