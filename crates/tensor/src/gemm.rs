//! Matrix products: a safe, strided front on the `gemm` crates' micro-kernels.
//!
//! Results do not depend on the number of threads.
#![allow(unsafe_code)]

use gemm_common::Parallelism;
use rayon::prelude::*;

use crate::math::Real;
use crate::{Buffer, bf16};

/// Products with fewer multiply-adds than this stay on the calling thread.
const PARALLEL_MIN_WORK: usize = 64 * 64 * 64;
/// With this few rows the micro-kernels leave threads idle; columns are then dealt out in fixed pieces.
const SKINNY_ROWS: usize = 8;
/// Columns of one piece of a skinny product.
const SKINNY_COLS: usize = 256;
/// Columns of B that [`gemm_bf16`] widens at a time, about.
const PANEL_COLS: usize = 1024;
/// Panels are so many columns wide, or a multiple: whole tiles of every micro-kernel.
const PANEL_STEP: usize = 64;

/// A matrix to read: any strides, inside a slice.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// A row-major matrix whose rows are `row_stride` elements apart.
    ///
    /// # Panics
    /// If the slice is too short: that is a defect of the calling kernel.
    pub fn new(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert_fits(data.len(), rows, cols, row_stride);
        Mat { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// A row-major matrix whose rows may share elements: the windows of a convolution.
    ///
    /// # Panics
    /// If the slice is too short: that is a defect of the calling kernel.
    pub fn overlapping(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert_holds(data.len(), rows, cols, row_stride);
        Mat { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose; free.
    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    fn is_transposed(&self) -> bool {
        self.row_stride == 1
    }

    fn columns(self, start: usize, cols: usize) -> Self {
        Mat { data: &self.data[start * self.col_stride..], cols, ..self }
    }
}

/// A row-major matrix to write, inside a slice.
#[derive(Debug)]
pub struct MatMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a, T> MatMut<'a, T> {
    /// A row-major matrix whose rows are `row_stride` elements apart.
    ///
    /// # Panics
    /// If the slice is too short: that is a defect of the calling kernel.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert_fits(data.len(), rows, cols, row_stride);
        MatMut { data, rows, cols, row_stride }
    }
}

fn assert_fits(len: usize, rows: usize, cols: usize, row_stride: usize) {
    assert!(row_stride >= cols, "row stride {row_stride} below {cols} columns");
    assert_holds(len, rows, cols, row_stride);
}

fn assert_holds(len: usize, rows: usize, cols: usize, row_stride: usize) {
    assert!(
        rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= len,
        "a {rows}x{cols} matrix with row stride {row_stride} does not fit {len} elements"
    );
}

/// Whether a product may use the thread pool. Kernels that are themselves parallel say `Single`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Only the calling thread.
    Single,
    /// The whole pool, when the product is large enough.
    Pool,
}

/// C = alpha·A·B, or C += alpha·A·B with `accumulate`; accumulates in T.
///
/// # Panics
/// If the extents do not agree: callers check shapes and report them.
pub fn gemm<T: Real>(c: MatMut<T>, accumulate: bool, alpha: T, a: Mat<T>, b: Mat<T>, threads: Threads) {
    assert_agree([c.rows, c.cols], [a.rows, a.cols], [b.rows, b.cols]);
    let alone = threads == Threads::Single || is_small(c.rows, c.cols, a.cols);
    multiply(c, accumulate, alpha, a, b, alone);
}

