//! The mode of shapes: runs a network without data, and accounts for the work and the memory that running it takes.
//!
//! A [`Ghost`] stands for a tensor: it lives as long as the tensor would, by the same ownership, so that the ledger's peak
//! is that of the mode it stands in for. What [`Plain`](crate::Plain), [`Forward`](crate::Forward) and
//! [`Reverse`](crate::Reverse) allocate and drop, and when, is mirrored here; tests hold one against the other.

mod backward;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use fewstep_tensor::{DType, Device, Tensor};

use crate::{Adapter, Adapters, Cost, Memory, Meta, Mode, Op, ParamId, ParamSpec, Recompute, Result, Rule, Segment};
pub use backward::GhostGrads;
use backward::Node;

/// One application of one rule of an op.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The op's name.
    pub op: &'static str,
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes read and written.
    pub bytes: f64,
    /// Bytes of an element.
    pub element: usize,
}

/// What a run without data allocates and does.
#[derive(Debug, Default)]
pub struct Ledger {
    live: Cell<u64>,
    peak: Cell<u64>,
    scratch: bool,
    calls: RefCell<Vec<Call>>,
}

impl Ledger {
    /// An empty ledger; `scratch` says whether the CPU kernels' own memory counts.
    pub fn new(scratch: bool) -> Rc<Self> {
        Rc::new(Ledger { scratch, ..Ledger::default() })
    }

    /// Bytes that live now.
    pub fn live(&self) -> u64 {
        self.live.get()
    }

    /// The most bytes that ever lived at a time.
    pub fn peak(&self) -> u64 {
        self.peak.get()
    }

    /// Takes the calls since the last time.
    pub fn take_calls(&self) -> Vec<Call> {
        self.calls.take()
    }

    /// Allocates.
    pub fn ghost(self: &Rc<Self>, meta: Meta) -> Ghost {
        let bytes = meta.bytes() as u64;
        Ghost { meta, block: Rc::new(self.block(bytes)) }
    }

    fn block(self: &Rc<Self>, bytes: u64) -> Block {
        self.live.set(self.live.get() + bytes);
        self.peak.set(self.peak.get().max(self.live.get()));
        Block { bytes, ledger: self.clone() }
    }

    /// A tensor whose memory is accounted for elsewhere.
    pub fn resident(self: &Rc<Self>, meta: Meta) -> Ghost {
        Ghost { meta, block: Rc::new(self.block(0)) }
    }

    fn record(&self, op: &'static str, cost: &Cost, read: usize, written: usize) {
        let bytes = if cost.shares { 0 } else { read + written };
        if cost.flops > 0.0 || bytes > 0 {
            let call = Call { op, flops: cost.flops, bytes: bytes as f64, element: cost.y.dtype.size() };
            self.calls.borrow_mut().push(call);
        }
    }

    fn scratch(self: &Rc<Self>, cost: &Cost) -> Option<Block> {
        (self.scratch && cost.scratch > 0).then(|| self.block(cost.scratch as u64))
    }
}

#[derive(Debug)]
struct Block {
    bytes: u64,
    ledger: Rc<Ledger>,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.ledger.live.set(self.ledger.live.get() - self.bytes);
    }
}

/// A tensor without data; clones share its memory, the last one gives it back.
#[derive(Clone, Debug)]
pub struct Ghost {
    meta: Meta,
    block: Rc<Block>,
}

impl Ghost {
    /// Shape and dtype.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The same memory under another shape.
    fn viewed(&self, meta: Meta) -> Ghost {
        Ghost { meta, block: self.block.clone() }
    }

    fn is_shared(&self) -> bool {
        Rc::strong_count(&self.block) > 1
    }
}

/// Which mode a trace stands in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// [`Plain`](crate::Plain).
    Plain,
    /// [`Forward`](crate::Forward).
    Jvp,
    /// [`Reverse`](crate::Reverse) under a policy.
    Tape(Recompute),
}

/// A value of the trace.
#[derive(Clone, Debug)]
pub struct Traced {
    primal: Ghost,
    tangent: Option<Ghost>,
    node: Option<usize>,
}

impl Traced {
    /// The tensor.
    pub fn primal(&self) -> &Ghost {
        &self.primal
    }

    /// The tangent, if it moves.
    pub fn tangent(&self) -> Option<&Ghost> {
        self.tangent.as_ref()
    }

