//! The files in a folder of LoRAs.

use crate::fault::Fault;
use crate::named_files;
use std::path::{Path, PathBuf};

/// The end of the name of a file.
const EXTENSION: &str = ".safetensors";
/// The most names that a refusal lists.
const MOST_LISTED: usize = 40;

/// The names of the LoRAs in a folder, sorted: those of its safetensors files, without the extension.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    files(folder).into_iter().map(|file| file.trim_end_matches(EXTENSION).to_owned()).collect()
}

/// The names of the files, sorted.
fn files(folder: &Path) -> Vec<String> {
    let names = named_files::names(folder).unwrap_or_else(|error| {
        tracing::error!("the folder of LoRAs cannot be read: {error}");
        Vec::new()
    });
    names.into_iter().filter(|name| name.ends_with(EXTENSION)).collect()
}

/// The file of a plain name, with or without its extension. `field` is the parameter that has the name.
///
/// # Errors
/// The name is not plain, or there is no such file.
pub(super) fn find(folder: &Path, name: &str, field: &'static str) -> Result<PathBuf, Fault> {
    if !named_files::is_plain(name) {
        let message = format!(
            "`{field}` cannot be used: a LoRA is named by its plain name, without a folder: letters from a to z, digits \
             and `._-`"
        );
        return Err(Fault::unsupported(field, message));
    }
    let with_extension = format!("{name}{EXTENSION}");
    let mut named = [name, &with_extension].into_iter().filter(|name| name.ends_with(EXTENSION));
    if let Some(path) = named.find_map(|name| named_files::find(folder, name)) {
        return Ok(path);
    }
    let files = files(folder);
    let listed: Vec<&str> =
        files.iter().take(MOST_LISTED).map(|file| file.trim_end_matches(EXTENSION)).collect();
    let known = match (listed.is_empty(), files.len() > MOST_LISTED) {
        (true, _) => "this server has none".to_owned(),
        (false, false) => format!("this server has {}", listed.join(", ")),
        (false, true) => format!("this server has {}, and others", listed.join(", ")),
    };
    let shown: String = name.chars().take(100).collect();
    Err(Fault::parameter(field, format!("there is no LoRA `{shown}`; {known}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_plain_names_of_files_inside_the_folder_are_found() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path();
        let loras = path.join("loras");
        std::fs::create_dir_all(loras.join("folder.safetensors")).unwrap();
        std::fs::write(path.join("secret.safetensors"), "x").unwrap();
        for name in [
            "style.safetensors",
            "v2.0-b_1.safetensors",
            "Ünïcode 2.safetensors",
            "notes.txt",
            ".hidden.safetensors",
        ] {
            std::fs::write(loras.join(name), "x").unwrap();
        }
        symlink(path.join("secret.safetensors"), loras.join("out.safetensors")).unwrap();
        symlink("style.safetensors", loras.join("alias.safetensors")).unwrap();
        symlink("nowhere", loras.join("broken.safetensors")).unwrap();
        assert_eq!(names(&loras), ["style", "v2.0-b_1"]);
        for name in ["style", "style.safetensors", "v2.0-b_1"] {
            assert!(find(&loras, name, "lora").unwrap().starts_with(&loras), "{name}");
        }
        let absolute = path.join("secret.safetensors");
        for name in [
            "",
            ".",
            "..",
            "../secret",
            "../secret.safetensors",
            absolute.to_str().unwrap(),
            "style\0",
            "a\\b",
            ".hidden",
            "Ünïcode 2",
        ] {
            let fault = find(&loras, name, "loras").unwrap_err();
            assert_eq!(
                (fault.param.as_deref(), fault.code),
                (Some("loras"), "unsupported_parameter"),
                "{name}"
            );
        }
        for name in ["out", "alias", "broken", "folder", "notes.txt", "notes", "other"] {
            let message = find(&loras, name, "lora").unwrap_err().message;
            assert!(message.ends_with("this server has style, v2.0-b_1"), "{message}");
        }
        assert!(find(&path.join("none"), "style", "lora").unwrap_err().message.contains("has none"));
    }
}
