//! Compiled engines: graphs as a provider has compiled them, kept on disk.
//!
//! [`EngineKey`] states everything that an engine depends on. [`EngineStore`] has one folder for each key, with a record
//! of it ([`EngineRecord`]) and a digest of every file. `open_or_compile` decides what happens when a graph is opened.
//! Nothing in this module knows ONNX Runtime: it calls what implements `Compiler`.

mod check;
mod compiler;
mod here;
mod key;
mod list;
mod notice;
mod open;
mod prune;
mod record;
mod shape;
mod store;
mod subject;
#[cfg(test)]
mod tests;

pub use check::Unusable;
pub(crate) use compiler::{Compatibility, Compiler};
pub use here::EnginesHere;
pub use key::EngineKey;
pub use list::{EngineState, ListedEngine, list};
pub use notice::EngineNotice;
pub use open::{BuiltEngine, Outcome};
pub(crate) use open::{Wanted, build, check, open_or_compile};
pub use prune::{PruneOptions, Pruned, prune};
pub use record::{EngineFile, EngineRecord};
pub(crate) use shape::extents;
pub use store::EngineStore;
pub use subject::EngineSubject;
pub(crate) use subject::GraphOfBundle;
