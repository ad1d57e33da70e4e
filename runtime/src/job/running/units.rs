//! The units of work of a job: the text, a step, a chunk of frames.

use super::super::event::JobEvent;
use super::super::record::LatentDigest;
use super::super::snapshot_files::{BOUNDARY, kept_name};
use super::super::storage::Storage;
use super::super::stored_text;
use super::super::timing::Mark;
use super::{Job, JobState, Phase};
use crate::Error;
use crate::denoise::{Conditioning, Denoising, StepDone, StepInputs};
use crate::pipeline::Pipeline;
use std::sync::Arc;

impl Job {
    /// Does one unit of work, and the work without graphs before it.
    pub(super) fn unit(&mut self, pipeline: &mut Pipeline) -> Result<JobState, Error> {
        loop {
            match std::mem::replace(&mut self.phase, Phase::Ended) {
                Phase::Start => {
                    pipeline.check(self.plan.latent)?;
                    self.phase = self.after_text(pipeline)?;
                }
                Phase::Encode => {
                    self.encode(pipeline)?;
                    self.phase = self.after_text(pipeline)?;
                    return Ok(JobState::Working);
                }
                Phase::Denoise(inputs) => {
                    if self.denoising.steps_done() >= self.last_step() {
                        self.phase = self.begin_decode(pipeline);
                    } else if self.fork()? {
                        self.phase = self.after_text(pipeline)?;
                    } else {
                        self.step(pipeline, &inputs)?;
                        self.phase = Phase::Denoise(inputs);
                        return Ok(JobState::Working);
                    }
                }
                Phase::Decode(latent, mut run) => {
                    let frames = pipeline.decode_next(latent.view(), &mut run, &self.cancel)?;
                    if let Some(frames) = frames {
                        self.clock.mark(Mark::FirstFrames);
                        self.send(JobEvent::Frames(frames));
                    }
                    if run.frames_done() < latent.len_of(ndarray::Axis(1)) {
                        self.phase = Phase::Decode(latent, run);
                        return Ok(JobState::Working);
                    }
                    self.end();
                    self.send(JobEvent::Finished);
                    return Ok(JobState::Ended);
                }
                Phase::Ended => return Ok(JobState::Ended),
            }
        }
    }

    /// The phase that follows once text states are known, or the one that makes them.
    fn after_text(&mut self, pipeline: &Pipeline) -> Result<Phase, Error> {
        let Some(text) = self.text.clone() else { return Ok(Phase::Encode) };
        if text.negative.is_none() && self.denoising.needs_unconditional() {
            return Ok(Phase::Encode);
        }
        let conditioning = Conditioning::text(text.prompt, text.negative);
        let inputs = pipeline.inputs(&self.denoising, &conditioning)?;
        self.clock.begin("denoise");
        let (done, steps) = (self.denoising.steps_done(), self.last_step());
        self.send(JobEvent::Denoising { done, steps });
        self.store_text();
        // A job that is resumed after its last step has stored its snapshots.
        if done < steps {
            self.store();
        }
        Ok(Phase::Denoise(Box::new(inputs)))
    }

    fn encode(&mut self, pipeline: &mut Pipeline) -> Result<(), Error> {
        self.clock.begin("text");
        self.send(JobEvent::Encoding);
        let (prompt, negative) = self.spec.prompts_of_forks(self.next_fork);
        let needed = self.denoising.needs_unconditional().then_some(negative);
        let mut text = pipeline.encode(prompt, needed, &self.cancel)?;
        let mut digest = stored_text::digest(&text);
        if let Some(expected) = self.expected_text.take() {
            // Only steps that are done may have needed the negative prompt.
            if digest != expected && needed.is_none() {
                text = pipeline.encode(prompt, Some(negative), &self.cancel)?;
                digest = stored_text::digest(&text);
            }
            if digest != expected {
                let short = |digest: &str| digest.get(..12).unwrap_or(digest).to_owned();
                let (stored, found) = (short(&expected), short(&digest));
                return Err(Error::OtherSnapshot { what: "text states", stored, found });
            }
        }
        self.clock.mark(Mark::Encoded);
        (self.text, self.text_digest) = (Some(text.clone()), Some(digest));
        self.send(JobEvent::Encoded(text));
        Ok(())
    }

