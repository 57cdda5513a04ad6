//! Rows of a table.

mod cpu;
mod cuda;

use std::sync::Arc;

use fewstep_tensor::{DType, Device, Tensor, dispatch_float};

use crate::cost::{self, Cost, Meta, Rule};
use crate::{Dual, Error, Memory, Op, Output, Result, Saved};

const NAME: &str = "embedding";

/// Row i of y is row idsᵢ of the table: table `[V, D]` → y `[I, D]`.
///
/// The ids are the op's own, so nothing is differentiated by them. The table may be in bf16, as stored: only the rows that
/// are taken are read and widened, so that a table larger than memory serves while it is mapped from its file. The gradient
/// of a table has the table's dtype; that of a bf16 table is given in the output's wide dtype, in which it is accumulated.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// The row of the table for each row of y.
    pub ids: Arc<[u32]>,
    /// The dtype of y; bf16 on GPUs alone.
    pub dtype: DType,
}

impl Embedding {
    fn extents(&self, table: &[usize]) -> Result<[usize; 2]> {
        let &[v, d] = table else {
            return Err(Error::input(NAME, "a table [V, D]", table));
        };
        match self.ids.iter().find(|&&id| id as usize >= v) {
            Some(id) => Err(Error::input(NAME, format!("ids below the {v} rows of the table"), id)),
            None => Ok([v, d]),
        }
    }

    fn gather(&self, table: &Tensor) -> Result<Tensor> {
        let [_, d] = self.extents(table.shape())?;
        match table.device() {
            Device::Cpu => dispatch_float!(NAME, self.dtype, T => cpu::gather::<T>(&self.ids, d, table)),
            Device::Cuda(_) => cuda::gather(&self.ids, d, table, self.dtype),
        }
    }
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        match x {
            [table] => Ok(self.gather(table)?.into()),
            _ => Err(Error::input(NAME, "one table", x.len())),
        }
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let primal = self.forward(x)?.y;
        Ok(Dual { primal, tangent: x_dot[0].map(|d| self.gather(d)).transpose()? })
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let [v, d] = self.extents(saved.shape(0))?;
        if y_bar.shape() != [self.ids.len(), d] {
            return Err(Error::input(NAME, format!("a cotangent {:?}", [self.ids.len(), d]), y_bar.shape()));
        }
        if !wanted[0] {
            return Ok(vec![None]);
        }
        let table_bar = match y_bar.device() {
            Device::Cpu => dispatch_float!(NAME, y_bar.dtype(), T => cpu::scatter::<T>(&self.ids, [v, d], y_bar))?,
            Device::Cuda(_) => cuda::scatter(&self.ids, [v, d], y_bar)?,
        };
        let dtype = saved.dtype(0);
        Ok(vec![Some(if dtype == DType::Bf16 { table_bar } else { table_bar.to_dtype(dtype) })])
    }

    fn cost(&self, x: &[&Meta], _rule: Rule<'_>) -> Result<Cost> {
        let [table] = cost::inputs(NAME, x)?;
        let [_, d] = self.extents(&table.shape)?;
        Ok(Cost::new(Meta::new(&[self.ids.len(), d], self.dtype), 0.0))
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

    fn op(ids: &[u32]) -> Embedding {
        Embedding { ids: ids.into(), dtype: DType::F64 }
    }

    #[test]
    fn every_rule_holds_with_repeated_absent_and_no_rows() {
        suite::check(&op(&[3, 0, 3, 3, 1]), &[&[5, 7]], 1).unwrap();
        suite::check(&op(&[]), &[&[5, 7]], 2).unwrap();
        suite::check(&op(&[0]), &[&[1, 1]], 3).unwrap();
        suite::check(&op(&[1, 0]), &[&[2, 0]], 4).unwrap();
        let many: Vec<u32> = (0..600).map(|i| i * 7 % 33).collect();
        suite::check(&op(&many), &[&[33, 65]], 5).unwrap();
    }

    #[test]
    fn every_rule_holds_on_a_gpu() {
        suite::check_on(EMULATED, &op(&[3, 0, 3, 3, 1]), &[&[5, 7]], 1).unwrap();
        suite::check_on(EMULATED, &op(&[]), &[&[5, 7]], 2).unwrap();
        suite::check_on(EMULATED, &op(&[1, 0]), &[&[2, 0]], 3).unwrap();
        let many: Vec<u32> = (0..60).map(|i| i * 7 % 33).collect();
        suite::check_on(EMULATED, &op(&many), &[&[33, 265]], 4).unwrap();
    }

    #[test]
    fn rows_and_their_gradients_are_those_of_the_host_for_every_pair_of_dtypes() {
        let dtypes = [DType::Bf16, DType::F32, DType::F64];
        let drawn = suite::draw(8, 0, &[&[9, 40], &[4, 40]]).unwrap();
        for (stored, dtype) in dtypes.into_iter().flat_map(|s| dtypes.map(|d| (s, d))) {
            let there = Embedding { ids: [8, 2, 2, 0].into(), dtype };
            // The host's rule has no bf16 output: rounding last is the same.
            let here = Embedding { dtype: if dtype == DType::Bf16 { stored } else { dtype }, ..there.clone() };
            let here = Embedding { dtype: if here.dtype == DType::Bf16 { DType::F32 } else { here.dtype }, ..here };
            let table = drawn[0].to_dtype(stored);
            let on_gpu = table.to_device(EMULATED).unwrap();
            let (got, want) = (there.forward(&[&on_gpu]).unwrap(), here.forward(&[&table]).unwrap());
            assert_eq!((got.y.dtype(), got.y.to_vec_f64()), (dtype, want.y.to_dtype(dtype).to_vec_f64()));
            let y_bar = drawn[1].to_dtype(dtype);
            let saved = Saved::of(&there, &[&on_gpu], &got);
            let bar = there.vjp(&saved, &y_bar.to_device(EMULATED).unwrap(), &[true]).unwrap().remove(0).unwrap();
            let wide = y_bar.to_dtype(dtype.wide());
            let bar_here = here.vjp(&Saved::of(&here, &[&table], &want), &wide, &[true]).unwrap().remove(0).unwrap();
            assert_eq!((bar.dtype(), bar.to_vec_f64()), (bar_here.dtype(), bar_here.to_vec_f64()));
        }
    }

    #[test]
    fn a_bf16_table_gives_its_rows_widened_exactly() {
        let table = suite::draw(6, 0, &[&[9, 40]]).unwrap().remove(0).to_dtype(DType::Bf16);
        let wide = table.to_dtype(DType::F32);
        let op = Embedding { ids: [8, 2, 2].into(), dtype: DType::F32 };
        let (a, b) = (op.forward(&[&table]).unwrap().y, op.forward(&[&wide]).unwrap().y);
        assert_eq!((a.dtype(), a.to_vec_f64()), (DType::F32, b.to_vec_f64()));
        let output = op.forward(&[&table]).unwrap();
        let bars = op.vjp(&Saved::of(&op, &[&table], &output), &a, &[true]).unwrap();
        assert_eq!(bars[0].as_ref().unwrap().dtype(), DType::F32, "accumulated in the output's dtype");
    }

    #[test]
    fn an_id_beyond_the_table_is_refused_by_number() {
        let table = suite::draw(7, 0, &[&[5, 2]]).unwrap().remove(0);
        for id in [5, u32::MAX] {
            let e = op(&[0, id]).forward(&[&table]).unwrap_err().to_string();
            assert!(e.contains("below the 5 rows") && e.contains(&id.to_string()), "{e}");
        }
    }
}
