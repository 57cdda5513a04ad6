//! What the CUDA kernels over rows share: how threads hold a row, sums over rows, and a vector added to rows.

use fewstep_tensor::cuda::{Launch, Source, gpu};
use fewstep_tensor::{DType, Device, Tensor};

use crate::layer_norm::rows::Rows;
use crate::{Error, Result};

/// The text that kernels over rows begin with.
pub(crate) const ROWS: &str = include_str!("rows.cuh");

const COLUMNS: Source = Source::new("columns", &[ROWS, include_str!("columns.cu")]);
const PARTIALS: Source = Source::new("partials", &[include_str!("partials.cu")]);

/// Bytes of one access.
const ACCESS: usize = 16;
const WARP: usize = 32;
/// Threads of a block whose rows are narrower than a warp.
const NARROW_THREADS: usize = 128;
/// Threads of a row, above which each holds more of it.
const WIDE_THREADS: usize = 512;
/// Rows that a team walks at least, where there are as many: they share the reading of the modulation.
const ROWS_AT_LEAST: usize = 8;

// Chosen on an H200 (2026-11) at 32760 rows of 1536 in bf16, 100 MB a tensor, of which a copy takes 51 µs. Kernels that sum every
// row do not want for bytes under way: three or four rows ahead are no faster than two.
// Layer norm, forward and jvp: one access a thread takes 58 and 105 µs, two 63 and 119, three 60 and 114; with a row ahead in
// registers and eight rows a block it was 64 and 123. RMS norm with rotation, forward, jvp and vjp: three accesses 59, 111 and
// 89 µs, two 64, 120 and 102; it was 66, 127 and 98. Layer norm's vjp: three accesses 86 µs, two 101; it was 93. More blocks than
// run at once, or registers squeezed for more of them, cost a tenth or more. Channel norm's vjp, 96 wide: 660 blocks in stripes
// 84 µs, 2112 in slabs 91; it was 109.

/// Blocks that a sum over rows is divided into: four for each multiprocessor of an H100.
const SUMMING_BLOCKS: usize = 528;
/// The same where a block has several narrow rows at a time.
const NARROW_SUMMING_BLOCKS: usize = 4 * SUMMING_BLOCKS;
/// The same of kernels that also sum each row.
const NARROW_SWEEPING_BLOCKS: usize = 660;
/// Accesses of a block's threads below which there are more blocks.
const SUMMING_ACCESSES: usize = 192;
/// Accesses of a row from which a thread has two or three, and from which it has no more than two.
const SEVERAL_ACCESSES: usize = 128;
const MANY_ACCESSES: usize = 384;
/// Threads of a multiprocessor by how many accesses each holds of a row, as many as leave them the registers they take: of
/// kernels that read one tensor's rows, and of those that read two.
const RESIDENT: [usize; 3] = [1024, 640, 512];
const RESIDENT_DUAL: [usize; 3] = [640, 384, 256];

/// Columns that a block of `add_partials` adds.
const TILE: usize = 32;
const ADDING_THREADS: usize = 1024;

/// Which elements of a row a thread must hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairs {
    /// None.
    None,
    /// Neighbours, in heads of this width.
    Neighbours(usize),
    /// The halves of heads of this width.
    Halves(usize),
}

/// How many accesses of a row a thread holds, where a block's threads do not need more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    One,
    /// Two where the row has many.
    Two,
    /// Three, or two where that makes blocks large.
    Three,
}

impl Hold {
    fn accesses(self, units: usize) -> usize {
        match self {
            Hold::Three if (SEVERAL_ACCESSES..MANY_ACCESSES).contains(&units) => 3,
            Hold::Two | Hold::Three if units >= SEVERAL_ACCESSES => 2,
            _ => 1,
        }
    }
}

/// How threads share rows: the macros of `rows.cuh` and the division of the rows into slabs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    rows: Rows,
    slab: usize,
    width: usize,
    packs: usize,
    team: usize,
    threads: usize,
    aligned: bool,
}

impl Plan {
    /// For rows of a dtype; `tensors` are all that hold rows or vectors of their width. Which thread has which column depends
    /// on extents alone: so the bits of a row's sums do not depend on where tensors lie.
    pub fn new(rows: Rows, dtype: DType, pairs: Pairs, tensors: &[Option<&Tensor>]) -> Self {
        let plan = Self::with_packs(rows, dtype, pairs, tensors, Hold::One);
        Plan { slab: plan.slab_at_least(), ..plan }
    }

