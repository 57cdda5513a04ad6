//! Register tiles and the vertical arithmetic between them.

use fewstep_tensor::math::Real;
use multiversion::multiversion;
use multiversion::target::match_target;

use super::{MR, NR};

/// One value a query of a panel.
pub(super) type Lanes<T> = [T; NR];

/// Half a row: one AVX-512 register of f32.
const WIDTH: usize = 16;

/// A value that the compiler keeps in registers: a tile is as many of these, by name, as fit the register file. (An
/// array of them spills: 4 GFLOP/s instead of 250 on one AVX-512 core.)
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Wide<T>([T; WIDTH]);

impl<T: Real> Wide<T> {
    #[inline(always)]
    fn load(row: &Lanes<T>, at: usize) -> Self {
        let mut x = [T::ZERO; WIDTH];
        x.copy_from_slice(&row[at..at + WIDTH]);
        Wide(x)
    }

    #[inline(always)]
    fn store(self, row: &mut Lanes<T>, at: usize) {
        row[at..at + WIDTH].copy_from_slice(&self.0);
    }

    /// f of each lane of both.
    #[inline(always)]
    fn zip(mut self, b: Self, f: impl Fn(T, T) -> T) -> Self {
        for j in 0..WIDTH {
            self.0[j] = f(self.0[j], b.0[j]);
        }
        self
    }

    /// self + a·b
    #[inline(always)]
    fn add_product(mut self, a: T, b: Self) -> Self {
        for j in 0..WIDTH {
            self.0[j] = a.fma(b.0[j], self.0[j]);
        }
        self
    }
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a, T> {
    /// Nothing: c is only written.
    Zero,
    /// What c holds.
    Add,
    /// The same row in every row.
    From(&'a Lanes<T>),
}

impl<T: Real> Start<'_, T> {
    /// Prepares a tile; whether the product is to be added to it.
    ///
    /// In memory: a choice among register values would make the compiler take the tile apart.
    #[inline(always)]
    fn prepare(self, c: &mut [Lanes<T>; MR]) -> bool {
        match self {
            Start::Zero => return false,
            Start::Add => {}
            Start::From(row) => *c = [*row; MR],
        }
        true
    }
}

/// Defines c ← (c or 0) + Σ a[d]ᵀ·b[d] on a tile at (`row`, `at`) of c: one name for each row and each half.
macro_rules! register_tile {
    ($name:ident, $([$i:literal, $($half:literal $c:ident),*]),*) => {
        #[inline(always)]
        fn $name<T: Real>(
            a: impl Iterator<Item = [T; MR]>,
            b: &[Lanes<T>],
            c: &mut [Lanes<T>; MR],
            accumulate: bool,
            [row, at]: [usize; 2],
        ) {
            let zero = Wide([T::ZERO; WIDTH]);
            $($(let mut $c = if accumulate { Wide::load(&c[row + $i], at + $half * WIDTH) } else { zero };)*)*
            for (a, b) in a.zip(b) {
                $($($c = $c.add_product(a[row + $i], Wide::load(b, at + $half * WIDTH));)*)*
            }
            $($($c.store(&mut c[row + $i], at + $half * WIDTH);)*)*
        }
    };
}

// 16 of the 32 registers of AVX-512.
register_tile!(tile_8x32, [0, 0 a0, 1 b0], [1, 0 a1, 1 b1], [2, 0 a2, 1 b2], [3, 0 a3, 1 b3], [4, 0 a4, 1 b4],
    [5, 0 a5, 1 b5], [6, 0 a6, 1 b6], [7, 0 a7, 1 b7]);
// 8 of the 16 registers of AVX2, 16 of the 32 of NEON.
register_tile!(tile_4x16, [0, 0 a0], [1, 0 a1], [2, 0 a2], [3, 0 a3]);

/// c ← start + Σ a[d]ᵀ·b[d], by the tile that fits the registers; both give the same bits.
#[inline(always)]
fn tile<T: Real>(
    many_registers: bool,
    a: impl Iterator<Item = [T; MR]> + Clone,
    b: &[Lanes<T>],
    c: &mut [Lanes<T>; MR],
    start: Start<T>,
) {
    let accumulate = start.prepare(c);
    if many_registers {
        tile_8x32(a, b, c, accumulate, [0, 0]);
    } else {
        tile_4x16(a.clone(), b, c, accumulate, [0, 0]);
        tile_4x16(a.clone(), b, c, accumulate, [0, WIDTH]);
        tile_4x16(a.clone(), b, c, accumulate, [4, 0]);
        tile_4x16(a, b, c, accumulate, [4, WIDTH]);
    }
}

/// c ← start + Σ a[d]ᵀ·b[d]: the panels of a are `stride` rows apart, each is read `b.len()` rows deep.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn product<T: Real>(a: &[[T; MR]], stride: usize, b: &[Lanes<T>], c: &mut [Lanes<T>], start: Start<T>) {
    let many_registers = match_target! { "x86_64+avx512f" => true, _ => false };
    for (panel, c) in c.as_chunks_mut::<MR>().0.iter_mut().enumerate() {
        tile(many_registers, a[panel * stride..][..b.len()].iter().copied(), b, c, start);
    }
}

