//! Queries, keys and values as the blocks read them: normed, rotated, quantised and packed.
#![expect(unsafe_code, reason = "parts of shared scratch, each written by one task")]

use super::scratch::{self, Scratch};
use super::{Attention, Columns, KEY_BLOCK, KEY_CHUNK, Rotary, ValueProduct, WIDEST_HEAD};
use crate::packing::{GROUP, STEP};
use crate::shared::{Chunks, Shared};
use crate::simd::{Operation, Simd};
use half::bf16;
use std::ops::Range;

/// Rows of one task.
const TASK_ROWS: usize = KEY_CHUNK;

/// The extents of what is prepared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) queries: usize,
    pub(super) keys: usize,
    /// Keys with those that fill the last chunk.
    pub(super) padded: usize,
    /// Width of a head.
    pub(super) width: usize,
    /// Bytes of a value.
    pub(super) value_bytes: usize,
}

impl Layout {
    pub(super) fn blocks(self) -> usize {
        self.padded.div_ceil(KEY_BLOCK)
    }

    /// Keys of a block with those that fill its last chunk.
    pub(super) fn padded_block(self, block: usize) -> Range<usize> {
        block * KEY_BLOCK..self.padded.min((block + 1) * KEY_BLOCK)
    }

    /// Where the values of a block of one head start, in bytes.
    pub(super) fn values_at(self, head: usize, block: usize) -> usize {
        (head * self.padded + block * KEY_BLOCK) * self.width * self.value_bytes
    }
}

/// What the blocks read; see the fields for its order.
pub(super) struct Prepared<'a> {
    pub(super) layout: Layout,
    /// `[heads][L][width]` u8 around 128.
    pub(super) query_codes: Shared<'a, u8>,
    /// `[heads][L]`: worth of a code, times `log2(e)/√width`.
    pub(super) query_scales: Shared<'a, f32>,
    /// `[heads][S/16][width/4][16][4]` s8.
    pub(super) key_codes: Shared<'a, u8>,
    /// `[heads][S]`.
    pub(super) key_scales: Shared<'a, f32>,
    /// `[heads][S]`: -128 times the sum of a key's codes, from which its scores start.
    pub(super) key_starts: Shared<'a, i32>,
    /// `[heads][S/256]` blocks `[width/16][256/4][16][4]` s8 in the order of the probabilities, or
    /// `[width/16][256/2][16][2]` bf16.
    pub(super) values: Shared<'a, u8>,
    /// `[heads][S/256][width]`, for bytes.
    pub(super) value_scales: Shared<'a, f32>,
    /// `[S]`: the bias of each key times `log2(e)`; minus infinity for those that fill the last chunk.
    pub(super) bias: Shared<'a, f32>,
}

impl<'a> Prepared<'a> {
    pub(super) fn new(scratch: &'a mut Scratch, attention: &Attention<'_>) -> Self {
        let (queries, keys) = (attention.queries.rows, attention.keys.rows);
        let heads = attention.heads.count;
        let layout = Layout {
            queries,
            keys,
            padded: keys.next_multiple_of(KEY_CHUNK),
            width: attention.heads.width,
            value_bytes: match attention.product {
                ValueProduct::Int8 => 1,
                ValueProduct::Bf16 => 2,
            },
        };
        let (of_queries, of_keys) = (heads * queries, heads * layout.padded);
        let floats = size_of::<f32>();
        let [query_codes, query_scales, key_codes, key_scales, key_starts, values, value_scales, bias] =
            scratch.regions([
                of_queries * layout.width,
                of_queries * floats,
                of_keys * layout.width,
                of_keys * floats,
                of_keys * floats,
                of_keys * layout.width * layout.value_bytes,
                heads * layout.blocks() * layout.width * floats,
                layout.padded * floats,
            ]);
        let bias = scratch::of(bias);
        bias[keys..].fill(f32::NEG_INFINITY);
        match attention.key_bias {
            None => bias[..keys].fill(0.0),
            Some(given) => {
                for (bias, given) in bias.iter_mut().zip(given) {
                    *bias = given * std::f32::consts::LOG2_E;
                }
            }
        }
        Self {
            layout,
            query_codes: Shared::new(query_codes),
            query_scales: Shared::new(scratch::of(query_scales)),
            key_codes: Shared::new(key_codes),
            key_scales: Shared::new(scratch::of(key_scales)),
            key_starts: Shared::new(scratch::of(key_starts)),
            values: Shared::new(values),
            value_scales: Shared::new(scratch::of(value_scales)),
            bias: Shared::new(bias),
        }
    }

