//! Timing of graphs, for `rushes bench` and criterion benches.
//!
//! [`shape`] defines sizes, [`variants`] quantises random weights, [`workload`] is one run of a graph, [`timing`] runs
//! several cases alternately and computes statistics, [`record`] combines the measurements of one machine.

pub mod record;
pub mod shape;
pub mod timing;
pub mod variants;
pub mod workload;