    fn plain(primal: Ghost) -> Self {
        Traced { primal, tangent: None, node: None }
    }
}

/// What an expensive op left for the second run of its segment.
#[derive(Clone, Debug)]
struct Kept {
    y: Ghost,
    kept: Vec<Ghost>,
}

/// The mode of shapes.
pub struct Trace {
    ledger: Rc<Ledger>,
    specs: Arc<[ParamSpec]>,
    dtype: DType,
    pass: Pass,
    adapters: Arc<Adapters>,
    tape: RefCell<Vec<Node>>,
    replay: RefCell<VecDeque<Kept>>,
    record: Option<RefCell<Vec<Kept>>>,
}

impl Trace {
    /// Runs a network of these parameters in a dtype. Weights are accounted for elsewhere.
    pub fn new(ledger: &Rc<Ledger>, specs: &Arc<[ParamSpec]>, dtype: DType, pass: Pass) -> Self {
        Trace {
            ledger: ledger.clone(),
            specs: specs.clone(),
            dtype,
            pass,
            adapters: Arc::default(),
            tape: RefCell::default(),
            replay: RefCell::default(),
            record: None,
        }
    }

    /// Trains adapters in place of the weights; the parameters are those that [`Adapters::declare`] lists.
    pub fn with_adapters(self, adapters: &Arc<Adapters>) -> Self {
        Trace { adapters: adapters.clone(), ..self }
    }

    fn inner(&self, pass: Pass, record: bool) -> Trace {
        let record = record.then(RefCell::default);
        let inner = Trace::new(&self.ledger, &self.specs, self.dtype, pass);
        Trace { record, adapters: self.adapters.clone(), ..inner }
    }

    /// An input in this mode, with a tangent in [`Pass::Jvp`] where it moves.
    pub fn input(&self, primal: Ghost, tangent: Option<Ghost>) -> Traced {
        Traced { primal, tangent, node: None }
    }

    fn push(&self, primal: Ghost, node: Node) -> Traced {
        let mut tape = self.tape.borrow_mut();
        tape.push(node);
        Traced { primal, tangent: None, node: Some(tape.len() - 1) }
    }

    /// What the forward rule makes.
    fn forward(&self, op: &dyn Op, x: &[&Ghost]) -> Result<(Kept, Cost)> {
        let metas: Vec<&Meta> = x.iter().map(|g| &g.meta).collect();
        let cost = op.cost(&metas, Rule::Forward)?;
        let replayed = if op.memory().survives_recomputation() { self.replay.borrow_mut().pop_front() } else { None };
        if let Some(kept) = replayed {
            return Ok((kept, cost));
        }
        let read = metas.iter().map(|m| m.bytes()).sum();
        self.ledger.record(op.name(), &cost, read, cost.y.bytes());
        let scratch = self.ledger.scratch(&cost);
        let kept = cost.kept.iter().map(|m| self.ledger.ghost(m.clone())).collect();
        let y = match x.first().filter(|_| cost.shares) {
            Some(x) => x.viewed(cost.y.clone()),
            None => self.ledger.ghost(cost.y.clone()),
        };
        drop(scratch);
        Ok((Kept { y, kept }, cost))
    }

    fn jvp(&self, op: &dyn Op, x: &[&Traced]) -> Result<Traced> {
        let primals: Vec<&Ghost> = x.iter().map(|v| &v.primal).collect();
        if x.iter().all(|v| v.tangent.is_none()) {
            return Ok(Traced::plain(self.forward(op, &primals)?.0.y));
        }
        let metas: Vec<&Meta> = primals.iter().map(|g| &g.meta).collect();
        let moving: Vec<bool> = x.iter().map(|v| v.tangent.is_some()).collect();
        let cost = op.cost(&metas, Rule::Jvp(&moving))?;
        let bytes = |v: &&Traced| v.primal.meta.bytes() * (1 + usize::from(v.tangent.is_some()));
        self.ledger.record(op.name(), &cost, x.iter().map(bytes).sum(), 2 * cost.y.bytes());
        let _scratch = self.ledger.scratch(&cost);
        let _kept: Vec<Ghost> = cost.kept.iter().map(|m| self.ledger.ghost(m.clone())).collect();
        let y = match cost.shares {
            true => x[0].primal.viewed(cost.y.clone()),
            false => self.ledger.ghost(cost.y.clone()),
        };
        let lone = moving
            .iter()
            .position(|&m| m)
            .filter(|i| cost.passes.contains(i) && moving.iter().filter(|&&m| m).count() == 1);
        let tangent = match lone.and_then(|i| x[i].tangent.as_ref()) {
            Some(tangent) => tangent.viewed(cost.y.clone()),
            None => self.ledger.ghost(cost.y.clone()),
        };
        Ok(Traced { primal: y, tangent: Some(tangent), node: None })
    }

