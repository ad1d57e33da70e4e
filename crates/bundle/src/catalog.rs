//! Published models whose recommended settings are known.
//!
//! A model that was distilled to few steps, and whose change was merged into the weights, has the shape of the model
//! that it was made from. These properties tell it from the 40-step model:
//!
//! * a word in its name, such as `lightning` or `4steps`;
//! * the class of its scheduler: Euler, where the 40-step model has UniPC;
//! * the shift of its scheduler: another than 3 or 12.
//!
//! A model of the shape that has none of these, and not the published name either, is in doubt. Its scheduler config
//! then stands before the catalogue, with a warning.

use crate::geometry::{Patch, PixelSize};
use crate::preset::Preset;
use crate::routing::Routing;
use crate::settings::{Recommended, ScheduleKind, SolverKind};
use crate::spec::{DenoiserSpec, TextEncoderSpec, VaeSpec};
use crate::units::{FrameRate, Timestep};

/// The negative prompt that Wan is published with.
pub const OFFICIAL_NEGATIVE_PROMPT: &str = "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走";

/// Properties that identify a model.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// Name of the checkpoint or its folder.
    pub name: &'a str,
    /// Hyper-parameters of every expert.
    pub denoiser: &'a DenoiserSpec,
    /// Experts and the boundary between them.
    pub routing: &'a Routing,
    /// Solver and shift of the scheduler config, if it is supported.
    pub scheduler: Option<(SolverKind, Option<f64>)>,
}

/// A published model that a checkpoint is or resembles.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownModel {
    /// Its name.
    pub name: &'static str,
    /// The certainty of the match.
    pub certainty: Certainty,
    /// The settings that its authors recommend, as far as they apply to the checkpoint.
    pub recommended: Recommended,
}

/// The certainty that a checkpoint is a published model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certainty {
    /// Name, shape, boundary and scheduler are those of the publication.
    Published,
    /// Some properties match and none contradicts. It may be a model that was made from this one, such as a merged
    /// distillation.
    Guess {
        /// The properties that match and those that do not.
        why: String,
    },
    /// The shape matches, but another property contradicts.
    Other {
        /// The property that contradicts.
        why: String,
    },
}

const A14B: &str = "Wan2.2-T2V-A14B";
const A14B_IN_FOUR_STEPS: &str = "Wan2.2-T2V-A14B in four steps (Lightning)";
/// The timestep at which it switches experts.
const A14B_BOUNDARY: f32 = 875.0;
/// The boundary of text-to-video models with two experts in the official code, which has one such model.
pub const OFFICIAL_BOUNDARY: Timestep = Timestep(A14B_BOUNDARY);
/// The shift of its scheduler config, which gives worse clips, and the shift that its authors use.
const A14B_SHIFTS: [f64; 2] = [3.0, 12.0];

/// Returns the published model of the same shape as a checkpoint, or none.
pub fn identify(evidence: &Evidence<'_>) -> Option<KnownModel> {
    let boundary = match evidence.routing.routes() {
        [high, _] => high.from_timestep,
        _ => return identify_single(evidence),
    };
    if *evidence.denoiser != wan_denoiser(40, 40, 13824) {
        return None;
    }
    let known = |name, certainty, recommended| Some(KnownModel { name, certainty, recommended });
    let other = |why| known(A14B, Certainty::Other { why }, Recommended::default());
    if boundary != A14B_BOUNDARY {
        return other(format!("its boundary is {}, not 0.875", boundary / 1000.0));
    }
    match distilled(evidence.name) {
        Some(Distilled { steps: Some(4), .. }) => {
            let why = format!("shape and boundary match, and the name is {}", evidence.name);
            return known(A14B_IN_FOUR_STEPS, Certainty::Guess { why }, a14b_in_four_steps());
        }
        Some(Distilled { word, .. }) => {
            let name = evidence.name;
            return other(format!(
                "the name {name} contains {word:?}, so it needs another number of steps; choose a `preset` such as {}",
                Preset::Lightning4
            ));
        }
        None => {}
    }
    let (solver, shift) = match evidence.scheduler {
        Some((solver, shift)) => (solver, shift),
        None => (SolverKind::UniPc, None),
    };
    if solver != SolverKind::UniPc {
        return other(format!(
            "its scheduler is {solver}, not unipc, so it may be a merged model for few steps, which needs a `preset` such \
             as {}",
            Preset::Lightning4
        ));
    }
    let custom_shift = shift.filter(|shift| !A14B_SHIFTS.contains(shift));
    if evidence.scheduler.is_some() && custom_shift.is_none() && is_name(evidence.name, A14B) {
        return known(A14B, Certainty::Published, a14b());
    }
    let recommended = match evidence.scheduler {
        None => a14b(),
        Some(_) => Recommended { shift: None, sampler: None, schedule: None, ..a14b() },
    };
    if let Some(shift) = custom_shift {
        let why = format!("shape, boundary and solver match, but its scheduler has the shift {shift}, not 3");
        return known(A14B, Certainty::Guess { why }, recommended);
    }
    let matches = match evidence.scheduler {
        Some(_) => "shape, boundary and scheduler match",
        None => "shape and boundary match, its scheduler is not supported",
    };
    let why = format!("{matches}, and the name is {}", evidence.name);
    known(A14B, Certainty::Guess { why }, recommended)
}

