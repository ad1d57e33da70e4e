//! Plans of Wan2.2-T2V-A14B on several devices.

use super::*;
use crate::plan::{GenerateRequest, Length};
use bundle::Diagnose;
use bundle::ErrorClass;
use bundle::catalog::{umt5_xxl, wan_denoiser, wan21_vae};
use bundle::digest::Digest;
use bundle::dtype::WeightType;
use bundle::geometry::PixelSize;
use bundle::manifest::{ComponentEntry, FORMAT, QuantizedVariant, WeightFile};
use bundle::routing::{ExpertName, Routing};
use bundle::settings::Defaults;
use bundle::units::{Seed, Timestep};
use bundle::variant::{KernelLibrary, Precision};
use engines::PlacementRequest;
use engines::placement::name_of;
use engines::residency::{MemoryNeed, Role};
use proptest::prelude::*;

/// A component in bf16 with graphs for every target. `megabytes` is the size of its weights.
fn entry(component: Component, megabytes: u64) -> ComponentEntry {
    let parts: &[Part] = match component {
        Component::Decoder => &[
            Part::First,
            Part::Next,
            Part::TrunkFirst,
            Part::UpsamplerFirst,
            Part::TrunkNext,
            Part::UpsamplerNext,
        ],
        _ => &[Part::Whole],
    };
    let graph = |(target, part): (Target, Part)| GraphEntry {
        part,
        variant: Variant { target, precision: Precision::Bf16, kernels: KernelLibrary::OnnxRuntime },
        file: format!("{component}/{target}.onnx"),
        batch_invariant: None,
    };
    let graphs = Target::ALL.into_iter().flat_map(|target| parts.iter().map(move |part| (target, *part)));
    ComponentEntry {
        graphs: graphs.map(graph).collect(),
        weights: vec![WeightFile {
            file: format!("{component}.safetensors"),
            bytes: ByteCount(megabytes * 1_000_000),
        }],
        weight_type: WeightType::Bf16,
        digest: Digest::of_parts([]),
        variants: Vec::new(),
        loras: Vec::new(),
        component,
    }
}

/// Wan2.2-T2V-A14B in bf16, with the sizes of its published weights.
pub(crate) fn a14b() -> Manifest {
    let expert = |name: &str| entry(Component::Expert(ExpertName(name.into())), 28_580);
    Manifest {
        format: FORMAT,
        rushes: "0.0.0".into(),
        model: "Wan2.2-T2V-A14B".into(),
        text_encoder: umt5_xxl(),
        denoiser: wan_denoiser(40, 40, 13_824),
        vae: wan21_vae(),
        tiny_decoder: None,
        routing: Routing::pair(Timestep(875.0)).unwrap(),
        defaults: Defaults::resolve(&[], 2).unwrap(),
        components: vec![
            entry(Component::TextEncoder, 11_360),
            expert("high_noise"),
            expert("low_noise"),
            entry(Component::Decoder, 147),
        ],
        digests: BTreeMap::new(),
    }
}

/// 81 frames of 832x480.
fn clip(manifest: &Manifest) -> GenerationPlan {
    clip_of(manifest, 832, 480)
}

/// 81 frames of a size.
pub(crate) fn clip_of(manifest: &Manifest, width: usize, height: usize) -> GenerationPlan {
    let request = GenerateRequest {
        size: Some(PixelSize { width, height }),
        length: Some(Length::Frames(81)),
        ..GenerateRequest::new("a fox", Seed(1))
    };
    GenerationPlan::new(manifest, &request).unwrap()
}

pub(crate) fn request(manifest: &Manifest, default: &str, place: &str, budgets: &str) -> MemoryRequest {
    let placed: PlacementRequest =
        if place.is_empty() { PlacementRequest::default() } else { place.parse().unwrap() };
    let placement = Placement::new(manifest, default.parse().unwrap(), &placed).unwrap();
    let options = ModelOptions::default();
    let request = MemoryRequest::placed(manifest, placement, CpuPath::Scalar, &options).unwrap();
    MemoryRequest { budgets: budgets.parse().unwrap(), ..request }
}

