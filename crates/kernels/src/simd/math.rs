//! Vector functions that are shared by all instruction sets.

use super::Simd;

/// The exponent of the smallest normal f32. Smaller results are zero on every path: a subnormal result may take a
/// processor a hundred times as long.
pub(crate) const SMALLEST_EXPONENT: f32 = -126.0;

/// `2^x` for `x` in 0..=1, exact at both ends, with a relative error of at most 1.1e-4: the cubic polynomial of least
/// relative error.
#[inline(always)]
pub(crate) fn exp2_polynomial<S: Simd>(s: S, x: S::F) -> S::F {
    let p = s.mul_add(s.splat(0.078_267_97), x, s.splat(0.226_307_68));
    let p = s.mul_add(p, x, s.splat(0.695_424_4));
    s.mul_add(p, x, s.splat(1.0))
}

/// The tanh form of GELU as `x / (1 + 2^t)`, `t = x·(c1 + c2·x²)`: `(1 + tanh u)/2 = 1/(1 + e^(-2u))` with
/// `u = √(2/π)·(x + 0.044715·x³)`.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    const C1: f32 = -2.302_208_2;
    const C2: f32 = C1 * 0.044_715;
    let square = s.mul(x, x);
    let t = s.mul(x, s.mul_add(square, s.splat(C2), s.splat(C1)));
    // Beyond 2^100 the quotient is zero in every format here; the limit avoids overflow on all instruction sets.
    let t = s.min(t, s.splat(100.0));
    s.mul(x, s.reciprocal(s.add(s.splat(1.0), s.exp2(t))))
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    let t = s.min(s.mul(x, s.splat(-std::f32::consts::LOG2_E)), s.splat(100.0));
    s.mul(x, s.reciprocal(s.add(s.splat(1.0), s.exp2(t))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::paths_under_test;
    use crate::simd::{MAX_LANES, Operation};

    #[derive(Clone, Copy)]
    enum Function {
        Exp2,
        Gelu,
        Silu,
    }

    struct Apply {
        function: Function,
        to: [f32; MAX_LANES],
    }

    impl Operation for Apply {
        type Output = [f32; MAX_LANES];

        #[inline(always)]
        fn run<S: Simd>(mut self, s: S) -> [f32; MAX_LANES] {
            for part in self.to.chunks_exact_mut(S::LANES) {
                let x = s.load(part);
                let y = match self.function {
                    Function::Exp2 => s.exp2(x),
                    Function::Gelu => gelu_tanh(s, x),
                    Function::Silu => silu(s, x),
                };
                s.store(y, part);
            }
            self.to
        }
    }

    /// Evaluates a function of one number on every path.
    fn on_every_path(function: Function, x: f32) -> Vec<f32> {
        let apply = |kernels: crate::Kernels| kernels.run(Apply { function, to: [x; MAX_LANES] });
        paths_under_test().flat_map(apply).collect()
    }

    #[test]
    fn exp2_is_accurate_and_never_subnormal() {
        for x in (-1400..1270).map(|tenth| tenth as f32 / 10.0).chain([-126.0, -126.000_01, -1e30]) {
            for found in on_every_path(Function::Exp2, x) {
                if x < SMALLEST_EXPONENT {
                    assert_eq!(found.to_bits(), 0, "2^{x}");
                } else {
                    assert!(found.is_normal() && (found / x.exp2() - 1.0).abs() < 1.2e-4, "2^{x}: {found}");
                }
            }
        }
    }

    #[test]
    fn gelu_and_silu_of_large_inputs_are_near_the_input_or_zero() {
        for x in [9.0, 9.9, 10.0, 12.0, 30.0, 90.0, 1e3, 1e6] {
            for function in [Function::Gelu, Function::Silu] {
                for (found, below) in on_every_path(function, x).into_iter().zip(on_every_path(function, -x))
                {
                    assert!((found / x - 1.0).abs() < 2.5e-4, "{found} of {x}");
                    assert!((-2e-3..=0.0).contains(&below) && !below.is_subnormal(), "{below} of -{x}");
                }
            }
        }
    }
}
