//! Change of dtype.

use fewstep_tensor::{DType, Tensor};

use crate::cost::inputs;
use crate::{Cost, Dual, Memory, Meta, Op, Output, Result, Rule, Saved};

/// y = x rounded to another dtype; tangents and cotangents are rounded alike.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    /// The dtype of y.
    pub to: DType,
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        Ok(x[0].to_dtype(self.to).into())
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        Ok(Dual { primal: x[0].to_dtype(self.to), tangent: x_dot[0].map(|d| d.to_dtype(self.to)) })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![wanted[0].then(|| y_bar.to_dtype(saved.dtype(0)))])
    }

    fn cost(&self, x: &[&Meta], _rule: Rule<'_>) -> Result<Cost> {
        let [x] = inputs("cast", x)?;
        let y = Meta::new(&x.shape, self.to);
        Ok(if x.dtype == self.to { Cost::view(y) } else { Cost::new(y, 0.0) })
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
    fn every_rule_holds_where_nothing_is_rounded() {
        suite::check(&Cast { to: DType::F64 }, &[&[3, 5]], 1).unwrap();
        suite::check_on(EMULATED, &Cast { to: DType::F64 }, &[&[3, 5]], 1).unwrap();
    }

    #[test]
    fn tangents_and_cotangents_are_rounded_like_values() {
        let x = suite::draw(1, 0, &[&[9]]).unwrap().remove(0);
        let d = Cast { to: DType::F32 }.jvp(&[&x], &[Some(&x)]).unwrap();
        assert_eq!(d.primal.to_vec_f64(), x.to_dtype(DType::F32).to_vec_f64());
        assert_eq!(d.tangent.unwrap().to_vec_f64(), d.primal.to_vec_f64());
    }
}
