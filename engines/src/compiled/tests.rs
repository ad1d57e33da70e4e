//! Opening and making engines with a compiler that writes the number of its graph.

use super::key::tests::key;
use super::record::RECORD;
use super::store::ASIDE;
use super::*;
use crate::error::ProviderError;
use crate::{Device, Error, FirstUse, GraphContent, NodePlacement};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

/// The file that the compiled graph refers to.
const BLOB: &str = "engine.bin";

/// Compiles a graph that is a number. Its session is that number.
struct Numbers {
    graph: u8,
    /// Called while it compiles.
    compiling: fn(&Path),
    /// The operators of an open engine.
    operators: &'static [&'static str],
    on_cpu: usize,
    is_full: bool,
    compatibility: Compatibility,
    /// How often it compiled in memory.
    in_memory: Cell<usize>,
}

impl Numbers {
    fn new(graph: u8) -> Self {
        Self {
            graph,
            compiling: |_| (),
            operators: &["EPContext"],
            on_cpu: 0,
            is_full: false,
            compatibility: Compatibility::Unknown,
            in_memory: Cell::default(),
        }
    }

    fn placement(&self) -> NodePlacement {
        let mut placement = NodePlacement::default();
        placement.nodes.insert("Numbers".into(), 40);
        if self.on_cpu > 0 {
            placement.integers_on_cpu.insert("Shape".into(), self.on_cpu);
        }
        placement
    }
}

impl Compiler for Numbers {
    type Session = u8;

    fn compile(&self, model: &Path) -> Result<NodePlacement, Error> {
        fs::write(model.with_file_name(BLOB), vec![self.graph; 4096]).unwrap();
        (self.compiling)(model);
        if self.is_full {
            return Err(Error::RunFailed { graph: "numbers".into(), why: "no space left".into() });
        }
        fs::write(model, "refers to engine.bin").unwrap();
        Ok(self.placement())
    }

    fn open(&self, model: &Path) -> Result<(u8, Vec<String>), Error> {
        let blob = fs::read(model.with_file_name(BLOB)).unwrap();
        Ok((blob[0], self.operators.iter().map(|name| (*name).to_owned()).collect()))
    }

    fn in_memory(&self) -> Result<(u8, NodePlacement), Error> {
        self.in_memory.set(self.in_memory.get() + 1);
        Ok((self.graph, self.placement()))
    }

    fn compatibility(&self, _model: &Path) -> Compatibility {
        self.compatibility.clone()
    }
}

fn wanted(graph: u8) -> Wanted {
    Wanted {
        key: EngineKey { content: GraphContent([graph; 32]), ..key() },
        device: "openvino:0".parse::<Device>().unwrap(),
        graph: format!("expert {graph}"),
        subject: EngineSubject::of_file("expert.onnx"),
        first_use: FirstUse::Compile,
    }
}

/// A store in a temporary folder, with the names of its notices.
struct World {
    folder: tempfile::TempDir,
    store: EngineStore,
    notices: Arc<Mutex<Vec<&'static str>>>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let notices = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&notices);
        let store = EngineStore::new(folder.path().join("engines"));
        let store = store.with_notices(move |notice| told.lock().unwrap().push(notice.name()));
        Self { folder, store, notices }
    }

    fn told(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.notices.lock().unwrap())
    }

    fn open(&self, graph: u8) -> u8 {
        open_or_compile(&self.store, &wanted(graph), &Numbers::new(graph)).unwrap().0
    }

    fn engine(&self, graph: u8) -> PathBuf {
        self.store.folder().join(wanted(graph).key.folder_name())
    }

    /// The entries of the folder; none if there is no folder.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.store.folder()).into_iter().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_graph_is_compiled_once_and_its_engine_opened_afterwards() {
    let world = World::new();
    assert_eq!(world.open(1), 1);
    assert_eq!(world.told(), ["compiling", "stored"]);
    for _ in 0..2 {
        let (number, nodes) = open_or_compile(&world.store, &wanted(1), &Numbers::new(1)).unwrap();
        assert_eq!((number, nodes.nodes["Numbers"]), (1, 40), "the nodes are those of the graph");
    }
    assert_eq!(world.told(), Vec::<&str>::new());
    assert_eq!((world.store.compiled(), world.store.opened()), (1, 2));
    assert_eq!(world.names(), [wanted(1).key.folder_name()]);
    let text = fs::read_to_string(world.engine(1).join(RECORD)).unwrap();
    let record: EngineRecord = serde_json::from_str(&text).unwrap();
    assert_eq!(record.files.iter().map(|file| &*file.name).collect::<Vec<_>>(), [&*record.model, BLOB]);
    assert_eq!((record.bytes(), record.word("provider")), (4096 + 20, "openvino"));
    assert_eq!(record.key, wanted(1).key.words());
}

