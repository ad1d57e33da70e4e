//! The settings that errors name.

use serde::{Deserialize, Serialize};

/// A setting that an error is about, or that it advises to change.
///
/// Library texts name a setting by its [`name`](Self::name); a program that has other names for them, such as flags,
/// replaces them with [`Report::with_names`](crate::Report::with_names).
///
/// ```
/// use bundle::Field;
///
/// assert_eq!(Field::NoiseScale.name(), "noise_scale");
/// assert_eq!(serde_json::to_string(&Field::NoiseScale)?, r#""noise_scale""#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Field {
    /// The prompt.
    Prompt,
    /// The job folder that a run goes on from.
    Resume,
    /// The snapshot of a job that a run goes on from.
    ResumeFrom,
    /// The folder that a job is kept in.
    JobFolder,
    /// The number of steps after which a clip ends.
    StopAfter,
    /// Share of fresh noise.
    Variation,
    /// The clip that another one is like.
    Like,
    /// The bundle.
    Bundle,
    /// A clip that was made before.
    Clip,
    /// Number of takes of an audition.
    Seeds,
    /// Steps of a take of an audition.
    StepsOf,
    /// Width and height of the clip.
    Size,
    /// Number of frames.
    Frames,
    /// Length of the clip in seconds.
    Seconds,
    /// Frames per second.
    FrameRate,
    /// Number of denoising steps.
    Steps,
    /// Guidance scales.
    Guidance,
    /// Shift of the sigma grid.
    Shift,
    /// Sampler.
    Sampler,
    /// Sigma schedule.
    Schedule,
    /// Recipe of a few-step model.
    Preset,
    /// List of timesteps.
    Timesteps,
    /// The latent that sampling begins with.
    Start,
    /// The sigma at which guidance ends.
    GuidanceUntil,
    /// Reuse of velocities between steps.
    StepCache,
    /// Seed of the noise.
    Seed,
    /// File of the initial noise.
    Noise,
    /// Factor on the initial noise.
    NoiseScale,
    /// The table of experts.
    Routing,
    /// Precision of the graphs.
    Precision,
    /// Library of kernels on the CPU.
    Kernels,
    /// Execution provider.
    Provider,
    /// Devices of components.
    Place,
    /// The two devices of every expert.
    GuidanceDevices,
    /// Nodes that may run on the CPU beside an accelerator.
    CpuNodes,
    /// Components to keep in memory.
    Residency,
    /// Limit of memory use.
    MemoryBudget,
    /// Side of the tiles that frames are decoded in.
    Tile,
    /// The library of ONNX Runtime.
    OnnxRuntime,
    /// The folder with the libraries of execution providers.
    ProviderFolder,
    /// Kind of previews.
    Preview,
    /// File or folder of previews.
    PreviewOutput,
    /// An output of the clip.
    Output,
    /// The longest time without progress that an output is given.
    OutputTimeout,
    /// Token of a WHIP server.
    WhipToken,
    /// Certificate and key that outputs are signed with.
    Sign,
    /// Captions.
    Caption,
    /// Picture in a corner.
    Logo,
    /// Sound.
    Audio,
    /// Picture or video in place of the key colour.
    Background,
    /// Colour that the background replaces.
    KeyColour,
    /// Frame rate of the outputs.
    OutputFrameRate,
    /// Method that converts the frame rate.
    Interpolation,
    /// Folder to create.
    Folder,
    /// Components that are quantised.
    Components,
    /// Number format of the products of attention.
    Attention,
    /// Target of exported graphs.
    Target,
    /// Number format of exported weights.
    Weights,
    /// Export of graphs without weights.
    GraphsOnly,
    /// Copying of weights instead of linking.
    Copy,
    /// Tiny decoder for previews.
    TinyDecoder,
    /// Reading of every byte of a bundle.
    Verify,
    /// Quantisation scheme.
    Scheme,
    /// Method that selects ranges of activations.
    Ranges,
    /// Source of the error of each layer.
    Sensitivity,
    /// Prompts of a calibration or of a judge.
    Prompts,
    /// Judge of generated clips.
    Judge,
    /// Published shape of a benchmark.
    Shape,
    /// Token grid of a benchmark.
    Tokens,
    /// Latent of a benchmark.
    Latent,
    /// Jobs of a simulation, with the times of their arrival.
    Arrivals,
    /// Costs of a simulation: times, memory and devices.
    Costs,
    /// Order in which jobs are worked on.
    Order,
    /// The folder of queued jobs.
    Store,
    /// Disk space that the store of jobs may use.
    StoreBudget,
    /// Steps of a job whose snapshots are kept.
    KeepSteps,
    /// The step of a job that another one goes on from.
    FromStep,
    /// How soon a job is wanted.
    Priority,
    /// The time after which a job is past its deadline.
    Deadline,
    /// A LoRA file.
    Lora,
    /// LoRA keys that are not understood.
    LoraLenient,
}

