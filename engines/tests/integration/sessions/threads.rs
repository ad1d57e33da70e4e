//! Random sequences on several threads at once.

use super::world::{Fault, GRAPHS, Settings, World, any_settings};
use engines::fake::check_log;
use engines::residency::Residency;
use engines::{Cancel, Error};
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// A sequence takes milliseconds. One that takes this long is a deadlock.
const DEADLOCK: Duration = Duration::from_secs(60);

/// One unit of work: a graph, how often it runs, whether its outputs are kept until the next unit, and whether idle
/// sessions are closed afterwards.
#[derive(Debug, Clone, Copy)]
struct Unit {
    graph: usize,
    more: u64,
    runs: usize,
    keeps: bool,
    closes: bool,
}

prop_compose! {
    fn any_unit()(
        graph in 0..GRAPHS,
        more in prop_oneof![4 => Just(0), 1 => 0..40_u64],
        runs in 0..3_usize,
        keeps in prop::bool::weighted(0.2),
        closes in prop::bool::weighted(0.1),
    ) -> Unit {
        Unit { graph, more, runs, keeps, closes }
    }
}

fn work() -> impl Strategy<Value = Vec<Vec<Unit>>> {
    prop::collection::vec(prop::collection::vec(any_unit(), 1..8), 2..4)
}

/// Does the work of one thread.
fn work_through(world: &World, units: &[Unit], holds_outputs: bool) {
    let mut kept = Vec::new();
    for unit in units {
        match world.lend(unit.graph, unit.more, &Cancel::new()) {
            Err(error) => world.check_error(unit.graph, unit.more, &error, holds_outputs),
            Ok(mut lease) => {
                kept.clear();
                for run in 0..unit.runs {
                    match world.run(unit.graph, &mut lease, run) {
                        Ok(outputs) => kept.extend(unit.keeps.then_some(outputs)),
                        Err(error) => world.check_error(unit.graph, unit.more, &error, true),
                    }
                }
            }
        }
        if unit.closes {
            world.sessions.close_idle();
        }
    }
}

/// Does all work at once, and observes the budgets meanwhile. Aborts the process if it does not end.
fn run(settings: &Settings, work: &[Vec<Unit>]) {
    let world = World::new(settings);
    let holds_outputs = work.iter().flatten().any(|unit| unit.keeps && unit.runs > 0);
    let (is_done, observed) = (AtomicBool::new(false), AtomicBool::new(false));
    let (sender, ended) = mpsc::channel();
    std::thread::scope(|scope| {
        let workers: Vec<_> = work
            .iter()
            .map(|units| {
                let sender = sender.clone();
                let world = &world;
                scope.spawn(move || {
                    // Sent when the thread ends, also by a panic.
                    let _ended = Ended(sender);
                    work_through(world, units, holds_outputs);
                })
            })
            .collect();
        let observer = scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                world.check_usage();
                observed.store(true, Ordering::Relaxed);
                std::thread::yield_now();
            }
        });
        for _ in &workers {
            if ended.recv_timeout(DEADLOCK).is_err() {
                eprintln!("deadlock: {work:?}\n{settings:?}\n{:#?}", world.fake.log());
                eprintln!("{:#?}", world.sessions.usage());
                std::process::abort();
            }
        }
        is_done.store(true, Ordering::Relaxed);
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        observer.join().unwrap();
        results.into_iter().for_each(|result| result.unwrap());
    });
    assert_eq!(check_log(&world.fake.log()), Ok(()));
    world.check(None);
    world.check_end();
}

struct Ended(mpsc::Sender<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        // The receiver is gone only if the test has failed.
        let _ = self.0.send(());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(700))]

    #[test]
    fn threads_without_faults_stay_within_the_budget(settings in any_settings(0), work in work()) {
        run(&settings, &work);
    }

    #[test]
    fn threads_with_faults_end_and_go_on(settings in any_settings(6), work in work()) {
        run(&settings, &work);
    }
}

/// A failed opening frees its memory at once: a request that waits for it is not refused.
#[test]
fn requests_that_wait_for_a_failing_opening_are_not_refused() {
    let mut graphs = [(60, 40, 0); GRAPHS];
    graphs[0] = (50, 50, 0);
    let settings = Settings {
        budgets: vec![100],
        graphs,
        residency: Residency::Auto,
        deviation: (0.0, 0),
        is_tight: true,
        faults: vec![(u64::MAX, Fault::Fails)],
    };
    for _ in 0..30 {
        let world = World::new(&settings);
        let calls = engines::fake::Calls::opens;
        world.fake.script(calls().of_graph("text"), engines::fake::Effect::Fails);
        std::thread::scope(|scope| {
            for graph in [0, 1, 2, 0] {
                let world = &world;
                scope.spawn(move || {
                    for _ in 0..20 {
                        match world.lend(graph, 0, &Cancel::new()) {
                            Ok(_) => assert_ne!(graph, 0),
                            Err(Error::Graph(_)) => assert_eq!(graph, 0),
                            Err(other) => panic!("{other}"),
                        }
                    }
                });
            }
        });
    }
}
