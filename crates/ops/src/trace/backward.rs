//! [`Reverse::backward`](crate::Reverse::backward) in shapes: the same order, the same frees.

use std::rc::Rc;

use super::{Ghost, Kept, Ledger, Pass, Trace, Traced};
use crate::{Meta, Op, ParamId, ParamSpec, Recompute, Result, Rule};

type Rerun = Box<dyn Fn(&Trace, &[Traced]) -> Result<Traced>>;

pub(super) enum Node {
    Param(ParamId),
    Input,
    Boundary(usize),
    Op { op: Box<dyn Op>, nodes: Vec<Option<usize>>, inputs: Vec<Meta>, held: Vec<Ghost> },
    Segment { rerun: Rerun, inputs: Vec<Traced>, kept: Vec<Kept> },
}

/// Gradients of a network's parameters, as [`Grads`](crate::Grads) holds them.
#[derive(Debug)]
pub struct GhostGrads(Vec<Option<Ghost>>);

impl GhostGrads {
    /// No gradient yet.
    pub fn new(specs: &[ParamSpec]) -> Self {
        GhostGrads(vec![None; specs.len()])
    }

    /// Bytes of the gradients so far.
    pub fn bytes(&self) -> u64 {
        self.0.iter().flatten().map(|g| g.meta.bytes() as u64).sum()
    }
}

fn accumulate(ledger: &Rc<Ledger>, slot: &mut Option<Ghost>, g: Ghost) {
    match slot {
        // Added in place; a copy first where another holds the memory.
        Some(sum) if sum.is_shared() => *sum = ledger.ghost(sum.meta.clone()),
        Some(_) => {}
        None => *slot = Some(g),
    }
}

impl Trace {
    /// Pulls the cotangent of `y` back through the tape.
    ///
    /// # Errors
    /// As the ops.
    pub fn backward(self, y: &Traced, y_bar: Ghost, grads: &mut GhostGrads) -> Result<()> {
        self.pull(y, y_bar, grads).map(drop)
    }

    fn pull(self, y: &Traced, y_bar: Ghost, grads: &mut GhostGrads) -> Result<Vec<Option<Ghost>>> {
        let mut tape = self.tape.take();
        let mut bars: Vec<Option<Ghost>> = vec![None; tape.len()];
        match y.node {
            Some(n) => bars[n] = Some(y_bar),
            None => drop(y_bar),
        }
        while let Some(node) = tape.pop() {
            let n = tape.len();
            let survives = matches!(node, Node::Input);
            let Some(bar) = (if survives { None } else { bars[n].take() }) else { continue };
            match node {
                Node::Input => {}
                Node::Param(id) => accumulate(&self.ledger, &mut grads.0[id.0], bar),
                Node::Boundary(outer) => accumulate(&self.ledger, &mut bars[outer], bar),
                Node::Op { op, nodes, inputs, held } => {
                    let param = |node: &Option<usize>| match tape.get((*node)?) {
                        Some(Node::Param(id)) => Some(*id),
                        _ => None,
                    };
                    let ids: Vec<Option<ParamId>> = nodes.iter().map(param).collect();
                    let sums: Vec<_> = ids.iter().map(|id| grads.0[(*id)?.0].take()).collect();
                    let summed: Vec<bool> = sums.iter().map(Option::is_some).collect();
                    let made = self.vjp(&*op, &nodes, &inputs, &held, &bar, sums)?;
                    for (i, x_bar) in made.into_iter().enumerate() {
                        match (ids[i], nodes[i], x_bar) {
                            (Some(id), _, x_bar) if summed[i] => grads.0[id.0] = x_bar,
                            (_, Some(n), Some(x_bar)) => accumulate(&self.ledger, &mut bars[n], x_bar),
                            _ => {}
                        }
                    }
                }
                Node::Segment { rerun, inputs, kept } => {
                    let outer: Vec<Option<usize>> = inputs.iter().map(|v| v.node).collect();
                    for (i, x_bar) in outer.into_iter().zip(self.rerun(rerun, inputs, kept, bar, grads)?) {
                        if let (Some(i), Some(x_bar)) = (i, x_bar) {
                            accumulate(&self.ledger, &mut bars[i], x_bar);
                        }
                    }
                }
            }
        }
        Ok(bars)
    }

    fn vjp(
        &self,
        op: &dyn Op,
        nodes: &[Option<usize>],
        inputs: &[Meta],
        held: &[Ghost],
        bar: &Ghost,
        sums: Vec<Option<Ghost>>,
    ) -> Result<Vec<Option<Ghost>>> {
        let metas: Vec<&Meta> = inputs.iter().collect();
        let wanted: Vec<bool> = nodes.iter().map(Option::is_some).collect();
        let cost = op.cost(&metas, Rule::Vjp(&wanted))?;
        let written = inputs.iter().zip(&wanted).filter(|(_, w)| **w).map(|(m, _)| m.bytes()).sum();
        let read = held.iter().map(|g| g.meta.bytes()).sum::<usize>() + bar.meta.bytes();
        self.ledger.record(op.name(), &cost, read, written);
        let _scratch = self.ledger.scratch(&cost);
        let make = |(i, meta): (usize, &Meta)| {
            let through = cost.passes.contains(&i);
            let added = sums[i].is_some() && cost.adds.contains(&i);
            (wanted[i] && !added)
                .then(|| if through { bar.viewed(meta.clone()) } else { self.ledger.ghost(meta.clone()) })
        };
        let made: Vec<Option<Ghost>> = inputs.iter().enumerate().map(make).collect();
        let add = |(mut sum, x_bar): (Option<Ghost>, Option<Ghost>)| {
            if let Some(x_bar) = x_bar {
                accumulate(&self.ledger, &mut sum, x_bar);
            }
            sum
        };
        Ok(sums.into_iter().zip(made).map(add).collect())
    }

    fn rerun(
        &self,
        rerun: Rerun,
        inputs: Vec<Traced>,
        kept: Vec<Kept>,
        bar: Ghost,
        grads: &mut GhostGrads,
    ) -> Result<Vec<Option<Ghost>>> {
        let inner = self.inner(Pass::Tape(Recompute::Nothing), false);
        *inner.replay.borrow_mut() = kept.into();
        let inner_var = |v: Traced| if v.node.is_some() { inner.push(v.primal, Node::Input) } else { v };
        let vars: Vec<Traced> = inputs.into_iter().map(inner_var).collect();
        let y = rerun(&inner, &vars)?;
        let bars = inner.pull(&y, bar, grads)?;
        Ok(vars.iter().map(|v| v.node.and_then(|n| bars[n].clone())).collect())
    }
}
