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
use crate::packing::{GROUP, Int8Matrix, MatrixShape, STEP, SizeError, check};
use crate::product::tile::{Int8Dot, OutputLines, PANEL, Sums, TileInput, multiply};
use crate::rows::RowScale;
use crate::shared::{Chunks, SharedSlice};
use crate::simd::{Operation, Simd};
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
    /// Output channels.
    pub outputs: usize,
    /// Input channels, a multiple of 4.
    pub channels: usize,
    /// Temporal size: 1 (the current frame), or 3 (also the two previous frames).
    pub taps: usize,
    /// Spatial size in both directions, 1 or 3, centred on the output pixel.
    pub side: usize,
}

impl KernelShape {
    /// Returns the shape of the weight matrix. The inputs are packed in the order `[taps, side, side, channels]`.
    pub fn matrix(self) -> MatrixShape {
        MatrixShape { outputs: self.outputs, inputs: self.taps * self.side * self.side * self.channels }
    }

    fn check(self) -> Result<(), SizeError> {
        let whole = self.channels.max(1).next_multiple_of(STEP);
        check("channels of the frames, a multiple of 4", self.channels, whole)?;
        let odd = |size: usize| if size == 1 { 1 } else { 3 };
        check("taps of the kernel, 1 or 3", self.taps, odd(self.taps))?;
        check("side of the kernel, 1 or 3", self.side, odd(self.side))
    }
}

/// A kernel packed for the convolution.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Kernel {
    /// Extents.
    pub shape: KernelShape,
    /// `[N/16][K/4][16][4]`.
    pub packed: Vec<i8>,
    /// Sums of the quantised values of each tap and output, `[taps,N]`.
    pub sums: Vec<i32>,
    /// Scale of each output, `[N]`.
    pub scales: Vec<f32>,
}

impl Int8Kernel {
    /// Packs quantised values `[N, taps, channels, side, side]` with a scale for each output.
    ///
    /// # Errors
    /// Returns an error if the lengths do not match the shape, or if the shape is not supported.
    pub fn pack(shape: KernelShape, quantised: &[i8], scales: &[f32]) -> Result<Self, SizeError> {
        shape.check()?;
        let KernelShape { outputs, channels, taps, side } = shape;
        check("quantised values", quantised.len(), shape.matrix().elements())?;
        let plane = side * side;
        let mut ordered = Vec::with_capacity(quantised.len());
        let mut sums = vec![0; taps * outputs];
        for (index, of_tap) in quantised.chunks_exact((channels * plane).max(1)).enumerate() {
            let (output, tap) = (index / taps, index % taps);
            sums[tap * outputs + output] = of_tap.iter().map(|value| i32::from(*value)).sum();
            for position in 0..plane {
                ordered.extend(of_tap.iter().skip(position).step_by(plane));
            }
        }
        let Int8Matrix { packed, scales, .. } = Int8Matrix::pack(shape.matrix(), &ordered, scales)?;
        Ok(Self { shape, packed, sums, scales })
    }

    /// Returns a view of the kernel for the convolution.
    pub fn view(&self) -> KernelView<'_> {
        KernelView { shape: self.shape, packed: &self.packed, sums: &self.sums, scales: &self.scales }
    }
}

/// An [`Int8Kernel`] at any address, for example in a memory-mapped file.
#[derive(Debug, Clone, Copy)]
pub struct KernelView<'a> {
    /// Extents.
    pub shape: KernelShape,
    /// See [`Int8Kernel::packed`].
    pub packed: &'a [i8],
    /// See [`Int8Kernel::sums`].
    pub sums: &'a [i32],
    /// See [`Int8Kernel::scales`].
    pub scales: &'a [f32],
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
    pub fn result(extent: [usize; 3], transform: InputTransform) -> [usize; 3] {
        let [frames, height, width] = extent;
        let (time, space) =
            (1 + usize::from(transform.splits_frames), 1 + usize::from(transform.doubles_pixels));
        [time * frames, space * height, space * width]
    }

    fn check(&self) -> Result<(), SizeError> {
        let KernelView { shape, packed, sums, scales } = self.kernel;
        shape.check()?;
        check("packed weights", packed.len(), shape.matrix().packed_int8())?;
        check("sums of the weights", sums.len(), shape.taps * shape.outputs)?;
        check("scales of the weights", scales.len(), shape.outputs)?;
        check("bias", self.bias.len(), shape.outputs)?;
        let [frames, height, width] = self.extent;
        let wide = shape.channels * (1 + usize::from(self.transform.splits_frames));
        check("frames", self.frames.len(), frames * height * width * wide)?;
        if let Some(history) = self.history {
            check("taps of a kernel with a history", shape.taps, 3)?;
            check("history", history.len(), 2 * height * width * shape.channels)?;
        }
        let is_plain = self.transform == InputTransform::default();
        check("side of a kernel with an input transform", shape.side, if is_plain { shape.side } else { 3 })?;
        check("taps of a kernel with an input transform", shape.taps, if is_plain { shape.taps } else { 1 })?;
        let size = Self::result(self.extent, self.transform).iter().product::<usize>() * shape.outputs;
        check("residual", self.residual.map_or(size, <[f32]>::len), size)?;
        check("result of the convolution", self.to.len(), size)
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
        convolution.check()?;
        let Convolution { kernel, bias, input, frames, extent, history, transform, residual, to } =
            convolution;
        let KernelShape { outputs, channels, taps, side } = kernel.shape;
        let [count, height, width] = Convolution::result(extent, transform);
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
            let padded = (height + 2) * (width + 2) * channels;
            let [region] = scratch.regions([(before + count) * padded + tiled::TAIL_BYTES]);
            let (region, _) = region.split_at_mut((before + count) * padded);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a zero point is an integer in 0..=255"
            )]
            let zero = input.zero as u8;
            let padding =
                Padding { history: history.unwrap_or_default(), frames, extent, channels, transform, zero };
            padding.write(workers, before + count, region);
            let region: &[u8] = region;
            (region.chunks_exact(padded).map(<[u8]>::as_ptr).collect(), (width + 2) * channels)
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

// SAFETY: the frames are only read while the tasks run.
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
        let (run, group) = (side * channels, plan.kernel.shape.matrix().inputs * GROUP);
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
            // SAFETY: the frames were checked to have these rows and pixels, and `side - 1` more of each if there is
            // a border; the weights have this many groups.
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
            columns.starts[at] = -zero * taps.map(|tap| sums[tap * shape.outputs + output]).sum::<i32>();
            columns.scales[at] = scales[output] * plan.input.scale;
            columns.bias[at] = plan.bias[output];
        }
        columns
    }

    /// Writes the channels of one pixel to the result from `at` on.
    #[inline(always)]
    fn write<S: Simd>(&self, s: S, columns: &Columns, sums: &[i32; PANEL], at: usize, count: usize) {
        // SAFETY: a task writes only the channels of its own panel in its own rows.
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
