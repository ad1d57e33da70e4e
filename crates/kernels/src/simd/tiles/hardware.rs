//! AMX tiles. Stable Rust has no intrinsics for AMX: all its instructions are in this file, as inline assembly.
#![expect(unsafe_code, reason = "instructions without intrinsics")]

use super::powers::Avx512Powers;
use super::{BlockSums, DEPTH, HeldProducts, ROWS, Step, Tiles};
use std::arch::asm;

/// The tiles of this thread. Dropping the value releases them, so that the operating system does not save 8 KiB of
/// tile state for a thread that waits or runs other code.
///
/// Create it only after [`super::permission`] succeeded.
#[derive(Debug)]
pub(crate) struct Hardware(());

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Configuration([u8; 64]);

/// Palette 1: eight tiles of sixteen rows of 64 bytes.
static WHOLE: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    Configuration(bytes)
};

impl Hardware {
    /// Configures the tiles of this thread.
    ///
    /// # Safety
    /// The processor has AMX tiles, and the operating system permits them.
    #[inline(always)]
    pub(crate) unsafe fn configured() -> Self {
        // SAFETY: guaranteed by the caller (see `# Safety`); the instruction reads the 64 bytes of `WHOLE`.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) WHOLE.0.as_ptr(), options(nostack, preserves_flags, readonly))
        };
        Self(())
    }
}

impl Drop for Hardware {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: `configured` created `self`, so the tiles are configured.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// One step of 32 rows and 32 columns. Each tile is loaded right before its first use, so that the loads of the next
/// step overlap with the products of this one.
macro_rules! step {
    ($dot:literal, $step:expr) => {{
        let Step { rows, stride, columns } = $step;
        // SAFETY: guaranteed by the caller (see `# Safety`); the tiles are configured while `self` exists.
        unsafe {
            asm!(
                "tileloadd tmm4, [{upper} + {stride}]",
                "tileloadd tmm6, [{left} + {depth}]",
                "tileloadd tmm7, [{right} + {depth}]",
                concat!($dot, " tmm0, tmm4, tmm6"),
                concat!($dot, " tmm1, tmm4, tmm7"),
                "tileloadd tmm5, [{lower} + {stride}]",
                concat!($dot, " tmm2, tmm5, tmm6"),
                concat!($dot, " tmm3, tmm5, tmm7"),
                upper = in(reg) rows,
                lower = in(reg) rows.wrapping_add(ROWS * stride),
                stride = in(reg) stride,
                left = in(reg) columns[0],
                right = in(reg) columns[1],
                depth = in(reg) DEPTH,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, readonly)
            );
        }
    }};
}

impl Tiles for Hardware {
    type Powers = Avx512Powers;

