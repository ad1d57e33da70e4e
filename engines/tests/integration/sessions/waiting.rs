//! Who waits for whom. Gates hold calls, so that every order is certain.

use super::world::{GRAPHS, Settings, World};
use bundle::units::ByteCount;
use engines::fake::{Calls, Effect, Event, Gate};
use engines::residency::Residency;
use engines::{Cancel, Error};
use std::sync::mpsc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const TEXT: usize = 0;
const HIGH: usize = 1;
const LOW: usize = 2;

/// Text and the high-noise expert on the CPU, the low-noise expert on a GPU; two graphs of 60 fit into no device.
fn settings() -> Settings {
    let mut graphs = [(50, 10, 0); GRAPHS];
    graphs[LOW] = (50, 10, 1);
    Settings {
        budgets: vec![100, 100],
        graphs,
        residency: Residency::Auto,
        deviation: (0.0, 0),
        is_tight: true,
        faults: Vec::new(),
    }
}

fn opened(world: &World) -> Vec<String> {
    let names = world.fake.log().into_iter().filter_map(|entry| match entry.event {
        Event::Opened(graph) => Some(graph.graph.to_string()),
        _ => None,
    });
    names.collect()
}

fn closed(world: &World) -> Vec<String> {
    let names = world.fake.log().into_iter().filter_map(|entry| match entry.event {
        Event::Closed(graph) => Some(graph.graph.to_string()),
        _ => None,
    });
    names.collect()
}

#[test]
fn a_request_waits_for_a_graph_that_is_being_opened_and_opens_nothing() {
    let (world, gate) = (World::new(&settings()), Gate::new());
    world.fake.script(Calls::opens(), Effect::Waits(gate.clone()));
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| world.lend(TEXT, 0, &Cancel::new()).map(|lease| lease.opening().is_some()))
            })
            .collect();
        gate.wait_for(1);
        gate.open();
        let news: Vec<bool> = all.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect();
        assert_eq!(news.iter().filter(|is_new| **is_new).count(), 1, "{news:?}");
    });
    assert_eq!(opened(&world), ["text"]);
    assert_eq!(world.sessions.opened(), 1);
}

#[test]
fn a_request_waits_for_memory_of_a_running_graph_and_not_for_other_devices() {
    let (world, gate) = (World::new(&settings()), Gate::new());
    world.fake.script(Calls::runs().of_graph("text"), Effect::Waits(gate.clone()));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let mut lease = world.lend(TEXT, 0, &Cancel::new()).unwrap();
            world.run(TEXT, &mut lease, 0).map(drop)
        });
        gate.wait_for(1);
        let (sender, lent) = mpsc::channel();
        let world = &world;
        let waiting = scope.spawn(move || {
            let lease = world.lend(HIGH, 0, &Cancel::new());
            sender.send(()).unwrap();
            lease.map(drop)
        });
        // Another device is not affected, and what is lent is not closed.
        let mut lease = world.lend(LOW, 0, &Cancel::new()).unwrap();
        world.run(LOW, &mut lease, 1).unwrap();
        drop(lease);
        assert_eq!(world.sessions.close_idle(), 1);
        assert_eq!(lent.try_recv(), Err(mpsc::TryRecvError::Empty));
        assert_eq!(closed(world), ["low"]);
        gate.open();
        lent.recv_timeout(LIMIT).expect("the request got the memory that was returned");
        running.join().unwrap().unwrap();
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(closed(&world), ["low", "text"]);
    world.check_end();
}

#[test]
fn a_waiting_request_ends_when_it_is_cancelled() {
    let (world, gate) = (World::new(&settings()), Gate::new());
    world.fake.script(Calls::runs().of_graph("text"), Effect::Waits(gate.clone()));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let mut lease = world.lend(TEXT, 0, &Cancel::new()).unwrap();
            world.run(TEXT, &mut lease, 0).map(drop)
        });
        gate.wait_for(1);
        for graph in [TEXT, HIGH] {
            let cancel = Cancel::new();
            let waiting = {
                let (world, cancel) = (&world, cancel.clone());
                scope.spawn(move || world.lend(graph, 0, &cancel).map(drop))
            };
            cancel.cancel();
            let error = waiting.join().unwrap().unwrap_err();
            assert!(matches!(error, Error::Cancelled { .. }), "{error}");
        }
        gate.open();
        running.join().unwrap().unwrap();
    });
    world.check_end();
}

