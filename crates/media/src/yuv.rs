//! RGB and Y'CbCr 4:2:0 of BT.709 in limited range (ITU-R BT.709-6 §3), and of BT.601 for foreign video of small size.

use openh264::formats::YUVSource;

use crate::frames::CHANNELS;

/// Weights of red and blue in the luma.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Matrix {
    kr: f32,
    kb: f32,
}

/// ITU-R BT.709.
pub(crate) const BT709: Matrix = Matrix { kr: 0.2126, kb: 0.0722 };
/// ITU-R BT.601.
pub(crate) const BT601: Matrix = Matrix { kr: 0.299, kb: 0.114 };

/// Three planes, chroma at half the width and height.
#[derive(Debug)]
pub(crate) struct Planes {
    width: usize,
    height: usize,
    y: Vec<u8>,
    u: Vec<u8>,
    v: Vec<u8>,
}

impl Planes {
    /// Even sides; an odd last row or column of what comes is doubled.
    pub(crate) fn new(width: usize, height: usize) -> Self {
        let (width, height) = (width.next_multiple_of(2), height.next_multiple_of(2));
        let chroma = vec![128; width * height / 4];
        Planes { width, height, y: vec![16; width * height], u: chroma.clone(), v: chroma }
    }

    /// Takes rows of `width` RGB pixels. The chroma of four pixels is their mean.
    pub(crate) fn fill(&mut self, rgb: &[u8], width: usize, height: usize) {
        let Matrix { kr, kb } = BT709;
        let pixel = |x: usize, y: usize| {
            let at = (y.min(height - 1) * width + x.min(width - 1)) * CHANNELS;
            [rgb[at], rgb[at + 1], rgb[at + 2]].map(f32::from)
        };
        for y in (0..self.height).step_by(2) {
            for x in (0..self.width).step_by(2) {
                let mut mean = [0.0; CHANNELS];
                for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                    let [r, g, b] = pixel(x + dx, y + dy);
                    let luma = kr * r + (1.0 - kr - kb) * g + kb * b;
                    self.y[(y + dy) * self.width + x + dx] = (16.5 + luma * 219.0 / 255.0) as u8;
                    mean.iter_mut().zip([r, g, b]).for_each(|(m, c)| *m += 0.25 * c);
                }
                let [r, g, b] = mean;
                let luma = kr * r + (1.0 - kr - kb) * g + kb * b;
                let at = y / 2 * (self.width / 2) + x / 2;
                let chroma = |c: f32, k: f32| (128.5 + (c - luma) / (2.0 * (1.0 - k)) * 224.0 / 255.0) as u8;
                (self.u[at], self.v[at]) = (chroma(b, kb), chroma(r, kr));
            }
        }
    }
}

impl YUVSource for Planes {
    fn dimensions(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    fn strides(&self) -> (usize, usize, usize) {
        (self.width, self.width / 2, self.width / 2)
    }

    fn y(&self) -> &[u8] {
        &self.y
    }

    fn u(&self) -> &[u8] {
        &self.u
    }

    fn v(&self) -> &[u8] {
        &self.v
    }
}

/// RGB of decoded planes in limited range, or nothing where a plane is shorter than its extents say. Chroma is
/// interpolated linearly, sited in the middle of its four pixels as [`Planes::fill`] forms it.
pub(crate) fn to_rgb(frame: &impl YUVSource, matrix: Matrix) -> Option<Vec<u8>> {
    let ((w, h), (ys, us, vs)) = (frame.dimensions(), frame.strides());
    let (cw, ch) = (w.div_ceil(2), h.div_ceil(2));
    let holds = |plane: &[u8], stride: usize, w: usize, h: usize| stride >= w && plane.len() >= (h - 1) * stride + w;
    if w == 0 || h == 0 || !holds(frame.y(), ys, w, h) || !holds(frame.u(), us, cw, ch) || !holds(frame.v(), vs, cw, ch)
    {
        return None;
    }
    let Matrix { kr, kb } = matrix;
    let mut rgb = Vec::with_capacity(w * h * CHANNELS);
    // The nearer chroma sample has weight 3/4, the next one on the pixel's side 1/4.
    let taps = |i: usize, n: usize| {
        (i / 2, if i.is_multiple_of(2) { (i / 2).saturating_sub(1) } else { (i / 2 + 1).min(n - 1) })
    };
    for y in 0..h {
        let (near_y, far_y) = taps(y, ch);
        for x in 0..w {
            let (near_x, far_x) = taps(x, cw);
            let chroma = |plane: &[u8], stride: usize| {
                let at = |y: usize, x: usize| f32::from(plane[y * stride + x]);
                let row = |y: usize| 0.75 * at(y, near_x) + 0.25 * at(y, far_x);
                (0.75 * row(near_y) + 0.25 * row(far_y) - 128.0) * (255.0 / 224.0)
            };
            let luma = (f32::from(frame.y()[y * ys + x]) - 16.0) * (255.0 / 219.0);
            let r = luma + 2.0 * (1.0 - kr) * chroma(frame.v(), vs);
            let b = luma + 2.0 * (1.0 - kb) * chroma(frame.u(), us);
            let g = (luma - kr * r - kb * b) / (1.0 - kr - kb);
            // The cast saturates, which is the clamp.
            rgb.extend([r, g, b].map(|c| (c + 0.5) as u8));
        }
    }
    Some(rgb)
}
