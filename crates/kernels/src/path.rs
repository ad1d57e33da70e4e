//! Selection of the instruction set, once at startup.

use crate::simd::tiles::permission;
pub use crate::simd::tiles::permission::TileRefusal;
use crate::simd::{Operation, Simd, portable::Portable};
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx256, avx256::Avx256, avx512::Avx512};
use std::fmt;
use std::str::FromStr;

/// An instruction set that every kernel is compiled for; the names are the values of `--cpu-path`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuPath {
    /// AMX tiles for INT8 and bf16 products, 512-bit vectors for everything else.
    Amx,
    /// INT8 dot products on 512-bit vectors, and bf16 dot products if the processor has them.
    Avx512Vnni,
    /// INT8 dot products on 256-bit vectors, from AVX-VNNI or AVX-512.
    Vnni256,
    /// 256-bit vectors; bytes are widened to 16 bits.
    Avx2,
    /// Scalar arithmetic, on any processor.
    Scalar,
    /// The tile drivers on emulated tiles, for tests on any processor.
    #[cfg(test)]
    AmxEmulated,
}

/// Reason why a path is unavailable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No path has this name.
    #[error("unknown CPU path `{0}`; expected amx, avx512-vnni, vnni-256, avx2 or scalar")]
    Unknown(String),
    /// The processor lacks its instructions.
    #[error("this processor does not support `{asked}`; its best path is `{best}`")]
    Lacking {
        /// The requested path.
        asked: CpuPath,
        /// The best path of this processor.
        best: CpuPath,
    },
    /// This process cannot use AMX tiles.
    #[error("`amx` cannot be used: {why}; the best available path is `{best}`")]
    NoTiles {
        /// The reason.
        why: TileRefusal,
        /// The best path of this process.
        best: CpuPath,
    },
}

impl CpuPath {
    /// Every path, the fastest first.
    pub const ALL: [Self; 5] = [Self::Amx, Self::Avx512Vnni, Self::Vnni256, Self::Avx2, Self::Scalar];

    /// The name used in flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amx => "amx",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Vnni256 => "vnni-256",
            Self::Avx2 => "avx2",
            Self::Scalar => "scalar",
            #[cfg(test)]
            Self::AmxEmulated => "amx-emulated",
        }
    }
}

impl fmt::Display for CpuPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CpuPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::ALL.into_iter().find(|path| path.name() == text).ok_or_else(|| PathError::Unknown(text.into()))
    }
}

/// The kernels compiled for one path, with every operator of this crate as a method.
///
/// A value exists only for a path that the processor can run.
///
/// ```
/// use kernels::{CpuPath, Kernels, PathError};
///
/// let best = Kernels::best();
/// println!("{}, bf16: {}", best.path(), best.has_bf16());
/// assert_eq!(Kernels::of(best.path())?.path(), best.path());
/// assert_eq!(Kernels::of(CpuPath::Scalar)?.path().name(), "scalar");
/// # Ok::<(), PathError>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Kernels {
    set: Set,
}

#[derive(Debug, Clone, Copy)]
enum Set {
    #[cfg(target_arch = "x86_64")]
    Amx(Avx512<true, true>),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512<true>),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni256(Avx256<{ avx256::AVX512_VNNI }>),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(Avx256<{ avx256::AVX_VNNI }>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx256<{ avx256::WIDENED }>),
    Portable(Portable),
    #[cfg(test)]
    Emulated(Portable<true>),
}

impl Kernels {
    /// Returns the kernels of the fastest path of this processor.
    pub fn best() -> Self {
        let mut sets = CpuPath::ALL.into_iter().filter_map(detect);
        Self { set: sets.next().unwrap_or(Set::Portable(Portable)) }
    }

    /// Returns the kernels of `path`.
    ///
    /// # Errors
    /// Returns an error if the processor lacks the instructions or this process may not use them.
    pub fn of(path: CpuPath) -> Result<Self, PathError> {
        match detect(path) {
            Some(set) => Ok(Self { set }),
            None => {
                let best = Self::best().path();
                Err(match tile_refusal() {
                    Some(why) if path == CpuPath::Amx => PathError::NoTiles { why, best },
                    _ => PathError::Lacking { asked: path, best },
                })
            }
        }
    }

