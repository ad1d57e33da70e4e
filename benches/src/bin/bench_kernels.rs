//! Compares the kernels of a step in one run, and prints one JSON line for each kind.
//!
//! `bench-kernels [--layers N] [--tokens F,H,W] [--threads N] [--runs N] [--only KIND,…] [--cpu-path NAME] [--turns]`
//!
//! Kinds alternate, so that changes of the machine's state affect all of them. The floor is the time that the products
//! of the blocks would take at the peak measured in the same run. The error is relative to what the blocks add to the
//! velocity: |kind - onnxruntime f32| / |onnxruntime f32 - a step without blocks|. The peak memory is that of the
//! process: run one kind alone to compare memory.
//!
//! The kinds that end in `-lora-64` have a branch of rank 64 beside every linear layer of the blocks, and run only if
//! they are named. Beside the same kind without branches, `cost_of_branch` is how much longer they take: the shortest
//! steps, and the median of the rounds. They have no error, because they compute another model.
//!
//! `cpu_seconds` is the time that the process had a processor, over all its threads: on a busy machine it says more than
//! the time on the clock, above all with `--threads 1`, because threads that wait for each other count too.
//!
//! With `--turns` the program loads and warms up, prints its first line, and then times one step of each kind for each
//! line of standard input, so that a script can alternate it with other programs.

use benches::step_kinds::{Setting, Step, StepKind};
use engines::{OnnxRuntime, OpenOptions, WeightMemory};
use kernels::{CpuPath, Kernels};
use std::error::Error;
use std::io::{BufRead, Write};
use std::num::NonZeroUsize;
use std::time::Instant;

struct Arguments {
    layers: usize,
    grid: [usize; 3],
    threads: NonZeroUsize,
    runs: usize,
    kinds: Vec<StepKind>,
    kernels: Kernels,
    turns: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { layers, grid, threads, runs, kinds, kernels, turns } = parse()?;
    let options = OpenOptions::cpu(Some(threads), WeightMemory::Prepacked);
    let peaks = kernels.peaks(threads);
    let onnx = OnnxRuntime::load(None)?.with_kernels(kernels);
    let machine = serde_json::json!({
            "onnxruntime": onnx.version(), "cpu_path": kernels.path().name(), "threads": threads.get(),
            "int8_gops": peaks.int8 / 1e9, "bf16_gflops": peaks.bf16.map(|peak| peak / 1e9),
            "f32_gflops": peaks.f32 / 1e9,
    });
    let setting = Setting::new(layers, grid)?;
    let mut steps: Vec<Step> =
        kinds.iter().map(|kind| setting.open(&onnx, *kind, &options)).collect::<Result<_, _>>()?;
    let mut velocities = Vec::new();
    for step in &mut steps {
        velocities.push(step.run()?);
    }
    println!("{machine}");
    if turns {
        return take_turns(&kinds, &mut steps);
    }
    let (mut seconds, mut cpu_seconds) = (vec![Vec::new(); kinds.len()], vec![Vec::new(); kinds.len()]);
    for _ in 0..runs {
        for (step, (seconds, cpu_seconds)) in steps.iter_mut().zip(seconds.iter_mut().zip(&mut cpu_seconds)) {
            let (began, had) = (Instant::now(), processor_seconds());
            step.run()?;
            seconds.push(began.elapsed().as_secs_f64());
            cpu_seconds.extend(processor_seconds().zip(had).map(|(now, had)| now - had));
        }
    }
    let reference = kinds.iter().position(|kind| *kind == StepKind::OnnxRuntimeF32);
    let without = if reference.is_some() && kinds.len() > 1 {
        Some(Setting::new(0, grid)?.open(&onnx, StepKind::OnnxRuntimeF32, &options)?.run()?)
    } else {
        None
    };
    for (index, kind) in kinds.iter().enumerate() {
        let peak = match kind {
            StepKind::OnnxRuntimeF32 => peaks.f32,
            StepKind::RushesBf16 | StepKind::RushesBf16Lora => peaks.bf16.unwrap_or(peaks.f32),
            _ => peaks.int8,
        };
        let best = seconds[index].iter().copied().fold(f64::INFINITY, f64::min);
        let floor = setting.operations() / peak;
        let is_same_model = kind.without_branches().is_none();
        let error = reference.zip(without.as_ref()).filter(|_| is_same_model).map(|(reference, without)| {
            let exact = &velocities[reference];
            distance(&velocities[index], exact) / distance(without, exact)
        });
        let line = serde_json::json!({
            "kind": kind.name(), "layers": layers, "tokens": setting.tokens(), "seconds": seconds[index],
            "cpu_seconds": cpu_seconds[index], "floor_seconds": floor, "share_of_floor": floor / best, "error": error, "peak_memory": peak_memory(),
        });
        println!("{line}");
        let without = kind.without_branches();
        let without = without.and_then(|without| kinds.iter().position(|kind| *kind == without));
        if let Some(without) = without {
            let of = |all: &[Vec<f64>]| cost(&all[index], &all[without]);
            let (cost, cpu) = (of(&seconds), of(&cpu_seconds));
            println!("{}", serde_json::json!({ "kind": kind.name(), "cost_of_branch": cost, "of_cpu": cpu }));
        }
    }
    Ok(())
}

