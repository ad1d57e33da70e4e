//! Weights that are changed: streamed in parallel through their transforms into a new safetensors file.
//!
//! The digests of what is read and of what is written are computed in the same pass. Holes of sparse files stay holes
//! where zeros stay zeros.

use super::new_file::{Alignment, NewFile, Stored, write_new};
use super::number_format::first_non_finite;
use super::scan::Verify;
use super::transform::{Block, Transforms, Workspace};
use super::{Destination, PlacedWeights, location};
use crate::Error;
use crate::checkpoint::inventory::Required;
use crate::checkpoint::shards::{ShardFile, Shards, StoredTensor};
use crate::digests;
use crate::file_data::DataRanges;
use crate::pieces::{Found, PieceHasher, ReadPieces};
use bundle::dtype::ElementType;
use bundle::file_digest::PIECE;
use rayon::prelude::*;
use std::ops::Range;

/// Elements of a block; a thread has three buffers of this size.
pub(crate) const BLOCK: usize = 1 << 16;

/// Converted weights.
#[derive(Debug)]
pub struct Converted {
    /// Where they are.
    pub placed: PlacedWeights,
    /// Digest over every byte of the new file, see [`bundle::file_digest::of_pieces`].
    pub digest: String,
    /// What was read of the checkpoint, for [`scan_rest`](super::scan::scan_rest); nothing unless every byte is
    /// verified.
    pub read: ReadPieces,
}

impl Converted {
    /// Returns the digest of each file, for [`digests::complete`].
    pub(crate) fn known(&self) -> digests::Known {
        self.placed.files.iter().map(|file| (file.file.clone(), Some(self.digest.clone()))).collect()
    }
}

/// Writes the required weights of a component into a new file, changed by `transforms`. Weights that they do not change
/// are copied. Memory: a few MB per thread.
///
/// With [`Verify::Whole`], elements that are not finite are only noted in [`Converted::read`], so that the scan that
/// follows can report the first one; the new file must not be used then.
///
/// # Errors
/// Returns an error if a weight is missing, is not floating-point or is out of range, or if a transform does not fit it;
/// and I/O errors. Nothing is left of the file then.
pub fn place(
    shards: &Shards,
    required: &[Required],
    transforms: &Transforms,
    destination: Destination<'_>,
    verify: Verify,
) -> Result<Converted, Error> {
    let mut tensors = required
        .iter()
        .map(|required| shards.tensor(&required.name))
        .collect::<Result<Vec<StoredTensor<'_>>, _>>()?;
    let float = [ElementType::F32, ElementType::F16, ElementType::Bf16];
    if let Some(tensor) = tensors.iter().find(|tensor| !float.contains(&tensor.element)) {
        return Err(Error::WrongType { name: tensor.name.to_owned(), found: tensor.element });
    }
    // In file order.
    tensors.sort_by(|a, b| (a.file.path(), a.offset).cmp(&(b.file.path(), b.offset)));

    let stored: Vec<Stored> = tensors
        .iter()
        .map(|tensor| Stored {
            name: tensor.name.to_owned(),
            element: transforms.output(tensor.name, tensor.element),
            shape: tensor.shape.to_vec(),
        })
        .collect();
    let name = file_name(&stored);
    let path = destination.create_folder()?.join(&name);
    let data: Vec<DataRanges> = shards.files().iter().map(ShardFile::data_ranges).collect();
    let number_of = |file: &ShardFile| shards.files().iter().position(|other| std::ptr::eq(other, file));
    // Every tensor is in one of the files.
    let files: Vec<usize> = tensors.iter().filter_map(|tensor| number_of(tensor.file)).collect();
    let units: Vec<(usize, Range<usize>)> = tensors
        .iter()
        .zip(&stored)
        .enumerate()
        .flat_map(|(index, (tensor, stored))| {
            let elements = tensor.length / tensor.element.bytes();
            let each = unit(tensor.element, stored.element);
            (0..elements).step_by(each).map(move |start| (index, start..elements.min(start + each)))
        })
        .collect();
    let mut hashes = Vec::new();
    let written = write_new(&path, &location(&name), &stored, Alignment::Pages, |file| {
        let convert = |worker: &mut Worker, (index, elements): &(usize, Range<usize>)| {
            destination.check()?;
            let source = UnitSource {
                tensor: &tensors[*index],
                data: &data[files[*index]],
                is_hashed: verify == Verify::Whole && tensors[*index].strides.is_none(),
            };
            let target = UnitTarget { file, index: *index, element: stored[*index].element };
            worker.convert(&source, elements.clone(), transforms, &target)
        };
        hashes = units.par_iter().map_init(Worker::default, convert).collect::<Result<_, _>>()?;
        Ok(())
    })?;
    let (mut read, mut made) = (ReadPieces::default(), ReadPieces::default());
    for ((index, elements), Hashes { source, target }) in units.iter().zip(hashes) {
        let tensor = &tensors[*index];
        let at = |offset: u64, element: ElementType| offset + (elements.start * element.bytes()) as u64;
        read.extend(files[*index], at(tensor.offset, tensor.element), source);
        if let Some(placed) = written.tensors.get(tensor.name) {
            made.extend(0, at(placed.offset, placed.element), target);
        }
    }
    let digest = digests::whole_of_new(&path, &made)?;
    let files = vec![destination.entry(&name, written.bytes)];
    let placed = PlacedWeights { tensors: written.tensors, files, from: shards.folder().to_owned() };
    Ok(Converted { placed, digest, read })
}

