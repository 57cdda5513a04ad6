//! Matrix products by cuBLASLt, with the library's plan for each shape kept.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUstream;

use crate::error::refused;
use crate::product::{Element, Product};
use crate::{Error, Result};

/// Scratch memory of a product: what the library asks for on Hopper.
const WORKSPACE_BYTES: usize = 64 << 20;
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
    /// Alignment in bytes of A, B and C.
    aligned: [u32; 3],
}

#[derive(Debug)]
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    /// Of the factors and of C, as the column-major library sees them.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

#[derive(Debug)]
pub(super) struct Multiplier {
    handle: sys::cublasLtHandle_t,
    stream: CUstream,
    workspace: u64,
    plans: HashMap<Key, Plan>,
}

// SAFETY: the library's handles are not bound to a thread, and a lock is around the whole.
unsafe impl Send for Multiplier {}

impl Multiplier {
    /// With the context of the device bound to this thread.
    pub(super) fn new(stream: CUstream) -> Result<Self> {
        let handle = result::create_handle().map_err(refused("cublasLtCreate"))?;
        // SAFETY: the context is bound; the memory is kept for the life of the process.
        let workspace =
            unsafe { cudarc::driver::result::malloc_sync(WORKSPACE_BYTES) }.map_err(refused("cuMemAlloc"))?;
        Ok(Multiplier { handle, stream, workspace, plans: HashMap::new() })
    }

    pub(super) fn multiply(&mut self, p: &Product) -> Result<()> {
        let aligned = |address: u64| 1u32 << (address | ALIGNMENT).trailing_zeros();
        let key = Key {
            extents: [p.m, p.n, p.k],
            transposed: [p.a.transposed, p.b.transposed],
            types: [p.factors, p.result],
            accumulate: p.accumulate,
            bias: p.bias.is_some(),
            aligned: [aligned(p.a.address), aligned(p.b.address), aligned(p.c)],
        };
        if !self.plans.contains_key(&key) {
            let plan = self.plan(&key)?;
            self.plans.insert(key, plan);
        }
        let plan = &self.plans[&key];
        // The scalars have the type of the accumulation.
        let (one, beta) = (1f64, f64::from(u8::from(p.accumulate)));
        let (one_f32, beta_f32) = (one as f32, beta as f32);
        let scalars: [*const c_void; 2] = match p.factors {
            Element::F64 => [(&raw const one).cast(), (&raw const beta).cast()],
            _ => [(&raw const one_f32).cast(), (&raw const beta_f32).cast()],
        };
        // SAFETY: the plan's handles live as long as the multiplier; addresses are of arrays of the product's extents.
        unsafe {
            if let Some(bias) = p.bias {
                attribute(
                    plan.description,
                    sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                    &bias,
                )?;
            }
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
                p.c as *mut c_void,
                plan.layouts[2],
                &plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cast(),
            )
        }
        .map_err(|e| Error::Call { call: "cublasLtMatmul", reason: format!("{e:?} for {p:?}") })
    }

    /// The library is column-major: it computes Cᵀ = Bᵀ·Aᵀ, and sees a row-major array as its transpose.
    fn plan(&self, key: &Key) -> Result<Plan> {
        use sys::cublasLtMatmulDescAttributes_t as D;
        use sys::cublasLtMatmulPreferenceAttributes_t as P;
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
        let preference = result::create_matmul_pref().map_err(refused("cublasLtMatmulPreferenceCreate"))?;
        // SAFETY: the handles were made above; each attribute has the type that the library documents.
        let found = unsafe {
            attribute(description, D::CUBLASLT_MATMUL_DESC_TRANSA, &operation(key.transposed[1]))?;
            attribute(description, D::CUBLASLT_MATMUL_DESC_TRANSB, &operation(key.transposed[0]))?;
            if key.bias {
                let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
                attribute(description, D::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
                attribute(description, D::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &data_type(key.types[0]))?;
            }
            preferred(preference, P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE_BYTES)?;
            let [aligned_a, aligned_b, aligned_c] = key.aligned;
            preferred(preference, P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &aligned_b)?;
            preferred(preference, P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &aligned_a)?;
            preferred(preference, P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &aligned_c)?;
            preferred(preference, P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &aligned_c)?;
            result::get_matmul_algo_heuristic(self.handle, description, b, a, c, c, preference)
        };
        // SAFETY: made above, used no more.
        unsafe { result::destroy_matmul_pref(preference) }.map_err(refused("cublasLtMatmulPreferenceDestroy"))?;
        let none = |e| Error::Call { call: "cublasLtMatmulAlgoGetHeuristic", reason: format!("{e:?} for {key:?}") };
        Ok(Plan { description, layouts: [b, a, c], algorithm: found.map_err(none)?.algo })
    }
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