#[test]
fn a_run_that_is_cancelled_returns_its_session() {
    let (world, gate, cancel) = (World::new(&settings()), Gate::new(), Cancel::new());
    world.fake.script(Calls::runs().nth(0), Effect::Waits(gate.clone()));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let mut lease = world.lend(TEXT, 0, &cancel)?;
            let x = engines::Value::from_f32(ndarray::Array2::<f32>::ones((1, 2)));
            lease.run(&[("x", &x)], &cancel).map(drop)
        });
        gate.wait_for(1);
        cancel.cancel();
        let error = running.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Cancelled { .. }), "{error}");
    });
    let mut lease = world.lend(TEXT, 0, &Cancel::new()).unwrap();
    assert!(lease.opening().is_none());
    world.run(TEXT, &mut lease, 0).unwrap();
    drop(lease);
    world.check_end();
}

#[test]
fn a_panic_returns_the_session() {
    let world = World::new(&settings());
    std::thread::scope(|scope| {
        let panics = scope.spawn(|| {
            let _lease = world.lend(TEXT, 0, &Cancel::new()).unwrap();
            std::panic::resume_unwind(Box::new("a test"));
        });
        assert!(panics.join().is_err());
    });
    assert!(world.lend(TEXT, 0, &Cancel::new()).unwrap().opening().is_none());
    world.check_end();
}

#[test]
fn a_lease_can_be_returned_on_another_thread() {
    let world = World::new(&settings());
    let lease = world.lend(TEXT, 0, &Cancel::new()).unwrap();
    std::thread::scope(|scope| {
        let world = &world;
        scope.spawn(move || {
            // A thread that was given a lease has not borrowed one.
            drop(world.lend(LOW, 0, &Cancel::new()).unwrap());
            drop(lease);
            drop(world.lend(TEXT, 0, &Cancel::new()).unwrap());
        });
    });
    drop(world.lend(TEXT, 0, &Cancel::new()).unwrap());
    world.check_end();
}

#[test]
fn idle_sessions_of_the_device_are_closed_when_memory_is_short() {
    let settings = Settings { budgets: vec![1000, 1000], is_tight: false, ..settings() };
    for opens in [true, false] {
        let world = World::new(&settings);
        drop(world.lend(TEXT, 0, &Cancel::new()).unwrap());
        drop(world.lend(LOW, 0, &Cancel::new()).unwrap());
        let calls = if opens { Calls::opens() } else { Calls::runs() };
        world.fake.script(calls.of_graph("high").nth(0), Effect::OutOfMemory);
        let mut lease = world.lend(HIGH, 0, &Cancel::new()).unwrap();
        world.run(HIGH, &mut lease, 0).unwrap();
        assert_eq!(closed(&world), ["text"], "opens: {opens}");
        drop(lease);

        // Nothing is left to close: the second time is an error.
        world.fake.script(Calls::runs().of_graph("high"), Effect::OutOfMemory);
        let mut lease = world.lend(HIGH, 0, &Cancel::new()).unwrap();
        let error = world.run(HIGH, &mut lease, 0).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
        drop(lease);
        world.check_end();
    }
}

#[test]
fn outputs_of_a_closed_session_stay_charged() {
    let world = World::new(&settings());
    let mut lease = world.lend(TEXT, 0, &Cancel::new()).unwrap();
    let outputs = world.run(TEXT, &mut lease, 0).unwrap();
    drop(lease);
    world.sessions.close_idle();
    let charged = || world.sessions.usage()[0].charged;
    assert_eq!(charged(), ByteCount(10));
    // 45 more than usual do not fit beside the 10.
    let error = world.lend(HIGH, 35, &Cancel::new()).unwrap_err();
    assert!(matches!(error, Error::NoRoom { held: ByteCount(10), .. }), "{error}");
    drop(outputs);
    assert_eq!(charged(), ByteCount(0));
    drop(world.lend(HIGH, 35, &Cancel::new()).unwrap());
    world.check_end();
}