fn plan(default: &str, place: &str, budgets: &str) -> Result<MemoryPlan, Error> {
    let manifest = a14b();
    MemoryPlan::new(&manifest, &clip(&manifest), &request(&manifest, default, place, budgets))
}

/// The same with FP8 graphs, in which experts have 85 % of their weights in 8 bits: the other blocks are in bf16.
pub(crate) fn a14b_with_fp8() -> Manifest {
    let mut manifest = a14b();
    for entry in &mut manifest.components {
        let variant = |graph: &GraphEntry| Variant { precision: Precision::Fp8, ..graph.variant };
        let fp8: Vec<GraphEntry> = entry
            .graphs
            .iter()
            .filter(|graph| graph.variant.target != Target::Cuda)
            .map(|graph| GraphEntry { variant: variant(graph), ..graph.clone() })
            .collect();
        entry.graphs.extend(fp8);
        let is_expert = matches!(entry.component, Component::Expert(_));
        let weights = WeightFile { file: "fp8.safetensors".into(), bytes: ByteCount(16_430_000_000) };
        entry.variants.push(QuantizedVariant {
            precision: Precision::Fp8,
            kernels: KernelLibrary::OnnxRuntime,
            targets: Vec::new(),
            weights: if is_expert { vec![weights] } else { Vec::new() },
            quantized: 340,
            kept: 60,
            note: None,
        });
    }
    manifest
}

/// The plan of 81 frames of 1280x720 on one device.
fn plan_720p(precision: Precision, place: &str, budget: &str) -> Result<MemoryPlan, Error> {
    let manifest = a14b_with_fp8();
    let device = if precision == Precision::Fp8 { "tensorrt" } else { "cuda" };
    let base = request(&manifest, device, place, budget);
    let options = ModelOptions { precision: Some(precision), ..ModelOptions::default() };
    let variants = MemoryRequest::placed(&manifest, base.placement.clone(), CpuPath::Scalar, &options);
    let request = MemoryRequest { budgets: base.budgets, ..variants.unwrap() };
    MemoryPlan::new(&manifest, &clip_of(&manifest, 1280, 720), &request)
}

/// Which sessions are open while each component runs on a device.
fn open(plan: &MemoryPlan, device: usize) -> Vec<String> {
    let names = |open: &[Role]| {
        let name = |role: &Role| match role {
            Role::Clip(component) => name_of(component).to_owned(),
            Role::Previews => "previews".to_owned(),
        };
        open.iter().map(name).collect::<Vec<_>>().join(" ")
    };
    plan.devices[device].phases.iter().map(|phase| names(&phase.open)).collect()
}

const EVERYTHING: &str = "text_encoder high_noise low_noise decoder";

#[test]
fn at_720p_a14b_stays_open_in_141_gibibytes() {
    let plan = plan_720p(Precision::Bf16, "", "141GiB").unwrap();
    assert!(plan.devices[0].all_stay_open, "{plan:?}");
    assert_eq!((plan.tile, &plan.proposal), (None, &None));
    assert_eq!(open(&plan, 0).last().unwrap(), EVERYTHING);
}

#[test]
fn at_720p_80_gibibytes_keep_both_experts_in_bf16_and_drop_the_text_encoder() {
    let plan = plan_720p(Precision::Bf16, "", "80GiB").unwrap();
    let device = &plan.devices[0];
    assert!(device.experts_stay_open && !device.all_stay_open, "{device:?}");
    assert_eq!(plan.proposal, None);
    assert_eq!(open(&plan, 0)[3], "high_noise low_noise decoder", "{device:?}");
}

#[test]
fn at_720p_48_gibibytes_keep_both_experts_in_fp8_or_one_in_bf16() {
    let fp8 = plan_720p(Precision::Fp8, "", "48GiB").unwrap();
    assert_eq!(open(&fp8, 0)[2], "high_noise low_noise", "{fp8:?}");
    let bf16 = plan_720p(Precision::Bf16, "", "48GiB").unwrap();
    let opened = open(&bf16, 0);
    assert!(opened[1].ends_with("high_noise") && !opened[2].contains("high_noise"), "{opened:?}");
    assert!(!bf16.devices[0].experts_stay_open);
}