    /// The path.
    pub fn path(self) -> CpuPath {
        match self.set {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(_) => CpuPath::Amx,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(_) | Set::Avx512(_) => CpuPath::Avx512Vnni,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni256(_) | Set::AvxVnni(_) => CpuPath::Vnni256,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => CpuPath::Avx2,
            Set::Portable(_) => CpuPath::Scalar,
            #[cfg(test)]
            Set::Emulated(_) => CpuPath::AmxEmulated,
        }
    }

    /// Returns true if the processor has bf16 dot-product instructions, so that they are not emulated with f32.
    pub fn has_bf16(self) -> bool {
        match self.set {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(_) | Set::Avx512Bf16(_) => true,
            _ => false,
        }
    }

    /// Returns true if products run on tiles.
    pub(crate) fn has_tiles(self) -> bool {
        match self.set {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(_) => true,
            #[cfg(test)]
            Set::Emulated(_) => true,
            _ => false,
        }
    }

    pub(crate) fn run<O: Operation>(self, operation: O) -> O::Output {
        match self.set {
            #[cfg(target_arch = "x86_64")]
            Set::Amx(s) => s.vectorize(operation),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(s) => s.vectorize(operation),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(s) => s.vectorize(operation),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni256(s) => s.vectorize(operation),
            #[cfg(target_arch = "x86_64")]
            Set::AvxVnni(s) => s.vectorize(operation),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(s) => s.vectorize(operation),
            Set::Portable(s) => s.vectorize(operation),
            #[cfg(test)]
            Set::Emulated(s) => s.vectorize(operation),
        }
    }
}

/// Returns the reason why this process cannot use the path `amx`, or `None` if it can.
pub fn tile_refusal() -> Option<TileRefusal> {
    permission::tiles().err()
}

#[cfg(target_arch = "x86_64")]
fn detect(path: CpuPath) -> Option<Set> {
    match path {
        CpuPath::Amx => Avx512::<true, true>::detect().map(Set::Amx),
        CpuPath::Avx512Vnni => Avx512::<true>::detect()
            .map(Set::Avx512Bf16)
            .or_else(|| Avx512::<false>::detect().map(Set::Avx512)),
        CpuPath::Vnni256 => {
            Avx256::detect().map(Set::Avx512Vnni256).or_else(|| Avx256::detect().map(Set::AvxVnni))
        }
        CpuPath::Avx2 => Avx256::detect().map(Set::Avx2),
        CpuPath::Scalar => Some(Set::Portable(Portable)),
        #[cfg(test)]
        CpuPath::AmxEmulated => Some(Set::Emulated(Portable)),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect(path: CpuPath) -> Option<Set> {
    match path {
        CpuPath::Scalar => Some(Set::Portable(Portable)),
        #[cfg(test)]
        CpuPath::AmxEmulated => Some(Set::Emulated(Portable)),
        _ => None,
    }
}

/// Returns all paths of this machine and the emulated one. Skipped paths are logged, so that no test passes silently.
#[cfg(test)]
pub(crate) fn paths_under_test() -> impl Iterator<Item = Kernels> {
    CpuPath::ALL.into_iter().chain([CpuPath::AmxEmulated]).filter_map(|path| {
        Kernels::of(path).inspect_err(|error| eprintln!("{path} is skipped: {error}")).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_names_round_trip_and_unknown_names_are_errors() {
        for path in CpuPath::ALL {
            assert_eq!(path.name().parse(), Ok(path));
        }
        assert_eq!("sse2".parse::<CpuPath>(), Err(PathError::Unknown("sse2".into())));
    }

    #[test]
    fn the_best_path_is_the_first_available_one() {
        let first = CpuPath::ALL.into_iter().find(|path| Kernels::of(*path).is_ok());
        assert_eq!(first, Some(Kernels::best().path()));
        assert!(Kernels::of(CpuPath::Scalar).is_ok());
    }
}