    /// The same for a kernel that sums each row, of two tensors if `dual`, each thread holding the accesses of `hold`: as many
    /// blocks as run at once, so that they sweep the rows together.
    ///
    /// # Errors
    /// If the device is no GPU or cannot be opened.
    pub fn sweeping(
        rows: Rows,
        dtype: DType,
        pairs: Pairs,
        (hold, dual): (Hold, bool),
        tensors: &[Option<&Tensor>],
        device: Device,
    ) -> Result<Self> {
        let plan = Self::with_packs(rows, dtype, pairs, tensors, hold);
        let resident = plan.resident(if dual { RESIDENT_DUAL } else { RESIDENT });
        let slab = plan.slab(resident * gpu(device)?.properties().multiprocessors);
        Ok(Plan { slab: slab.max(plan.threads / plan.team), ..plan })
    }

    /// The same for a kernel that sums over rows: fewer blocks, so that there are few partial sums. A function of the extents
    /// alone, as are then the bits of the sums.
    pub fn summing(rows: Rows, dtype: DType, pairs: Pairs, tensors: &[Option<&Tensor>]) -> Self {
        Self::with_packs(rows, dtype, pairs, tensors, Hold::Two).summed(NARROW_SUMMING_BLOCKS)
    }

    /// The same for a kernel that sums each row and over rows.
    pub fn summing_both(rows: Rows, dtype: DType, pairs: Pairs, tensors: &[Option<&Tensor>]) -> Self {
        Self::with_packs(rows, dtype, pairs, tensors, Hold::Three).summed(NARROW_SWEEPING_BLOCKS)
    }

    fn summed(self, narrow: usize) -> Self {
        let blocks = match self.team {
            0..=WARP => narrow,
            _ => SUMMING_BLOCKS * (SUMMING_ACCESSES / (self.threads * self.packs)).max(1),
        };
        Plan { slab: self.slab(blocks).max(self.slab_at_least()), ..self }
    }

    /// Rows of a block, of so many blocks.
    fn slab(&self, blocks: usize) -> usize {
        self.rows.per_group.div_ceil((blocks / self.rows.groups.max(1)).max(1))
    }

    fn with_packs(rows: Rows, dtype: DType, pairs: Pairs, tensors: &[Option<&Tensor>], hold: Hold) -> Self {
        let (each, d) = (ACCESS / dtype.size(), rows.d);
        let run = match pairs {
            Pairs::None => d,
            Pairs::Neighbours(head) => head,
            Pairs::Halves(head) => head / 2,
        };
        let width = match pairs {
            _ if run.is_multiple_of(each) => each,
            Pairs::Neighbours(_) => 2,
            _ => 1,
        };
        let aligned = run.is_multiple_of(each) && tensors.iter().flatten().all(|t| t.is_aligned(ACCESS as u64));
        // Partners are dealt together.
        let partners = if matches!(pairs, Pairs::Halves(_)) { 2 } else { 1 };
        let units = d.div_ceil(width * partners).max(1);
        let packs = units.div_ceil(WIDE_THREADS).max(hold.accesses(units * partners) / partners).max(1);
        let team = units.div_ceil(packs);
        let (team, threads) = match team {
            0..=WARP => (team.next_power_of_two(), NARROW_THREADS),
            _ => (team.next_multiple_of(WARP), team.next_multiple_of(WARP)),
        };
        Plan { rows, slab: 1, width, packs: packs * partners, team, threads, aligned }
    }

    fn slab_at_least(&self) -> usize {
        (ROWS_AT_LEAST * self.threads / self.team).min(self.rows.per_group).max(1)
    }

    /// Blocks of a multiprocessor at a time, of which so many threads run.
    fn resident(&self, threads: [usize; 3]) -> usize {
        (threads[self.packs.min(threads.len()) - 1] / self.threads).max(1)
    }

    fn slabs(&self) -> usize {
        self.rows.per_group.div_ceil(self.slab)
    }

    fn blocks(&self) -> usize {
        if self.rows.d == 0 { 0 } else { self.rows.groups * self.slabs() }
    }

