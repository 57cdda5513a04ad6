//! Counter-based random numbers: a draw is a pure function of where it is used.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The key is the seed; the
//! counter is (block of four elements, global sample, iteration, purpose). So a resumed run draws what the
//! uninterrupted one would, and a run on many ranks what one rank would.

use std::f32::consts::TAU;

/// What a draw is for. The discriminants are part of the stream: never reuse or renumber one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights.
    Init = 0,
    /// Which example comes when.
    DataOrder = 1,
    /// What an example contains.
    Data = 2,
    /// Times of a training step.
    Time = 3,
    /// Noise of a training step.
    Noise = 4,
    /// Times of the backward simulation.
    SimulationTime = 5,
    /// Noise of the backward simulation.
    SimulationNoise = 6,
    /// Times of the score and critic losses.
    ScoreTime = 7,
    /// Noise of the score and critic losses.
    ScoreNoise = 8,
    /// Which conditions are dropped.
    Dropout = 9,
    /// Initial noise and re-noising of samples for a user.
    Sample = 10,
    /// Directions and inputs of checks and tests.
    Check = 11,
}

/// A family of independent draws, one sequence per global sample index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    purpose: u32,
    iteration: u32,
}

impl Stream {
    /// The draws of one purpose in one iteration.
    ///
    /// `iteration` must be below 2³²; a run has far fewer.
    pub fn new(seed: u64, purpose: Purpose, iteration: u64) -> Self {
        debug_assert!(iteration < 1 << 32, "iteration beyond the counter");
        let key = [seed as u32, (seed >> 32) as u32];
        Stream { key, purpose: purpose as u32, iteration: iteration as u32 }
    }

    /// Sub-stream `k` (< 2¹⁶) of the same purpose, such as one step of a simulation.
    pub fn step(self, k: u32) -> Self {
        debug_assert!(k < 1 << 16, "sub-stream beyond the counter");
        Stream { purpose: self.purpose | k << 16, ..self }
    }

    /// Key, iteration and purpose: what is not the place of a draw within the stream.
    pub(crate) fn counter(&self) -> ([u32; 2], u32, u32) {
        (self.key, self.iteration, self.purpose)
    }

    fn block(&self, sample: u64, block: u32) -> [u32; 4] {
        debug_assert!(sample < 1 << 32, "sample beyond the counter");
        philox([block, sample as u32, self.iteration, self.purpose], self.key)
    }

    /// `n` uniform numbers in [0, 1), each from 53 random bits.
    pub fn uniform(&self, sample: u64, n: usize) -> Vec<f64> {
        let double = |hi: u32, lo: u32| (((hi as u64) << 32 | lo as u64) >> 11) as f64 * 2f64.powi(-53);
        let blocks = (0..n.div_ceil(2) as u32).flat_map(|b| {
            let r = self.block(sample, b);
            [double(r[0], r[1]), double(r[2], r[3])]
        });
        blocks.take(n).collect()
    }

    /// `n` standard normal numbers by Box–Muller.
    ///
    /// Built from IEEE basic operations and fused multiply-adds alone, so that every device gives the same bits.
    pub fn normal(&self, sample: u64, n: usize) -> Vec<f32> {
        let mut out = vec![0.0; n];
        self.fill_normal(sample, &mut out);
        out
    }

    /// Fills a slice with the first standard normal numbers of a sample.
    pub fn fill_normal(&self, sample: u64, out: &mut [f32]) {
        for (b, chunk) in out.chunks_mut(4).enumerate() {
            let r = self.block(sample, b as u32);
            let (a, c) = (box_muller(r[0], r[1]), box_muller(r[2], r[3]));
            chunk.copy_from_slice(&[a.0, a.1, c.0, c.1][..chunk.len()]);
        }
    }
}

/// Philox4x32 with ten rounds.
fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        let p0 = c[0] as u64 * 0xD251_1F53;
        let p1 = c[2] as u64 * 0xCD9E_8D57;
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
    }
    c
}

fn box_muller(a: u32, b: u32) -> (f32, f32) {
    // u ∈ (0, 1] in steps of 2⁻²⁴, never 0: the largest normal is √(2·24·ln 2) = 5.77.
    let u = ((a >> 8) + 1) as f32 * 2f32.powi(-24);
    let radius = (-2.0 * ln_unit(u)).sqrt();
    let (sin, cos) = sin_cos_turn((b >> 8) as f32 * 2f32.powi(-24));
    (radius * cos, radius * sin)
}

