//! Matrix products by cuBLASLt, with the library's plan for each shape kept: its first, or the fastest of several where that was
//! asked for, now or by an earlier process.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};

use cudarc::cublaslt::{result, sys};
use cudarc::driver::result as driver;
use cudarc::driver::sys::CUstream;

use super::{between, mark};
use crate::error::refused;
use crate::product::{Element, Product};
use crate::{Error, Result, cache};

/// Scratch memory of a product: what the library asks for on Hopper.
const WORKSPACE_BYTES: usize = 64 << 20;
/// Plans that are timed where products are tuned, and how often each.
const CANDIDATES: usize = 16;
const TIMINGS: usize = 5;
/// The largest alignment that the library makes use of.
const ALIGNMENT: u64 = 256;

/// What the library's plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    extents: [usize; 3],
    transposed: [bool; 2],
    types: [Element; 2],
    accumulate: bool,
    bias: bool,
    gelu: bool,
    /// Whether what is before the GELU is written.
    keeps: bool,
    /// Alignment in bytes of A, B, C, the bias and what is before the GELU.
    aligned: [u32; 5],
}

impl Key {
    fn of(p: &Product) -> Self {
        let aligned = |address: u64| 1u32 << (address | ALIGNMENT).trailing_zeros();
        let addresses = [p.a.address, p.b.address, p.c, p.bias.unwrap_or(0), p.before_gelu.unwrap_or(0)];
        Key {
            extents: [p.m, p.n, p.k],
            transposed: [p.a.transposed, p.b.transposed],
            types: [p.factors, p.result],
            accumulate: p.accumulate,
            bias: p.bias.is_some(),
            gelu: p.gelu,
            keeps: p.before_gelu.is_some(),
            aligned: addresses.map(aligned),
        }
    }
}

#[derive(Debug)]
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    /// Of the factors and of C, as the column-major library sees them.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Whether what is before the GELU is written, wanted or not.
    keeps: bool,
}

#[derive(Debug)]
pub(super) struct Multiplier {
    handle: sys::cublasLtHandle_t,
    stream: CUstream,
    workspace: u64,
    plans: HashMap<Key, Plan>,
    /// What else a plan on disk depends on: the device, the library.
    place: String,
    /// Whether new products are timed.
    pub(super) tuning: bool,
}

// SAFETY: the library's handles are not bound to a thread, and a lock is around the whole.
unsafe impl Send for Multiplier {}

/// The version of the library, which is present.
pub(super) fn version() -> String {
    // SAFETY: asks for a number.
    super::dotted(unsafe { sys::cublasLtGetVersion() })
}

impl Multiplier {
    /// With the context of the device bound to this thread.
    pub(super) fn new(stream: CUstream, device: &str) -> Result<Self> {
        let handle = result::create_handle().map_err(refused("cublasLtCreate"))?;
        // SAFETY: the context is bound; the memory is kept for the life of the process.
        let workspace = unsafe { driver::malloc_sync(WORKSPACE_BYTES) }.map_err(refused("cuMemAlloc"))?;
        // SAFETY: the library is loaded.
        let place = format!("{device}, cuBLASLt {}", unsafe { sys::cublasLtGetVersion() });
        Ok(Multiplier { handle, stream, workspace, plans: HashMap::new(), place, tuning: false })
    }

    pub(super) fn multiply(&mut self, p: &Product) -> Result<()> {
        let key = Key::of(p);
        if !self.plans.contains_key(&key) {
            let plan = if key.gelu && !key.keeps { self.plan_without(p)? } else { self.plan(&key, p)? };
            self.plans.insert(key, plan);
        }
        let plan = &self.plans[&key];
        if !plan.keeps || p.before_gelu.is_some() {
            return self.run(plan, &plan.algorithm, p, p.c);
        }
        // SAFETY: the context is bound; freed below.
        let aside = unsafe { driver::malloc_async(self.stream, p.m * p.n * p.result.size()) };
        let aside = aside.map_err(refused("cuMemAllocAsync"))?;
        let ran = self.run(plan, &plan.algorithm, &Product { before_gelu: Some(aside), ..*p }, p.c);
        // SAFETY: allocated above, freed once, in the order of the stream.
        unsafe { driver::free_async(aside, self.stream) }.map_err(refused("cuMemFreeAsync"))?;
        ran
    }