    /// Whether the scores of a block need the bias.
    pub(super) fn has_bias(&self, attention: &Attention<'_>, block: usize) -> bool {
        attention.key_bias.is_some() || self.layout.padded_block(block).end > self.layout.keys
    }

    fn query_chunks(&self) -> Chunks {
        Chunks { rows: self.layout.queries, size: TASK_ROWS }
    }

    fn key_chunks(&self) -> Chunks {
        Chunks { rows: self.layout.padded, size: TASK_ROWS }
    }

    pub(super) fn tasks(&self) -> usize {
        self.layout.blocks() + self.key_chunks().count() + self.query_chunks().count()
    }
}

/// One task of preparing: a block of values, or some keys or queries.
pub(super) struct Prepare<'a, 'b> {
    pub(super) attention: &'a Attention<'a>,
    pub(super) prepared: &'a Prepared<'b>,
    pub(super) task: usize,
}

impl Operation for Prepare<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = self.prepared.layout.blocks();
        let keys = self.prepared.key_chunks();
        if self.task < blocks {
            match self.attention.product {
                ValueProduct::Int8 => self.byte_values(s, self.task),
                ValueProduct::Bf16 => self.half_values(self.task),
            }
        } else if self.task < blocks + keys.count() {
            self.keys(s, keys.range(self.task - blocks));
        } else {
            self.queries(s, self.prepared.query_chunks().range(self.task - blocks - keys.count()));
        }
    }
}

impl Prepare<'_, '_> {
    #[inline(always)]
    fn queries<S: Simd>(&self, s: S, rows: Range<usize>) {
        let Layout { queries, width, .. } = self.prepared.layout;
        #[expect(clippy::cast_precision_loss, reason = "widths of heads are small")]
        let factor = std::f32::consts::LOG2_E / (width as f32).sqrt();
        let mut row = NormedRow::new(self.attention, 0);
        for index in rows {
            row.norm(s, self.attention.queries, index);
            for head in 0..self.attention.heads.count {
                let values = row.head(head, width);
                let scale = largest(s, values) / 127.0;
                let at = head * queries + index;
                // SAFETY: each query is in one task.
                let (codes, scales) = unsafe {
                    let prepared = self.prepared;
                    (prepared.query_codes.part(at * width, width), prepared.query_scales.part(at, 1))
                };
                let (inverse, zero) = (s.splat(inverse(scale)), s.splat(128.0));
                for (values, codes) in values.chunks(S::LANES).zip(codes.chunks_mut(S::LANES)) {
                    s.store_u8(s.to_i32(s.mul_add(s.load(values), inverse, zero)), codes);
                }
                scales[0] = scale * factor;
            }
        }
    }

    #[inline(always)]
    fn keys<S: Simd>(&self, s: S, rows: Range<usize>) {
        let Layout { keys, padded, width, .. } = self.prepared.layout;
        let mut row = NormedRow::new(self.attention, 1);
        // Beyond the width it stays zero.
        let mut codes = [0_i8; WIDEST_HEAD];
        for index in rows {
            let is_there = index < keys;
            if is_there {
                row.norm(s, self.attention.keys, index);
            } else {
                codes.fill(0);
            }
            for head in 0..self.attention.heads.count {
                let mut scale = 0.0;
                if is_there {
                    let values = row.head(head, width);
                    scale = largest(s, values) / 127.0;
                    let inverse = s.splat(inverse(scale));
                    for (at, values) in (0..width).step_by(S::LANES).zip(values.chunks(S::LANES)) {
                        let codes = &mut codes[at..at + S::LANES];
                        // SAFETY: the slice has as many as there are lanes, of which the width is a multiple.
                        unsafe {
                            s.store_i8_at(s.to_i32(s.mul(s.load(values), inverse)), codes.as_mut_ptr())
                        };
                    }
                }
                let sum = sum_of(s, &codes);
                let codes = &codes[..width];
                let at = head * padded + index;
                // SAFETY: each key is in one task, and a task has whole groups of sixteen keys, which share cache lines.
                let (packed, scales, starts) = unsafe {
                    let prepared = self.prepared;
                    let group = (head * padded + index / GROUP * GROUP) * width;
                    (
                        prepared.key_codes.part(group, GROUP * width),
                        prepared.key_scales.part(at, 1),
                        prepared.key_starts.part(at, 1),
                    )
                };
                let lanes = packed.chunks_exact_mut(GROUP * STEP);
                for (to, from) in lanes.zip(codes.chunks_exact(STEP)) {
                    let to = &mut to[index % GROUP * STEP..][..STEP];
                    to.copy_from_slice(&[from[0], from[1], from[2], from[3]].map(i8::cast_unsigned));
                }
                scales[0] = scale;
                starts[0] = -128 * sum;
            }
        }
    }

