//! Runs the scheduler on paper: arrivals and costs in, a time line out. Nothing is opened or computed.
//!
//! [`Costs`] and [`Arrivals`] are files. [`simulate`] drives a [`Scheduler`](crate::scheduler::Scheduler) against a
//! [`World`], which says how long each command takes and how it ends; [`CostWorld`] is the world of a cost file.
//! [`Summary`] is what a reader wants to know about a run.

mod arrivals;
#[cfg(test)]
mod audit;
#[cfg(test)]
mod cases;
mod costs;
#[cfg(test)]
mod properties;
mod run;
mod summary;
#[cfg(test)]
mod traces;
mod world;

pub use arrivals::{Arrivals, Batch, MOST_JOBS};
pub use costs::{Activations, ClipCosts, ComponentCosts, Costs, DeviceCosts, ExpertClipCosts, Figure};
pub use run::{Activity, Performed, SimulatedRun, Span, World, simulate};
pub use summary::{DeviceShare, JobTimes, Summary};
pub use world::{CostWorld, Scenario};
