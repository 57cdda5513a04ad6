use std::cell::RefCell;
use std::collections::VecDeque;

use fewstep_tensor::cuda::memory::{Kind, attributed_to, counted_as};
use fewstep_tensor::{DType, Device, Tensor, arith};

use crate::{Adapter, Error, Mode, Op, Output, ParamId, Params, Plain, Result, Saved, Segment};

/// What the backward pass keeps of a segment, and what it computes again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Keep every activation.
    #[default]
    Nothing,
    /// Keep the segment's inputs and the outputs of attention; run all else again.
    AllButAttention,
    /// Keep the segment's inputs alone.
    Everything,
}

/// A value on the tape. Without a node nothing is differentiated by it.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    node: Option<usize>,
}

impl Var {
    /// The tensor.
    pub fn value(&self) -> &Tensor {
        &self.value
    }
}

type Rerun = Box<dyn Fn(&Reverse<'_>, &[Var]) -> Result<Var>>;

enum Node {
    Input,
    Param(ParamId),
    /// An input of a segment whose activations are kept: cotangents add up inside the segment before they leave it, in
    /// the order in which a recomputed segment would add them, so that both give the same bits.
    Boundary(usize),
    Op {
        op: Box<dyn Op>,
        inputs: Vec<Option<usize>>,
        saved: Saved,
    },
    Segment {
        rerun: Rerun,
        inputs: Vec<Var>,
        kept: Vec<Output>,
    },
}

/// Gradients of a network's parameters; they add up over backward passes.
#[derive(Debug, Default)]
pub struct Grads {
    tensors: Vec<Option<Tensor>>,
}

impl Grads {
    /// No gradient yet.
    pub fn new(params: &Params) -> Self {
        Grads { tensors: vec![None; params.tensors().len()] }
    }

    /// The gradient of a parameter; `None` if nothing depended on it.
    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        self.tensors[id.0].as_ref()
    }

    /// The gradients of the trained parameters in their order, zeros where nothing depended on one.
    pub fn into_tensors(self, params: &Params) -> Vec<Tensor> {
        let zeros = |p: &Tensor| Tensor::zeros(p.shape(), p.dtype(), p.device());
        let frozen = params.tensors().len() - params.trained().len();
        let trained = self.tensors.into_iter().skip(frozen).zip(params.trained());
        trained.map(|(g, p)| g.unwrap_or_else(|| zeros(p))).collect()
    }

    fn accumulate(&mut self, id: ParamId, g: Tensor) -> Result<()> {
        // Of a weight that is added to activations the cotangent comes in their dtype.
        let g = counted_as(Kind::Gradients, || g.to_dtype(g.dtype().wide()));
        accumulate(&mut self.tensors[id.0], g)
    }
}

fn accumulate(slot: &mut Option<Tensor>, g: Tensor) -> Result<()> {
    match slot {
        Some(sum) => arith::add_assign(sum, &g)?,
        None => *slot = Some(g),
    }
    Ok(())
}

/// Cotangents of the inputs of a backward pass.
#[derive(Debug)]
pub struct Cotangents(Vec<Option<Tensor>>);

impl Cotangents {
    /// The cotangent of an input made with [`Reverse::input`]; `None` if nothing depended on it.
    pub fn get(&self, v: &Var) -> Option<&Tensor> {
        v.node.and_then(|n| self.0[n].as_ref())
    }
}

/// The mode of reverse differentiation: records a tape, which [`Reverse::backward`] runs once.
pub struct Reverse<'p> {
    params: &'p Params,
    recompute: Recompute,
    tape: RefCell<Vec<Node>>,
    /// Outputs of expensive ops from the first run of the segment that is being run again.
    replay: RefCell<VecDeque<Output>>,
}

impl<'p> Reverse<'p> {
    /// Records with these weights, keeping activations by this policy.
    pub fn new(params: &'p Params, recompute: Recompute) -> Self {
        Reverse { params, recompute, tape: RefCell::default(), replay: RefCell::default() }
    }

    /// A value to differentiate by.
    pub fn input(&self, value: Tensor) -> Var {
        self.push(value, Node::Input)
    }

    fn push(&self, value: Tensor, node: Node) -> Var {
        let mut tape = self.tape.borrow_mut();
        tape.push(node);
        Var { value, node: Some(tape.len() - 1) }
    }

    fn run_op(&self, op: &dyn Op, x: &[&Tensor]) -> Result<Output> {
        if op.memory().survives_recomputation()
            && let Some(output) = self.replay.borrow_mut().pop_front()
        {
            return Ok(output);
        }
        attributed_to(op.name(), || op.forward(x))
    }