    #[inline(always)]
    fn byte_values<S: Simd>(&self, s: S, block: usize) {
        let layout = self.prepared.layout;
        let values = self.attention.values;
        let padded = layout.padded_block(block);
        let rows = padded.start..padded.end.min(layout.keys);
        let total = self.attention.heads.total();
        let mut scales = vec![0.0_f32; total];
        for row in rows.clone() {
            let row = values.row(row);
            for at in (0..total).step_by(S::LANES) {
                let so_far = s.load(&scales[at..]);
                s.store(s.max(so_far, s.abs(s.load_bf16(&row[at..]))), &mut scales[at..]);
            }
        }
        let inverses: Vec<f32> = scales.iter().map(|largest| inverse(largest / 127.0)).collect();
        let steps = padded.len() / STEP;
        for head in 0..self.attention.heads.count {
            // SAFETY: each block is one task.
            let (of_block, packed) = unsafe {
                let prepared = self.prepared;
                let at = (head * layout.blocks() + block) * layout.width;
                let size = padded.len() * layout.width;
                (
                    prepared.value_scales.part(at, layout.width),
                    prepared.values.part(layout.values_at(head, block), size),
                )
            };
            for (to, largest) in of_block.iter_mut().zip(&scales[head * layout.width..]) {
                *to = largest / 127.0;
            }
            for (position, first) in
                (0..layout.width).step_by(GROUP).flat_map(|first| (0..steps).map(move |p| (p, first)))
            {
                // The quad that the probabilities have at this position.
                let quad = position / S::LANES * S::LANES + S::quad_order(position % S::LANES);
                let to = &mut packed[(first / GROUP * steps + position) * GROUP * STEP..][..GROUP * STEP];
                for (at, to) in (0..GROUP).step_by(S::LANES).zip(to.chunks_exact_mut(S::LANES * STEP)) {
                    let column = head * layout.width + first + at;
                    let inverse = s.load(&inverses[column..column + S::LANES]);
                    let mut quad_codes = [s.splat_i32(0); STEP];
                    for (codes, row) in quad_codes.iter_mut().zip(padded.start + quad * STEP..rows.end) {
                        let row = &values.row(row)[column..column + S::LANES];
                        *codes = s.to_i32(s.mul(s.load_bf16(row), inverse));
                    }
                    // SAFETY: the chunk has four bytes for each lane.
                    unsafe { s.store_bytes_of_lanes_at(quad_codes, to.as_mut_ptr()) };
                }
            }
        }
    }

    #[inline(always)]
    fn half_values(&self, block: usize) {
        let layout = self.prepared.layout;
        let values = self.attention.values;
        let padded = layout.padded_block(block);
        let steps = padded.len() * size_of::<bf16>() / STEP;
        for head in 0..self.attention.heads.count {
            let size = padded.len() * layout.width * size_of::<bf16>();
            // SAFETY: each block is one task.
            let packed = unsafe { self.prepared.values.part(layout.values_at(head, block), size) };
            for (row, first) in
                padded.clone().flat_map(|row| (0..layout.width).step_by(GROUP).map(move |first| (row, first)))
            {
                let zeros = [bf16::ZERO; GROUP];
                let column = head * layout.width + first;
                let from = if row < layout.keys { &values.row(row)[column..column + GROUP] } else { &zeros };
                let (step, second) = ((row - padded.start) / 2, (row - padded.start) % 2);
                let to = &mut packed[(first / GROUP * steps + step) * GROUP * STEP..][..GROUP * STEP];
                for (to, value) in to.chunks_exact_mut(STEP).zip(from) {
                    to[second * 2..][..2].copy_from_slice(&value.to_bits().to_ne_bytes());
                }
            }
        }
    }
}

