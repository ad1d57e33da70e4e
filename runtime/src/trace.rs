//! Files for parity checks with other implementations: the noise as input, all intermediate tensors as output.

use crate::Error;
use crate::decode::pictures;
use crate::text_encoder::TextStates;
use bundle::Diagnose;
use bundle::geometry::LatentShape;
use bundle::part_file::PartFile;
use ndarray::{Array4, ArrayView, Axis, Dimension};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Reads the tensor `noise` `[C,T,h,w]` f32 from a safetensors file.
///
/// # Errors
/// The file cannot be read, or its tensor is missing, has another number format or another shape.
pub fn read_noise(path: &Path, shape: LatentShape) -> Result<Array4<f32>, Error> {
    let wrong = |why: String| Error::NoiseFile { path: path.to_owned(), why };
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
    let Ok(tensor) = file.tensor("noise") else {
        return Err(wrong("it has no tensor `noise`".into()));
    };
    if tensor.dtype() != Dtype::F32 {
        return Err(wrong(format!("`noise` is {:?} and should be F32", tensor.dtype())));
    }
    let expected = [shape.channels, shape.frames, shape.height, shape.width];
    if tensor.shape() != expected {
        return Err(wrong(format!(
            "`noise` has shape {:?} and this clip needs {expected:?}",
            tensor.shape()
        )));
    }
    let values =
        tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let noise = Array4::from_shape_vec(shape.dims(), values).map_err(|error| wrong(error.to_string()))?;
    if noise.iter().all(|value| value.is_finite()) {
        Ok(noise)
    } else {
        Err(wrong("`noise` contains values that are not finite".into()))
    }
}

/// Collects the tensors of a run and writes them as one safetensors file.
///
/// `prompt_embeds` and `negative_prompt_embeds` `[512,D]`; `latents.000`, … `[C,T,h,w]` after each step; `frames`
/// `[F,H,W,3]` in 0..1 before rounding. All are f32.
#[derive(Debug)]
pub struct Trace {
    path: PathBuf,
    file: PartFile,
    tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
    latents: usize,
    frames: Vec<Array4<f32>>,
}

impl Trace {
    /// Creates an empty trace for `path`.
    ///
    /// # Errors
    /// The folder does not exist or is not writable, the file cannot be replaced, or another run is writing it.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let refused = |why: &str| Err(Error::TraceFile { path: path.to_owned(), why: why.into() });
        if path == Path::new("-") {
            return refused(
                "a trace is a file that is written after the run; it cannot go to standard output",
            );
        }
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return refused("the path exists and is not a regular file");
        }
        // Fails now rather than after the run. An existing trace is left alone until then.
        let file = PartFile::create(path, is_safetensors_start)
            .map_err(|error| Error::TraceFile { path: path.to_owned(), why: error.report().why })?;
        Ok(Self { path: path.to_owned(), file, tensors: Vec::new(), latents: 0, frames: Vec::new() })
    }

    fn push<D: Dimension>(&mut self, name: String, values: ArrayView<'_, f32, D>) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push((name, values.shape().to_vec(), bytes));
    }

    /// Adds the text states of the prompt and, with guidance, of the negative prompt.
    pub fn text(&mut self, prompt: &TextStates, negative: Option<&TextStates>) {
        self.push("prompt_embeds".into(), prompt.rows().view());
        if let Some(negative) = negative {
            self.push("negative_prompt_embeds".into(), negative.rows().view());
        }
    }

    /// Adds the latent after a step.
    pub fn latent(&mut self, latent: &Array4<f32>) {
        self.push(format!("latents.{:03}", self.latents), latent.view());
        self.latents += 1;
    }

    /// Adds frames `[N,3,H,W]` in -1..1 from the decoder.
    pub fn frames(&mut self, frames: &Array4<f32>) {
        self.frames.push(pictures(frames.view()));
    }

    /// Writes the file.
    ///
    /// # Errors
    /// I/O errors, with the path.
    pub fn write(mut self) -> Result<PathBuf, Error> {
        let path = self.path.clone();
        let wrong = |why: String| Error::TraceFile { path: path.clone(), why };
        let chunks: Vec<_> = std::mem::take(&mut self.frames);
        if !chunks.is_empty() {
            let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
            let frames = ndarray::concatenate(Axis(0), &views).map_err(|error| wrong(error.to_string()))?;
            self.push("frames".into(), frames.view());
        }
        let views = self.tensors.iter().map(|(name, shape, bytes)| {
            TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (name, view))
        });
        let views = views.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(error.to_string()))?;
        let file = safetensors::serialize(views, None).map_err(|error| wrong(error.to_string()))?;
        let written = self.file.open().and_then(|mut part| part.write_all(&file));
        if let Err(error) = written {
            self.file.discard();
            return Err(wrong(error.to_string()));
        }
        self.file.publish().map_err(|error| wrong(error.report().why))?;
        Ok(self.path)
    }
}

/// Returns true if a file starts like a safetensors file: the length of its header, then the header.
fn is_safetensors_start(head: &[u8]) -> bool {
    head.get(4..9) == Some(b"\0\0\0\0{")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: LatentShape = LatentShape { channels: 1, frames: 1, height: 2, width: 2 };

    fn file_with(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> tempfile::NamedTempFile {
        let view = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), safetensors::serialize([(name, view)], None).unwrap()).unwrap();
        file
    }

    #[test]
    fn noise_of_another_name_format_shape_or_value_is_refused() {
        let good: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let nan: Vec<u8> = [1.0_f32, f32::NAN, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let read = |file: &tempfile::NamedTempFile| read_noise(file.path(), SHAPE);
        let noise = read(&file_with("noise", Dtype::F32, &[1, 1, 2, 2], &good)).unwrap();
        assert_eq!(noise[[0, 0, 1, 0]], 3.0);
        let why = |file| read(&file).unwrap_err().to_string();
        assert!(why(file_with("noises", Dtype::F32, &[1, 1, 2, 2], &good)).contains("no tensor `noise`"));
        assert!(why(file_with("noise", Dtype::I32, &[1, 1, 2, 2], &good)).contains("should be F32"));
        assert!(why(file_with("noise", Dtype::F32, &[1, 2, 2], &good)).contains("[1, 1, 2, 2]"));
        assert!(why(file_with("noise", Dtype::F32, &[1, 1, 2, 2], &nan)).contains("not finite"));
        let cut = file_with("noise", Dtype::F32, &[1, 1, 2, 2], &good);
        std::fs::write(cut.path(), b"\x40").unwrap();
        assert!(read(&cut).is_err());
        assert!(read_noise(Path::new("no/such/file"), SHAPE).is_err());
    }

    #[test]
    fn a_trace_is_refused_early_and_never_half_written() {
        assert!(matches!(
            Trace::create(Path::new("no/such/folder/t.safetensors")),
            Err(Error::TraceFile { .. })
        ));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let mut trace = Trace::create(&path).unwrap();
        assert!(!path.exists());
        for _ in 0..2 {
            let error = Trace::create(&path).unwrap_err().to_string();
            assert!(error.contains("another run"), "{error}");
        }
        trace.latent(&Array4::from_elem(SHAPE.dims(), 0.5));
        trace.frames(&Array4::from_elem((1, 3, 2, 2), -1.0));
        trace.frames(&Array4::from_elem((4, 3, 2, 2), 1.0));
        trace.write().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("latents.000").unwrap().shape(), [1, 1, 2, 2]);
        assert_eq!(file.tensor("frames").unwrap().shape(), [5, 2, 2, 3]);
    }
}
