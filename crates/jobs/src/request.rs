//! What a job was asked for: everything that its owner needs to make the clip, as data.

use crate::Error;
use bundle::Field;
use bundle::digest::Digest;
use bundle::variant::{KernelLibrary, Precision};
use media::post_process::PostProcessSpec;
use media::{OutputSpec, SigningKey};
use runtime::job::{Extra, ForkSpec, InputFile, KeepSteps};
use runtime::plan::GenerateRequest;
use runtime::scheduler::{JobId, Priority, Seconds};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The version of [`Request`] that is written.
pub const REQUEST_VERSION: u32 = 1;

/// What a job was asked for. Settings are resolved and checked when it is submitted, so a queued job does not change
/// with the defaults of its bundle. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`REQUEST_VERSION`].
    pub version: u32,
    /// The folder of the bundle.
    pub bundle: PathBuf,
    /// The name of the model, for lists.
    pub model: String,
    /// Precision of the graphs; `None` selects the exported one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Kernels on the CPU; `None` selects those of the variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<KernelLibrary>,
    /// The clip, with every setting filled in.
    pub clip: GenerateRequest,
    /// The file of the initial noise, instead of the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<NoiseFile>,
    /// How soon it is wanted.
    pub priority: Priority,
    /// How long after its arrival it is past its deadline; the default of its priority if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Seconds>,
    /// The clip ends with the clean latent that this step predicted, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_after: Option<usize>,
    /// The steps whose snapshots are kept, besides the newest one and the one at the expert boundary.
    #[serde(default, skip_serializing_if = "KeepSteps::is_none")]
    pub keep_steps: KeepSteps,
    /// The outputs. A take has none until it is kept.
    pub outputs: Vec<OutputSpec>,
    /// Captions, logo, chroma key, audio and another frame rate.
    #[serde(default, skip_serializing_if = "is_default")]
    pub post_process: PostProcessSpec,
    /// The settings of post-processing as they are stored in the clip.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extras: BTreeMap<String, Extra>,
    /// True if settings, title and seed are stored in the outputs.
    pub metadata: bool,
    /// True if the outputs are marked as AI-generated.
    pub mark: bool,
    /// The key that mp4 files are signed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign: Option<SigningKey>,
    /// An output is given up when it makes no progress for this long.
    pub output_timeout: Seconds,
    /// The job that it goes on from, with other settings. The snapshot is in the folder `origin` of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The audition that it is a take of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub take: Option<Take>,
}

/// A file of initial noise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoiseFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it was when the job was submitted. Another content is refused.
    pub file: InputFile,
}

impl NoiseFile {
    /// Checks that the file is the one that the job was submitted with.
    ///
    /// # Errors
    /// It cannot be read, or its content has changed.
    pub fn check(&self) -> Result<(), bundle::Error> {
        let found = Digest::of_file(&self.path).map_err(bundle::Error::file("read", &self.path))?;
        if found.blake3 == self.file.digest {
            return Ok(());
        }
        let rule = "the file has changed since the job was submitted";
        let fix = "restore it, or submit the job again";
        Err(bundle::Error::value(Field::Noise, self.path.display(), rule, fix))
    }
}

/// The job that a fork goes on from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Its number.
    pub job: JobId,
    /// The steps that were done.
    pub step: usize,
    /// The steps of the whole clip: those that were done, and those that are left of the grid that applies from then on.
    pub steps: usize,
    /// What changes.
    pub fork: ForkSpec,
}

/// A take of an audition: a job that makes the first steps and one picture, until somebody keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Take {
    /// The first job of the audition, which gives it its number.
    pub audition: JobId,
    /// Its place among the takes, from 1.
    pub number: usize,
    /// The number of takes.
    pub of: usize,
}

impl Request {
    /// Checks what a job in a store cannot have: outputs that belong to the process that submits it, relative paths,
    /// names that cannot be stored as text, and a step to stop after that it does not have.
    ///
    /// # Errors
    /// Names the first output, path or setting that is refused.
    pub fn check(&self) -> Result<(), Error> {
        for output in &self.outputs {
            check_output(output)?;
        }
        check_path(Field::Bundle, &self.bundle)?;
        if let Some(noise) = &self.noise {
            check_path(Field::Noise, &noise.path)?;
        }
        for (field, path) in self.post_process_files() {
            check_path(field, path)?;
        }
        if let Some(SigningKey { certificate, key }) = &self.sign {
            check_path(Field::Sign, certificate)?;
            check_path(Field::Sign, key)?;
        }
        self.check_stop()
    }

    /// The number of steps of the whole clip, with those of the job that it is a fork of; `None` if it is that of the
    /// bundle. A fork with another grid has another number than that grid.
    pub fn steps(&self) -> Option<usize> {
        self.origin.as_ref().map(|origin| origin.steps).or(self.clip.steps)
    }

