//! The defaults of a bundle: from the checkpoint's recommendations, the catalogue, or the scheduler config.

use crate::Error;
use crate::checkpoint::{Checkpoint, Layout};
use bundle::catalog::{self, Certainty, Evidence, KnownModel};
use bundle::preset::Preset;
use bundle::settings::{Defaults, Origin, Recommended};

/// The fix for a model that was not recognised, or perhaps wrongly.
const FIX: &str =
    "if that is wrong, write its settings into rushes.json in the folder of the checkpoint and export again";

/// Returns the name and the resolved defaults of a model.
///
/// # Errors
/// Returns an error if a recommended value is out of range.
pub fn resolve(checkpoint: &Checkpoint) -> Result<(String, Defaults), Error> {
    let experts = checkpoint.routing.routes().len();
    let scheduler = checkpoint.scheduler.as_ref().ok();
    let recognised = catalog::identify(&Evidence {
        name: &checkpoint.name,
        denoiser: &checkpoint.denoiser,
        routing: &checkpoint.routing,
        scheduler: scheduler.map(|scheduler| (scheduler.solver, scheduler.shift)),
    });
    let mut notes = Vec::from_iter(official_note(checkpoint));
    if let Err(error) = &checkpoint.scheduler {
        notes.push(format!(
            "sampler and shift are those of rushes.json; the scheduler config is not supported: {error}"
        ));
    }
    let known = match recognised {
        None => None,
        Some(KnownModel { name, certainty: Certainty::Published, recommended }) => {
            Some((Origin::Catalogue, Some(name), recommended))
        }
        Some(KnownModel { name, certainty: Certainty::Guess { why }, recommended }) => {
            notes.push(match recommended.timesteps {
                Some(_) => format!("its defaults are those of {name}, which is a guess: {why}; {FIX}"),
                None => format!(
                    "warning: its defaults are those of {name}, which is a guess: {why}; sampler and shift are those of its \
                     scheduler config; a merged model for few steps has the same shape and needs a `preset` such as {}; \
                     {FIX}",
                    Preset::Lightning4
                ),
            });
            Some((Origin::CatalogueGuess, None, recommended))
        }
        Some(KnownModel { name, certainty: Certainty::Other { why }, .. }) => {
            notes.push(format!("it has the shape of {name} but is not treated as that model: {why}; {FIX}"));
            None
        }
    };
    let scheduler_settings = scheduler.map_or_else(Recommended::default, |scheduler| scheduler.recommended());
    let mut sources = vec![(Origin::Checkpoint, &checkpoint.recommended)];
    sources.extend(known.as_ref().map(|(origin, _, recommended)| (*origin, recommended)));
    let scheduler_origin = match checkpoint.layout {
        Layout::Diffusers => Origin::SchedulerConfig,
        Layout::Official => Origin::OfficialCode,
    };
    sources.push((scheduler_origin, &scheduler_settings));
    let mut defaults = Defaults::resolve(&sources, experts)?;
    defaults.notes = notes;
    let name = known.and_then(|(_, name, _)| name).map_or_else(|| checkpoint.name.clone(), str::to_owned);
    Ok((name, defaults))
}

/// What a checkpoint in the official layout does not state.
fn official_note(checkpoint: &Checkpoint) -> Option<String> {
    let boundary = match (checkpoint.layout, checkpoint.routing.routes()) {
        (Layout::Diffusers, _) => return None,
        (Layout::Official, [high, _]) => format!("boundary {}, ", high.from_timestep / 1000.0),
        (Layout::Official, _) => String::new(),
    };
    Some(format!(
        "the official layout states no {}sampler and statistics of latents: {boundary}unipc and those of the Wan2.1 VAE \
         are used; the sizes of text encoder and VAE follow from their weights",
        if boundary.is_empty() { "" } else { "boundary, " }
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::samples;
    use bundle::catalog::wan_denoiser;
    use bundle::routing::Routing;
    use bundle::units::{Shift, Timestep};

    #[test]
    fn recommendations_of_the_checkpoint_override_its_scheduler_config() {
        let (_folder, mut checkpoint) = samples::checkpoint();
        checkpoint.recommended = Recommended { steps: Some(7), ..Recommended::default() };
        let (_, defaults) = resolve(&checkpoint).unwrap();
        assert_eq!((defaults.steps.value, defaults.steps.from), (7, Origin::Checkpoint));
        assert_eq!((defaults.shift.value, defaults.shift.from), (Shift(3.0), Origin::SchedulerConfig));
        assert_eq!(defaults.size.from, Origin::Fallback);
        assert!(defaults.notes.is_empty());
    }

    fn like_a14b(name: &str) -> (tempfile::TempDir, Checkpoint) {
        let (folder, mut checkpoint) = samples::checkpoint();
        checkpoint.recommended = Recommended::default();
        checkpoint.denoiser = wan_denoiser(40, 40, 13824);
        checkpoint.routing = Routing::pair(Timestep(875.0)).unwrap();
        checkpoint.name = name.into();
        (folder, checkpoint)
    }

    #[test]
    fn the_published_a14b_gets_shift_12_despite_its_scheduler_config() {
        let (_folder, checkpoint) = like_a14b("Wan-AI/Wan2.2-T2V-A14B-Diffusers");
        let (name, defaults) = resolve(&checkpoint).unwrap();
        assert_eq!(name, "Wan2.2-T2V-A14B");
        assert_eq!((defaults.shift.value, defaults.shift.from), (Shift(12.0), Origin::Catalogue));
        assert_eq!(defaults.guidance.value.iter().map(|scale| scale.0).collect::<Vec<_>>(), [4.0, 3.0]);
        assert!(defaults.notes.is_empty());
    }

    #[test]
    fn a_guess_keeps_the_folder_name_and_is_reported() {
        let (_folder, checkpoint) = like_a14b("my-model");
        let (name, defaults) = resolve(&checkpoint).unwrap();
        assert_eq!(name, "my-model");
        assert_eq!((defaults.steps.value, defaults.steps.from), (40, Origin::CatalogueGuess));
        assert_eq!((defaults.shift.value, defaults.shift.from), (Shift(3.0), Origin::SchedulerConfig));
        let note = &defaults.notes[0];
        assert!(
            note.starts_with("warning: ") && note.contains("a guess") && note.contains("rushes.json"),
            "{note}"
        );
        assert!(note.contains("`preset` such as lightning-4"), "{note}");
    }

    #[test]
    fn a_different_model_gets_nothing_from_the_catalogue() {
        let (_folder, mut checkpoint) = like_a14b("Wan2.2-T2V-A14B-Diffusers");
        checkpoint.routing = Routing::pair(Timestep(900.0)).unwrap();
        let (name, defaults) = resolve(&checkpoint).unwrap();
        assert_eq!(name, "Wan2.2-T2V-A14B-Diffusers");
        assert_eq!((defaults.steps.from, defaults.shift.from), (Origin::Fallback, Origin::SchedulerConfig));
        assert!(defaults.notes[0].contains("not treated as that model"), "{:?}", defaults.notes);
    }
}
