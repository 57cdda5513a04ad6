//! Buffers between pages that no one may touch.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{EmulatorError, Result};

/// Bytes on both sides of a buffer that no one may touch: a whole number of pages of any size in use.
const GUARD: usize = 1 << 20;
/// Alignment of buffers, in bytes.
const ALIGNMENT: usize = 16;
const PAGE: usize = 1 << 16;
/// Bytes before a buffer that are looked at after a launch.
const MARGIN: usize = 256;
/// What fresh memory holds: a NaN of every type.
const FRESH: u8 = 0xff;

#[derive(Clone, Copy, Debug)]
struct Buffer {
    bytes: usize,
    /// The whole mapping, guards included.
    mapped: (usize, usize),
}

impl Buffer {
    /// The first and last addresses that may be touched, the buffer and what alignment leaves around it.
    fn open(&self) -> (usize, usize) {
        (self.mapped.0 + GUARD, self.mapped.0 + self.mapped.1 - GUARD)
    }
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
        let mapped = room.checked_add(2 * GUARD).ok_or_else(full)?;
        // SAFETY: a new private mapping, at an address of the system's choice, that overlaps no other.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(full());
        }
        // SAFETY: within the mapping just made; opened before it is written.
        unsafe {
            let open = start.byte_add(GUARD);
            if libc::mprotect(open, room, libc::PROT_READ | libc::PROT_WRITE) != 0 {
                libc::munmap(start, mapped);
                return Err(full());
            }
            open.cast::<u8>().write_bytes(FRESH, room);
        }
        let address = start as usize + GUARD + room - bytes.next_multiple_of(ALIGNMENT);
        self.buffers().insert(address, Buffer { bytes, mapped: (start as usize, mapped) });
        Ok(address as u64)
    }

    pub fn free(&self, address: u64) {
        if let Some(buffer) = self.buffers().remove(&(address as usize)) {
            // SAFETY: the mapping is this buffer's own, and the buffer is no longer known.
            unsafe { libc::munmap(buffer.mapped.0 as *mut _, buffer.mapped.1) };
        }
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
        let fits = |(start, buffer): (&usize, &Buffer)| at - start <= buffer.bytes && bytes <= buffer.bytes - (at - start);
        match bytes == 0 || buffers.range(..=at).next_back().is_some_and(fits) {
            true => Ok(buffers),
            false => Err(EmulatorError::Outside { address, bytes }),
        }
    }

    /// The buffer in whose guards an address lies, in words.
    pub fn near(&self, address: u64) -> Option<String> {
        let at = address as usize;
        let buffers = self.buffers();
        let (start, buffer) = buffers.iter().find(|(_, b)| (b.mapped.0..b.mapped.0 + b.mapped.1).contains(&at))?;
        Some(place(at, *start, buffer))
    }

    /// A buffer with a byte beside it that a kernel wrote, in words.
    pub fn damaged(&self) -> Option<String> {
        let buffers = self.buffers();
        buffers.iter().find_map(|(&start, buffer)| {
            let (first, last) = buffer.open();
            let beside = [(first.max(start.saturating_sub(MARGIN)), start), (start + buffer.bytes, last)];
            // SAFETY: the open part of a live mapping, all of it initialised; launches and buffers are locked.
            let written = |(from, to)| (from..to).find(|&at| unsafe { *(at as *const u8) } != FRESH);
            beside.into_iter().find_map(written).map(|at| place(at, start, buffer))
        })
    }
}

fn place(at: usize, start: usize, buffer: &Buffer) -> String {
    match at < start {
        true => format!("{} bytes before a buffer of {}", start - at, buffer.bytes),
        false => format!("byte {} of a buffer of {}", at - start, buffer.bytes),
    }
}
