//! Convolutions by cuDNN's graph interface, with the library's plan for each shape kept.

use std::collections::HashMap;

use cudarc::cudnn::sys::{
    self, cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
    cudnnBackendBehaviorNote_t as Behaviour, cudnnBackendDescriptorType_t as Kind, cudnnBackendHeurMode_t as Heuristic,
    cudnnBackendNumericalNote_t as Note,
};
use cudarc::driver::sys::CUstream;

use crate::convolution::Convolution;
use crate::error::refused;
use crate::{Error, Result};

/// Scratch memory of a convolution; what asks for more is not taken.
const WORKSPACE_BYTES: usize = 64 << 20;
/// What the addresses of all arrays are multiples of.
const ALIGNMENT: i64 = 16;
/// Plans that are looked at for a shape, from the library's first choice on.
const LOOKED_AT: usize = 16;
/// How the arrays are numbered in a plan.
const UIDS: [i64; 3] = [1, 2, 3];
/// Properties of a kernel that are not taken: other sums on another run, or sums that are not formed in single precision.
const AVOIDED: [Note; 5] = [
    Note::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC,
    Note::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION,
    Note::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS,
    Note::CUDNN_NUMERICAL_NOTE_WINOGRAD,
    Note::CUDNN_NUMERICAL_NOTE_FFT,
];

/// A kernel that the library would compile now, for a second or more a shape.
const COMPILED: Behaviour = Behaviour::CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION;
/// The first version with this interface and CUDA 13.
const OLDEST: usize = 90_000;

type Refused = cudarc::cudnn::result::CudnnError;
type Answer<T> = std::result::Result<T, Refused>;

/// A description of the library's, destroyed when dropped.
#[derive(Debug)]
struct Descriptor(sys::cudnnBackendDescriptor_t);

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and used no more. There is nobody to tell of a failure.
        let _ = unsafe { sys::cudnnBackendDestroyDescriptor(self.0) };
    }
}

impl Descriptor {
    fn new(kind: Kind) -> Answer<Self> {
        let mut made = std::ptr::null_mut();
        // SAFETY: the library writes one handle.
        unsafe { sys::cudnnBackendCreateDescriptor(kind, &mut made) }.result()?;
        Ok(Descriptor(made))
    }

    /// The library copies the values; `V` is what it documents for the attribute's type.
    fn with<V>(self, name: Name, kind: Type, values: &[V]) -> Answer<Self> {
        // SAFETY: the descriptor is alive, and as many values as are told lie there.
        unsafe { sys::cudnnBackendSetAttribute(self.0, name, kind, values.len() as i64, values.as_ptr().cast()) }
            .result()?;
        Ok(self)
    }

    fn with_parts(self, name: Name, parts: &[&Descriptor]) -> Answer<Self> {
        let handles: Vec<_> = parts.iter().map(|d| d.0).collect();
        self.with(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, &handles)
    }

    fn ready(self) -> Answer<Self> {
        // SAFETY: the descriptor is alive.
        unsafe { sys::cudnnBackendFinalize(self.0) }.result()?;
        Ok(self)
    }

    /// Fills `values` from the beginning; how many there are.
    fn get<V>(&self, name: Name, kind: Type, values: &mut [V]) -> Answer<usize> {
        let mut count = 0;
        // SAFETY: the descriptor is alive; the library writes at most as many values as there is room for.
        unsafe {
            let (room, to) = (values.len() as i64, values.as_mut_ptr().cast());
            sys::cudnnBackendGetAttribute(self.0, name, kind, room, &mut count, to)
        }
        .result()?;
        Ok(usize::try_from(count).unwrap_or(0).min(values.len()))
    }
}

#[derive(Debug)]
pub(super) struct Convolver {
    handle: sys::cudnnHandle_t,
    workspace: u64,
    /// Nothing where the library has no kernel that is wanted.
    plans: HashMap<Convolution, Option<Plan>>,
}

/// What runs a convolution, and what it was made of.
#[derive(Debug)]
struct Plan {
    plan: Descriptor,
    _configuration: Descriptor,
}

// SAFETY: the library's handles are not bound to a thread, and a lock is around the whole.
unsafe impl Send for Convolver {}

