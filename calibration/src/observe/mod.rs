//! What layers see: a recorded set is replayed through graphs whose inner values are observed.
//!
//! In reading order: [`set`] (what the pipeline recorded), [`points`] (which values of a graph are observed),
//! [`statistics`] (what is kept of them), [`table`] (all of it, its file, and what it belongs to), [`replay`] (the only
//! part that runs graphs).

pub mod points;
pub mod replay;
pub mod set;
pub mod statistics;
pub mod table;
