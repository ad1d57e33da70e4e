//! Runs one step of a clip on the graph of an expert.

use super::conditioning::{Conditioning, FrameLevels, ImageConditioning, model_input};
use super::denoising::{StepOutputs, StepRequest};
use super::rope::RotaryTables;
use super::text_input::TextInput;
use super::token_rows::{TokenRows, token_rows};
use crate::Error;
use crate::footprint::StepShape;
use crate::model::{Model, check_shape, take_array};
use bundle::geometry::{LatentShape, Patch};
use bundle::manifest::{Component, Part};
use bundle::signature::ROWS_INPUT;
use bundle::spec::{DenoiserSpec, TEXT_ROWS};
use bundle::units::Timestep;
use bundle::variant::KernelLibrary;
use engines::sessions::Lease;
use engines::{Cancel, Placement, Value};
use ndarray::{Array1, Array4, Array5, ArrayView4, Axis, stack};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Up to this many tokens, both guidance passes run as one batch of two, which costs less than two calls. Above it a
/// batch needs more memory and saves no time.
pub const BATCHED_TOKENS_MAX: usize = 2048;

/// How the two guidance passes of a step run. It decides bits: a batch of two rounds differently. It is the same for all
/// experts of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuidanceForm {
    /// One call with a batch of two.
    OneCall,
    /// Two calls, one after another or, with an expert on a pair of devices, at the same time.
    TwoCalls,
}

bundle::named!(GuidanceForm, "one call" => OneCall, "two calls" => TwoCalls);

impl GuidanceForm {
    /// The form for latents of this many tokens.
    pub fn of(tokens: usize, placement: &Placement) -> Self {
        let is_separate = tokens > BATCHED_TOKENS_MAX || placement.has_pairs();
        if is_separate { Self::TwoCalls } else { Self::OneCall }
    }

    /// The number of prompts in one call of a step that makes both passes.
    pub fn batch(self) -> usize {
        match self {
            Self::OneCall => 2,
            Self::TwoCalls => 1,
        }
    }
}

/// The session of an expert, on loan for a step.
#[derive(Debug)]
pub(super) struct OpenExpert {
    pub(super) session: Lease,
    /// The kernels of its graph, which decide the text inputs.
    pub(super) kernels: KernelLibrary,
}