/// c[key] ← c[key] + Σ p[key][query]·b[query] over the first `b.len()` queries.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn product_over_queries<T: Real>(p: &[Lanes<T>], b: &[Lanes<T>], c: &mut [Lanes<T>]) {
    let many_registers = match_target! { "x86_64+avx512f" => true, _ => false };
    for (p, c) in p.as_chunks::<MR>().0.iter().zip(c.as_chunks_mut::<MR>().0) {
        let columns = (0..NR).map(|q| std::array::from_fn(|i| p[i][q]));
        tile(many_registers, columns, b, c, Start::Add);
    }
}

/// Running statistics of a panel's softmax.
#[derive(Clone, Copy)]
pub(super) struct Softmax<T> {
    /// The largest score.
    pub max: Lanes<T>,
    /// Σ e^(score − max)
    pub sum: Lanes<T>,
    /// Σ e^(score − max)·score's tangent
    pub tangent_sum: Lanes<T>,
}

impl<T: Real> Softmax<T> {
    pub const EMPTY: Self = Softmax { max: [T::NEG_INFINITY; NR], sum: [T::ZERO; NR], tangent_sum: [T::ZERO; NR] };
}

/// Turns scores into e^(score − max) and moves the statistics to the new maximum; returns what sums so far shrink by.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn softmax<T: Real>(scores: &mut [Lanes<T>], state: &mut Softmax<T>) -> Lanes<T> {
    let mut shrink = [T::ZERO; NR];
    for at in [0, WIDTH] {
        let old = Wide::load(&state.max, at);
        let mut max = old;
        for row in scores.iter() {
            max = max.zip(Wide::load(row, at), T::max);
        }
        // A query that no key was allowed to yet keeps zeros.
        let base = max.zip(max, |m, _| if m == T::NEG_INFINITY { T::ZERO } else { m });
        let mut sum = Wide([T::ZERO; WIDTH]);
        for row in scores.iter_mut() {
            let p = Wide::load(row, at).zip(base, |s, m| (s - m).exp());
            p.store(row, at);
            sum = sum.zip(p, |a, b| a + b);
        }
        let fade = old.zip(base, |old, base| (old - base).exp());
        fade.store(&mut shrink, at);
        Wide::load(&state.sum, at).zip(fade, |s, f| s * f).zip(sum, |a, b| a + b).store(&mut state.sum, at);
        max.store(&mut state.max, at);
    }
    shrink
}

/// tangents ← probabilities∘tangents, summed into the statistics.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn weigh<T: Real>(p: &[Lanes<T>], tangents: &mut [Lanes<T>], shrink: &Lanes<T>, state: &mut Softmax<T>) {
    for at in [0, WIDTH] {
        let total = Wide::load(&state.tangent_sum, at).zip(Wide::load(shrink, at), |s, f| s * f);
        let mut sum = Wide([T::ZERO; WIDTH]);
        for (t, p) in tangents.iter_mut().zip(p) {
            let h = Wide::load(t, at).zip(Wide::load(p, at), |t, p| t * p);
            h.store(t, at);
            sum = sum.zip(h, |a, b| a + b);
        }
        total.zip(sum, |a, b| a + b).store(&mut state.tangent_sum, at);
    }
}

/// rows ← rows∘factor, in whole tiles.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn scale<T: Real>(rows: &mut [Lanes<T>], factor: &Lanes<T>) {
    // Spread over a tile, so that the loop is long and straight: over single rows the compiler gathers columns.
    let factors = [*factor; MR];
    for tile in rows.as_chunks_mut::<MR>().0 {
        let pairs = tile.as_flattened_mut().iter_mut().zip(factors.as_flattened());
        pairs.for_each(|(x, &f)| *x = *x * f);
    }
}

/// scores ← e^(scores − log-sum-exp)
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn probabilities<T: Real>(scores: &mut [Lanes<T>], log_sum_exp: &Lanes<T>) {
    for at in [0, WIDTH] {
        let log_sum_exp = Wide::load(log_sum_exp, at);
        for row in scores.iter_mut() {
            Wide::load(row, at).zip(log_sum_exp, |s, l| (s - l).exp()).store(row, at);
        }
    }
}

/// s_bar ← p∘s_bar
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq+avx512bw+avx2+fma", "x86_64+avx2+fma"))]
pub(super) fn multiply<T: Real>(p: &[Lanes<T>], s_bar: &mut [Lanes<T>]) {
    s_bar.as_flattened_mut().iter_mut().zip(p.as_flattened()).for_each(|(b, &p)| *b = *b * p);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_register_tiles_give_the_same_bits() {
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 17.0;
        let a: Vec<[f32; MR]> = (0..13).map(|d| std::array::from_fn(|i| value(d * MR + i))).collect();
        let b: Vec<Lanes<f32>> = (0..13).map(|d| std::array::from_fn(|j| value(d * NR + j + 5))).collect();
        let row = std::array::from_fn(|j| value(3 * j));
        for start in [Start::Zero, Start::Add, Start::From(&row)] {
            let run = |many_registers| {
                let mut c: [Lanes<f32>; MR] = std::array::from_fn(|i| std::array::from_fn(|j| value(i + j)));
                tile(many_registers, a.iter().copied(), &b, &mut c, start);
                c
            };
            assert_eq!(run(true), run(false));
        }
    }
}
