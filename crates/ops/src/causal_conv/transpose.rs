//! The transposed rules: by the same panels, one product for each tap of the kernel.

use fewstep_tensor::gemm::{Mat, MatMut, Threads, gemm};
use fewstep_tensor::math::Real;
use fewstep_tensor::{Buffer, Tensor};

use super::cpu::{gather, pack};
use super::geometry::{Extents, Panel};
use crate::{Result, Saved};

/// Adds a panel's cotangent to the frame's, dropping what fell on the padding.
fn scatter_add<T: Real>(e: &Extents, panel: &Panel, padded: &[T], frame: &mut [T]) {
    let (row, inside) = (e.w * e.i, panel.inside(e));
    panel.each_row(e, |at, y| {
        if let Some(y) = y {
            let frame = frame[y * row..][..inside.len()].iter_mut();
            frame.zip(&padded[at][inside.clone()]).for_each(|(x, &p)| *x += p);
        }
    });
}

/// Calls `f` with each panel of each sample and its cotangent [positions, O], zero where a position is not used.
fn each_panel<T: Real>(e: &Extents, y_bar: &[T], mut f: impl FnMut(usize, &Panel, &[T])) {
    let (rows, row) = (e.panel_rows(), e.ow * e.o);
    let mut spread = Buffer::scratch(rows * e.row() * e.o);
    if y_bar.is_empty() {
        return;
    }
    for (b, image) in y_bar.chunks(e.oh * row).enumerate() {
        for (i, y_bar) in image.chunks(rows * row).enumerate() {
            let panel = e.panel(i * rows, y_bar.len() / row);
            let spread = &mut spread.as_mut_slice()[..panel.positions(e) * e.o];
            spread.fill(T::ZERO);
            for (to, from) in spread.chunks_mut(e.row() * e.o).zip(y_bar.chunks(row)) {
                to[..row].copy_from_slice(from);
            }
            f(b, &panel, spread);
        }
    }
}

/// x̄_j = Wᵀ∗ȳ for the given frame `j`.
fn frame_bar<T: Real>(e: &Extents, packed: &[T], j: usize, y_bar: &[T]) -> Tensor {
    let image = e.h * e.w * e.i;
    Tensor::cpu_with(&[e.b, e.h, e.w, e.i], |x_bar: &mut [T]| {
        x_bar.fill(T::ZERO);
        let mut padded = Buffer::scratch(e.panel(0, e.panel_rows()).len(e));
        let mut part = Buffer::scratch(e.panel_rows() * e.row() * e.i);
        each_panel(e, y_bar, |b, panel, y_bar| {
            let m = panel.positions(e);
            let (padded, part) = (padded.as_mut_slice(), &mut part.as_mut_slice()[..m * e.i]);
            padded.fill(T::ZERO);
            for (u, v) in (0..e.kh).flat_map(|u| (0..e.kw).map(move |v| (u, v))) {
                let w = &packed[((e.tap(j) * e.kh + u) * e.kw + v) * e.i * e.o..][..e.i * e.o];
                let (y, w) = (Mat::new(y_bar, m, e.o, e.o), Mat::new(w, e.i, e.o, e.o).t());
                gemm(MatMut::new(part, m, e.i, e.i), false, T::ONE, y, w, Threads::Pool);
                let places = padded[panel.start(e, u, v)..].chunks_mut(e.stride * e.i);
                for (x, p) in places.zip(part.chunks(e.i)) {
                    x.iter_mut().zip(p).for_each(|(x, &p)| *x += p);
                }
            }
            scatter_add(e, panel, padded, &mut x_bar[b * image..][..image]);
        });
    })
}

/// W̄ = Σ xᵀ·ȳ for every tap, back in the order of W.
fn weight_bar<T: Real>(e: &Extents, shape: &[usize], frames: &[&[T]], y_bar: &[T]) -> Tensor {
    let (image, io, taps) = (e.h * e.w * e.i, e.i * e.o, e.kt * e.kh * e.kw);
    let mut packed = vec![T::ZERO; taps * io];
    let mut padded = Buffer::scratch(e.panel(0, e.panel_rows()).len(e));
    each_panel(e, y_bar, |b, panel, y_bar| {
        let m = panel.positions(e);
        for (j, frame) in frames.iter().enumerate() {
            gather(e, panel, &frame[b * image..][..image], padded.as_mut_slice());
            for (u, v) in (0..e.kh).flat_map(|u| (0..e.kw).map(move |v| (u, v))) {
                let x = Mat::new(&padded.as_slice()[panel.start(e, u, v)..], m, e.i, e.stride * e.i).t();
                let w = &mut packed[((e.tap(j) * e.kh + u) * e.kw + v) * io..][..io];
                let w = MatMut::new(w, e.i, e.o, e.o);
                gemm(w, true, T::ONE, x, Mat::new(y_bar, m, e.o, e.o), Threads::Pool);
            }
        }
    });
    Tensor::cpu_with(shape, |w: &mut [T]| {
        for (at, w) in w.chunks_mut(taps).enumerate() {
            let (o, i) = (at / e.i, at % e.i);
            w.iter_mut().enumerate().for_each(|(tap, w)| *w = packed[tap * io + i * e.o + o]);
        }
    })
}

fn bias_bar<T: Real>(e: &Extents, y_bar: &[T]) -> Tensor {
    Tensor::cpu_with(&[e.o], |bias: &mut [T]| {
        bias.fill(T::ZERO);
        for y in y_bar.chunks(e.o.max(1)) {
            bias.iter_mut().zip(y).for_each(|(b, &y)| *b += y);
        }
    })
}

pub(super) fn vjp<T: Real>(e: &Extents, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
    let y_bar = y_bar.as_slice::<T>()?;
    let frames = (2..saved.arity()).map(|i| Ok(saved.input(i)?.as_slice::<T>()?)).collect::<Result<Vec<_>>>()?;
    let mut bars = vec![None; saved.arity()];
    bars[0] = wanted[0].then(|| weight_bar(e, saved.shape(0), &frames, y_bar));
    bars[1] = wanted[1].then(|| bias_bar(e, y_bar));
    if wanted[2..].contains(&true) {
        let packed = pack(e, saved.input(0)?.as_slice::<T>()?);
        for (j, bar) in bars[2..].iter_mut().enumerate() {
            *bar = wanted[2 + j].then(|| frame_bar(e, packed.as_slice(), j, y_bar));
        }
    }
    Ok(bars)
}