/// The version of the library, which is present.
pub(super) fn version() -> String {
    // SAFETY: asks for a number.
    super::dotted(unsafe { sys::cudnnGetVersion() })
}

impl Convolver {
    /// With the context of the device bound to this thread.
    pub(super) fn new(stream: CUstream) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the library writes one handle; the stream is the device's; the memory is kept for the life of the process.
        unsafe {
            let version = sys::cudnnGetVersion();
            if version < OLDEST {
                return Err(Error::Call { call: "cudnnGetVersion", reason: format!("{version} is too old") });
            }
            sys::cudnnCreate(&mut handle).result().map_err(refused("cudnnCreate"))?;
            sys::cudnnSetStream(handle, stream.cast()).result().map_err(refused("cudnnSetStream"))?;
            let workspace = cudarc::driver::result::malloc_sync(WORKSPACE_BYTES).map_err(refused("cuMemAlloc"))?;
            Ok(Convolver { handle, workspace, plans: HashMap::new() })
        }
    }

    /// Whether the library computes it as it is wanted.
    pub(super) fn takes(&mut self, c: &Convolution) -> bool {
        if !self.plans.contains_key(c) {
            // A shape that the library refuses is no error: it is computed otherwise.
            let plan = self.plan(c).unwrap_or(None);
            self.plans.insert(*c, plan);
        }
        self.plans[c].is_some()
    }

    /// Y (+)= W∗X of a convolution that is taken, by the addresses of X, W and Y.
    pub(super) fn convolve(&mut self, c: &Convolution, addresses: [u64; 3]) -> Result<()> {
        let call = |reason: String| Error::Call { call: "cudnnBackendExecute", reason };
        let Some(Some(plan)) = self.plans.get(c) else { return Err(call(format!("no plan for {c:?}"))) };
        let run = || {
            let pack = Descriptor::new(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?
                .with(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, Type::CUDNN_TYPE_INT64, &UIDS)?
                .with(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, Type::CUDNN_TYPE_VOID_PTR, &addresses)?
                .with(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, Type::CUDNN_TYPE_VOID_PTR, &[self.workspace])?
                .ready()?;
            // SAFETY: the plan is of this shape, and the addresses are of arrays of its extents; the work runs in the order
            // of the device's stream.
            unsafe { sys::cudnnBackendExecute(self.handle, plan.plan.0, pack.0) }.result()
        };
        run().map_err(|e| call(format!("{e:?} for {c:?}")))
    }

    /// The library's first choice among the kernels that are wanted: by shape alone.
    fn plan(&self, c: &Convolution) -> Answer<Option<Plan>> {
        let graph = self.graph(c)?;
        for mode in [Heuristic::CUDNN_HEUR_MODE_A, Heuristic::CUDNN_HEUR_MODE_FALLBACK] {
            for configuration in configurations(&graph, mode)? {
                if !is_wanted(&configuration)? {
                    continue;
                }
                // The library proposes what it may refuse.
                if let Ok(plan) = self.plan_of(&configuration)
                    && workspace(&plan)? <= WORKSPACE_BYTES as i64
                {
                    return Ok(Some(Plan { plan, _configuration: configuration }));
                }
            }
        }
        Ok(None)
    }

    fn graph(&self, c: &Convolution) -> Answer<Descriptor> {
        let int = |n: usize| n as i64;
        let [b, h, w, i] = c.input.map(int);
        let ([oh, ow, o], [kh, kw]) = (c.output.map(int), c.kernel.map(int));
        let x = tensor(UIDS[0], [b, i, h, w])?;
        let weights = tensor(UIDS[1], [o, i, kh, kw])?;
        let y = tensor(UIDS[2], [b, o, oh, ow])?;
        let convolution = description(c)?;
        let (one, beta) = (1f32, f32::from(u8::from(c.accumulate)));
        let operation = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)?
            .with_parts(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, &[&convolution])?
            .with_parts(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, &[&x])?
            .with_parts(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, &[&weights])?
            .with_parts(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, &[&y])?
            .with(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, Type::CUDNN_TYPE_FLOAT, &[one])?
            .with(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, Type::CUDNN_TYPE_FLOAT, &[beta])?
            .ready()?;
        Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?
            .with(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, Type::CUDNN_TYPE_HANDLE, &[self.handle])?
            .with_parts(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &[&operation])?
            .ready()
    }

    fn plan_of(&self, configuration: &Descriptor) -> Answer<Descriptor> {
        Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?
            .with(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, Type::CUDNN_TYPE_HANDLE, &[self.handle])?
            .with_parts(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &[configuration])?
            .ready()
    }
}

