//! Channels-last convolutions of frames over space and, causally, over time.
//!
//! Frames `[t,h,w,C]` are quantised with one scale and one zero point. The temporal taps of a kernel read adjacent
//! frames, and its three columns are adjacent in memory. For one row of outputs, a convolution is therefore a product
//! of overlapping runs of `side·C` bytes, one run for each tap and kernel row. There is no im2col buffer and frames
//! are not stacked; the frames are only copied once to add a zero border and, optionally, to double the pixels.

mod padding;
mod tiled;

use crate::Kernels;
use crate::attention::scratch::Scratch;
use crate::packing::{GROUP, Int8Matrix, MatrixShape, STEP};
use crate::product::tile::{Int8Dot, OutputLines, PANEL, Sums, TileInput, multiply};
use crate::rows::RowScale;
use crate::shared::{Chunks, SharedSlice};
use crate::simd::{Operation, Simd};
use crate::size::{SizeError, check, check_extent, product};
use crate::workers::Workers;
use padding::Padding;
use std::ops::Range;

/// Approximate pixels per task.
const TASK_PIXELS: usize = 416;

/// Maximum runs of one pixel: one for each tap and kernel row.
const MAX_RUNS: usize = 9;

/// Extents of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelShape {
    outputs: usize,
    channels: usize,
    taps: usize,
    side: usize,
    /// The weight matrix of these extents.
    matrix: MatrixShape,
}

impl KernelShape {
    /// Creates the shape of a kernel with `outputs` output channels and `channels` input channels, a multiple of 4.
    ///
    /// `taps` is the temporal size: 1 (the current frame), or 3 (also the two previous frames). `side` is the spatial
    /// size in both directions, 1 or 3, centred on the output pixel.
    ///
    /// # Errors
    /// Returns an error if an extent is not supported, or if no memory could hold the kernel.
    pub fn new(outputs: usize, channels: usize, taps: usize, side: usize) -> Result<Self, SizeError> {
        let is_whole = channels > 0 && channels.is_multiple_of(STEP);
        check_extent("number of channels of the frames", channels, "a multiple of 4", is_whole)?;
        check_extent("number of taps of the kernel", taps, "1 or 3", [1, 3].contains(&taps))?;
        check_extent("side of the kernel", side, "1 or 3", [1, 3].contains(&side))?;
        let matrix = MatrixShape::new(outputs, product("kernel", &[taps, side, side, channels])?)?;
        Ok(Self { outputs, channels, taps, side, matrix })
    }

    /// Output channels.
    pub fn outputs(self) -> usize {
        self.outputs
    }

    /// Input channels, a multiple of 4.
    pub fn channels(self) -> usize {
        self.channels
    }

    /// Temporal size, 1 or 3.
    pub fn taps(self) -> usize {
        self.taps
    }

    /// Spatial size in both directions, 1 or 3.
    pub fn side(self) -> usize {
        self.side
    }

    /// Returns the shape of the weight matrix. The inputs are packed in the order `[taps, side, side, channels]`.
    pub fn matrix(self) -> MatrixShape {
        self.matrix
    }
}

/// A kernel packed for the convolution.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Kernel {
    shape: KernelShape,
    weights: Int8Matrix,
    sums: Vec<i32>,
}

impl Int8Kernel {
    /// Packs quantised values `[N, taps, channels, side, side]` with a scale for each output.
    ///
    /// # Errors
    /// Returns an error if the lengths do not match the shape.
    pub fn pack(shape: KernelShape, quantised: &[i8], scales: &[f32]) -> Result<Self, SizeError> {
        let KernelShape { outputs, channels, taps, side, .. } = shape;
        check("quantised values", quantised.len(), shape.matrix().elements())?;
        check("scales", scales.len(), outputs)?;
        let plane = side * side;
        let mut ordered = Vec::with_capacity(quantised.len());
        let mut sums = vec![0; taps * outputs];
        for (index, of_tap) in quantised.chunks_exact(channels * plane).enumerate() {
            let (output, tap) = (index / taps, index % taps);
            let sum = of_tap.iter().fold(0_i32, |sum, value| sum.wrapping_add(i32::from(*value)));
            sums[tap * outputs + output] = sum;
            for position in 0..plane {
                ordered.extend(of_tap.iter().skip(position).step_by(plane));
            }
        }
        let weights = Int8Matrix::pack(shape.matrix(), &ordered, scales)?;
        Ok(Self { shape, weights, sums })
    }

    /// Extents.
    pub fn shape(&self) -> KernelShape {
        self.shape
    }

    /// The quantised values, `[N/16][K/4][16][4]`.
    pub fn packed(&self) -> &[i8] {
        self.weights.packed()
    }

