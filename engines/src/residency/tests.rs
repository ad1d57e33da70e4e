//! Plans of a text encoder, two experts and a decoder.

use super::*;
use bundle::routing::ExpertName;
use bundle::{Diagnose, ErrorClass};
use proptest::prelude::*;

const GB: u64 = 1_000_000_000;

fn expert(name: &str) -> Role {
    Role::Clip(Component::Expert(ExpertName(name.into())))
}

fn session(role: Role, device: &str, weights: u64, activations: u64) -> Footprint {
    let [weights, activations] = [weights, activations].map(|bytes| ByteCount(bytes * GB));
    let need = MemoryNeed { weights, activations, ..MemoryNeed::default() };
    Footprint { role, device: device.parse().unwrap(), need }
}

/// Two experts and a decoder of two graphs.
fn a14b([text, high, low, decoder]: [&str; 4]) -> Vec<Footprint> {
    vec![
        session(Role::Clip(Component::TextEncoder), text, 22, 1),
        session(expert("high_noise"), high, 57, 10),
        session(expert("low_noise"), low, 57, 10),
        session(Role::Clip(Component::Decoder), decoder, 1, 2),
        session(Role::Clip(Component::Decoder), decoder, 1, 4),
    ]
}

/// The plan with the same budget, in GB, for every device.
fn planned(wanted: Residency, sessions: &[Footprint], budget: u64) -> Result<Vec<DevicePlan>, Error> {
    plan(wanted, sessions, |_| Some(ByteCount(budget * GB)))
}

fn peaks(plans: &[DevicePlan]) -> Vec<(String, bool, u64)> {
    let peak = |plan: &DevicePlan| (plan.device.to_string(), plan.all_stay_open, plan.peak.0 / GB);
    plans.iter().map(peak).collect()
}

#[test]
fn sessions_that_stay_open_need_the_sum_of_weights_and_activations() {
    let sessions = a14b(["cpu"; 4]);
    let all = planned(Residency::Auto, &sessions, 165).unwrap();
    assert_eq!(peaks(&all), [("cpu".into(), true, 165)]);
    // The experts stay open, with the text encoder beside them.
    let one = planned(Residency::Auto, &sessions, 164).unwrap();
    assert_eq!(peaks(&one), [("cpu".into(), false, 157)]);
    assert_eq!(peaks(&planned(Residency::Auto, &sessions, 156).unwrap()), [("cpu".into(), false, 67)]);
    assert_eq!(peaks(&planned(Residency::One, &sessions, 200).unwrap()), [("cpu".into(), false, 67)]);
    let decoder =
        MemoryNeed { weights: ByteCount(2 * GB), activations: ByteCount(6 * GB), ..MemoryNeed::default() };
    assert_eq!(one[0].needs[3], (Role::Clip(Component::Decoder), decoder));
}

/// What is open while each component runs, as one letter each.
fn open(plan: &DevicePlan) -> Vec<String> {
    let letter = |role: &Role| match role {
        Role::Clip(Component::Expert(name)) => name.0[..1].to_owned(),
        Role::Clip(component) => component.to_string()["the ".len()..][..1].to_owned(),
        Role::Previews => "p".to_owned(),
    };
    plan.phases.iter().map(|phase| phase.open.iter().map(letter).collect()).collect()
}

#[test]
fn experts_stay_open_while_the_other_components_take_turns_beside_them() {
    let sessions = a14b(["cpu"; 4]);
    let planned = |wanted, budget| planned(wanted, &sessions, budget).unwrap().remove(0);
    // Experts 134, text encoder 23, decoder 8.
    let all = planned(Residency::Auto, 165);
    assert_eq!((open(&all).join(" ").as_str(), all.experts_stay_open), ("t th thl thld", true));
    let beside = planned(Residency::Auto, 157);
    assert_eq!(beside.peak, ByteCount(157 * GB));
    assert_eq!((open(&beside).join(" ").as_str(), beside.experts_stay_open), ("t th thl hld", true));
    let turns = planned(Residency::Auto, 156);
    assert_eq!((open(&turns).join(" ").as_str(), turns.experts_stay_open), ("t th hl hld", false));
    assert_eq!(turns.peak, ByteCount(67 * GB));
    let short = planned(Residency::Auto, 100);
    assert_eq!(open(&short).join(" "), "t th tl tld");
    let used: Vec<u64> = short.phases.iter().map(|phase| phase.used.0 / GB).collect();
    assert_eq!(used, [23, 90, 90, 98]);
    assert_eq!(open(&planned(Residency::One, 200)).join(" "), "t h l d");
}