/// Steps of the kernel, and zeros around.
fn description(c: &Convolution) -> Answer<Descriptor> {
    let int = |n: usize| n as i64;
    let pair = Type::CUDNN_TYPE_INT64;
    Descriptor::new(Kind::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?
        .with(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, pair, &[2i64])?
        .with(
            Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE,
            Type::CUDNN_TYPE_DATA_TYPE,
            &[sys::cudnnDataType_t::CUDNN_DATA_FLOAT],
        )?
        .with(
            Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE,
            Type::CUDNN_TYPE_CONVOLUTION_MODE,
            &[sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION],
        )?
        .with(Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, pair, &[1i64; 2])?
        .with(Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, pair, &[int(c.stride); 2])?
        .with(Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, pair, &c.before.map(int))?
        .with(Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, pair, &c.after().map(int))?
        .ready()
}

/// Extents in the library's order, N C H W, of an array with channels last.
fn tensor(uid: i64, [n, c, h, w]: [i64; 4]) -> Answer<Descriptor> {
    let int = Type::CUDNN_TYPE_INT64;
    Descriptor::new(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?
        .with(
            Name::CUDNN_ATTR_TENSOR_DATA_TYPE,
            Type::CUDNN_TYPE_DATA_TYPE,
            &[sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16],
        )?
        .with(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, int, &[n, c, h, w])?
        .with(Name::CUDNN_ATTR_TENSOR_STRIDES, int, &[h * w * c, 1, w * c, c])?
        .with(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, int, &[uid])?
        .with(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, int, &[ALIGNMENT])?
        .ready()
}

/// What the library proposes for a graph, best first.
fn configurations(graph: &Descriptor, mode: Heuristic) -> Answer<Vec<Descriptor>> {
    let heuristic = Descriptor::new(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?
        .with_parts(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &[graph])?
        .with(Name::CUDNN_ATTR_ENGINEHEUR_MODE, Type::CUDNN_TYPE_HEUR_MODE, &[mode])?
        .ready()?;
    let mut all: Vec<Descriptor> =
        (0..LOOKED_AT).map(|_| Descriptor::new(Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)).collect::<Answer<_>>()?;
    let mut handles: Vec<_> = all.iter().map(|d| d.0).collect();
    let backend = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
    let found = heuristic.get(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, backend, &mut handles)?;
    all.truncate(found);
    Ok(all)
}

/// Whether its kernel has none of the properties that are avoided, and needs no compilation at run time.
fn is_wanted(configuration: &Descriptor) -> Answer<bool> {
    let engine = Descriptor::new(Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?;
    let backend = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
    configuration.get(Name::CUDNN_ATTR_ENGINECFG_ENGINE, backend, &mut [engine.0])?;
    let has = |name, kind, known: usize, any: &[u32]| -> Answer<bool> {
        // As numbers: a newer library may know notes that have no name here.
        let mut notes = vec![0u32; known];
        let count = engine.get(name, kind, &mut notes)?;
        Ok(notes[..count].iter().any(|n| any.contains(n)))
    };
    let numerical = Note::CUDNN_NUMERICAL_NOTE_TYPE_COUNT as usize;
    let behaviours = Behaviour::CUDNN_BEHAVIOR_NOTE_TYPE_COUNT as usize;
    let (note, behaviour) = (Type::CUDNN_TYPE_NUMERICAL_NOTE, Type::CUDNN_TYPE_BEHAVIOR_NOTE);
    Ok(!has(Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, note, numerical, &AVOIDED.map(|n| n as u32))?
        && !has(Name::CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, behaviour, behaviours, &[COMPILED as u32])?)
}

fn workspace(plan: &Descriptor) -> Answer<i64> {
    let mut bytes = [i64::MAX];
    plan.get(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, Type::CUDNN_TYPE_INT64, &mut bytes)?;
    Ok(bytes[0])
}
