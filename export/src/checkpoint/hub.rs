//! The name of a model from its folder, also in the caches of model hubs.

use std::path::Path;

/// Returns a name for display: `Org/Name` in a hub's cache, else the name of the folder.
///
/// ```text
/// models--Org--Name/snapshots/40 hexadecimal digits     Hugging Face cache
/// modelscope/…/Org/Na___me                              ModelScope cache, with ___ for a dot
/// ```
pub(super) fn name_of(folder: &Path) -> String {
    let absolute = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let last = name(&absolute);
    let parents: Vec<String> = absolute.ancestors().skip(1).map(name).collect();
    match parents.as_slice() {
        [snapshots, repository, ..] if snapshots == "snapshots" && is_commit(&last) => {
            repository.strip_prefix("models--").map_or(last, |name| name.replace("--", "/"))
        }
        [organisation, rest @ ..]
            if rest.iter().any(|folder| folder == "modelscope") && last.contains("___") =>
        {
            format!("{organisation}/{}", last.replace("___", "."))
        }
        _ => last,
    }
}

fn is_commit(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_folder_in_a_cache_has_the_name_of_its_model() {
        let folder = tempfile::tempdir().unwrap();
        for (path, expected) in [
            (
                format!("hub/models--Wan-AI--Wan2.2-T2V-A14B-Diffusers/snapshots/{COMMIT}"),
                "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
            ),
            (format!("models--mini/snapshots/{COMMIT}"), "mini"),
            (format!("my-models/snapshots/{COMMIT}"), COMMIT),
            ("models--Wan-AI--Wan2.2/snapshots/main".into(), "main"),
            (format!("models--Wan-AI--Wan2.2/{COMMIT}"), COMMIT),
            ("modelscope/hub/models/Wan-AI/Wan2___2-T2V-A14B".into(), "Wan-AI/Wan2.2-T2V-A14B"),
            ("plain/my___model".into(), "my___model"),
        ] {
            let path = folder.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            assert_eq!(name_of(&path), expected);
            assert_eq!(name_of(&path.join(".")), expected);
        }
        let target = folder.path().join(format!("models--Org--Name/snapshots/{COMMIT}"));
        std::fs::create_dir_all(&target).unwrap();
        std::os::unix::fs::symlink(&target, folder.path().join("link")).unwrap();
        assert_eq!(name_of(&folder.path().join("link")), "Org/Name");
    }
}
