//! Rows gathered by number, and summed back by the row that they came from.

use fewstep_tensor::cuda::{Launch, Source, Table};
use fewstep_tensor::{DType, Device, Tensor};

use crate::Result;
use crate::units::unit;

const SOURCE: Source = Source::new("embedding", &[include_str!("embedding.cu")]);
const THREADS: usize = 256;
/// Bytes of the widest access.
const ACCESS: usize = 16;

/// A kernel on rows of so many accesses.
fn launch(
    kernel: &'static str,
    device: Device,
    dtype: DType,
    stored: DType,
    [rows, accesses]: [usize; 2],
) -> Result<Launch<'static>> {
    let launch = Launch::new(device, &SOURCE, dtype, kernel)?;
    Ok(launch.define("STORED", stored.size()).grid([rows, accesses.div_ceil(THREADS), 1]).threads(THREADS))
}

pub(super) fn gather(ids: &[u32], d: usize, table: &Tensor, dtype: DType) -> Result<Tensor> {
    let y = Tensor::empty(&[ids.len(), d], dtype, table.device())?;
    let elements = if dtype == table.dtype() { unit(&[&y, table], &[d]) } else { 1 };
    let vector = elements * dtype.size() == ACCESS;
    let extents = [ids.len(), if vector { d / elements } else { d }];
    let ids = Table::new(table.device(), ids)?;
    launch("gather", table.device(), dtype, table.dtype(), extents)?
        .tensor(&y)
        .tensor(table)
        .table(&ids)
        .size(d)
        .flag(vector)
        .run()?;
    Ok(y)
}

/// Adds every row of ȳ to its row of the table, in the order of the rows; in the wide dtype.
pub(super) fn scatter(ids: &[u32], [v, d]: [usize; 2], y_bar: &Tensor) -> Result<Tensor> {
    let (device, dtype) = (y_bar.device(), y_bar.dtype());
    let mut rows: Vec<u32> = (0..ids.len() as u32).collect();
    rows.sort_by_key(|&i| ids[i as usize]);
    let mut first = vec![0u32; v + 1];
    ids.iter().for_each(|&id| first[id as usize + 1] += 1);
    (0..v).for_each(|i| first[i + 1] += first[i]);
    let table_bar = Tensor::empty(&[v, d], dtype.wide(), device)?;
    let (first, rows) = (Table::new(device, &first)?, Table::new(device, &rows)?);
    launch("scatter", device, dtype, dtype, [v, d])?
        .tensor(&table_bar)
        .tensor(y_bar)
        .table(&first)
        .table(&rows)
        .size(d)
        .run()?;
    Ok(table_bar)
}
