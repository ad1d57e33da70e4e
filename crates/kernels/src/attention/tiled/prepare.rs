//! Prepares queries, keys and values for the tiles: norm, rotation, rounding to bf16 and packing.
#![expect(unsafe_code, reason = "each part of the shared scratch is written by one task")]

use super::super::prepare::NormedRow;
use super::{Attention, BLOCK, Layout, MAX_HEAD_WIDTH};
use crate::attention::scratch::{self, Scratch};
use crate::packing::{GROUP, STEP};
use crate::shared::{Chunks, SharedSlice};
use crate::simd::tiles::powers::{Powers, STEPS_PER_EXPONENT};
use crate::simd::tiles::{DEPTH, SIDE, Tiles};
use crate::simd::{Operation, Simd};
use crate::size::{SizeError, product};
use half::bf16;
use std::ops::Range;

/// Operands of the query blocks; the fields describe the layouts.
pub(super) struct Prepared<'a> {
    pub(super) layout: Layout,
    /// `[heads][L][width]` bf16, times `128·log2(e)/√width`.
    pub(super) queries: SharedSlice<'a, u8>,
    /// `[heads][L]`: the Euclidean norm of each query, rounded up.
    pub(super) query_lengths: SharedSlice<'a, f32>,
    /// `[heads][S/16][width/2][16][2]` bf16.
    pub(super) keys: SharedSlice<'a, u8>,
    /// `[heads][S/32]`: the largest Euclidean norm of each 32 keys, rounded up.
    pub(super) key_lengths: SharedSlice<'a, f32>,
    /// `[heads][S/256]` blocks `[width/16][256/2][16][2]` bf16, each 32 keys in the order of the probabilities.
    pub(super) values: SharedSlice<'a, u8>,
}

impl<'a> Prepared<'a> {
    /// Allocates the buffers for an attention whose lengths were checked, and `more` further bytes of scratch.
    ///
    /// # Errors
    /// Returns an error if no memory could hold the buffers.
    pub(super) fn new(
        scratch: &'a mut Scratch,
        attention: &Attention<'_>,
        more: usize,
    ) -> Result<(Self, SharedSlice<'a, u8>), SizeError> {
        let layout = Layout::new(attention);
        let heads = attention.heads.count;
        let (rows, keys) = (layout.padded_rows, layout.padded_keys);
        let float = size_of::<f32>();
        let bytes = |extents: &[usize]| product("scratch of the attention", extents);
        let [queries, query_lengths, packed_keys, key_lengths, values, more] = scratch.regions([
            bytes(&[heads, rows, layout.row_bytes()])?,
            bytes(&[heads, rows, float])?,
            bytes(&[heads, keys, layout.row_bytes()])?,
            bytes(&[heads, keys / SIDE, float])?,
            bytes(&[heads, keys, layout.row_bytes()])?,
            more,
        ])?;
        let prepared = Self {
            layout,
            queries: SharedSlice::new(queries),
            query_lengths: SharedSlice::new(scratch::cast(query_lengths)),
            keys: SharedSlice::new(packed_keys),
            key_lengths: SharedSlice::new(scratch::cast(key_lengths)),
            values: SharedSlice::new(values),
        };
        Ok((prepared, SharedSlice::new(more)))
    }

    fn key_chunks(&self) -> Chunks {
        Chunks { rows: self.layout.padded_keys, size: SIDE }
    }

    fn query_chunks(&self) -> Chunks {
        Chunks { rows: self.layout.padded_rows, size: SIDE }
    }

    pub(super) fn tasks(&self) -> usize {
        2 * self.key_chunks().count() + self.query_chunks().count()
    }
}

/// One preparation task: 32 values, keys or queries.
pub(super) struct Prepare<'a, 'b> {
    pub(super) attention: &'a Attention<'a>,
    pub(super) prepared: &'a Prepared<'b>,
    pub(super) task: usize,
}

impl Operation for Prepare<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let keys = self.prepared.key_chunks();
        if self.task < keys.count() {
            self.values::<S>(keys.range(self.task));
        } else if self.task < 2 * keys.count() {
            self.keys(s, keys.range(self.task - keys.count()));
        } else {
            self.queries(s, self.prepared.query_chunks().range(self.task - 2 * keys.count()));
        }
    }
}

/// Factor that exceeds any rounding error of a norm.
const ROUNDING_MARGIN: f32 = 1.0 + 1e-5;

