//! Uses the three parts of the pipeline separately: prompt to text states, noise to latent, latent to frames.

use runtime::decode::VideoDecoder;
use runtime::denoise::{Conditioning, Generator};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::seeded_noise;
use runtime::plan::{GenerateRequest, GenerationPlan};
use runtime::text_encoder::TextEncoder;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = rushes::mini::bundle_folder(None)?;
    let (model, cancel) = (Model::open(&folder, ModelOptions::default())?, engines::Cancel::new());
    let request = GenerateRequest::new("A red ball bounces on the beach", bundle::units::Seed(42));
    let plan = GenerationPlan::new(model.manifest(), &request)?;

    let encoder = TextEncoder::open(&model)?;
    let (prompt, negative) =
        (encoder.encode(&plan.prompt, &cancel)?, encoder.encode(&plan.negative, &cancel)?);
    let conditioning = Conditioning::text(prompt.into(), Some(negative.into()));
    let denoising = plan.denoising(model.manifest(), seeded_noise(&plan))?;
    let generator = Generator::new(&model);
    let latent = generator.denoise(denoising, &conditioning, &cancel, &mut |_| Ok(()))?;
    VideoDecoder::new(&model).decode(latent.view(), &cancel, &mut |frames| {
        println!("frames {:?}", frames.shape());
        Ok(())
    })?;
    Ok(())
}