/// Changes an engine in its folder.
type Damage = fn(&Path);

const DAMAGES: [(&str, Damage); 13] = [
    ("a bit of the blob", |folder| {
        let mut blob = fs::read(folder.join(BLOB)).unwrap();
        blob[2048] ^= 1;
        fs::write(folder.join(BLOB), blob).unwrap();
    }),
    ("a truncated blob", |folder| {
        fs::OpenOptions::new().write(true).open(folder.join(BLOB)).unwrap().set_len(100).unwrap();
    }),
    ("an empty blob", |folder| fs::write(folder.join(BLOB), "").unwrap()),
    ("no blob", |folder| fs::remove_file(folder.join(BLOB)).unwrap()),
    ("no model", |folder| fs::remove_file(model(folder)).unwrap()),
    ("another model", |folder| fs::write(model(folder), "refers to engine.xyz").unwrap()),
    ("a model that is not among the files", |folder| {
        edit_record(folder, |record| record["model"] = "engine.onnx".into());
    }),
    ("a link", |folder| {
        fs::rename(folder.join(BLOB), folder.with_extension("moved")).unwrap();
        std::os::unix::fs::symlink(folder.with_extension("moved"), folder.join(BLOB)).unwrap();
    }),
    ("one more file", |folder| fs::write(folder.join("other.bin"), "x").unwrap()),
    ("no record", |folder| fs::remove_file(folder.join(RECORD)).unwrap()),
    ("a cut record", |folder| {
        let text = fs::read(folder.join(RECORD)).unwrap();
        fs::write(folder.join(RECORD), &text[..text.len() / 2]).unwrap();
    }),
    ("a record of another version", |folder| {
        edit_record(folder, |record| record["format"] = 2.into());
    }),
    ("a record of files elsewhere", |folder| {
        edit_record(folder, |record| record["files"][0]["name"] = "../engine.bin".into());
    }),
];

/// The compiled graph of the engine in a folder.
fn model(folder: &Path) -> PathBuf {
    folder.join(check::read_record(folder).unwrap().unwrap().model)
}

fn edit_record(folder: &Path, edit: fn(&mut serde_json::Value)) {
    let path = folder.join(RECORD);
    let mut record = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut record);
    fs::write(path, record.to_string()).unwrap();
}

#[test]
fn a_damaged_engine_is_moved_aside_and_made_again() {
    let world = World::new();
    world.open(1);
    world.told();
    for (what, damage) in DAMAGES {
        damage(&world.engine(1));
        let compiled = world.store.compiled();
        assert_eq!(world.open(1), 1, "{what}");
        assert_eq!(world.told(), ["set_aside", "compiling", "stored"], "{what}");
        assert_eq!(world.store.compiled(), compiled + 1, "{what}");
        assert_eq!(world.open(1), 1, "{what}");
        assert_eq!(world.store.compiled(), compiled + 1, "{what}: the new one is whole");
    }
    let aside = world.names().into_iter().filter(|name| name.ends_with(ASIDE)).count();
    assert_eq!(aside, 1, "one is kept");
}

#[test]
fn the_engine_of_the_other_expert_is_never_opened() {
    let world = World::new();
    let (high, low) = (1, 2);
    // Its blob, at the place of this one.
    world.open(high);
    world.open(low);
    fs::copy(world.engine(low).join(BLOB), world.engine(high).join(BLOB)).unwrap();
    assert_eq!(Numbers::new(high).open(&model(&world.engine(high))).unwrap().0, low, "the trap");
    assert_eq!(world.open(high), high);
    // Its whole folder, under the name of this one.
    fs::remove_dir_all(world.engine(high)).unwrap();
    fs::rename(world.engine(low), world.engine(high)).unwrap();
    assert_eq!((world.open(high), world.open(low)), (high, low));
    assert!(world.told().ends_with(&["set_aside", "compiling", "stored", "compiling", "stored"]));
}