    /// Applies the next fork if it is due. Returns true if it was.
    fn fork(&mut self) -> Result<bool, Error> {
        let done = self.denoising.steps_done();
        let Some(fork) = self.spec.forks.get(self.next_fork).filter(|fork| fork.after == done).cloned()
        else {
            return Ok(false);
        };
        // Later, the noise has the sigma of the step as its factor.
        let start = if done == 0 { self.plan.start_factor() } else { 1.0 };
        let changes = fork.changes(start * self.plan.noise_scale);
        self.denoising = Denoising::fork(self.denoising.snapshot(), changes)?;
        self.next_fork += 1;
        if fork.prompt.is_some() || fork.negative.is_some() {
            (self.text, self.text_digest, self.expected_text) = (None, None, None);
        }
        Ok(true)
    }

    fn step(&mut self, pipeline: &mut Pipeline, inputs: &StepInputs) -> Result<(), Error> {
        let skipped = self.denoising.next().map_or(0, |request| request.passes.saved(request.is_guided));
        let Some(done) = pipeline.step(&mut self.denoising, inputs, &self.cancel)? else { return Ok(()) };
        self.skipped_passes += skipped;
        let digest = LatentDigest::of(&done.latent);
        self.latents.push(digest.clone());
        self.steps_run += 1;
        self.clock.step((!done.is_reused).then_some(done.ran));
        let steps = self.last_step();
        if let Some(previewer) = &mut self.previewer {
            previewer.step(&StepDone { steps, ..done.clone() });
        }
        self.store();
        self.send(JobEvent::Step { done, digest });
        Ok(())
    }

    /// Writes the text states to the folder, once.
    fn store_text(&mut self) {
        if let (Some(storage), Some(text)) = (&mut self.storage, &self.text)
            && let Some(warning) = storage.write_text(text)
        {
            self.send(JobEvent::Warning(warning));
        }
    }

    /// Hands a snapshot to the thread that writes it. Waits while the one before it is not written.
    fn store(&mut self) {
        let Some(snapshot) = self.storage.is_some().then(|| self.snapshot()).flatten() else { return };
        let Some(storage) = &mut self.storage else { return };
        let steps = snapshot.steps_done();
        let boundary = self.denoising.is_at_boundary().then(|| BOUNDARY.to_owned());
        let kept = self.keep_steps.contains(steps).then(|| kept_name(steps));
        let names = boundary.into_iter().chain(kept).collect();
        if let Some(warning) = storage.write(snapshot, names, || self.cancel.is_cancelled()) {
            self.send(JobEvent::Warning(warning));
        }
    }

    fn begin_decode(&mut self, pipeline: &Pipeline) -> Phase {
        if let Some(previewer) = &mut self.previewer {
            previewer.close();
        }
        self.clock.begin("decode");
        self.clock.mark(Mark::Decoding);
        self.send(JobEvent::Decoding);
        let is_whole = self.denoising.steps_done() >= self.denoising.steps();
        let latent = match self.denoising.clean_estimate() {
            Some(clean) if !is_whole => Arc::clone(clean),
            _ => Arc::clone(self.denoising.latent()),
        };
        let run = pipeline.begin_decode(latent.view());
        Phase::Decode(latent, Box::new(run))
    }

    /// The number of steps after which the clip is decoded.
    fn last_step(&self) -> usize {
        let steps = self.denoising.steps();
        self.spec.stop_after.map_or(steps, |stop| stop.min(steps))
    }

    /// Ends the job, and waits for its threads.
    pub(super) fn end(&mut self) {
        self.phase = Phase::Ended;
        if let Some(warning) = self.storage.take().and_then(Storage::finish) {
            self.send(JobEvent::Warning(warning));
        }
        if let Some(previewer) = self.previewer.take() {
            self.previews = Some(previewer.finish());
        }
    }
}
