//! One address that sharpens: from the first second on viewers see noise, then previews, then the clip, then the clip
//! again until the run is stopped.
//!
//! In reading order: [`programme`] (which picture comes next; pure), [`pump`] (one picture for each tick of the clock).

pub mod programme;
pub mod pump;

pub use programme::Programme;
pub use pump::{LiveSink, Pump};
