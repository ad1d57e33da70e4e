//! `rushes build`: compiles the graphs of a bundle for a device.
//!
//! Each component is compiled by a process of its own, which is this program with `--only`: [`process`] starts it,
//! [`only`] is what it does. A compiler that crashes, or that the system ends because memory is short, loses one
//! component.

mod only;
mod process;

use super::devices::{BudgetArgs, DeviceArgs};
use super::global::GlobalArgs;
use super::render;
use super::threads::Threads;
use crate::Error;
use bundle::Report;
use bundle::manifest::Bundle;
use bundle::units::ByteCount;
use bundle::variant::Precision;
use clap::Args;
use engines::placement::name_of;
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{Backend, Device, FirstUse, GraphSource, OnnxRuntime, OpenOptions};
use runtime::engine_builds::{ClipShape, EngineNeed, clips_of, engines_needed};
use runtime::model::{Model, ModelOptions};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

/// The arguments of `rushes build`.
#[derive(Debug, Args)]
pub(super) struct BuildArgs {
    /// Folder of the bundle
    pub(super) bundle: PathBuf,
    #[command(flatten)]
    devices: DeviceArgs,
    /// Precision of the graphs: f32, f16, bf16, int8, fp8 or int8-weights [default: the first in this order that the
    /// bundle has, which is that of the export]
    #[arg(long, value_name = "NAME")]
    precision: Option<Precision>,
    /// Width, height and frames of the clips, such as 832x480x81; several for devices whose engines run one shape, and
    /// ignored by others [default: the model's]
    #[arg(long, value_name = "WxHxF,...", value_delimiter = ',')]
    shape: Vec<ClipShape>,
    #[command(flatten)]
    budget: BudgetArgs,
    /// Number of threads, at most one per core that this process may use [default: one per core]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    pub(super) threads: Option<Threads>,
    /// The component that this process compiles
    #[arg(long, hide = true, value_name = "COMPONENT")]
    only: Option<String>,
}

impl BuildArgs {
    /// The arguments of the process that compiles one component.
    fn of_component(&self, component: &str, global: &GlobalArgs) -> Vec<std::ffi::OsString> {
        let mut found: Vec<std::ffi::OsString> = vec!["build".into()];
        found.extend(self.devices.arguments().into_iter().map(Into::into));
        if let Some(precision) = self.precision {
            found.extend(["--precision".into(), precision.name().into()]);
        }
        if !self.shape.is_empty() {
            let shapes: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
            found.extend(["--shape".into(), shapes.join(",").into()]);
        }
        if let Some(threads) = self.threads {
            found.extend(["--threads".into(), threads.used().to_string().into()]);
        }
        found.extend(global.arguments());
        found.extend(["--json".into(), "--only".into(), component.into()]);
        found.extend(["--".into(), self.bundle.clone().into_os_string()]);
        found
    }
}