    /// Pulls the cotangent of `y` back through the tape: adds to `grads`, returns the inputs' cotangents.
    ///
    /// Activations are freed as the pass goes back.
    ///
    /// # Errors
    /// If the cotangent does not have the shape of `y`, or an op's rule fails.
    pub fn backward(self, y: &Var, y_bar: Tensor, grads: &mut Grads) -> Result<Cotangents> {
        if y.value.shape() != y_bar.shape() || y.value.dtype() != y_bar.dtype() {
            let expected = format!("a cotangent of shape {:?} and dtype {}", y.value.shape(), y.value.dtype());
            return Err(Error::input("backward", expected, (y_bar.shape(), y_bar.dtype())));
        }
        let mut tape = self.tape.into_inner();
        let mut bars: Vec<Option<Tensor>> = vec![None; tape.len()];
        if let Some(n) = y.node {
            bars[n] = Some(y_bar);
        }
        while let Some(node) = tape.pop() {
            let n = tape.len();
            let inputs_survive = matches!(node, Node::Input);
            let Some(bar) = (if inputs_survive { None } else { bars[n].take() }) else { continue };
            match node {
                Node::Input => {}
                Node::Param(id) => grads.accumulate(id, bar)?,
                Node::Boundary(outer) => accumulate(&mut bars[outer], bar)?,
                Node::Op { op, inputs, saved } => {
                    let wanted: Vec<bool> = inputs.iter().map(Option::is_some).collect();
                    // A parameter's gradient so far, to which the op adds.
                    let param = |input: &Option<usize>| match tape.get((*input)?) {
                        Some(Node::Param(id)) => Some(*id),
                        _ => None,
                    };
                    let ids: Vec<Option<ParamId>> = inputs.iter().map(param).collect();
                    let sums: Vec<_> = ids.iter().map(|id| grads.tensors[(*id)?.0].take()).collect();
                    let summed: Vec<bool> = sums.iter().map(Option::is_some).collect();
                    let x_bar = attributed_to(op.name(), || op.vjp_onto(&saved, bar, &wanted, sums))?;
                    for (i, x_bar) in x_bar.into_iter().enumerate() {
                        match (ids[i], inputs[i], x_bar) {
                            (Some(id), _, x_bar) if summed[i] => grads.tensors[id.0] = x_bar,
                            (_, Some(n), Some(x_bar)) => accumulate(&mut bars[n], x_bar)?,
                            _ => {}
                        }
                    }
                }
                Node::Segment { rerun, inputs, kept } => {
                    let outer: Vec<Option<usize>> = inputs.iter().map(|v| v.node).collect();
                    for (i, x_bar) in outer.into_iter().zip(self.params.rerun(rerun, inputs, kept, bar, grads)?) {
                        if let (Some(i), Some(x_bar)) = (i, x_bar) {
                            accumulate(&mut bars[i], x_bar)?;
                        }
                    }
                }
            }
        }
        Ok(Cotangents(bars))
    }
}

impl Params {
    /// Runs a segment again on a tape of its own and pulls the cotangent back through that.
    fn rerun(
        &self,
        rerun: Rerun,
        inputs: Vec<Var>,
        kept: Vec<Output>,
        bar: Tensor,
        grads: &mut Grads,
    ) -> Result<Vec<Option<Tensor>>> {
        let inner = Reverse::new(self, Recompute::Nothing);
        *inner.replay.borrow_mut() = kept.into();
        let inner_var = |v: Var| if v.node.is_some() { inner.input(v.value) } else { inner.constant(v.value) };
        let vars: Vec<Var> = inputs.into_iter().map(inner_var).collect();
        let y = rerun(&inner, &vars)?;
        let bars = inner.backward(&y, bar, grads)?;
        Ok(vars.iter().map(|v| bars.get(v).cloned()).collect())
    }
}

impl Mode for Reverse<'_> {
    type Value = Var;

    fn param(&self, id: ParamId) -> Result<Var> {
        let value = self.params.get(id).clone();
        // Without a node no rule is asked for the gradient of a frozen weight, and none is stored.
        Ok(if self.params.is_frozen(id) { self.constant(value) } else { self.push(value, Node::Param(id)) })
    }

    fn adapter(&self, id: ParamId) -> Option<Adapter> {
        self.params.adapter(id)
    }

    fn constant(&self, t: Tensor) -> Var {
        Var { value: t, node: None }
    }

    fn shape<'v>(&self, v: &'v Var) -> &'v [usize] {
        v.value.shape()
    }

    fn dtype(&self, v: &Var) -> DType {
        v.value.dtype()
    }

    fn device(&self, v: &Var) -> Device {
        v.value.device()
    }

    fn apply(&self, op: impl Op + 'static, inputs: &[&Var]) -> Result<Var> {
        let x: Vec<&Tensor> = inputs.iter().map(|v| &v.value).collect();
        let output = self.run_op(&op, &x)?;
        let nodes: Vec<Option<usize>> = inputs.iter().map(|v| v.node).collect();
        if nodes.iter().all(Option::is_none) {
            return Ok(self.constant(output.y));
        }
        let saved = Saved::of(&op, &x, &output);
        Ok(self.push(output.y, Node::Op { op: Box::new(op), inputs: nodes, saved }))
    }

    fn segment(&self, segment: impl Segment, inputs: &[&Var]) -> Result<Var> {
        if self.recompute == Recompute::Nothing {
            let boundary = |v: &Var| match v.node {
                Some(outer) => self.push(v.value.clone(), Node::Boundary(outer)),
                None => v.clone(),
            };
            let inputs: Vec<Var> = inputs.iter().map(|&v| boundary(v)).collect();
            return segment.run(self, &inputs);
        }
        let keep = self.recompute == Recompute::AllButAttention;
        let plain = if keep { Plain::recording(self.params) } else { Plain::new(self.params) };
        let values: Vec<Tensor> = inputs.iter().map(|v| v.value.clone()).collect();
        let y = segment.run(&plain, &values)?;
        let kept = plain.into_record();
        let inputs = inputs.iter().map(|&v| v.clone()).collect();
        let rerun: Rerun = Box::new(move |m, x| segment.run(m, x));
        Ok(self.push(y, Node::Segment { rerun, inputs, kept }))
    }

    fn tap(&self, _label: &str, _v: &Var) {}
}
