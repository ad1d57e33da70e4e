//! The contract between export and run.
//!
//! A *bundle* is the folder that `rushes export` writes and every other command reads: ONNX graphs, their weights and
//! `bundle.json`. This crate says what may be in it and in which units, and knows no graph, session, thread or clock.
//!
//! In reading order: [`diagnose`] (the common face of errors), [`units`], [`geometry`], [`dtype`], [`spec`] (model
//! hyper-parameters), [`routing`] (which expert at which noise level), [`settings`] and [`catalog`] (defaults and where
//! they come from), [`signature`] (the interface of each graph), [`preview`] (what previews are made with), [`manifest`]
//! and [`layout`] (`bundle.json` and file names), [`quantization`] (how a component is quantised), [`digest`], [`file_digest`],
//! [`validate`] (ranges of what `bundle.json` states), [`atomic`] (files that are whole or not there), [`staging`] (folders
//! likewise), [`lock`] and [`in_use`], [`text_file`] (text from users), [`stop`] and [`Cancel`] (stopping a run from another
//! thread).

pub mod atomic;
mod cancel;
pub mod catalog;
mod claim;
pub mod diagnose;
pub mod digest;
pub mod dtype;
mod error;
pub mod file_digest;
mod frame_rate;
pub mod geometry;
pub mod in_use;
pub mod layout;
pub mod lock;
pub mod manifest;
pub mod part_file;
pub mod place;
pub mod preview;
pub mod quantization;
pub mod routing;
pub mod settings;
pub mod signature;
pub mod spec;
pub mod staging;
pub mod stop;
pub mod text_file;
pub mod units;
pub mod validate;
pub mod variant;

pub use cancel::{Cancel, Interrupt, Watch};
pub use diagnose::{Diagnose, ErrorClass, Report};
pub use error::Error;
