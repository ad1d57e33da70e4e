//! Parity with diffusers on every golden case, and mutations that the comparison must detect.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::manifest::{Component, Part};
use bundle::routing::ExpertIndex;
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT, Signature};
use engines::{Cancel, Engine, OnnxRuntime, OpenOptions, Value, WeightMemory};
use ndarray::{Array1, Array2, Array4, ArrayD, Axis, Slice, concatenate};
use runtime::denoise::RotaryTables;
use runtime::model::Model;
use runtime::plan::GenerationPlan;
use runtime::sampler::{NoiseStream, Sampler, guide};
use std::path::Path;
use std::sync::Arc;
use tests::compare::{FRAME_BOUND, LATENT_BOUND, TEXT_BOUND, largest_difference, relative_difference};
use tests::edit;
use tests::golden::{Case, Computed, Tensors, case, cases, compute, export, folder};

/// The largest difference of each kind, relative to its bound; more than 1 fails.
#[derive(Debug)]
struct Worst {
    text: f64,
    latents: f64,
    frames: f64,
}

impl Worst {
    fn of(computed: &Computed, reference: &Tensors) -> Self {
        let text = |found: &Array2<f32>, name: &str| {
            largest_difference(found.view().into_dyn(), reference.expect(name).view())
        };
        let mut worst_text = text(&computed.prompt, "prompt_embeds");
        if let Some(negative) = &computed.negative {
            worst_text = worst_text.max(text(negative, "negative_prompt_embeds"));
        }
        let latents = computed.latents.iter().enumerate().map(|(step, latent)| {
            relative_difference(latent.view(), reference.latent(&format!("latents.{step:03}")).view())
        });
        let frames = largest_difference(computed.frames.view(), reference.latent("frames").view());
        Self {
            text: worst_text / TEXT_BOUND,
            latents: latents.fold(0.0, f64::max) / LATENT_BOUND,
            frames: frames / FRAME_BOUND,
        }
    }

    fn holds(&self) -> bool {
        self.text <= 1.0 && self.latents <= 1.0 && self.frames <= 1.0
    }
}

fn run(checkpoint: &Path, case: &Case) -> Worst {
    let reference = case.reference();
    let exported = export(checkpoint).unwrap();
    let computed = compute(&exported.model, case, reference.latent("noise")).unwrap();
    assert_eq!(computed.latents.len(), case.steps);
    Worst::of(&computed, &reference)
}

#[test]
fn every_case_equals_diffusers() {
    for case in &cases() {
        let worst = run(&case.checkpoint(), case);
        assert!(worst.holds(), "{}: {worst:?} times the bounds", case.name);
    }
}

/// The cases that `make.py` makes, and the embedded model.
#[test]
fn no_case_is_missing() {
    let made = std::fs::read_to_string(folder().join("maker/cases.py")).unwrap();
    let names = made.lines().filter_map(|line| line.trim().strip_prefix("name=\"")?.strip_suffix("\","));
    let mut expected: Vec<&str> = names.chain(["mini", "listed-euler", "listed-renoise"]).collect();
    expected.sort_unstable();
    assert!(expected.len() >= 8, "{expected:?}");
    assert_eq!(cases().iter().map(|case| case.name.as_str()).collect::<Vec<_>>(), expected);
}

#[test]
fn every_step_runs_on_the_same_expert_as_in_diffusers() {
    let mut crossed = 0;
    for case in cases() {
        let exported = export(&case.checkpoint()).unwrap();
        let plan = GenerationPlan::new(exported.model.manifest(), &case.request()).unwrap();
        let routing = &exported.model.manifest().routing;
        let found: Vec<&str> =
            plan.schedule
                .timesteps()
                .iter()
                .map(|timestep| {
                    if routing.expert_at(*timestep) == ExpertIndex(0) {
                        "transformer"
                    } else {
                        "transformer_2"
                    }
                })
                .collect();
        assert_eq!(found, case.experts_by_step, "{}", case.name);
        crossed += usize::from(found.first() != found.last());
    }
    assert!(crossed >= 1, "no case crosses the boundary");
}

#[test]
fn the_seed_gives_the_noise_of_pytorch() {
    for case in cases() {
        let exported = export(&case.checkpoint()).unwrap();
        let plan = GenerationPlan::new(exported.model.manifest(), &case.request()).unwrap();
        let found = runtime::pipeline::seeded_noise(&plan);
        let difference = largest_difference(found.view(), case.reference().latent("noise").view());
        assert!(difference < 1e-6, "{}: {difference}", case.name);
    }
}

