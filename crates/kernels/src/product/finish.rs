//! What happens to the values of a product before they are written.

use super::tile::{OutputLines, PANEL, Sums};
use super::{Columns, Place, Values};
use crate::packing::{SizeError, check};
use crate::rows::{Codes, RowScale};
use crate::shared::Shared;
use crate::simd::{Simd, gelu_tanh};
use half::bf16;
use std::ops::Range;

/// Where a product goes, `[L,N]`, and by which way.
#[derive(Debug)]
pub enum Output<'a> {
    /// The values.
    F32(&'a mut [f32]),
    /// The values, rounded.
    Bf16(&'a mut [bf16]),
    /// Their GELU in its tanh form, rounded.
    GeluBf16(&'a mut [bf16]),
    /// Their GELU in its tanh form, quantised with one scale that is known beforehand; the scales of all rows are set
    /// to it.
    GeluCodes {
        /// Codes and scales to be written.
        to: Codes<'a>,
        /// Scale and zero point of all of them.
        scale: RowScale,
    },
    /// Gated and added to what flows past the layer.
    Residual(Residual<'a>),
    /// The sums of an integer product.
    Accumulators(&'a mut [i32]),
}

/// `stream + gate·value`.
#[derive(Debug)]
pub struct Residual<'a> {
    /// Where it is written, `[L,N]`.
    pub to: &'a mut [f32],
    /// What it is added to, `[L,N]`; nothing where `to` holds it already.
    pub stream: Option<&'a [f32]>,
    /// The factor of each output.
    pub gate: Gate<'a>,
}

/// Factors of a product before it is added to its residual.
#[derive(Debug, Clone, Copy)]
pub enum Gate<'a> {
    /// No factor.
    Open,
    /// One for each output, `[N]`.
    Each(&'a [f32]),
}

/// A checked [`Output`] that many tasks write.
pub(super) struct Finish<'a> {
    way: Way<'a>,
    outputs: usize,
}

enum Way<'a> {
    F32(Shared<'a, f32>),
    Bf16(Shared<'a, bf16>),
    GeluBf16(Shared<'a, bf16>),
    GeluCodes(Shared<'a, u8>, RowScale),
    Residual(Shared<'a, f32>, Option<&'a [f32]>, Gate<'a>),
    Accumulators(Shared<'a, i32>),
}

impl<'a> Finish<'a> {
    pub(super) fn new(to: Output<'a>, rows: usize, outputs: usize) -> Result<Self, SizeError> {
        const WHAT: &str = "result of the product";
        let size = rows * outputs;
        let way = match to {
            Output::F32(to) => {
                check(WHAT, to.len(), size)?;
                Way::F32(Shared::new(to))
            }
            Output::Bf16(to) => {
                check(WHAT, to.len(), size)?;
                Way::Bf16(Shared::new(to))
            }
            Output::GeluBf16(to) => {
                check(WHAT, to.len(), size)?;
                Way::GeluBf16(Shared::new(to))
            }
            Output::GeluCodes { to: Codes { codes, scales }, scale } => {
                check(WHAT, codes.len(), size)?;
                check("scales of the result", scales.len(), rows)?;
                scales.fill(scale);
                Way::GeluCodes(Shared::new(codes), scale)
            }
            Output::Residual(Residual { to, stream, gate }) => {
                check(WHAT, to.len(), size)?;
                check("residual", stream.map_or(size, <[f32]>::len), size)?;
                if let Gate::Each(gate) = gate {
                    check("gate", gate.len(), outputs)?;
                }
                Way::Residual(Shared::new(to), stream, gate)
            }
            Output::Accumulators(to) => {
                check(WHAT, to.len(), size)?;
                Way::Accumulators(Shared::new(to))
            }
        };
        Ok(Self { way, outputs })
    }

    /// The cache lines that the tile from `row` will write, columns `first` to `end`.
    pub(super) fn lines(&self, row: usize, first: usize, end: usize) -> OutputLines {
        let at = row * self.outputs + first;
        let (start, bytes) = match &self.way {
            Way::F32(to) | Way::Residual(to, ..) => (to.address(at), 4),
            Way::Bf16(to) | Way::GeluBf16(to) => (to.address(at), 2),
            Way::GeluCodes(to, _) => (to.address(at), 1),
            Way::Accumulators(to) => (to.address(at), 4),
        };
        OutputLines { start, stride: self.outputs * bytes, width: (end - first) * bytes }
    }

    /// Takes over the gates of the columns `range`.
    pub(super) fn gate(&self, range: Range<usize>, to: &mut [f32; PANEL]) {
        match &self.way {
            Way::Residual(_, _, Gate::Each(gate)) => to[..range.len()].copy_from_slice(&gate[range]),
            _ => to.fill(1.0),
        }
    }

    /// Writes the columns of one row.
    #[inline(always)]
    pub(super) fn row<S: Simd, V: Values>(
        &self,
        s: S,
        values: &V,
        columns: &Columns,
        sums: &Sums,
        place: Place,
    ) {
        let (from, length) = (place.row * self.outputs + columns.range.start, columns.range.len());
        /// The part of a result, and each vector of it.
        macro_rules! each_vector {
            ($to:expr, |$part:ident, $at:ident| $body:expr) => {{
                // SAFETY: a task writes the columns of its own panel in its own rows.
                #[expect(unsafe_code, reason = "disjoint parts of one result")]
                let $part = unsafe { $to.part(from, length) };
                let mut at = 0;
                while at < length {
                    let $at = Place { at, ..place };
                    $body;
                    at += S::LANES;
                }
            }};
        }
        match &self.way {
            Way::F32(to) => each_vector!(to, |to, place| {
                s.store(values.value(s, columns, sums, place), &mut to[place.at..]);
            }),
            Way::Bf16(to) => each_vector!(to, |to, place| {
                s.store_bf16(values.value(s, columns, sums, place), &mut to[place.at..]);
            }),
            Way::GeluBf16(to) => each_vector!(to, |to, place| {
                let gelu = gelu_tanh(s, values.value(s, columns, sums, place));
                s.store_bf16(gelu, &mut to[place.at..]);
            }),
            Way::GeluCodes(to, scale) => each_vector!(to, |to, place| {
                let gelu = gelu_tanh(s, values.value(s, columns, sums, place));
                let codes = s.mul_add(gelu, s.splat(scale.scale.recip()), s.splat(scale.zero));
                s.store_u8(s.to_i32(codes), &mut to[place.at..]);
            }),
            Way::Residual(to, stream, _) => each_vector!(to, |to, place| {
                let value = values.value(s, columns, sums, place);
                let before = match stream {
                    None => s.load(&to[place.at..]),
                    Some(stream) => s.load(&stream[from..from + length][place.at..]),
                };
                let after = s.mul_add(value, s.load(&columns.gate[place.at..]), before);
                s.store(after, &mut to[place.at..]);
            }),
            Way::Accumulators(to) => each_vector!(to, |to, place| {
                s.store_i32(values.integer(s, columns, sums, place), &mut to[place.at..]);
            }),
        }
    }
}