    /// Sums of the quantised values of each tap and output, `[taps,N]`.
    pub fn sums(&self) -> &[i32] {
        &self.sums
    }

    /// Scale of each output, `[N]`.
    pub fn scales(&self) -> &[f32] {
        self.weights.scales()
    }

    /// Returns a view of the kernel for the convolution.
    pub fn view(&self) -> KernelView<'_> {
        KernelView { shape: self.shape, packed: self.packed(), sums: &self.sums, scales: self.scales() }
    }
}

/// An [`Int8Kernel`] at any address, for example in a memory-mapped file.
#[derive(Debug, Clone, Copy)]
pub struct KernelView<'a> {
    shape: KernelShape,
    packed: &'a [i8],
    sums: &'a [i32],
    scales: &'a [f32],
}

impl<'a> KernelView<'a> {
    /// Creates a view of the parts of an [`Int8Kernel`].
    ///
    /// # Errors
    /// Returns an error if a length does not match the shape.
    pub fn new(
        shape: KernelShape,
        packed: &'a [i8],
        sums: &'a [i32],
        scales: &'a [f32],
    ) -> Result<Self, SizeError> {
        check("packed weights", packed.len(), shape.matrix().packed_int8())?;
        check(
            "sums of the weights",
            sums.len(),
            product("sums of the weights", &[shape.taps, shape.outputs])?,
        )?;
        check("scales of the weights", scales.len(), shape.outputs)?;
        Ok(Self { shape, packed, sums, scales })
    }

    /// Extents.
    pub fn shape(self) -> KernelShape {
        self.shape
    }
}

/// Transformation of the frames on input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InputTransform {
    /// Each pixel becomes four (nearest-neighbour upsampling).
    pub doubles_pixels: bool,
    /// Each frame becomes two, from the two halves of its channels.
    pub splits_frames: bool,
}

/// The operands of one convolution.
#[derive(Debug)]
pub struct Convolution<'a> {
    /// The weights.
    pub kernel: KernelView<'a>,
    /// Bias of each output, `[N]`.
    pub bias: &'a [f32],
    /// Scale and zero point of all frames.
    pub input: RowScale,
    /// Quantised values `[t,h,w,C]`, or `[t,h,w,2C]` if frames are split.
    pub frames: &'a [u8],
    /// `t`, `h` and `w` of `frames`.
    pub extent: [usize; 3],
    /// The two previous frames, `[2,h,w,C]`, for a kernel of three taps; `None` if they are zero.
    pub history: Option<&'a [u8]>,
    /// Transformation of the frames on input.
    pub transform: InputTransform,
    /// Residual added to the result, with the same shape.
    pub residual: Option<&'a [f32]>,
    /// Output `[t,h,w,N]`, with doubled pixels or frames according to `transform`.
    pub to: &'a mut [f32],
}

impl Convolution<'_> {
    /// Returns the frames, height and width of the result.
    ///
    /// # Errors
    /// Returns an error if no memory could hold the result.
    pub fn result(extent: [usize; 3], transform: InputTransform) -> Result<[usize; 3], SizeError> {
        const WHAT: &str = "result of the convolution";
        let [frames, height, width] = extent;
        let (time, space) =
            (1 + usize::from(transform.splits_frames), 1 + usize::from(transform.doubles_pixels));
        product(WHAT, &[time, frames, space, height, space, width])?;
        Ok([time * frames, space * height, space * width])
    }

    /// Checks the lengths. Returns the frames, height and width of the result.
    fn check(&self) -> Result<[usize; 3], SizeError> {
        let shape = self.kernel.shape;
        check("bias", self.bias.len(), shape.outputs)?;
        let [frames, height, width] = self.extent;
        let parts = 1 + usize::from(self.transform.splits_frames);
        let size = product("frames", &[frames, height, width, parts, shape.channels])?;
        check("frames", self.frames.len(), size)?;
        if let Some(history) = self.history {
            check_extent("number of taps of a kernel with a history", shape.taps, "3", shape.taps == 3)?;
            check("history", history.len(), product("history", &[2, height, width, shape.channels])?)?;
        }
        if self.transform != InputTransform::default() {
            check_extent("side of a kernel with an input transform", shape.side, "3", shape.side == 3)?;
            check_extent(
                "number of taps of a kernel with an input transform",
                shape.taps,
                "1",
                shape.taps == 1,
            )?;
        }
        let result = Self::result(self.extent, self.transform)?;
        let [frames, height, width] = result;
        let size = product("result of the convolution", &[frames, height, width, shape.outputs])?;
        check("residual", self.residual.map_or(size, <[f32]>::len), size)?;
        check("result of the convolution", self.to.len(), size)?;
        Ok(result)
    }
}

