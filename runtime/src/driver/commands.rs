//! What the thread of a device does: opens and closes sessions, and runs units of jobs.

use super::clip::Clip;
use super::request::{caches_of, component_of, without};
use crate::Error;
use crate::decode::{TileSide, VideoDecoder};
use crate::denoise::Generator;
use crate::model::Model;
use crate::pipeline::Pipeline;
use crate::plan::GenerationPlan;
use crate::scheduler::{DeviceName, ModelNumber, Stage, Unit};
use crate::text_encoder::TextEncoder;
use bundle::manifest::Component;
use bundle::units::ByteCount;
use bundle::{Cancel, Diagnose, Report};

/// Pipelines that a device keeps. The state of a job does not depend on them.
const PIPELINES_KEPT: usize = 4;

/// What sessions are opened for.
#[derive(Debug, Clone)]
pub(super) struct Opening {
    /// The model.
    pub(super) model: Model,
    /// The number of the model.
    pub(super) number: ModelNumber,
    /// The plan of the clip.
    pub(super) plan: GenerationPlan,
    /// The longest side of a decoder tile.
    pub(super) tile: Option<TileSide>,
}

/// Carries out the tasks of a device.
#[derive(Debug)]
pub(super) struct Worker {
    device: DeviceName,
    closing: Cancel,
    /// Pipelines of models and tile sizes, the one that was used last at the end. They keep text states, and bundles locked.
    pipelines: Vec<(ModelNumber, Pipeline)>,
}

impl Worker {
    pub(super) fn new(device: DeviceName, closing: Cancel) -> Self {
        Self { device, closing, pipelines: Vec::new() }
    }

    /// Opens a session, and returns its memory if it was measured.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(super) fn load(&self, stage: Stage, opening: &Opening) -> Result<Option<ByteCount>, Report> {
        self.open(stage, opening).map_err(|error| error.report())
    }

    fn open(&self, stage: Stage, opening: &Opening) -> Result<Option<ByteCount>, Error> {
        let Opening { model, plan, tile, .. } = opening;
        let component = component_of(stage, model.manifest())?;
        match &component {
            Component::TextEncoder => TextEncoder::prepare(model, &self.closing)?,
            Component::Expert(_) => {
                let (device, is_guided) = (self.device.0, plan.is_guided());
                Generator::new(model).prepare(&component, device, plan.latent, is_guided, &self.closing)?;
            }
            Component::Decoder | Component::ImageEncoder | Component::Preview => {
                VideoDecoder::new(model).tiled(*tile).prepare(plan.latent, &self.closing)?;
            }
        }
        Ok(model.measured_memory(&component, self.device.0))
    }

    /// Closes a session.
    ///
    /// # Errors
    /// The model lacks its component.
    pub(super) fn evict(&self, stage: Stage, model: &Model) -> Result<(), Report> {
        let component = component_of(stage, model.manifest()).map_err(|error| error.report())?;
        model.close_idle(&component, self.device.0);
        Ok(())
    }

    /// Runs a unit of a job, and returns the memory of its session if it was measured; on a pair, the larger of both.
    ///
    /// # Errors
    /// See [`Clip::run`].
    pub(super) fn run(
        &mut self,
        unit: Unit,
        opening: &Opening,
        clip: &mut Clip,
    ) -> Result<Option<ByteCount>, Report> {
        clip.run(unit, self.pipeline(opening))?;
        let model = &opening.model;
        let component = component_of(unit.stage(), model.manifest()).map_err(|error| error.report())?;
        let caches = caches_of(model, &opening.plan, opening.tile).map_err(|error| error.report())?;
        let devices = model.placement().devices_of(&component);
        let measured = devices.filter_map(|device| model.measured_memory(&component, device)).max();
        Ok(measured.map(|bytes| without(bytes, unit.stage(), caches)))
    }

    /// The pipeline of a model and tile size.
    fn pipeline(&mut self, opening: &Opening) -> &mut Pipeline {
        let fits = |(number, pipeline): &(ModelNumber, Pipeline)| {
            *number == opening.number
                && pipeline.tile() == opening.tile
                && pipeline.model().placement() == opening.model.placement()
        };
        let newest = match self.pipelines.iter().position(fits) {
            Some(position) => self.pipelines.remove(position),
            None => {
                let surplus = (self.pipelines.len() + 1).saturating_sub(PIPELINES_KEPT);
                self.pipelines.drain(..surplus);
                (opening.number, Pipeline::new(&opening.model).tiled(opening.tile))
            }
        };
        self.pipelines.push(newest);
        let last = self.pipelines.len() - 1;
        &mut self.pipelines[last].1
    }
}
