//! One launch over all tensors of a network, and one copy to the host of what was summed.

use fewstep_tensor::cuda::{Launch, Source, Table};
use fewstep_tensor::{DType, Device, Tensor};

use super::Coefficients;
use crate::{Error, Result};

const SOURCE: Source = Source::new("adamw", &[include_str!("adamw.cu")]);
const THREADS: usize = 256;
/// Elements of a chunk, one block's work: as in the kernels.
const CHUNK: usize = 16 * 1024;
/// Numbers of a tensor in the kernels' table.
const FIELDS: usize = 8;

/// The tensors that belong to one parameter, those that a kernel takes, on one GPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Row<'a> {
    pub param: Option<&'a Tensor>,
    pub grad: Option<&'a Tensor>,
    pub exp_avg: Option<&'a Tensor>,
    pub exp_avg_sq: Option<&'a Tensor>,
    pub average: Option<&'a Tensor>,
    /// A copy of the parameter in another dtype.
    pub copy: Option<&'a Tensor>,
}

impl<'a> Row<'a> {
    fn tensors(self) -> [Option<&'a Tensor>; 6] {
        [self.param, self.grad, self.exp_avg, self.exp_avg_sq, self.average, self.copy]
    }
}

/// All parameters of a launch.
#[derive(Debug)]
pub(crate) struct Rows {
    table: Table,
    len: usize,
    chunks: usize,
    device: Device,
    dtype: DType,
    copy: DType,
}

impl Rows {
    /// Lists the tensors' addresses on the device. Those that a kernel writes share their memory with no other tensor; all
    /// live until it has been started.
    ///
    /// # Errors
    /// If there is no tensor, tensors of one kind differ in dtype, or one is not on the device.
    pub fn new(rows: &[Row<'_>]) -> Result<Self> {
        let first = rows.iter().flat_map(|r| r.tensors()).flatten().next();
        let first = first.ok_or_else(|| Error::parameters("the optimiser's parameters", "some", "none"))?;
        let (device, dtype) = (first.device(), first.dtype());
        let copy = rows.iter().find_map(|r| r.copy).map_or(dtype, Tensor::dtype);
        let (mut numbers, mut chunks) = (Vec::with_capacity(FIELDS * rows.len()), 0);
        for row in rows {
            let mut elements = 0;
            for (i, t) in row.tensors().into_iter().enumerate() {
                let expected = if i == 5 { copy } else { dtype };
                if let Some(t) = t.filter(|t| t.dtype() != expected || t.device() != device) {
                    let got = format!("{} on {}", t.dtype(), t.device());
                    return Err(Error::parameters("a tensor of the optimiser", format!("{expected} on {device}"), got));
                }
                elements = t.map_or(elements, Tensor::len);
                numbers.push(t.map_or(Ok(0), Tensor::address)?);
            }
            numbers.extend([elements as u64, chunks as u64]);
            chunks += elements.div_ceil(CHUNK);
        }
        Ok(Rows { table: Table::new(device, &numbers)?, len: rows.len(), chunks, device, dtype, copy })
    }

    fn launch(&self, kernel: &'static str, grid: [usize; 3]) -> Result<Launch<'static>> {
        let launch = Launch::new(self.device, &SOURCE, self.dtype, kernel)?;
        Ok(launch.define("COPY", self.copy.size()).grid(grid).threads(THREADS))
    }

    /// Sums of a kernel's results by chunk: so many columns for every tensor, on the host.
    fn sums(&self, columns: usize, start: impl FnOnce(&Tensor) -> Result<()>) -> Result<Vec<f64>> {
        let empty = |rows| Tensor::empty(&[rows, columns], DType::F64, self.device);
        let (partial, sums) = (empty(self.chunks)?, empty(self.len)?);
        start(&partial)?;
        let launch = self.launch("sum_chunks", [self.len, columns, 1])?;
        launch.tensor(&sums).tensor(&partial).table(&self.table).run()?;
        Ok(sums.to_device(Device::Cpu)?.as_slice::<f64>()?.to_vec())
    }

    /// Of every gradient, Σ g² and how many elements have no finite square.
    ///
    /// # Errors
    /// If a launch or the copy to the host fails.
    pub fn norms(&self) -> Result<Vec<(f64, u64)>> {
        let sums = self.sums(2, |partial| {
            let launch = self.launch("sum_squares", [self.chunks, 1, 1])?;
            Ok(launch.tensor(partial).table(&self.table).size(self.len).run()?)
        })?;
        Ok(sums.as_chunks::<2>().0.iter().map(|&[squares, unusable]| (squares, unusable as u64)).collect())
    }

    /// One step of every parameter, its average following at `rate` and its copy, where it has them. Returns ‖θ' − θ‖².
    ///
    /// # Errors
    /// As [`Rows::norms`].
    pub fn update(&self, c: &Coefficients<f64>, rate: f64) -> Result<f64> {
        let sums = self.sums(1, |partial| {
            let mut launch = self.launch("update", [self.chunks, 1, 1])?;
            launch = launch.tensor(partial).table(&self.table).size(self.len);
            let scalars = [
                c.clip,
                c.beta1,
                c.one_minus_beta1,
                c.beta2,
                c.one_minus_beta2,
                c.root_scale,
                c.eps,
                c.step_size,
                c.decay,
                rate,
            ];
            Ok(scalars.into_iter().fold(launch, Launch::real).run()?)
        })?;
        Ok(sums.iter().sum())
    }

    /// e ← e + r·(θ − e).
    ///
    /// # Errors
    /// If the launch fails.
    pub fn average(&self, rate: f64) -> Result<()> {
        let launch = self.launch("average", [self.chunks, 1, 1])?;
        Ok(launch.table(&self.table).size(self.len).real(rate).run()?)
    }
}
