//! Runs portable kernels on the host: their very source, compiled by the system's C++ compiler behind a stand-in for
//! the device (`emulator/*.h`; `device.h` says what it catches).
//!
//! For tests, where no GPU is at hand. Kernels run to their end within [`Emulator::launch`], one launch at a time in a
//! process. What a kernel does wrong comes back as an error that names kernel, block, thread and source line.

mod compiler;
mod memory;

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use compiler::{Compiler, OWN};
use memory::{Memory, Region};

/// Why a kernel was not emulated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EmulatorError {
    #[error(
        "no C++ compiler to emulate kernels with: {command} did not start ({source}). Install g++, or name one in CXX"
    )]
    NoCompiler { command: String, source: std::io::Error },
    #[error("the kernels of {name} do not compile for the host:\n{log}")]
    Compile { name: String, log: String },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Load { path: PathBuf, source: libloading::Error },
    #[error("{name} has no kernel {kernel}; it has {}", .known.join(", "))]
    NoKernel { name: String, kernel: String, known: Vec<String> },
    #[error("{kernel} has {expected} parameters, not {got}")]
    Arguments { kernel: String, expected: usize, got: usize },
    #[error("the host has no {bytes} bytes for a buffer")]
    Full { bytes: usize },
    #[error("{bytes} bytes at {address:#x} are not within a buffer")]
    Outside { address: u64, bytes: usize },
    /// A defect of the kernel.
    #[error("{0}")]
    Kernel(String),
}

pub(crate) type Result<T> = std::result::Result<T, EmulatorError>;

type Run =
    unsafe extern "C" fn(*mut Host, *const c_uint, *const c_uint, usize, *mut *mut c_void, *mut c_char, usize) -> c_int;

/// Of one kernel: its entry and its number of parameters.
#[derive(Clone, Copy)]
struct Entry {
    run: Run,
    parameters: usize,
}

/// Compiled kernels of one source.
pub(crate) struct Library {
    name: String,
    path: PathBuf,
    entries: HashMap<String, Entry>,
    /// Keeps the code that the entries point into.
    _loaded: libloading::Library,
}

/// A device that is the host.
#[derive(Debug)]
pub(crate) struct Emulator {
    compiler: Compiler,
    memory: Memory,
}

/// What all loaded libraries have in common: `Host` of `state.h`.
#[repr(C)]
#[derive(Debug)]
struct Host {
    stacks: *mut c_char,
    epoch: u64,
    regions: *const Region,
    n_regions: u64,
    code: u64,
}

// SAFETY: the stacks belong to the process, and the regions are set anew for every launch.
unsafe impl Send for Host {}

/// Locked for a launch: the handler of faults belongs to the process, too.
static HOST: Mutex<Host> =
    Mutex::new(Host { stacks: ptr::null_mut(), epoch: 0, regions: ptr::null(), n_regions: 0, code: 0 });
const ERROR_BYTES: usize = 1024;

impl Emulator {
    /// # Errors
    /// If there is no C++ compiler (`CXX`, or `c++`).
    pub fn new() -> Result<Self> {
        Ok(Emulator { compiler: Compiler::find()?, memory: Memory::default() })
    }

    /// A buffer whose bytes are all 0xff, a NaN of every type: 16-byte aligned, with at most 15 bytes between its end and a page
    /// that no one may touch. 0 for no bytes.
    ///
    /// # Errors
    /// If the host has no memory.
    pub fn alloc(&self, bytes: usize) -> Result<u64> {
        self.memory.alloc(bytes)
    }

    /// Gives a buffer back; what is not a buffer is left alone.
    pub fn free(&self, address: u64) {
        self.memory.free(address);
    }

    /// # Errors
    /// If it is not within a buffer.
    pub fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        self.memory.write(to, from)
    }

    /// # Errors
    /// If it is not within a buffer.
    pub fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.memory.read(from, to)
    }

    /// Compiles a source, or finds it compiled. `text` is the prelude and the kernels.
    ///
    /// # Errors
    /// If it does not compile: with the compiler's output.
    pub fn compile(&self, name: &str, text: &str, defines: &[(String, String)]) -> Result<Arc<Library>> {
        let (path, kernels) = self.compiler.compile(name, text, defines)?;
        let failed = |source| EmulatorError::Load { path: path.clone(), source };
        // SAFETY: the library is this module's own making; its initialisers only set constants.
        let loaded = unsafe { libloading::Library::new(&path) }.map_err(failed)?;
        let mut entries = HashMap::new();
        for kernel in kernels {
            // SAFETY: the type is the one that `EMULATE` gives the function.
            let run = *unsafe { loaded.get::<Run>(format!("fewstep_emulate_{kernel}\0")) }.map_err(failed)?;
            // SAFETY: as above; a constant of the library, which stays loaded.
            let parameters =
                unsafe { **loaded.get::<*const u64>(format!("fewstep_parameters_{kernel}\0")).map_err(failed)? };
            entries.insert(kernel, Entry { run, parameters: parameters as usize });
        }
        Ok(Arc::new(Library { name: name.into(), path, entries, _loaded: loaded }))
    }

    /// Runs a kernel to its end; `args` point to the values of its parameters.
    ///
    /// # Errors
    /// If there is no such kernel, or it does what it must not: see `device.h`.
    pub fn launch(
        &self,
        library: &Library,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        args: &mut [*mut c_void],
    ) -> Result<()> {
        let Some(entry) = library.entries.get(kernel) else {
            let mut known: Vec<String> = library.entries.keys().cloned().collect();
            known.sort();
            return Err(EmulatorError::NoKernel { name: library.name.clone(), kernel: kernel.into(), known });
        };
        if entry.parameters != args.len() {
            return Err(EmulatorError::Arguments {
                kernel: kernel.into(),
                expected: entry.parameters,
                got: args.len(),
            });
        }
        let block = [threads, 1, 1];
        let mut error = [0 as c_char; ERROR_BYTES];
        let mut host = HOST.lock().unwrap_or_else(PoisonError::into_inner);
        let regions = self.memory.regions();
        (host.regions, host.n_regions) = (regions.as_ptr(), regions.len() as u64);
        // SAFETY: the entry uses the host, whose regions outlive the call, under its lock; it reads three words each of grid and
        // block and as many arguments as there are, each a pointer to a value at least as wide as its parameter; it writes at
        // most ERROR_BYTES, the last of them 0.
        let failed = unsafe {
            (entry.run)(
                &mut *host,
                grid.as_ptr(),
                block.as_ptr(),
                shared,
                args.as_mut_ptr(),
                error.as_mut_ptr(),
                ERROR_BYTES,
            ) != 0
        };
        if !failed {
            return Ok(());
        }
        // SAFETY: the entry ends its message with a 0.
        let mut message = unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned();
        if let Some(line) = library.line(host.code) {
            message += &format!(" ({line})");
        }
        Err(EmulatorError::Kernel(message))
    }
}

impl Library {
    /// The source line of an offset in the library, where there is an `addr2line` to tell.
    fn line(&self, code: u64) -> Option<String> {
        if code == 0 {
            return None;
        }
        let output =
            Command::new("addr2line").arg("-i").arg("-e").arg(&self.path).arg(format!("{code:#x}")).output().ok()?;
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let place = |line: &'_ str| line.rsplit('/').next()?.split(" (").next().map(str::to_string);
        lines.lines().filter_map(place).find(|place| !place.starts_with(OWN) && !place.contains('?'))
    }
}

#[cfg(test)]
mod tests;
