//! `fewstep apply umt5` and `t5`: a text encoder on token ids from a file.

use fewstep_nn::t5::{T5Config, T5Encoder, Tokens};
use fewstep_ops::Plain;
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{Device, Tensor};

use super::compute;
use crate::args::{ApplyArgs, NetworkArg};
use crate::error::{Error, Result};

/// `out` [B, L, D] of every row, and `out_zeroed` with zeros past the end of each sequence.
///
/// # Errors
/// If the weights or an input refuse.
pub fn run(args: &ApplyArgs) -> Result<TensorFile> {
    if args.jvp || args.grad {
        return Err(Error::Argument("a text encoder has no x and t: leave --jvp and --grad out".into()));
    }
    let compute = compute(args)?;
    let dtype = compute.dtype;
    let file = fewstep_formats::read_weights(&args.weights)?;
    let config = T5Config::of_weights(&file)?;
    if config.shared_bias != (args.network == NetworkArg::T5) {
        let other = if config.shared_bias { "t5" } else { "umt5" };
        return Err(Error::Argument(format!("{} holds another encoder: say `{other}`", args.weights.display())));
    }
    let encoder = T5Encoder::new(config)?;
    let params = compute.weights(&encoder.load_from(&file, &args.weights, dtype.wide())?)?;
    let (ids, lengths, len) = sequences(&TensorFile::read(&args.inputs)?)?;
    let y = encoder.forward(&Plain::new(&params), &Tokens::padded(&ids, len, &lengths)?, dtype)?;
    let shape = [lengths.len(), len, encoder.config().dim];
    let whole = y.reshape(&shape)?.to_device(Device::Cpu)?;
    let mut rows = whole.to_vec_f64();
    for (sequence, length) in rows.chunks_mut((len * shape[2]).max(1)).zip(&lengths) {
        sequence[length * shape[2]..].fill(0.0);
    }
    let zeroed = Tensor::from_vec(rows, &shape)?.to_dtype(dtype);
    Ok(TensorFile { tensors: [("out".into(), whole), ("out_zeroed".into(), zeroed)].into(), ..Default::default() })
}

/// ids and the length of each sequence, from `ids` and `mask` [B, L].
fn sequences(inputs: &TensorFile) -> Result<(Vec<u32>, Vec<usize>, usize)> {
    let missing = |name: &str| Error::Argument(format!("the inputs hold no tensor '{name}' [B, L]"));
    let get = |name: &str| inputs.tensors.get(name).filter(|t| t.shape().len() == 2).ok_or_else(|| missing(name));
    let ids_tensor = get("ids")?;
    let [b, len] = ids_tensor.dims()?;
    let whole = |x: f64| x >= 0.0 && x <= f64::from(u32::MAX) && x.fract() == 0.0;
    let ids = ids_tensor.to_vec_f64();
    if let Some(bad) = ids.iter().find(|x| !whole(**x)) {
        return Err(Error::Argument(format!("'ids' holds {bad}, which is no token")));
    }
    let lengths = match inputs.tensors.get("mask") {
        None => vec![len; b],
        Some(mask) if mask.shape() == [b, len] => lengths(&mask.to_vec_f64(), len)?,
        Some(mask) => return Err(Error::Argument(format!("'mask' is {:?}, 'ids' [{b}, {len}]", mask.shape()))),
    };
    Ok((ids.into_iter().map(|x| x as u32).collect(), lengths, len))
}

fn lengths(mask: &[f64], len: usize) -> Result<Vec<usize>> {
    let ones_then_zeros = |row: &[f64]| {
        let ones = row.iter().take_while(|&&m| m == 1.0).count();
        row[ones..].iter().all(|&m| m == 0.0).then_some(ones)
    };
    let all: Option<Vec<usize>> = mask.chunks(len.max(1)).map(ones_then_zeros).collect();
    all.ok_or_else(|| Error::Argument("each row of 'mask' must be ones, then zeros".into()))
}
