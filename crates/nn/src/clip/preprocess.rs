use fewstep_ops::{Error, Result};
use fewstep_tensor::Tensor;

/// CLIP's mean and standard deviation of red, green and blue in [0, 1].
const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const DEVIATION: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];
/// The cubic's parameter in PyTorch.
const CUBIC: f64 = -0.75;

/// Images `[B, 3, H, W]` in [-1, 1] → normalised pixels `[B, 3, S, S]` in f64, as Wan2.1's own code does it: bicubic to the
/// square, aspect and all (`F.interpolate`, `align_corners=False`, no antialiasing), then (x/2 + 1/2 − mean)/deviation.
///
/// Differs from diffusers' pipeline, whose image processor resizes the shortest side with antialiasing and cuts the middle
/// out, in 8 bits: there the borders of a wide image are not seen by the tower.
///
/// # Errors
/// If the image has other axes, or none of a side.
pub fn preprocess(image: &Tensor, side: usize) -> Result<Tensor> {
    let &[b, 3, h, w] = image.shape() else {
        return Err(Error::input("clip", "images [B, 3, H, W]", image.shape()));
    };
    if h == 0 || w == 0 {
        return Err(Error::input("clip", "images of at least one pixel", image.shape()));
    }
    let x = image.to_vec_f64();
    let (rows, columns) = (taps(h, side), taps(w, side));
    let mut pixels = Vec::with_capacity(b * 3 * side * side);
    for plane in 0..b * 3 {
        let source = &x[plane * h * w..][..h * w];
        let (mean, deviation) = (MEAN[plane % 3], DEVIATION[plane % 3]);
        // [H, S]: along the rows first
        let narrowed: Vec<f64> =
            source.chunks_exact(w).flat_map(|row| columns.iter().map(|t| t.of(|i| row[i]))).collect();
        for t in &rows {
            let value = |column: usize| t.of(|i| narrowed[i * side + column]);
            pixels.extend((0..side).map(|column| (value(column) * 0.5 + 0.5 - mean) / deviation));
        }
    }
    Ok(Tensor::from_vec(pixels, &[b, 3, side, side])?)
}

/// Four places and their weights.
struct Taps([(usize, f64); 4]);

impl Taps {
    fn of(&self, x: impl Fn(usize) -> f64) -> f64 {
        self.0.iter().map(|&(i, weight)| weight * x(i)).sum()
    }
}

/// Keys' cubic convolution at the centres of `to` pixels over `from`; places outside repeat the border.
fn taps(from: usize, to: usize) -> Vec<Taps> {
    let near = |t: f64| ((CUBIC + 2.0) * t - (CUBIC + 3.0)) * t * t + 1.0;
    let far = |t: f64| ((CUBIC * t - 5.0 * CUBIC) * t + 8.0 * CUBIC) * t - 4.0 * CUBIC;
    let at = |i: usize| {
        let place = (i as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let (floor, t) = (place.floor(), place - place.floor());
        let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
        let index = |k: usize| (floor + k as f64 - 1.0).clamp(0.0, (from - 1) as f64) as usize;
        Taps([0, 1, 2, 3].map(|k| (index(k), weights[k])))
    };
    (0..to).map(at).collect()
}
