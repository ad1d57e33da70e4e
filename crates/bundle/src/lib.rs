//! The bundle format: what `rushes export` writes and every other command reads.
//!
//! A *bundle* is a folder of ONNX graphs, their weights and `bundle.json`. This crate defines its contents and their
//! units. It contains no graph, session, thread or clock.
//!
//! | Modules | Contents |
//! |---|---|
//! | [`diagnose`], [`Field`] | error reports and exit codes, the settings that they name |
//! | [`units`], [`geometry`], [`dtype`], [`mod@named`] | units, sizes, number formats, enums with names |
//! | [`spec`], [`routing`], [`variant`] | model hyper-parameters, the expert for each noise level, graph variants |
//! | [`settings`], [`catalog`] | defaults and their origin, published models |
//! | [`timesteps`], [`preset`] | lists of timesteps, published recipes of few steps |
//! | [`signature`] | inputs and outputs of each graph |
//! | [`preview`] | the linear map of previews |
//! | [`manifest`], [`layout`] | `bundle.json` and its validation, file names |
//! | [`graph_set`] | `graphs.json`: graphs without weights, and the weights that they are for |
//! | [`quantization`] | the numbers that quantise a component |
//! | [`digest`], [`file_digest`] | digests of weights and files |
//! | [`atomic`], [`part_file`], [`staging`], [`lock`] | complete files and folders, locks |
//! | [`text_file`] | text files of users |
//! | [`stop`], [`Cancel`] | stopping a run from another thread |

pub mod atomic;
mod cancel;
pub mod catalog;
mod component;
pub mod diagnose;
pub mod digest;
pub mod dtype;
mod error;
mod field;
pub mod file_digest;
mod frame_rate;
pub mod geometry;
pub mod graph_set;
pub mod layout;
pub mod lock;
pub mod lora;
pub mod manifest;
pub mod named;
pub mod output_path;
pub mod part_file;
pub mod preset;
pub mod preview;
pub mod quantization;
pub mod routing;
mod run_folder;
pub mod settings;
pub mod signature;
mod solver;
pub mod spec;
pub mod staging;
pub mod stop;
pub mod text_file;
pub mod timesteps;
pub mod units;
pub mod variant;
pub mod work;

pub use cancel::{Cancel, Interrupt, Watch};
pub use diagnose::{Diagnose, ErrorClass, Report};
pub use error::Error;
pub use field::Field;