/// Runs a case on a changed copy of its checkpoint; `change` returns true if it changed something.
fn mutated(case: &Case, part: &str, change: impl Fn(&mut edit::Stored) -> bool) -> Worst {
    let copy = edit::copy_of(&case.checkpoint());
    let mut changed = false;
    edit::rewrite(&copy.path().join(part), |stored| changed |= change(stored));
    assert!(changed, "{}: nothing was changed in {part}", case.name);
    run(copy.path(), case)
}

fn swap(stored: &mut edit::Stored, a: &str, b: &str) -> bool {
    match (stored.remove(a), stored.remove(b)) {
        (Some(first), Some(second)) => {
            stored.insert(a.into(), second);
            stored.insert(b.into(), first);
            true
        }
        _ => false,
    }
}

/// The case that is mutated: two experts, f32 weights.
const MUTATED: &str = "two-experts";

#[test]
fn two_swapped_norms_are_detected() {
    let case = case(MUTATED);
    let worst = mutated(&case, "transformer_2", |stored| {
        swap(stored, "blocks.1.attn1.norm_q.weight", "blocks.1.attn1.norm_k.weight")
    });
    assert!(worst.latents > 1.0, "{worst:?}");
    let worst = mutated(&case, "vae", |stored| {
        swap(stored, "decoder.mid_block.resnets.0.norm1.gamma", "decoder.mid_block.resnets.1.norm1.gamma")
    });
    assert!(worst.frames > 1.0, "{worst:?}");
}

#[test]
fn a_gain_that_is_2_per_cent_off_is_detected() {
    let case = case(MUTATED);
    let worst = mutated(&case, "transformer", |stored| {
        edit::change_f32(stored, "blocks.0.norm2.weight", |value| value * 1.02)
    });
    assert!(worst.latents > 1.0, "{worst:?}");
    let name = "encoder.block.0.layer.0.layer_norm.weight";
    let worst = mutated(&case, "text_encoder", |stored| edit::change_f32(stored, name, |value| value * 1.02));
    assert!(worst.text > 1.0, "{worst:?}");
    let worst = mutated(&case, "vae", |stored| {
        edit::change_f32(stored, "decoder.norm_out.gamma", |value| value * 1.02)
    });
    assert!(worst.frames > 1.0, "{worst:?}");
}

fn open(model: &Model, component: &Component, part: Part, contract: &Signature) -> Engine {
    let entry = model.manifest().component(component).unwrap();
    let graph = entry.graphs.iter().find(|graph| graph.part == part).unwrap();
    let options = OpenOptions::cpu(None, WeightMemory::Mapped);
    OnnxRuntime::load(None).unwrap().open(&model.bundle().path(&graph.file), contract, &options).unwrap()
}

/// The latent after the first step, computed without the pipeline, with the given rotary tables.
fn first_step(model: &Model, case: &Case, reference: &Tensors, tables: RotaryTables) -> Array4<f32> {
    let plan = GenerationPlan::new(model.manifest(), &case.request()).unwrap();
    let routing = &model.manifest().routing;
    let timestep = plan.schedule.timesteps()[0];
    let expert = routing.expert_at(timestep);
    let contract = Signature::of_step(&model.manifest().denoiser);
    let component = Component::Expert(routing.name(expert).unwrap().clone());
    let mut engine = open(model, &component, Part::Whole, &contract);
    let noise = reference.latent("noise");
    let batch = |array: ArrayD<f32>| Value::from_f32(array.insert_axis(Axis(0)));
    let (latent, cos, sin) =
        (batch(noise.clone().into_dyn()), Value::from_f32(tables.cos), Value::from_f32(tables.sin));
    let timestep = Value::from_f32(Array1::from_elem(1, timestep.0));
    let rows = Value::from_i64(Array1::zeros(1));
    let mut velocity = |name: &str| {
        let text = batch(reference.expect(name).clone());
        let inputs = [
            ("latent", &latent),
            ("timestep", &timestep),
            ("rows", &rows),
            ("text", &text),
            ("cos", &cos),
            ("sin", &sin),
        ];
        let velocity = engine.run(&inputs, &Cancel::new()).unwrap().take("velocity").unwrap();
        velocity.to_f32().unwrap().remove_axis(Axis(0)).into_dimensionality().unwrap()
    };
    let (unconditional, conditional) = (velocity("negative_prompt_embeds"), velocity("prompt_embeds"));
    let guided = guide(&unconditional, &conditional, plan.guidance[expert.0]);
    let latent = Sampler::new(plan.schedule, plan.solver)
        .step(&Arc::new(noise), &guided, &mut NoiseStream::new(plan.seed))
        .unwrap();
    Arc::unwrap_or_clone(latent)
}