/// One of the two guidance passes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// The pass with the prompt.
    Conditional,
    /// The pass with the negative prompt.
    Unconditional,
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
    /// In a call of its own: text states of the negative prompt.
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
        let form = GuidanceForm::of(shape.tokens(manifest.denoiser.patch), model.placement());
        let mut texts = BTreeMap::new();
        for route in manifest.routing.routes() {
            let expert = Component::Expert(route.expert.clone());
            for device in model.placement().devices_of(&expert) {
                let kernels = model.graph_on(device, &expert, Part::Whole)?.variant.kernels;
                let negative = negative.map(|negative| match form {
                    GuidanceForm::TwoCalls => NegativePass::Separate(TextInput::new(kernels, &[negative])),
                    GuidanceForm::OneCall => {
                        NegativePass::Batched(TextInput::new(kernels, &[prompt, negative]))
                    }
                });
                texts.insert(kernels, GuidanceTexts { prompt: TextInput::new(kernels, &[prompt]), negative });
            }
        }
        let rotary = Rotary::new(&manifest.denoiser, shape);
        Ok(Self { texts, rotary, image: image.clone(), levels: *levels, shape })
    }

    /// The sizes of the inputs of one call, with as many rows of text as the longest prompt has: the next clip then needs
    /// no more memory.
    pub(super) fn shape(&self, kernels: KernelLibrary, spec: &DenoiserSpec) -> StepShape {
        let negative = self.texts.get(&kernels).and_then(|texts| texts.negative.as_ref());
        let tokens = self.shape.tokens(spec.patch);
        StepShape {
            tokens,
            batch: if matches!(negative, Some(NegativePass::Batched(_))) { 2 } else { 1 },
            text_rows: TEXT_ROWS,
            timestep_rows: if self.levels == FrameLevels::Equal { 1 } else { tokens },
        }
    }

    /// The shape of the latents.
    pub(super) fn latent(&self) -> LatentShape {
        self.shape
    }

    /// Checks that a guided step has a negative prompt.
    ///
    /// # Errors
    /// The step is guided, and the conditioning has no negative prompt.
    pub(super) fn check_negative(&self, request: &StepRequest) -> Result<(), Error> {
        if request.is_guided && self.texts.values().any(|texts| texts.negative.is_none()) {
            return Err(Error::NoNegative { step: request.step + 1 });
        }
        Ok(())
    }

    /// The text inputs for an expert.
    fn texts(&self, expert: &OpenExpert) -> &GuidanceTexts {
        self.texts
            .get(&expert.kernels)
            .unwrap_or_else(|| unreachable!("`new` adds the kernels of every expert on each of its devices"))
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
        run(&mut expert.session, &latent, text, &timesteps, &Rotary::new(spec, shape), cancel).map(drop)
    }

    /// The inputs of a step at a latent `[C,T,h,w]` that do not depend on the pass, for a call of `batch` passes.
    ///
    /// # Errors
    /// The conditioning does not fit the latent.
    pub(super) fn values(
        &self,
        spec: &DenoiserSpec,
        latent: ArrayView4<'_, f32>,
        request: &StepRequest,
        batch: usize,
    ) -> Result<StepValues, Error> {
        let input = model_input(latent, self.image.as_ref(), spec.in_channels)?;
        let levels = self.levels.timesteps(request.timestep, self.shape.frames);
        let timesteps = StepTimesteps::new(&token_rows(&levels, self.shape, spec.patch)?);
        let latent = match batch {
            1 => input.insert_axis(Axis(0)),
            _ => stack(Axis(0), &vec![input.view(); batch])
                .unwrap_or_else(|_| unreachable!("all have the same shape")),
        };
        Ok(StepValues { latent: Value::from_f32(latent), timesteps })
    }

    /// Computes the velocity `[C,T,h,w]` of one pass, in a call of its own.
    ///
    /// # Errors
    /// The expert fails, or the run is cancelled.
    pub(super) fn velocity(
        &self,
        expert: &mut OpenExpert,
        values: &StepValues,
        pass: Pass,
        cancel: &Cancel,
    ) -> Result<Array4<f32>, Error> {
        let GuidanceTexts { prompt, negative } = self.texts(expert);
        let text = match (pass, negative) {
            (Pass::Conditional, _) => prompt,
            (Pass::Unconditional, Some(NegativePass::Separate(negative))) => negative,
            (Pass::Unconditional, Some(NegativePass::Batched(_)) | None) => {
                unreachable!("the step is guided, and its form is two calls")
            }
        };
        let StepValues { latent, timesteps } = values;
        let velocities = run(&mut expert.session, latent, text, timesteps, &self.rotary, cancel)?;
        Ok(velocities.index_axis_move(Axis(0), 0))
    }

    /// Computes the velocities that a step requests at a latent `[C,T,h,w]`, on one device.
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
        self.check_negative(request)?;
        let is_guided = request.is_guided;
        let values = |batch| self.values(spec, latent, request, batch);
        if let Some(NegativePass::Batched(both)) = &self.texts(expert).negative
            && is_guided
        {
            let StepValues { latent, timesteps } = values(2)?;
            let pair = run(&mut expert.session, &latent, both, &timesteps, &self.rotary, cancel)?;
            let pick = |index: usize| pair.index_axis(Axis(0), index).to_owned();
            return Ok(StepOutputs { conditional: pick(0), unconditional: Some(pick(1)) });
        }
        let values = values(1)?;
        let conditional = self.velocity(expert, &values, Pass::Conditional, cancel)?;
        let unconditional =
            is_guided.then(|| self.velocity(expert, &values, Pass::Unconditional, cancel)).transpose()?;
        Ok(StepOutputs { conditional, unconditional })
    }
}

/// The inputs of a step that do not depend on the pass: latents `[B,C,T,h,w]` and timesteps.
pub(super) struct StepValues {
    latent: Value,
    timesteps: StepTimesteps,
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
    session: &mut Lease,
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
    if session.signature().takes_rows() {
        inputs.push((ROWS_INPUT, &timesteps.rows));
    } else if timesteps.count > 1 {
        return Err(Error::FrameLevels);
    }
    inputs.extend(text.named());
    let velocity: Array5<f32> = take_array(&mut session.run(&inputs, cancel)?, "velocity")?;
    let mut expected = latent.shape().to_vec();
    // The output has no channels for images. Its signature fixes their number.
    expected[1] = velocity.len_of(Axis(1));
    check_shape("velocity", velocity.shape(), &expected)?;
    Ok(velocity)
}
