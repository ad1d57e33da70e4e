//! Writes one quantised variant of a component: weights, graphs, and its entries for `bundle.json`.

use super::file::NewFile;
use super::source::BundleWeights;
use super::values::{Planned, plan};
use crate::Error;
use crate::model::{Chunk, GraphWeights, integer_decoder_graph, step_graph, text_encoder_graph};
use crate::weights::{ExternalTensor, PlacedWeights};
use bundle::dtype::{Dialect, Precision};
use bundle::layout;
use bundle::manifest::{Bundle, Component, ComponentEntry, GraphEntry, Part, Variant, WeightFile};
use bundle::quantization::{ComponentNumerics, Scheme};
use bundle::units::ByteCount;
use graph::Model;
use std::path::{Path, PathBuf};

/// Writes the weights and graphs of a variant of `entry` and puts them into it; what the entry had under the same
/// precision is removed. `bundle.json` is the caller's to write.
///
/// A component of which nothing is quantised runs on its own weights.
///
/// # Errors
/// Weights that cannot be read, a file that cannot be written, a graph that cannot be built.
pub fn write_variant(
    bundle: &Bundle,
    entry: &mut ComponentEntry,
    scheme: Scheme,
    numerics: &ComponentNumerics,
    note: Option<String>,
) -> Result<(), Error> {
    let precision = scheme.precision();
    let stale = remove_entries(bundle, entry, precision);
    if numerics.layers.is_empty() {
        let base = Precision::from(entry.weight_type);
        let shared: Vec<GraphEntry> = entry
            .graphs
            .iter()
            .filter(|graph| graph.precision == base && graph.dialect == Dialect::Cpu)
            .map(|graph| GraphEntry { precision, ..graph.clone() })
            .collect();
        entry.graphs.extend(shared);
        entry.variants.push(Variant {
            precision,
            weights: Vec::new(),
            quantized: 0,
            kept: numerics.kept.len(),
            note,
        });
        remove_files(&stale);
        return Ok(());
    }
    let source = BundleWeights::open(bundle, entry)?;
    let digest = numerics.fingerprint();
    let component = &entry.component;
    let name = format!("{}/{precision}.{}.safetensors", layout::WEIGHTS, digest.short());
    let (placed, bytes) = write_weights(&source, numerics, &name)?;
    let folder = layout::component_folder(component);
    let mut graphs = Vec::new();
    for (part, model) in build(bundle, numerics, &placed)? {
        let file = layout::graph_file(component, part, Dialect::Cpu, precision, &digest);
        model.write(&bundle.folder.join(&file))?;
        graphs.push(GraphEntry { part, dialect: Dialect::Cpu, precision, file });
    }
    let weights = vec![WeightFile { file: format!("{folder}/{name}"), bytes: ByteCount(bytes as u64) }];
    let kept_files: Vec<PathBuf> = graphs
        .iter()
        .map(|graph| bundle.path(&graph.file))
        .chain(weights.iter().map(|file| bundle.path(&file.file)))
        .collect();
    entry.graphs.extend(graphs);
    entry.variants.push(Variant {
        precision,
        weights,
        quantized: numerics.layers.len(),
        kept: numerics.kept.len(),
        note,
    });
    remove_files(&stale.into_iter().filter(|path| !kept_files.contains(path)).collect::<Vec<_>>());
    Ok(())
}

/// Takes the entries of a precision out; gives the files that nothing names any more.
fn remove_entries(bundle: &Bundle, entry: &mut ComponentEntry, precision: Precision) -> Vec<PathBuf> {
    let (stale, graphs): (Vec<_>, Vec<_>) =
        std::mem::take(&mut entry.graphs).into_iter().partition(|graph| graph.precision == precision);
    entry.graphs = graphs;
    let (variants, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut entry.variants).into_iter().partition(|variant| variant.precision == precision);
    entry.variants = others;
    let shared = |file: &String| entry.graphs.iter().any(|graph| graph.file == *file);
    let graphs = stale.into_iter().map(|graph| graph.file).filter(|file| !shared(file));
    let weights = variants.into_iter().flat_map(|variant| variant.weights).map(|weights| weights.file);
    graphs.chain(weights).map(|file| bundle.path(&file)).collect()
}

/// A file that stays behind wastes room and harms nothing.
fn remove_files(paths: &[PathBuf]) {
    for path in paths {
        let _ = std::fs::remove_file(path);
    }
}

/// Writes the weights and says where each lies.
fn write_weights(
    source: &BundleWeights,
    numerics: &ComponentNumerics,
    name: &str,
) -> Result<(PlacedWeights, usize), Error> {
    let planned = plan(source, numerics)?;
    let path = source.folder.join(name);
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = write_file(source, numerics, &planned, &part).and_then(|written| {
        std::fs::rename(&part, &path).map(|()| written).map_err(Error::file("write", &path))
    });
    let (offsets, bytes) = match written {
        Ok(written) => written,
        Err(error) => {
            // The first error is the one worth telling; a leftover that cannot be removed is seen by its name.
            let _ = std::fs::remove_file(&part);
            return Err(error);
        }
    };
    let tensors = planned
        .into_iter()
        .zip(offsets)
        .map(|(Planned { stored, .. }, offset)| {
            let length = stored.bytes() as u64;
            let external = ExternalTensor {
                location: name.to_owned(),
                offset: offset as u64,
                length,
                element: stored.element,
                shape: stored.shape,
            };
            (stored.name, external)
        })
        .collect();
    Ok((PlacedWeights { tensors, files: Vec::new(), from: source.folder.clone() }, bytes))
}

fn write_file(
    source: &BundleWeights,
    numerics: &ComponentNumerics,
    planned: &[Planned],
    path: &Path,
) -> Result<(Vec<usize>, usize), Error> {
    let stored: Vec<_> = planned.iter().map(|planned| planned.stored.clone()).collect();
    let file = NewFile::create(path, &stored)?;
    for (index, planned) in planned.iter().enumerate() {
        file.write(path, index, &planned.bytes(source, numerics)?)?;
    }
    let (offsets, bytes) = (file.offsets.clone(), file.bytes);
    file.finish(path)?;
    Ok((offsets, bytes))
}

/// The graphs of a component over quantised weights.
fn build(
    bundle: &Bundle,
    numerics: &ComponentNumerics,
    placed: &PlacedWeights,
) -> Result<Vec<(Part, Model)>, Error> {
    let manifest = &bundle.manifest;
    let weights = GraphWeights::quantized(placed, numerics);
    Ok(match &numerics.component {
        Component::TextEncoder => {
            vec![(Part::Whole, text_encoder_graph(&manifest.text_encoder, weights)?)]
        }
        Component::Expert(_) => vec![(Part::Whole, step_graph(&manifest.denoiser, weights)?)],
        Component::Decoder => [(Part::First, Chunk::First), (Part::Next, Chunk::Next)]
            .into_iter()
            .map(|(part, chunk)| Ok((part, integer_decoder_graph(&manifest.vae, chunk, weights)?)))
            .collect::<Result<_, Error>>()?,
        Component::Preview => Vec::new(),
    })
}
