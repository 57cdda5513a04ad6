//! The real device, through NVIDIA's driver and libraries.

mod compiler;
mod convolution;
mod libraries;
mod matmul;

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::convolution::Convolution;
use crate::driver::{Driver, Module, Refusal};
use crate::error::refused;
use crate::product::Product;
use crate::tensor_map::{TensorMap, Tiling};
use crate::{Error, Properties, Result, cache};
pub use compiler::{Compiled, compile_for};
use compiler::{Compiler, Target};
use convolution::Convolver;
use matmul::Multiplier;

/// The first compute capability that has the instructions of the portable kernels.
const OLDEST: (i32, i32) = (8, 0);
/// Dynamic shared memory above this many bytes is asked for by an attribute of the kernel: of the 48 KiB that every kernel may
/// have, its arrays of fixed size may take the rest.
const PLAIN_SHARED_BYTES: usize = 16 * 1024;

/// Elements of a row of a box that is swizzled by 64 bytes.
const NARROW_BOX: u32 = 32;

/// Handles of the driver, which any thread may use.
#[derive(Debug)]
struct Handles {
    context: sys::CUcontext,
    stream: sys::CUstream,
    pool: sys::CUmemoryPool,
}

// SAFETY: the driver's handles are not bound to a thread; calls bind the context to theirs first.
unsafe impl Send for Handles {}
// SAFETY: as above; the driver locks what its calls share.
unsafe impl Sync for Handles {}

#[derive(Debug)]
pub(crate) struct Nvidia {
    properties: Properties,
    handles: Arc<Handles>,
    compiler: Compiler,
    multiplier: Mutex<Multiplier>,
    /// Made when a convolution is first asked for; nothing where the library is absent.
    convolver: OnceLock<Option<Mutex<Convolver>>>,
}

impl Handles {
    /// Makes the device's context that of the calling thread.
    fn bind(&self) -> Result<()> {
        // SAFETY: the context was retained when the device was opened and is never released.
        unsafe { result::ctx::set_current(self.context) }.map_err(refused("cuCtxSetCurrent"))
    }

    fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as the handles.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("work on the device"))
    }
}

/// A library's version, of which it writes 10000·major + 100·minor + patch.
fn dotted(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// An error of a call that may report what an earlier kernel did.
fn failed(call: &'static str) -> impl FnOnce(DriverError) -> Error {
    move |e| {
        let text = e.error_string().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        Error::Call { call, reason: format!("{:?} ({text})", e.0) }
    }
}

impl Nvidia {
    pub(crate) fn open(ordinal: usize) -> Result<Self> {
        libraries::driver()?;
        result::init().map_err(|_| Error::NoDriver)?;
        let count = result::device::get_count().map_err(refused("cuDeviceGetCount"))? as usize;
        if ordinal >= count {
            return Err(Error::NoDevice { ordinal, count });
        }
        let device = result::device::get(ordinal as c_int).map_err(refused("cuDeviceGet"))?;
        let properties = properties(device)?;
        refuse_old_device(&properties)?;
        libraries::compiler()?;
        libraries::products()?;
        let compiler = Compiler::new(Target::of(properties.capability)?)?;
        // SAFETY: the device comes from the driver; context, stream and pool are made and kept here.
        let handles = unsafe { open(device) }?;
        let multiplier = Mutex::new(Multiplier::new(handles.stream, &properties.name)?);
        let handles = Arc::new(handles);
        Ok(Nvidia { properties, handles, compiler, multiplier, convolver: OnceLock::new() })
    }

    /// With the context bound to this thread.
    fn convolver(&self) -> Result<Option<MutexGuard<'_, Convolver>>> {
        self.handles.bind()?;
        let made = self.convolver.get_or_init(|| {
            // A library that is there and does not start is as one that is absent.
            let started = libraries::convolutions().and_then(|()| Convolver::new(self.handles.stream));
            started.ok().map(Mutex::new)
        });
        Ok(made.as_ref().map(|m| m.lock().unwrap_or_else(|e| e.into_inner())))
    }

    fn multiplier(&self) -> MutexGuard<'_, Multiplier> {
        self.multiplier.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn refuse_old_device(properties: &Properties) -> Result<()> {
    let (major, minor) = properties.capability;
    if (major, minor) < OLDEST {
        return Err(Error::Architecture { name: properties.name.clone(), major, minor });
    }
    Ok(())
}

fn properties(device: sys::CUdevice) -> Result<Properties> {
    use sys::CUdevice_attribute as A;
    // SAFETY: the device comes from the driver.
    let attribute = |a| unsafe { result::device::get_attribute(device, a) }.map_err(refused("cuDeviceGetAttribute"));
    Ok(Properties {
        name: result::device::get_name(device).map_err(refused("cuDeviceGetName"))?,
        capability: (
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: as above.
        memory: unsafe { result::device::total_mem(device) }.map_err(refused("cuDeviceTotalMem"))?,
        multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
        shared: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
    })
}

/// # Safety
/// `device` is one of the driver's.
unsafe fn open(device: sys::CUdevice) -> Result<Handles> {
    // SAFETY: by the contract of this function; each handle is used with the device that it was made for.
    unsafe {
        let context = result::primary_ctx::retain(device).map_err(failed("cuDevicePrimaryCtxRetain"))?;
        result::ctx::set_current(context).map_err(refused("cuCtxSetCurrent"))?;
        let stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(refused("cuStreamCreate"))?;
        let pool = result::device::get_mem_pool(device).map_err(refused("cuDeviceGetMemPool"))?;
        // Freed memory stays with the pool: a step asks for the same amounts again and again.
        let mut keep = u64::MAX;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut keep).cast())
            .result()
            .map_err(refused("cuMemPoolSetAttribute"))?;
        Ok(Handles { context, stream, pool })
    }
}

