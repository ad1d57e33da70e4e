//! A change that would make a clip that fits use its devices better.

use bundle::units::ByteCount;
use engines::{Device, PlacementRequest};
use std::fmt;

/// A component that would better be on another device. Nothing is moved without being asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The component and its device, as `--place` takes it.
    pub place: PlacementRequest,
    /// The device that it is on.
    pub from: Device,
    /// The device that it would be on.
    pub to: Device,
    /// The memory that the other device would need.
    pub needed: ByteCount,
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, from, to, needed } = self;
        write!(f, "`place` {place} would leave its memory on {from} to the experts; {to} would need {needed}")
    }
}