/// As [`gemm`] with B in bf16, widened in panels of [`panel_cols`] columns into scratch: the same bits as of B widened
/// beforehand.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_bf16<T: Real>(c: MatMut<T>, accumulate: bool, alpha: T, a: Mat<T>, b: Mat<bf16>, threads: Threads) {
    assert_agree([c.rows, c.cols], [a.rows, a.cols], [b.rows, b.cols]);
    let alone = threads == Threads::Single || is_small(c.rows, c.cols, a.cols);
    let width = if alone { c.cols.max(1) } else { panel_cols(c.rows, c.cols, a.cols) };
    let MatMut { data, rows, cols, row_stride } = c;
    for start in (0..cols).step_by(width) {
        let n = width.min(cols - start);
        let columns = b.columns(start, n);
        let scratch = widened::<T>(columns);
        // As `widened` packed them.
        let (row_stride_b, col_stride_b) = if columns.is_transposed() { (1, b.rows) } else { (n, 1) };
        let data_b = scratch.as_slice();
        let panel = Mat { data: data_b, rows: b.rows, cols: n, row_stride: row_stride_b, col_stride: col_stride_b };
        let out = MatMut { data: &mut data[start..], rows, cols: n, row_stride };
        multiply(out, accumulate, alpha, a, panel, alone);
    }
}

/// Columns of B that [`gemm_bf16`] widens at a time for a product into `rows` × `cols` over `inner`, on the pool.
///
/// Panels are neither so narrow that the micro-kernels take another path than for the whole (hence of about equal width),
/// nor do they cut the pieces of a skinny product: every sum is formed as without panels.
pub fn panel_cols(rows: usize, cols: usize, inner: usize) -> usize {
    if is_small(rows, cols, inner) {
        return cols.max(1);
    }
    if rows <= SKINNY_ROWS {
        return PANEL_COLS;
    }
    cols.div_ceil(cols.div_ceil(PANEL_COLS)).next_multiple_of(PANEL_STEP)
}

fn is_small(rows: usize, cols: usize, inner: usize) -> bool {
    rows * cols * inner < PARALLEL_MIN_WORK
}

fn assert_agree(c: [usize; 2], a: [usize; 2], b: [usize; 2]) {
    assert!(c == [a[0], b[1]] && a[1] == b[0], "product of {a:?} and {b:?} into {c:?}");
}

fn multiply<T: Real>(c: MatMut<T>, accumulate: bool, alpha: T, a: Mat<T>, b: Mat<T>, alone: bool) {
    if alone {
        product(c, accumulate, alpha, a, b, Parallelism::None);
    } else if c.rows <= SKINNY_ROWS {
        skinny(c, accumulate, alpha, a, b);
    } else {
        product(c, accumulate, alpha, a, b, Parallelism::Rayon(rayon::current_num_threads()));
    }
}

/// A matrix's elements widened: column by column where it is a transpose, else row by row, packed.
fn widened<T: Real>(m: Mat<bf16>) -> Buffer<T> {
    let (lines, len, stride) = match m.is_transposed() {
        true => (m.cols, m.rows, m.col_stride),
        false => (m.rows, m.cols, m.row_stride),
    };
    let mut scratch = Buffer::scratch(lines * len);
    scratch.as_mut_slice().par_chunks_mut(len.max(1)).enumerate().for_each(|(i, line)| {
        let source = &m.data[i * stride..][..len];
        line.iter_mut().zip(source).for_each(|(w, n)| *w = T::from_f64(widen(*n).into()));
    });
    scratch
}

/// Exact; without the branch for NaN that keeps the loop above from being vectorised.
fn widen(n: bf16) -> f32 {
    f32::from_bits(u32::from(n.to_bits()) << 16)
}

/// Few rows: each piece of columns is computed into a small block of its own, then copied to its place.
fn skinny<T: Real>(c: MatMut<T>, accumulate: bool, alpha: T, a: Mat<T>, b: Mat<T>) {
    let pieces: Vec<(usize, Vec<T>)> = (0..c.cols.div_ceil(SKINNY_COLS))
        .into_par_iter()
        .map(|i| {
            let start = i * SKINNY_COLS;
            let cols = SKINNY_COLS.min(c.cols - start);
            let mut block = vec![T::default(); c.rows * cols];
            let out = MatMut::new(&mut block, c.rows, cols, cols);
            product(out, false, alpha, a, b.columns(start, cols), Parallelism::None);
            (start, block)
        })
        .collect();
    for (start, block) in pieces {
        let cols = block.len() / c.rows;
        for (r, src) in block.chunks(cols).enumerate() {
            let dst = &mut c.data[r * c.row_stride + start..][..cols];
            for (d, &s) in dst.iter_mut().zip(src) {
                *d = if accumulate { *d + s } else { s };
            }
        }
    }
}

