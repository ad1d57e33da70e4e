//! Random sequences on one thread, which can never wait.

use super::world::{GRAPHS, Settings, World, any_settings};
use bundle::{Diagnose, ErrorClass};
use engines::fake::{Event, OpenGraph};
use engines::residency::Residency;
use engines::sessions::{Lease, Purpose};
use engines::{Cancel, Error, Outputs};
use proptest::prelude::*;

/// What a user of the sessions does.
#[derive(Debug, Clone, Copy)]
enum Action {
    /// Borrows a graph, with activations that are larger than usual by so many bytes.
    Lend(usize, u64),
    /// Runs it. Keeps the outputs or drops them.
    Run { keeps: bool },
    /// Returns it.
    Return,
    /// Borrows with a request that is cancelled.
    LendCancelled(usize),
    /// Closes what is idle.
    CloseIdle,
    /// Drops all outputs.
    DropOutputs,
}

fn any_action() -> impl Strategy<Value = Action> {
    let more = prop_oneof![4 => Just(0), 1 => 0..40_u64];
    prop_oneof![
        5 => (0..GRAPHS, more).prop_map(|(graph, more)| Action::Lend(graph, more)),
        4 => any::<bool>().prop_map(|keeps| Action::Run { keeps }),
        4 => Just(Action::Return),
        1 => (0..GRAPHS).prop_map(Action::LendCancelled),
        1 => Just(Action::CloseIdle),
        1 => Just(Action::DropOutputs),
    ]
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    prop::collection::vec(any_action(), 1..40)
}

#[derive(Default)]
struct User {
    lease: Option<(usize, Lease)>,
    outputs: Vec<Outputs>,
}

impl User {
    fn act(&mut self, world: &World, step: usize, action: Action) {
        match (action, &mut self.lease) {
            (Action::Lend(graph, more), None) => match world.lend(graph, more, &Cancel::new()) {
                Ok(lease) => {
                    check_residency(world, graph);
                    self.lease = Some((graph, lease));
                }
                Err(error) => world.check_error(graph, more, &error, !self.outputs.is_empty()),
            },
            (Action::Lend(graph, more), Some(_)) => {
                let error = world.lend(graph, more, &Cancel::new()).unwrap_err();
                assert!(matches!(error, Error::SecondLease { .. }), "{error}");
            }
            (Action::LendCancelled(graph), lease) => {
                let cancel = Cancel::new();
                cancel.cancel();
                let error = world.lend(graph, 0, &cancel).unwrap_err();
                let is_second = matches!(error, Error::SecondLease { .. });
                assert!(is_second == lease.is_some(), "{error}");
                assert!(is_second || error.report().class == ErrorClass::Interrupted, "{error}");
            }
            (Action::Run { keeps }, Some((graph, lease))) => match world.run(*graph, lease, step) {
                Ok(outputs) => self.outputs.extend(keeps.then_some(outputs)),
                Err(error) => world.check_error(*graph, 0, &error, true),
            },
            (Action::Return, lease) => *lease = None,
            (Action::CloseIdle, _) => drop(world.sessions.close_idle()),
            (Action::DropOutputs, _) => self.outputs.clear(),
            (Action::Run { .. }, None) => {}
        }
    }
}

/// With one component at a time, sessions of other components of the device are closed when a graph is lent.
fn check_residency(world: &World, lent: usize) {
    let lent = &world.graphs[lent].key;
    if world.settings.residency != Residency::One || lent.purpose == Purpose::Preview {
        return;
    }
    for OpenGraph { graph, device, .. } in world.fake.open_graphs() {
        let open = world.graphs.iter().find(|known| *known.fake.name() == *graph).unwrap();
        let is_other = open.key.component != lent.component || open.key.bundle != lent.bundle;
        assert!(
            !is_other || device != lent.options.device || open.key.purpose == Purpose::Preview,
            "{graph} is open"
        );
    }
}

fn run(settings: &Settings, actions: &[Action]) -> World {
    let world = World::new(settings);
    let mut user = User::default();
    for (step, action) in actions.iter().enumerate() {
        user.act(&world, step, *action);
        world.check(user.lease.as_ref().map(|(graph, _)| *graph));
    }
    drop(user);
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn sequences_without_faults_stay_within_the_budget(settings in any_settings(0), actions in actions()) {
        run(&settings, &actions).check_end();
    }

    #[test]
    fn sequences_with_faults_end_in_one_clear_error_each(settings in any_settings(6), actions in actions()) {
        run(&settings, &actions).check_end();
    }

    /// With `residency` all, nothing is closed that nobody asks to close.
    #[test]
    fn all_stays_open_with_residency_all(settings in any_settings(0), actions in actions()) {
        let settings = Settings { residency: Residency::All, is_tight: false, ..settings };
        let mut actions = actions;
        actions.retain(|action| !matches!(action, Action::CloseIdle));
        for action in &mut actions {
            // A session whose pool has to grow beyond the budget is closed to be opened again.
            if let Action::Lend(_, more) = action {
                *more = 0;
            }
        }
        let world = run(&settings, &actions);
        prop_assert!(world.fake.log().iter().all(|entry| !matches!(entry.event, Event::Closed(_))));
        world.check_end();
    }
}