    /// Runs a plan by one of the library's algorithms, with the result in `to`.
    fn run(&self, plan: &Plan, algorithm: &sys::cublasLtMatmulAlgo_t, p: &Product, to: u64) -> Result<()> {
        // The scalars have the type of the accumulation.
        let (one, beta) = (1f64, f64::from(u8::from(p.accumulate)));
        let (one_f32, beta_f32) = (one as f32, beta as f32);
        let scalars: [*const c_void; 2] = match p.factors {
            Element::F64 => [(&raw const one).cast(), (&raw const beta).cast()],
            _ => [(&raw const one_f32).cast(), (&raw const beta_f32).cast()],
        };
        // SAFETY: the plan's handles live as long as the multiplier; addresses are of arrays of the product's extents.
        unsafe {
            point(plan.description, p)?;
            result::matmul(
                self.handle,
                plan.description,
                scalars[0],
                scalars[1],
                p.b.address as *const c_void,
                plan.layouts[0],
                p.a.address as *const c_void,
                plan.layouts[1],
                p.c as *const c_void,
                plan.layouts[2],
                to as *mut c_void,
                plan.layouts[2],
                algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cast(),
            )
        }
        .map_err(|e| Error::Call { call: "cublasLtMatmul", reason: format!("{e:?} for {p:?}") })
    }

    /// The plan of a GELU alone: the algorithm is that of the product which also keeps what is before, for the same bits; where
    /// the library does not take it for less, all of that plan.
    fn plan_without(&mut self, p: &Product) -> Result<Plan> {
        let more = Product { before_gelu: Some(p.c), ..*p };
        let key = Key::of(&more);
        if !self.plans.contains_key(&key) {
            let plan = self.plan(&key, &more)?;
            self.plans.insert(key, plan);
        }
        let algorithm = self.plans[&key].algorithm;
        let alone = Plan { algorithm, ..self.described(&Key::of(p), p)? };
        if self.fits(&alone, &algorithm) {
            return Ok(alone);
        }
        Ok(Plan { algorithm, ..self.described(&key, &more)? })
    }

    /// A new plan: the fastest where products are tuned, else the one kept on disk, else the library's first.
    fn plan(&self, key: &Key, p: &Product) -> Result<Plan> {
        let (folder, name) = (cache::folder(), cache::key(&["product", &self.place, &format!("{key:?}")]));
        let mut plan = self.described(key, p)?;
        if !self.tuning
            && let Some(kept) = cache::get(folder.as_deref(), &name).and_then(|bytes| unpacked(&bytes))
            && self.fits(&plan, &kept)
        {
            plan.algorithm = kept;
            return Ok(plan);
        }
        let found = self.algorithms(&plan, key, if self.tuning { CANDIDATES } else { 1 })?;
        plan.algorithm = found[0];
        if self.tuning {
            plan.algorithm = self.fastest(&plan, &found, p)?;
            let bytes: Vec<u8> = plan.algorithm.data.iter().flat_map(|word| word.to_le_bytes()).collect();
            cache::keep(folder.as_deref(), &name, &bytes);
        }
        Ok(plan)
    }

