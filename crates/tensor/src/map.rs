//! Files mapped into memory, and tensors as windows of them.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::Mmap;

use crate::{Element, Error, Result};

static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// Bytes of files that are mapped now. They are no private memory: the system reads a page when it is touched and drops
/// it when memory is short.
pub fn mapped_bytes() -> usize {
    MAPPED.load(Ordering::Relaxed)
}

/// A whole file mapped for reading; tensors that are windows of it keep it mapped.
///
/// Who shortens the file meanwhile makes the program fault when it touches what is gone, as with every reader that maps
/// memory. Writers here never do: they write aside and rename.
#[derive(Debug)]
pub struct FileMap {
    map: Mmap,
}

impl FileMap {
    /// Maps a file.
    ///
    /// # Errors
    /// If it cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Arc<Self>> {
        let io = |source| Error::Io { path: path.display().to_string(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only, lives as long as the slices borrowed from it, and nothing here writes to a file
        // in place. A file that another process shortens faults, which every memory-mapping reader accepts.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        MAPPED.fetch_add(map.len(), Ordering::Relaxed);
        Ok(Arc::new(FileMap { map }))
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        MAPPED.fetch_sub(self.map.len(), Ordering::Relaxed);
    }
}

/// Elements inside a mapped file, in the machine's own byte order and aligned.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    map: Arc<FileMap>,
    range: Range<usize>,
}

impl Window {
    /// The window, if its bytes can be read as elements where they are.
    pub(crate) fn new<T: Element>(map: &Arc<FileMap>, range: Range<usize>) -> Option<Self> {
        let bytes = map.bytes().get(range.clone())?;
        let readable = cfg!(target_endian = "little") && bytemuck::try_cast_slice::<u8, T>(bytes).is_ok();
        readable.then(|| Window { map: map.clone(), range })
    }

    /// The elements. A window is made only where the cast succeeds, and nothing in it changes after.
    pub(crate) fn elements<T: Element>(&self) -> &[T] {
        bytemuck::try_cast_slice(&self.map.bytes()[self.range.clone()]).unwrap_or(&[])
    }
}
