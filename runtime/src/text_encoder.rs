//! Prompt to text states: the first part of the pipeline.

use crate::Error;
use crate::footprint::text_encoder_need;
use crate::model::{GraphUse, Model, check_shape};
use crate::text_store::TextKey;
use bundle::layout;
use bundle::manifest::{Component, Part};
use bundle::signature::Signature;
use bundle::spec::TEXT_ROWS;
use engines::sessions::Lease;
use engines::{Cancel, Value, WeightMemory};
use ndarray::{Array2, s};
use prompt::{Cut, PromptTokenizer};
use std::num::NonZeroUsize;

/// The text conditioning of one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct TextStates {
    rows: Array2<f32>,
    tokens: usize,
    cut: Option<Cut>,
}

impl TextStates {
    /// Creates text states from `rows [512,D]`: one row for each of `tokens` tokens, then zeros. `cut` is where the
    /// prompt was truncated.
    ///
    /// # Errors
    /// The number of rows is not 512, or a row after the tokens is not zero.
    pub fn try_new(rows: Array2<f32>, tokens: usize, cut: Option<Cut>) -> Result<Self, Error> {
        let is_padding = |row: usize| rows.row(row).iter().all(|value| *value == 0.0);
        if rows.nrows() != TEXT_ROWS || tokens > TEXT_ROWS || !(tokens..TEXT_ROWS).all(is_padding) {
            return Err(Error::TextStates { rows: rows.nrows(), tokens });
        }
        Ok(Self { rows, tokens, cut })
    }

    /// `[512,D]`: one row per token, then zeros. The denoiser attends to all rows.
    pub fn rows(&self) -> &Array2<f32> {
        &self.rows
    }

    /// Number of rows that are tokens, including the closing `</s>`.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Where the prompt was truncated, if it had more than 512 tokens.
    pub fn cut(&self) -> Option<&Cut> {
        self.cut.as_ref()
    }
}

/// The tokenizer and text encoder of a model.
///
/// # Examples
/// ```no_run
/// # fn encode(model: &runtime::model::Model) -> Result<(), runtime::Error> {
/// use engines::Cancel;
/// use runtime::text_encoder::TextEncoder;
///
/// let encoder = TextEncoder::open(model)?;
/// let states = encoder.encode("a red ball bounces on the beach", &Cancel::new())?;
/// println!("{} tokens, states {:?}", states.tokens(), states.rows().shape());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: PromptTokenizer,
    model: Model,
}

impl TextEncoder {
    /// Opens the tokenizer. The graph is opened when it is first needed.
    ///
    /// # Errors
    /// The tokenizer cannot be opened, or has more tokens than the graph.
    pub fn open(model: &Model) -> Result<Self, Error> {
        let spec = &model.manifest().text_encoder;
        let tokenizer = model.measure_opening(|| PromptTokenizer::open(&model.bundle().tokenizer()))?;
        if tokenizer.vocabulary() > spec.vocabulary {
            return Err(Error::Vocabulary { tokenizer: tokenizer.vocabulary(), encoder: spec.vocabulary });
        }
        Ok(Self { tokenizer, model: model.clone() })
    }

    /// Opens the graph of a model, unless it is open.
    ///
    /// # Errors
    /// The graph cannot be opened, or `cancel` is requested.
    pub fn prepare(model: &Model, cancel: &Cancel) -> Result<(), Error> {
        lend(model, cancel).map(drop)
    }

    /// Encodes a prompt, or the empty text.
    ///
    /// # Errors
    /// The graph cannot be opened, the run fails or is cancelled.
    pub fn encode(&self, text: &str, cancel: &Cancel) -> Result<TextStates, Error> {
        let prompt = self.tokenizer.encode(&prompt::clean(text))?;
        let tokens = prompt.ids.len();
        let ids = Array2::from_shape_vec((1, tokens), prompt.ids)
            .unwrap_or_else(|_| unreachable!("one row of as many ids"));
        let mut encoder = lend(&self.model, cancel)?;
        let mut outputs = encoder.run(&[("ids", &Value::from_i64(ids))], cancel)?;
        let states = outputs.take("states")?.to_f32()?;
        let width = self.model.manifest().text_encoder.width;
        check_shape("states", states.shape(), &[1, tokens, width])?;
        let mut rows = Array2::zeros((TEXT_ROWS, width));
        rows.slice_mut(s![..tokens, ..]).assign(&states.slice(s![0, .., ..]));
        TextStates::try_new(rows, tokens, prompt.cut)
    }
}