#[test]
fn each_device_is_planned_with_its_own_budget() {
    let sessions = a14b(["cpu", "cuda:0", "cuda:1", "cuda:1"]);
    let budget = |device: Device| match device.to_string().as_str() {
        "cpu" => None,
        "cuda:0" => Some(ByteCount(68 * GB)),
        _ => Some(ByteCount(70 * GB)),
    };
    let plans = plan(Residency::Auto, &sessions, budget).unwrap();
    assert_eq!(
        peaks(&plans),
        [("cpu".into(), true, 23), ("cuda:0".into(), true, 67), ("cuda:1".into(), false, 67)]
    );
    assert_eq!((plans[0].budget, plans[2].budget), (None, Some(ByteCount(70 * GB))));
    let error = plan(Residency::All, &sessions, budget).unwrap_err();
    insta::assert_snapshot!(error, @"75.0 GB are needed on cuda:1 and 70.0 GB may be used: the largest parts are the weights of the low_noise expert 57.0 GB, the activations of the low_noise expert 10.0 GB, the activations of the decoder 6.0 GB (use `residency` one, which needs 67.0 GB)");
}

#[test]
fn sessions_in_the_memory_of_the_cpu_are_planned_together() {
    let sessions = a14b(["cpu", "openvino:0", "cpu", "openvino:0"]);
    assert_eq!(peaks(&planned(Residency::Auto, &sessions, 165).unwrap()), [("cpu".into(), true, 165)]);
    assert!(planned(Residency::All, &sessions, 164).is_err());
    let own = a14b(["cpu", "webgpu:0", "webgpu:0", "cpu"]);
    let expected = [("cpu".into(), true, 31), ("webgpu:0".into(), true, 134)];
    assert_eq!(peaks(&planned(Residency::Auto, &own, 134).unwrap()), expected);
}

#[test]
fn previews_are_open_beside_the_experts_but_not_the_decoder() {
    let mut sessions = a14b(["cpu"; 4]);
    sessions.push(session(Role::Previews, "cpu", 3, 4));
    assert_eq!(peaks(&planned(Residency::One, &sessions, 200).unwrap()), [("cpu".into(), false, 74)]);
    assert_eq!(peaks(&planned(Residency::All, &sessions, 200).unwrap()), [("cpu".into(), true, 172)]);
    let beside_decoder =
        [session(Role::Clip(Component::Decoder), "cuda:1", 1, 5), session(Role::Previews, "cuda:1", 3, 4)];
    let plans = planned(Residency::Auto, &beside_decoder, 12).unwrap();
    assert_eq!(peaks(&plans), [("cuda:1".into(), false, 7)]);
}

