//! Makes a bundle from graphs without weights and a checkpoint that has their weights.
//!
//! Graphs contain the file and the offset of every weight, as it was when they were exported. The files of the
//! checkpoint may be cut otherwise, so each graph is written again with the places that the weights have there.

use crate::bindings;
use crate::checkpoint::names::Family;
use crate::checkpoint::shards::Shards;
use crate::checkpoint::{UNUSED_BY_DECODER, UNUSED_BY_TEXT_ENCODER, tiny_decoder};
use crate::digests::{self, Known};
use crate::weights::scan::{Scan, Verify, scan};
use crate::weights::{COPY_LIMIT, Destination, PlacedWeights, Transfer, linked};
use crate::{Error, ExportEvent, ExportReport, preview_map};
use bundle::graph_set::{Binding, GraphSet};
use bundle::layout;
use bundle::manifest::{self, Component, ComponentEntry, Manifest};
use bundle::staging::Staging;
use bundle::stop::Stop;
use bundle::units::ByteCount;
use graph::{ExternalData, Model};
use std::path::{Path, PathBuf};

/// A request to attach graphs to a checkpoint.
///
/// ```no_run
/// use export::{AttachRequest, attach};
///
/// let request = AttachRequest::new("a14b-graphs".as_ref(), "Wan2.2-T2V-A14B-Diffusers".as_ref(), "a14b".as_ref());
/// let report = attach(&request, &mut |event| println!("{event:?}"))?;
/// println!("{} of weights are linked, {} are written", report.linked, report.written);
/// # Ok::<(), export::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// A folder with `graphs.json`, see [`ExportRequest::graphs_only`](crate::ExportRequest::graphs_only).
    pub graphs: PathBuf,
    /// A folder in the diffusers layout. Only its weights are read.
    pub checkpoint: PathBuf,
    /// The folder to create; it must not exist or be empty.
    pub out: PathBuf,
    /// True to read every byte of the weights; false to read a sample of each.
    pub verify: bool,
    /// The file of the tiny decoder, if it is not in the checkpoint.
    pub tiny_decoder: Option<PathBuf>,
    /// True to copy weights even if they can be linked, without a size limit.
    pub copy: bool,
    /// Stops the work.
    pub stop: Stop,
}

impl AttachRequest {
    /// Creates a request that compares samples of the weights.
    pub fn new(graphs: &Path, checkpoint: &Path, out: &Path) -> Self {
        Self {
            graphs: graphs.to_owned(),
            checkpoint: checkpoint.to_owned(),
            out: out.to_owned(),
            verify: false,
            tiny_decoder: None,
            copy: false,
            stop: Stop::new(),
        }
    }
}

/// Makes a bundle from graphs and the weights that they were made for. The folder has its name only once it is
/// complete; an attach that fails or is stopped leaves nothing.
///
/// # Errors
/// Returns an error if the graphs are damaged, if the checkpoint does not have exactly their weights, if the folder is
/// taken, being written by another run or not writable, or if a stop was requested.
pub fn attach(request: &AttachRequest, on_event: &mut dyn FnMut(ExportEvent)) -> Result<ExportReport, Error> {
    let set = GraphSet::read(&request.graphs)?;
    for (file, digest) in &set.manifest.digests {
        digests::check_whole(&request.graphs.join(file), digest)?;
    }
    let staging = Staging::create(&request.out)?;
    let folder = staging.folder();
    let attaching = Attaching { request, set: &set, folder: &folder };
    let (manifest, linked, written) = attaching.run(on_event)?;
    manifest::write(&folder, &manifest)?;
    request.stop.check()?;
    staging.publish(layout::MANIFEST)?;
    Ok(ExportReport { folder: request.out.clone(), manifest, linked, written })
}

struct Attaching<'a> {
    request: &'a AttachRequest,
    set: &'a GraphSet,
    /// The folder to fill.
    folder: &'a Path,
}

