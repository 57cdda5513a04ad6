//! One pass each, vectorised; the derivative is recomputed from x.

use fewstep_tensor::math::{Real, sigmoid};
use fewstep_tensor::{PARALLEL_MIN, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;

use super::Activation;
use crate::{Dual, Result};

/// 2·√(2/π): ½(1 + tanh u) is the logistic function of 2u.
const GELU_SLOPE: f64 = 1.595_769_121_605_730_7;
const GELU_CUBIC: f64 = 0.044_715;

/// a(x)
#[inline(always)]
fn value<T: Real>(a: Activation, x: T) -> T {
    match a {
        Activation::GeluTanh => x * sigmoid(gelu_inner(x)),
        Activation::GeluExact => x * normal_cdf(x),
        Activation::Silu => x * sigmoid(x),
        // A NaN stays one.
        Activation::Relu => {
            if x < T::ZERO {
                T::ZERO
            } else {
                x
            }
        }
    }
}

/// da/dx
#[inline(always)]
fn slope<T: Real>(a: Activation, x: T) -> T {
    match a {
        Activation::GeluTanh => {
            let s = sigmoid(gelu_inner(x));
            let inner = T::lit(3.0 * GELU_SLOPE * GELU_CUBIC).fma(x * x, T::lit(GELU_SLOPE));
            (x * inner * s).fma(T::ONE - s, s)
        }
        Activation::GeluExact => {
            // 1/√(2π)
            let density = T::lit(0.398_942_280_401_432_7) * (T::lit(-0.5) * x * x).exp();
            x.fma(density, normal_cdf(x))
        }
        Activation::Silu => {
            let s = sigmoid(x);
            (x * s).fma(T::ONE - s, s)
        }
        Activation::Relu => {
            if x > T::ZERO {
                T::ONE
            } else {
                T::ZERO
            }
        }
    }
}

#[inline(always)]
fn gelu_inner<T: Real>(x: T) -> T {
    x * T::lit(GELU_SLOPE * GELU_CUBIC).fma(x * x, T::lit(GELU_SLOPE))
}

#[inline(always)]
fn normal_cdf<T: Real>(x: T) -> T {
    T::lit(0.5) * (T::ONE + (x * T::lit(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

/// Calls a loop with the activation known at compile time, so that its body holds one formula.
macro_rules! specialise {
    ($a:expr, $k:ident => $body:expr) => {
        match $a {
            Activation::GeluTanh => {
                const $k: Activation = Activation::GeluTanh;
                $body
            }
            Activation::GeluExact => {
                const $k: Activation = Activation::GeluExact;
                $body
            }
            Activation::Silu => {
                const $k: Activation = Activation::Silu;
                $body
            }
            Activation::Relu => {
                const $k: Activation = Activation::Relu;
                $body
            }
        }
    };
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn values<T: Real>(a: Activation, x: &[T], y: &mut [T]) {
    specialise!(a, A => y.iter_mut().zip(x).for_each(|(y, &x)| *y = value(A, x)));
}

#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
fn scaled_slopes<T: Real>(a: Activation, x: &[T], by: &[T], y: &mut [T]) {
    specialise!(a, A => y.iter_mut().zip(x).zip(by).for_each(|((y, &x), &d)| *y = d * slope(A, x)));
}

pub(super) fn forward<T: Real>(a: Activation, x: &Tensor) -> Result<Tensor> {
    let xs = x.as_slice::<T>()?;
    Ok(Tensor::cpu_with(x.shape(), |y: &mut [T]| {
        y.par_chunks_mut(PARALLEL_MIN).zip(xs.par_chunks(PARALLEL_MIN)).for_each(|(y, x)| values(a, x, y));
    }))
}

pub(super) fn jvp<T: Real>(a: Activation, x: &Tensor, x_dot: &Tensor) -> Result<Dual> {
    Ok(Dual { primal: forward::<T>(a, x)?, tangent: Some(vjp::<T>(a, x, x_dot)?) })
}

/// d·a′(x): the derivative is diagonal, so the transposed rule is the same product.
pub(super) fn vjp<T: Real>(a: Activation, x: &Tensor, d: &Tensor) -> Result<Tensor> {
    let (xs, ds) = (x.as_slice::<T>()?, d.as_slice::<T>()?);
    Ok(Tensor::cpu_with(x.shape(), |y: &mut [T]| {
        let chunks = y.par_chunks_mut(PARALLEL_MIN).zip(xs.par_chunks(PARALLEL_MIN));
        chunks.zip(ds.par_chunks(PARALLEL_MIN)).for_each(|((y, x), d)| scaled_slopes(a, x, d, y));
    }))
}