/// Returns true if the store of a model has the states of a text.
///
/// # Errors
/// The bundle has no text encoder that the model can run.
pub fn is_stored(model: &Model, text: &str) -> Result<bool, Error> {
    let Some(store) = model.text_store() else { return Ok(false) };
    Ok(store.has(&key(model, text)?))
}

/// The states of a text from the store of a model, if it has one and they are there.
///
/// # Errors
/// The bundle has no text encoder that the model can run.
pub(crate) fn stored(model: &Model, text: &str) -> Result<Option<TextStates>, Error> {
    let Some(store) = model.text_store() else { return Ok(None) };
    let Some(states) = store.get(&key(model, text)?) else { return Ok(None) };
    let (tokens, width) = states.dim();
    if tokens > TEXT_ROWS || width != model.manifest().text_encoder.width {
        return Ok(None);
    }
    let mut rows = Array2::zeros((TEXT_ROWS, width));
    rows.slice_mut(s![..tokens, ..]).assign(&states);
    TextStates::try_new(rows, tokens, None).map(Some)
}

/// Keeps the states of a text in the store of a model, if it has one. Texts that were truncated are left out: whoever
/// uses their states is told where.
///
/// # Errors
/// The bundle has no text encoder that the model can run.
pub(crate) fn store(model: &Model, text: &str, states: &TextStates) -> Result<(), Error> {
    let Some(store) = model.text_store().filter(|_| states.cut.is_none()) else { return Ok(()) };
    store.insert(&key(model, text)?, states.rows.slice(s![..states.tokens, ..]));
    Ok(())
}

/// What decides the bits of the states of a text: the text as the tokenizer gets it, the tokenizer, graph and weights,
/// and what runs the graph.
fn key(model: &Model, text: &str) -> Result<TextKey, Error> {
    let (manifest, component) = (model.manifest(), Component::TextEncoder);
    let entry = manifest.component(&component)?;
    let device = model.placement().device_of(&component);
    let graph = model.graph_on(device, &component, Part::Whole)?;
    let quantised = entry.variant(graph.variant).map(|variant| &variant.weights);
    let weights = quantised.unwrap_or(&entry.weights).iter().map(|weights| &*weights.file);
    let files = [layout::TOKENIZER, &*graph.file].into_iter().chain(weights);
    let digest = |file: &str| manifest.digests.get(file).map_or("", |digest| &*digest.sampled).to_owned();
    let (backend, cpu) = (model.sessions().backend(), engines::cpu::Cpu::detect());
    let (info, options) = (backend.info(), model.engine_options());
    let mut parts = vec![
        env!("CARGO_PKG_VERSION").to_owned(),
        entry.digest.blake3.clone(),
        device.to_string(),
        info.version,
        info.cpu_path.name().to_owned(),
        cpu.full_name(),
        options.threads.map_or(cpu.threads, NonZeroUsize::get).to_string(),
        (options.weights == WeightMemory::Mapped).to_string(),
    ];
    if let Some(facts) = backend.facts(device) {
        parts.extend([facts.name, facts.architecture, facts.version.unwrap_or_default()]);
    }
    parts.extend(files.flat_map(|file| [file.to_owned(), digest(file)]));
    parts.push(prompt::clean(text));
    Ok(TextKey::of(parts.iter().map(String::as_bytes)))
}

/// Borrows the session of a model's text encoder.
fn lend(model: &Model, cancel: &Cancel) -> Result<Lease, Error> {
    let manifest = model.manifest();
    let contract = Signature::of_text_encoder(&manifest.text_encoder);
    // For the longest prompt, so that the next prompt needs no more.
    let need = text_encoder_need(manifest, model.session_settings(&Component::TextEncoder)?, TEXT_ROWS);
    let component = &Component::TextEncoder;
    model.lend(&GraphUse { component, part: Part::Whole, contract: &contract, need, shape: None }, cancel)
}