#[test]
fn the_engine_of_another_version_or_shape_has_another_folder() {
    let world = World::new();
    world.open(1);
    let mut other = wanted(1);
    other.key.onnx_runtime = "1.40.0".into();
    open_or_compile(&world.store, &other, &Numbers::new(1)).unwrap();
    assert_eq!(world.store.compiled(), 2);
    assert_eq!(world.names().len(), 2);
}

#[test]
fn without_an_engine_a_graph_that_is_not_compiled_on_opening_is_refused() {
    let world = World::new();
    let refused = Wanted { first_use: FirstUse::Refuse, ..wanted(1) };
    let open = || open_or_compile(&world.store, &refused, &Numbers::new(1)).map(|(number, _)| number);
    insta::assert_snapshot!(open().unwrap_err(), @"there is no compiled engine of expert 1 for openvino:0: graphs of this size and for this device are compiled beforehand, not when they are opened (compile it with `rushes build`)");
    assert_eq!(world.store.compiled(), 0);
    let built = build(&world.store, &refused, &Numbers::new(1)).unwrap();
    assert_eq!(built.outcome, Outcome::Compiled);
    assert_eq!(build(&world.store, &refused, &Numbers::new(1)).unwrap().outcome, Outcome::Present);
    assert_eq!(open().unwrap(), 1);
    fs::write(world.engine(1).join(BLOB), [1; 4096 - 1]).unwrap();
    insta::assert_snapshot!(open().unwrap_err(), @"there is no compiled engine of expert 1 for openvino:0: it is damaged: engine.bin has 4095 bytes and should have 4096 (compile it with `rushes build`)");
    assert_eq!(world.store.compiled(), 1);
    assert_eq!(world.names(), [format!("{}{ASIDE}", refused.key.folder_name())]);
}

#[test]
fn a_folder_that_cannot_be_written_is_no_error_for_a_clip() {
    let world = World::new();
    fs::write(world.store.folder(), "a file").unwrap();
    let compiler = Numbers::new(1);
    let (number, nodes) = open_or_compile(&world.store, &wanted(1), &compiler).unwrap();
    assert_eq!((number, nodes.nodes["Numbers"], compiler.in_memory.get()), (1, 40, 1));
    assert_eq!(world.told(), ["compiling", "not_stored"]);
    let error = build(&world.store, &wanted(1), &compiler).unwrap_err();
    assert!(matches!(error, Error::Provider(ProviderError::EngineNotStored { .. })), "{error}");
    assert_eq!(fs::read_to_string(world.store.folder()).unwrap(), "a file");
}

#[test]
fn a_full_disk_is_no_error_for_a_clip() {
    let world = World::new();
    let compiler = Numbers { is_full: true, ..Numbers::new(1) };
    assert_eq!(open_or_compile(&world.store, &wanted(1), &compiler).unwrap().0, 1);
    assert_eq!((world.told(), world.names()), (vec!["compiling", "not_stored"], vec![]));
    assert!(build(&world.store, &wanted(1), &compiler).unwrap_err().to_string().contains("no space left"));
    assert_eq!(world.names(), Vec::<String>::new());
}

#[test]
fn only_a_graph_that_is_one_engine_is_stored() {
    let world = World::new();
    for compiler in [
        // Without a capable provider a compiler writes an ordinary graph.
        Numbers { operators: &["MatMul"], ..Numbers::new(1) },
        Numbers { operators: &["EPContext", "MatMul", "EPContext"], ..Numbers::new(1) },
        Numbers { operators: &[], ..Numbers::new(1) },
        Numbers { on_cpu: 2, ..Numbers::new(1) },
    ] {
        assert_eq!(open_or_compile(&world.store, &wanted(1), &compiler).unwrap().0, 1);
        assert_eq!(compiler.in_memory.get(), 1);
        assert_eq!((world.told(), world.names()), (vec!["compiling", "not_stored"], vec![]));
        assert!(build(&world.store, &wanted(1), &compiler).is_err());
        world.told();
    }
}

