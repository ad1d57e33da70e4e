//! Compares the predicted memory of sessions with the memory that a process grows by, one session per process.
//!
//! `bench-memory make FOLDER SUBJECT` writes a bundle with random weights and its quantised variants. SUBJECT is
//! `decode`, `text:LAYERS`, or a shape of `rushes bench step` and layers, such as `1.3b:2`. `text-bf16:LAYERS` and
//! `1.3b-bf16:2` have bf16 weights and no variants. `sparse-a14b` exports a checkpoint of the size of Wan2.2-T2V-A14B
//! whose files are holes to `FOLDER/bundle`, for its text encoder of 24 layers.
//!
//! `bench-memory run FOLDER COMPONENT PART PRECISION KERNELS WEIGHTS THREADS SIZE…` measures a bundle. COMPONENT is
//! `text`, `decoder`, `preview` or the name of an expert, PART a part of `bundle.json`, WEIGHTS `mapped` or `prepacked`.
//! SIZE is, for a text encoder, TOKENS; for an expert, FRAMES,ROWS,COLUMNS,BATCH,WORDS, and `,1` if the first frame has
//! a timestep of its own; for a decoder, HEIGHT,WIDTH and optionally the side of its tiles.
//!
//! Each line has the session, its size, and for weights and activations: predicted and measured megabytes; then both
//! together and their ratio, the same for the largest growth while the session was opened, and what was left when it
//! was closed; then the pages of mapped files, which are not the memory of the process, and the seconds of opening, of
//! the first run and of the third.

use bundle::dtype::WeightType;
use bundle::manifest::{Bundle, Component, Part};
use bundle::routing::ExpertName;
use bundle::stop::Stop;
use bundle::units::ByteCount;
use engines::{OnnxRuntime, WeightMemory};
use export::synthetic::Form;
use quality::bench::memory::{DecodeWork, Measurement, StepWork, Work, measure};
use quality::bench::shape::{Shape, Subject, random_bundle, random_bundle_in, text_encoder};
use quality::bench::variants;
use runtime::decode::TileSide;
use runtime::model::{Model, ModelOptions};
use std::error::Error;
use std::path::Path;
use std::process::Command;
use tests::sparse::{self, Layout};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["make", folder, subject] => make(Path::new(folder), subject),
        ["run", ref session @ .., size] if session.len() == 7 => measure_one(session, size),
        ["run", ref all @ ..] if all.len() > 8 => {
            let (session, sizes) = all.split_at(7);
            for size in sizes {
                let one = Command::new(std::env::current_exe()?).arg("run").args(session).arg(size).status()?;
                if !one.success() {
                    return Err(format!("{size} was not measured").into());
                }
            }
            Ok(())
        }
        _ => Err("use `make FOLDER SUBJECT` or `run FOLDER COMPONENT PART PRECISION KERNELS WEIGHTS THREADS SIZE…`"
            .into()),
    }
}

fn make(folder: &Path, subject: &str) -> Result<(), Box<dyn Error>> {
    if subject == "sparse-a14b" {
        std::fs::create_dir_all(folder)?;
        let request = sparse::request(folder, Layout::Diffusers);
        println!("{}", export::export(&request, &mut |_| ())?.folder.display());
        return Ok(());
    }
    let (subject, layers) = subject.split_once(':').unwrap_or((subject, ""));
    let (name, is_narrow) = subject.strip_suffix("-bf16").map_or((subject, false), |name| (name, true));
    let subject = match name {
        "decode" => Subject::Decode,
        "text" => Subject::Text(text_encoder(layers.parse()?)),
        shape => Subject::Step(shape.parse::<Shape>()?.denoiser(Some(layers.parse()?))),
    };
    let bundle = if is_narrow {
        let form = Form { weights: WeightType::Bf16, ..Form::CPU };
        random_bundle_in(folder, &subject, form, &Stop::new())?
    } else {
        let mut bundle = random_bundle(folder, &subject, &Stop::new())?;
        variants::add(&mut bundle, &[], OnnxRuntime::load(None)?.kernels(), &Stop::new())?;
        bundle
    };
    Ok(bundle::manifest::write(folder, &bundle.manifest)?)
}

