//! One address that sharpens: from the first second on viewers see noise, then previews, then the clip, then the clip
//! again until the run is stopped.
//!
//! In reading order: [`playlist`] (which picture comes next), [`broadcast`] (when it is due; both pure), [`publisher`] (the thread
//! with a clock that pushes what is due).

pub mod broadcast;
pub mod playlist;
pub mod publisher;

pub use broadcast::{Broadcast, Sent};
pub use playlist::Playlist;
pub use publisher::{LivePublisher, LiveSink};