fn product<T: Real>(c: MatMut<T>, accumulate: bool, alpha: T, a: Mat<T>, b: Mat<T>, p: Parallelism) {
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    // The micro-kernels want a column-major result: C row-major is Cᵀ = Bᵀ·Aᵀ column-major.
    // SAFETY: `assert_fits` (`assert_holds` where rows to read may overlap) checked every matrix against its slice at construction (transposing and taking columns
    // keep the extents inside it), `gemm` checked that the extents agree, `c` is borrowed mutably so nothing aliases
    // it, and all slices are initialised.
    unsafe {
        T::gemm_kernel()(
            c.cols,
            c.rows,
            a.cols,
            c.data.as_mut_ptr(),
            c.row_stride as isize,
            1,
            accumulate,
            b.data.as_ptr(),
            b.row_stride as isize,
            b.col_stride as isize,
            a.data.as_ptr(),
            a.row_stride as isize,
            a.col_stride as isize,
            T::ONE,
            alpha,
            false,
            false,
            false,
            p,
        );
    }
}

/// The signature of a micro-kernel driver: extents, C with strides, whether C is read, A and B with strides,
/// C ← alpha·C + beta·A·B, conjugations, threads.
pub type Kernel<T> = unsafe fn(
    usize,
    usize,
    usize,
    *mut T,
    isize,
    isize,
    bool,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    T,
    bool,
    bool,
    bool,
    Parallelism,
);

/// Types with a matrix product.
pub trait Gemm: Sized {
    /// The fastest driver for this processor.
    fn gemm_kernel() -> Kernel<Self>;
}

impl Gemm for f32 {
    fn gemm_kernel() -> Kernel<f32> {
        gemm_f32::gemm::f32::get_gemm_fn()
    }
}

impl Gemm for f64 {
    fn gemm_kernel() -> Kernel<f64> {
        gemm_f64::gemm::f64::get_gemm_fn()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
        let mut c = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum();
            }
        }
        c
    }

    fn ramp(n: usize, step: f64) -> Vec<f64> {
        (0..n).map(|i| ((i as f64 * step) % 7.0) - 3.0).collect()
    }

    #[test]
    fn every_shape_and_transpose_agrees_with_the_definition() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 2), (17, 9, 33), (2, 300, 700), (65, 64, 66), (0, 3, 4), (4, 0, 3)] {
            let (a, b) = (ramp(m * k, 1.3), ramp(k * n, 0.7));
            let want = naive(&a, &b, m, k, n);
            let mut c = vec![1.0; m * n];
            gemm(MatMut::new(&mut c, m, n, n), true, 2.0, Mat::new(&a, m, k, k), Mat::new(&b, k, n, n), Threads::Pool);
            for (c, w) in c.iter().zip(&want) {
                assert!((c - (1.0 + 2.0 * w)).abs() < 1e-10, "{m}x{k}x{n}: {c} against {w}");
            }
            let bt: Vec<f64> = (0..n * k).map(|i| b[(i % k) * n + i / k]).collect();
            let mut c = vec![f64::NAN; m * n];
            let b = Mat::new(&bt, n, k, k).t();
            gemm(MatMut::new(&mut c, m, n, n), false, 1.0, Mat::new(&a, m, k, k), b, Threads::Pool);
            for (c, w) in c.iter().zip(&want) {
                assert!((c - w).abs() < 1e-10, "{m}x{k}x{n} transposed: {c} against {w}");
            }
        }
    }
}
