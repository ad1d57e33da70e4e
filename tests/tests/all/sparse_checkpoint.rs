//! A checkpoint of the size of Wan2.2-T2V-A14B, in both layouts, is exported by links or in bf16, in little memory and
//! little disk space, and its graphs find every weight.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::{ElementType, WeightType};
use bundle::layout::component_folder;
use bundle::manifest::{Bundle, Component, ComponentEntry};
use bundle::settings::Origin;
use bundle::units::{ByteCount, Seed};
use bundle::variant::{KernelLibrary, Precision, Target, Variant};
use engines::memory::resident_anonymous;
use engines::{
    Backend, Device, GraphSource, OnnxRuntime, OpenOptions, Placement, PlacementRequest, WeightMemory,
};
use export::checkpoint::Checkpoint;
use export::checkpoint::inventory;
use export::weights::number_format::{narrow, widen};
use export::{AttachRequest, ExportRequest, export};
use graph::Model;
use graph::proto::TensorProto;
use ndarray::aview1;
use runtime::memory_plan::{MemoryPlan, MemoryRequest};
use runtime::plan::{GenerateRequest, GenerationPlan};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tests::compare::relative_difference;
use tests::sparse::Layout;
use tests::{own_process, sparse, two_blocks};

/// The largest anonymous memory of an export.
const MEMORY: u64 = 500_000_000;
/// The most disk space that a converted bundle takes.
const DISK: u64 = 1_000_000_000;
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

/// The marker of a weight in a bundle, of `length` bytes there. Converted weights were stored in f32, and are in bf16.
fn placed_marker(component: &Component, name: &str, length: usize, is_converted: bool) -> Vec<u8> {
    if !is_converted {
        return sparse::marker(component, name, length);
    }
    let stored = sparse::marker(component, name, 2 * length);
    let mut values = vec![0.0; stored.len() / 4];
    widen(ElementType::F32, &stored, &mut values);
    let mut bytes = vec![0; stored.len() / 2];
    narrow(ElementType::Bf16, &values, &mut bytes);
    bytes
}

