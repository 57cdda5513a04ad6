//! Buffers between pages that no one may touch, each with a shadow that holds who touched its bytes last.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{EmulatorError, Result};

/// Bytes on both sides of a buffer that no one may touch: a whole number of pages of any size in use.
const GUARD: usize = 1 << 20;
/// Alignment of buffers, in bytes.
const ALIGNMENT: usize = 16;
const PAGE: usize = 1 << 16;
/// Bytes of shadow for each 16 bytes: `Shadow` of `state.h`.
const SHADOW: usize = 260;
/// What fresh memory holds: a NaN of every type.
const FRESH: u8 = 0xff;

/// Memory that kernels may touch: `Region` of `state.h`.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Region {
    start: u64,
    bytes: u64,
    shadow: *mut c_void,
}

/// A mapping of its own.
#[derive(Debug)]
struct Mapping {
    start: usize,
    bytes: usize,
}

impl Mapping {
    /// Zeros, of which the first and last `guard` bytes are not to be touched.
    fn new(bytes: usize, guard: usize) -> Option<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: new private memory, at an address of the system's choice, that overlaps no other.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let mapping = Mapping { start: start as usize, bytes };
        // SAFETY: within the memory just mapped.
        let opened = unsafe { libc::mprotect(start.byte_add(guard), bytes - 2 * guard, protection) };
        (opened == 0).then_some(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and buffers in it are no longer known.
        unsafe { libc::munmap(self.start as *mut c_void, self.bytes) };
    }
}

#[derive(Debug)]
struct Buffer {
    bytes: usize,
    shadow: Mapping,
    _mapping: Mapping,
}

/// All live buffers by address.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<BTreeMap<usize, Buffer>>);

impl Memory {
    fn buffers(&self) -> MutexGuard<'_, BTreeMap<usize, Buffer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn alloc(&self, bytes: usize) -> Result<u64> {
        if bytes == 0 {
            return Ok(0);
        }
        let full = || EmulatorError::Full { bytes };
        let room = bytes.checked_next_multiple_of(PAGE).ok_or_else(full)?;
        let shadow = (room / 16).checked_mul(SHADOW).and_then(|bytes| Mapping::new(bytes, 0)).ok_or_else(full)?;
        let mapping = Mapping::new(room + 2 * GUARD, GUARD).ok_or_else(full)?;
        let open = mapping.start + GUARD;
        // SAFETY: the open part of the new mapping.
        unsafe { (open as *mut u8).write_bytes(FRESH, room) };
        let address = open + room - bytes.next_multiple_of(ALIGNMENT);
        self.buffers().insert(address, Buffer { bytes, shadow, _mapping: mapping });
        Ok(address as u64)
    }

    pub fn free(&self, address: u64) {
        self.buffers().remove(&(address as usize));
    }

    /// All live buffers by address.
    pub fn regions(&self) -> Vec<Region> {
        let region = |(&start, buffer): (&usize, &Buffer)| Region {
            start: start as u64,
            bytes: buffer.bytes as u64,
            shadow: buffer.shadow.start as *mut c_void,
        };
        self.buffers().iter().map(region).collect()
    }

    pub fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        let _live = self.within(to, from.len())?;
        // SAFETY: within one live buffer, which cannot be freed while the lock is held; no reference into buffers exists.
        unsafe { (to as *mut u8).copy_from(from.as_ptr(), from.len()) };
        Ok(())
    }

    pub fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let _live = self.within(from, to.len())?;
        // SAFETY: within one live buffer, all of it initialised, which cannot be freed while the lock is held.
        unsafe { to.as_mut_ptr().copy_from(from as *const u8, to.len()) };
        Ok(())
    }

    fn within(&self, address: u64, bytes: usize) -> Result<MutexGuard<'_, BTreeMap<usize, Buffer>>> {
        let buffers = self.buffers();
        let at = address as usize;
        let fits =
            |(start, buffer): (&usize, &Buffer)| at - start <= buffer.bytes && bytes <= buffer.bytes - (at - start);
        match bytes == 0 || buffers.range(..=at).next_back().is_some_and(fits) {
            true => Ok(buffers),
            false => Err(EmulatorError::Outside { address, bytes }),
        }
    }
}
