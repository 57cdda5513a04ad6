//! Scalar mathematics that vectorises: branch-free, the same formula for f32 and f64.
//!
//! Every function is `inline(always)`, so that a loop compiled for AVX2 or AVX-512 contains it in those
//! instructions. Fused multiply-adds are explicit.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use crate::dtype::Element;
use crate::gemm::Gemm;

/// A compute type: f32 or f64.
pub trait Real:
    Element
    + Gemm
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// −∞
    const NEG_INFINITY: Self;
    /// a·b + c with one rounding.
    fn fma(self, b: Self, c: Self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// The larger of two.
    fn max(self, other: Self) -> Self;
    /// eˣ, within 2 ulp; 0 below the smallest normal number, ∞ above the largest.
    fn exp(self) -> Self;
    /// The error function, within 1 ulp.
    fn erf(self) -> Self;
    /// Rounds a constant.
    #[inline(always)]
    fn lit(x: f64) -> Self {
        Self::from_f64(x)
    }
}

/// 1/n! for n = 0…13.
const INV_FACTORIAL: [f64; 14] = [
    1.0,
    1.0,
    0.5,
    1.0 / 6.0,
    1.0 / 24.0,
    1.0 / 120.0,
    1.0 / 720.0,
    1.0 / 5040.0,
    1.0 / 40320.0,
    1.0 / 362880.0,
    1.0 / 3628800.0,
    1.0 / 39916800.0,
    1.0 / 479001600.0,
    1.0 / 6227020800.0,
];

macro_rules! real {
    ($t:ident, $bits:ty, $bias:expr, $mantissa:expr, $degree:expr, $min:expr, $max:expr, $ln2_hi:expr, $ln2_lo:expr, $erf:path) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;
            #[inline(always)]
            fn fma(self, b: Self, c: Self) -> Self {
                self.mul_add(b, c)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                $t::ln(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $t::abs(self)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                if self > other { self } else { other }
            }
            /// eˣ = 2ⁿ·eʳ with |r| ≤ ln2/2, eʳ by its Taylor polynomial: the remainder is below half an ulp.
            #[inline(always)]
            fn exp(self) -> Self {
                // Adding 1.5·2^mantissa rounds to an integer, which then sits in the low bits.
                const ROUND: $t = 1.5 * (1u64 << $mantissa) as $t;
                let x = if self > $max { $max } else { self };
                let x = if x > $min { x } else { $min };
                let shifted = x.mul_add(std::$t::consts::LOG2_E, ROUND);
                let n = shifted - ROUND;
                let r = n.mul_add(-$ln2_lo, n.mul_add(-$ln2_hi, x));
                let mut p = INV_FACTORIAL[$degree] as $t;
                let mut i = $degree;
                while i > 0 {
                    i -= 1;
                    p = p.mul_add(r, INV_FACTORIAL[i] as $t);
                }
                let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add($bias) << $mantissa;
                let y = p * $t::from_bits(power as $bits);
                let y = if self > $max { $t::INFINITY } else { y };
                let y = if self < $min { 0.0 } else { y };
                if self.is_nan() { self } else { y }
            }
            #[inline(always)]
            fn erf(self) -> Self {
                $erf(self)
            }
        }
    };
}

real!(f32, u32, 127, 23, 7, -87.33654, 88.37626, 0.693_145_75, 1.428_606_8e-6, libm::erff);
real!(
    f64,
    u64,
    1023,
    52,
    13,
    -708.396_418_532_264_1,
    709.0,
    0.693_147_180_369_123_8,
    1.908_214_929_270_587_7e-10,
    libm::erf
);

/// The logistic function 1/(1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_over_its_range() {
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3;
            let want = (x as f64).exp();
            assert!((Real::exp(x) as f64 / want - 1.0).abs() < 2.4e-7, "exp({x})");
        }
        for i in -70_000..70_000 {
            let x = i as f64 * 1e-2;
            assert!((Real::exp(x) / x.exp() - 1.0).abs() < 5e-16, "exp({x})");
        }
    }

    #[test]
    fn exp_of_the_extremes_is_zero_infinity_or_nan() {
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(Real::exp(-1e5f64), 0.0);
        assert!(Real::exp(f64::NAN).is_nan());
        assert_eq!(Real::exp(0.0f32), 1.0);
    }
}
