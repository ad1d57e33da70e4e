//! Times one of our graphs and prints one JSON line: our side of `benches/compare/diffusers.py`.
//!
//! `benches step|decode|text [--layers N] [--tokens N | F,H,W] [--latent T,H,W] [--threads N] [--runs N] [--mapped] --json`

use benches::peak::f32_peak;
use benches::shapes::{Decode, Step, Text};
use engines::{OpenOptions, WeightMemory};
use std::error::Error;
use std::num::NonZeroUsize;
use std::time::Instant;

/// What was asked for on the command line.
struct Arguments {
    what: String,
    layers: usize,
    tokens: Vec<usize>,
    latent: [usize; 3],
    options: OpenOptions,
    runs: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = parse()?;
    let Arguments { layers, ref options, runs, .. } = arguments;
    let mut seconds = Vec::new();
    let mut first_frame = Vec::new();
    let mut flops = None;
    match arguments.what.as_str() {
        "step" => {
            let grid = triple(&arguments.tokens)?;
            let mut step = Step::new(layers, grid, options)?;
            flops = Some(step.flops);
            time(runs, &mut seconds, || step.run())?;
        }
        "decode" => {
            let mut decode = Decode::new(arguments.latent, options)?;
            time(runs, &mut seconds, || {
                let began = Instant::now();
                decode.run(|| first_frame.push(began.elapsed().as_secs_f64()))
            })?;
            // The warm-up run is not counted.
            first_frame.remove(0);
        }
        "text" => {
            let mut text = Text::new(layers, arguments.tokens[0], options)?;
            time(runs, &mut seconds, || text.run())?;
        }
        other => return Err(format!("there is no `{other}` to time: step, decode or text").into()),
    }
    let cores = options
        .threads
        .map_or_else(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get), NonZeroUsize::get);
    let peak = f32_peak(cores);
    let best = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let mut line = serde_json::json!({
        "what": arguments.what,
        "seconds": seconds,
        "gflop": flops.map(|flops| flops / 1e9),
        "f32_peak_gflops": peak / 1e9,
        "share_of_f32_peak": flops.map(|flops| flops / best / peak),
    });
    if let Some(first) = first_frame.first() {
        line["first_frame_seconds"] = first_frame.iter().copied().fold(*first, f64::min).into();
    }
    println!("{line}");
    Ok(())
}

/// Runs once to warm up and then `runs` times with the clock.
fn time(
    runs: usize,
    seconds: &mut Vec<f64>,
    mut work: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    work()?;
    for _ in 0..runs {
        let began = Instant::now();
        work()?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    Ok(())
}

fn parse() -> Result<Arguments, Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let what = words.next().ok_or("say what to time: step, decode or text")?;
    let mut arguments = Arguments {
        layers: if what == "text" { 2 } else { 4 },
        tokens: if what == "text" { vec![512] } else { vec![5, 15, 26] },
        what,
        latent: [3, 30, 52],
        options: OpenOptions { threads: None, weights: WeightMemory::Prepacked },
        runs: 1,
    };
    while let Some(flag) = words.next() {
        match flag.as_str() {
            "--json" => continue,
            "--mapped" => {
                arguments.options.weights = WeightMemory::Mapped;
                continue;
            }
            _ => {}
        }
        let value = words.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--layers" => arguments.layers = value.parse()?,
            "--tokens" => arguments.tokens = numbers(&value)?,
            "--latent" => arguments.latent = triple(&numbers(&value)?)?,
            "--threads" => arguments.options.threads = Some(value.parse()?),
            "--runs" => arguments.runs = value.parse()?,
            other => return Err(format!("there is no flag {other}").into()),
        }
    }
    Ok(arguments)
}

fn numbers(text: &str) -> Result<Vec<usize>, Box<dyn Error>> {
    Ok(text.split(',').map(str::parse).collect::<Result<_, _>>()?)
}

fn triple(numbers: &[usize]) -> Result<[usize; 3], Box<dyn Error>> {
    let [time, height, width] = numbers else {
        return Err("three numbers are needed, like 5,15,26".into());
    };
    Ok([*time, *height, *width])
}