/// The models of one expert: name, heads, layers, feed-forward width, size, guidance and shift.
type Single = (&'static str, [usize; 3], [usize; 2], f32, f64);
/// Source: `generate.py` of the official code, and its README for 1.3B.
const SINGLE: [Single; 2] = [
    ("Wan2.1-T2V-1.3B", [12, 30, 8960], [832, 480], 6.0, 8.0),
    ("Wan2.1-T2V-14B", [40, 40, 13824], [1280, 720], 5.0, 5.0),
];
/// The shifts of their scheduler configs, and those that their authors use.
const SINGLE_SHIFTS: [f64; 3] = [3.0, 5.0, 8.0];

/// [`identify`] for a model of one expert.
fn identify_single(evidence: &Evidence<'_>) -> Option<KnownModel> {
    let shape = |[heads, layers, feed_forward]: [usize; 3]| wan_denoiser(heads, layers, feed_forward);
    let (name, _, [width, height], guidance, shift) =
        SINGLE.into_iter().find(|(_, extents, ..)| *evidence.denoiser == shape(*extents))?;
    let mut recommended = Recommended {
        size: Some(PixelSize { width, height }),
        steps: Some(50),
        guidance: Some(vec![guidance]),
        shift: Some(shift),
        ..a14b()
    };
    let other = |why| {
        Some(KnownModel { name, certainty: Certainty::Other { why }, recommended: Recommended::default() })
    };
    if let Some(Distilled { word, .. }) = distilled(evidence.name) {
        let found = evidence.name;
        return other(format!("the name {found} contains {word:?}, so it needs another number of steps"));
    }
    if let Some((solver, _)) = evidence.scheduler.filter(|(solver, _)| *solver != SolverKind::UniPc) {
        return other(format!("its scheduler is {solver}, not unipc"));
    }
    let own_shift =
        evidence.scheduler.and_then(|(_, shift)| shift).filter(|shift| !SINGLE_SHIFTS.contains(shift));
    let certainty = match own_shift {
        // It was changed on purpose.
        Some(shift) => {
            recommended.shift = None;
            let why = format!("shape and solver match, but its scheduler has the shift {shift}");
            Certainty::Guess { why }
        }
        None if evidence.scheduler.is_some() && is_name(evidence.name, name) => Certainty::Published,
        None => Certainty::Guess { why: format!("the shape matches, and the name is {}", evidence.name) },
    };
    Some(KnownModel { name, certainty, recommended })
}

/// Returns true if a name is the published one, as a repository or a folder.
fn is_name(name: &str, published: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name);
    let base = last.strip_suffix("-Diffusers").unwrap_or(last);
    base.eq_ignore_ascii_case(published)
}

/// The part of a name that marks a model as distilled to few steps.
#[derive(Debug, PartialEq)]
struct Distilled {
    /// The word in the name.
    word: String,
    /// The number of steps, if the name contains it.
    steps: Option<usize>,
}

/// Words in the names of models that were distilled to few steps.
const DISTILLED: [&str; 11] =
    ["lightning", "lightx2v", "lightvx", "turbo", "lcm", "dmd", "dmd2", "causvid", "accvid", "rcm", "tcd"];