#[test]
fn an_engine_that_the_device_does_not_support_is_made_again() {
    let world = World::new();
    world.open(1);
    let compatibility = Compatibility::Unsupported("another processor".into());
    let compiler = Numbers { compatibility, ..Numbers::new(1) };
    world.told();
    assert_eq!(open_or_compile(&world.store, &wanted(1), &compiler).unwrap().0, 1);
    assert_eq!(world.told(), ["set_aside", "compiling", "stored"]);
    let compiler = Numbers { compatibility: Compatibility::Supported, ..Numbers::new(1) };
    assert_eq!(open_or_compile(&world.store, &wanted(1), &compiler).unwrap().0, 1);
    assert_eq!(world.store.compiled(), 2);
}

#[test]
fn two_threads_make_one_engine() {
    let world = World::new();
    let both = Barrier::new(2);
    std::thread::scope(|scope| {
        let make = || {
            both.wait();
            let slow =
                Numbers { compiling: |_| std::thread::sleep(Duration::from_millis(200)), ..Numbers::new(1) };
            open_or_compile(&world.store, &wanted(1), &slow).unwrap().0
        };
        let other = scope.spawn(make);
        assert_eq!((make(), other.join().unwrap()), (1, 1));
    });
    assert_eq!((world.store.compiled(), world.store.opened()), (1, 1));
    assert_eq!(world.names(), [wanted(1).key.folder_name()]);
}

/// The folder of a child process of a test, which makes an engine there.
const CHILD: &str = "ENGINES_TEST_STORE";

/// Starts a process that runs the test `name` with a store in `folder`.
fn child(name: &str, folder: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("compiled::tests::{name}"), "--nocapture"])
        .env(CHILD, folder)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// In a child process: makes an engine, and leaves a file with a name of its own when it compiles.
fn make_as_child(compiling: fn(&Path)) -> bool {
    let Some(folder) = std::env::var_os(CHILD) else { return false };
    let store = EngineStore::new(folder);
    let compiler = Numbers { compiling, ..Numbers::new(1) };
    assert_eq!(open_or_compile(&store, &wanted(1), &compiler).unwrap().0, 1);
    true
}

#[test]
fn two_processes_make_one_engine() {
    let compiling: fn(&Path) = |model| {
        let store = model.ancestors().nth(3).unwrap();
        fs::write(store.with_file_name(format!("compiled by {}", std::process::id())), "").unwrap();
        std::thread::sleep(Duration::from_millis(300));
    };
    if make_as_child(compiling) {
        return;
    }
    let world = World::new();
    let start = || child("two_processes_make_one_engine", world.store.folder());
    let [mut first, mut second] = [start(), start()];
    assert!(first.wait().unwrap().success() && second.wait().unwrap().success());
    let beside = fs::read_dir(world.folder.path()).unwrap();
    let compiled = beside
        .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("compiled by"));
    assert_eq!(compiled.count(), 1);
    assert_eq!(world.open(1), 1);
    assert_eq!((world.store.compiled(), world.store.opened()), (0, 1));
}

#[test]
fn a_process_that_ends_while_it_compiles_leaves_nothing_that_looks_whole() {
    if make_as_child(|_| std::process::abort()) {
        return;
    }
    let world = World::new();
    let mut ended =
        child("a_process_that_ends_while_it_compiles_leaves_nothing_that_looks_whole", world.store.folder());
    assert!(!ended.wait().unwrap().success());
    assert_eq!(world.names(), [format!("{}.part", wanted(1).key.folder_name())]);
    world.store.remove_unfinished().unwrap();
    assert_eq!(world.names(), Vec::<String>::new());
    assert_eq!(world.open(1), 1);
    assert_eq!(world.told(), ["compiling", "stored"]);
}

/// This machine, as [`key`] describes it.
fn here() -> EnginesHere {
    let device = (key().provider_version, key().architecture);
    let devices = [(key().provider, Ok(vec![device]))].into();
    EnginesHere { onnx_runtime: key().onnx_runtime, devices }
}

fn states(world: &World, here: &EnginesHere, verify: bool) -> Vec<&'static str> {
    list(&world.store, here, verify).unwrap().iter().map(|engine| engine.state.name()).collect()
}

