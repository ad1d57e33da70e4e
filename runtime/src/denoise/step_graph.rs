//! Runs one step of a clip on the graph of an expert.

use super::conditioning::{Conditioning, FrameLevels, ImageConditioning, model_input};
use super::denoising::{StepOutputs, StepRequest};
use super::policy::PassAction;
use super::rope::RotaryTables;
use super::text_input::TextInput;
use super::token_rows::{TokenRows, token_rows};
use crate::Error;
use crate::model::{Model, take_array};
use bundle::geometry::{LatentShape, Patch};
use bundle::manifest::{Component, Part};
use bundle::signature::ROWS_INPUT;
use bundle::spec::DenoiserSpec;
use bundle::units::Timestep;
use bundle::variant::KernelLibrary;
use engines::{Cancel, Engine, Value};
use ndarray::{Array1, Array4, Array5, ArrayView4, Axis, stack};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Up to this many tokens, both guidance passes run as one batch of two, which costs less than two calls. Above it a
/// batch needs more memory and saves no time.
pub const BATCHED_TOKENS_MAX: usize = 2048;

/// How the two guidance passes of a step run. It decides bits: a batch of two rounds differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuidanceForm {
    /// One call with a batch of two.
    OneCall,
    /// Two calls.
    TwoCalls,
}

bundle::named!(GuidanceForm, "one call" => OneCall, "two calls" => TwoCalls);

impl GuidanceForm {
    /// The form for latents of this many tokens.
    pub fn of_tokens(tokens: usize) -> Self {
        if tokens > BATCHED_TOKENS_MAX { Self::TwoCalls } else { Self::OneCall }
    }
}

/// An open expert.
#[derive(Debug)]
pub(super) struct OpenExpert {
    pub(super) engine: Engine,
    /// The kernels of its graph, which decide the text inputs.
    pub(super) kernels: KernelLibrary,
}

/// The inputs that are the same for all steps of a clip.
#[derive(Debug)]
pub struct StepInputs {
    /// The text inputs for each kernel library that an expert uses.
    texts: BTreeMap<KernelLibrary, GuidanceTexts>,
    rotary: Rotary,
    image: Option<ImageConditioning>,
    levels: FrameLevels,
    shape: LatentShape,
}

/// Rotary tables as graph inputs.
#[derive(Debug)]
struct Rotary {
    cos: Value,
    sin: Value,
}

impl Rotary {
    fn new(spec: &DenoiserSpec, shape: LatentShape) -> Self {
        let RotaryTables { cos, sin } = RotaryTables::new(spec, shape);
        Self { cos: Value::from_f32(cos), sin: Value::from_f32(sin) }
    }
}

/// The text inputs of the guidance passes.
#[derive(Debug)]
struct GuidanceTexts {
    prompt: TextInput,
    negative: Option<NegativePass>,
}

/// The second guidance pass.
#[derive(Debug)]
enum NegativePass {
    /// In one batch with the first pass: text states of the prompt and the negative prompt.
    Batched(TextInput),
    /// After the first pass: text states of the negative prompt.
    Separate(TextInput),
}

impl StepInputs {
    /// Prepares the inputs of latents of `shape`.
    ///
    /// # Errors
    /// The bundle lacks an expert, or the conditioning does not fit the model.
    pub fn new(model: &Model, shape: LatentShape, conditioning: &Conditioning) -> Result<Self, Error> {
        let manifest = model.manifest();
        let Conditioning { text, image, levels } = conditioning;
        let (prompt, negative) = (&*text.prompt, text.negative.as_deref());
        let width = manifest.denoiser.text_width;
        for states in std::iter::once(prompt).chain(negative) {
            let given = states.rows().ncols();
            if given != width {
                return Err(Error::TextWidth { given, expected: width });
            }
        }
        let form = GuidanceForm::of_tokens(shape.tokens(manifest.denoiser.patch));
        let mut texts = BTreeMap::new();
        for route in manifest.routing.routes() {
            let kernels = model.graph(&Component::Expert(route.expert.clone()), Part::Whole)?.variant.kernels;
            let negative = negative.map(|negative| match form {
                GuidanceForm::TwoCalls => NegativePass::Separate(TextInput::new(kernels, &[negative])),
                GuidanceForm::OneCall => NegativePass::Batched(TextInput::new(kernels, &[prompt, negative])),
            });
            texts.insert(kernels, GuidanceTexts { prompt: TextInput::new(kernels, &[prompt]), negative });
        }
        let rotary = Rotary::new(&manifest.denoiser, shape);
        Ok(Self { texts, rotary, image: image.clone(), levels: *levels, shape })
    }

