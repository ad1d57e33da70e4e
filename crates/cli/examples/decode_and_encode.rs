//! Measures the cost of encoding an mp4 while the embedded model decodes: times the decode alone, the decode with the
//! mp4, and the time until the first encoded frame. Arguments: number of frames, repetitions.

use bundle::Cancel;
use media::{ClipFormat, OutputOptions, OutputTarget, Outputs, Tags};
use ndarray::Axis;
use runtime::decode::VideoDecoder;
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::seeded_noise;
use runtime::plan::{GenerateRequest, GenerationPlan, Length};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<usize>().ok());
    let (frames, repetitions) = (numbers.next().unwrap_or(49), numbers.next().unwrap_or(3));
    let folder = rushes::mini::bundle_folder(None)?;
    let (model, cancel) = (Model::open(&folder, ModelOptions::default())?, Cancel::new());
    let mut request = GenerateRequest::new("a boat", bundle::units::Seed(1));
    request.length = Some(Length::Frames(frames));
    let plan = GenerationPlan::new(model.manifest(), &request)?;
    let latent = seeded_noise(&plan);
    let decoder = VideoDecoder::new(&model);
    decoder.decode(latent.view(), &cancel, &mut |_| Ok(()))?;
    let path = std::env::temp_dir().join(format!("rushes-decode-{}.mp4", std::process::id()));
    let spec: media::OutputSpec = path.to_str().ok_or("the temporary folder is not UTF-8")?.parse()?;
    for _ in 0..repetitions {
        let started = Instant::now();
        decoder.decode(latent.view(), &cancel, &mut |_| Ok(()))?;
        let decode_only = started.elapsed().as_secs_f64();

        let started = Instant::now();
        let format = ClipFormat { size: plan.size, rate: plan.rate, frames: Some(plan.frames.get()) };
        let options = OutputOptions::new(format, Tags::new(None, "mini", plan.seed), &cancel);
        let mut outputs = Outputs::start(&OutputTarget::claim_all(std::slice::from_ref(&spec))?, &options)?;
        let mut chunks = 0;
        decoder.decode(latent.view(), &cancel, &mut |frames| {
            chunks += frames.len_of(Axis(0));
            outputs.write(frames.view()).map_err(runtime::Error::callback)
        })?;
        let decoded = started.elapsed().as_secs_f64();
        let first = outputs.first_encoded().map_or(f64::NAN, |at| (at - started).as_secs_f64());
        let written = outputs.finish().written.len();
        let whole = started.elapsed().as_secs_f64();
        println!(
            "{}, {chunks} frames: decode alone {decode_only:.3} s; with mp4 {whole:.3} s ({:.3} times); first frame encoded \
             after {first:.3} s ({:.3} of the decode of {decoded:.3} s); {written} file written",
            plan.size,
            whole / decode_only,
            first / decoded
        );
    }
    std::fs::remove_file(path)?;
    Ok(())
}
