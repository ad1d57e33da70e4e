//! The defaults of a bundle: what the checkpoint recommends, else what is known of the model, else its scheduler.

use crate::Error;
use crate::checkpoint::Checkpoint;
use bundle::catalog;
use bundle::settings::{Defaults, Origin};

/// Name and resolved defaults of a model.
///
/// # Errors
/// A recommended value that is out of range.
pub fn resolve(checkpoint: &Checkpoint) -> Result<(String, Defaults), Error> {
    let experts = checkpoint.routing.routes().len();
    let known = catalog::identify(&checkpoint.denoiser, experts);
    let scheduler = checkpoint.scheduler.recommended();
    let mut sources = vec![(Origin::Checkpoint, &checkpoint.recommended)];
    sources.extend(known.as_ref().map(|model| (Origin::Catalogue, &model.recommended)));
    sources.push((Origin::SchedulerConfig, &scheduler));
    let defaults = Defaults::resolve(&sources, experts)?;
    let name = known.map_or_else(|| checkpoint.name.clone(), |model| model.name.into());
    Ok((name, defaults))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::samples;
    use bundle::settings::Recommended;
    use bundle::units::Shift;

    #[test]
    fn what_the_checkpoint_recommends_beats_its_scheduler_config() {
        let (_folder, mut checkpoint) = samples::checkpoint();
        checkpoint.recommended = Recommended { steps: Some(7), ..Recommended::default() };
        let (_, defaults) = resolve(&checkpoint).unwrap();
        assert_eq!((defaults.steps.value, defaults.steps.from), (7, Origin::Checkpoint));
        assert_eq!((defaults.shift.value, defaults.shift.from), (Shift(3.0), Origin::SchedulerConfig));
        assert_eq!(defaults.size.from, Origin::Fallback);
    }

    #[test]
    fn the_published_a14b_gets_shift_12_whatever_its_scheduler_config_says() {
        let (_folder, mut checkpoint) = samples::checkpoint();
        checkpoint.recommended = Recommended::default();
        let denoiser = &mut checkpoint.denoiser;
        (denoiser.heads, denoiser.head_width, denoiser.layers, denoiser.in_channels) = (40, 128, 40, 16);
        let (name, defaults) = resolve(&checkpoint).unwrap();
        assert_eq!(name, "Wan2.2-T2V-A14B");
        assert_eq!((defaults.shift.value, defaults.shift.from), (Shift(12.0), Origin::Catalogue));
        assert_eq!(defaults.guidance.value.iter().map(|scale| scale.0).collect::<Vec<_>>(), [4.0, 3.0]);
    }
}
