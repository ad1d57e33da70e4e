//! Steps of experts on one and on two devices of the fake.

use super::*;
use crate::denoise::DenoiseSettings;
use crate::denoise::policy::StepPolicy;
use crate::denoise::{Conditioning, GuidanceForm};
use crate::model::ModelOptions;
use crate::sampler::Schedule;
use crate::text_encoder::TextStates;
use bundle::Diagnose;
use bundle::catalog::{umt5_xxl, wan_denoiser, wan21_vae};
use bundle::digest::Digest;
use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, ComponentEntry, FORMAT, GraphEntry, Manifest};
use bundle::routing::Routing;
use bundle::settings::{Defaults, ScheduleKind, SolverKind};
use bundle::spec::{DenoiserSpec, TEXT_ROWS};
use bundle::units::{GuidanceScale, Seed, Shift, Sigma};
use bundle::variant::{KernelLibrary, Precision, Variant};
use engines::MemoryBudgets;
use engines::fake::{Calls, Effect, Event, FakeBackend, Gate, check_log};
use engines::residency::Residency;
use engines::sessions::Sessions;
use ndarray::Array2;
use std::path::PathBuf;

const STEPS: usize = 4;
const PAIRS: &str = "high=cuda:0+cuda:1,low=cuda:1+cuda:0";

/// Two experts without weights and with few channels.
fn manifest() -> Manifest {
    let entry = |name: &str| ComponentEntry {
        component: Component::Expert(ExpertName(name.into())),
        graphs: vec![GraphEntry {
            part: Part::Whole,
            variant: Variant::cpu(Precision::F32, KernelLibrary::OnnxRuntime),
            file: format!("experts/{name}/cpu.onnx"),
            batch_invariant: None,
        }],
        weights: Vec::new(),
        weight_type: WeightType::F32,
        digest: Digest::of_parts([]),
        variants: Vec::new(),
        loras: Vec::new(),
    };
    Manifest {
        format: FORMAT,
        rushes: "0.0.0".into(),
        model: "two experts".into(),
        text_encoder: umt5_xxl(),
        denoiser: DenoiserSpec { in_channels: 2, out_channels: 2, text_width: 4, ..wan_denoiser(1, 1, 8) },
        vae: wan21_vae(),
        tiny_decoder: None,
        routing: Routing::pair(Timestep(875.0)).unwrap(),
        defaults: Defaults::resolve(&[], 2).unwrap(),
        components: vec![entry("high_noise"), entry("low_noise")],
        digests: std::collections::BTreeMap::new(),
    }
}

fn devices() -> [Device; 2] {
    ["cuda:0", "cuda:1"].map(|device| device.parse().unwrap())
}

fn fake() -> FakeBackend {
    let fake = FakeBackend::new();
    for device in [Device::CPU, devices()[0], devices()[1]] {
        fake.add_device(device, ByteCount(1 << 40));
    }
    fake.add_bundle(&bundle(), |_, _, graph| graph.with_memory(ByteCount(1000), ByteCount(1000)));
    fake
}

fn bundle() -> Bundle {
    Bundle { folder: PathBuf::from("/nowhere"), manifest: manifest() }
}

fn model(fake: &FakeBackend, place: &str, budget: ByteCount) -> Model {
    let budgets = MemoryBudgets::common(budget);
    let sessions = Sessions::new(Arc::new(fake.clone()), budgets, Residency::Auto);
    let model = Model::with_sessions(bundle(), &sessions, ModelOptions::default()).unwrap();
    model.placed(&place.parse().unwrap()).unwrap()
}

