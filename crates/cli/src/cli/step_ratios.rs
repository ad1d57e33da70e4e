//! `rushes calibrate --step-cache`: measures how much velocities change from step to step.

use super::args::CalibrateArgs;
use super::global::GlobalArgs;
use super::memory::plan_measured;
use super::progress::Progress;
use super::render;
use super::threads::Threads;
use crate::Error;
use bundle::atomic::write_atomic;
use bundle::manifest::Bundle;
use bundle::staging::WriteLock;
use bundle::variant::Target;
use engines::residency::Residency;
use engines::sessions::Sessions;
use quality::step_ratios::{self, ExpertRatios, StepRatio, StepRatios};
use runtime::model::{Model, ModelOptions, choose_variant};
use runtime::plan::GenerationPlan;
use serde_json::json;
use std::fmt::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Measures the clips of `plans` and writes the ratios to the bundle.
pub(super) fn run(
    args: &CalibrateArgs,
    global: &GlobalArgs,
    bundle: Bundle,
    plans: &[GenerationPlan],
) -> Result<ExitCode, Error> {
    let started = Instant::now();
    let cancel = global.interrupts.cancel();
    let _lock = WriteLock::acquire(&bundle.folder)?;
    let options = ModelOptions { threads: args.threads.map(Threads::used), ..ModelOptions::of_variant(None) };
    let variant = choose_variant(&bundle.manifest, Target::Cpu, global.kernels()?.path(), &options)?;
    if let Some(plan) = plans.first() {
        plan_measured(&args.budget, &bundle.manifest, plan, variant)?;
    }
    let onnx = global.onnx_runtime()?;
    let sessions = Sessions::new(Arc::new(onnx), args.budget.budgets_of_cpu()?, Residency::Auto);
    let path = bundle.folder.join(step_ratios::FILE);
    let model = Model::with_sessions(bundle, &sessions, options)?;
    let steps = plans.first().map_or(1, |plan| plan.schedule.steps());
    let mut progress = Progress::new(args.progress);
    progress.begin("measure", steps * plans.len());
    let ratios = step_ratios::measure(&model, plans, &cancel, &mut |clip, step| {
        progress.advance(clip * steps + step, "");
        Ok(())
    })?;
    progress.clear();
    let bytes = serde_json::to_vec_pretty(&ratios).unwrap_or_else(|_| unreachable!("keys are strings"));
    write_atomic(&path, &bytes)?;
    let value = json!({
        "event": "calibrated",
        "step_cache": render::path(&path),
        "samples": ratios.clips,
        "experts": ratios.experts,
        "seconds": started.elapsed().as_secs_f64(),
    });
    let text = format!("{}\n{}: {} clips", table(&ratios), path.display(), ratios.clips);
    render::result(global.json, &value, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// One line per step: the relative change of the velocity, and the ratio of lengths.
fn table(ratios: &StepRatios) -> String {
    let mut text = String::new();
    for ExpertRatios { expert, conditional, unconditional } in &ratios.experts {
        for (pass, steps) in [("prompt", conditional), ("negative prompt", unconditional)] {
            if steps.is_empty() {
                continue;
            }
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{expert}, {pass}\n  sigma   change   ratio  cosine distance     rate");
            for StepRatio { sigma, ratio, cosine_distance, change, rate, .. } in steps {
                let _ = writeln!(
                    text,
                    "  {:.4}  {change:7.4}  {ratio:6.4}  {cosine_distance:15.4}  {rate:7.3}",
                    sigma.0
                );
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::routing::ExpertName;
    use bundle::units::Sigma;

    #[test]
    fn every_step_has_a_line() {
        let step = StepRatio {
            sigma: Sigma(0.75),
            ratio: 1.01,
            deviation: 0.1,
            cosine_distance: 0.02,
            change: 0.123,
            rate: 1.5,
        };
        let expert = ExpertRatios {
            expert: ExpertName("only".into()),
            conditional: vec![step],
            unconditional: Vec::new(),
        };
        let ratios = StepRatios {
            version: 1,
            rushes: "0.1.0".into(),
            model: "mini".into(),
            clips: 1,
            settings: String::new(),
            experts: vec![expert],
        };
        insta::assert_snapshot!(table(&ratios), @r"
        only, prompt
          sigma   change   ratio  cosine distance     rate
          0.7500   0.1230  1.0100           0.0200    1.500
        ");
    }
}
