//! Queries, keys and values as the tiles read them: normed, rotated, rounded to bf16 and packed.
#![expect(unsafe_code, reason = "parts of shared scratch, each written by one task")]

use super::super::prepare::NormedRow;
use super::{Attention, BLOCK, Layout, WIDEST_HEAD};
use crate::attention::scratch::{self, Scratch};
use crate::packing::{GROUP, STEP};
use crate::shared::{Chunks, Shared};
use crate::simd::tiles::powers::{Powers, STEPS_OF_LOG2};
use crate::simd::tiles::{DEPTH, SIDE, Tiles};
use crate::simd::{Operation, Simd};
use half::bf16;
use std::ops::Range;

/// What the blocks read; see the fields for its order.
pub(super) struct Prepared<'a> {
    pub(super) layout: Layout,
    /// `[heads][L][width]` bf16, times `128·log2(e)/√width`.
    pub(super) queries: Shared<'a, u8>,
    /// `[heads][L]`: the length of each, rounded up.
    pub(super) query_lengths: Shared<'a, f32>,
    /// `[heads][S/16][width/2][16][2]` bf16.
    pub(super) keys: Shared<'a, u8>,
    /// `[heads][S/32]`: the largest length of each 32 keys, rounded up.
    pub(super) key_lengths: Shared<'a, f32>,
    /// `[heads][S/256]` blocks `[width/16][256/2][16][2]` bf16, each 32 keys in the order of the probabilities.
    pub(super) values: Shared<'a, u8>,
}

impl<'a> Prepared<'a> {
    /// With `more` bytes of scratch for something else.
    pub(super) fn new(
        scratch: &'a mut Scratch,
        attention: &Attention<'_>,
        more: usize,
    ) -> (Self, Shared<'a, u8>) {
        let layout = Layout::new(attention);
        let heads = attention.heads.count;
        let (rows, keys) = (heads * layout.padded_rows, heads * layout.padded_keys);
        let float = size_of::<f32>();
        let [queries, query_lengths, packed_keys, key_lengths, values, more] = scratch.regions([
            rows * layout.row_bytes(),
            rows * float,
            keys * layout.row_bytes(),
            keys / SIDE * float,
            keys * layout.row_bytes(),
            more,
        ]);
        let prepared = Self {
            layout,
            queries: Shared::new(queries),
            query_lengths: Shared::new(scratch::of(query_lengths)),
            keys: Shared::new(packed_keys),
            key_lengths: Shared::new(scratch::of(key_lengths)),
            values: Shared::new(values),
        };
        (prepared, Shared::new(more))
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

/// One task of preparing: 32 values, keys or queries.
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

/// Above what rounding can take from a length.
const LONGER: f32 = 1.0 + 1e-5;

impl Prepare<'_, '_> {
    #[inline(always)]
    fn values<S: Simd>(&self, rows: Range<usize>) {
        let layout = self.prepared.layout;
        let block = rows.start / BLOCK;
        let steps = layout.keys_of(block) / 2;
        let zeros = [0; 2 * WIDEST_HEAD];
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
                    // SAFETY: each pair of keys is in one task.
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
        let mut rounded = [bf16::ZERO; WIDEST_HEAD];
        let mut longest = vec![0.0_f32; heads];
        for index in rows.clone() {
            let is_there = index < layout.keys;
            if is_there {
                row.norm(s, self.attention.keys, index);
            }
            for (head, longest) in longest.iter_mut().enumerate() {
                if is_there {
                    let square = round(s, row.head(head, layout.width), s.splat(1.0), &mut rounded);
                    *longest = longest.max(square);
                } else {
                    rounded.fill(bf16::ZERO);
                }
                let group = (head * layout.padded_keys + index / GROUP * GROUP) * layout.row_bytes();
                // SAFETY: a task has whole groups of sixteen keys.
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
            // SAFETY: each 32 keys are one task.
            let length = unsafe { self.prepared.key_lengths.part(at, 1) };
            length[0] = longest.sqrt() * LONGER;
        }
    }

    #[inline(always)]
    fn queries<S: Simd>(&self, s: S, rows: Range<usize>) {
        let layout = self.prepared.layout;
        #[expect(clippy::cast_precision_loss, reason = "widths of heads are small")]
        let factor = STEPS_OF_LOG2 * std::f32::consts::LOG2_E / (layout.width as f32).sqrt();
        let mut row = NormedRow::new(self.attention, 0);
        let mut rounded = [bf16::ZERO; WIDEST_HEAD];
        for index in rows {
            let is_there = index < layout.rows;
            if is_there {
                row.norm(s, self.attention.queries, index);
            }
            for head in 0..self.attention.heads.count {
                let mut square = 0.0;
                if is_there {
                    square = round(s, row.head(head, layout.width), s.splat(factor), &mut rounded);
                } else {
                    rounded.fill(bf16::ZERO);
                }
                let at = head * layout.padded_rows + index;
                // SAFETY: each query is in one task.
                let (to, length) = unsafe {
                    let size = layout.row_bytes();
                    (self.prepared.queries.part(at * size, size), self.prepared.query_lengths.part(at, 1))
                };
                for (to, value) in to.chunks_exact_mut(2).zip(bits(&rounded[..layout.width])) {
                    to.copy_from_slice(&value.to_ne_bytes());
                }
                length[0] = square.sqrt() * LONGER;
            }
        }
    }
}

/// Values times a factor as bf16; gives the sum of the squares of what they became.
#[inline(always)]
fn round<S: Simd>(s: S, values: &[f32], factor: S::F, to: &mut [bf16; WIDEST_HEAD]) -> f32 {
    let mut squares = s.splat(0.0);
    for (values, to) in values.chunks_exact(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
        s.store_bf16(s.mul(s.load(values), factor), to);
        let rounded = s.load_bf16(to);
        squares = s.mul_add(rounded, rounded, squares);
    }
    s.sum(squares)
}

/// bf16 as the integers that they are made of.
#[inline(always)]
fn bits(values: &[bf16]) -> &[u16] {
    half::slice::HalfFloatSliceExt::reinterpret_cast(values)
}