/// ln u for u ∈ (0, 1]: u = m·2ᵉ with m ∈ [√½, √2), ln m = 2·atanh(z) with z = (m−1)/(m+1), |z| ≤ 0.172.
fn ln_unit(u: f32) -> f32 {
    let bits = u.to_bits();
    let e = (bits.wrapping_sub(0x3f35_04f3) as i32) >> 23;
    let m = f32::from_bits(bits.wrapping_sub((e << 23) as u32));
    let z = (m - 1.0) / (m + 1.0);
    let w = z * z;
    let p = w.mul_add(1.0 / 9.0, 1.0 / 7.0);
    let p = w.mul_add(p, 0.2);
    let p = w.mul_add(p, 1.0 / 3.0);
    let atanh = (w * z).mul_add(p, z);
    (e as f32).mul_add(std::f32::consts::LN_2, 2.0 * atanh)
}

/// (sin 2πu, cos 2πu) for u ∈ [0, 1): the quadrant by exact arithmetic, then Taylor on [−π/4, π/4].
fn sin_cos_turn(u: f32) -> (f32, f32) {
    let quadrant = (4.0 * u + 0.5).floor();
    let x = TAU * (-0.25f32).mul_add(quadrant, u);
    let w = x * x;
    let s = w.mul_add(1.0 / 362_880.0, -1.0 / 5_040.0);
    let s = w.mul_add(s, 1.0 / 120.0);
    let s = w.mul_add(s, -1.0 / 6.0);
    let sin = (x * w).mul_add(s, x);
    let c = w.mul_add(1.0 / 40_320.0, -1.0 / 720.0);
    let c = w.mul_add(c, 1.0 / 24.0);
    let c = w.mul_add(c, -0.5);
    let cos = w.mul_add(c, 1.0);
    match quadrant as u32 % 4 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_known_answers_of_random123() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        let pi = philox([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]);
        assert_eq!(pi, [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn normals_agree_with_double_precision_box_muller() {
        for i in 0..200_000u32 {
            let (a, b) = (i.wrapping_mul(0x9E37_79B9), i.wrapping_mul(0x85EB_CA6B));
            let u = ((a >> 8) + 1) as f64 * 2f64.powi(-24);
            let angle = std::f64::consts::TAU * (b >> 8) as f64 * 2f64.powi(-24);
            let radius = (-2.0 * u.ln()).sqrt();
            let (x, y) = box_muller(a, b);
            assert!((x as f64 - radius * angle.cos()).abs() < 2e-6, "{x} for {u}, {angle}");
            assert!((y as f64 - radius * angle.sin()).abs() < 2e-6, "{y} for {u}, {angle}");
        }
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let s = Stream::new(7, Purpose::Noise, 3);
        let n = 400_000;
        let z: Vec<f64> = s.normal(5, n).into_iter().map(f64::from).collect();
        let moment = |k: i32| z.iter().map(|x| x.powi(k)).sum::<f64>() / n as f64;
        // Five standard errors: √(Var xᵏ / n) with Var x = 1, Var x² = 2, Var x³ = 15, Var x⁴ = 96.
        for (k, mean, var) in [(1, 0.0, 1.0f64), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            assert!((moment(k) - mean).abs() < 5.0 * (var / n as f64).sqrt(), "moment {k}: {}", moment(k));
        }
        let mean = s.uniform(5, n).iter().sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 5.0 * (1.0 / 12.0 / n as f64).sqrt());
    }

    #[test]
    fn a_draw_depends_on_every_coordinate_and_on_nothing_else() {
        let base = Stream::new(1, Purpose::Noise, 2);
        let want = base.normal(3, 10);
        assert_eq!(base.normal(3, 7), want[..7]);
        assert_ne!(base.normal(4, 10), want);
        assert_ne!(Stream::new(2, Purpose::Noise, 2).normal(3, 10), want);
        assert_ne!(Stream::new(1 << 32 | 1, Purpose::Noise, 2).normal(3, 10), want);
        assert_ne!(Stream::new(1, Purpose::Time, 2).normal(3, 10), want);
        assert_ne!(Stream::new(1, Purpose::Noise, 3).normal(3, 10), want);
        assert_ne!(base.step(1).normal(3, 10), want);
    }
}
