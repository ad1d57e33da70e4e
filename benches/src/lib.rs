//! Graphs at real sizes with random weights, for timing: the same ones for criterion and for the side-by-side harness.

pub mod peak;
pub mod random_weights;
pub mod shapes;