fn distilled(name: &str) -> Option<Distilled> {
    let name = name.to_lowercase();
    let words: Vec<&str> =
        name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    let steps = words.iter().enumerate().find_map(|(at, word)| {
        let digits = word.trim_end_matches("steps").trim_end_matches("step");
        match digits.parse() {
            Ok(steps) if digits.len() < word.len() => Some((steps, (*word).to_owned())),
            Ok(steps) => {
                let next = words.get(at + 1).filter(|next| matches!(**next, "step" | "steps"))?;
                Some((steps, format!("{word} {next}")))
            }
            Err(_) => None,
        }
    });
    let word = words
        .into_iter()
        .find(|word| DISTILLED.contains(word) || word.starts_with("distil") || word.starts_with("fastwan"));
    match (word, steps) {
        (None, None) => None,
        (Some(word), steps) => Some(Distilled { word: word.into(), steps: steps.map(|(steps, _)| steps) }),
        (None, Some((steps, word))) => Some(Distilled { word, steps: Some(steps) }),
    }
}

fn a14b() -> Recommended {
    Recommended {
        size: Some(PixelSize { width: 1280, height: 720 }),
        frames: Some(81),
        fps: Some(FrameRate::WAN),
        steps: Some(40),
        guidance: Some(vec![4.0, 3.0]),
        shift: Some(12.0),
        sampler: Some(SolverKind::UniPc),
        schedule: Some(ScheduleKind::Official),
        negative: Some(OFFICIAL_NEGATIVE_PROMPT.into()),
        timesteps: None,
        guidance_until: None,
    }
}

/// The settings of [`Preset::Lightning4`].
fn a14b_in_four_steps() -> Recommended {
    let recipe = Preset::Lightning4.recipe();
    Recommended {
        steps: None,
        guidance: Some(vec![recipe.guidance.0]),
        shift: None,
        sampler: None,
        schedule: None,
        negative: Some(String::new()),
        timesteps: Some(recipe.steps),
        ..a14b()
    }
}

/// Returns the specification of a Wan text-to-video denoiser with heads of width 128. Published are 12 heads, 30
/// layers, 8960 (1.3B) and 40, 40, 13824 (A14B).
pub fn wan_denoiser(heads: usize, layers: usize, feed_forward: usize) -> DenoiserSpec {
    DenoiserSpec {
        heads,
        head_width: 128,
        layers,
        feed_forward,
        in_channels: 16,
        out_channels: 16,
        patch: Patch { time: 1, height: 2, width: 2 },
        text_width: 4096,
        frequency_width: 256,
        epsilon: 1e-6,
    }
}

/// The text encoder that the Wan models share, umT5-XXL.
pub fn umt5_xxl() -> TextEncoderSpec {
    TextEncoderSpec {
        vocabulary: 256_384,
        width: 4096,
        heads: 64,
        head_width: 64,
        feed_forward: 10_240,
        layers: 24,
        buckets: 32,
        max_distance: 128,
        epsilon: 1e-6,
    }
}