impl Kernels {
    /// Computes a convolution; see the fields of [`Convolution`]. The sums of products are exact.
    ///
    /// # Errors
    /// Returns an error if the lengths do not match.
    pub fn convolve_int8(
        self,
        workers: &dyn Workers,
        scratch: &mut Scratch,
        convolution: Convolution<'_>,
    ) -> Result<(), SizeError> {
        let [count, height, width] = convolution.check()?;
        let Convolution { kernel, bias, input, frames, extent, history, transform, residual, to } =
            convolution;
        let KernelShape { outputs, channels, taps, side, .. } = kernel.shape;
        // From here on, no extent is zero.
        if to.is_empty() {
            return Ok(());
        }
        let before = if history.is_some() { 2 } else { 0 };
        let frame = extent[1] * extent[2] * channels;
        // The input frames, with the history first.
        let (starts, row) = if side == 1 {
            let all = history.unwrap_or_default().chunks_exact(frame).chain(frames.chunks_exact(frame));
            (all.map(<[u8]>::as_ptr).collect::<Vec<_>>(), width * channels)
        } else {
            const WHAT: &str = "padded frames";
            let padded = product(WHAT, &[height + 2, width + 2, channels])?;
            let all = product(WHAT, &[before + count, padded])?;
            let bytes = all.checked_add(tiled::TAIL_BYTES).ok_or(SizeError::TooLarge { what: WHAT })?;
            let [region] = scratch.regions([bytes])?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a zero point is an integer in 0..=255"
            )]
            let zero = input.zero as u8;
            let padding =
                Padding { history: history.unwrap_or_default(), frames, extent, channels, transform, zero };
            padding.write(workers, before + count, &mut region[..all]);
            // Derived from the whole region, so that the bytes after the last frame may be read.
            let start = region.as_ptr();
            let starts = (0..before + count).map(|frame| start.wrapping_add(frame * padded)).collect();
            (starts, (width + 2) * channels)
        };
        // Without a history, all taps but the newest read zeros.
        let used = if taps == 3 && before == 0 { 2..3 } else { 0..taps };
        let plan = Plan {
            kernel,
            bias,
            input,
            starts: FramePointers(starts),
            row,
            first_tap: used.start,
            used_taps: used.len(),
            width,
            is_tiled: self.has_tiles() && tiled::fits(kernel.shape, height, width),
            residual,
            to: SharedSlice::new(to),
        };
        let chunks = Chunks { rows: height, size: TASK_PIXELS.div_ceil(width).min(height) };
        let each_frame = chunks.count();
        // Neighbouring tasks share a panel of weights.
        workers.run(outputs.div_ceil(PANEL) * count * each_frame, &|task| {
            let (panel, task) = (task / (count * each_frame), task % (count * each_frame));
            let (frame, chunk) = (task / each_frame, task % each_frame);
            let rows = chunks.range(chunk);
            self.run(Panel { plan: &plan, first: panel * PANEL, frame, rows, height });
        });
        Ok(())
    }
}

/// Pointers to the input frames.
struct FramePointers(Vec<*const u8>);

// SAFETY: the frames are only read, and are borrowed until all tasks have returned.
#[expect(unsafe_code, reason = "pointers to data that all tasks only read")]
unsafe impl Sync for FramePointers {}

/// Data shared by all tasks.
struct Plan<'a> {
    kernel: KernelView<'a>,
    bias: &'a [f32],
    input: RowScale,
    starts: FramePointers,
    /// Bytes from one row of a frame to the next.
    row: usize,
    first_tap: usize,
    used_taps: usize,
    /// Pixels of a row.
    width: usize,
    is_tiled: bool,
    residual: Option<&'a [f32]>,
    to: SharedSlice<'a, f32>,
}

/// One task: up to 64 channels of a range of rows of a frame.
struct Panel<'a, 'b> {
    plan: &'a Plan<'b>,
    /// First output channel.
    first: usize,
    /// Frame of the result.
    frame: usize,
    rows: Range<usize>,
    height: usize,
}

/// Per-channel parameters of a panel, padded with zeros.
#[repr(align(64))]
struct Columns {
    starts: [i32; PANEL],
    scales: [f32; PANEL],
    bias: [f32; PANEL],
}

