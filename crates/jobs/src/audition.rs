//! The takes of an audition, as they are submitted together with [`Store::submit`](crate::store::Store::submit).

use crate::request::{Request, Take};
use bundle::Field;
use bundle::units::Seed;
use runtime::plan::{GenerateRequest, GenerationPlan};
use runtime::scheduler::JobId;

/// The most takes of an audition.
pub const MAX_TAKES: usize = 100;
/// The steps of a take unless others are asked for, if the first expert makes as many.
pub const TAKE_STEPS: usize = 8;

/// The number of steps that a take makes: those that were asked for, or [`TAKE_STEPS`], but not more than the first
/// expert makes.
///
/// # Errors
/// The clip does not have as many.
pub fn steps_of(given: Option<usize>, plan: &GenerationPlan) -> Result<usize, bundle::Error> {
    let all = plan.schedule.steps();
    let of_first_expert = plan.expert_steps.iter().map(|(_, steps)| *steps).find(|steps| *steps > 0);
    match given {
        None => Ok(TAKE_STEPS.min(of_first_expert.unwrap_or(all))),
        Some(steps) if (1..=all).contains(&steps) => Ok(steps),
        Some(steps) => {
            let rule = format!("a take makes 1 to {all} of the {all} steps");
            let fix = format!("use {}, or leave it out", TAKE_STEPS.min(all));
            Err(bundle::Error::value(Field::StepsOf, steps, rule, fix))
        }
    }
}

/// The seeds of `count` takes: `first` and those after it.
pub fn consecutive(first: Seed, count: usize) -> Vec<Seed> {
    (0..count).map(|index| Seed(first.0.wrapping_add(index as u64))).collect()
}

/// The takes of an audition: the request with each of the seeds. They make `steps` steps, and have no outputs until they
/// are kept. The number of the audition is that of the first job, which is known when it is stored.
pub fn takes(request: &Request, seeds: &[Seed], steps: usize) -> Vec<Request> {
    let take = |(number, seed): (usize, &Seed)| Request {
        clip: GenerateRequest { seed: *seed, ..request.clip.clone() },
        stop_after: Some(steps),
        take: Some(Take { audition: JobId(0), number, of: seeds.len() }),
        outputs: Vec::new(),
        ..request.clone()
    };
    (1..).zip(seeds).map(take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::tests::request;

    #[test]
    fn takes_differ_in_their_seeds_and_numbers_alone() {
        let seeds = consecutive(Seed(u64::MAX), 3);
        assert_eq!(seeds, [Seed(u64::MAX), Seed(0), Seed(1)]);
        let takes = takes(&request(), &seeds, 3);
        let found: Vec<_> = takes.iter().map(|take| (take.clip.seed, take.take.unwrap())).collect();
        for (number, (seed, take)) in (1..).zip(found) {
            assert_eq!((seed, take.number, take.of), (seeds[number - 1], number, 3));
        }
        for mut take in takes {
            take.check().unwrap();
            assert!(take.is_partial() && take.outputs.is_empty());
            (take.clip.seed, take.take, take.stop_after) = (request().clip.seed, None, None);
            take.outputs = request().outputs;
            assert_eq!(take, request());
        }
    }
}
