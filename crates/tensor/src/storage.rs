//! Host memory: recycled buffers and their accounting.
//!
//! A training step allocates the same large buffers again and again. The system allocator returns them to the
//! kernel in between, and faulting their pages in again costs as much as the arithmetic on them; so freed
//! buffers of 64 KiB and more go to a shelf by size and come back from there.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};

use half::bf16;

use crate::dtype::Element;
use crate::map::Window;

/// Buffers below this many bytes are left to the system allocator, which does not give them back.
const SHELF_MIN_BYTES: usize = 64 * 1024;
/// Live and shelved bytes together stay below the highest number of live bytes seen, or below this where that is less.
const SHELF_FLOOR_BYTES: usize = 64 << 20;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static SHELVED: AtomicUsize = AtomicUsize::new(0);

/// Tells the system allocator to keep freed memory instead of returning it to the kernel.
///
/// Matrix products and reductions take scratch from the allocator at every call; returned pages would be cleared and
/// mapped again each time. Call it once, when a program that computes starts. Elsewhere than on glibc it does nothing.
#[allow(unsafe_code)]
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Above any scratch buffer: the most that mallopt takes is an int.
        const KEPT_BYTES: i32 = 1 << 30;
        // SAFETY: mallopt only sets parameters of the allocator, under its own lock; any value is valid.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_BYTES);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        }
    }
}

type Shelf = HashMap<(TypeId, usize), Vec<Box<dyn Any + Send>>>;
static SHELF: LazyLock<Mutex<Shelf>> = LazyLock::new(Default::default);

/// Bytes of private tensor memory in use now (mapped files aside), and the most since the last [`reset_peak`].
pub fn memory() -> (usize, usize) {
    (LIVE.load(Ordering::Relaxed), PEAK.load(Ordering::Relaxed))
}

/// Starts a new measurement of the peak, from what is live now.
pub fn reset_peak() {
    PEAK.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// A buffer of host memory that is recycled when dropped, or a window of a mapped file that is copied when written.
#[derive(Debug)]
pub struct Buffer<T: Element>(Memory<T>);

#[derive(Debug)]
enum Memory<T> {
    Owned(Vec<T>),
    Mapped(Window),
}

impl<T: Element> Buffer<T> {
    /// A buffer whose contents are unspecified (initialised, but stale).
    pub fn scratch(len: usize) -> Self {
        let bytes = len * size_of::<T>();
        track_alloc(bytes);
        if bytes >= SHELF_MIN_BYTES
            && let Some(v) = take_from_shelf::<T>(len)
        {
            return Buffer(Memory::Owned(v));
        }
        Buffer(Memory::Owned(vec![T::default(); len]))
    }

    /// A buffer that takes over a vector.
    pub fn from_vec(v: Vec<T>) -> Self {
        track_alloc(v.len() * size_of::<T>());
        Buffer(Memory::Owned(v))
    }

    pub(crate) fn mapped(window: Window) -> Self {
        Buffer(Memory::Mapped(window))
    }

    /// Whether the elements are those of a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.0, Memory::Mapped(_))
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        match &self.0 {
            Memory::Owned(v) => v,
            Memory::Mapped(window) => window.elements(),
        }
    }

    /// The elements, to write; copied first where they are those of a mapped file.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        if self.is_mapped() {
            *self = Self::copy_of(self.as_slice());
        }
        match &mut self.0 {
            Memory::Owned(v) => v,
            Memory::Mapped(_) => &mut [],
        }
    }

    fn copy_of(elements: &[T]) -> Self {
        let mut copy = Self::scratch(elements.len());
        copy.as_mut_slice().copy_from_slice(elements);
        copy
    }
}

impl<T: Element> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        match &self.0 {
            Memory::Owned(v) => Self::copy_of(v),
            Memory::Mapped(window) => Self::mapped(window.clone()),
        }
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        let Memory::Owned(v) = &mut self.0 else { return };
        let bytes = v.len() * size_of::<T>();
        LIVE.fetch_sub(bytes, Ordering::Relaxed);
        if bytes < SHELF_MIN_BYTES {
            return;
        }
        let room = PEAK.load(Ordering::Relaxed).max(SHELF_FLOOR_BYTES);
        let shelved = SHELVED.load(Ordering::Relaxed);
        if LIVE.load(Ordering::Relaxed) + shelved + bytes > room {
            return;
        }
        // A poisoned shelf only means that a thread panicked: the buffer then goes to the system allocator.
        if let Ok(mut shelf) = SHELF.lock() {
            SHELVED.fetch_add(bytes, Ordering::Relaxed);
            let key = (TypeId::of::<T>(), v.len());
            shelf.entry(key).or_default().push(Box::new(std::mem::take(v)));
        }
    }
}

fn track_alloc(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

fn take_from_shelf<T: Element>(len: usize) -> Option<Vec<T>> {
    let boxed = SHELF.lock().ok()?.get_mut(&(TypeId::of::<T>(), len))?.pop()?;
    SHELVED.fetch_sub(len * size_of::<T>(), Ordering::Relaxed);
    boxed.downcast::<Vec<T>>().ok().map(|v| *v)
}

/// Host memory of one tensor.
#[derive(Clone, Debug)]
pub enum CpuStorage {
    /// Single precision.
    F32(Buffer<f32>),
    /// Double precision.
    F64(Buffer<f64>),
    /// bfloat16.
    Bf16(Buffer<bf16>),
}

/// Memory of one tensor, on one device.
#[derive(Debug)]
pub enum Storage {
    /// Host memory.
    Cpu(CpuStorage),
    /// A GPU's memory.
    Cuda(crate::cuda::CudaStorage),
}
