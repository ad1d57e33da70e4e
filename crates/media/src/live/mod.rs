//! Live publishing: one address that shows noise at first, then previews, then the clip, which is repeated until the
//! run is stopped.
//!
//! In reading order: [`playlist`] (the next picture), [`broadcast`] (its due time; both pure), [`publisher`] (the
//! thread that pushes due pictures).

pub mod broadcast;
pub mod playlist;
pub mod publisher;

pub use broadcast::{Broadcast, Sent};
pub use playlist::Playlist;
pub use publisher::{LivePublisher, LiveSink};