/// Checks that every graph of a component finds the markers of its weights. Returns the names of the weights, and the
/// largest offset.
fn find_weights(bundle: &Bundle, entry: &ComponentEntry) -> (BTreeSet<String>, u64) {
    let folder = bundle.path(&component_folder(&entry.component));
    let is_converted = entry.weights.iter().any(|file| file.file.ends_with("/bf16.safetensors"));
    let mut found = BTreeSet::new();
    let mut furthest = 0;
    for file in &entry.graphs {
        let model = Model::read(&bundle.path(&file.file)).unwrap();
        let weights = model.proto.graph.as_ref().unwrap().initializer.iter();
        for weight in weights.filter(|weight| !weight.external_data.is_empty()) {
            let [offset, length] =
                ["offset", "length"].map(|key| location(weight, key).parse::<u64>().unwrap());
            let data = File::open(folder.join(location(weight, "location"))).unwrap();
            let bytes = usize::try_from(length).unwrap();
            let marker = placed_marker(&entry.component, &weight.name, bytes, is_converted);
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

/// Returns true in a process of its own, if files can have holes.
fn entered(test: &str) -> bool {
    if !sparse::has_holes(&std::env::temp_dir()) {
        eprintln!("skipped: temporary files cannot have holes");
        return false;
    }
    own_process::entered(&format!("sparse_checkpoint::{test}"))
}

/// The disk space of the files in a folder that are not links.
fn allocated(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| match entry.metadata().unwrap() {
            found if found.is_dir() => allocated(&entry.path()),
            found if found.nlink() > 1 => 0,
            found => found.blocks() * 512,
        })
        .sum()
}

#[test]
fn a14b_is_converted_in_little_memory_and_disk_space() {
    if !entered("a14b_is_converted_in_little_memory_and_disk_space") {
        return;
    }
    let mut digests = Vec::new();
    for layout in Layout::ALL {
        let folder = tempfile::tempdir().unwrap();
        let request = ExportRequest {
            targets: vec![Target::Plain],
            verify: false,
            ..sparse::request(folder.path(), layout)
        };
        let checkpoint = Checkpoint::open(&request.checkpoint).unwrap();
        let stored: Vec<usize> =
            checkpoint.sources.iter().map(|source| source.shards.tensors().count()).collect();
        assert_eq!(stored, [242, 1095, 1095, 194], "{layout:?}");
        let (report, peak) = measured(|| export(&request, &mut |_| ()).unwrap());
        assert!(peak < MEMORY, "{layout:?}: {peak} bytes");
        let disk = allocated(&report.folder);
        assert!(disk < DISK, "{layout:?}: {disk} bytes");
        println!("{layout:?}: {peak} bytes of memory, {disk} bytes on disk, {} written", report.written);
        assert!(report.written.0 > 57_000_000_000, "{}", report.written);

        let bundle = Bundle::open(&report.folder).unwrap();
        assert_eq!(bundle.manifest.model, "Wan2.2-T2V-A14B");
        assert_eq!(bundle.manifest.defaults.shift.from, Origin::Catalogue, "{layout:?}");
        for entry in &bundle.manifest.components {
            assert_eq!(entry.weight_type, WeightType::Bf16, "{}", entry.component);
            let required = match &entry.component {
                Component::TextEncoder => inventory::text_encoder(&bundle.manifest.text_encoder),
                Component::Expert(_) => inventory::denoiser(&bundle.manifest.denoiser),
                _ => inventory::decoder(&bundle.manifest.vae),
            };
            let (found, _) = find_weights(&bundle, entry);
            let required: BTreeSet<String> = required.into_iter().map(|weight| weight.name).collect();
            assert_eq!(found, required, "{layout:?}: {}", entry.component);
        }
        let of_layout: Vec<String> =
            bundle.manifest.components.iter().map(|entry| entry.digest.blake3.clone()).collect();
        let different: BTreeSet<&String> = of_layout.iter().collect();
        assert_eq!(different.len(), 4, "{layout:?}");
        digests.push(of_layout);
    }
    // The same weights.
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn two_blocks_of_a14b_run_on_the_cpu() {
    if !entered("two_blocks_of_a14b_run_on_the_cpu") {
        return;
    }
    let onnx = OnnxRuntime::load(None).unwrap();
    let options = OpenOptions::cpu(NonZeroUsize::new(2), WeightMemory::Mapped);
    let mut results = Vec::new();
    for layout in Layout::ALL {
        let folder = tempfile::tempdir().unwrap();
        let bundle = two_blocks::exported(folder.path(), layout, Target::Plain);
        let manifest = &bundle.manifest;
        assert_eq!((manifest.denoiser.layers, manifest.text_encoder.layers), (2, 2));
        assert_eq!((manifest.denoiser.width(), manifest.model.as_str()), (5120, "Wan2.2-T2V-A14B, 2 layers"));
        let found = two_blocks::velocities(&bundle, Target::Cpu, &onnx, &options);
        assert_eq!(found.len(), 2);
        let values = found.iter().flatten();
        assert!(values.clone().all(|value| value.is_finite()) && values.clone().any(|value| *value != 0.0));
        assert_ne!(found[0], found[1], "the experts have other weights");
        let plain = two_blocks::velocities(&bundle, Target::Plain, &onnx, &options);
        for (found, plain) in found.iter().zip(&plain) {
            let difference = relative_difference(aview1(found).into_dyn(), aview1(plain).into_dyn());
            assert!(difference < 1e-4, "{layout:?}: {difference}");
        }
        let digests: Vec<String> =
            manifest.components.iter().map(|entry| entry.digest.blake3.clone()).collect();
        results.push((found, digests));
        if layout == Layout::Official {
            let out = folder.path().join("whole");
            let checkpoint = folder.path().join(layout.name());
            let request = ExportRequest { verify: false, ..ExportRequest::new(&checkpoint, &out) };
            let whole = export(&request, &mut |_| ()).unwrap();
            for (entry, uncut) in manifest.components.iter().zip(&whole.manifest.components) {
                let is_decoder = entry.component == Component::Decoder;
                assert_eq!(entry.digest == uncut.digest, is_decoder, "{}", entry.component);
            }
        }
    }
    assert_eq!(results[0], results[1]);
}

#[test]
fn a14b_is_linked_in_little_memory_and_its_graphs_find_every_weight() {
    if !entered("a14b_is_linked_in_little_memory_and_its_graphs_find_every_weight") {
        return;
    }
    Layout::ALL.into_iter().for_each(is_linked);
}

fn is_linked(layout: Layout) {
    let folder = tempfile::tempdir().unwrap();
    let request = sparse::request(folder.path(), layout);
    let (report, peak) = measured(|| export(&request, &mut |_| ()).unwrap());
    assert!(peak < MEMORY, "{peak} bytes");
    assert_eq!(report.written, ByteCount(0));
    assert!(report.linked.0 > 126_000_000_000, "{}", report.linked);

    let bundle = Bundle::open(&report.folder).unwrap();
    let manifest = &bundle.manifest;
    assert_eq!(manifest.defaults.steps.from, Origin::Catalogue, "{:?}", manifest.defaults.notes);
    assert_eq!(manifest.exported_precision(), Precision::F32);
    for entry in &manifest.components {
        let (required, weights) = match &entry.component {
            Component::TextEncoder => (inventory::text_encoder(&manifest.text_encoder), WeightType::Bf16),
            Component::Expert(_) => (inventory::denoiser(&manifest.denoiser), WeightType::F32),
            _ => (inventory::decoder(&manifest.vae), WeightType::F32),
        };
        let files = layout.files(&entry.component);
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

#[test]
fn a14b_graphs_without_weights_are_small_and_become_the_exported_bundle() {
    const NAME: &str =
        "sparse_checkpoint::a14b_graphs_without_weights_are_small_and_become_the_exported_bundle";
    if !sparse::has_holes(&std::env::temp_dir()) {
        eprintln!("skipped: temporary files cannot have holes");
        return;
    }
    if !own_process::entered(NAME) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = sparse::write_a14b(folder.path(), Layout::Diffusers);
    let [graphs, out] = ["graphs", "attached"].map(|name| folder.path().join(name));
    let request = ExportRequest { graphs_only: true, ..ExportRequest::new(&checkpoint, &graphs) };
    let (report, peak) = measured(|| export(&request, &mut |_| ()).unwrap());
    assert!(peak < MEMORY, "{peak} bytes");
    let digests: BTreeSet<&String> =
        report.manifest.components.iter().map(|entry| &entry.digest.blake3).collect();
    assert_eq!(digests.len(), 4, "the experts differ");
    let tokenizer = report.manifest.digests[bundle::layout::TOKENIZER].bytes;
    let bindings = fs::metadata(graphs.join(bundle::layout::GRAPHS)).unwrap().len();
    let of_graphs: ByteCount = report.manifest.digests.values().map(|digest| digest.bytes).sum();
    println!("{} of graphs, {} of bindings", ByteCount(of_graphs.0 - tokenizer.0), ByteCount(bindings));
    assert!(of_graphs.0 - tokenizer.0 + bindings < 4_000_000, "{of_graphs} and {bindings} bytes");

    let request = AttachRequest::new(&graphs, &checkpoint, &out);
    let (report, peak) = measured(|| export::attach(&request, &mut |_| ()).unwrap());
    assert!(peak < MEMORY, "{peak} bytes");
    assert_eq!(report.written, ByteCount(0));
    let bundle = Bundle::open(&out).unwrap();
    let runtime = OnnxRuntime::load(None).unwrap();
    for entry in &bundle.manifest.components {
        let (found, _) = find_weights(&bundle, entry);
        assert!(found.len() > 100, "{}", entry.component);
        for file in &entry.weights {
            assert!(bundle.manifest.digests[&file.file].whole.is_some(), "{}", file.file);
        }
        for graph in &entry.graphs {
            let path = bundle.path(&graph.file);
            let options = OpenOptions::cpu(None, WeightMemory::Mapped);
            Backend::open(&runtime, GraphSource::File(&path), &options).map(drop).unwrap();
        }
    }
    // Another expert in the place of one.
    let [high, low] = ["transformer", "transformer_2"].map(|part| checkpoint.join(part));
    fs::remove_dir_all(&high).unwrap();
    fs::rename(&low, &high).unwrap();
    std::os::unix::fs::symlink(&high, &low).unwrap();
    let request = AttachRequest::new(&graphs, &checkpoint, &folder.path().join("other"));
    let error = export::attach(&request, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("the high_noise expert") && error.contains("1095 different"), "{error}");
    assert!(!folder.path().join("other").exists());
}
