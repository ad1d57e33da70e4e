//! How fast graphs run on this machine: the same measurements for `rushes bench` and for criterion.
//!
//! [`shape`] names sizes, [`variants`] quantises random weights, [`workload`] is one run of a graph, [`timing`] runs
//! several in turn and puts numbers to them.

pub mod shape;
pub mod timing;
pub mod variants;
pub mod workload;