impl Driver for Nvidia {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn software(&self) -> String {
        let [driver, compiler] = self.compiler.versions();
        let convolutions = match libraries::convolutions() {
            Ok(()) => format!("cuDNN {}", convolution::version()),
            Err(_) => "no cuDNN".into(),
        };
        format!("driver of CUDA {driver}, NVRTC {compiler}, cuBLASLt {}, {convolutions}", matmul::version())
    }

    fn alloc(&self, bytes: usize) -> std::result::Result<u64, Refusal> {
        let handles = &self.handles;
        handles.bind().map_err(Refusal::Error)?;
        // SAFETY: the stream lives as long as the handles.
        let alloc = || unsafe { result::malloc_async(handles.stream, bytes) };
        let full = |e: &DriverError| e.0 == sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY;
        match alloc() {
            Ok(address) => Ok(address),
            Err(e) if full(&e) => {
                // What the pool keeps may be in pieces of other sizes: give all that is free back and try once more.
                handles.synchronize().map_err(Refusal::Error)?;
                // SAFETY: the pool is the device's own.
                let trimmed = unsafe { sys::cuMemPoolTrimTo(handles.pool, 0) }.result();
                trimmed.map_err(|e| Refusal::Error(refused("cuMemPoolTrimTo")(e)))?;
                alloc().map_err(|e| if full(&e) { Refusal::Full } else { Refusal::Error(failed("cuMemAllocAsync")(e)) })
            }
            Err(e) => Err(Refusal::Error(failed("cuMemAllocAsync")(e))),
        }
    }

    fn free(&self, address: u64) {
        // Where the device is lost, so is its memory: there is nobody to tell, and nothing to do.
        if self.handles.bind().is_ok() {
            // SAFETY: the address came from `alloc` and is freed once, in the order of the stream.
            let _ = unsafe { result::free_async(address, self.handles.stream) };
        }
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        self.handles.bind()?;
        // SAFETY: the caller's buffer holds so many bytes; from pageable memory the driver reads before it returns.
        unsafe { result::memcpy_htod_async(to, from, self.handles.stream) }.map_err(failed("cuMemcpyHtoDAsync"))
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.handles.bind()?;
        // SAFETY: the caller's buffer holds so many bytes, and the host's slice lives until the copy is done.
        unsafe { result::memcpy_dtoh_async(to, from, self.handles.stream) }.map_err(failed("cuMemcpyDtoHAsync"))?;
        self.handles.synchronize()
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.handles.bind()?;
        // SAFETY: the caller's buffers hold so many bytes.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.handles.stream) }.map_err(failed("cuMemcpyDtoDAsync"))
    }

    fn zero(&self, to: u64, bytes: usize) -> Result<()> {
        self.handles.bind()?;
        // SAFETY: the caller's buffer holds so many bytes.
        unsafe { result::memset_d8_async(to, 0, bytes, self.handles.stream) }.map_err(failed("cuMemsetD8Async"))
    }

    fn synchronize(&self) -> Result<()> {
        self.handles.synchronize()
    }

    fn load(&self, name: &str, text: &str, defines: &[(String, String)]) -> Result<Arc<dyn Module>> {
        let code = self.compiler.compiled(cache::folder().as_deref(), name, text, defines)?;
        self.handles.bind()?;
        // SAFETY: the code is a whole image that the compiler made, or PTX that ends with a zero.
        let module = unsafe { result::module::load_data(code.as_ptr().cast()) }.map_err(failed("cuModuleLoadData"))?;
        Ok(Arc::new(Kernels { module, handles: self.handles.clone(), functions: Mutex::default() }))
    }

    fn multiply(&self, product: &Product) -> Result<()> {
        self.handles.bind()?;
        self.multiplier().multiply(product)
    }

    fn tune(&self, on: bool) {
        self.multiplier().tuning = on;
    }

    fn convolves(&self, convolution: &Convolution) -> Result<bool> {
        Ok(self.convolver()?.is_some_and(|mut c| c.takes(convolution)))
    }

    fn convolve(&self, convolution: &Convolution, addresses: [u64; 3]) -> Result<()> {
        match self.convolver()? {
            Some(mut convolver) => convolver.convolve(convolution, addresses),
            None => Err(Error::Call { call: "cuDNN", reason: "the library is absent".into() }),
        }
    }

