//! How often previews may be made, so that denoising hardly notices.

use std::time::Duration;

/// What the tiny and the real decoder may take, as a share of the time that denoising took so far.
pub const DECODERS_SHARE: f64 = 0.1;

/// How much of a latent a preview shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The first latent frame.
    Still,
    /// Every latent frame.
    Moving,
}

/// Admits work of known cost as long as all of it stays within a share of the time gone by.
///
/// What has never been done has no known cost and is admitted: the first preview shows as early as it can, and the next
/// ones wait until it is paid for. While one is under way its cost is not known either, and nothing else is admitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    share: Option<f64>,
    spent: Duration,
    still: Option<Duration>,
    moving: Option<Duration>,
    under_way: bool,
}

impl Budget {
    /// At most `share` of the time gone by; without one, everything is admitted.
    pub fn new(share: Option<f64>) -> Self {
        Self { share, spent: Duration::ZERO, still: None, moving: None, under_way: false }
    }

    /// What may be done after `gone` of denoising, at most `wanted`.
    ///
    /// A moving preview of unknown cost is tried only once a still one is known and a whole clip of `frames` latent
    /// frames at its cost would fit.
    pub fn admit(&self, wanted: Extent, frames: usize, gone: Duration) -> Option<Extent> {
        let Some(share) = self.share else { return Some(wanted) };
        if self.under_way {
            return None;
        }
        let allowed = gone.mul_f64(share);
        let fits = |cost: Duration| self.spent + cost <= allowed;
        let frames = u32::try_from(frames).unwrap_or(u32::MAX);
        let moving = self.moving.or_else(|| self.still.map(|still| still.saturating_mul(frames)));
        match (wanted, moving, self.still) {
            (Extent::Moving, Some(cost), _) if fits(cost) => Some(Extent::Moving),
            (_, _, None) => Some(Extent::Still),
            (_, _, Some(cost)) => fits(cost).then_some(Extent::Still),
        }
    }

    /// What was admitted begins.
    pub fn begin(&mut self) {
        self.under_way = true;
    }

    /// Counts a preview that took `cost` and is done.
    pub fn spend(&mut self, extent: Extent, cost: Duration) {
        self.under_way = false;
        self.spent += cost;
        match extent {
            Extent::Still => self.still = Some(cost),
            Extent::Moving => self.moving = Some(cost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_first_is_admitted_and_the_next_waits_until_it_is_paid_for() {
        let mut budget = Budget::new(Some(0.1));
        assert_eq!(budget.admit(Extent::Moving, 5, MS(20)), Some(Extent::Still));
        budget.spend(Extent::Still, MS(10));
        assert_eq!(budget.admit(Extent::Moving, 5, MS(40)), None);
        assert_eq!(budget.admit(Extent::Moving, 5, MS(200)), Some(Extent::Still));
        assert_eq!(budget.admit(Extent::Moving, 5, MS(600)), Some(Extent::Moving));
        assert_eq!(budget.admit(Extent::Still, 5, MS(600)), Some(Extent::Still));
        budget.spend(Extent::Moving, MS(20));
        assert_eq!(budget.admit(Extent::Moving, 5, MS(500)), Some(Extent::Moving));
    }

    #[test]
    fn nothing_is_admitted_while_one_of_unknown_cost_is_under_way() {
        let mut budget = Budget::new(Some(0.1));
        assert_eq!(budget.admit(Extent::Still, 5, MS(20)), Some(Extent::Still));
        budget.begin();
        assert_eq!(budget.admit(Extent::Still, 5, MS(10_000)), None);
        budget.spend(Extent::Still, MS(10));
        assert_eq!(budget.admit(Extent::Still, 5, MS(10_000)), Some(Extent::Still));
        let mut free = Budget::new(None);
        free.begin();
        assert_eq!(free.admit(Extent::Moving, 5, MS(0)), Some(Extent::Moving));
    }

    #[test]
    fn without_a_share_everything_is_admitted() {
        let mut budget = Budget::new(None);
        budget.spend(Extent::Moving, MS(10_000));
        assert_eq!(budget.admit(Extent::Moving, 5, MS(0)), Some(Extent::Moving));
    }

    proptest! {
        /// Costs vary by half around their mean, which is what the last one tells of the next.
        #[test]
        fn what_is_spent_stays_within_the_share_and_one_preview(
            step in 1_u64..1000,
            costs in prop::collection::vec(50_u64..150, 100),
            frames in 1_usize..22,
        ) {
            let mut budget = Budget::new(Some(DECODERS_SHARE));
            let mut spent = Duration::ZERO;
            for (index, cost) in costs.iter().enumerate() {
                let gone = MS(step * (index as u64 + 1));
                if let Some(extent) = budget.admit(Extent::Moving, frames, gone) {
                    let parts = if extent == Extent::Moving { frames as u64 } else { 1 };
                    budget.spend(extent, MS(cost * parts));
                    spent += MS(cost * parts);
                }
                let one = MS(150 * frames as u64);
                prop_assert!(spent <= gone.mul_f64(DECODERS_SHARE) + one, "{spent:?} after {gone:?}");
            }
        }
    }
}