    /// The library is column-major: it computes Cᵀ = Bᵀ·Aᵀ, and sees a row-major array as its transpose.
    fn described(&self, key: &Key, p: &Product) -> Result<Plan> {
        use sys::cublasLtMatmulDescAttributes_t as D;
        let [m, n, k] = key.extents;
        let compute = match key.types[0] {
            Element::F64 => sys::cublasComputeType_t::CUBLAS_COMPUTE_64F,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let scale = if key.types[0] == Element::F64 { Element::F64 } else { Element::F32 };
        let description =
            result::create_matmul_desc(compute, data_type(scale)).map_err(refused("cublasLtMatmulDescCreate"))?;
        // cublasOperation_t: 0 as it is, 1 transposed.
        let operation = |transposed: bool| i32::from(transposed);
        let stored = |rows: usize, columns: usize, transposed: bool, element| {
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            let (width, height) = (columns.max(1) as u64, rows.max(1) as u64);
            let made = result::create_matrix_layout(data_type(element), width, height, width as i64);
            made.map_err(refused("cublasLtMatrixLayoutCreate"))
        };
        let [a, b, c] = [
            stored(m, k, key.transposed[0], key.types[0])?,
            stored(k, n, key.transposed[1], key.types[0])?,
            stored(m, n, false, key.types[1])?,
        ];
        use sys::cublasLtEpilogue_t as E;
        let epilogue = match (key.gelu, key.keeps, key.bias) {
            (false, _, false) => None,
            (false, _, true) => Some(E::CUBLASLT_EPILOGUE_BIAS),
            (true, false, false) => Some(E::CUBLASLT_EPILOGUE_GELU),
            (true, false, true) => Some(E::CUBLASLT_EPILOGUE_GELU_BIAS),
            (true, true, false) => Some(E::CUBLASLT_EPILOGUE_GELU_AUX),
            (true, true, true) => Some(E::CUBLASLT_EPILOGUE_GELU_AUX_BIAS),
        };
        // SAFETY: the handles were made above; each attribute has the type that the library documents.
        unsafe {
            attribute(description, D::CUBLASLT_MATMUL_DESC_TRANSA, &operation(key.transposed[1]))?;
            attribute(description, D::CUBLASLT_MATMUL_DESC_TRANSB, &operation(key.transposed[0]))?;
            if let Some(epilogue) = epilogue {
                attribute(description, D::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            }
            if key.bias {
                attribute(description, D::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &data_type(key.types[0]))?;
            }
            if key.keeps {
                attribute(description, D::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &(n as i64))?;
                attribute(description, D::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, &data_type(key.types[1]))?;
            }
            point(description, p)?;
        }
        let algorithm = sys::cublasLtMatmulAlgo_t { data: [0; 8] };
        Ok(Plan { description, layouts: [b, a, c], algorithm, keeps: key.keeps })
    }

    /// The library's algorithms for a plan, the one that it deems best first: one at least.
    fn algorithms(&self, plan: &Plan, key: &Key, most: usize) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        use sys::cublasLtMatmulPreferenceAttributes_t as P;
        const CALL: &str = "cublasLtMatmulAlgoGetHeuristic";
        let preference = result::create_matmul_pref().map_err(refused("cublasLtMatmulPreferenceCreate"))?;
        let [b, a, c] = plan.layouts;
        let [aligned_a, aligned_b, aligned_c, ..] = key.aligned;
        // SAFETY: all zeros are a value of this plain structure.
        let mut found: Vec<sys::cublasLtMatmulHeuristicResult_t> = vec![unsafe { std::mem::zeroed() }; most];
        let mut count: c_int = 0;
        // SAFETY: the handles were made above; each attribute has the type that the library documents; the list has room for
        // as many results as are asked for.
        let searched = unsafe {
            preferred(preference, P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE_BYTES)?;
            preferred(preference, P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &aligned_b)?;
            preferred(preference, P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &aligned_a)?;
            preferred(preference, P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &aligned_c)?;
            preferred(preference, P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &aligned_c)?;
            let (most, list) = (most as c_int, found.as_mut_ptr());
            let (handle, d) = (self.handle, plan.description);
            sys::cublasLtMatmulAlgoGetHeuristic(handle, d, b, a, c, c, preference, most, list, &mut count).result()
        };
        // SAFETY: made above, used no more.
        unsafe { result::destroy_matmul_pref(preference) }.map_err(refused("cublasLtMatmulPreferenceDestroy"))?;
        searched.map_err(|e| Error::Call { call: CALL, reason: format!("{e:?} for {key:?}") })?;
        found.truncate(count.max(0) as usize);
        found.retain(|r| r.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        if found.is_empty() {
            return Err(Error::Call { call: CALL, reason: format!("no algorithm for {key:?}") });
        }
        Ok(found.into_iter().map(|r| r.algo).collect())
    }

    /// Whether the library still takes an algorithm for a plan.
    fn fits(&self, plan: &Plan, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
        let [b, a, c] = plan.layouts;
        // SAFETY: the handles are alive; the library writes one result, of which all zeros are a value.
        unsafe {
            let mut found: sys::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
            let checked =
                sys::cublasLtMatmulAlgoCheck(self.handle, plan.description, b, a, c, c, algorithm, &mut found).result();
            checked.is_ok() && found.workspaceSize <= WORKSPACE_BYTES
        }
    }

    /// The algorithm of the least median time. Where the product adds to C, the timed ones write elsewhere.
    fn fastest(
        &self,
        plan: &Plan,
        found: &[sys::cublasLtMatmulAlgo_t],
        p: &Product,
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let scratch = match p.accumulate {
            // SAFETY: the context is bound; freed below.
            true => match unsafe { driver::malloc_async(self.stream, p.m * p.n * p.result.size()) } {
                Ok(address) => Some(address),
                Err(_) => return Ok(found[0]),
            },
            false => None,
        };
        let timed: Result<Vec<f64>> =
            found.iter().map(|a| self.median(|| self.run(plan, a, p, scratch.unwrap_or(p.c)))).collect();
        if let Some(address) = scratch {
            // SAFETY: allocated above, freed once, in the order of the stream.
            unsafe { driver::free_async(address, self.stream) }.map_err(refused("cuMemFreeAsync"))?;
        }
        let timed = timed?;
        let fastest = (0..found.len()).min_by(|&i, &j| timed[i].total_cmp(&timed[j])).unwrap_or(0);
        Ok(found[fastest])
    }

    /// The median milliseconds of `f`; infinite where the library cannot run it after all.
    fn median(&self, f: impl Fn() -> Result<()>) -> Result<f64> {
        if f().is_err() {
            return Ok(f64::INFINITY);
        }
        let mut times = (0..TIMINGS)
            .map(|_| {
                let before = mark(self.stream)?;
                f()?;
                between([before, mark(self.stream)?])
            })
            .collect::<Result<Vec<f64>>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[TIMINGS / 2])
    }
}

/// An algorithm as it is kept on disk.
fn unpacked(bytes: &[u8]) -> Option<sys::cublasLtMatmulAlgo_t> {
    let (words, []) = bytes.as_chunks::<8>() else { return None };
    Some(sys::cublasLtMatmulAlgo_t {
        data: words.iter().map(|w| u64::from_le_bytes(*w)).collect::<Vec<_>>().try_into().ok()?,
    })
}

/// Tells a description where the bias is, and where what is before the GELU goes.
///
/// # Safety
/// The description is alive.
unsafe fn point(description: sys::cublasLtMatmulDesc_t, p: &Product) -> Result<()> {
    use sys::cublasLtMatmulDescAttributes_t as D;
    // SAFETY: by the contract of this function; both attributes are addresses.
    unsafe {
        if let Some(bias) = p.bias {
            attribute(description, D::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        if let Some(address) = p.before_gelu {
            attribute(description, D::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &address)?;
        }
    }
    Ok(())
}

fn data_type(element: Element) -> sys::cudaDataType {
    match element {
        Element::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Element::F32 => sys::cudaDataType::CUDA_R_32F,
        Element::F64 => sys::cudaDataType::CUDA_R_64F,
    }
}

/// # Safety
/// The description is alive, and the value has the attribute's type.
unsafe fn attribute<V>(
    d: sys::cublasLtMatmulDesc_t,
    which: sys::cublasLtMatmulDescAttributes_t,
    value: &V,
) -> Result<()> {
    // SAFETY: by the contract of this function.
    unsafe { result::set_matmul_desc_attribute(d, which, (value as *const V).cast(), size_of::<V>()) }
        .map_err(refused("cublasLtMatmulDescSetAttribute"))
}

/// # Safety
/// The preference is alive, and the value has the attribute's type.
unsafe fn preferred<V>(
    p: sys::cublasLtMatmulPreference_t,
    which: sys::cublasLtMatmulPreferenceAttributes_t,
    value: &V,
) -> Result<()> {
    // SAFETY: by the contract of this function.
    unsafe { result::set_matmul_pref_attribute(p, which, (value as *const V).cast(), size_of::<V>()) }
        .map_err(refused("cublasLtMatmulPreferenceSetAttribute"))
}
