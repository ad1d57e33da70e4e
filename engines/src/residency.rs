//! Plans which components are in memory together. Pure: works on predicted bytes.
//!
//! A clip uses its components sequentially: text encoder, experts from high to low noise, decoder. Either all of them
//! stay open for the next clip, or each is closed before the next is opened.

use crate::{Error, Remedy};
use bundle::Field;
use bundle::units::ByteCount;

/// The components to keep in memory, as requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residency {
    /// All resident if they fit, otherwise one at a time.
    #[default]
    Auto,
    /// Every component stays open.
    All,
    /// One component at a time.
    One,
}

bundle::named!(Residency, Field::Residency, "residency", "auto" => Auto, "all" => All, "one" => One);

/// The predicted memory of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// Name of the component in the bundle.
    pub component: String,
    /// Size of its weights, held while it is open.
    pub weights: ByteCount,
    /// Peak of its activations, held while it runs.
    pub activations: ByteCount,
}

/// The components that are open together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// All components, each from its first use.
    AllResident,
    /// One component: each is closed before the next is opened.
    OneAtATime,
}

impl Mode {
    /// Returns the peak memory of these components.
    pub fn peak(self, components: &[Footprint]) -> ByteCount {
        match self {
            Self::AllResident => {
                let weights: ByteCount = components.iter().map(|component| component.weights).sum();
                let activations = components.iter().map(|component| component.activations).max();
                weights + activations.unwrap_or_default()
            }
            Self::OneAtATime => components
                .iter()
                .map(|component| component.weights + component.activations)
                .max()
                .unwrap_or_default(),
        }
    }
}

/// The result of [`plan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResidencyPlan {
    /// The components that are open together.
    pub mode: Mode,
    /// The predicted peak, at most the budget.
    pub peak: ByteCount,
}

/// Decides which components are open together so that the peak is within `budget`.
///
/// # Errors
/// [`Error::DoesNotFit`], with the largest parts and a remedy.
pub fn plan(wanted: Residency, components: &[Footprint], budget: ByteCount) -> Result<ResidencyPlan, Error> {
    let modes: &[Mode] = match wanted {
        Residency::Auto => &[Mode::AllResident, Mode::OneAtATime],
        Residency::All => &[Mode::AllResident],
        Residency::One => &[Mode::OneAtATime],
    };
    let fits = |mode: Mode| {
        let peak = mode.peak(components);
        (peak <= budget).then_some(ResidencyPlan { mode, peak })
    };
    modes.iter().copied().find_map(fits).ok_or_else(|| {
        // The allowed mode with the smallest peak.
        let mode = if wanted == Residency::All { Mode::AllResident } else { Mode::OneAtATime };
        Error::DoesNotFit {
            needed: mode.peak(components),
            budget,
            largest: largest_parts(mode, components),
            remedy: match fits(Mode::OneAtATime) {
                Some(plan) => Remedy::OneAtATime(plan.peak),
                None if components.iter().all(|component| component.weights < budget) => Remedy::SmallerClip,
                None => Remedy::MoreMemory,
            },
        }
    })
}

