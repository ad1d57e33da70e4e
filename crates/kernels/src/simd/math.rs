//! Functions of vectors that are the same for every instruction set.

use super::Simd;

/// `2^x` for `x` in 0..=1, exact at both ends, to 1.1e-4 of its value: the polynomial of degree 3 of least relative error.
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
    // Beyond 2^100 the quotient is zero to every format here, and no instruction set overflows on the way.
    let t = s.min(t, s.splat(100.0));
    s.mul(x, s.reciprocal(s.add(s.splat(1.0), s.exp2(t))))
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    let t = s.min(s.mul(x, s.splat(-std::f32::consts::LOG2_E)), s.splat(100.0));
    s.mul(x, s.reciprocal(s.add(s.splat(1.0), s.exp2(t))))
}
