//! What happens when a graph of a compiling provider is opened: its engine is looked up, checked, opened, and compiled if
//! there is none.

use super::record::FORMAT;
use super::store::{Begun, Building, StoredEngine};
use super::{
    Compatibility, Compiler, EngineKey, EngineNotice, EngineRecord, EngineStore, EngineSubject, Unusable,
};
use crate::error::ProviderError;
use crate::{Device, Error, FirstUse, NodePlacement};
use bundle::Diagnose;
use bundle::units::ByteCount;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The engine that a graph is opened with.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// What it is found by.
    pub(crate) key: EngineKey,
    /// The device.
    pub(crate) device: Device,
    /// The graph in errors.
    pub(crate) graph: String,
    /// What it is compiled from.
    pub(crate) subject: EngineSubject,
    /// What happens without one.
    pub(crate) first_use: FirstUse,
}

/// How an engine came to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was stored already.
    Present,
    /// It was compiled and stored.
    Compiled,
}

/// An engine that was built.
#[derive(Debug, Clone, PartialEq)]
pub struct BuiltEngine {
    /// Its record.
    pub record: EngineRecord,
    /// Whether it was compiled.
    pub outcome: Outcome,
}

/// An open session with the nodes of its graph.
type Open<S> = (S, NodePlacement);

/// Opens a graph with its stored engine. Without one it is compiled and stored, or refused, as `wanted` says. A store
/// that cannot be written is no error: the graph is compiled in memory then.
///
/// # Errors
/// There is no engine and none may be compiled, the graph is refused, or memory is short.
pub(crate) fn open_or_compile<C: Compiler>(
    store: &EngineStore,
    wanted: &Wanted,
    compiler: &C,
) -> Result<Open<C::Session>, Error> {
    let problem = match open_stored(store, wanted, compiler) {
        Ok(Some((session, record))) => return Ok((session, nodes_of(&record))),
        Ok(None) => None,
        Err(why) => Some(why),
    };
    if wanted.first_use == FirstUse::Refuse {
        return Err(refused(wanted, problem.as_ref()));
    }
    let (graph, device) = (wanted.subject.title(), wanted.device);
    let not_stored = match make(store, wanted, compiler) {
        Ok(Made { opened, .. }) => return Ok(opened),
        Err(NotMade::CannotWrite(why)) => {
            store.notify(&EngineNotice::Compiling { graph: graph.clone(), device });
            why
        }
        Err(NotMade::CannotStore(why)) => why,
        // The graph itself is refused, or there is no room for the files. Only the first also fails in memory.
        Err(NotMade::Failed(error)) => error.report().why,
    };
    let opened = compiler.in_memory()?;
    store.count_compiled();
    store.notify(&EngineNotice::NotStored { graph, why: not_stored });
    Ok(opened)
}

/// Checks that a graph may be compiled when it is opened, or that its engine looks whole. Reads no more than its record.
///
/// # Errors
/// There is no engine that looks whole, and none may be compiled.
pub(crate) fn check(store: &EngineStore, wanted: &Wanted) -> Result<(), Error> {
    if wanted.first_use == FirstUse::Compile {
        return Ok(());
    }
    match store.peek(&wanted.key) {
        Ok(true) => Ok(()),
        Ok(false) => Err(refused(wanted, None)),
        Err(why) => Err(refused(wanted, Some(&why))),
    }
}

/// Makes the engine of a graph, unless it is stored.
///
/// # Errors
/// The graph is refused, memory is short, the engine cannot be stored, or it cannot be opened.
pub(crate) fn build<C: Compiler>(
    store: &EngineStore,
    wanted: &Wanted,
    compiler: &C,
) -> Result<BuiltEngine, Error> {
    // It is opened too: an engine that is whole and that the provider refuses is made again.
    if let Ok(Some((session, record))) = open_stored(store, wanted, compiler) {
        drop(session);
        return Ok(BuiltEngine { record, outcome: Outcome::Present });
    }
    match make(store, wanted, compiler) {
        Ok(Made { record, outcome, .. }) => Ok(BuiltEngine { record, outcome }),
        Err(NotMade::Failed(error)) => Err(error),
        Err(NotMade::CannotWrite(why) | NotMade::CannotStore(why)) => {
            let (graph, device) = (wanted.graph.clone(), wanted.device);
            Err(ProviderError::EngineNotStored { graph, device, folder: store.folder().to_owned(), why }
                .into())
        }
    }
}

fn refused(wanted: &Wanted, problem: Option<&Unusable>) -> Error {
    ProviderError::NoEngine {
        graph: wanted.graph.clone(),
        device: wanted.device,
        why: problem.map(ToString::to_string),
    }
    .into()
}

