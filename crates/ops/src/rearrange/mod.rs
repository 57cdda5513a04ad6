//! Permutations of axes after a split: patches to tokens and back.

mod cpu;
mod cuda;

use fewstep_tensor::{Device, Tensor, dispatch_float};

use crate::cost::inputs;
use crate::{Cost, Dual, Error, Memory, Meta, Op, Output, Result, Rule, Saved};

/// The order of the features of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchOrder {
    /// (c, kt, kh, kw): what patch embeddings read.
    ChannelsFirst,
    /// (kt, kh, kw, c): what Wan's head writes.
    ChannelsLast,
}

/// Splits axes, permutes them and joins them again.
#[derive(Clone, Debug)]
pub struct Rearrange {
    split: Vec<usize>,
    axes: Vec<usize>,
    joined: Vec<usize>,
}

impl Rearrange {
    /// [B, C, F, H, W] → [B, L, features]: tokens in order (f, h, w), features in the given order.
    ///
    /// # Errors
    /// If a patch does not divide its axis.
    pub fn patchify(video: &[usize], patch: [usize; 3], order: PatchOrder) -> Result<Self> {
        let &[b, c, f, h, w] = video else {
            return Err(Error::input("patchify", "[B, C, F, H, W]", video));
        };
        let [pt, ph, pw] = patch;
        let whole = |n: usize, p: usize| p > 0 && n.is_multiple_of(p);
        if !(whole(f, pt) && whole(h, ph) && whole(w, pw)) {
            return Err(Error::input("patchify", format!("F, H, W divisible by the patch {patch:?}"), video));
        }
        let split = vec![b, c, f / pt, pt, h / ph, ph, w / pw, pw];
        let axes = match order {
            PatchOrder::ChannelsFirst => vec![0, 2, 4, 6, 1, 3, 5, 7],
            PatchOrder::ChannelsLast => vec![0, 2, 4, 6, 3, 5, 7, 1],
        };
        let joined = vec![b, (f / pt) * (h / ph) * (w / pw), c * pt * ph * pw];
        Ok(Rearrange { split, axes, joined })
    }

    /// The inverse of [`Rearrange::patchify`] of the same arguments.
    ///
    /// # Errors
    /// If a patch does not divide its axis.
    pub fn unpatchify(video: &[usize], patch: [usize; 3], order: PatchOrder) -> Result<Self> {
        let there = Self::patchify(video, patch, order)?;
        Ok(Rearrange { joined: video.to_vec(), ..there.inverse() })
    }

    fn inverse(&self) -> Self {
        let mut axes = vec![0; self.axes.len()];
        for (to, &from) in self.axes.iter().enumerate() {
            axes[from] = to;
        }
        let split = self.axes.iter().map(|&a| self.split[a]).collect();
        Rearrange { split, axes, joined: self.split.clone() }
    }

    fn run(&self, x: &Tensor) -> Result<Tensor> {
        if x.len() != self.split.iter().product::<usize>() {
            return Err(Error::input("rearrange", format!("the elements of {:?}", self.split), x.shape()));
        }
        match x.device() {
            Device::Cpu => {
                dispatch_float!("rearrange", x.dtype(), T => cpu::permute::<T>(x, &self.split, &self.axes, &self.joined))
            }
            Device::Cuda(_) => cuda::permute(x, &self.split, &self.axes, &self.joined),
        }
    }
}

impl Op for Rearrange {
    fn name(&self) -> &'static str {
        "rearrange"
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        Ok(self.run(x[0])?.into())
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        Ok(Dual { primal: self.run(x[0])?, tangent: x_dot[0].map(|d| self.run(d)).transpose()? })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let back = || -> Result<Tensor> { Ok(self.inverse().run(y_bar)?.reshape(saved.shape(0))?) };
        Ok(vec![wanted[0].then(back).transpose()?])
    }

    fn cost(&self, x: &[&Meta], _rule: Rule<'_>) -> Result<Cost> {
        let [x] = inputs("rearrange", x)?;
        let y = Meta::new(&self.joined, x.dtype);
        if y.len() != x.len() {
            return Err(Error::input("rearrange", format!("the elements of {:?}", self.split), &x.shape));
        }
        Ok(Cost::new(y, 0.0))
    }

    fn memory(&self) -> Memory {
        Memory::NOTHING
    }
}

#[cfg(test)]
mod tests {
    use fewstep_tensor::cuda::EMULATED;

    use super::*;
    use crate::suite;

    #[test]
    fn every_rule_holds_and_unpatchify_undoes_patchify() {
        let video = [2, 3, 2, 4, 6];
        for order in [PatchOrder::ChannelsFirst, PatchOrder::ChannelsLast] {
            let there = Rearrange::patchify(&video, [1, 2, 3], order).unwrap();
            let back = Rearrange::unpatchify(&video, [1, 2, 3], order).unwrap();
            suite::check(&there, &[&video], 1).unwrap();
            suite::check(&back, &[&[2, 8, 18]], 2).unwrap();
            suite::check_on(EMULATED, &there, &[&video], 1).unwrap();
            suite::check_on(EMULATED, &back, &[&[2, 8, 18]], 2).unwrap();
            let x = suite::draw(3, 0, &[&video]).unwrap().remove(0);
            let same = back.run(&there.run(&x).unwrap()).unwrap();
            assert_eq!(same.to_vec_f64(), x.to_vec_f64());
        }
    }

    #[test]
    fn elements_in_units_of_every_width_find_their_places_on_a_gpu() {
        for (video, patch) in
            [([1, 3, 1, 4, 8], [1, 1, 8]), ([2, 16, 3, 4, 4], [1, 2, 2]), ([1, 2, 2, 3, 5], [2, 3, 5])]
        {
            for order in [PatchOrder::ChannelsFirst, PatchOrder::ChannelsLast] {
                let op = Rearrange::patchify(&video, patch, order).unwrap();
                suite::check_half(EMULATED, &op, (&[&video], &[]), 0.0, 3).unwrap();
                suite::check_on(EMULATED, &op, &[&video], 4).unwrap();
            }
        }
    }

    #[test]
    fn a_patch_that_does_not_divide_the_video_is_refused() {
        let e = Rearrange::patchify(&[1, 3, 2, 5, 4], [1, 2, 2], PatchOrder::ChannelsFirst).unwrap_err();
        assert!(e.to_string().contains("divisible"), "{e}");
    }
}