/// The three largest parts of the peak, in descending order.
fn largest_parts(mode: Mode, components: &[Footprint]) -> Vec<(String, ByteCount)> {
    let peak = |component: &&Footprint| component.weights + component.activations;
    let in_peak: Vec<&Footprint> = match mode {
        Mode::AllResident => components.iter().collect(),
        Mode::OneAtATime => components.iter().max_by_key(peak).into_iter().collect(),
    };
    let mut parts: Vec<(String, ByteCount)> = in_peak
        .iter()
        .flat_map(|component| {
            [
                (format!("the weights of {}", component.component), component.weights),
                (format!("the activations of {}", component.component), component.activations),
            ]
        })
        .filter(|(_, bytes)| bytes.0 > 0)
        .collect();
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    parts.truncate(3);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::{Diagnose, ErrorClass};
    use proptest::prelude::*;

    const GB: u64 = 1_000_000_000;

    fn component(name: &str, weights: u64, activations: u64) -> Footprint {
        Footprint { component: name.into(), weights: ByteCount(weights), activations: ByteCount(activations) }
    }

    fn a14b() -> Vec<Footprint> {
        vec![
            component("text_encoder", 22 * GB, GB),
            component("experts/high", 57 * GB, 10 * GB),
            component("experts/low", 57 * GB, 10 * GB),
            component("decoder", GB, 6 * GB),
        ]
    }

    #[test]
    fn auto_keeps_all_components_if_they_fit_and_otherwise_one() {
        let all = plan(Residency::Auto, &a14b(), ByteCount(147 * GB)).unwrap();
        assert_eq!(all, ResidencyPlan { mode: Mode::AllResident, peak: ByteCount(147 * GB) });
        let one = plan(Residency::Auto, &a14b(), ByteCount(147 * GB - 1)).unwrap();
        assert_eq!(one, ResidencyPlan { mode: Mode::OneAtATime, peak: ByteCount(67 * GB) });
    }

    #[test]
    fn a_plan_that_does_not_fit_names_a_setting_that_would() {
        let error = plan(Residency::All, &a14b(), ByteCount(80 * GB)).unwrap_err();
        assert_eq!(error.report().class, ErrorClass::DoesNotFit);
        insta::assert_snapshot!(error, @"147.0 GB are needed and 80.0 GB may be used: the largest parts are the weights of experts/high 57.0 GB, the weights of experts/low 57.0 GB, the weights of text_encoder 22.0 GB (use `residency` one, which needs 67.0 GB)");
        for wanted in [Residency::Auto, Residency::One] {
            let activations = plan(wanted, &a14b(), ByteCount(60 * GB)).unwrap_err();
            let weights = plan(wanted, &a14b(), ByteCount(24 * GB)).unwrap_err();
            insta::allow_duplicates! {
                insta::assert_snapshot!(activations, @"67.0 GB are needed and 60.0 GB may be used: the largest parts are the weights of experts/low 57.0 GB, the activations of experts/low 10.0 GB (use a smaller `size` or fewer `frames`, or raise `memory_budget`)");
                insta::assert_snapshot!(weights, @"67.0 GB are needed and 24.0 GB may be used: the largest parts are the weights of experts/low 57.0 GB, the activations of experts/low 10.0 GB (raise `memory_budget` if the machine has more, or use a smaller model)");
            }
        }
    }

    #[test]
    fn names_are_parsed_and_unknown_ones_are_refused() {
        for residency in Residency::ALL {
            assert_eq!(residency.to_string().parse::<Residency>().unwrap(), residency);
        }
        insta::assert_snapshot!("both".parse::<Residency>().unwrap_err(), @"residency cannot be `both`: unknown residency; expected one of auto, all, one (use one of these)");
    }

    prop_compose! {
        fn any_component()(weights in 0..100 * GB, activations in 0..20 * GB) -> Footprint {
            component("any", weights, activations)
        }
    }

    /// Peak of opening and running the components in order, by simulation.
    fn simulated(mode: Mode, components: &[Footprint]) -> u64 {
        let (mut held, mut peak) = (0, 0);
        for component in components {
            held += component.weights.0;
            peak = peak.max(held + component.activations.0);
            if mode == Mode::OneAtATime {
                held -= component.weights.0;
            }
        }
        peak
    }

    proptest! {
        #[test]
        fn no_plan_exceeds_the_budget(
            components in prop::collection::vec(any_component(), 0..6),
            budget in 0..500 * GB,
            wanted in prop::sample::select(&Residency::ALL[..]),
        ) {
            let budget = ByteCount(budget);
            match plan(wanted, &components, budget) {
                Ok(plan) => {
                    prop_assert!(plan.peak <= budget);
                    prop_assert!(simulated(plan.mode, &components) <= plan.peak.0);
                    prop_assert!(wanted != Residency::All || plan.mode == Mode::AllResident);
                    prop_assert!(wanted != Residency::One || plan.mode == Mode::OneAtATime);
                }
                Err(Error::DoesNotFit { needed, remedy, .. }) => {
                    prop_assert!(needed > budget);
                    let one = plan_peak(Residency::One, &components, budget);
                    prop_assert_eq!(one.map(Remedy::OneAtATime), match remedy {
                        Remedy::OneAtATime(_) => Some(remedy),
                        _ => None,
                    });
                    prop_assert!(wanted == Residency::All || one.is_none());
                }
                Err(other) => prop_assert!(false, "{}", other),
            }
        }

        #[test]
        fn auto_fits_if_any_mode_fits_and_prefers_all(
            components in prop::collection::vec(any_component(), 0..6),
            budget in 0..500 * GB,
        ) {
            let budget = ByteCount(budget);
            let all = plan_peak(Residency::All, &components, budget);
            let one = plan_peak(Residency::One, &components, budget);
            prop_assert_eq!(plan_peak(Residency::Auto, &components, budget), all.or(one));
        }

        #[test]
        fn one_at_a_time_never_needs_more(components in prop::collection::vec(any_component(), 0..6)) {
            prop_assert!(Mode::OneAtATime.peak(&components) <= Mode::AllResident.peak(&components));
        }
    }

    fn plan_peak(wanted: Residency, components: &[Footprint], budget: ByteCount) -> Option<ByteCount> {
        plan(wanted, components, budget).ok().map(|plan| plan.peak)
    }
}