/// Opens the stored engine; `None` if there is none.
///
/// # Errors
/// There is one, and it cannot be used. It was moved aside, unless another run has the lock.
fn open_stored<C: Compiler>(
    store: &EngineStore,
    wanted: &Wanted,
    compiler: &C,
) -> Result<Option<(C::Session, EngineRecord)>, Unusable> {
    let found = match store.find(&wanted.key) {
        Ok(None) => return Ok(None),
        Ok(Some(stored)) => open_found(store, stored, compiler),
        Err(why) => Err(why),
    };
    found.map(Some).inspect_err(|why| {
        let folder = store.folder_of(&wanted.key);
        // Once locked, only an engine that is still unusable is moved.
        let moved = store.begin(&wanted.key, &wanted.subject.title()).and_then(|begun| match (begun, why) {
            (Begun::Stored(stored), Unusable::Refused(_) | Unusable::Damaged(_)) => {
                store.set_aside(stored.folder(), why)
            }
            _ => Ok(()),
        });
        if let Err(error) = moved {
            tracing::debug!(%error, "an unusable engine stays where it is");
            store.notify(&EngineNotice::SetAside { folder, why: why.to_string() });
        }
    })
}

fn open_found<C: Compiler>(
    store: &EngineStore,
    stored: StoredEngine,
    compiler: &C,
) -> Result<(C::Session, EngineRecord), Unusable> {
    let model = stored.model();
    if let Compatibility::Unsupported(why) = compiler.compatibility(&model) {
        return Err(Unusable::Refused(why));
    }
    let (session, operators) =
        compiler.open(&model).map_err(|error| Unusable::Refused(error.report().to_string()))?;
    check_is_engine(&operators).map_err(Unusable::Damaged)?;
    store.count_opened();
    Ok((session, stored.record))
}

/// The operator of a compiled engine.
const ENGINE_OPERATOR: &str = "EPContext";

/// Checks that an open graph is one engine. A compiler without a capable provider writes an ordinary graph.
fn check_is_engine(operators: &[String]) -> Result<(), String> {
    if operators == [ENGINE_OPERATOR] {
        return Ok(());
    }
    let engines = operators.iter().filter(|operator| *operator == ENGINE_OPERATOR).count();
    Err(format!(
        "it should be one {ENGINE_OPERATOR} node, and has {} nodes, {engines} of them {ENGINE_OPERATOR}",
        operators.len()
    ))
}

/// The nodes of the graph that an engine was compiled from.
fn nodes_of(record: &EngineRecord) -> NodePlacement {
    NodePlacement { nodes: record.nodes.clone(), ..NodePlacement::default() }
}

struct Made<S> {
    opened: Open<S>,
    record: EngineRecord,
    outcome: Outcome,
}

/// Why no engine was made.
enum NotMade {
    /// The folder cannot be written. Nothing was compiled.
    CannotWrite(String),
    /// The engine cannot be stored.
    CannotStore(String),
    /// It cannot be compiled.
    Failed(Error),
}

/// Compiles a graph, opens its engine and stores it; or opens the one that another run has stored meanwhile.
fn make<C: Compiler>(
    store: &EngineStore,
    wanted: &Wanted,
    compiler: &C,
) -> Result<Made<C::Session>, NotMade> {
    let cannot_write = |error: bundle::Error| NotMade::CannotWrite(error.report().to_string());
    let building = match store.begin(&wanted.key, &wanted.subject.title()).map_err(cannot_write)? {
        Begun::Building(building) => building,
        Begun::Stored(stored) => match open_found(store, stored, compiler) {
            Ok((session, record)) => {
                let opened = (session, nodes_of(&record));
                return Ok(Made { opened, record, outcome: Outcome::Present });
            }
            Err(why) => return Err(NotMade::CannotStore(why.to_string())),
        },
    };
    store.notify(&EngineNotice::Compiling { graph: wanted.subject.title(), device: wanted.device });
    let began = Instant::now();
    let nodes = compiler.compile(&building.model()).map_err(NotMade::Failed)?;
    store.count_compiled();
    let took = began.elapsed();
    if nodes.has_cpu_nodes() {
        return Err(NotMade::CannotStore("parts of it run on the CPU".into()));
    }
    let session = checked(&building, compiler)?;
    let made_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let record = EngineRecord {
        format: FORMAT,
        key: wanted.key.words(),
        subject: wanted.subject.clone(),
        made_with: env!("CARGO_PKG_VERSION").into(),
        made_at,
        seconds: took.as_secs_f64(),
        nodes: nodes.nodes.clone(),
        model: String::new(),
        files: Vec::new(),
    };
    let record =
        building.publish(record).map_err(|error| NotMade::CannotStore(error.report().to_string()))?;
    let (graph, device) = (wanted.subject.title(), wanted.device);
    store.notify(&EngineNotice::Stored { graph, device, bytes: ByteCount(record.bytes()), took });
    Ok(Made { opened: (session, nodes), record, outcome: Outcome::Compiled })
}

/// Opens an engine that was just written, so that none is stored that cannot be used.
fn checked<C: Compiler>(building: &Building, compiler: &C) -> Result<C::Session, NotMade> {
    let (session, operators) = compiler
        .open(&building.model())
        .map_err(|error| NotMade::CannotStore(format!("the engine cannot be opened: {}", error.report())))?;
    check_is_engine(&operators).map_err(NotMade::CannotStore)?;
    Ok(session)
}