    /// The text inputs for an expert.
    fn texts(&self, expert: &OpenExpert) -> &GuidanceTexts {
        self.texts
            .get(&expert.kernels)
            .unwrap_or_else(|| unreachable!("every expert is in the routing, and `new` adds its kernels"))
    }

    /// Runs an expert on one token, with the text of the clip.
    pub(super) fn warm_up(
        &self,
        expert: &mut OpenExpert,
        spec: &DenoiserSpec,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let Patch { time, height, width } = spec.patch;
        let shape = LatentShape { channels: spec.in_channels, frames: time, height, width };
        let texts = self.texts(expert);
        let (text, batch) = match &texts.negative {
            Some(NegativePass::Batched(both)) => (both, 2),
            _ => (&texts.prompt, 1),
        };
        let latent = Value::from_f32(Array5::zeros((batch, shape.channels, time, height, width)));
        let timesteps = StepTimesteps::new(&token_rows(&vec![Timestep(0.0); time], shape, spec.patch)?);
        run(&mut expert.engine, &latent, text, &timesteps, &Rotary::new(spec, shape), cancel).map(drop)
    }

    /// Computes the velocities that a step requests at a latent `[C,T,h,w]`.
    ///
    /// # Errors
    /// The expert fails, the run is cancelled, or the conditioning lacks what the step requests.
    pub(super) fn velocities(
        &self,
        expert: &mut OpenExpert,
        spec: &DenoiserSpec,
        latent: ArrayView4<'_, f32>,
        request: &StepRequest,
        cancel: &Cancel,
    ) -> Result<StepOutputs, Error> {
        let GuidanceTexts { prompt, negative } = self.texts(expert);
        let input = model_input(latent, self.image.as_ref(), spec.in_channels)?;
        let levels = self.levels.timesteps(request.timestep, self.shape.frames);
        let timesteps = StepTimesteps::new(&token_rows(&levels, self.shape, spec.patch)?);
        let mut run = |latent: &Value, text: &TextInput| {
            run(&mut expert.engine, latent, text, &timesteps, &self.rotary, cancel)
        };
        let pick = |batch: &Array5<f32>, index: usize| batch.index_axis(Axis(0), index).to_owned();
        let single = |input: Array4<f32>| Value::from_f32(input.insert_axis(Axis(0)));
        let is_guided = request.passes.unconditional == PassAction::Compute;
        let (conditional, unconditional) = match negative {
            _ if !is_guided => (pick(&run(&single(input), prompt)?, 0), None),
            None => return Err(Error::NoNegative { step: request.step + 1 }),
            Some(NegativePass::Batched(both)) => {
                let pair = stack(Axis(0), &[input.view(), input.view()])
                    .unwrap_or_else(|_| unreachable!("both have the same shape"));
                let velocities = run(&Value::from_f32(pair), both)?;
                (pick(&velocities, 0), Some(pick(&velocities, 1)))
            }
            Some(NegativePass::Separate(negative)) => {
                let input = single(input);
                (pick(&run(&input, prompt)?, 0), Some(pick(&run(&input, negative)?, 0)))
            }
        };
        Ok(StepOutputs { conditional, unconditional })
    }
}

/// The timesteps of a step as graph inputs: the distinct ones `[R]`, and the row of each token `[M]`.
struct StepTimesteps {
    timesteps: Value,
    rows: Value,
    /// The number of distinct timesteps, R.
    count: usize,
}

impl StepTimesteps {
    fn new(rows: &TokenRows) -> Self {
        let timesteps: Array1<f32> = rows.timesteps.iter().map(|timestep| timestep.0).collect();
        Self {
            count: timesteps.len(),
            timesteps: Value::from_f32(timesteps),
            rows: Value::from_i64(Array1::from(rows.rows.clone())),
        }
    }
}

/// Runs an expert: the velocities `[B,C,T,h,w]` at a batch of latents.
fn run(
    engine: &mut Engine,
    latent: &Value,
    text: &TextInput,
    timesteps: &StepTimesteps,
    rotary: &Rotary,
    cancel: &Cancel,
) -> Result<Array5<f32>, Error> {
    let mut inputs = vec![
        ("latent", latent),
        ("timestep", &timesteps.timesteps),
        ("cos", &rotary.cos),
        ("sin", &rotary.sin),
    ];
    // Graphs of earlier exports take one timestep for all tokens.
    if engine.signature().takes_rows() {
        inputs.push((ROWS_INPUT, &timesteps.rows));
    } else if timesteps.count > 1 {
        return Err(Error::FrameLevels);
    }
    inputs.extend(text.named());
    take_array(&mut engine.run(&inputs, cancel)?, "velocity")
}
