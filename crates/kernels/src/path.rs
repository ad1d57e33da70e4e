//! Which instructions the kernels use: asked once, then passed in.

use crate::simd::{Operation, Simd, portable::Portable};
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx256, avx256::Avx256, avx512::Avx512};
use std::fmt;
use std::str::FromStr;

/// An instruction set that every kernel is compiled for, as `--cpu-path` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuPath {
    /// Byte dot products on 512-bit vectors; bf16 dot products too where the processor has them.
    Avx512Vnni,
    /// Byte dot products on 256-bit vectors, of AVX-VNNI or of AVX-512.
    Vnni256,
    /// 256-bit vectors; bytes are widened to 16 bits.
    Avx2,
    /// Plain arithmetic, on any processor.
    Scalar,
}

/// Why a path cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No path has this name.
    #[error("`{0}` is no path of the CPU kernels: use avx512-vnni, vnni-256, avx2 or scalar")]
    Unknown(String),
    /// The processor lacks its instructions.
    #[error("this processor lacks the instructions of `{asked}`: its best path is `{best}`")]
    Lacking {
        /// The path that was asked for.
        asked: CpuPath,
        /// The best that this processor has.
        best: CpuPath,
    },
}

impl CpuPath {
    /// Every path, the fastest first.
    pub const ALL: [Self; 4] = [Self::Avx512Vnni, Self::Vnni256, Self::Avx2, Self::Scalar];

    /// The name used in flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512Vnni => "avx512-vnni",
            Self::Vnni256 => "vnni-256",
            Self::Avx2 => "avx2",
            Self::Scalar => "scalar",
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

/// The kernels compiled for one path: the way to every operator of this crate.
///
/// Having one is the proof that the processor can run it.
#[derive(Debug, Clone, Copy)]
pub struct Kernels {
    set: Set,
}

#[derive(Debug, Clone, Copy)]
enum Set {
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
}

impl Kernels {
    /// The fastest that this processor can run.
    pub fn best() -> Self {
        let mut sets = CpuPath::ALL.into_iter().filter_map(detect);
        Self { set: sets.next().unwrap_or(Set::Portable(Portable)) }
    }

    /// Those of one path.
    ///
    /// # Errors
    /// The processor lacks its instructions.
    pub fn of(path: CpuPath) -> Result<Self, PathError> {
        match detect(path) {
            Some(set) => Ok(Self { set }),
            None => Err(PathError::Lacking { asked: path, best: Self::best().path() }),
        }
    }

    /// The path.
    pub fn path(self) -> CpuPath {
        match self.set {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(_) | Set::Avx512(_) => CpuPath::Avx512Vnni,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni256(_) | Set::AvxVnni(_) => CpuPath::Vnni256,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => CpuPath::Avx2,
            Set::Portable(_) => CpuPath::Scalar,
        }
    }

    /// Whether products of bf16 are instructions of the processor, and not made of f32 ones.
    pub fn has_bf16(self) -> bool {
        match self.set {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Bf16(_) => true,
            _ => false,
        }
    }

    pub(crate) fn run<O: Operation>(self, operation: O) -> O::Output {
        match self.set {
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
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn detect(path: CpuPath) -> Option<Set> {
    match path {
        CpuPath::Avx512Vnni => Avx512::<true>::detect()
            .map(Set::Avx512Bf16)
            .or_else(|| Avx512::<false>::detect().map(Set::Avx512)),
        CpuPath::Vnni256 => {
            Avx256::detect().map(Set::Avx512Vnni256).or_else(|| Avx256::detect().map(Set::AvxVnni))
        }
        CpuPath::Avx2 => Avx256::detect().map(Set::Avx2),
        CpuPath::Scalar => Some(Set::Portable(Portable)),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect(path: CpuPath) -> Option<Set> {
    (path == CpuPath::Scalar).then_some(Set::Portable(Portable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_refused() {
        for path in CpuPath::ALL {
            assert_eq!(path.name().parse(), Ok(path));
        }
        assert_eq!("sse2".parse::<CpuPath>(), Err(PathError::Unknown("sse2".into())));
    }

    #[test]
    fn the_best_path_is_the_first_that_can_be_had() {
        let first = CpuPath::ALL.into_iter().find(|path| Kernels::of(*path).is_ok());
        assert_eq!(first, Some(Kernels::best().path()));
        assert!(Kernels::of(CpuPath::Scalar).is_ok());
    }
}
