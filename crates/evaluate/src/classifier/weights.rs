use std::path::Path;

use fewstep_distill::parameters::{pack, unpack};
use fewstep_ops::{ParamSpec, Params};
use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{DType, Device, Tensor, arith, bf16};
use safetensors::{Dtype, SafeTensors};

use super::Classifier;
use crate::{Error, Result};

/// The shipped weights; `assets/README.md` says how they were made.
static SHIPPED: &[u8] = include_bytes!("../../assets/classifier.safetensors");
const SHIPPED_NAME: &str = "the embedded classifier";

/// The weights that the program carries, in f32.
///
/// # Errors
/// [`Error::Weights`] if the program was built from a damaged checkout.
pub fn shipped() -> Result<Params> {
    parse(SHIPPED, SHIPPED_NAME)
}

/// Reads weights that [`write()`] wrote, in f32.
///
/// # Errors
/// If the file cannot be read, or lacks a parameter, holds another or a non-finite value.
pub fn read(path: &Path) -> Result<Params> {
    let file = TensorFile::read(path)?;
    from_file(&file, &path.display().to_string())
}

/// Writes weights in bf16: a quarter of a percent of a weight is far below what training leaves to chance.
///
/// # Errors
/// If the file cannot be written, or the parameters are not the classifier's.
pub fn write(params: &Params, path: &Path) -> Result<()> {
    let tensors: Vec<Tensor> = params.tensors().iter().map(|t| t.to_dtype(DType::Bf16)).collect();
    let file = TensorFile { tensors: pack("", &names(params.specs()), &tensors)?, ..TensorFile::default() };
    // What cannot be read back is not written.
    from_file(&file, &path.display().to_string())?;
    Ok(file.write(path)?)
}

/// Refuses parameters of another network.
pub(crate) fn check(params: &Params) -> Result<()> {
    let own = Classifier::new();
    let alike = |(a, b): (&ParamSpec, &ParamSpec)| a.name == b.name && a.shape == b.shape;
    if params.specs().len() == own.specs().len() && params.specs().iter().zip(own.specs().iter()).all(alike) {
        return Ok(());
    }
    let reason = "its parameters have other names or shapes".to_owned();
    Err(Error::Weights { file: "the weights given".to_owned(), reason })
}

fn names(specs: &[ParamSpec]) -> Vec<String> {
    specs.iter().map(|spec| spec.name.clone()).collect()
}

/// Reads bf16 tensors of a safetensors file in memory.
fn parse(bytes: &[u8], name: &str) -> Result<Params> {
    let bad = |reason: String| Error::Weights { file: name.to_owned(), reason };
    let views = SafeTensors::deserialize(bytes).map_err(|e| bad(e.to_string()))?;
    let mut file = TensorFile::default();
    for (key, view) in views.tensors() {
        if view.dtype() != Dtype::BF16 {
            return Err(bad(format!("tensor '{key}' is {:?}, not BF16", view.dtype())));
        }
        let (pairs, _) = view.data().as_chunks::<2>();
        let values: Vec<bf16> = pairs.iter().map(|&pair| bf16::from_le_bytes(pair)).collect();
        file.tensors.insert(key, Tensor::from_vec(values, view.shape())?);
    }
    from_file(&file, name)
}

fn from_file(file: &TensorFile, name: &str) -> Result<Params> {
    let bad = |reason: String| Error::Weights { file: name.to_owned(), reason };
    let classifier = Classifier::new();
    let specs = classifier.specs();
    let mut wide = TensorFile::default();
    for (key, t) in &file.tensors {
        let t = t.to_dtype(DType::F32);
        match arith::count_non_finite(&t)? {
            0 => wide.tensors.insert(key.clone(), t),
            count => return Err(bad(format!("{count} values of '{key}' are not finite"))),
        };
    }
    let like: Vec<Tensor> = specs.iter().map(|spec| Tensor::zeros(&spec.shape, DType::F32, Device::Cpu)).collect();
    let tensors = unpack(&wide, "", &names(specs), &like).map_err(|e| bad(e.to_string()))?;
    Ok(Params::new(specs, tensors)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shipped file with its tensors changed, as bytes.
    fn changed(change: impl Fn(&mut TensorFile)) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        std::fs::write(&path, SHIPPED).unwrap();
        let mut file = TensorFile::read(&path).unwrap();
        change(&mut file);
        file.write(&path).unwrap();
        std::fs::read(&path).unwrap()
    }

    #[test]
    fn written_weights_come_back_as_they_were_rounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights.safetensors");
        let params = shipped().unwrap();
        write(&params, &path).unwrap();
        let back = read(&path).unwrap();
        for (a, b) in params.tensors().iter().zip(back.tensors()) {
            assert_eq!(a.to_vec_f64(), b.to_vec_f64());
        }
    }

    #[test]
    fn weights_that_are_not_the_classifiers_are_refused_with_the_reason() {
        let name = "heads.bias";
        let lacking = changed(|f| drop(f.tensors.remove(name)));
        let strange = changed(|f| drop(f.tensors.insert("odd".into(), f.tensors[name].clone())));
        let misshapen = changed(|f| drop(f.tensors.insert(name.into(), f.tensors["frame.bias"].clone())));
        let wide = changed(|f| drop(f.tensors.insert(name.into(), f.tensors[name].to_dtype(DType::F32))));
        let nan = Tensor::full(&[24], f64::NAN, DType::Bf16, Device::Cpu);
        let nan = changed(|f| drop(f.tensors.insert(name.into(), nan.clone())));
        for (bytes, reason) in [
            (lacking, "heads.bias"),
            (strange, "odd"),
            (misshapen, "heads.bias"),
            (wide, "not BF16"),
            (nan, "24 values of 'heads.bias' are not finite"),
            (SHIPPED[..SHIPPED.len() / 2].to_vec(), "not the weights"),
            (Vec::new(), "not the weights"),
        ] {
            let e = parse(&bytes, "x").unwrap_err().to_string();
            assert!(e.contains(reason), "{e}");
        }
    }

    #[test]
    fn parameters_of_another_network_are_refused() {
        let specs = Classifier::new().specs()[..2].to_vec().into();
        let other = Params::init(&specs, 1, DType::F32, Device::Cpu).unwrap();
        assert!(check(&other).is_err());
        assert!(write(&other, Path::new("/nonexistent/weights.safetensors")).is_err());
    }
}