#[test]
fn at_720p_24_gibibytes_take_one_expert_in_fp8_tiles_and_the_text_encoder_on_the_cpu() {
    let budgets = "24GiB,cpu=64GB";
    let plan = plan_720p(Precision::Fp8, "", budgets).unwrap();
    let proposed = plan.proposal.clone().unwrap();
    assert_eq!(proposed.place.to_string(), "text_encoder=cpu");
    let placed = plan_720p(Precision::Fp8, "text_encoder=cpu", budgets).unwrap();
    assert_eq!(placed.proposal, None);
    assert_eq!(placed.devices[0].peak, proposed.needed);
    assert!(placed.tile.is_some(), "{placed:?}");
    assert_eq!(open(&placed, 1), ["high_noise", "low_noise", "decoder"]);
    // In bf16 an expert alone is too large.
    let error = plan_720p(Precision::Bf16, "", budgets).unwrap_err();
    assert_eq!(error.report().class, ErrorClass::DoesNotFit);
}

/// The placement with an expert on each of two devices.
const TWO_DEVICES: &str = "high=cuda:0,low=cuda:1,decoder=cuda:1,text_encoder=cpu";

/// Names of the devices on which all sessions stay open, and of the others.
fn open_and_not(plan: &MemoryPlan) -> [Vec<String>; 2] {
    [true, false].map(|open| {
        let devices = plan.devices.iter().filter(|device| device.all_stay_open == open);
        devices.map(|device| device.device.to_string()).collect()
    })
}

#[test]
fn weights_are_f32_on_the_cpu_and_as_stored_elsewhere() {
    let gigabytes = |plan: &MemoryPlan, device: usize, role: usize| {
        plan.devices[device].needs[role].1.weights.0 / 1_000_000_000
    };
    let cpu = plan("cpu", "", "500GB").unwrap();
    assert_eq!(gigabytes(&cpu, 0, 1), 57);
    for provider in ["cuda", "tensorrt"] {
        let device = plan(provider, "", "500GB").unwrap();
        assert_eq!([gigabytes(&device, 0, 0), gigabytes(&device, 0, 1)], [11, 28], "{provider}");
    }
    let mixed = plan("cpu", TWO_DEVICES, "500GB").unwrap();
    assert!((17..=22).contains(&gigabytes(&mixed, 0, 0)), "{mixed:?}");
    assert_eq!(gigabytes(&mixed, 1, 0), 28);
    let roles: Vec<&Role> = mixed.devices[2].needs.iter().map(|(role, _)| role).collect();
    let low = Component::Expert(ExpertName("low_noise".into()));
    assert_eq!(roles, [&Role::Clip(low), &Role::Clip(Component::Decoder)]);
}

#[test]
fn an_expert_per_device_fits_devices_that_cannot_hold_both() {
    // All of it on one device of 141 GB.
    assert_eq!(open_and_not(&plan("cuda", "", "141GB").unwrap()), [vec!["cuda:0".to_owned()], vec![]]);
    // One component at a time.
    assert_eq!(open_and_not(&plan("cuda", "", "48GB").unwrap()), [vec![], vec!["cuda:0".to_owned()]]);
    let all = ["cpu", "cuda:0", "cuda:1"].map(str::to_owned).to_vec();
    for budget in ["80GB", "141GB"] {
        assert_eq!(
            open_and_not(&plan("cpu", TWO_DEVICES, budget).unwrap()),
            [all.clone(), vec![]],
            "{budget}"
        );
    }
    let two = plan("cpu", TWO_DEVICES, "48GB").unwrap();
    assert!(open_and_not(&two)[0].contains(&"cuda:0".to_owned()), "{two:?}");
    assert_eq!(
        two.placement.to_string(),
        "text_encoder=cpu,high_noise=cuda:0,low_noise=cuda:1,decoder=cuda:1"
    );
}

