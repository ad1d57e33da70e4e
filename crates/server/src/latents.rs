//! Files of initial noise that clients name: plain names in a folder of the operator, and nothing else.

use crate::fault::Fault;
use crate::named_files;
use bundle::digest::Digest;
use jobs::request::NoiseFile;
use runtime::job::InputFile;
use runtime::plan::GenerationPlan;
use runtime::trace::read_noise;
use std::path::{Path, PathBuf};

/// The file of a plain name in a folder, if the operator has named one.
///
/// # Errors
/// There is no folder, the name is not plain, or there is no such file.
pub(crate) fn find(folder: Option<&Path>, name: &str) -> Result<PathBuf, Fault> {
    let refused =
        |why: String| Err(Fault::unsupported("latent_path", format!("`latent_path` cannot be used: {why}")));
    let Some(folder) = folder else {
        return refused("the operator has named no folder of latents".to_owned());
    };
    if !named_files::is_plain(name) {
        return refused("it must be the plain name of a file, without a folder".to_owned());
    }
    named_files::find(folder, name).map_or_else(|| refused(format!("there is no file {name}")), Ok)
}

/// The noise of a clip from a file, which must have the shape of its latent.
///
/// # Errors
/// The file cannot be read, or has another shape.
pub(crate) fn noise(path: &Path, name: &str, plan: &GenerationPlan) -> Result<NoiseFile, Fault> {
    read_noise(path, plan.latent).map_err(|error| {
        let message = crate::paths::without(&error.to_string());
        Fault::parameter("latent_path", format!("`latent_path` cannot be used for {}: {message}", plan.size))
    })?;
    let digest = Digest::of_file(path).map_err(Fault::internal)?.blake3;
    Ok(NoiseFile { path: path.to_owned(), file: InputFile { name: name.to_owned(), digest } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_of_files_in_the_folder_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::create_dir(path.join("latents")).unwrap();
        std::fs::write(path.join("secret"), "x").unwrap();
        std::fs::write(path.join("latents/a.safetensors"), "x").unwrap();
        std::fs::create_dir(path.join("latents/folder")).unwrap();
        std::os::unix::fs::symlink(path.join("secret"), path.join("latents/link")).unwrap();
        let latents = path.join("latents");
        assert_eq!(find(Some(&latents), "a.safetensors").unwrap(), latents.join("a.safetensors"));
        for name in
            ["", ".", "..", "../secret", "/etc/passwd", "folder", "link", "b", "a.safetensors/", "a\0", "ä"]
        {
            let fault = find(Some(&latents), name).unwrap_err();
            assert_eq!(fault.param.as_deref(), Some("latent_path"), "{name}");
        }
        assert!(find(None, "a.safetensors").unwrap_err().message.contains("no folder"));
    }
}
