/// A convolution of bf16, channels last: `Y[b, y, x, o] (+)= Σ W[o, u, v, c]·X[b, y·stride + u − top, x·stride + v − left, c]`,
/// zeros outside; accumulated in single precision, rounded once.
///
/// X `[B, H, W, C]`, W `[O, KH, KW, C]` and Y `[B, H', W', O]` are dense and 16-byte aligned; C and O are multiples of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Convolution {
    /// B, H, W and C.
    pub input: [usize; 4],
    /// H', W' and O.
    pub output: [usize; 3],
    /// KH and KW.
    pub kernel: [usize; 2],
    /// Step between the positions of the kernel, along both axes.
    pub stride: usize,
    /// Zeros above and to the left.
    pub before: [usize; 2],
    /// Whether the sum is added to what Y holds.
    pub accumulate: bool,
}

impl Convolution {
    /// Zeros below and to the right that the last positions of the kernel reach.
    pub(crate) fn after(&self) -> [usize; 2] {
        [0, 1].map(|i| {
            let reached = self.output[i].saturating_sub(1) * self.stride + self.kernel[i];
            reached.saturating_sub(self.before[i] + self.input[1 + i])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_after_are_what_the_last_position_reaches() {
        let of = |size: usize, output: usize, kernel: usize, stride: usize, before: usize| {
            let c = Convolution {
                input: [1, size, size, 8],
                output: [output, output, 8],
                kernel: [kernel; 2],
                stride,
                before: [before; 2],
                accumulate: false,
            };
            c.after()[0]
        };
        assert_eq!(of(60, 60, 3, 1, 1), 1);
        assert_eq!(of(480, 240, 3, 2, 0), 1);
        assert_eq!(of(60, 60, 1, 1, 0), 0);
        assert_eq!(of(5, 2, 3, 2, 0), 0);
        // The last row is reached by none.
        assert_eq!(of(6, 2, 3, 2, 0), 0);
    }
}
