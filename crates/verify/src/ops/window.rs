use fewstep_ops::{Cost, Dual, Memory, Meta, Op, Output, Result, Rule, Saved};
use fewstep_tensor::{DType, Device, Tensor};

/// An op whose inputs are windows of larger tensors, one element past their beginning: kernels cannot use wide accesses.
#[derive(Debug)]
pub(super) struct Windows<'a>(pub &'a dyn Op);

fn window(t: &Tensor) -> Result<Tensor> {
    let before = Tensor::zeros(&[1], t.dtype(), t.device());
    let all = Tensor::cat(&[&before, &t.reshape(&[t.len()])?])?;
    Ok(all.narrow(1, t.len())?.reshape(t.shape())?)
}

fn windows(x: &[&Tensor]) -> Result<Vec<Tensor>> {
    x.iter().map(|t| window(t)).collect()
}

fn refs(x: &[Tensor]) -> Vec<&Tensor> {
    x.iter().collect()
}

impl Op for Windows<'_> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn forward(&self, x: &[&Tensor]) -> Result<Output> {
        self.0.forward(&refs(&windows(x)?))
    }

    fn jvp(&self, x: &[&Tensor], x_dot: &[Option<&Tensor>]) -> Result<Dual> {
        let x_dot = x_dot.iter().map(|t| t.map(window).transpose()).collect::<Result<Vec<_>>>()?;
        self.0.jvp(&refs(&windows(x)?), &x_dot.iter().map(Option::as_ref).collect::<Vec<_>>())
    }

    fn vjp(&self, saved: &Saved, y_bar: &Tensor, wanted: &[bool]) -> Result<Vec<Option<Tensor>>> {
        // What is not kept is not read: a tensor of its shape stands in.
        let stand_in = |shape: &[usize], dtype: DType| Tensor::zeros(shape, dtype, Device::Cpu);
        let input = |i: usize| match saved.input(i) {
            Ok(t) => window(t),
            Err(_) => Ok(stand_in(saved.shape(i), saved.dtype(i))),
        };
        let x = (0..saved.arity()).map(input).collect::<Result<Vec<_>>>()?;
        let y = saved.output().map_or_else(|_| Ok(y_bar.clone()), window)?;
        let kept = (0..).map_while(|i| saved.kept(i).ok().cloned()).collect();
        let saved = Saved::of(self.0, &refs(&x), &Output { y, kept });
        self.0.vjp(&saved, &window(y_bar)?, wanted)
    }

    fn cost(&self, x: &[&Meta], rule: Rule<'_>) -> Result<Cost> {
        self.0.cost(x, rule)
    }

    fn memory(&self) -> Memory {
        self.0.memory()
    }
}
