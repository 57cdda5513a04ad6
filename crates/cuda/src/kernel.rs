use std::ffi::c_void;

use crate::{Error, Gpu, Result, TensorMap};

/// What every source begins with.
const PRELUDE: &str = include_str!("prelude.cuh");

/// CUDA C++ of some kernels; the prelude comes before it.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    name: &'static str,
    parts: &'static [&'static str],
}

impl Source {
    /// A source by its name in messages, from its text in parts.
    pub const fn new(name: &'static str, parts: &'static [&'static str]) -> Self {
        Source { name, parts }
    }

    /// The name in messages.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The whole text.
    pub fn text(&self) -> String {
        let mut text = PRELUDE.to_string();
        for part in self.parts {
            text.push('\n');
            text.push_str(part);
        }
        text
    }
}

/// A source with the macros that some launch defines.
#[derive(Clone, Debug)]
pub struct Variant {
    /// The source.
    pub source: Source,
    /// Names and values, in the order in which they were defined.
    pub defines: Vec<(String, String)>,
}

enum Arg {
    Word(u64),
    Map(Box<TensorMap>),
}

/// A kernel about to start: its extents and the values of its parameters, in their order.
pub struct Launch<'a> {
    gpu: Gpu,
    source: &'a Source,
    kernel: &'static str,
    defines: Vec<(String, String)>,
    grid: [usize; 3],
    threads: usize,
    shared: usize,
    args: Vec<Arg>,
}

impl<'a> Launch<'a> {
    /// A kernel of a source: one block of one warp, until told otherwise.
    pub fn new(gpu: &Gpu, source: &'a Source, kernel: &'static str) -> Self {
        Launch {
            gpu: gpu.clone(),
            source,
            kernel,
            defines: Vec::new(),
            grid: [1; 3],
            threads: 32,
            shared: 0,
            args: Vec::new(),
        }
    }

    /// Defines a macro for the source: another value is another compilation.
    pub fn define(mut self, name: &str, value: impl ToString) -> Self {
        self.defines.push((name.into(), value.to_string()));
        self
    }

    /// Blocks along x, y and z. Without any the launch does nothing.
    pub fn grid(mut self, grid: [usize; 3]) -> Self {
        self.grid = grid;
        self
    }

    /// Threads of a block.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Bytes of dynamic shared memory of a block.
    pub fn shared(mut self, bytes: usize) -> Self {
        self.shared = bytes;
        self
    }

    /// A pointer.
    pub fn address(mut self, address: u64) -> Self {
        self.args.push(Arg::Word(address));
        self
    }

    /// An `i64`.
    pub fn size(self, size: usize) -> Self {
        self.address(size as u64)
    }

    /// A `double`.
    pub fn real(self, x: f64) -> Self {
        self.address(x.to_bits())
    }

    /// An `int`, 1 or 0.
    pub fn flag(self, flag: bool) -> Self {
        self.address(u64::from(flag))
    }

    /// A `u32`.
    pub fn word(self, word: u32) -> Self {
        self.address(u64::from(word))
    }

    /// A tensor map, by value.
    pub fn map(mut self, map: TensorMap) -> Self {
        self.args.push(Arg::Map(Box::new(map)));
        self
    }

    /// Starts the kernel.
    ///
    /// # Errors
    /// If the source does not compile, or the driver refuses. Errors of the kernel itself come with a later call.
    pub fn run(mut self) -> Result<()> {
        if self.grid.contains(&0) {
            return Ok(());
        }
        let fits =
            |n: usize| u32::try_from(n).map_err(|_| Error::Call { call: self.kernel, reason: format!("{n} blocks") });
        let grid = [fits(self.grid[0])?, fits(self.grid[1])?, fits(self.grid[2])?];
        if self.gpu.note(self.source, &self.defines) {
            return Ok(());
        }
        let module = self.gpu.module(self.source, &self.defines)?;
        let args = self.args.iter_mut().map(|arg| match arg {
            // A narrower parameter reads the low bytes: hosts and devices are little-endian.
            Arg::Word(word) => (word as *mut u64).cast::<c_void>(),
            Arg::Map(map) => (&mut **map as *mut TensorMap).cast::<c_void>(),
        });
        module.launch(self.kernel, grid, fits(self.threads)?, self.shared, &mut args.collect::<Vec<_>>())
    }
}