impl Operation for Panel<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let plan = self.plan;
        let KernelShape { outputs, channels, side, .. } = plan.kernel.shape;
        let end = outputs.min(self.first + PANEL);
        let columns = self.columns(self.first..end);
        let (run, group) = (side * channels, plan.kernel.shape.matrix().inputs() * GROUP);
        let weights = plan.kernel.packed.as_ptr().cast::<u8>();
        let weights = weights.wrapping_add(self.first / GROUP * group + plan.first_tap * side * run * GROUP);
        if plan.is_tiled
            && let Some(mut tiles) = s.tiles()
        {
            return self.run_tiles(s, &mut tiles, &columns, weights, self.first..end);
        }
        let mut sums = Sums::new();
        let tile_rows = S::ROWS.min(plan.width);
        let tiles = plan.width.div_ceil(tile_rows);
        for (row, tile) in self.rows.clone().flat_map(|row| (0..tiles).map(move |tile| (row, tile))) {
            // The last tile of a row begins early enough to be whole; recomputed pixels get the same result.
            let pixel = (tile * tile_rows).min(plan.width - tile_rows);
            let mut runs = [std::ptr::null(); MAX_RUNS];
            let used = plan.used_taps * side;
            for (index, run) in runs[..used].iter_mut().enumerate() {
                let frame = plan.starts.0[self.frame + index / side];
                *run = frame.wrapping_add((row + index % side) * plan.row + pixel * channels);
            }
            let at = ((self.frame * self.height + row) * plan.width + pixel) * outputs + self.first;
            let lines = OutputLines {
                start: plan.to.address(at),
                stride: outputs * size_of::<f32>(),
                width: (end - self.first) * size_of::<f32>(),
            };
            let input = TileInput {
                runs: &runs[..used],
                stride: channels,
                weights,
                group,
                steps: run / STEP,
                begin: columns.starts.as_ptr(),
                lines,
            };
            let groups = (end - self.first).div_ceil(GROUP);
            // SAFETY: `Convolution::check` compared the frames and the history with the extents, and the padded copy
            // has `side - 1` more rows and pixels, so each run has `steps` whole steps for each of `tile_rows` pixels.
            // `KernelView::new` checked that each group has the steps of every run. `starts` has an integer for each
            // column of a panel, and the sums have room for a tile.
            #[expect(unsafe_code, reason = "the innermost loop reads through raw pointers")]
            unsafe {
                multiply::<S, Int8Dot>(s, input, tile_rows, groups, sums.rows());
            }
            for (in_tile, sums) in sums.0.iter().enumerate().take(tile_rows) {
                self.write(s, &columns, sums, at + in_tile * outputs, end - self.first);
            }
        }
    }
}

impl Panel<'_, '_> {
    fn columns(&self, range: Range<usize>) -> Columns {
        let plan = self.plan;
        let KernelView { shape, sums, scales, .. } = plan.kernel;
        let mut columns = Columns { starts: [0; PANEL], scales: [0.0; PANEL], bias: [0.0; PANEL] };
        #[expect(clippy::cast_possible_truncation, reason = "a zero point is an integer in 0..=255")]
        let zero = plan.input.zero as i32;
        for (at, output) in range.enumerate() {
            let taps = plan.first_tap..plan.first_tap + plan.used_taps;
            let sum = taps.fold(0_i32, |sum, tap| sum.wrapping_add(sums[tap * shape.outputs + output]));
            columns.starts[at] = zero.wrapping_neg().wrapping_mul(sum);
            columns.scales[at] = scales[output] * plan.input.scale;
            columns.bias[at] = plan.bias[output];
        }
        columns
    }

    /// Writes the channels of one pixel to the result from `at` on.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, columns: &Columns, sums: &[i32; PANEL], at: usize, count: usize) {
        // SAFETY: a task writes only the channels of its own panel in its own rows, and `Workers` runs it once.
        #[expect(unsafe_code, reason = "disjoint parts of one result")]
        let to = unsafe { self.plan.to.part(at, count) };
        let residual = self.plan.residual.map(|residual| &residual[at..at + count]);
        for (first, to) in (0..PANEL).step_by(S::LANES).zip(to.chunks_mut(S::LANES)) {
            // SAFETY: the arrays have a whole vector from `first`, which is a multiple of the lanes.
            #[expect(unsafe_code, reason = "vectors of fixed-size arrays")]
            let (sum, scale, mut offset) = unsafe {
                (
                    s.to_f32(s.load_bytes_at(sums.as_ptr().add(first).cast())),
                    s.load_at(columns.scales.as_ptr().add(first)),
                    s.load_at(columns.bias.as_ptr().add(first)),
                )
            };
            if let Some(residual) = residual {
                offset = s.add(offset, s.load(&residual[first..][..to.len()]));
            }
            s.store(s.mul_add(sum, scale, offset), to);
        }
    }
}

#[cfg(test)]
#[path = "../convolution_tests.rs"]
mod tests;
