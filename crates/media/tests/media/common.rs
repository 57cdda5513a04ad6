//! What the tests look at: synthetic video, and how far two images are apart.

use fewstep_media::Frames;

/// Smooth shapes that drift, edges and a little grain: what a camera sees, more or less.
pub fn scene(width: usize, height: usize, frames: usize) -> Frames {
    let frame = |t: usize| -> Vec<u8> {
        let mut rgb = Vec::with_capacity(width * height * 3);
        for y in 0..height {
            for x in 0..width {
                let (u, v, s) = (x as f64 / 40.0, y as f64 / 40.0, t as f64 / 6.0);
                let wave = |a: f64, b: f64, p: f64| (a * u + b * v + s + p).sin();
                let disc = (x as f64 - width as f64 / 2.0 - 4.0 * t as f64).hypot(y as f64 - height as f64 / 2.0);
                let lit = if disc < height as f64 / 5.0 { 40.0 } else { 0.0 };
                let grain = ((x * 7919 + y * 104_729 + t * 31) % 7) as f64 - 3.0;
                for phase in [0.0, 1.1, 2.3] {
                    let value =
                        110.0 + 45.0 * wave(1.0, 0.6, phase) + 25.0 * wave(-0.4, 1.3, 2.0 * phase) + lit + grain;
                    rgb.push(value.clamp(0.0, 255.0) as u8);
                }
            }
        }
        rgb
    };
    Frames::new(width, height, (0..frames).map(frame).collect()).unwrap()
}

/// Peak signal-to-noise ratio in decibels, 10·log10(255²/mean squared error).
pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = a.iter().zip(b).map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2)).sum::<f64>();
    10.0 * (255.0 * 255.0 * a.len() as f64 / squares).log10()
}

/// [3, F, H, W] in [-1, 1] as frames.
pub fn frames_of(pixels: &[f32], dims: [usize; 4]) -> Frames {
    Frames::from_pixels(pixels, dims).unwrap()
}