#[test]
fn engines_are_listed_with_the_reason_why_they_cannot_be_used() {
    let world = World::new();
    assert_eq!(states(&world, &here(), true), Vec::<&str>::new());
    world.open(1);
    fs::create_dir(world.store.folder().join("photos")).unwrap();
    fs::write(world.store.folder().join("notes.txt"), "").unwrap();
    assert_eq!(states(&world, &here(), true), ["usable"]);
    let listed = &list(&world.store, &here(), false).unwrap()[0];
    let record = fs::metadata(world.engine(1).join(RECORD)).unwrap().len();
    assert_eq!(listed.bytes.0, 4096 + 20 + record);
    let newer = EnginesHere { onnx_runtime: "1.40.0".into(), ..here() };
    let why = list(&world.store, &newer, false).unwrap()[0].state.why().unwrap();
    insta::assert_snapshot!(why, @"it was made with onnx_runtime 1.31.1, and this is 1.40.0");
    let device = |version: &str, architecture: &str| EnginesHere {
        devices: [(key().provider, Ok(vec![(version.to_owned(), architecture.to_owned())]))].into(),
        ..here()
    };
    assert_eq!(states(&world, &device("1.8.2", &key().architecture), false), ["other_version"]);
    assert_eq!(states(&world, &device("1.8.1", "intel64"), false), ["other_version"]);
    let gone = EnginesHere { devices: [(key().provider, Err("no library".into()))].into(), ..here() };
    assert_eq!(states(&world, &gone, false), ["no_provider"]);
    // A changed byte is found by reading all of them.
    let mut blob = fs::read(world.engine(1).join(BLOB)).unwrap();
    blob[7] ^= 1;
    fs::write(world.engine(1).join(BLOB), blob).unwrap();
    assert_eq!(states(&world, &here(), false), ["usable"]);
    assert_eq!(states(&world, &here(), true), ["damaged"]);
}

#[test]
fn pruning_removes_what_cannot_be_used_and_nothing_else() {
    let world = World::new();
    let fill = || {
        for graph in 1..=3 {
            world.open(graph);
        }
        fs::write(world.engine(2).join(BLOB), "short").unwrap();
        fs::create_dir_all(world.store.folder().join("photos")).unwrap();
        let part = format!("{}.part", wanted(4).key.folder_name());
        fs::create_dir(world.store.folder().join(&part)).unwrap();
        fs::write(world.store.folder().join(part).join("lock"), "").unwrap();
    };
    fill();
    let options = |all, older_than| PruneOptions { all, older_than, now: Duration::MAX, dry_run: false };
    let dry = prune(&world.store, &here(), &PruneOptions { dry_run: true, ..options(true, None) }).unwrap();
    assert_eq!((dry.removed.len(), world.names().len()), (4, 5));
    let pruned = prune(&world.store, &here(), &options(false, None)).unwrap();
    let removed: Vec<_> = pruned.removed.iter().map(|engine| engine.state.name()).collect();
    assert_eq!((removed.len(), pruned.kept, pruned.busy.len()), (2, 2, 0));
    assert!(removed.contains(&"damaged") && removed.contains(&"unfinished"));
    assert_eq!((world.open(1), world.open(3), world.store.compiled()), (1, 3, 3));
    // An engine whose provider cannot be used now may be used again.
    let gone = EnginesHere { devices: [(key().provider, Err("no library".into()))].into(), ..here() };
    assert_eq!(prune(&world.store, &gone, &options(false, None)).unwrap().kept, 2);
    // One that is being opened stays.
    let stored = world.store.find(&wanted(1).key).unwrap().unwrap();
    let pruned = prune(&world.store, &here(), &options(false, Some(Duration::ZERO))).unwrap();
    assert_eq!((pruned.removed.len(), pruned.busy.len()), (1, 1));
    drop(stored);
    let young = PruneOptions { now: Duration::ZERO, ..options(false, Some(Duration::from_secs(1))) };
    assert_eq!(prune(&world.store, &here(), &young).unwrap().kept, 1);
    assert_eq!(prune(&world.store, &here(), &options(true, None)).unwrap().removed.len(), 1);
    assert_eq!(world.names(), ["photos"]);
}