    /// Returns true if steps of the clip are left when the job has made those that it was asked for.
    pub fn is_partial(&self) -> bool {
        self.stop_after.zip(self.steps()).is_some_and(|(stop, steps)| stop < steps)
    }

    fn check_stop(&self) -> Result<(), Error> {
        let first = self.origin.as_ref().map_or(1, |origin| origin.step.max(1));
        let steps = self.steps();
        let is_right = |stop: usize| stop >= first && steps.is_none_or(|steps| stop <= steps);
        let Some(stop) = self.stop_after.filter(|stop| !is_right(*stop)) else { return Ok(()) };
        let rule = match steps {
            Some(steps) => format!("this clip can end after {first} to {steps} of its {steps} steps"),
            None => format!("this clip can end after {first} or more of its steps"),
        };
        Err(bundle::Error::value(Field::StopAfter, stop, rule, "give a number in that range").into())
    }

    fn post_process_files(&self) -> impl Iterator<Item = (Field, &Path)> {
        let PostProcessSpec { logo, key, audio, .. } = &self.post_process;
        let logo = logo.iter().map(|(path, _)| (Field::Logo, &**path));
        let key = key.iter().map(|(_, path)| (Field::Background, &**path));
        logo.chain(key).chain(audio.iter().map(|source| (Field::Audio, source.path())))
    }

    /// The JSON of the request.
    ///
    /// # Errors
    /// [`Self::from_json`] would not read the same request: a path is not UTF-8, a number is not finite, or the version
    /// is not [`REQUEST_VERSION`].
    pub fn to_json(&self) -> Result<String, Error> {
        let json =
            serde_json::to_string_pretty(self).map_err(|error| Error::Request { why: error.to_string() })?;
        if Self::from_json(&json)? == *self {
            Ok(json)
        } else {
            Err(Error::Request { why: "it cannot be stored as text without a change".to_owned() })
        }
    }

    /// Reads a request from JSON.
    ///
    /// # Errors
    /// The text is not a request, or one of another version.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let wrong = |why: String| Error::Request { why };
        let Version { version } = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if version > REQUEST_VERSION {
            let what = "the request of a job".to_owned();
            return Err(Error::Newer { what, found: version.into(), reads: REQUEST_VERSION.into() });
        }
        if version != REQUEST_VERSION {
            return Err(wrong(format!("its version is {version}, and this program reads {REQUEST_VERSION}")));
        }
        serde_json::from_str(text).map_err(|error| wrong(error.to_string()))
    }
}

fn check_output(output: &OutputSpec) -> Result<(), Error> {
    let refused = |rule: &str| {
        let fix = "give a file, a folder, hls:DIR or an rtmp: address; `rushes generate` writes the others";
        Err(bundle::Error::value(Field::Output, format!("`{output}`"), rule, fix).into())
    };
    match output {
        OutputSpec::File { path, .. }
        | OutputSpec::Frames { folder: path }
        | OutputSpec::Hls { folder: path } => check_path(Field::Output, path),
        OutputSpec::Rtmp { .. } => Ok(()),
        OutputSpec::Stdout => refused("a job is made by another process, which has its own standard output"),
        OutputSpec::Window => refused("a job is made later, when nobody may be watching"),
        OutputSpec::Rtsp { .. } => refused("a job is made later, when no client may be connected"),
        OutputSpec::Whip { .. } => refused("its token would be stored"),
    }
}