impl Prepare<'_, '_> {
    #[inline(always)]
    fn values<S: Simd>(&self, rows: Range<usize>) {
        let layout = self.prepared.layout;
        let block = rows.start / BLOCK;
        let steps = layout.keys_of(block) / 2;
        let zeros = [0; 2 * MAX_HEAD_WIDTH];
        for head in 0..self.attention.heads.count {
            let start = (head * layout.padded_keys + block * BLOCK) * layout.row_bytes();
            let columns = head * layout.width..(head + 1) * layout.width;
            for pair in 0..SIDE / 2 {
                let keys = [2 * pair, 2 * pair + 1].map(<S::Tiles as Tiles>::Powers::key);
                let [one, two] = keys.map(|key| match rows.start + key {
                    key if key < layout.keys => bits(&self.attention.values.row(key)[columns.clone()]),
                    _ => &zeros[..layout.width],
                });
                for (group, (one, two)) in one.chunks_exact(GROUP).zip(two.chunks_exact(GROUP)).enumerate() {
                    let step = group * steps + (rows.start - block * BLOCK) / 2 + pair;
                    // SAFETY: each pair of keys belongs to one task, and `Workers` runs it once.
                    let to = unsafe { self.prepared.values.part(start + step * DEPTH, DEPTH) };
                    for ((to, one), two) in to.chunks_exact_mut(STEP).zip(one).zip(two) {
                        to.copy_from_slice(&(u32::from(*one) | u32::from(*two) << 16).to_ne_bytes());
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn keys<S: Simd>(&self, s: S, rows: Range<usize>) {
        let layout = self.prepared.layout;
        let heads = self.attention.heads.count;
        let mut row = NormedRow::new(self.attention, 1);
        let mut rounded = [bf16::ZERO; MAX_HEAD_WIDTH];
        let mut longest = vec![0.0_f32; heads];
        for index in rows.clone() {
            let in_range = index < layout.keys;
            if in_range {
                row.norm(s, self.attention.keys, index);
            }
            for (head, longest) in longest.iter_mut().enumerate() {
                if in_range {
                    let square = round(s, row.head(head, layout.width), s.splat(1.0), &mut rounded);
                    *longest = longest.max(square);
                } else {
                    rounded.fill(bf16::ZERO);
                }
                let group = (head * layout.padded_keys + index / GROUP * GROUP) * layout.row_bytes();
                // SAFETY: a task has whole groups of sixteen keys, and `Workers` runs it once.
                let to = unsafe { self.prepared.keys.part(group, GROUP * layout.row_bytes()) };
                let pairs = bits(&rounded[..layout.width]).chunks_exact(2);
                for (to, pair) in to.chunks_exact_mut(GROUP * STEP).zip(pairs) {
                    let pair = u32::from(pair[0]) | u32::from(pair[1]) << 16;
                    to[index % GROUP * STEP..][..STEP].copy_from_slice(&pair.to_ne_bytes());
                }
            }
        }
        for (head, longest) in longest.into_iter().enumerate() {
            let at = (head * layout.padded_keys + rows.start) / SIDE;
            // SAFETY: each 32 keys are one task, and `Workers` runs it once.
            let length = unsafe { self.prepared.key_lengths.part(at, 1) };
            length[0] = longest.sqrt() * ROUNDING_MARGIN;
        }
    }

    #[inline(always)]
    fn queries<S: Simd>(&self, s: S, rows: Range<usize>) {
        let layout = self.prepared.layout;
        #[expect(clippy::cast_precision_loss, reason = "widths of heads are small")]
        let factor = STEPS_PER_EXPONENT * std::f32::consts::LOG2_E / (layout.width as f32).sqrt();
        let mut row = NormedRow::new(self.attention, 0);
        let mut rounded = [bf16::ZERO; MAX_HEAD_WIDTH];
        for index in rows {
            let in_range = index < layout.rows;
            if in_range {
                row.norm(s, self.attention.queries, index);
            }
            for head in 0..self.attention.heads.count {
                let mut square = 0.0;
                if in_range {
                    square = round(s, row.head(head, layout.width), s.splat(factor), &mut rounded);
                } else {
                    rounded.fill(bf16::ZERO);
                }
                let at = head * layout.padded_rows + index;
                // SAFETY: each query belongs to one task, and `Workers` runs it once.
                let (to, length) = unsafe {
                    let size = layout.row_bytes();
                    (self.prepared.queries.part(at * size, size), self.prepared.query_lengths.part(at, 1))
                };
                for (to, value) in to.chunks_exact_mut(2).zip(bits(&rounded[..layout.width])) {
                    to.copy_from_slice(&value.to_ne_bytes());
                }
                length[0] = square.sqrt() * ROUNDING_MARGIN;
            }
        }
    }
}

/// Rounds the values times `factor` to bf16. Returns the sum of the squares of the rounded values.
#[inline(always)]
fn round<S: Simd>(s: S, values: &[f32], factor: S::F, to: &mut [bf16; MAX_HEAD_WIDTH]) -> f32 {
    let mut squares = s.splat(0.0);
    for (values, to) in values.chunks_exact(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
        s.store_bf16(s.mul(s.load(values), factor), to);
        let rounded = s.load_bf16(to);
        squares = s.mul_add(rounded, rounded, squares);
    }
    s.sum(squares)
}

/// Returns the bit patterns of bf16 values.
#[inline(always)]
fn bits(values: &[bf16]) -> &[u16] {
    half::slice::HalfFloatSliceExt::reinterpret_cast(values)
}
