//! Chooses the sessions that are closed when memory is short. Pure.

use bundle::units::ByteCount;

/// A session that may be closed: it is open and not lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its place in the order of use.
    pub(crate) stage: u32,
    /// True if it is used for the steps: an expert, or the decoder of previews.
    pub(crate) makes_steps: bool,
    /// When it was last used; larger is later.
    pub(crate) last_used: u64,
    /// The memory that closing it frees.
    pub(crate) frees: ByteCount,
}

/// Chooses among `candidates` so that at least `shortage` bytes are freed, before a session of `stage` is used. Returns
/// positions in `candidates`, or `None` if all of them together do not free enough.
///
/// Text encoder and decoder leave before what makes the steps: a clip needs each of them once, and opening an expert
/// takes the longest. Clips use their sessions in the order of the stages, and the next clip begins at the first one.
/// The session whose next use is furthest away leaves first; of sessions of one stage the one that was not used for
/// longest. No session leaves that need not.
pub(crate) fn choose(stage: u32, candidates: &[Candidate], shortage: ByteCount) -> Option<Vec<usize>> {
    let mut order: Vec<usize> =
        (0..candidates.len()).filter(|&index| candidates[index].frees.0 > 0).collect();
    order.sort_by_key(|&index| {
        let candidate = candidates[index];
        let distance = distance(stage, candidate.stage);
        (candidate.makes_steps, std::cmp::Reverse(distance), candidate.last_used)
    });
    let freed = |chosen: &[usize]| -> ByteCount { chosen.iter().map(|&index| candidates[index].frees).sum() };
    let count = (0..=order.len()).find(|&count| freed(&order[..count]) >= shortage)?;
    let mut chosen = order[..count].to_vec();
    // The last ones are used soonest. A small one that was chosen before a large one may have become unnecessary.
    for position in (0..chosen.len()).rev() {
        let mut fewer = chosen.clone();
        fewer.remove(position);
        if freed(&fewer) >= shortage {
            chosen = fewer;
        }
    }
    Some(chosen)
}

/// The number of stages from `now` until `stage` is used again. Stages before `now` come after the last one, in the next
/// clip.
fn distance(now: u32, stage: u32) -> u64 {
    match stage.checked_sub(now) {
        Some(ahead) => u64::from(ahead),
        None => (1 << 32) + u64::from(stage),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: u32 = 0;
    const HIGH: u32 = 1;
    const LOW: u32 = 2;
    const DECODER: u32 = 3;

    fn candidate(stage: u32, frees: u64) -> Candidate {
        let makes_steps = (HIGH..=LOW).contains(&stage);
        Candidate { stage, makes_steps, last_used: u64::from(stage), frees: ByteCount(frees) }
    }

    fn chosen(stage: u32, candidates: &[Candidate], shortage: u64) -> Option<Vec<u32>> {
        let chosen = choose(stage, candidates, ByteCount(shortage))?;
        Some(chosen.into_iter().map(|index| candidates[index].stage).collect())
    }

    #[test]
    fn the_text_encoder_leaves_first_then_the_session_that_is_used_last() {
        let open = [candidate(TEXT, 22), candidate(HIGH, 57), candidate(LOW, 57), candidate(DECODER, 7)];
        assert_eq!(chosen(LOW, &open, 1), Some(vec![TEXT]));
        assert_eq!(chosen(LOW, &open[1..3], 1), Some(vec![HIGH]));
        assert_eq!(chosen(DECODER, &open[..3], 20), Some(vec![TEXT]));
        assert_eq!(chosen(DECODER, &open[1..3], 20), Some(vec![LOW]));
        // The text encoder frees too little for the decoder, and is kept then.
        assert_eq!(chosen(DECODER, &open[..3], 30), Some(vec![LOW]));
        assert_eq!(chosen(TEXT, &open[1..], 1), Some(vec![DECODER]));
        // The decoder frees too little for the high-noise expert, and is kept then.
        assert_eq!(chosen(TEXT, &open[1..], 20), Some(vec![LOW]));
        assert_eq!(chosen(TEXT, &open[1..], 60), Some(vec![DECODER, LOW]));
        assert_eq!(chosen(TEXT, &open, 200), None);
        assert_eq!(chosen(TEXT, &open, 0), Some(vec![]));
    }

    #[test]
    fn of_one_stage_the_older_leaves_first_and_empty_ones_stay() {
        let old = Candidate { last_used: 3, ..candidate(DECODER, 5) };
        let new = Candidate { last_used: 9, ..candidate(DECODER, 5) };
        let nothing = Candidate { last_used: 1, ..candidate(DECODER, 0) };
        assert_eq!(choose(HIGH, &[new, nothing, old], ByteCount(5)), Some(vec![2]));
    }

    proptest! {
        #[test]
        fn enough_leaves_and_nothing_more(
            open in prop::collection::vec((0..5_u32, any::<bool>(), 0..9_u64, 0..50_u64), 0..8),
            stage in 0..5_u32,
            shortage in 0..200_u64,
        ) {
            let open: Vec<Candidate> = open
                .into_iter()
                .map(|(stage, makes_steps, last_used, frees)| Candidate {
                    stage,
                    makes_steps,
                    last_used,
                    frees: ByteCount(frees),
                })
                .collect();
            let all: u64 = open.iter().map(|candidate| candidate.frees.0).sum();
            let Some(chosen) = choose(stage, &open, ByteCount(shortage)) else {
                prop_assert!(all < shortage);
                return Ok(());
            };
            let freed: u64 = chosen.iter().map(|&index| open[index].frees.0).sum();
            prop_assert!(freed >= shortage);
            for &index in &chosen {
                prop_assert!(freed - open[index].frees.0 < shortage, "{index} need not leave");
            }
        }
    }
}
