//! Random traces: jobs, priorities, cancellations, failures, memory that is not as predicted, one and two devices.

use super::setup::{ENDLESS, Machine, SHOTS, clip, fake, graphs};
use bundle::ErrorClass;
use engines::fake::{Calls, Effect};
use proptest::prelude::*;
use runtime::scheduler::{JobId, Order, Outcome, Priority};
use std::collections::BTreeMap;
use std::time::Duration;

/// What somebody does between two units.
#[derive(Debug, Clone)]
enum Action {
    Arrive { shot: usize, priority: Priority },
    Cancel { job: u64 },
    Hold,
    GoOn,
    Wait,
}

/// Where sessions are, and how much memory there is.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// On one device that has room for one expert, with the text encoder elsewhere.
    OneExpert,
    /// On one device with room for everything.
    OneDevice,
    /// An expert per device.
    TwoDevices,
    /// An expert on two devices, one of which has the other expert too.
    Pair,
}

const PAIR: &str = "high=cuda:0+cuda:1,low=cuda:1,decoder=cuda:0";

fn action() -> impl Strategy<Value = Action> {
    let priority = prop_oneof![Just(Priority::Preview), Just(Priority::Normal), Just(Priority::Batch)];
    prop_oneof![
        4 => (0..SHOTS.len(), priority).prop_map(|(shot, priority)| Action::Arrive { shot, priority }),
        2 => (1..6_u64).prop_map(|job| Action::Cancel { job }),
        1 => Just(Action::Hold),
        1 => Just(Action::GoOn),
        6 => Just(Action::Wait),
    ]
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        2 => Just(Place::OneExpert),
        1 => Just(Place::OneDevice),
        1 => Just(Place::TwoDevices),
        1 => Just(Place::Pair),
    ]
}

fn effect() -> impl Strategy<Value = Effect> {
    prop_oneof![
        Just(Effect::Fails),
        Just(Effect::OutOfMemory),
        Just(Effect::MissingOutput),
        Just(Effect::WrongSignature),
    ]
}

fn machine(place: Place, deviates: bool, seed: u64) -> Machine {
    let share = if deviates { 0.2 } else { 0.0 };
    match place {
        Place::OneExpert => Machine::small(share, seed, Order::Waves),
        Place::OneDevice => Machine::new(fake(share, seed), [ENDLESS; 2], "", Order::Waves),
        Place::TwoDevices => {
            let placement = "text_encoder=cpu,high=cuda:0,low=cuda:1,decoder=cuda:0";
            Machine::new(fake(share, seed), [ENDLESS; 2], placement, Order::Waves)
        }
        Place::Pair => Machine::new(fake(share, seed), [ENDLESS; 2], PAIR, Order::Waves),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_job_ends_once_and_what_is_done_has_its_bits(
        actions in prop::collection::vec(action(), 4..24),
        place in place(),
        deviates in any::<bool>(),
        seed in 0..1000_u64,
        failures in prop::collection::vec((0..60_u64, effect()), 0..3),
    ) {
        let machine = machine(place, deviates, seed);
        let alone = if matches!(place, Place::Pair) { PAIR } else { "" };
        let fails = !failures.is_empty();
        let shortages = failures.iter().filter(|(_, effect)| matches!(effect, Effect::OutOfMemory)).count() as u64;
        for (number, effect) in failures {
            machine.fake.script(Calls::any().nth(number), effect);
        }
        let mut driver = machine.driver();
        let mut arrived = BTreeMap::new();
        let mut cancelled = Vec::new();
        let mut ended = BTreeMap::new();
        for action in actions {
            match action {
                Action::Arrive { shot, priority } if arrived.len() < 5 => {
                    let id = arrived.len() as u64 + 1;
                    driver.arrive(machine.job(id, SHOTS[shot], priority)).unwrap();
                    arrived.insert(id, SHOTS[shot]);
                }
                Action::Arrive { .. } => {}
                Action::Cancel { job } => {
                    driver.cancel(JobId(job));
                    cancelled.push(job);
                }
                Action::Hold => driver.hold(true),
                Action::GoOn => driver.hold(false),
                Action::Wait => {
                    for job in driver.wait(Duration::from_millis(2)).unwrap() {
                        prop_assert!(ended.insert(job.id.0, job).is_none());
                    }
                }
            }
        }
        driver.hold(false);
        for (id, job) in machine.run(&mut driver) {
            prop_assert!(ended.insert(id, job).is_none());
        }
        prop_assert_eq!(ended.len(), arrived.len());
        for (id, job) in &ended {
            match job.outcome {
                Outcome::Done => prop_assert_eq!(clip(job), arrived[id].alone_at(alone)),
                Outcome::Cancelled => prop_assert!(cancelled.contains(id)),
                Outcome::Failed => {
                    let report = job.report.as_ref().unwrap();
                    let may_fail = fails || (deviates && report.class == ErrorClass::DoesNotFit);
                    prop_assert!(may_fail && report.class != ErrorClass::Bug, "{}", report);
                }
                Outcome::DoesNotFit { .. } => prop_assert!(deviates),
            }
        }
        // A decoder has two graphs. What is opened without an order of the scheduler is what had made room for a graph whose
        // memory was larger than predicted, or was short once.
        let loads = driver.counts().loads;
        let opened = machine.model.sessions().opened();
        prop_assert!(deviates || opened <= 2 * loads + shortages * graphs(), "{} of {}", opened, loads);
        prop_assert!(machine.fake.memory(engines::Device::CPU).unwrap().held.0 == 0);
    }
}