    fn tensor_map(&self, t: &Tiling) -> Result<TensorMap> {
        self.handles.bind()?;
        let mut map = TensorMap([0; 16]);
        let ones = vec![1u32; t.tile.len()];
        let swizzle = match t.tile.first() {
            Some(&NARROW_BOX) => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        // SAFETY: the map has the size and alignment of the driver's type; the lists have one entry an axis (strides one less).
        unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                t.tile.len() as u32,
                t.address as *mut c_void,
                t.extents.as_ptr(),
                t.strides.as_ptr(),
                t.tile.as_ptr(),
                ones.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(refused("cuTensorMapEncodeTiled"))?;
        Ok(map)
    }

    fn mark(&self) -> Result<u64> {
        self.handles.bind()?;
        mark(self.handles.stream)
    }

    fn between(&self, marks: [u64; 2]) -> Result<f64> {
        self.handles.bind()?;
        between(marks)
    }
}

/// A mark in the order of a stream's work; its context is bound.
fn mark(stream: sys::CUstream) -> Result<u64> {
    let mut event = std::ptr::null_mut();
    // SAFETY: the event is made here; the stream lives as long as the device.
    unsafe {
        sys::cuEventCreate(&mut event, 0).result().map_err(refused("cuEventCreate"))?;
        sys::cuEventRecord(event, stream).result().map_err(refused("cuEventRecord"))?;
    }
    Ok(event as u64)
}

/// Milliseconds between two marks, once their work is done; uses them up.
fn between(marks: [u64; 2]) -> Result<f64> {
    let [from, to] = marks.map(|mark| mark as sys::CUevent);
    let mut milliseconds = 0f32;
    // SAFETY: both events were made by `mark`, were recorded, and are used no more afterwards.
    unsafe {
        sys::cuEventSynchronize(to).result().map_err(failed("work on the device"))?;
        let measured = sys::cuEventElapsedTime_v2(&mut milliseconds, from, to).result();
        measured.map_err(refused("cuEventElapsedTime"))?;
        sys::cuEventDestroy_v2(from).result().map_err(refused("cuEventDestroy"))?;
        sys::cuEventDestroy_v2(to).result().map_err(refused("cuEventDestroy"))?;
    }
    Ok(f64::from(milliseconds))
}

struct Kernels {
    module: sys::CUmodule,
    handles: Arc<Handles>,
    /// Functions found so far, with the dynamic shared memory that they may have.
    functions: Mutex<HashMap<String, (Function, usize)>>,
}

#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: a function's handle is not bound to a thread.
unsafe impl Send for Function {}
// SAFETY: as the handles of the device.
unsafe impl Send for Kernels {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for Kernels {}

impl Kernels {
    fn function(&self, kernel: &str, shared: usize) -> Result<sys::CUfunction> {
        let mut functions = self.functions.lock().unwrap_or_else(|e| e.into_inner());
        let (function, allowed) = match functions.get(kernel) {
            Some(&found) => found,
            None => {
                let name = CString::new(kernel).map_err(refused("a kernel's name"))?;
                // SAFETY: the module is loaded for the life of the process.
                let f = unsafe { result::module::get_function(self.module, name) };
                let missing = |e| Error::Call { call: "cuModuleGetFunction", reason: format!("{kernel}: {e:?}") };
                (Function(f.map_err(missing)?), PLAIN_SHARED_BYTES)
            }
        };
        if shared > allowed {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to the loaded module.
            unsafe { result::function::set_function_attribute(function.0, attribute, shared as c_int) }.map_err(
                |e| Error::Call { call: "cuFuncSetAttribute", reason: format!("{kernel}: {shared} bytes: {e:?}") },
            )?;
        }
        functions.insert(kernel.into(), (function, allowed.max(shared)));
        Ok(function.0)
    }
}

impl Module for Kernels {
    fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        args: &mut [*mut c_void],
    ) -> Result<()> {
        self.handles.bind()?;
        let function = self.function(kernel, shared)?;
        let (grid, block) = ((grid[0], grid[1], grid[2]), (threads, 1, 1));
        // SAFETY: the arguments point to values of the kernel's parameters, as its launcher lists them.
        unsafe { result::launch_kernel(function, grid, block, shared as u32, self.handles.stream, args) }
            .map_err(|e| Error::Call { call: "cuLaunchKernel", reason: format!("{kernel}: {e:?}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_written_with_dots() {
        assert_eq!((dotted(130_104), dotted(91_900)), ("13.1.4".into(), "9.19.0".into()));
    }

    #[test]
    fn a_device_without_the_kernels_instructions_is_refused_by_name() {
        let of = |name: &str, capability| Properties {
            name: name.into(),
            capability,
            memory: 1 << 34,
            multiprocessors: 40,
            shared: 64 << 10,
        };
        assert!(refuse_old_device(&of("A100", (8, 0))).is_ok() && refuse_old_device(&of("B200", (10, 0))).is_ok());
        let e = refuse_old_device(&of("Tesla T4", (7, 5))).unwrap_err().to_string();
        assert!(e.contains("Tesla T4") && e.contains("7.5") && e.contains("8.0 or newer"), "{e}");
    }
}
