//! The time budget of previews, which limits how much they slow denoising down.

use std::time::Duration;

/// Share of the denoising time so far that the tiny and the full decoder may use.
pub const DECODERS_SHARE: f64 = 0.1;

/// The part of a latent that a preview shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreviewLength {
    /// The first latent frame.
    FirstFrame,
    /// Every latent frame.
    AllFrames,
}

/// Admits previews while their total cost is within a share of the elapsed time.
///
/// This includes the first preview, whose cost is measured before the first step. While a preview is in progress its
/// cost is unknown and no other is admitted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    limit: Option<Limit>,
    spent: Duration,
    in_progress: bool,
}

/// The limit, and the cost of previews.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Limit {
    share: f64,
    first_frame: Duration,
    all_frames: Option<Duration>,
}

impl Budget {
    /// A budget that admits everything.
    pub fn unlimited() -> Self {
        Self { limit: None, spent: Duration::ZERO, in_progress: false }
    }

    /// A budget of `share` of the elapsed time. A preview of the first latent frame is expected to take `first_frame`.
    pub fn new(share: f64, first_frame: Duration) -> Self {
        Self { limit: Some(Limit { share, first_frame, all_frames: None }), ..Self::unlimited() }
    }

    /// Returns the preview length that fits after `elapsed` of denoising, at most `wanted`.
    ///
    /// The cost of [`PreviewLength::AllFrames`], while unknown, is taken as `frames` times that of the first frame.
    pub fn admit(&self, wanted: PreviewLength, frames: usize, elapsed: Duration) -> Option<PreviewLength> {
        let Some(Limit { share, first_frame, all_frames }) = self.limit else { return Some(wanted) };
        if self.in_progress {
            return None;
        }
        let allowed = elapsed.mul_f64(share);
        let fits = |cost: Duration| self.spent.saturating_add(cost) <= allowed;
        let frames = u32::try_from(frames).unwrap_or(u32::MAX);
        let all_frames = all_frames.unwrap_or(first_frame.saturating_mul(frames));
        if wanted == PreviewLength::AllFrames && fits(all_frames) {
            return Some(PreviewLength::AllFrames);
        }
        fits(first_frame).then_some(PreviewLength::FirstFrame)
    }

    /// Returns true if an admitted preview is not done yet.
    pub fn is_in_progress(&self) -> bool {
        self.in_progress
    }

    /// Counts time that another preview method took.
    pub fn charge(&mut self, cost: Duration) {
        self.spent += cost;
    }

    /// Marks the start of an admitted preview.
    pub fn begin(&mut self) {
        self.in_progress = true;
    }

    /// Counts a finished preview that took `cost`.
    pub fn spend(&mut self, length: PreviewLength, cost: Duration) {
        self.in_progress = false;
        self.spent += cost;
        if let Some(limit) = &mut self.limit {
            match length {
                PreviewLength::FirstFrame => limit.first_frame = cost,
                PreviewLength::AllFrames => limit.all_frames = Some(cost),
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
    fn the_first_preview_waits_until_it_fits_like_the_others() {
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
    fn nothing_is_admitted_while_a_preview_is_in_progress() {
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
        /// Costs vary by half around their mean, so the last cost predicts the next one within that; the share is
        /// exceeded by no more.
        #[test]
        fn the_time_spent_is_within_the_share(
            step in 1_u64..1000,
            expected in 50_u64..150,
            costs in prop::collection::vec(50_u64..150, 100),
            frames in 1_usize..22,
        ) {
            let mut budget = Budget::new(DECODERS_SHARE, MS(expected));
            let mut spent = Duration::ZERO;
            for (index, cost) in costs.iter().enumerate() {
                let elapsed = MS(step * (index as u64 + 1));
                if let Some(length) = budget.admit(PreviewLength::AllFrames, frames, elapsed) {
                    let parts = if length == PreviewLength::AllFrames { frames as u64 } else { 1 };
                    budget.spend(length, MS(cost * parts));
                    spent += MS(cost * parts);
                }
                let allowed = elapsed.mul_f64(DECODERS_SHARE);
                let surprise = MS(100 * frames as u64);
                prop_assert!(spent <= allowed + surprise, "{spent:?} after {elapsed:?}");
            }
        }
    }
}