fn check_path(field: Field, path: &Path) -> Result<(), Error> {
    let refused = |rule: &str, fix: &str| {
        Err(bundle::Error::value(field, format!("`{}`", path.display()), rule, fix).into())
    };
    if path.to_str().is_none() {
        return refused("a job stores paths as text, and this one is not UTF-8", "rename it");
    }
    if !path.is_absolute() {
        return refused("a job is made by a process in another folder", "give an absolute path");
    }
    Ok(())
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use bundle::units::Seed;
    use media::post_process::{AudioSource, Corner};
    use proptest::prelude::*;

    /// A request with eight steps and one output.
    pub(crate) fn request() -> Request {
        Request {
            version: REQUEST_VERSION,
            bundle: "/models/bundle".into(),
            model: "mini".to_owned(),
            precision: None,
            kernels: None,
            clip: GenerateRequest { steps: Some(8), ..GenerateRequest::new("a boat", Seed(7)) },
            noise: None,
            priority: Priority::Normal,
            deadline: None,
            stop_after: None,
            keep_steps: KeepSteps::None,
            outputs: vec!["/clips/boat.mp4".parse().unwrap()],
            post_process: PostProcessSpec::default(),
            extras: BTreeMap::new(),
            metadata: true,
            mark: true,
            sign: None,
            output_timeout: Seconds::try_new(20.0).unwrap(),
            origin: None,
            take: None,
        }
    }

    /// The text of a request that users may find in a store.
    #[test]
    fn json_of_a_request() {
        let mut request = request();
        request.keep_steps = "2,4".parse().unwrap();
        request.take = Some(Take { audition: JobId(3), number: 1, of: 4 });
        let file = InputFile { name: "noise.safetensors".to_owned(), digest: "0".repeat(64) };
        request.noise = Some(NoiseFile { path: "/noise.safetensors".into(), file });
        insta::assert_snapshot!(request.to_json().unwrap());
    }

    #[test]
    fn another_version_is_refused_by_number() {
        let json = request().to_json().unwrap();
        let newer = json.replacen("\"version\": 1", "\"version\": 2, \"tomorrow\": []", 1);
        assert!(matches!(Request::from_json(&newer), Err(Error::Newer { found: 2, reads: 1, .. })));
        let older = json.replacen("\"version\": 1", "\"version\": 0", 1);
        assert!(Request::from_json(&older).unwrap_err().to_string().contains("version is 0"));
        for wrong in ["", "{", "[]", "{}", &json.replacen("\"model\"", "\"modell\"", 1)] {
            assert!(matches!(Request::from_json(wrong), Err(Error::Request { .. })), "{wrong}");
        }
        let mut changed = request();
        changed.version = 2;
        assert!(changed.to_json().is_err());
    }

    #[test]
    fn what_another_process_cannot_use_is_refused_by_name() {
        let refused = |change: &dyn Fn(&mut Request)| {
            let mut request = request();
            change(&mut request);
            request.check().unwrap_err().to_string()
        };
        let output = |text: &str| refused(&|request| request.outputs = vec![text.parse().unwrap()]);
        for text in [
            "clip.mp4",
            "frames/",
            "hls:stream",
            "-",
            "window",
            "rtsp://127.0.0.1/cat",
            "whip:https://host/cat",
        ] {
            assert!(output(text).starts_with("output cannot be"), "{}", output(text));
        }
        assert!(
            refused(&|request| request.bundle = "bundle".into()).starts_with("bundle cannot be `bundle`")
        );
        let key = || SigningKey { certificate: "/chain.pem".into(), key: "key.pem".into() };
        assert!(refused(&|request| request.sign = Some(key())).contains("`key.pem`"));
        assert!(
            refused(&|request| {
                request.post_process.audio = Some(AudioSource::File("song.ogg".into()));
            })
            .starts_with("audio")
        );
        let logo = || Some(("logo.png".into(), Corner::TopLeft));
        assert!(refused(&|request| request.post_process.logo = logo()).starts_with("logo"));
        for stop in [0, 9] {
            let said = refused(&|request| request.stop_after = Some(stop));
            assert!(said.starts_with(&format!("stop_after cannot be {stop}")), "{said}");
        }
        let mut whole = request();
        whole.stop_after = Some(8);
        whole.outputs = ["/clips/frames/", "hls:/clips/stream", "rtmp://host/app/key"]
            .map(|text| text.parse().unwrap())
            .into();
        whole.check().unwrap();
    }

    /// A grid of 12 steps, of which 4 are below the noise of the snapshot after step 3.
    #[test]
    fn a_fork_has_the_steps_that_it_makes() {
        let mut request = request();
        assert_eq!(request.steps(), Some(8));
        request.clip.steps = Some(12);
        let fork = ForkSpec::default();
        request.origin = Some(Origin { job: JobId(2), step: 3, steps: 7, fork });
        assert_eq!(request.steps(), Some(7));
        for (stop, is_right) in [(0, false), (2, false), (3, true), (6, true), (7, true), (8, false)] {
            request.stop_after = Some(stop);
            assert_eq!(request.is_partial(), stop < 7, "{stop}");
            let said = request.check().map_or_else(|error| error.to_string(), |()| String::new());
            assert_eq!(said.is_empty(), is_right, "{stop}: {said}");
            assert!(is_right || said.contains("after 3 to 7 of its 7 steps"), "{said}");
        }
        request.stop_after = None;
        assert!(!request.is_partial());
        assert_eq!(Request::from_json(&request.to_json().unwrap()).unwrap(), request);
    }

    proptest! {
        #[test]
        fn json_keeps_every_number_and_text(
            prompt in ".*", negative in proptest::option::of(".*"), seed in any::<u64>(),
            noise_scale in proptest::num::f32::POSITIVE, shift in proptest::option::of(proptest::num::f64::NORMAL),
            timeout in 0.0..1e9_f64, kept in proptest::collection::vec(1_usize..1000, 0..4), number in 1_usize..9,
        ) {
            let mut request = request();
            request.clip = GenerateRequest { negative, shift, noise_scale, ..GenerateRequest::new(prompt, Seed(seed)) };
            request.output_timeout = Seconds::try_new(timeout).unwrap();
            request.keep_steps = KeepSteps::Some(kept);
            request.take = Some(Take { audition: JobId(seed >> 12), number, of: 9 });
            if noise_scale.is_finite() {
                prop_assert_eq!(Request::from_json(&request.to_json().unwrap()).unwrap(), request);
            } else {
                prop_assert!(request.to_json().is_err());
            }
        }
    }
}
