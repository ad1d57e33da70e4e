//! Mapped bf16 weights of linear layers are used in place: results are those of f32 weights of the same values, up to
//! the order of the sums, and do not depend on the number of threads.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, Component};
use engines::{OnnxRuntime, WeightMemory};
use export::ExportRequest;
use graph::Model as Graph;
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::seeded_noise;
use runtime::plan::GenerationPlan;
use std::num::NonZeroUsize;
use std::path::Path;
use tests::golden::{self, Computed};

/// A case in bf16.
const CASE: &str = "official-names";

fn export(folder: &Path, weights: Option<WeightType>) -> Bundle {
    let checkpoint = golden::case(CASE).checkpoint();
    let request = ExportRequest { weights, ..ExportRequest::new(&checkpoint, folder) };
    export::export(&request, &mut |_| ()).unwrap();
    Bundle::open(folder).unwrap()
}

fn clip(bundle: &Bundle, weights: WeightMemory, threads: usize) -> Computed {
    let options = ModelOptions { weights, threads: NonZeroUsize::new(threads), ..ModelOptions::default() };
    let model = Model::new(bundle.clone(), OnnxRuntime::load(None).unwrap(), options).unwrap();
    let case = golden::case(CASE);
    let plan = GenerationPlan::new(model.manifest(), &case.request()).unwrap();
    golden::compute(&model, &case, seeded_noise(&plan)).unwrap()
}

/// The largest difference of two lists, by the largest value.
fn difference<'a>(
    found: impl IntoIterator<Item = &'a f32>,
    expected: impl IntoIterator<Item = &'a f32>,
) -> f32 {
    let pairs = found.into_iter().zip(expected);
    let (error, largest) = pairs.fold((0.0_f32, 0.0_f32), |(error, largest), (found, expected)| {
        (error.max((found - expected).abs()), largest.max(expected.abs()))
    });
    assert!(largest > 0.0);
    error / largest
}

#[test]
fn clips_of_mapped_bf16_weights_are_those_of_f32_weights() {
    let folder = tempfile::tempdir().unwrap();
    let narrow = export(&folder.path().join("narrow"), None);
    let wide = export(&folder.path().join("wide"), Some(WeightType::F32));
    for entry in &narrow.manifest.components {
        assert_eq!(entry.weight_type, WeightType::Bf16);
        let mut graph = Graph::read(&narrow.path(&entry.graphs[0].file)).unwrap();
        let layers = graph.use_weights_in_place();
        let spec = &narrow.manifest;
        let least = match entry.component {
            Component::TextEncoder => 7 * spec.text_encoder.layers,
            Component::Expert(_) => 10 * spec.denoiser.layers + 6,
            _ => 0,
        };
        assert!(layers >= least, "{}: {layers}", entry.component);
    }
    let expected = clip(&wide, WeightMemory::Prepacked, 2);
    let found = clip(&narrow, WeightMemory::Mapped, 2);
    assert!(difference(&found.prompt, &expected.prompt) < 1e-5);
    for (row, expected) in found.prompt.rows().into_iter().zip(expected.prompt.rows()) {
        let dot = |a: &ndarray::ArrayView1<'_, f32>, b: &ndarray::ArrayView1<'_, f32>| f64::from(a.dot(b));
        let cosine = dot(&row, &expected) / (dot(&row, &row) * dot(&expected, &expected)).sqrt();
        assert!(cosine.is_nan() || cosine > 0.999_999, "{cosine}");
    }
    for (found, expected) in found.latents.iter().zip(&expected.latents) {
        assert!(difference(found, expected) < 1e-4);
    }
    assert!(difference(&found.frames, &expected.frames) < 1e-3);
    let alone = clip(&narrow, WeightMemory::Mapped, 1);
    assert!(alone.prompt == found.prompt && alone.latents.last() == found.latents.last());
}
