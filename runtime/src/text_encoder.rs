//! Prompt to text states: the first part of the pipeline.

use crate::Error;
use crate::model::Model;
use bundle::manifest::{Component, Part};
use bundle::signature::Signature;
use bundle::spec::TEXT_ROWS;
use engines::{Cancel, Engine, Value};
use ndarray::{Array2, s};
use prompt::{Cut, PromptTokenizer};

/// The text conditioning of one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct TextStates {
    /// `[512,D]`: one row per token, then zeros. The denoiser attends to all rows.
    pub rows: Array2<f32>,
    /// Number of rows that are tokens, including the closing `</s>`.
    pub tokens: usize,
    /// Where the prompt was truncated, if it had more than 512 tokens.
    pub cut: Option<Cut>,
}

/// The tokenizer and text encoder of a model.
///
/// # Examples
/// ```no_run
/// # fn encode(model: &runtime::model::Model) -> Result<(), runtime::Error> {
/// use engines::Cancel;
/// use runtime::text_encoder::TextEncoder;
///
/// let mut encoder = TextEncoder::open(model)?;
/// let states = encoder.encode("a red ball bounces on the beach", &Cancel::new())?;
/// println!("{} tokens, states {:?}", states.tokens, states.rows.shape());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TextEncoder {
    tokenizer: PromptTokenizer,
    engine: Engine,
    width: usize,
}

impl TextEncoder {
    /// Opens the tokenizer and the graph.
    ///
    /// # Errors
    /// The tokenizer or graph cannot be opened, or the tokenizer has more tokens than the graph.
    pub fn open(model: &Model) -> Result<Self, Error> {
        let spec = &model.manifest().text_encoder;
        let tokenizer = model.measure_opening(|| PromptTokenizer::open(&model.bundle().tokenizer()))?;
        if tokenizer.vocabulary() > spec.vocabulary {
            return Err(Error::Vocabulary { tokenizer: tokenizer.vocabulary(), encoder: spec.vocabulary });
        }
        let engine = model.engine(&Component::TextEncoder, Part::Whole, &Signature::of_text_encoder(spec))?;
        Ok(Self { tokenizer, engine, width: spec.width })
    }

    /// Encodes a prompt, or the empty text.
    ///
    /// # Errors
    /// The run fails or is cancelled.
    pub fn encode(&mut self, text: &str, cancel: &Cancel) -> Result<TextStates, Error> {
        let prompt = self.tokenizer.encode(&prompt::clean(text))?;
        let tokens = prompt.ids.len();
        let ids = Array2::from_shape_vec((1, tokens), prompt.ids)
            .unwrap_or_else(|_| unreachable!("one row of as many ids"));
        let mut outputs = self.engine.run(&[("ids", &Value::from_i64(ids))], cancel)?;
        let states = outputs.take("states")?;
        let states = states.view_f32()?;
        let mut rows = Array2::zeros((TEXT_ROWS, self.width));
        rows.slice_mut(s![..tokens, ..]).assign(&states.slice(s![0, .., ..]));
        Ok(TextStates { rows, tokens, cut: prompt.cut })
    }
}