    /// A launch over all rows; its last parameters follow by [`Plan::run`].
    pub fn launch<'a>(
        &self,
        device: Device,
        source: &'a Source,
        dtype: DType,
        kernel: &'static str,
    ) -> Result<Launch<'a>> {
        let launch = Launch::new(device, source, dtype, kernel)?
            .define("WIDTH", self.width)
            .define("PACKS", self.packs)
            .define("TEAM", self.team)
            .define("THREADS", self.threads)
            .define("RESIDENT", self.resident(RESIDENT))
            .define("RESIDENT_DUAL", self.resident(RESIDENT_DUAL))
            .define("ALIGNED", usize::from(self.aligned));
        Ok(launch.grid([self.blocks(), 1, 1]).threads(self.threads))
    }

    /// Runs a launch after giving it its last parameters, the extents.
    pub fn run(&self, launch: Launch<'_>) -> Result<()> {
        self.run_with(launch, &[])
    }

    /// As [`Plan::run`], with further extents at the end.
    pub fn run_with(&self, launch: Launch<'_>, rest: &[usize]) -> Result<()> {
        let launch = launch.size(self.rows.per_group).size(self.slab).size(self.rows.d);
        Ok(rest.iter().fold(launch, |launch, &size| launch.size(size)).run()?)
    }

    /// Memory for the sums of a block each.
    pub fn partials(&self, wanted: bool, dtype: DType, device: Device) -> Result<Option<Tensor>> {
        let of = |()| Tensor::empty(&[self.rows.groups * self.slabs(), self.rows.d], dtype.wide(), device);
        Ok(wanted.then_some(()).map(of).transpose()?)
    }

    /// The sums of each group of the sums of its blocks, for up to two sums at once; `joined`: of all groups together.
    pub fn gather<const N: usize>(
        &self,
        partials: [Option<Tensor>; N],
        joined: bool,
        shape: &[usize],
    ) -> Result<[Option<Tensor>; N]> {
        let Some(first) = partials.iter().flatten().next() else { return Ok(partials) };
        let (groups, slabs) =
            if joined { (1, self.rows.groups * self.slabs()) } else { (self.rows.groups, self.slabs()) };
        let (dtype, device) = (first.dtype(), first.device());
        let mut sums = partials.each_ref().map(|_| None);
        for (sum, partials) in sums.iter_mut().zip(&partials) {
            *sum = match partials {
                Some(partials) if slabs == 1 => Some(partials.reshape(shape)?),
                Some(_) => Some(Tensor::empty(shape, dtype, device)?),
                None => None,
            };
        }
        if slabs != 1 {
            let wanted: Vec<_> = sums.iter().flatten().zip(partials.iter().flatten()).collect();
            let launch = Launch::new(device, &PARTIALS, dtype, "add_partials")?
                .grid([groups * self.rows.d.div_ceil(TILE), wanted.len(), 1])
                .threads(ADDING_THREADS);
            let pair = |i: usize| wanted.get(i).copied().unzip();
            let ((sum0, partials0), (sum1, partials1)) = (pair(0), pair(1));
            let launch = launch.optional(sum0).optional(partials0).optional(sum1).optional(partials1);
            launch.size(slabs).size(self.rows.d).run()?;
        }
        Ok(sums)
    }
}

/// Refuses a modulation, gain or weight that is not of the wide dtype.
pub(crate) fn check_wide(op: &'static str, dtype: DType, vectors: &[Option<&Tensor>]) -> Result<()> {
    match vectors.iter().flatten().find(|v| v.dtype() != dtype.wide()) {
        Some(v) => Err(Error::input(op, format!("a vector of {} beside rows of {dtype}", dtype.wide()), v.dtype())),
        None => Ok(()),
    }
}

/// Σ over the rows of each group of x, of the wide dtype.
pub(crate) fn column_sum(rows: Rows, x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let (dtype, device) = (x.dtype(), x.device());
    let plan = Plan::summing(rows, dtype, Pairs::None, &[Some(x)]);
    let partials = plan.partials(true, dtype, device)?;
    let launch = plan.launch(device, &COLUMNS, dtype, "column_sum")?.optional(partials.as_ref()).tensor(x);
    plan.run(launch)?;
    let [sums] = plan.gather([partials], false, shape)?;
    sums.ok_or_else(|| Error::input("column_sum", "partial sums", shape))
}

/// y = x + b with one vector of b a group, in the dtype of `y`; b has that or the wide dtype. Without x: y = b; y may be x.
pub(crate) fn add_rows(rows: Rows, x: Option<&Tensor>, b: &Tensor, y: &Tensor) -> Result<()> {
    let (dtype, device) = (y.dtype(), y.device());
    let kernel = if b.dtype() == dtype { "add_rows" } else { "add_rows_wide" };
    if b.dtype() != dtype {
        check_wide("add_rows", dtype, &[Some(b)])?;
    }
    let plan = Plan::new(rows, dtype, Pairs::None, &[x, Some(b), Some(y)]);
    plan.run(plan.launch(device, &COLUMNS, dtype, kernel)?.tensor(y).optional(x).tensor(b))
}