crate::named!(
    Field,
    "prompt" => Prompt,
    "resume" => Resume,
    "resume_from" => ResumeFrom,
    "job_folder" => JobFolder,
    "stop_after" => StopAfter,
    "variation" => Variation,
    "like" => Like,
    "bundle" => Bundle,
    "clip" => Clip,
    "seeds" => Seeds,
    "steps_of" => StepsOf,
    "size" => Size,
    "frames" => Frames,
    "seconds" => Seconds,
    "frame_rate" => FrameRate,
    "steps" => Steps,
    "guidance" => Guidance,
    "shift" => Shift,
    "sampler" => Sampler,
    "schedule" => Schedule,
    "preset" => Preset,
    "timesteps" => Timesteps,
    "start" => Start,
    "guidance_until" => GuidanceUntil,
    "step_cache" => StepCache,
    "seed" => Seed,
    "noise" => Noise,
    "noise_scale" => NoiseScale,
    "routing" => Routing,
    "precision" => Precision,
    "kernels" => Kernels,
    "provider" => Provider,
    "place" => Place,
    "guidance_devices" => GuidanceDevices,
    "cpu_nodes" => CpuNodes,
    "residency" => Residency,
    "memory_budget" => MemoryBudget,
    "tile" => Tile,
    "onnx_runtime" => OnnxRuntime,
    "provider_folder" => ProviderFolder,
    "preview" => Preview,
    "preview_output" => PreviewOutput,
    "output" => Output,
    "output_timeout" => OutputTimeout,
    "whip_token" => WhipToken,
    "sign" => Sign,
    "caption" => Caption,
    "logo" => Logo,
    "audio" => Audio,
    "background" => Background,
    "key_colour" => KeyColour,
    "output_frame_rate" => OutputFrameRate,
    "interpolation" => Interpolation,
    "folder" => Folder,
    "components" => Components,
    "attention" => Attention,
    "target" => Target,
    "weights" => Weights,
    "graphs_only" => GraphsOnly,
    "copy" => Copy,
    "tiny_decoder" => TinyDecoder,
    "verify" => Verify,
    "scheme" => Scheme,
    "ranges" => Ranges,
    "sensitivity" => Sensitivity,
    "prompts" => Prompts,
    "judge" => Judge,
    "shape" => Shape,
    "tokens" => Tokens,
    "latent" => Latent,
    "arrivals" => Arrivals,
    "costs" => Costs,
    "order" => Order,
    "store" => Store,
    "store_budget" => StoreBudget,
    "keep_steps" => KeepSteps,
    "from_step" => FromStep,
    "priority" => Priority,
    "deadline" => Deadline,
    "lora" => Lora,
    "lora_lenient" => LoraLenient,
);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_those_of_files_and_distinct() {
        let names: BTreeSet<&str> = Field::ALL.map(Field::name).into();
        assert_eq!(names.len(), Field::ALL.len());
        for field in Field::ALL {
            assert_eq!(serde_json::to_value(field).unwrap(), field.name());
            assert_eq!(serde_json::from_value::<Field>(field.name().into()).unwrap(), field);
        }
    }
}
