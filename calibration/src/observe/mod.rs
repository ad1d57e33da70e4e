//! Activation statistics: a calibration set is replayed through graphs with additional outputs.
//!
//! In reading order: [`set`] (recorded clips), [`points`] (the observed values of a graph), [`statistics`] (statistics
//! of one value), [`table`] (all statistics and their file), [`replay`] (the only part that runs graphs).

pub mod points;
pub mod replay;
pub mod set;
pub mod statistics;
pub mod table;