/// Returns the elements that one thread changes in one go: whole pieces of both files.
fn unit(from: ElementType, to: ElementType) -> usize {
    PIECE / from.bytes().min(to.bytes())
}

/// A weight that is read.
struct UnitSource<'a> {
    tensor: &'a StoredTensor<'a>,
    /// Where its file holds data.
    data: &'a DataRanges,
    /// True to hash what is read and to search it for elements that are not finite.
    is_hashed: bool,
}

/// A weight that is written.
struct UnitTarget<'a> {
    file: &'a NewFile,
    /// Its number in the file.
    index: usize,
    element: ElementType,
}

/// The pieces of a unit.
struct Hashes {
    source: Vec<Found>,
    target: Vec<Found>,
}

/// The buffers and hashes of a thread.
#[derive(Default)]
struct Worker {
    buffers: Buffers,
    source: PieceHasher,
    target: PieceHasher,
}

impl Worker {
    fn convert(
        &mut self,
        source: &UnitSource<'_>,
        elements: Range<usize>,
        transforms: &Transforms,
        target: &UnitTarget<'_>,
    ) -> Result<Hashes, Error> {
        let UnitSource { tensor, data, is_hashed } = *source;
        let (from, to) = (tensor.element, target.element);
        let may_have_holes = tensor.strides.is_none() && transforms.keeps_zeros(tensor.name);
        // What an earlier unit left after an error.
        (self.source, self.target) = Default::default();
        for start in elements.clone().step_by(BLOCK) {
            let block = start..elements.end.min(start + BLOCK);
            if may_have_holes && data.is_hole(&span_in_file(tensor, &block)) {
                if is_hashed {
                    self.source.zeros(block.len() * from.bytes());
                }
                self.target.zeros(block.len() * to.bytes());
                continue;
            }
            let stored = self.buffers.read(tensor, block.clone())?;
            if is_hashed {
                if let Some(bad) = first_non_finite(from, stored) {
                    self.source.mark_bad(block.start + bad);
                }
                self.source.update(stored);
                if self.source.has_bad() {
                    // The export fails: nothing of this unit is written, and its hashes are never used.
                    self.target.zeros(block.len() * to.bytes());
                    continue;
                }
            }
            let changed = self.buffers.transform(tensor, &block, transforms)?;
            self.target.update(changed);
            let write = |part: Range<usize>| {
                let bytes = (part.start - block.start) * to.bytes()..(part.end - block.start) * to.bytes();
                target.file.write(target.index, part.start * to.bytes(), &changed[bytes])
            };
            if may_have_holes {
                data_within(tensor, block.clone(), data).try_for_each(write)?;
            } else {
                write(block.clone())?;
            }
        }
        Ok(Hashes { source: self.source.finish(), target: self.target.finish() })
    }
}

/// Returns the bytes of elements of a tensor in its file.
fn span_in_file(tensor: &StoredTensor<'_>, elements: &Range<usize>) -> Range<u64> {
    let place = |element: usize| tensor.offset + (element * tensor.element.bytes()) as u64;
    place(elements.start)..place(elements.end)
}

/// Returns the elements in a range that are not in a hole.
fn data_within(
    tensor: &StoredTensor<'_>,
    elements: Range<usize>,
    data: &DataRanges,
) -> impl Iterator<Item = Range<usize>> {
    let (each, offset) = (tensor.element.bytes() as u64, tensor.offset);
    let element = move |byte: u64| usize::try_from(byte / each).unwrap_or(usize::MAX);
    data.within(span_in_file(tensor, &elements))
        .map(move |data| element(data.start - offset)..element((data.end - offset).next_multiple_of(each)))
}

/// Returns the name of the file: the number format of its weights, if they have the same.
fn file_name(stored: &[Stored]) -> String {
    let mut elements = stored.iter().map(|tensor| tensor.element);
    let first = elements.next().filter(|first| elements.all(|element| element == *first));
    format!("{}.safetensors", first.map_or("mixed".into(), |element| element.to_string()))
}

/// The buffers of a thread.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    stored: Vec<u8>,
    work: Workspace,
}

impl Buffers {
    /// Reads at most [`BLOCK`] elements of a tensor, and changes them.
    pub(crate) fn transformed<'a>(
        &'a mut self,
        tensor: &StoredTensor<'a>,
        elements: Range<usize>,
        transforms: &Transforms,
    ) -> Result<&'a [u8], Error> {
        self.read(tensor, elements.clone())?;
        self.transform(tensor, &elements, transforms)
    }

    /// Reads elements of a tensor.
    fn read(&mut self, tensor: &StoredTensor<'_>, elements: Range<usize>) -> Result<&[u8], Error> {
        let element = tensor.element;
        self.stored.resize(elements.len() * element.bytes(), 0);
        tensor.read_at(elements.start * element.bytes(), &mut self.stored)?;
        Ok(&self.stored)
    }

    /// Changes the elements that were read.
    fn transform<'a>(
        &'a mut self,
        tensor: &StoredTensor<'a>,
        elements: &Range<usize>,
        transforms: &Transforms,
    ) -> Result<&'a [u8], Error> {
        let (name, shape, element, path) = (tensor.name, tensor.shape, tensor.element, tensor.file.path());
        let block = Block { name, shape, element, start: elements.start, bytes: &self.stored, path };
        transforms.apply(block, &mut self.work)
    }
}

#[cfg(test)]
#[path = "converted_tests.rs"]
mod tests;
