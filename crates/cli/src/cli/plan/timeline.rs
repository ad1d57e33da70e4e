//! The phases of a clip, one below the other.

use crate::cli::clip_time::named;
use bundle::manifest::Component;
use engines::placement::name_of;
use runtime::estimate::{ClipEstimate, PhaseEstimate};
use std::fmt::Write;
use std::ops::Range;

/// Characters of the whole clip.
const WIDTH: usize = 40;

/// One line for each phase: component, devices, when it runs, and how long it takes.
pub(super) fn drawn(estimate: &ClipEstimate) -> String {
    let lengths: Option<Vec<f64>> =
        estimate.phases.iter().map(|phase| Some(phase.time()?.middle())).collect();
    let bars = lengths.map(|lengths| bars(&lengths));
    let mut text = String::new();
    for (index, phase) in estimate.phases.iter().enumerate() {
        let bar = bars.as_ref().map_or(String::new(), |bars| {
            let within = |at| if bars[index].contains(&at) { '#' } else { '.' };
            (0..WIDTH).map(within).collect::<String>() + "  "
        });
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "  {:<14} {:<16} {bar}{}",
            name_of(&phase.component),
            named(&phase.devices),
            described(phase)
        );
    }
    text
}

/// The characters of each phase: at least one, in proportion to its length.
fn bars(lengths: &[f64]) -> Vec<Range<usize>> {
    let total: f64 = lengths.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 40"
    )]
    let at = |seconds: f64| (seconds / total * WIDTH as f64).floor().clamp(0.0, WIDTH as f64) as usize;
    let mut before = 0.0;
    let bar = |length: &f64| {
        let from = at(before).min(WIDTH - 1);
        before += length;
        from..at(before).max(from + 1)
    };
    lengths.iter().map(bar).collect()
}

fn described(phase: &PhaseEstimate) -> String {
    let Some(time) = phase.time() else { return "not known".into() };
    let units =
        |name: &str| phase.unit.map_or(String::new(), |unit| format!(": {} {name} of {unit}", phase.units));
    let units = match phase.component {
        Component::Expert(_) => units("steps"),
        Component::Decoder if phase.units > 1 => units("latent frames"),
        _ => String::new(),
    };
    format!("{time}{units}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::routing::ExpertName;
    use runtime::estimate::Span;

    fn phase(component: Component, units: usize, seconds: Option<f64>) -> PhaseEstimate {
        let span = seconds.map(|seconds| Span { least: seconds, most: 2.0 * seconds });
        PhaseEstimate {
            component,
            devices: vec!["cuda:0".parse().unwrap()],
            units,
            opening: Span::default(),
            first: span,
            unit: span,
        }
    }

    fn clip(step: Option<f64>) -> ClipEstimate {
        let expert = |name: &str, steps| phase(Component::Expert(ExpertName(name.into())), steps, step);
        let text = phase(Component::TextEncoder, 1, Some(1.0));
        let decoder = phase(Component::Decoder, 21, Some(1.0));
        ClipEstimate { phases: vec![text, expert("high_noise", 26), expert("low_noise", 14), decoder] }
    }

    #[test]
    fn phases_are_drawn_in_proportion_and_none_is_invisible() {
        insta::assert_snapshot!(drawn(&clip(Some(5.0))), @r"
        text_encoder   cuda:0           #.......................................  about 1 to 2 s
        high_noise     cuda:0           #######################.................  about 2.2 to 4.3 minutes: 26 steps of about 5 to 10 s
        low_noise      cuda:0           .......................#############....  about 70 to 140 s: 14 steps of about 5 to 10 s
        decoder        cuda:0           ....................................####  about 21 to 42 s: 21 latent frames of about 1 to 2 s
        ");
        let bars = bars(&[0.0, 0.0, 0.0]);
        assert!(bars.iter().all(|bar| bar.len() == 1), "{bars:?}");
        assert_eq!(super::bars(&[1e9, 1e-9])[1], 39..40);
    }

    #[test]
    fn a_phase_of_unknown_length_has_no_bar() {
        let drawn = drawn(&clip(None));
        assert!(drawn.contains("high_noise     cuda:0           not known\n"), "{drawn}");
        assert!(!drawn.contains('#'), "{drawn}");
    }
}
