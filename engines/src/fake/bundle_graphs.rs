//! The graphs of a bundle.

use super::backend::FakeBackend;
use super::graph::{FakeGraph, InputShapes};
use bundle::dtype::ElementType;
use bundle::manifest::{Bundle, Component, GraphEntry, Manifest, Part};
use bundle::signature::{CACHE_INPUT, CACHE_OUTPUT, Extent, Signature, TensorSpec};
use bundle::variant::KernelLibrary;

impl FakeBackend {
    /// Adds every graph of a bundle that Rushes runs, named by its path relative to the bundle, so that the outputs do
    /// not depend on the folder. `with` gives each its memory and latencies. Files of graphs are not read.
    ///
    /// # Examples
    /// ```no_run
    /// use bundle::manifest::Bundle;
    /// use bundle::units::ByteCount;
    /// use engines::Device;
    /// use engines::fake::FakeBackend;
    ///
    /// let bundle = Bundle::read("mini.bundle".as_ref())?;
    /// let fake = FakeBackend::with_deviation(0.2, 7);
    /// fake.add_device(Device::CPU, ByteCount(8 << 30));
    /// fake.add_bundle(&bundle, |_component, _entry, graph| {
    ///     graph.with_memory(ByteCount(1 << 30), ByteCount(1 << 20))
    /// });
    /// # Ok::<(), bundle::Error>(())
    /// ```
    pub fn add_bundle(
        &self,
        bundle: &Bundle,
        mut with: impl FnMut(&Component, &GraphEntry, FakeGraph) -> FakeGraph,
    ) {
        for entry in &bundle.manifest.components {
            for graph in &entry.graphs {
                if let Some(fake) = graph_of(&bundle.manifest, &entry.component, graph) {
                    self.add_graph(bundle.path(&graph.file), with(&entry.component, graph, fake));
                }
            }
        }
    }
}

/// The graph of a manifest's entry; `None` for a component that Rushes does not run.
fn graph_of(manifest: &Manifest, component: &Component, entry: &GraphEntry) -> Option<FakeGraph> {
    let name = &*entry.file;
    match component {
        Component::ImageEncoder => None,
        Component::TextEncoder => {
            Some(FakeGraph::new(name, Signature::of_text_encoder(&manifest.text_encoder)))
        }
        Component::Expert(_) => Some(FakeGraph::new(
            name,
            match entry.variant.kernels {
                KernelLibrary::OnnxRuntime => Signature::of_step(&manifest.denoiser),
                KernelLibrary::Rushes => Signature::of_step_with_key_bias(&manifest.denoiser),
            },
        )),
        Component::Decoder | Component::Preview => Some(decoder(manifest, entry.part, name)),
    }
}

/// A graph of a decoder, with two caches.
fn decoder(manifest: &Manifest, part: Part, name: &str) -> FakeGraph {
    let vae = &manifest.vae;
    let mut signature = match part {
        Part::Whole | Part::First | Part::Next => Signature::of_decoder(vae),
        Part::TrunkFirst | Part::TrunkNext => Signature::of_decoder_trunk(vae),
        Part::UpsamplerFirst | Part::UpsamplerNext => Signature::of_decoder_upsampler(vae),
    };
    let is_first = matches!(part, Part::Whole | Part::First | Part::TrunkFirst | Part::UpsamplerFirst);
    // One cache at the resolution of the latent, one at twice that resolution.
    let (h, w) = (Extent::Dynamic("h".into()), Extent::Dynamic("w".into()));
    let (double_h, double_w) = (Extent::Dynamic("2h".into()), Extent::Dynamic("2w".into()));
    let caches = [
        vec![Extent::Fixed(1), Extent::Fixed(vae.latent_channels), h, w],
        vec![Extent::Fixed(2), Extent::Fixed(3), double_h, double_w],
    ];
    for (number, shape) in caches.into_iter().enumerate() {
        let cache = |prefix| TensorSpec {
            name: format!("{prefix}{number:02}"),
            element: ElementType::F32,
            shape: shape.clone(),
        };
        if !is_first {
            signature.inputs.push(cache(CACHE_INPUT));
        }
        signature.outputs.push(cache(CACHE_OUTPUT));
    }
    let (time, space) = (vae.stride().time, vae.stride().space);
    let frames = if is_first { 1 } else { time };
    let scaled =
        move |inputs: &InputShapes<'_>, scale: usize| ["h", "w"].map(|side| inputs.extent(side) * scale);
    let graph = FakeGraph::new(name, signature).with_shape("next_cache.01", move |inputs| {
        let [height, width] = scaled(inputs, 2);
        vec![2, 3, height, width]
    });
    graph.with_shape("frames", move |inputs| {
        let [height, width] = scaled(inputs, space);
        vec![frames, 3, height, width]
    })
}