#[test]
fn a_plan_that_does_not_fit_names_a_setting_that_would() {
    let sessions = a14b(["cpu"; 4]);
    let error = planned(Residency::All, &sessions, 80).unwrap_err();
    assert_eq!(error.report().class, ErrorClass::DoesNotFit);
    insta::assert_snapshot!(error, @"165.0 GB are needed on cpu and 80.0 GB may be used: the largest parts are the weights of the high_noise expert 57.0 GB, the weights of the low_noise expert 57.0 GB, the weights of the text encoder 22.0 GB (use `residency` one, which needs 67.0 GB)");
    for wanted in [Residency::Auto, Residency::One] {
        let activations = planned(wanted, &sessions, 60).unwrap_err();
        let weights = planned(wanted, &sessions, 24).unwrap_err();
        insta::allow_duplicates! {
            insta::assert_snapshot!(activations, @"67.0 GB are needed on cpu and 60.0 GB may be used: the largest parts are the weights of the low_noise expert 57.0 GB, the activations of the low_noise expert 10.0 GB (use a smaller `size` or fewer `frames`, or raise `memory_budget`)");
            insta::assert_snapshot!(weights, @"67.0 GB are needed on cpu and 24.0 GB may be used: the largest parts are the weights of the low_noise expert 57.0 GB, the activations of the low_noise expert 10.0 GB (raise `memory_budget` if the device has more, or use a smaller model)");
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

/// Sessions in order of use: text encoder, two experts, decoder, previews.
fn any_sessions() -> impl Strategy<Value = Vec<Footprint>> {
    let roles = [
        Role::Clip(Component::TextEncoder),
        expert("high_noise"),
        expert("low_noise"),
        Role::Clip(Component::Decoder),
        Role::Previews,
    ];
    let device = prop::sample::select(&["cpu", "cuda:0", "cuda:1"][..]);
    let any = (device, prop::collection::vec((0..100_u64, 0..20_u64), 0..3));
    prop::collection::vec(any, roles.len()).prop_map(move |all| {
        let mut sessions = Vec::new();
        for (role, (device, needs)) in roles.iter().zip(all) {
            for (weights, activations) in needs {
                sessions.push(session(role.clone(), device, weights, activations));
            }
        }
        sessions
    })
}

/// Opens and runs the sessions of a device for two clips, and closes idle ones, those needed last first, where
/// `plan` says that not all stay open. Returns the peak.
fn simulated(plan: &DevicePlan, wanted: Residency, sessions: &[Footprint]) -> u64 {
    let sessions: Vec<&Footprint> = sessions.iter().filter(|session| session.device == plan.device).collect();
    let limit = plan.budget.map_or(u64::MAX, |budget| budget.0);
    let uses = |running: &Role| -> Vec<usize> {
        let is_used =
            |other: &Role| other == running || (*other == Role::Previews && running.has_previews_beside());
        (0..sessions.len()).filter(|index| is_used(&sessions[*index].role)).collect()
    };
    let order: Vec<&Role> = plan.needs.iter().map(|(role, _)| role).collect();
    let clips: Vec<&Role> = order.iter().chain(&order).copied().collect();
    let (mut open, mut peak) = (Vec::<usize>::new(), 0);
    for (now, running) in clips.iter().enumerate() {
        let used = uses(running);
        if wanted == Residency::One {
            open.retain(|index| used.contains(index));
        }
        for index in &used {
            if open.contains(index) {
                continue;
            }
            let held = |open: &[usize]| -> u64 {
                open.iter().chain([index]).map(|index| sessions[*index].need.total().0).sum()
            };
            while !plan.all_stay_open && held(&open) > limit {
                let next_use = |index: &usize| {
                    clips[now..].iter().position(|later| uses(later).contains(index)).unwrap_or(usize::MAX)
                };
                let idle = open.iter().filter(|index| !used.contains(index));
                let last = *idle.max_by_key(|index| next_use(index)).expect("something to close");
                open.retain(|index| *index != last);
            }
            peak = peak.max(held(&open));
            open.push(*index);
        }
    }
    peak
}

proptest! {
    #[test]
    fn no_plan_exceeds_the_budget_of_any_device(
        sessions in any_sessions(),
        budgets in prop::array::uniform3(prop::option::of(0..500_u64)),
        wanted in prop::sample::select(&Residency::ALL[..]),
    ) {
        let budget = |device: Device| {
            let index = if device == Device::CPU { 0 } else { device.index() as usize + 1 };
            budgets[index].map(|budget| ByteCount(budget * GB))
        };
        match plan(wanted, &sessions, budget) {
            Ok(plans) => for plan in &plans {
                let limit = budget(plan.device).unwrap_or(ByteCount(u64::MAX));
                prop_assert!(plan.peak <= limit);
                let peak = simulated(plan, wanted, &sessions);
                prop_assert!(peak <= limit.0, "{peak} of {limit}");
                if plan.all_stay_open || wanted == Residency::One {
                    prop_assert!(peak <= plan.peak.0, "{peak} of {}", plan.peak);
                }
                prop_assert!(wanted != Residency::All || plan.all_stay_open);
                prop_assert!(wanted != Residency::One || !plan.all_stay_open);
                prop_assert!(plan.phases.iter().all(|phase| phase.used <= limit), "{plan:?}");
            },
            Err(Error::DoesNotFit { device, needed, budget: limit, remedy, .. }) => {
                prop_assert!(needed > limit);
                prop_assert_eq!(Some(limit), budget(device));
                let on_device: Vec<Footprint> =
                    sessions.iter().filter(|session| session.device == device).cloned().collect();
                let one = plan(Residency::One, &on_device, budget).ok().map(|plans| plans[0].peak);
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
    fn auto_fits_if_anything_fits_and_keeps_all_open_if_it_can(
        sessions in any_sessions(),
        budget in 0..500_u64,
    ) {
        let on_cpu: Vec<Footprint> =
            sessions.into_iter().map(|session| Footprint { device: Device::CPU, ..session }).collect();
        let [all, one, auto] = [Residency::All, Residency::One, Residency::Auto]
            .map(|wanted| planned(wanted, &on_cpu, budget).ok());
        prop_assert_eq!(auto.is_some(), one.is_some());
        if let Some(all) = all {
            prop_assert_eq!(auto, Some(all));
        } else if let (Some(auto), Some(one)) = (auto, one) {
            let peaks = |plans: &[DevicePlan]| plans.iter().map(|plan| plan.peak).collect::<Vec<_>>();
            prop_assert!(peaks(&auto) >= peaks(&one));
            prop_assert!(auto.iter().any(|plan| plan.experts_stay_open) || peaks(&auto) == peaks(&one));
        }
    }
}
