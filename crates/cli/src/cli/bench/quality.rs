//! `rushes bench quality`: scores clips of fixed prompts with a judge.

use crate::Error;
use crate::cli::args::{ComputeArgs, VariantArgs};
use crate::cli::devices::{DeviceArgs, MemoryArgs};
use crate::cli::generate::model_options;
use crate::cli::global::GlobalArgs;
use crate::cli::memory::{plan_memory, sessions};
use crate::cli::mini_form::mini_form;
use crate::cli::progress::{Progress, ProgressKind};
use crate::cli::render;
use crate::cli::sampling::SamplingArgs;
use crate::cli::threads::Threads;
use bundle::manifest::Bundle;
use bundle::preview::PreviewKind;
use bundle::settings::SolverKind;
use bundle::units::{GuidanceScale, Seed};
use bundle::variant::{KernelLibrary, Precision};
use clap::Args;
use quality::judge::score::{AttributeScore, Means, ScoreCard};
use quality::judge::scoring::{self, QualityRequest};
use quality::judge::{Judge, JudgeFiles, embedded, prompts};
use runtime::decode::Tiles;
use runtime::model::Model;
use runtime::plan::{GenerateRequest, GenerationPlan};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// The arguments of `rushes bench quality`.
#[derive(Debug, Args)]
pub(super) struct QualityArgs {
    /// Use this bundle [default: the embedded model, mini]
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Precision of the graphs: f32, f16, bf16, int8, fp8 or int8-weights [default: that of the export]
    #[arg(long, value_name = "NAME")]
    precision: Option<Precision>,
    /// Kernels on the CPU: rushes or onnxruntime [default: rushes where the variant has them]
    #[arg(long, value_name = "NAME")]
    kernels: Option<KernelLibrary>,
    /// JSON file with the prompts and what their clips should show [default: those of mini]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Graph of the judge, with its description in a .json file of the same name [default: that of mini]
    #[arg(long, value_name = "FILE")]
    judge: Option<PathBuf>,
    /// Number of denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Guidance scale: one for all experts, or one per expert from high to low noise [default: the model's]
    #[arg(long, allow_negative_numbers = true, value_name = "HIGH[,LOW]")]
    guidance: Option<String>,
    /// Sampler: unipc, dpmpp, euler or renoise [default: the model's]
    #[arg(long, value_name = "NAME")]
    sampler: Option<SolverKind>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    devices: DeviceArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    /// Number of threads, at most one per core that this process may use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(super) threads: Option<Threads>,
    /// Progress on standard error: auto (a bar on a terminal), bar, json or none
    #[arg(long, value_name = "NAME", default_value = "auto")]
    progress: ProgressKind,
}

/// Runs the command. Bad input is refused before the first clip.
pub(super) fn run(args: &QualityArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let started = Instant::now();
    let settings = args.sampling.apply(GenerateRequest::new("", Seed(0)));
    let guidance = args.guidance.as_deref().map(GuidanceScale::parse_list).transpose()?;
    let request = QualityRequest {
        steps: args.steps,
        guidance: guidance.or(settings.guidance),
        guidance_until: settings.guidance_until,
        sampler: args.sampler.or(settings.sampler),
        timesteps: settings.timesteps,
        start: settings.start,
        step_cache: settings.step_cache,
    };
    let (prompts, file) = match &args.prompts {
        Some(path) => (prompts::read(path)?, path.display().to_string()),
        None => (embedded::prompts()?, "the program".to_owned()),
    };
    let judge = match &args.judge {
        Some(path) => JudgeFiles::read(path)?,
        None => embedded::judge()?,
    };
    prompts::check(&prompts, &judge.attributes, &file)?;
    let cancel = global.interrupts.cancel();
    let form = || mini_form(&args.devices, global, args.precision);
    let folder = global.bundle_or_mini(args.bundle.as_deref(), form, cancel.stop())?;
    let bundle = Bundle::open(&folder)?;
    let onnx = global.onnx_runtime_for(args.devices.placement(&bundle.manifest, global)?.devices())?;
    let mut judge = Judge::open(&onnx, &judge, args.threads.map(Threads::used))?;
    let plans = scoring::plans(&bundle.manifest, &prompts, judge.clip_shape(), &request)?;
    let compute = ComputeArgs {
        variant: VariantArgs { precision: args.precision, kernels: args.kernels },
        devices: args.devices.clone(),
        memory: args.memory.clone(),
        // Its clips are decoded whole.
        tile: Tiles::Off,
        threads: args.threads,
    };
    let mut options = model_options(&compute, None);
    let memory = plan_memory(&compute, global, &bundle.manifest, &plans[0], &mut options, PreviewKind::Off)?;
    let sessions = sessions(onnx, &memory, args.memory.residency);
    let model = Model::with_sessions(bundle, &sessions, options)?.placed(&args.devices.request()?)?;

    let mut progress = Progress::new(args.progress);
    progress.begin("clips", plans.len());
    let (mut done, mut computed_steps) = (0, 0);
    let scored = scoring::score(&model, &mut judge, (&prompts, &plans), &cancel, &mut |clip| {
        done += 1;
        computed_steps += clip.computed_steps;
        progress.advance(done, "");
        if global.json {
            let line = json!({
                "event": "clip",
                "language": clip.prompt.language,
                "prompt": clip.prompt.prompt,
                "seed": clip.prompt.seed,
                "asked": clip.prompt.attributes,
                "read": clip.reading.values,
                "right": clip.right.right,
                "of": clip.right.of,
                "computed_steps": clip.computed_steps,
            });
            render::result(true, &line, "").map_err(quality::Error::callback)?;
        }
        Ok(())
    });
    progress.clear();
    let scored =
        Scored { model: &model, plan: &plans[0], clips: plans.len(), computed_steps, card: &scored? };
    let value = scored.as_json(started.elapsed().as_secs_f64());
    render::result(global.json, &value, &scored.as_text())?;
    Ok(ExitCode::SUCCESS)
}

