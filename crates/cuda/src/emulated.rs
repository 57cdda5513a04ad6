//! The emulator as a device.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Instant;

use crate::convolution::Convolution;
use crate::driver::{Driver, Module, Refusal};
use crate::emulator::{Emulator, EmulatorError, Library};
use crate::product::{Element, Operand, Product};
use crate::tensor_map::{TensorMap, Tiling};
use crate::{Error, Properties, Result};

#[derive(Debug)]
pub(crate) struct Emulated {
    emulator: Arc<Emulator>,
    properties: Properties,
    began: Instant,
}

impl From<EmulatorError> for Error {
    fn from(e: EmulatorError) -> Self {
        Error::Emulator(e.to_string())
    }
}

impl Emulated {
    pub(crate) fn new() -> Result<Self> {
        let properties = Properties {
            name: "emulated device".into(),
            // What the portable kernels are written for.
            capability: (8, 0),
            memory: 1 << 33,
            multiprocessors: 2,
            shared: 163 * 1024,
        };
        Ok(Emulated { emulator: Arc::new(Emulator::new()?), properties, began: Instant::now() })
    }

    fn read(&self, address: u64, len: usize, element: Element) -> Result<Vec<f64>> {
        let mut bytes = vec![0; len * element.size()];
        if len > 0 {
            self.emulator.read(address, &mut bytes)?;
        }
        Ok(match element {
            Element::Bf16 => each(&bytes, |b| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))),
            Element::F32 => each(&bytes, |b| f64::from(f32::from_le_bytes(b))),
            Element::F64 => each(&bytes, f64::from_le_bytes),
        })
    }

    fn write(&self, address: u64, x: &[f64], element: Element) -> Result<()> {
        let bytes: Vec<u8> = match element {
            Element::Bf16 => x.iter().flat_map(|&x| bf16_bits(x).to_le_bytes()).collect(),
            Element::F32 => x.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            Element::F64 => x.iter().flat_map(|&x| x.to_le_bytes()).collect(),
        };
        Ok(self.emulator.write(address, &bytes)?)
    }

    fn factor(&self, operand: Operand, rows: usize, columns: usize, element: Element) -> Result<Vec<f64>> {
        let stored = self.read(operand.address, rows * columns, element)?;
        if !operand.transposed {
            return Ok(stored);
        }
        Ok((0..rows * columns).map(|i| stored[i % columns * rows + i / columns]).collect())
    }
}

fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.as_chunks::<N>().0.iter().map(|&b| f(b)).collect()
}

/// To nearest even, as the device's conversions do.
fn bf16_bits(x: f64) -> u16 {
    let bits = (x as f32).to_bits();
    if x.is_nan() { 0x7fff } else { (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16 }
}

/// ½x(1 + tanh(√(2/π)(x + 0.044715x³)))
fn gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

impl Driver for Emulated {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn software(&self) -> String {
        "emulated on the host".into()
    }

    fn alloc(&self, bytes: usize) -> std::result::Result<u64, Refusal> {
        self.emulator.alloc(bytes).map_err(|e| match e {
            EmulatorError::Full { .. } => Refusal::Full,
            e => Refusal::Error(e.into()),
        })
    }

    fn free(&self, address: u64) {
        self.emulator.free(address);
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        Ok(self.emulator.write(to, from)?)
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        Ok(self.emulator.read(from, to)?)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        let mut all = vec![0; bytes];
        self.emulator.read(from, &mut all)?;
        Ok(self.emulator.write(to, &all)?)
    }

    fn zero(&self, to: u64, bytes: usize) -> Result<()> {
        Ok(self.emulator.write(to, &vec![0; bytes])?)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn load(&self, name: &str, text: &str, defines: &[(String, String)]) -> Result<Arc<dyn Module>> {
        let library = self.emulator.compile(name, text, defines)?;
        Ok(Arc::new(Kernels { library, emulator: self.emulator.clone() }))
    }

    fn multiply(&self, p: &Product) -> Result<()> {
        let (a, b) = (self.factor(p.a, p.m, p.k, p.factors)?, self.factor(p.b, p.k, p.n, p.factors)?);
        let bias = p.bias.map(|bias| self.read(bias, p.n, p.factors)).transpose()?;
        let before = if p.accumulate { Some(self.read(p.c, p.m * p.n, p.result)?) } else { None };
        let mut sums = Vec::with_capacity(p.m * p.n);
        for (i, j) in (0..p.m).flat_map(|i| (0..p.n).map(move |j| (i, j))) {
            let sum: f64 = (0..p.k).map(|l| a[i * p.k + l] * b[l * p.n + j]).sum();
            sums.push(
                sum + before.as_ref().map_or(0.0, |c| c[i * p.n + j]) + bias.as_ref().map_or(0.0, |bias| bias[j]),
            );
        }
        if let Some(address) = p.before_gelu {
            self.write(address, &sums, p.result)?;
        }
        if p.gelu {
            sums.iter_mut().for_each(|x| *x = gelu(*x));
        }
        self.write(p.c, &sums, p.result)
    }

    fn tune(&self, _on: bool) {}

    fn convolves(&self, _: &Convolution) -> Result<bool> {
        Ok(false)
    }

    fn convolve(&self, _: &Convolution, _: [u64; 3]) -> Result<()> {
        Err(Error::Emulator("convolutions by a library are not emulated".into()))
    }

    fn tensor_map(&self, _tiling: &Tiling) -> Result<TensorMap> {
        Err(Error::Emulator("the bulk copy engine is not emulated".into()))
    }

    fn mark(&self) -> Result<u64> {
        // Work is done when it is asked for: a mark is the time.
        Ok(self.began.elapsed().as_nanos() as u64)
    }

    fn between(&self, marks: [u64; 2]) -> Result<f64> {
        Ok(marks[1].saturating_sub(marks[0]) as f64 * 1e-6)
    }
}

struct Kernels {
    library: Arc<Library>,
    emulator: Arc<Emulator>,
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
        Ok(self.emulator.launch(&self.library, kernel, grid, threads, shared, args)?)
    }
}