fn measure_one(session: &[&str], size: &str) -> Result<(), Box<dyn Error>> {
    let [folder, component, part, precision, kernels, weights, threads] = session else {
        return Err("a session has seven words".into());
    };
    let bundle = Bundle::read(Path::new(folder))?;
    let component = match *component {
        "text" => Component::TextEncoder,
        "decoder" => Component::Decoder,
        "preview" => Component::Preview,
        expert => Component::Expert(ExpertName(expert.into())),
    };
    let part: Part = serde_json::from_value(serde_json::Value::from(*part))?;
    let numbers: Vec<usize> = size.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let (work, smallest) = works(&bundle, &component, part, &numbers)?;
    let options = ModelOptions {
        precision: Some(precision.parse()?),
        kernels: Some(kernels.parse()?),
        threads: Some(threads.parse()?),
        weights: match *weights {
            "mapped" => WeightMemory::Mapped,
            "prepacked" => WeightMemory::Prepacked,
            other => return Err(format!("`{other}` is no location of weights").into()),
        },
        ..ModelOptions::default()
    };
    let model = Model::new(bundle, OnnxRuntime::load(None)?, options)?;
    // The first session of a process starts ONNX Runtime.
    measure(&model, &component, smallest)?;
    let found = measure(&model, &component, work)?;
    let Measurement { predicted, opened, opening, ran, closed, mapped, .. } = found;
    let times = [found.opening_time, found.first_run, found.last_run].map(|time| time.as_secs_f64());
    let [predicted_all, found] = [predicted.held(), opened + ran].map(megabytes);
    println!(
        "{component}, {part:?}, {precision} on {kernels}, {weights}, {threads} threads, {size}: weights {:.1} \
         {:.1}, activations {:.1} {:.1}, together {predicted_all:.1} {found:.1} = {:.3}, opening {:.1} {:.1}, left {:.1}, \
         mapped {:.1}, {:.2} s {:.2} s {:.2} s",
        megabytes(predicted.weights),
        megabytes(opened),
        megabytes(predicted.activations),
        megabytes(ran),
        predicted_all / found,
        megabytes(predicted.weights + predicted.opening),
        megabytes(opening),
        megabytes(closed),
        megabytes(mapped),
        times[0],
        times[1],
        times[2],
    );
    Ok(())
}

/// The work of these sizes, and the smallest work of the same component.
fn works(
    bundle: &Bundle,
    component: &Component,
    part: Part,
    numbers: &[usize],
) -> Result<(Work, Work), Box<dyn Error>> {
    let stride = bundle.manifest.vae.stride();
    let step =
        |grid, batch, words, has_clean_start| Work::Step(StepWork { grid, batch, words, has_clean_start });
    let decode = |height, width, tile| Work::Decode(DecodeWork { part, height, width, tile });
    Ok(match (component, numbers) {
        (Component::TextEncoder, [tokens]) => (Work::Text(*tokens), Work::Text(1)),
        (Component::Expert(_), [frames, rows, columns, batch, words, rest @ ..]) => {
            let work = step([*frames, *rows, *columns], *batch, *words, !rest.is_empty());
            (work, step([1, 1, 1], 1, 3, false))
        }
        (Component::Decoder | Component::Preview, [height, width]) => {
            (decode(*height, *width, None), decode(2, 2, None))
        }
        (Component::Decoder, [height, width, side]) => {
            (decode(*height, *width, Some(TileSide::try_new(*side, stride)?)), decode(2, 2, None))
        }
        _ => return Err(format!("{numbers:?} is no size of {component}").into()),
    })
}

fn megabytes(bytes: ByteCount) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    let bytes = bytes.0 as f64;
    bytes / 1e6
}