/// The latents after all steps, from noise `[2,1,side,side]`.
fn denoised(
    model: &Model,
    side: usize,
    guidance: [f32; 2],
    cancel: &Cancel,
) -> Result<Vec<Arc<Array4<f32>>>, Error> {
    let settings = DenoiseSettings {
        routing: model.manifest().routing.clone(),
        guidance: guidance.map(GuidanceScale).to_vec(),
        guidance_until: Sigma(0.0),
        schedule: Schedule::new(SolverKind::Euler, ScheduleKind::ALL[0], STEPS, Shift::try_new(5.0).unwrap()),
        solver: SolverKind::Euler,
        policy: StepPolicy::ComputeAll,
    };
    let noise =
        Array4::from_shape_fn((2, 1, side, side), |(c, _, h, w)| ((c + 3 * h + 5 * w) % 7) as f32 - 3.0);
    let denoising = Denoising::new(settings, noise, Seed(1)).unwrap();
    let states = |value| {
        let mut rows = Array2::zeros((TEXT_ROWS, 4));
        rows.row_mut(0).fill(value);
        Arc::new(TextStates::try_new(rows, 1, None).unwrap())
    };
    let conditioning = Conditioning::text(states(1.0), Some(states(2.0)));
    let mut latents = Vec::new();
    Generator::new(model).denoise(denoising, &conditioning, cancel, &mut |done| {
        latents.push(done.latent);
        Ok(())
    })?;
    Ok(latents)
}

fn graph(expert: &str) -> String {
    format!("experts/{expert}/cpu.onnx")
}

/// The sessions that were opened, in the order of their names.
fn opened(fake: &FakeBackend) -> Vec<String> {
    let opened = fake.log().into_iter().filter_map(|entry| match entry.event {
        Event::Opened(open) => Some(format!("{} on {}", open.graph, open.device)),
        _ => None,
    });
    let mut opened: Vec<String> = opened.collect();
    opened.sort_unstable();
    opened
}

const ENDLESS: ByteCount = ByteCount(1 << 40);

#[test]
fn a_pair_gives_the_bits_of_two_calls_on_one_device() {
    // 46 x 46 tokens, more than are batched.
    for guidance in [[4.0, 3.0], [1.0, 3.0], [4.0, 1.0]] {
        let one = denoised(&model(&fake(), "high=cpu", ENDLESS), 92, guidance, &Cancel::new()).unwrap();
        let fake = fake();
        let pair = denoised(&model(&fake, PAIRS, ENDLESS), 92, guidance, &Cancel::new()).unwrap();
        assert_eq!(one.len(), STEPS);
        assert!(pair == one, "{guidance:?}");
        let mut expected = vec![
            "experts/high_noise/cpu.onnx on cuda:0",
            "experts/high_noise/cpu.onnx on cuda:1",
            "experts/low_noise/cpu.onnx on cuda:0",
            "experts/low_noise/cpu.onnx on cuda:1",
        ];
        match guidance {
            [1.0, _] => drop(expected.remove(1)),
            [_, 1.0] => drop(expected.remove(2)),
            _ => {}
        }
        assert_eq!(opened(&fake), expected);
        assert_eq!(check_log(&fake.log()), Ok(()));
    }
    let pair = model(&fake(), PAIRS, ENDLESS);
    assert_eq!(GuidanceForm::of(4, pair.placement()), GuidanceForm::TwoCalls);
}

#[test]
fn both_passes_of_a_step_run_at_the_same_time() {
    let expected = denoised(&model(&fake(), PAIRS, ENDLESS), 4, [4.0, 3.0], &Cancel::new()).unwrap();
    for run in 0..2 {
        let (fake, gate) = (fake(), Gate::new());
        for device in devices() {
            let runs = Calls::runs().of_graph(graph("high_noise")).on_device(device).nth(run);
            fake.script(runs, Effect::Waits(gate.clone()));
        }
        let model = model(&fake, PAIRS, ENDLESS);
        let found = std::thread::scope(|scope| {
            let clip = scope.spawn(|| denoised(&model, 4, [4.0, 3.0], &Cancel::new()));
            gate.wait_for(2);
            gate.open();
            clip.join().unwrap().unwrap()
        });
        assert!(found == expected, "run {run}");
    }
}