#[test]
fn an_expert_on_two_devices_is_counted_on_both() {
    let pair = plan("cpu", "high=cuda:0+cuda:1,low=cuda:1", "141GB").unwrap();
    let names: Vec<String> = pair.devices.iter().map(|device| device.device.to_string()).collect();
    assert_eq!(names, ["cpu", "cuda:0", "cuda:1"]);
    let experts = |device: usize| {
        let needs = pair.devices[device].needs.iter();
        needs
            .filter(|(role, _)| matches!(role, Role::Clip(Component::Expert(_))))
            .cloned()
            .collect::<Vec<_>>()
    };
    let (first, second) = (experts(1), experts(2));
    assert_eq!((experts(0).len(), first.len(), second.len()), (0, 1, 2));
    // The passes of a large clip are two calls with and without a pair.
    assert_eq!(first[0], second[0]);
    assert_eq!(first[0].1, plan("cpu", "high=cuda:0", "141GB").unwrap().devices[1].needs[0].1);
    assert_eq!(pair.budgets().to_string(), "cpu=141GB,cuda:0=141GB,cuda:1=141GB");

    // The passes of a small clip are one call on one device, and two calls on two.
    let manifest = a14b();
    let small = GenerateRequest {
        size: Some(PixelSize { width: 320, height: 192 }),
        length: Some(Length::Frames(5)),
        ..GenerateRequest::new("a fox", Seed(1))
    };
    let small = GenerationPlan::new(&manifest, &small).unwrap();
    let activations = |place: &str| {
        let request = request(&manifest, "cpu", place, "141GB");
        let plan = MemoryPlan::new(&manifest, &small, &request).unwrap();
        plan.devices.iter().skip(1).map(|device| device.needs[0].1.activations).collect::<Vec<_>>()
    };
    let (one, two) = (activations("high=cuda:0"), activations("high=cuda:0+cuda:1"));
    assert_eq!((one.len(), two.len()), (1, 2));
    assert_eq!(two[0], two[1]);
    assert!(two[0] < one[0], "{two:?} {one:?}");
}

#[test]
fn a_pair_that_does_not_fit_can_be_one_device() {
    let error = plan("cpu", "high=cuda:0+cuda:1", "cpu=200GB,cuda:0=141GB,cuda:1=24GB").unwrap_err();
    let report = error.report();
    assert!(report.what.contains("needed on cuda:1"), "{report}");
    // The expert would be on both devices of its pair, or on the CPU.
    assert!(
        ["use `place` high_noise=cpu, where it fits", "use `place` high_noise=cuda:0, where it fits"]
            .contains(&&*report.fix),
        "{report}"
    );
}

#[test]
fn a_device_that_is_too_small_is_named_with_what_helps() {
    for (default, place) in [("cuda", ""), ("cpu", TWO_DEVICES)] {
        let error = plan(default, place, "cpu=200GB,24GB").unwrap_err();
        let report = error.report();
        assert_eq!(report.class, ErrorClass::DoesNotFit);
        assert!(report.what.contains("needed on cuda:0 and 24.0 GB may be used"), "{report}");
        assert!(report.why.contains("the weights of the") && report.why.contains("28.6 GB"), "{report}");
        assert!(report.fix.contains("raise `memory_budget`"), "{report}");
    }
    // The CPU has room for the one expert that does not fit.
    let error = plan("cpu", "high=cuda:0", "cpu=200GB,cuda:0=24GB").unwrap_err();
    assert_eq!(error.report().fix, "use `place` high_noise=cpu, where it fits");
    // A larger clip would fit without its activations.
    let error = plan("cuda", "", "30GB").unwrap_err();
    assert!(error.report().fix.starts_with("use a smaller `size`"), "{}", error.report());
    let all = MemoryRequest { residency: Residency::All, ..request(&a14b(), "cuda", "", "48GB") };
    let error = MemoryPlan::new(&a14b(), &clip(&a14b()), &all).unwrap_err();
    assert!(error.report().fix.starts_with("use `residency` one, which needs"), "{}", error.report());
}

