//! A checkpoint of the size of Wan2.2-T2V-A14B is exported by links, in little memory, and its graphs find every weight.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::layout::component_folder;
use bundle::manifest::{Bundle, Component, ComponentEntry};
use bundle::settings::Origin;
use bundle::units::{ByteCount, Seed};
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use engines::memory::resident_anonymous;
use engines::{Device, Placement, PlacementRequest};
use export::checkpoint::inventory;
use graph::Model;
use graph::proto::TensorProto;
use runtime::memory_plan::{MemoryPlan, MemoryRequest};
use runtime::plan::{GenerateRequest, GenerationPlan};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tests::{own_process, sparse};

/// The largest anonymous memory of an export.
const MEMORY: u64 = 500_000_000;
/// 4 GiB, which an offset of 32 bits does not reach.
const FAR: u64 = 1 << 32;

/// Runs `work` and returns its result with the peak of the process's anonymous memory.
fn measured<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let peak = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(resident_anonymous().unwrap().0);
                std::thread::sleep(Duration::from_millis(2));
            }
            peak
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        (result, peak.join().unwrap())
    })
}

/// A value of a weight's location.
fn location<'a>(weight: &'a TensorProto, key: &str) -> &'a str {
    &weight.external_data.iter().find(|entry| entry.key == key).unwrap().value
}

/// Checks that every graph of a component finds the markers of its weights. Returns the names of the weights, and the
/// largest offset.
fn find_weights(bundle: &Bundle, entry: &ComponentEntry) -> (BTreeSet<String>, u64) {
    let folder = bundle.path(&component_folder(&entry.component));
    let mut found = BTreeSet::new();
    let mut furthest = 0;
    for file in &entry.graphs {
        let model = Model::read(&bundle.path(&file.file)).unwrap();
        let weights = model.proto.graph.as_ref().unwrap().initializer.iter();
        for weight in weights.filter(|weight| !weight.external_data.is_empty()) {
            let [offset, length] =
                ["offset", "length"].map(|key| location(weight, key).parse::<u64>().unwrap());
            let data = File::open(folder.join(location(weight, "location"))).unwrap();
            let marker = sparse::marker(&entry.component, &weight.name, usize::try_from(length).unwrap());
            for at in [offset, offset + length - marker.len() as u64] {
                let mut read = vec![0; marker.len()];
                data.read_exact_at(&mut read, at).unwrap();
                assert!(read == marker, "{}: {} at {at}", file.file, weight.name);
            }
            found.insert(weight.name.clone());
            furthest = furthest.max(offset);
        }
    }
    (found, furthest)
}

#[test]
fn a14b_is_linked_in_little_memory_and_its_graphs_find_every_weight() {
    if !sparse::has_holes(&std::env::temp_dir()) {
        eprintln!("skipped: temporary files cannot have holes");
        return;
    }
    if !own_process::entered(
        "sparse_checkpoint::a14b_is_linked_in_little_memory_and_its_graphs_find_every_weight",
    ) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (report, peak) = measured(|| sparse::export_a14b(folder.path()));
    assert!(peak < MEMORY, "{peak} bytes");
    assert_eq!(report.written, ByteCount(0));
    assert!(report.linked.0 > 126_000_000_000, "{}", report.linked);

    let bundle = Bundle::open(&report.folder).unwrap();
    let manifest = &bundle.manifest;
    assert_eq!(manifest.defaults.steps.from, Origin::Catalogue, "{:?}", manifest.defaults.notes);
    assert_eq!(manifest.exported_precision(), Precision::F32);
    for entry in &manifest.components {
        let (required, weights, files) = match &entry.component {
            Component::TextEncoder => (inventory::text_encoder(&manifest.text_encoder), WeightType::Bf16, 3),
            Component::Expert(_) => (inventory::denoiser(&manifest.denoiser), WeightType::F32, 12),
            _ => (inventory::decoder(&manifest.vae), WeightType::F32, 1),
        };
        assert_eq!((entry.weight_type, entry.weights.len()), (weights, files), "{}", entry.component);
        assert!(entry.digest.whole);
        for file in &entry.weights {
            assert_eq!(fs::metadata(bundle.path(&file.file)).unwrap().nlink(), 2, "{}", file.file);
            assert!(manifest.digests[&file.file].whole.is_some(), "{}", file.file);
        }
        let (found, furthest) = find_weights(&bundle, entry);
        let required: BTreeSet<String> = required.into_iter().map(|weight| weight.name).collect();
        assert_eq!(found, required, "{}", entry.component);
        assert!(furthest > FAR || entry.component == Component::Decoder, "{}: {furthest}", entry.component);
    }
    // Everything else is small.
    let small = manifest.files().into_iter().filter(|file| !file.contains("/weights/"));
    let bytes: u64 = small.map(|file| fs::metadata(bundle.path(file)).unwrap().len()).sum();
    assert!(bytes < 20_000_000, "{bytes} bytes of graphs");

    let plan = GenerationPlan::new(manifest, &GenerateRequest::new("a red fox", Seed(1))).unwrap();
    // Graphs for CUDA are exported in bf16, which would be written. A plan counts what is stored.
    let exported = Variant::cpu(Precision::F32, KernelLibrary::OnnxRuntime);
    let variants = [Target::Cpu, Target::Cuda].map(|target| (target, Variant { target, ..exported }));
    let plan_on = |place: &str, budgets: &str| {
        let placed = place.parse::<PlacementRequest>().unwrap();
        let request = MemoryRequest {
            placement: Placement::new(manifest, Device::CPU, &placed).unwrap(),
            variants: variants.into(),
            budgets: budgets.parse().unwrap(),
            ..MemoryRequest::new(exported)
        };
        MemoryPlan::new(manifest, &plan, &request)
    };
    let place = "high=cuda:0,low=cuda:1,decoder=cuda:1";
    let planned = plan_on(place, "200GB").unwrap();
    let devices: Vec<String> = planned.devices.iter().map(|device| device.device.to_string()).collect();
    assert_eq!(devices, ["cpu", "cuda:0", "cuda:1"]);
    // An expert in f32 on each of two devices.
    for device in &planned.devices[1..] {
        assert!((57_000_000_000..200_000_000_000).contains(&device.peak.0), "{device:?}");
        assert!(device.all_stay_open);
    }
    let error = plan_on(place, "200GB,cuda:1=20GB").unwrap_err().to_string();
    assert!(error.contains("cuda:1"), "{error}");
}