/// The scores of a finished run.
struct Scored<'a> {
    model: &'a Model,
    /// The plan of the first clip; the others differ only in prompt and seed.
    plan: &'a GenerationPlan,
    clips: usize,
    /// Steps of all clips whose velocities were computed.
    computed_steps: usize,
    card: &'a ScoreCard,
}

impl Scored<'_> {
    /// The mean number of steps that were computed, if it is not all of them.
    fn computed(&self) -> String {
        if self.computed_steps == self.clips * self.plan.schedule.steps() {
            return String::new();
        }
        #[expect(clippy::cast_precision_loss, reason = "a mean of three digits")]
        let mean = self.computed_steps as f64 / self.clips as f64;
        format!(" of which {mean:.1} were computed")
    }

    fn guidance(&self) -> Vec<f32> {
        self.plan.guidance.iter().map(|scale| scale.0).collect()
    }

    fn as_json(&self, seconds: f64) -> Value {
        let attributes: Vec<Value> = self
            .card
            .attributes
            .iter()
            .map(|line| {
                json!({
                    "attribute": line.attribute.name,
                    "read_back": line.all().share(),
                    "english": line.english.share(),
                    "chinese": line.chinese.share(),
                    "judge": line.attribute.accuracy,
                    "chance": line.attribute.chance(),
                    "prompts": line.all().of,
                })
            })
            .collect();
        let Means { all, english, chinese, judge, chance } = self.card.means();
        json!({
            "event": "quality",
            "model": self.model.manifest().model,
            "precision": self.model.variant().precision,
            "clips": self.clips,
            "steps": self.plan.schedule.steps(),
            "computed_steps": self.computed_steps,
            "guidance": self.guidance(),
            "attributes": attributes,
            "mean": {"read_back": all, "english": english, "chinese": chinese, "judge": judge, "chance": chance},
            "total_seconds": seconds,
        })
    }

    fn as_text(&self) -> String {
        let guidance: Vec<String> = self.guidance().iter().map(f32::to_string).collect();
        let mut text = format!(
            "{} {}: {} clips, {} steps{}, guidance {}\n\n",
            self.model.manifest().model,
            self.model.variant().precision,
            self.clips,
            self.plan.schedule.steps(),
            self.computed(),
            guidance.join(",")
        );
        text.push_str(&table(self.card));
        text
    }
}

/// One line per attribute, and their mean.
fn table(card: &ScoreCard) -> String {
    let mut text = String::new();
    let mut line = |name: &str, cells: [String; 5]| {
        let [all, english, chinese, judge, chance] = cells;
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{name:<10} {all:>9} {english:>9} {chinese:>9} {judge:>9} {chance:>9}");
    };
    line("attribute", ["read back", "English", "Chinese", "judge", "chance"].map(str::to_owned));
    for score in &card.attributes {
        let AttributeScore { attribute, english, chinese } = score;
        let shares = [
            score.all().share(),
            english.share(),
            chinese.share(),
            Some(attribute.accuracy),
            Some(attribute.chance()),
        ];
        line(&attribute.name, shares.map(percent));
    }
    let Means { all, english, chinese, judge, chance } = card.means();
    line("mean", [all, english, chinese, judge, chance].map(percent));
    text
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".into(), |share| format!("{:.1} %", 100.0 * share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quality::judge::Attribute;
    use quality::judge::score::Tally;

    #[test]
    fn the_table_has_a_line_for_each_attribute_and_their_mean() {
        let attribute = |name: &str, values: usize, accuracy| Attribute {
            name: name.into(),
            values: vec![String::new(); values],
            accuracy,
        };
        let card = ScoreCard {
            attributes: vec![
                AttributeScore {
                    attribute: attribute("subject", 8, 0.99),
                    english: Tally { right: 31, of: 32 },
                    chinese: Tally { right: 29, of: 32 },
                },
                AttributeScore {
                    attribute: attribute("camera", 4, 1.0),
                    english: Tally { right: 16, of: 32 },
                    chinese: Tally::default(),
                },
            ],
        };
        insta::assert_snapshot!(table(&card), @r"
        attribute  read back   English   Chinese     judge    chance
        subject       93.8 %    96.9 %    90.6 %    99.0 %    12.5 %
        camera        50.0 %    50.0 %         -   100.0 %    25.0 %
        mean          71.9 %    73.4 %    90.6 %    99.5 %    18.8 %
        ");
    }
}