/// Runs the command.
pub(super) fn run(args: &BuildArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    if let Some(component) = &args.only {
        return only::run(args, component, global);
    }
    let cancel = global.interrupts.cancel();
    let onnx = onnx_runtime(args, global)?;
    let store = onnx.engines().cloned().ok_or(Error::NoEngineFolder)?;
    let needs = needs(args, &onnx)?;
    let components: Vec<String> = needs.iter().map(|need| name_of(&need.component).to_owned()).collect();
    let components: Vec<String> = unique(components);
    let budget = budget(args, &needs)?;
    let (mut built, mut failures) = (Built::default(), Vec::new());
    for component in components {
        let own: Vec<&EngineNeed> =
            needs.iter().filter(|need| name_of(&need.component) == component).collect();
        if let Some(report) = too_large(&component, &own, &onnx, budget) {
            failures.push(report);
            continue;
        }
        let arguments = args.of_component(&component, global);
        let ended = process::run(&arguments, &component, &cancel, &mut |line| built.show(line, global.json));
        // What the process was making when it ended.
        store.remove_unfinished()?;
        failures.extend(ended?);
    }
    let (compiled, present, failed) = (built.compiled, built.present, failures.len());
    let value = json!({
        "event": "built", "compiled": compiled, "present": present, "failed_components": failed,
        "folder": render::path(store.folder()),
    });
    let mut failures = failures.into_iter();
    let first = failures.next();
    for report in failures {
        render::error(render::Stream::Output, global.json, &report);
    }
    match first {
        Some(report) => Err(Error::Reported(Box::new(report))),
        None => {
            let folder = store.folder().display();
            let text = format!("{compiled} engines compiled, {present} were there; they are in {folder}");
            render::result(global.json, &value, &text)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// ONNX Runtime for the devices of the arguments.
fn onnx_runtime(args: &BuildArgs, global: &GlobalArgs) -> Result<OnnxRuntime, Error> {
    let manifest = Bundle::read(&args.bundle)?.manifest;
    global.onnx_runtime_for(args.devices.placement(&manifest, global)?.devices())
}

/// The engines of the arguments, in the order of a clip.
fn needs(args: &BuildArgs, onnx: &OnnxRuntime) -> Result<Vec<EngineNeed>, Error> {
    let bundle = Bundle::open(&args.bundle)?;
    let clips = clips_of(&bundle.manifest, &args.shape)?;
    let options = ModelOptions {
        precision: args.precision,
        device: args.devices.ep,
        threads: args.threads.map(Threads::used),
        cpu_nodes: args.devices.cpu_nodes(),
        ..ModelOptions::default()
    };
    let sessions = Sessions::in_available_memory(onnx.clone(), Residency::Auto);
    let model = Model::with_sessions(bundle, &sessions, options)?.placed(&args.devices.request()?)?;
    let needs = engines_needed(&model, &clips)?;
    if needs.is_empty() {
        let devices: Vec<String> = model.placement().devices().iter().map(ToString::to_string).collect();
        let rule = format!("graphs on {} are opened as they are, without engines", devices.join(" and "));
        let fix = "use openvino, tensorrt or tensorrt-rtx";
        return Err(bundle::Error::value(bundle::Field::Provider, "used here", rule, fix).into());
    }
    Ok(needs)
}

/// The memory of the machine that compiling may use; `None` if it is not known.
fn budget(args: &BuildArgs, needs: &[EngineNeed]) -> Result<Option<ByteCount>, Error> {
    let mut used: BTreeSet<Device> = needs.iter().map(|need| need.device).collect();
    used.insert(Device::CPU);
    let given = args.budget.budgets_of(&used)?.of(Device::CPU);
    Ok(given.or_else(|| engines::memory::memory().map(|memory| memory.available)))
}

/// The reason why a component is not compiled: what is missing of it needs more memory than may be used.
fn too_large(
    component: &str,
    needs: &[&EngineNeed],
    onnx: &OnnxRuntime,
    budget: Option<ByteCount>,
) -> Option<Report> {
    let missing = needs.iter().filter(|need| is_missing(onnx, need));
    let peak = missing.map(|need| need.peak).max()?;
    let budget = budget.filter(|budget| peak > *budget)?;
    let report = Report::new(
        bundle::ErrorClass::DoesNotFit,
        format!("compiling {component} needs about {peak} of memory, and {budget} may be used"),
        "the compiler has the weights in memory, as they are stored and as it converts them",
        "end other programs, use a machine with more memory, or raise `memory_budget`",
    );
    Some(render::named(report))
}

/// True if there is no engine that looks whole.
fn is_missing(onnx: &OnnxRuntime, need: &EngineNeed) -> bool {
    let options = OpenOptions { first_use: FirstUse::Refuse, ..need.options };
    Backend::check_engine(onnx, GraphSource::File(&need.graph), &options).is_err()
}

fn unique(names: Vec<String>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// What the processes have reported.
#[derive(Debug, Default)]
struct Built {
    compiled: usize,
    present: usize,
}

impl Built {
    /// Counts and shows a line of a process.
    fn show(&mut self, line: &Value, as_json: bool) -> Result<(), Error> {
        let state = line["state"].as_str().unwrap_or_default();
        match state {
            "stored" => self.compiled += 1,
            "present" => self.present += 1,
            _ => {}
        }
        if as_json {
            return render::result(true, line, "");
        }
        let word = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let shape = line["shape"].as_str().map_or(String::new(), |shape| format!(", {shape}"));
        let subject = format!("{} {} on {}{shape}", word("component"), word("part"), word("device"));
        match state {
            "compiling" => {
                render::note(&format!("compiling {subject}"));
                Ok(())
            }
            "stored" => {
                let seconds = line["seconds"].as_f64().unwrap_or_default();
                let bytes = ByteCount(line["bytes"].as_u64().unwrap_or_default());
                render::result(false, line, &format!("{subject}: compiled in {seconds:.1} s, {bytes}"))
            }
            _ => render::result(false, line, &format!("{subject}: is there and whole")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser;

    fn parsed(arguments: &[&str]) -> (Box<BuildArgs>, GlobalArgs) {
        let cli = Cli::try_parse_from(["rushes"].iter().chain(arguments)).unwrap();
        match cli.command {
            Command::Build(args) => (args, cli.global),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_process_of_a_component_has_the_same_arguments() {
        let given = [
            "build",
            "my bundle",
            "--ep",
            "openvino:0",
            "--place",
            "decoder=cpu",
            "--place",
            "low=tensorrt:1",
            "--allow-cpu-nodes",
            "--precision",
            "bf16",
            "--shape",
            "832x480x81,1280x720x81",
            "--threads",
            "1",
            "--cache-dir",
            "/tmp/a cache",
            "--cpu-path",
            "avx2",
        ];
        let (args, global) = parsed(&given);
        let arguments = args.of_component("high_noise", &global);
        let arguments: Vec<String> = arguments.into_iter().map(|word| word.into_string().unwrap()).collect();
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (again, other) = parsed(&words);
        assert_eq!(again.only.as_deref(), Some("high_noise"));
        assert!(other.json);
        let placed = |args: &BuildArgs| args.devices.request().unwrap().to_string();
        assert_eq!(placed(&again), placed(&args));
        assert_eq!(again.shape, args.shape);
        assert_eq!(again.devices.arguments(), args.devices.arguments());
        assert_eq!(again.threads.is_some(), args.threads.is_some());
        assert_eq!((&again.bundle, again.precision), (&args.bundle, args.precision));
        assert_eq!((other.cache_dir, other.cpu_path), (global.cache_dir, global.cpu_path));
    }
}