#[test]
fn a_bundle_without_graphs_for_a_device_is_refused() {
    let mut manifest = a14b();
    manifest.components.iter_mut().for_each(|entry| {
        entry.graphs.retain(|graph| graph.variant.target != Target::Cuda);
    });
    let placement = Placement::new(&manifest, Device::CPU, &"high=cuda".parse().unwrap()).unwrap();
    let refused = MemoryRequest::placed(&manifest, placement, CpuPath::Scalar, &ModelOptions::default());
    insta::assert_snapshot!(refused.unwrap_err(), @"the bundle has no cuda graph of the whole model: it has cpu bf16, plain bf16 (choose one of these with `precision`, or export the checkpoint for that target)");
}

#[test]
fn a_placement_names_components_of_the_bundle() {
    let manifest = a14b();
    let refused = |text: &str| {
        let request = text.parse().unwrap();
        Placement::new(&manifest, Device::CPU, &request).unwrap_err().to_string()
    };
    insta::assert_snapshot!(refused("only=cuda:0"), @"place cannot be `only=cuda:0`: the bundle has no component only; it has text_encoder, high_noise, low_noise, decoder (place components of the bundle)");
    assert!(refused("high=cpu,preview=cpu").contains("no component preview"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_plan_exceeds_the_budget_of_a_device(
        devices in prop::array::uniform4(prop::sample::select(&["cpu", "cuda:0", "cuda:1"][..])),
        seconds in prop::array::uniform2(prop::sample::select(&["", "+cpu", "+cuda:0", "+cuda:1"][..])),
        budgets in prop::array::uniform3(8..160_u64),
        residency in prop::sample::select(&Residency::ALL[..]),
        preview in prop::sample::select(&[PreviewKind::Off, PreviewKind::Full][..]),
    ) {
        let manifest = a14b();
        let [text, high, low, decoder] = devices;
        let paired = |first: &str, second: &'static str| {
            if second.strip_prefix('+') == Some(first) { first.to_owned() } else { format!("{first}{second}") }
        };
        let (high, low) = (paired(high, seconds[0]), paired(low, seconds[1]));
        let place = format!("text_encoder={text},high={high},low={low},decoder={decoder}");
        let budgets = format!("cpu={}GB,cuda:0={}GB,cuda:1={}GB", budgets[0], budgets[1], budgets[2]);
        let request = MemoryRequest { residency, preview, ..request(&manifest, "cpu", &place, &budgets) };
        match MemoryPlan::new(&manifest, &clip(&manifest), &request) {
            Ok(plan) => for device in &plan.devices {
                let budget = request.budgets.of(device.device);
                prop_assert_eq!(device.budget, budget);
                prop_assert!(Some(device.peak) <= budget);
                let sum: MemoryNeed = device.needs.iter().map(|(_, need)| *need).sum();
                prop_assert!(!device.all_stay_open || sum.total() == device.peak);
            },
            Err(Error::Engine(engines::Error::DoesNotFit { device, needed, budget, remedy, .. })) => {
                prop_assert!(needed > budget);
                prop_assert_eq!(request.budgets.of(device), Some(budget));
                // What the message advises fits.
                let advised = match remedy {
                    Remedy::Place(place) => {
                        let text = place.to_string();
                        let (name, to) = text.split_once('=').unwrap();
                        let mut components = manifest.components.iter().map(|entry| &entry.component);
                        let component = components.find(|component| name_of(component) == name);
                        let to = to.parse().unwrap();
                        let (placement, _) =
                            moved(&manifest, &request.placement, component.unwrap(), to).unwrap();
                        Some(MemoryRequest { placement, ..request.clone() })
                    }
                    Remedy::OneAtATime(_) | Remedy::SmallerClip | Remedy::MoreMemory => None,
                };
                if let Some(advised) = advised {
                    prop_assert!(MemoryPlan::new(&manifest, &clip(&manifest), &advised).is_ok());
                }
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