#[test]
fn swapped_axes_of_the_rotary_embedding_are_detected() {
    let case = case(MUTATED);
    let reference = case.reference();
    let exported = export(&case.checkpoint()).unwrap();
    let spec = &exported.model.manifest().denoiser;
    let plan = GenerationPlan::new(exported.model.manifest(), &case.request()).unwrap();
    let right = RotaryTables::new(spec, plan.latent);
    // The pairs of a head are those of time, then height, then width. Height and width have the same number.
    let [time, height, width] = spec.rotary_split().map(|axis| axis / 2);
    assert_eq!(height, width);
    let swap_axes = |table: &Array2<f32>| {
        let part = |start: usize, end: usize| table.slice_axis(Axis(1), Slice::from(start..end));
        let parts = [part(0, time), part(time + height, time + 2 * height), part(time, time + height)];
        concatenate(Axis(1), &parts).unwrap()
    };
    let swapped = RotaryTables { cos: swap_axes(&right.cos), sin: swap_axes(&right.sin) };
    let expected = reference.latent("latents.000");
    let difference = |tables| {
        relative_difference(first_step(&exported.model, &case, &reference, tables).view(), expected.view())
    };
    assert!(difference(right) <= LATENT_BOUND);
    assert!(difference(swapped) > LATENT_BOUND);
}

/// Decodes a latent without the pipeline. The cache named by `dropped` is replaced by zeros before each call.
fn decode(model: &Model, latent: &Array4<f32>, dropped: Option<&str>) -> Array4<f32> {
    let contract = Signature::of_decoder(&model.manifest().vae);
    let mut first = open(model, &Component::Decoder, Part::First, &contract);
    let mut next = open(model, &Component::Decoder, Part::Next, &contract);
    let mut caches: Vec<(String, Value)> = Vec::new();
    let mut chunks = Vec::new();
    for index in 0..latent.len_of(Axis(1)) {
        let frame = latent.slice_axis(Axis(1), Slice::from(index..=index)).insert_axis(Axis(0));
        let frame = Value::from_f32(frame.to_owned());
        let mut inputs = vec![("latent", &frame)];
        inputs.extend(caches.iter().map(|(name, cache)| (name.as_str(), cache)));
        let engine = if index == 0 { &mut first } else { &mut next };
        let mut outputs = engine.run(&inputs, &Cancel::new()).unwrap();
        let frames: Array4<f32> =
            outputs.take("frames").unwrap().to_f32().unwrap().into_dimensionality().unwrap();
        chunks.push(runtime::decode::pictures(frames.view()));
        caches = outputs
            .into_iter()
            .map(|(name, value)| {
                let name = name.replace(CACHE_OUTPUT, CACHE_INPUT);
                let is_dropped = dropped == Some(name.as_str());
                let value = if is_dropped { Value::from_f32(ArrayD::zeros(value.shape())) } else { value };
                (name, value)
            })
            .collect();
    }
    let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
    concatenate(Axis(0), &views).unwrap()
}

#[test]
fn any_dropped_cache_is_detected() {
    let case = case("five-latent-frames");
    let reference = case.reference();
    let exported = export(&case.checkpoint()).unwrap();
    let latent = reference.latent(&format!("latents.{:03}", case.steps - 1));
    let expected = reference.latent("frames");
    let difference = |dropped: Option<&str>| {
        largest_difference(decode(&exported.model, &latent, dropped).view(), expected.view())
    };
    assert!(difference(None) <= FRAME_BOUND);
    let contract = Signature::of_decoder(&exported.model.manifest().vae);
    let next = open(&exported.model, &Component::Decoder, Part::Next, &contract);
    let caches: Vec<String> = next
        .signature()
        .inputs
        .iter()
        .filter(|input| input.name.starts_with(CACHE_INPUT))
        .map(|input| input.name.clone())
        .collect();
    assert!(caches.len() >= 20, "{} caches", caches.len());
    for cache in &caches {
        assert!(difference(Some(cache)) > FRAME_BOUND, "the dropped {cache} is not detected");
    }
}
