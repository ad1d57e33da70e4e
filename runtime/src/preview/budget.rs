//! How often previews may be made, so that denoising hardly notices.

use std::time::Duration;

/// What the tiny and the real decoder may take, as a share of the time that denoising took so far.
pub const DECODERS_SHARE: f64 = 0.1;

/// How much of a latent a preview shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreviewLength {
    /// The first latent frame.
    FirstFrame,
    /// Every latent frame.
    AllFrames,
}

/// Admits work of known cost as long as all of it stays within a share of the time gone by.
///
/// The first preview has to be paid for like any other: what one costs is known before the first step. While one is under
/// way its cost is not known yet, and nothing else is admitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    limit: Option<Limit>,
    spent: Duration,
    under_way: bool,
}

/// What may be spent, and what previews cost.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Limit {
    share: f64,
    still: Duration,
    moving: Option<Duration>,
}

impl Budget {
    /// Everything is admitted.
    pub fn unlimited() -> Self {
        Self { limit: None, spent: Duration::ZERO, under_way: false }
    }

    /// At most `share` of the time gone by. A still preview is expected to take `still`.
    pub fn new(share: f64, still: Duration) -> Self {
        Self { limit: Some(Limit { share, still, moving: None }), ..Self::unlimited() }
    }

    /// What may be done after `gone` of denoising, at most `wanted`.
    ///
    /// A moving preview of unknown cost is tried where a whole clip of `frames` latent frames at the cost of the still one
    /// would fit.
    pub fn admit(&self, wanted: PreviewLength, frames: usize, gone: Duration) -> Option<PreviewLength> {
        let Some(Limit { share, still, moving }) = self.limit else { return Some(wanted) };
        if self.under_way {
            return None;
        }
        let allowed = gone.mul_f64(share);
        let fits = |cost: Duration| self.spent.saturating_add(cost) <= allowed;
        let frames = u32::try_from(frames).unwrap_or(u32::MAX);
        let moving = moving.unwrap_or(still.saturating_mul(frames));
        if wanted == PreviewLength::AllFrames && fits(moving) {
            return Some(PreviewLength::AllFrames);
        }
        fits(still).then_some(PreviewLength::FirstFrame)
    }

    /// Whether what was admitted is not done yet.
    pub fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// Counts time that something else took.
    pub fn charge(&mut self, cost: Duration) {
        self.spent += cost;
    }

    /// What was admitted begins.
    pub fn begin(&mut self) {
        self.under_way = true;
    }

    /// Counts a preview that took `cost` and is done.
    pub fn spend(&mut self, length: PreviewLength, cost: Duration) {
        self.under_way = false;
        self.spent += cost;
        if let Some(limit) = &mut self.limit {
            match length {
                PreviewLength::FirstFrame => limit.still = cost,
                PreviewLength::AllFrames => limit.moving = Some(cost),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_first_waits_like_the_others_until_it_is_paid_for() {
        let mut budget = Budget::new(0.1, MS(10));
        assert_eq!(budget.admit(PreviewLength::AllFrames, 5, MS(99)), None);
        assert_eq!(budget.admit(PreviewLength::AllFrames, 5, MS(100)), Some(PreviewLength::FirstFrame));
        budget.spend(PreviewLength::FirstFrame, MS(12));
        assert_eq!(budget.admit(PreviewLength::AllFrames, 5, MS(239)), None);
        assert_eq!(budget.admit(PreviewLength::AllFrames, 5, MS(240)), Some(PreviewLength::FirstFrame));
        assert_eq!(budget.admit(PreviewLength::AllFrames, 5, MS(720)), Some(PreviewLength::AllFrames));
        assert_eq!(budget.admit(PreviewLength::FirstFrame, 5, MS(720)), Some(PreviewLength::FirstFrame));
        budget.spend(PreviewLength::AllFrames, MS(20));
        assert_eq!(budget.admit(PreviewLength::AllFrames, 5, MS(520)), Some(PreviewLength::AllFrames));
    }

    #[test]
    fn nothing_is_admitted_while_one_is_under_way() {
        let mut budget = Budget::new(0.1, MS(10));
        budget.begin();
        assert_eq!(budget.admit(PreviewLength::FirstFrame, 5, MS(10_000)), None);
        budget.spend(PreviewLength::FirstFrame, MS(10));
        assert_eq!(budget.admit(PreviewLength::FirstFrame, 5, MS(10_000)), Some(PreviewLength::FirstFrame));
        let mut free = Budget::unlimited();
        free.begin();
        assert_eq!(free.admit(PreviewLength::AllFrames, 5, MS(0)), Some(PreviewLength::AllFrames));
    }

    proptest! {
        /// Costs vary by half around their mean, which is what the last one tells of the next; the share is overdrawn by
        /// no more than that.
        #[test]
        fn what_is_spent_stays_within_the_share(
            step in 1_u64..1000,
            expected in 50_u64..150,
            costs in prop::collection::vec(50_u64..150, 100),
            frames in 1_usize..22,
        ) {
            let mut budget = Budget::new(DECODERS_SHARE, MS(expected));
            let mut spent = Duration::ZERO;
            for (index, cost) in costs.iter().enumerate() {
                let gone = MS(step * (index as u64 + 1));
                if let Some(length) = budget.admit(PreviewLength::AllFrames, frames, gone) {
                    let parts = if length == PreviewLength::AllFrames { frames as u64 } else { 1 };
                    budget.spend(length, MS(cost * parts));
                    spent += MS(cost * parts);
                }
                let allowed = gone.mul_f64(DECODERS_SHARE);
                let surprise = MS(100 * frames as u64);
                prop_assert!(spent <= allowed + surprise, "{spent:?} after {gone:?}");
            }
        }
    }
}