    #[inline(always)]
    unsafe fn zero(&mut self) {
        // SAFETY: the tiles are configured while `self` exists.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, preserves_flags, nomem)
            );
        }
    }

    #[inline(always)]
    unsafe fn load(&mut self, from: BlockSums) {
        let BlockSums { start, pitch, right, below } = from;
        // SAFETY: guaranteed by the caller (see `# Safety`); the tiles are configured while `self` exists.
        unsafe {
            asm!(
                "tileloadd tmm0, [{a} + {pitch}]",
                "tileloadd tmm1, [{b} + {pitch}]",
                "tileloadd tmm2, [{c} + {pitch}]",
                "tileloadd tmm3, [{d} + {pitch}]",
                a = in(reg) start,
                b = in(reg) start.wrapping_byte_add(right),
                c = in(reg) start.wrapping_byte_add(below),
                d = in(reg) start.wrapping_byte_add(below + right),
                pitch = in(reg) pitch,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, preserves_flags, readonly)
            );
        }
    }

    #[inline(always)]
    unsafe fn store(&mut self, to: BlockSums) {
        let BlockSums { start, pitch, right, below } = to;
        // SAFETY: guaranteed by the caller (see `# Safety`); the tiles are configured while `self` exists.
        unsafe {
            asm!(
                "tilestored [{a} + {pitch}], tmm0",
                "tilestored [{b} + {pitch}], tmm1",
                "tilestored [{c} + {pitch}], tmm2",
                "tilestored [{d} + {pitch}], tmm3",
                a = in(reg) start,
                b = in(reg) start.wrapping_byte_add(right),
                c = in(reg) start.wrapping_byte_add(below),
                d = in(reg) start.wrapping_byte_add(below + right),
                pitch = in(reg) pitch,
                options(nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    unsafe fn step_int8(&mut self, step: Step) {
        step!("tdpbusd", step);
    }

    #[inline(always)]
    unsafe fn step_bf16(&mut self, step: Step) {
        step!("tdpbf16ps", step);
    }

    #[inline(always)]
    unsafe fn hold(&mut self, rows: *const u8, stride: usize) {
        // SAFETY: guaranteed by the caller (see `# Safety`); the tiles are configured while `self` exists.
        unsafe {
            asm!(
                "tileloadd tmm4, [{rows} + {stride}]",
                "tileloadd tmm5, [{rows} + {stride} + 64]",
                "tileloadd tmm6, [{rows} + {stride} + 128]",
                "tileloadd tmm7, [{rows} + {stride} + 192]",
                rows = in(reg) rows,
                stride = in(reg) stride,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, readonly)
            );
        }
    }

    // Each sum tile is a separate dependency chain; its store overlaps with the next chain.
    #[inline(always)]
    unsafe fn held_products(&mut self, products: HeldProducts) {
        let HeldProducts { begin, columns, to, pitch } = products;
        macro_rules! chain {
            ($sum:tt, $columns:expr, $to:expr) => {
                // SAFETY: guaranteed by the caller (see `# Safety`); the tiles are configured while `self` exists.
                unsafe {
                    asm!(
                        concat!("tileloadd ", $sum, ", [{begin} + {depth}]"),
                        "tileloadd tmm2, [{columns} + {depth}]",
                        concat!("tdpbf16ps ", $sum, ", tmm4, tmm2"),
                        "tileloadd tmm3, [{columns} + {depth} + 1024]",
                        concat!("tdpbf16ps ", $sum, ", tmm5, tmm3"),
                        "tileloadd tmm2, [{columns} + {depth} + 2048]",
                        concat!("tdpbf16ps ", $sum, ", tmm6, tmm2"),
                        "tileloadd tmm3, [{columns} + {depth} + 3072]",
                        concat!("tdpbf16ps ", $sum, ", tmm7, tmm3"),
                        concat!("tilestored [{to} + {pitch}], ", $sum),
                        begin = in(reg) begin,
                        columns = in(reg) $columns,
                        depth = in(reg) DEPTH,
                        to = in(reg) $to,
                        pitch = in(reg) pitch,
                        out($sum) _, out("tmm2") _, out("tmm3") _,
                        options(nostack, preserves_flags)
                    );
                }
            };
        }
        chain!("tmm0", columns[0], to);
        chain!("tmm1", columns[1], to.wrapping_byte_add(DEPTH));
    }

    #[inline(always)]
    fn products(&mut self, rounds: usize, is_bf16: bool) {
        /// Four independent accumulator tiles.
        macro_rules! chains {
            ($dot:literal) => {
                // SAFETY: the tiles are configured while `self` exists; the instructions access no memory.
                unsafe {
                    asm!(
                        "2:",
                        concat!($dot, " tmm0, tmm4, tmm6"),
                        concat!($dot, " tmm1, tmm4, tmm7"),
                        concat!($dot, " tmm2, tmm5, tmm6"),
                        concat!($dot, " tmm3, tmm5, tmm7"),
                        "sub {rounds}, 1",
                        "jnz 2b",
                        rounds = inout(reg) rounds.max(1) => _,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack, nomem)
                    );
                }
            };
        }
        if is_bf16 {
            chains!("tdpbf16ps");
        } else {
            chains!("tdpbusd");
        }
    }
}
