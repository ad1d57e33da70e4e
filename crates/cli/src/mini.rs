//! The embedded model *mini*, which is exported to the user's cache on first use.

use crate::Error;
use bundle::Field;
use bundle::dtype::WeightType;
use bundle::stop::Stop;
use bundle::variant::{Precision, Target};
use std::path::{Path, PathBuf};

/// The form in which the embedded model is exported. Every form has graphs for the CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MiniForm {
    /// The other targets, in order and each once.
    accelerators: Vec<Target>,
    /// The number format of the weights, and of the arithmetic on accelerators.
    weights: WeightType,
}

impl MiniForm {
    /// For the CPU, with weights in f32. The checkpoint is in f16 to keep the program small; f32 weights open faster and
    /// can be mapped.
    pub fn cpu() -> Self {
        Self { accelerators: Vec::new(), weights: WeightType::F32 }
    }

    /// With graphs for these targets. For the CPU alone the precision is not looked at: other precisions there are
    /// variants that `rushes quantize` adds to the bundle.
    ///
    /// # Errors
    /// Returns an error if the model is not exported in this precision for an accelerator.
    pub fn new(
        targets: impl IntoIterator<Item = Target>,
        precision: Precision,
    ) -> Result<Self, bundle::Error> {
        let mut accelerators: Vec<Target> =
            targets.into_iter().filter(|target| *target != Target::Cpu).collect();
        if accelerators.is_empty() {
            return Ok(Self::cpu());
        }
        accelerators.sort_unstable();
        accelerators.dedup();
        let weights = match precision {
            Precision::F32 => WeightType::F32,
            Precision::Bf16 => WeightType::Bf16,
            Precision::F16 | Precision::Int8 | Precision::Fp8 | Precision::Int8Weights => {
                return Err(bundle::Error::value(
                    Field::Precision,
                    format!("`{precision}`"),
                    "the embedded model has graphs for accelerators in f32 and bf16 only",
                    "use f32 or bf16, or export models/mini/checkpoint of the repository and give it as `bundle`",
                ));
            }
        };
        Ok(Self { accelerators, weights })
    }

    /// The end of the name of the bundle's folder, such as `-plain-bf16`; empty for the CPU alone.
    fn suffix(&self) -> String {
        if self.accelerators.is_empty() {
            return String::new();
        }
        let targets: Vec<&str> = self.accelerators.iter().map(|target| target.name()).collect();
        format!("-{}-{}", targets.join("-"), self.weights)
    }
}

/// A notice to the user while the embedded model is prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MiniEvent {
    /// Another run is exporting the model; this one waits.
    Waiting,
    /// The bundle in the cache is damaged and is exported again.
    Repairing {
        /// The folder of the bundle.
        folder: PathBuf,
    },
}

impl std::fmt::Display for MiniEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Waiting => f.write_str("another run is exporting the embedded model; waiting for it"),
            Self::Repairing { folder } => write!(
                f,
                "warning: the embedded model in {} is damaged and is exported again, without any quantised variants",
                folder.display()
            ),
        }
    }
}

/// Returns the folder of the embedded model's bundle for the CPU. The model is exported if the bundle is absent or damaged.
///
/// `cache` replaces the folder `rushes` in the user's cache.
///
/// # Errors
/// Returns an error if there is no cache folder, if it cannot be written, or if the program was built without the
/// model.
pub fn bundle_folder(cache: Option<&Path>) -> Result<PathBuf, Error> {
    prepare(cache, &MiniForm::cpu(), &Stop::new(), &mut |_| ())
}

/// [`bundle_folder`] for any form, with events, and with a way to stop it.
///
/// # Errors
/// See [`bundle_folder`]; also returns an error if `stop` is requested.
pub fn prepare(
    cache: Option<&Path>,
    form: &MiniForm,
    stop: &Stop,
    on_event: &mut dyn FnMut(MiniEvent),
) -> Result<PathBuf, Error> {
    let cache = cache_folder(cache).ok_or(Error::NoCacheFolder)?;
    embedded::bundle_in(&cache, form, stop, on_event)
}

/// The folder of generated files: `given`, or `rushes` in the user's cache; `None` if that is not known.
pub(crate) fn cache_folder(given: Option<&Path>) -> Option<PathBuf> {
    given.map(Path::to_owned).or_else(|| Some(user_cache()?.join("rushes")))
}

/// The user's cache folder, by the XDG base directory specification.
fn user_cache() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))
}

#[cfg(feature = "embed-mini")]
mod embedded {
    use super::{MiniEvent, MiniForm};
    use crate::Error;
    use bundle::digest::Digest;
    use bundle::layout;
    use bundle::manifest::{Bundle, FORMAT};
    use bundle::staging::Staging;
    use bundle::stop::Stop;
    use bundle::variant::Target;
    use export::ExportRequest;
    use include_dir::{Dir, include_dir};
    use rayon::prelude::*;
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    static CHECKPOINT: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../models/mini/checkpoint");

    /// The file with the digests of the exported files, relative to the bundle.
    const DIGESTS: &str = "exported.json";
    /// The time between two checks for the end of another run.
    const POLL_INTERVAL: Duration = Duration::from_millis(50);

