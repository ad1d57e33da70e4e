//! Timing of graphs, for `rushes bench` and criterion benches.
//!
//! [`shape`] defines sizes, [`variants`] quantises random weights, [`workload`] is one run of a graph, [`timing`] runs
//! several cases alternately and computes statistics, [`record`] combines the measurements of one machine. [`batches`]
//! compares the bits of steps alone and in a batch. [`accelerated`] is about graphs on an accelerator.

pub mod accelerated;
pub mod batches;
pub mod memory;
pub mod record;
pub mod shape;
pub mod timing;
pub mod variants;
pub mod workload;
