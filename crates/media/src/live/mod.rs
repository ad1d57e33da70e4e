//! One address that sharpens: from the first second on viewers see noise, then previews, then the clip, then the clip
//! again until the run is stopped.
//!
//! In reading order: [`programme`] (which picture comes next), [`broadcast`] (when it is due; both pure), [`pump`] (the thread
//! with a clock that pushes what is due).

pub mod broadcast;
pub mod programme;
pub mod pump;

pub use broadcast::{Broadcast, Sent};
pub use programme::Programme;
pub use pump::{LiveSink, Pump};
