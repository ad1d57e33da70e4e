//! The world of a cost file.

use super::arrivals::{Arrivals, Batch};
use super::costs::{ClipCosts, ComponentCosts, Costs};
use super::run::{Performed, World};
use crate::scheduler::{
    Command, Event, ExpertSteps, JobId, JobMemory, JobRequest, ModelNumber, Seconds, Session, SessionNeed,
    Stage, TimedEvent, Unit, Work,
};
use bundle::Field;
use bundle::routing::ExpertIndex;
use std::collections::BTreeMap;

/// Arrivals with their costs: the events of a simulation from outside, and the kind of clip of each job.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Arrivals and cancellations.
    pub events: Vec<TimedEvent>,
    /// The kind of clip of each job. Jobs are numbered from 1, in the order of the file.
    pub clips: BTreeMap<JobId, String>,
}

impl Scenario {
    /// Combines both files.
    ///
    /// # Errors
    /// An arrival names a kind of clip that the costs do not have.
    pub fn new(arrivals: &Arrivals, costs: &Costs) -> Result<Self, bundle::Error> {
        let mut scenario = Self { events: Vec::new(), clips: BTreeMap::new() };
        let mut number = 0;
        for batch in &arrivals.jobs {
            let Some(clip) = costs.clips.get(&batch.clip) else {
                let known: Vec<&str> = costs.clips.keys().map(String::as_str).collect();
                return Err(bundle::Error::value(
                    Field::Arrivals,
                    format!("clip `{}`", batch.clip),
                    "the costs have no such clip",
                    format!("use one of {}", known.join(", ")),
                ));
            };
            let mut at = batch.at;
            for _ in 0..batch.count {
                number += 1;
                let id = JobId(number);
                scenario.clips.insert(id, batch.clip.clone());
                let request = request_of(id, batch, clip, costs);
                scenario.events.push(TimedEvent { at, event: Event::Arrived(request) });
                if let Some(after) = batch.cancelled_after {
                    scenario.events.push(TimedEvent { at: at + after, event: Event::Cancelled { job: id } });
                }
                at = at + batch.every;
            }
        }
        Ok(scenario)
    }
}

fn request_of(id: JobId, batch: &Batch, clip: &ClipCosts, costs: &Costs) -> JobRequest {
    let steps = clip.experts.iter().enumerate().filter(|(_, expert)| expert.steps.value > 0);
    let steps =
        steps.map(|(index, expert)| ExpertSteps { expert: ExpertIndex(index), steps: expert.steps.value });
    let need = |(stage, component): (Stage, &ComponentCosts)| {
        let activations = match stage {
            Stage::TextEncoder => &clip.activations.text_encoder,
            Stage::Expert(_) => &clip.activations.expert,
            Stage::Decoder => &clip.activations.decoder,
        };
        SessionNeed {
            session: Session { model: ModelNumber(0), stage },
            devices: component.devices,
            bytes: component.weights.value + activations.value,
        }
    };
    let sessions = costs.components().map(need);
    JobRequest {
        id,
        priority: batch.priority,
        work: Work { encode: true, steps: steps.collect(), chunks: clip.chunks.value },
        memory: JobMemory {
            sessions: sessions.collect(),
            latents: clip.latents.value,
            caches: clip.caches.value,
        },
        deadline: batch.deadline,
    }
}

/// Carries commands out in the time that a cost file states. Nothing fails, and predictions are right.
#[derive(Debug)]
pub struct CostWorld<'a> {
    costs: &'a Costs,
    clips: &'a BTreeMap<JobId, String>,
}

impl<'a> CostWorld<'a> {
    /// The world of `costs`, for the jobs of `clips`.
    pub fn new(costs: &'a Costs, clips: &'a BTreeMap<JobId, String>) -> Self {
        Self { costs, clips }
    }

    fn seconds_of(&self, job: JobId, unit: Unit) -> Option<Seconds> {
        let clip = self.costs.clips.get(self.clips.get(&job)?)?;
        match unit {
            Unit::Encode => Some(clip.encode.value),
            Unit::Step { expert, .. } => clip.experts.get(expert.0).map(|expert| expert.step.value),
            Unit::Chunk { .. } => Some(clip.chunk.value),
        }
    }
}

impl World for CostWorld<'_> {
    fn perform(&mut self, command: &Command) -> Performed {
        match *command {
            Command::Load { device, session, .. } => Performed {
                seconds: self.costs.component(session.stage).map_or(Seconds::ZERO, |costs| costs.load.value),
                event: Event::Loaded { device, session, bytes: None },
            },
            Command::Evict { device, session } => {
                Performed { seconds: Seconds::ZERO, event: Event::Evicted { device, session } }
            }
            Command::Run { job, unit, .. } => Performed {
                seconds: self.seconds_of(job, unit).unwrap_or_default(),
                event: Event::UnitDone { job, session_bytes: None },
            },
            Command::Finish { .. } => Performed { seconds: Seconds::ZERO, event: Event::Tick },
        }
    }
}