    pub(super) fn bundle_in(
        cache: &Path,
        form: &MiniForm,
        stop: &Stop,
        on_event: &mut dyn FnMut(MiniEvent),
    ) -> Result<PathBuf, Error> {
        // The name depends on the checkpoint, the bundle format, the version of the exporter and the form.
        let (short, version) = (digest().short().to_owned(), env!("CARGO_PKG_VERSION"));
        let name = format!("mini-{short}-v{version}-{FORMAT}{}", form.suffix());
        let folder = cache.join(name);
        let mut is_waiting = false;
        let staging = loop {
            if is_whole(&folder) {
                return Ok(folder);
            }
            match Staging::replace(&folder) {
                Ok(staging) => break staging,
                Err(bundle::Error::Busy { .. }) => {
                    if !std::mem::replace(&mut is_waiting, true) {
                        on_event(MiniEvent::Waiting);
                    }
                    stop.check()?;
                    std::thread::sleep(POLL_INTERVAL);
                }
                Err(error) => return Err(error.into()),
            }
        };
        // Another run may have finished between the check and the lock.
        if is_whole(&folder) {
            return Ok(folder);
        }
        if folder.exists() {
            on_event(MiniEvent::Repairing { folder: folder.clone() });
        }
        // The model is named after this folder.
        let checkpoint = staging.scratch()?.join("mini");
        write(&checkpoint)?;
        let request = ExportRequest {
            targets: [Target::Cpu].into_iter().chain(form.accelerators.iter().copied()).collect(),
            weights: Some(form.weights),
            stop: stop.clone(),
            ..ExportRequest::new(&checkpoint, &folder)
        };
        let staged = staging.folder();
        export::export_into(&request, &staged, &mut |_| ())?;
        write_digests(&staged)?;
        stop.check()?;
        staging.publish(layout::MANIFEST)?;
        Ok(folder)
    }

    /// Returns true if every exported file of the bundle still has its bytes. Variants and calibrations that were added
    /// later are not checked. The bundle is small, so all of it is read.
    fn is_whole(folder: &Path) -> bool {
        let Ok(bundle) = Bundle::open(folder) else { return false };
        let Ok(text) = std::fs::read(folder.join(DIGESTS)) else { return false };
        let Ok(digests) = serde_json::from_slice::<BTreeMap<String, String>>(&text) else { return false };
        let named = bundle.manifest.files();
        !digests.is_empty()
            && digests.par_iter().all(|(file, digest)| {
                (file == layout::TOKENIZER || named.contains(file.as_str()))
                    && digest_of(&folder.join(file)).is_ok_and(|found| found == *digest)
            })
    }

    fn write_digests(folder: &Path) -> Result<(), Error> {
        let bundle = Bundle::open(folder)?;
        let files = bundle.manifest.files().into_iter().chain([layout::TOKENIZER]);
        let mut digests = BTreeMap::new();
        for file in files {
            let path = bundle.path(file);
            digests.insert(file, digest_of(&path).map_err(bundle::Error::file("read", &path))?);
        }
        let path = folder.join(DIGESTS);
        let text = serde_json::to_vec_pretty(&digests)
            .map_err(|error| bundle::Error::Manifest { path: path.clone(), why: error.to_string() })?;
        std::fs::write(&path, text).map_err(bundle::Error::file("write", &path))?;
        Ok(())
    }

    fn digest_of(file: &Path) -> std::io::Result<String> {
        Ok(Digest::of_parts([std::fs::read(file)?.as_slice()]).blake3)
    }

    fn write(checkpoint: &Path) -> Result<(), Error> {
        for file in files(&CHECKPOINT) {
            let path = checkpoint.join(file.path());
            let folder = path.parent().unwrap_or(checkpoint);
            std::fs::create_dir_all(folder).map_err(bundle::Error::file("create", folder))?;
            std::fs::write(&path, file.contents()).map_err(bundle::Error::file("write", &path))?;
        }
        Ok(())
    }

    fn files(dir: &'static Dir<'static>) -> Vec<&'static include_dir::File<'static>> {
        let mut all: Vec<_> = dir.files().collect();
        all.extend(dir.dirs().flat_map(files));
        all
    }

    fn digest() -> Digest {
        let mut parts: Vec<_> = files(&CHECKPOINT);
        parts.sort_by_key(|file| file.path());
        Digest::of_parts(
            parts.iter().flat_map(|file| [file.path().as_os_str().as_encoded_bytes(), file.contents()]),
        )
    }
}

#[cfg(not(feature = "embed-mini"))]
mod embedded {
    use super::{MiniEvent, MiniForm};
    use crate::Error;
    use bundle::stop::Stop;
    use std::path::{Path, PathBuf};

    pub(super) fn bundle_in(
        _cache: &Path,
        _form: &MiniForm,
        _stop: &Stop,
        _on_event: &mut dyn FnMut(MiniEvent),
    ) -> Result<PathBuf, Error> {
        Err(Error::NoEmbeddedModel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suffix(targets: &[Target], precision: Precision) -> String {
        MiniForm::new(targets.iter().copied(), precision).unwrap().suffix()
    }

    #[test]
    fn the_form_is_part_of_the_name_of_the_folder() {
        assert_eq!(suffix(&[], Precision::F32), "");
        assert_eq!(suffix(&[Target::Cpu], Precision::Int8), "");
        assert_eq!(suffix(&[Target::Cpu, Target::Plain], Precision::F32), "-plain-f32");
        assert_eq!(suffix(&[Target::Plain], Precision::Bf16), "-plain-bf16");
        assert_eq!(suffix(&[Target::Cuda, Target::Cpu], Precision::Bf16), "-cuda-bf16");
        assert_eq!(
            suffix(&[Target::Plain, Target::Cuda, Target::Plain], Precision::Bf16),
            "-cuda-plain-bf16"
        );
    }

    #[test]
    fn precisions_that_accelerators_do_not_get_are_refused_by_name() {
        for precision in [Precision::F16, Precision::Int8, Precision::Fp8, Precision::Int8Weights] {
            let error = MiniForm::new([Target::Plain], precision).unwrap_err().to_string();
            assert!(error.contains(&format!("`{precision}`")) && error.contains("f32 and bf16"), "{error}");
        }
    }
}