fn inverse(scale: f32) -> f32 {
    if scale > f32::MIN_POSITIVE { scale.recip() } else { 0.0 }
}

#[inline(always)]
fn largest<S: Simd>(s: S, values: &[f32]) -> f32 {
    let mut largest = s.splat(0.0);
    for values in values.chunks(S::LANES) {
        largest = s.max(largest, s.abs(s.load(values)));
    }
    s.largest(largest)
}

/// Sum of codes, by their dot product with ones.
#[inline(always)]
fn sum_of<S: Simd>(s: S, codes: &[i8; WIDEST_HEAD]) -> i32 {
    let mut sum = s.splat_i32(0);
    for codes in codes.chunks_exact(STEP * S::LANES) {
        // SAFETY: the chunk is one vector of bytes.
        sum = s.dot_u8(sum, s.splat_i32(0x0101_0101), unsafe { s.load_bytes_at(codes.as_ptr().cast()) });
    }
    #[expect(clippy::cast_possible_truncation, reason = "a whole number far below 2^24")]
    let sum = s.sum(s.to_f32(sum)) as i32;
    sum
}

/// A row of queries or keys after its norm and rotation.
struct NormedRow<'a> {
    values: Vec<f32>,
    gain: &'a [f32],
    epsilon: f32,
    rotary: Option<Rotary<'a>>,
    /// Cosines twice, and sines with the sign of what they are multiplied with.
    angles: [[f32; WIDEST_HEAD]; 2],
    width: usize,
}

impl<'a> NormedRow<'a> {
    fn new(attention: &Attention<'a>, which: usize) -> Self {
        Self {
            values: vec![0.0; attention.heads.total()],
            gain: attention.gains[which],
            epsilon: attention.epsilon,
            rotary: attention.rotary,
            angles: [[0.0; WIDEST_HEAD]; 2],
            width: attention.heads.width,
        }
    }

    fn head(&self, head: usize, width: usize) -> &[f32] {
        &self.values[head * width..][..width]
    }

    #[inline(always)]
    fn norm<S: Simd>(&mut self, s: S, columns: Columns<'_>, index: usize) {
        let x = columns.row(index);
        let mut squares = s.splat(0.0);
        for x in x.chunks(S::LANES) {
            let x = s.load_bf16(x);
            squares = s.mul_add(x, x, squares);
        }
        #[expect(clippy::cast_precision_loss, reason = "widths of rows are far below 2^24")]
        let factor = (s.sum(squares) / x.len() as f32 + self.epsilon).sqrt().recip();
        let half = self.width / 2;
        if let Some(Rotary { cos, sin }) = self.rotary {
            let [cosines, sines] = &mut self.angles;
            for (pair, (cos, sin)) in cos[index * half..][..half].iter().zip(&sin[index * half..]).enumerate()
            {
                cosines[pair * 2..][..2].fill(*cos);
                sines[pair * 2..][..2].copy_from_slice(&[-sin, *sin]);
            }
        }
        let factor = s.splat(factor);
        let heads = x.chunks_exact(self.width).zip(self.gain.chunks_exact(self.width));
        for ((x, gain), values) in heads.zip(self.values.chunks_exact_mut(self.width)) {
            for at in (0..x.len()).step_by(S::LANES) {
                let normed = s.mul(s.mul(s.load_bf16(&x[at..]), factor), s.load(&gain[at..]));
                let rotated = if self.rotary.is_some() {
                    // (a, b) becomes (a·cos - b·sin, b·cos + a·sin).
                    let crossed = s.mul(s.swap_pairs(normed), s.load(&self.angles[1][at..]));
                    s.mul_add(normed, s.load(&self.angles[0][at..]), crossed)
                } else {
                    normed
                };
                s.store(rotated, &mut values[at..]);
            }
        }
    }
}
