//! The process that makes the jobs of a store: the store, the driver of the scheduler, and the outputs of the clips.
//!
//! [`run`] owns the store until it is stopped or no job is left. It looks for new jobs and orders after every unit of
//! work and every 200 ms. A full disk stops new units until there is room again.

mod clip;
mod ending;
mod finishing;
mod follower;
mod hold;
mod options;
mod preparing;
mod running;
mod starting;
mod takes;
mod telling;
mod waiting;

pub use follower::Follower;
pub use options::{JobStatus, Notice, Options, Summary};
pub use running::run;