impl Attaching<'_> {
    /// Returns the manifest, and the bytes of weights that were linked and written.
    fn run(&self, on_event: &mut dyn FnMut(ExportEvent)) -> Result<(Manifest, ByteCount, ByteCount), Error> {
        let stop = &self.request.stop;
        let mut all = Vec::with_capacity(self.set.bindings.len());
        for binding in &self.set.bindings {
            all.push((binding, self.open(&binding.component)?));
        }
        // What is soon known comes first: other weights, then refused links.
        for (binding, shards) in &all {
            let bytes = shards.files().iter().map(|file| ByteCount(file.bytes())).sum();
            if !self.request.verify {
                on_event(ExportEvent::Sampling { component: binding.component.clone(), bytes });
            }
            self.check(binding, shards, None)?;
        }
        let mut placed = Vec::with_capacity(all.len());
        for (binding, shards) in &all {
            placed.push(linked::place(shards, self.destination(&binding.component))?);
        }
        let mut manifest = self.set.manifest.clone();
        let (mut known, mut linked, mut written) = (Known::new(), ByteCount(0), ByteCount(0));
        for ((binding, shards), (entry, placed)) in
            all.iter().zip(manifest.components.iter_mut().zip(&placed))
        {
            let scanned = self.scan(binding, shards, on_event)?;
            on_event(ExportEvent::Writing { component: binding.component.clone() });
            self.write_graphs(entry, placed)?;
            for (index, file) in placed.files.iter().enumerate() {
                let path = self.folder.join(&file.file);
                let whole = match &scanned {
                    Some(scanned) => scanned.files.get(index).cloned(),
                    None => known_file(binding, &path)?,
                };
                known.insert(file.file.clone(), whole);
                if linked::is_linked(&path)? {
                    linked = linked + file.bytes;
                } else {
                    written = written + file.bytes;
                }
            }
            entry.weights.clone_from(&placed.files);
            stop.check()?;
        }
        let tokenizer = self.folder.join(layout::TOKENIZER);
        std::fs::copy(self.request.graphs.join(layout::TOKENIZER), &tokenizer)
            .map_err(Error::file("write", &tokenizer))?;
        preview_map::copy(&self.request.graphs, self.folder)?;
        // Graphs were written again.
        manifest.digests.retain(|file, _| file == layout::TOKENIZER);
        digests::complete(self.folder, &mut manifest, &known)?;
        all.iter().try_for_each(|(_, shards)| shards.check_unchanged())?;
        Ok((manifest, linked, written))
    }

    /// Opens the weights of a component in the checkpoint.
    fn open(&self, component: &Component) -> Result<Shards, Error> {
        let checkpoint = &self.request.checkpoint;
        let open = |part: &str, family| Shards::open(&checkpoint.join(part), family);
        match component {
            Component::TextEncoder => open("text_encoder", Family::TextEncoder),
            Component::Expert(name) => {
                let mut routes = self.set.manifest.routing.routes().iter();
                let is_first = routes.next().is_some_and(|route| route.expert == *name);
                open(if is_first { "transformer" } else { "transformer_2" }, Family::Denoiser)
            }
            Component::Decoder => {
                let residual_blocks = self.set.manifest.vae.residual_blocks;
                open("vae", Family::Vae { residual_blocks })
            }
            Component::Preview => {
                let found = self.request.tiny_decoder.clone().or_else(|| tiny_decoder::find(checkpoint));
                let missing = || Error::NoTinyDecoder { checkpoint: checkpoint.clone() };
                Shards::open_file(&found.ok_or_else(missing)?, Family::TinyDecoder)
            }
            Component::ImageEncoder => {
                Err(bundle::Error::NoComponent { component: component.to_string(), available: Vec::new() }
                    .into())
            }
        }
    }

    /// Compares the weights of a component with its binding.
    fn check(&self, binding: &Binding, shards: &Shards, scan: Option<&Scan>) -> Result<(), Error> {
        let unused: &[&str] = match binding.component {
            Component::TextEncoder => &UNUSED_BY_TEXT_ENCODER,
            Component::Decoder => &UNUSED_BY_DECODER,
            Component::Preview => &tiny_decoder::UNUSED,
            Component::Expert(_) | Component::ImageEncoder => &[],
        };
        let differences = bindings::compare(binding, shards, unused, scan, &self.request.stop)?;
        if differences.is_empty() {
            return Ok(());
        }
        let (component, folder) = (binding.component.clone(), shards.folder().to_owned());
        Err(Error::OtherWeights { component, folder, differences: Box::new(differences) })
    }

    /// Reads every byte of a component if that was requested, and compares it.
    fn scan(
        &self,
        binding: &Binding,
        shards: &Shards,
        on_event: &mut dyn FnMut(ExportEvent),
    ) -> Result<Option<Scan>, Error> {
        if !self.request.verify {
            return Ok(None);
        }
        let bytes = shards.files().iter().map(|file| ByteCount(file.bytes())).sum();
        on_event(ExportEvent::Reading { component: binding.component.clone(), bytes, converts: false });
        let scanned = scan(shards, Verify::Whole, &self.request.stop)?;
        self.check(binding, shards, Some(&scanned))?;
        Ok(Some(scanned))
    }

    fn destination<'a>(&'a self, component: &'a Component) -> Destination<'a> {
        let transfer = match self.request.copy {
            true => Transfer::Copy,
            false => Transfer::Link { copy_limit: Some(COPY_LIMIT) },
        };
        Destination { bundle: self.folder, component, transfer, stop: Some(&self.request.stop) }
    }

    /// Writes the graphs of a component with the places of its weights.
    fn write_graphs(&self, entry: &ComponentEntry, placed: &PlacedWeights) -> Result<(), Error> {
        for graph in &entry.graphs {
            let path = self.request.graphs.join(&graph.file);
            let mut model = Model::read(&path)?;
            model.place_weights(|name, before| {
                let unbound =
                    || bundle::Error::damaged(&path, format!("it reads {name}, which `bindings` lacks"));
                let tensor = placed.tensors.get(name).ok_or_else(unbound)?;
                if tensor.length != before.length {
                    let why = format!(
                        "{name} has {} bytes in it and {} in the files",
                        before.length, tensor.length
                    );
                    return Err(bundle::Error::damaged(&path, why).into());
                }
                let location = tensor.location.clone();
                Ok::<_, Error>(ExternalData { location, offset: tensor.offset, length: tensor.length })
            })?;
            model.write(&self.folder.join(&graph.file))?;
        }
        Ok(())
    }
}

/// The digest over every byte of a file that is one of those that the graphs were made from: it has the name, the
/// length and the sampled digest of that.
fn known_file(binding: &Binding, path: &Path) -> Result<Option<String>, Error> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(known) = binding.files.get(name) else { return Ok(None) };
    let io = || Error::file("read", path);
    let file = std::fs::File::open(path).map_err(io())?;
    let bytes = file.metadata().map_err(io())?.len();
    if bytes != known.bytes.0 {
        return Ok(None);
    }
    let sampled = bundle::file_digest::sampled(&file, bytes).map_err(io())?;
    Ok(known.whole.clone().filter(|_| sampled == known.sampled))
}
