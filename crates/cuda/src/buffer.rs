use crate::driver::Refusal;
use crate::memory::{Kind, current};
use crate::{Error, Gpu, Result};

/// Device memory of one owner, given back to the device's pool when dropped: work asked for before that still sees it.
#[derive(Debug)]
pub struct Buffer {
    gpu: Gpu,
    address: u64,
    bytes: usize,
    kind: Kind,
}

impl Buffer {
    /// Memory with unspecified contents.
    ///
    /// # Errors
    /// If the device has no more.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Buffer> {
        let (kind, what) = current();
        let full = || Error::OutOfMemory { what, requested: bytes / 1_000_000, usage: gpu.usage() };
        let address = match bytes {
            0 => 0,
            _ if !gpu.has_room(bytes) => return Err(full()),
            _ => gpu.driver().alloc(bytes).map_err(|refusal| match refusal {
                Refusal::Full => full(),
                Refusal::Error(e) => e,
            })?,
        };
        gpu.account().add(kind, bytes);
        Ok(Buffer { gpu: gpu.clone(), address, bytes, kind })
    }

    /// Memory with the contents of a slice.
    ///
    /// # Errors
    /// If the device has no more, or the copy fails.
    pub fn from_host(gpu: &Gpu, contents: &[u8]) -> Result<Buffer> {
        let buffer = Buffer::new(gpu, contents.len())?;
        buffer.upload(0, contents)?;
        Ok(buffer)
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The first byte's address on the device; 0 if there is none.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn at(&self, call: &'static str, offset: usize, bytes: usize) -> Result<u64> {
        if offset + bytes > self.bytes {
            let reason = format!("bytes {offset}..{} of {}", offset + bytes, self.bytes);
            return Err(Error::Call { call, reason });
        }
        Ok(self.address + offset as u64)
    }

    /// Writes bytes from the host.
    ///
    /// # Errors
    /// If they do not fit, or the copy fails.
    pub fn upload(&self, offset: usize, from: &[u8]) -> Result<()> {
        let to = self.at("upload", offset, from.len())?;
        if from.is_empty() { Ok(()) } else { self.gpu.driver().upload(to, from) }
    }

    /// Reads bytes to the host, after all work asked for before.
    ///
    /// # Errors
    /// If there are not so many, or the copy or the work before it fails.
    pub fn download(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        let from = self.at("download", offset, to.len())?;
        if to.is_empty() { Ok(()) } else { self.gpu.driver().download(from, to) }
    }

    /// Writes bytes of another buffer of the same device.
    ///
    /// # Errors
    /// If they do not fit, or the copy fails.
    pub fn copy_from(&self, offset: usize, other: &Buffer, start: usize, bytes: usize) -> Result<()> {
        let (to, from) = (self.at("copy", offset, bytes)?, other.at("copy", start, bytes)?);
        if bytes == 0 { Ok(()) } else { self.gpu.driver().copy(to, from, bytes) }
    }

    /// Sets bytes to zero.
    ///
    /// # Errors
    /// If there are not so many, or the device refuses.
    pub fn zero(&self, offset: usize, bytes: usize) -> Result<()> {
        let at = self.at("zero", offset, bytes)?;
        if bytes == 0 { Ok(()) } else { self.gpu.driver().zero(at, bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.gpu.account().remove(self.kind, self.bytes);
        if self.address != 0 {
            self.gpu.driver().free(self.address);
        }
    }
}