/// The VAE that the A14B models share with Wan2.1.
pub fn wan21_vae() -> VaeSpec {
    VaeSpec {
        base: 96,
        latent_channels: 16,
        multipliers: vec![1, 2, 4, 4],
        residual_blocks: 2,
        temporal_downsample: vec![false, true, true],
        latents_mean: vec![
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517,
            -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
        ],
        latents_std: vec![
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579,
            1.6382, 1.1253, 2.8251, 1.9160,
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identified(name: &str, boundary: f32, scheduler: Option<(SolverKind, Option<f64>)>) -> KnownModel {
        let routing = Routing::pair(Timestep(boundary)).unwrap();
        let denoiser = wan_denoiser(40, 40, 13824);
        identify(&Evidence { name, denoiser: &denoiser, routing: &routing, scheduler }).unwrap()
    }

    const PUBLISHED: Option<(SolverKind, Option<f64>)> = Some((SolverKind::UniPc, Some(3.0)));

    #[test]
    fn the_published_model_is_identified_by_all_properties() {
        for name in ["Wan2.2-T2V-A14B", "Wan2.2-T2V-A14B-Diffusers", "Wan-AI/Wan2.2-T2V-A14B-Diffusers"] {
            assert_eq!(identified(name, 875.0, PUBLISHED).certainty, Certainty::Published, "{name}");
        }
    }

    #[test]
    fn without_its_name_its_scheduler_or_its_shift_it_is_a_guess() {
        for (name, scheduler) in [
            ("my-model", PUBLISHED),
            ("Wan2.2-T2V-A14B-style-Diffusers", PUBLISHED),
            ("Wan2.2-T2V-A14B", None),
            ("Wan2.2-T2V-A14B", Some((SolverKind::UniPc, Some(8.0)))),
        ] {
            let found = identified(name, 875.0, scheduler);
            assert!(matches!(found.certainty, Certainty::Guess { .. }), "{name}");
            assert_eq!(found.recommended.steps, Some(40));
            // In doubt the scheduler config stands before the catalogue.
            let Recommended { shift, sampler, schedule, .. } = found.recommended;
            assert_eq!(shift.is_none() && sampler.is_none() && schedule.is_none(), scheduler.is_some());
        }
    }

    #[test]
    fn a_contradiction_is_reported_and_nothing_is_recommended() {
        for (name, boundary, scheduler, why) in [
            ("Wan2.2-T2V-A14B", 900.0, PUBLISHED, "0.9"),
            ("Wan2.2-T2V-A14B", 875.0, Some((SolverKind::Euler, Some(5.0))), "euler"),
            ("Wan2.2-T2V-A14B-8steps", 875.0, PUBLISHED, "8steps"),
            ("lcm-a14b", 875.0, PUBLISHED, "lcm"),
            ("a14b_Distilled", 875.0, PUBLISHED, "distilled"),
        ] {
            let found = identified(name, boundary, scheduler);
            assert_eq!(found.recommended, Recommended::default());
            assert!(
                matches!(&found.certainty, Certainty::Other { why: reported } if reported.contains(why)),
                "{:?}",
                found.certainty
            );
        }
    }

    #[test]
    fn a_name_with_four_steps_gets_the_settings_for_four_steps() {
        for name in ["Wan2.2-Lightning-4steps", "wan22 4-step", "T2V_A14B_lightx2v_4step_bf16"] {
            let found = identified(name, 875.0, PUBLISHED);
            assert!(matches!(found.certainty, Certainty::Guess { .. }), "{name}");
            let Recommended { timesteps, steps, guidance, .. } = found.recommended;
            assert_eq!(timesteps, Some(Preset::Lightning4.recipe().steps));
            assert_eq!((steps, guidance), (None, Some(vec![1.0])));
        }
        for name in ["Wan2.2-T2V-A14B", "steps", "4", "stepping-stone", "version-2.2"] {
            assert_eq!(distilled(name), None, "{name}");
        }
    }

    #[test]
    fn models_of_one_expert_are_identified_by_shape_and_name() {
        let identified = |name: &str, denoiser, scheduler| {
            let routing = Routing::single();
            identify(&Evidence { name, denoiser: &denoiser, routing: &routing, scheduler }).unwrap()
        };
        let (small, large) = (|| wan_denoiser(12, 30, 8960), || wan_denoiser(40, 40, 13824));
        let found = identified("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", small(), PUBLISHED);
        assert_eq!((found.name, found.certainty), ("Wan2.1-T2V-1.3B", Certainty::Published));
        let Recommended { shift, guidance, steps, size, schedule, .. } = found.recommended;
        assert_eq!((shift, guidance, steps), (Some(8.0), Some(vec![6.0]), Some(50)));
        assert_eq!(size, Some(PixelSize { width: 832, height: 480 }));
        assert_eq!(schedule, Some(ScheduleKind::Official));
        let official = Some((SolverKind::UniPc, None));
        let found = identified("Wan2.1-T2V-14B", large(), official);
        assert_eq!((found.name, found.certainty), ("Wan2.1-T2V-14B", Certainty::Published));
        assert_eq!(found.recommended.guidance, Some(vec![5.0]));
        let found = identified("my-model", small(), Some((SolverKind::UniPc, Some(7.0))));
        assert!(matches!(found.certainty, Certainty::Guess { .. }) && found.recommended.shift.is_none());
        for (name, scheduler) in [
            ("wan-1.3b-lightx2v-4step", PUBLISHED),
            ("Wan2.1-T2V-1.3B", Some((SolverKind::Euler, Some(5.0)))),
        ] {
            let found = identified(name, small(), scheduler);
            assert!(matches!(found.certainty, Certainty::Other { .. }), "{name}");
            assert_eq!(found.recommended, Recommended::default());
        }
    }

    #[test]
    fn other_shapes_are_not_in_the_catalogue() {
        let routing = Routing::pair(Timestep(875.0)).unwrap();
        for denoiser in [wan_denoiser(40, 39, 13824), wan_denoiser(40, 40, 13823), wan_denoiser(12, 30, 8960)]
        {
            let evidence =
                Evidence { name: A14B, denoiser: &denoiser, routing: &routing, scheduler: PUBLISHED };
            assert_eq!(identify(&evidence), None);
        }
        let denoiser = wan_denoiser(40, 40, 13823);
        let single =
            Evidence { name: A14B, denoiser: &denoiser, routing: &Routing::single(), scheduler: None };
        assert_eq!(identify(&single), None);
    }
}
