//! Changed copies of checkpoints.

use safetensors::tensor::{SafeTensors, TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Copies a folder with all files and folders in it.
///
/// # Panics
/// Panics if a file cannot be copied.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder to copy to");
    for entry in std::fs::read_dir(from).expect("a folder to copy") {
        let entry = entry.expect("a readable entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a file that can be copied");
        }
    }
}

/// Copies a checkpoint to a temporary folder.
///
/// # Panics
/// Panics if it cannot be copied.
pub fn copy_of(checkpoint: &Path) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy_folder(checkpoint, folder.path());
    folder
}

/// The tensors of a file: number format, shape and bytes.
pub type Stored = BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>;

/// Rewrites every safetensors file of a folder.
///
/// # Panics
/// Panics if a file cannot be read or written.
pub fn rewrite(folder: &Path, mut change: impl FnMut(&mut Stored)) {
    for path in weight_files(folder) {
        let bytes = std::fs::read(&path).expect("a readable file");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let mut stored: Stored = file
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
            .collect();
        change(&mut stored);
        let views = stored.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).expect("as many bytes as the shape needs"))
        });
        let bytes = safetensors::serialize(views, None).expect("tensors that can be written");
        std::fs::write(&path, bytes).expect("a writable file");
    }
}

/// The safetensors files of a folder.
///
/// # Panics
/// Panics if the folder cannot be read.
pub fn weight_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("a readable folder")
        .map(|entry| entry.expect("a readable entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    files.sort();
    files
}

/// Changes the values of an f32 tensor. Returns false if there is no such tensor.
///
/// # Panics
/// Panics if the tensor has another number format.
pub fn change_f32(stored: &mut Stored, name: &str, change: impl Fn(f32) -> f32) -> bool {
    let Some((dtype, _, bytes)) = stored.get_mut(name) else { return false };
    assert_eq!(*dtype, safetensors::Dtype::F32, "{name} is not f32");
    for four in bytes.chunks_exact_mut(4) {
        let value = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        four.copy_from_slice(&change(value).to_le_bytes());
    }
    true
}