/// Times one step of each kind for each line of standard input.
fn take_turns(kinds: &[StepKind], steps: &mut [Step]) -> Result<(), Box<dyn Error>> {
    std::io::stdout().flush()?;
    for line in std::io::stdin().lock().lines() {
        line?;
        for (kind, step) in kinds.iter().zip(&mut *steps) {
            let began = Instant::now();
            step.run()?;
            println!(
                "{}",
                serde_json::json!({ "kind": kind.name(), "seconds": began.elapsed().as_secs_f64() })
            );
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// How much longer the steps of a kind take than those of another one in the same rounds.
fn cost(seconds: &[f64], of_other: &[f64]) -> Option<serde_json::Value> {
    let shortest = |seconds: &[f64]| seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let mut ratios: Vec<f64> = seconds.iter().zip(of_other).map(|(a, b)| a / b - 1.0).collect();
    ratios.sort_by(f64::total_cmp);
    let median = *ratios.get(ratios.len() / 2)?;
    Some(serde_json::json!({ "shortest": shortest(seconds) / shortest(of_other) - 1.0, "median": median }))
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "velocities of one size");
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

/// The time that the threads of this process had a processor, as Linux counts it.
fn processor_seconds() -> Option<f64> {
    let threads = std::fs::read_dir("/proc/self/task").ok()?;
    let nanoseconds = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Some(nanoseconds.sum::<u64>() as f64 / 1e9)
}

/// The peak resident memory of this process, as the system reports it.
fn peak_memory() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn parse() -> Result<Arguments, Box<dyn Error>> {
    let mut arguments = Arguments {
        layers: 2,
        grid: [5, 15, 26],
        threads: std::thread::available_parallelism()?,
        runs: 3,
        kinds: StepKind::ALL.into_iter().filter(|kind| kind.without_branches().is_none()).collect(),
        kernels: Kernels::best(),
        turns: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(flag) = words.next() {
        if flag == "--turns" {
            arguments.turns = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--layers" => arguments.layers = value.parse()?,
            "--tokens" => {
                let numbers: Vec<usize> = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
                arguments.grid =
                    numbers.try_into().map_err(|_other_count| "three numbers are needed, like 5,15,26")?;
            }
            "--threads" => arguments.threads = value.parse()?,
            "--runs" => arguments.runs = value.parse()?,
            "--cpu-path" => arguments.kernels = Kernels::of(value.parse::<CpuPath>()?)?,
            "--only" => {
                let kind = |name: &str| {
                    StepKind::ALL
                        .into_iter()
                        .find(|kind| kind.name() == name)
                        .ok_or_else(|| format!("unknown kind {name}"))
                };
                arguments.kinds = value.split(',').map(kind).collect::<Result<_, _>>()?;
            }
            other => return Err(format!("unknown flag {other}").into()),
        }
    }
    Ok(arguments)
}