#[test]
fn a_failure_on_either_device_is_named_and_ends_the_other_pass() {
    let [first, second] = devices();
    for (fails, waits) in [(first, second), (second, first)] {
        for effect in [Effect::Fails, Effect::OutOfMemory, Effect::NotFinite, Effect::WrongRank] {
            let fake = fake();
            let runs = |device| Calls::runs().of_graph(graph("high_noise")).on_device(device).nth(1);
            fake.script(runs(waits), Effect::Waits(Gate::new()));
            fake.script(runs(fails), effect.clone());
            let model = model(&fake, PAIRS, ENDLESS);
            let error = denoised(&model, 4, [4.0, 3.0], &Cancel::new()).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&fails.to_string()) && !text.contains(&waits.to_string()), "{text}");
            assert!(!error.is_cancelled(), "{text}");
            fake.clear_script();
            assert_eq!(denoised(&model, 4, [4.0, 3.0], &Cancel::new()).unwrap().len(), STEPS);
            model.sessions().close_idle();
            assert_eq!(fake.open_graphs(), []);
            assert!(model.sessions().usage().iter().all(|usage| usage.charged.0 == 0));
        }
    }
}

#[test]
fn a_request_ends_both_passes() {
    let (fake, gate, cancel) = (fake(), Gate::new(), Cancel::new());
    for device in devices() {
        let runs = Calls::runs().of_graph(graph("low_noise")).on_device(device).nth(1);
        fake.script(runs, Effect::Waits(gate.clone()));
    }
    let model = model(&fake, PAIRS, ENDLESS);
    let error = std::thread::scope(|scope| {
        let clip = scope.spawn(|| denoised(&model, 4, [4.0, 3.0], &cancel));
        gate.wait_for(2);
        cancel.cancel();
        clip.join().unwrap().unwrap_err()
    });
    assert!(error.is_cancelled(), "{error}");
    assert_eq!((gate.waiting(), cancel.runs_in_flight()), (0, 0));
    assert!(model.sessions().usage().iter().all(|usage| usage.sessions.iter().all(|one| !one.is_busy)));
}

/// Each device holds one expert, and the experts need the devices in opposite orders.
#[test]
fn clips_with_pairs_at_the_same_time_do_not_block_each_other() {
    let (expected, charged) = {
        let model = model(&fake(), PAIRS, ENDLESS);
        let latents = denoised(&model, 4, [4.0, 3.0], &Cancel::new()).unwrap();
        let usage = model.sessions().usage();
        let most = usage.iter().map(|usage| usage.charged.0).max().unwrap();
        (latents, most)
    };
    let fake = fake();
    let model = model(&fake, PAIRS, ByteCount(charged / 4 * 3));
    let (sender, receiver) = std::sync::mpsc::channel();
    for _ in 0..4 {
        let (model, sender) = (model.clone(), sender.clone());
        std::thread::spawn(move || {
            for _ in 0..5 {
                sender.send(denoised(&model, 4, [4.0, 3.0], &Cancel::new())).unwrap();
            }
        });
    }
    for _ in 0..20 {
        let latents = receiver.recv_timeout(Duration::from_secs(120)).expect("the clips block each other");
        assert!(latents.unwrap() == expected);
    }
    assert_eq!(check_log(&fake.log()), Ok(()));
    assert!(model.sessions().opened() > 4, "nothing was closed");
    for usage in model.sessions().usage() {
        assert!(usage.peak <= usage.budget, "{usage:?}");
    }
}

#[test]
fn a_second_device_that_is_too_small_is_named() {
    let fake = fake();
    let mut budgets = MemoryBudgets::common(ENDLESS);
    budgets.set(Some(devices()[1]), ByteCount(10)).unwrap();
    let sessions = Sessions::new(Arc::new(fake.clone()), budgets, Residency::Auto);
    let model = Model::with_sessions(bundle(), &sessions, ModelOptions::default()).unwrap();
    let model = model.placed(&"high=cuda:0+cuda:1".parse().unwrap()).unwrap();
    let error = denoised(&model, 4, [4.0, 3.0], &Cancel::new()).unwrap_err();
    assert_eq!(error.report().class, bundle::ErrorClass::DoesNotFit);
    assert!(error.to_string().contains("on cuda:1"), "{error}");
}