    fn taped(&self, op: impl Op + 'static, x: &[&Traced]) -> Result<Traced> {
        let primals: Vec<&Ghost> = x.iter().map(|v| &v.primal).collect();
        let (Kept { y, kept }, _) = self.forward(&op, &primals)?;
        let nodes: Vec<Option<usize>> = x.iter().map(|v| v.node).collect();
        if nodes.iter().all(Option::is_none) {
            return Ok(Traced::plain(y));
        }
        let memory: Memory = op.memory();
        let inputs = primals.iter().map(|g| g.meta.clone()).collect();
        let mut held: Vec<Ghost> = kept;
        held.extend(primals.iter().enumerate().filter(|(i, _)| memory.keeps(*i)).map(|(_, g)| (*g).clone()));
        held.extend(memory.keeps_output().then(|| y.clone()));
        Ok(self.push(y, Node::Op { op: Box::new(op), nodes, inputs, held }))
    }
}

impl Mode for Trace {
    type Value = Traced;

    fn param(&self, id: ParamId) -> Result<Traced> {
        let spec = &self.specs[id.0];
        let value = self.ledger.resident(Meta::new(&spec.shape, self.dtype));
        match self.pass {
            Pass::Tape(_) if !self.adapters.is_frozen(id) => Ok(self.push(value, Node::Param(id))),
            _ => Ok(Traced::plain(value)),
        }
    }

    fn adapter(&self, id: ParamId) -> Option<Adapter> {
        self.adapters.get(id)
    }

    fn constant(&self, t: Tensor) -> Traced {
        Traced::plain(self.ledger.resident(Meta::new(t.shape(), t.dtype())))
    }

    fn apply(&self, op: impl Op + 'static, inputs: &[&Traced]) -> Result<Traced> {
        match self.pass {
            Pass::Plain => {
                let primals: Vec<&Ghost> = inputs.iter().map(|v| &v.primal).collect();
                let (kept, _) = self.forward(&op, &primals)?;
                if let Some(record) = &self.record
                    && op.memory().survives_recomputation()
                {
                    record.borrow_mut().push(kept.clone());
                }
                Ok(Traced::plain(kept.y))
            }
            Pass::Jvp => self.jvp(&op, inputs),
            Pass::Tape(_) => self.taped(op, inputs),
        }
    }

    fn segment(&self, segment: impl Segment, inputs: &[&Traced]) -> Result<Traced> {
        let owned: Vec<Traced> = inputs.iter().map(|&v| v.clone()).collect();
        let recompute = match self.pass {
            Pass::Plain | Pass::Jvp => return segment.run(self, &owned),
            Pass::Tape(recompute) => recompute,
        };
        if recompute == Recompute::Nothing {
            let boundary = |v: &Traced| match v.node {
                Some(outer) => self.push(v.primal.clone(), Node::Boundary(outer)),
                None => v.clone(),
            };
            let bounded: Vec<Traced> = owned.iter().map(boundary).collect();
            return segment.run(self, &bounded);
        }
        let plain = self.inner(Pass::Plain, recompute == Recompute::AllButAttention);
        let values: Vec<Traced> = owned.iter().map(|v| Traced::plain(v.primal.clone())).collect();
        let y = segment.run(&plain, &values)?;
        let kept = plain.record.map(RefCell::into_inner).unwrap_or_default();
        let rerun = Box::new(move |m: &Trace, x: &[Traced]| segment.run(m, x));
        Ok(self.push(y.primal, Node::Segment { rerun, inputs: owned, kept }))
    }

    fn tap(&self, _label: &str, _v: &Traced) {}

    fn shape<'v>(&self, v: &'v Traced) -> &'v [usize] {
        &v.primal.meta.shape
    }

    fn dtype(&self, v: &Traced) -> DType {
        v.primal.meta.dtype
    }

    fn device(&self, _v: &Traced) -> Device {
        Device::Cpu
    }
}
