//! The same clips in a plain loop with an output each, and through a store and its owner: what `rushes jobs` adds.

use crate::queue::{Clip, MiniQueue};
use rushes::bundle::Cancel;
use rushes::bundle::units::ByteCount;
use rushes::engines::residency::Residency;
use rushes::engines::{DeviceChoice, MemoryBudgets, OnnxRuntime, PlacementRequest};
use rushes::jobs::owner::{self, Options};
use rushes::jobs::request::{REQUEST_VERSION, Request};
use rushes::jobs::store::Store;
use rushes::media::post_process::PostProcessSpec;
use rushes::media::{ClipFormat, ClipSettings, ClipWriter, OutputSpec, Tags};
use rushes::runtime::Error as RuntimeError;
use rushes::runtime::decode::Tiles;
use rushes::runtime::job::{self, JobEvent, KeepSteps};
use rushes::runtime::pipeline::Pipeline;
use rushes::runtime::plan::GenerationPlan;
use rushes::runtime::scheduler::{Bounds, Order, Seconds};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

fn output(folder: &Path, number: usize) -> OutputSpec {
    let format = rushes::media::FileFormat::Y4m;
    OutputSpec::File { path: folder.join(format!("{number}.y4m")), format }
}

/// Makes the clips one after another in new sessions, each into a y4m file in `folder`.
///
/// # Errors
/// A clip is not made.
pub fn plain(queue: &MiniQueue, clips: &[Clip], folder: &Path) -> Result<(), Box<dyn Error>> {
    queue.model().sessions().close_idle();
    let mut pipeline = Pipeline::new(queue.model());
    for (number, clip) in clips.iter().enumerate() {
        let plan = GenerationPlan::new(queue.model().manifest(), &clip.request)?;
        let made = ClipFormat { size: plan.size, rate: plan.rate, frames: Some(plan.frames.get()) };
        let tags = Tags::new(plan.prompt.clone(), "mini", plan.seed);
        let cancel = Cancel::new();
        let settings = ClipSettings::new(vec![output(folder, number)]);
        let mut writer = ClipWriter::claim(&settings, made, tags, &cancel)?;
        job::generate(&mut pipeline, &plan, &cancel, &mut |event| match event {
            JobEvent::Frames(frames) => writer.push(frames.view()).map_err(RuntimeError::callback),
            _ => Ok(()),
        })?;
        writer.finish()?;
    }
    Ok(())
}

/// Submits the clips to a store in `folder`, and makes them in new sessions, each into a y4m file.
///
/// # Errors
/// A clip is not made.
pub fn stored(queue: &MiniQueue, clips: &[Clip], folder: &Path) -> Result<(), Box<dyn Error>> {
    queue.model().sessions().close_idle();
    let place = folder.join("store");
    let request = |(number, clip): (usize, &Clip)| Request {
        version: REQUEST_VERSION,
        bundle: queue.model().bundle().folder.clone(),
        model: "mini".to_owned(),
        precision: None,
        kernels: None,
        clip: clip.request.clone(),
        noise: None,
        priority: clip.priority,
        deadline: None,
        stop_after: None,
        keep_steps: KeepSteps::None,
        outputs: vec![output(folder, number)],
        post_process: PostProcessSpec::default(),
        extras: BTreeMap::new(),
        metadata: true,
        mark: true,
        sign: None,
        output_timeout: Seconds::try_new(30.0).unwrap_or_default(),
        origin: None,
        take: None,
    };
    let requests = clips.iter().enumerate().map(request).collect();
    Store::open(&place)?.submit(requests, &mut |_, _, _| Ok(()))?;
    let options = Options {
        backend: Arc::new(OnnxRuntime::load(None)?),
        cpu_nodes: engines::CpuNodes::Integers,
        device: DeviceChoice::Auto,
        placement: PlacementRequest::default(),
        budgets: MemoryBudgets::default(),
        residency: Residency::Auto,
        tiles: Tiles::Auto,
        threads: None,
        store_budget: ByteCount(20_000_000_000),
        order: Order::Waves,
        bounds: Bounds::default(),
        texts: None,
        follower: None,
        until_idle: true,
        cancel: Cancel::new(),
    };
    let summary = owner::run(&place, options, &mut |_| {})?;
    if summary.done == clips.len() {
        return Ok(());
    }
    Err(format!("{summary:?}").into())
}
