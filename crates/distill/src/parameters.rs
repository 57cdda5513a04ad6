//! A network's parameters as named tensors and back.
//!
//! A network's parameters are a list in a fixed order, with a list of names beside it.

use std::collections::{BTreeMap, HashSet};

use fewstep_tensor::file::TensorFile;
use fewstep_tensor::{Device, Tensor};

use crate::{Error, Result};

/// The tensors under `prefix` + name, on the host; the elements of those that are there are shared, not copied.
///
/// # Errors
/// If the lists have different lengths or a name comes twice.
pub fn pack(prefix: &str, names: &[String], tensors: &[Tensor]) -> Result<BTreeMap<String, Tensor>> {
    check_names(names, tensors.len())?;
    let on_host = |(n, t): (&String, &Tensor)| Ok((format!("{prefix}{n}"), t.to_device(Device::Cpu)?));
    names.iter().zip(tensors).map(on_host).collect()
}

/// The tensors of a file whose names begin with `prefix`, in the order of `names`, each of the shape and dtype of its
/// counterpart in `like`, and on its device.
///
/// # Errors
/// If one is missing, differs in shape or dtype, or the file holds another under the prefix.
pub fn unpack(file: &TensorFile, prefix: &str, names: &[String], like: &[Tensor]) -> Result<Vec<Tensor>> {
    check_names(names, like.len())?;
    let known: HashSet<&str> = names.iter().map(String::as_str).collect();
    let mut held = file.tensors.keys().filter_map(|k| k.strip_prefix(prefix));
    if let Some(stranger) = held.find(|k| !known.contains(k)) {
        let what = format!("tensor '{prefix}{stranger}'");
        return Err(Error::parameters(what, "a parameter of this network", "a name that it does not have"));
    }
    names.iter().zip(like).map(|(name, like)| unpack_one(file, &format!("{prefix}{name}"), like)).collect()
}

fn unpack_one(file: &TensorFile, name: &str, like: &Tensor) -> Result<Tensor> {
    let describe = |t: &Tensor| format!("{} {:?}", t.dtype(), t.shape());
    let what = || format!("tensor '{name}'");
    match file.tensors.get(name) {
        None => Err(Error::parameters(what(), describe(like), "no tensor of this name")),
        Some(t) if t.shape() != like.shape() || t.dtype() != like.dtype() => {
            Err(Error::parameters(what(), describe(like), describe(t)))
        }
        Some(t) => Ok(t.to_device(like.device())?),
    }
}

/// Checks that there is one distinct name for each of `len` tensors.
///
/// # Errors
/// If the lengths differ or a name comes twice.
pub fn check_names(names: &[String], len: usize) -> Result<()> {
    if names.len() != len {
        return Err(Error::parameters("parameters", format!("{} tensors, one a name", names.len()), len.to_string()));
    }
    let mut seen = HashSet::new();
    match names.iter().find(|n| !seen.insert(n.as_str())) {
        Some(twice) => Err(Error::parameters(format!("parameter '{twice}'"), "a name of its own", "the name twice")),
        None => Ok(()),
    }
}

/// Checks that two lists agree in number, shapes and dtypes.
///
/// # Errors
/// If they do not; the message names the first pair that differs.
pub fn check_alike(what: &str, names: &[String], expected: &[Tensor], got: &[Tensor]) -> Result<()> {
    if expected.len() != got.len() {
        return Err(Error::parameters(what, format!("{} tensors", expected.len()), got.len().to_string()));
    }
    for (i, (e, g)) in expected.iter().zip(got).enumerate() {
        if e.shape() != g.shape() || e.dtype() != g.dtype() {
            let describe = |t: &Tensor| format!("{} {:?}", t.dtype(), t.shape());
            let name = names.get(i).map_or_else(|| i.to_string(), |n| format!("'{n}'"));
            return Err(Error::parameters(format!("{what} of {name}"), describe(e), describe(g)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        vec!["b.weight".into(), "a.bias".into()]
    }

    fn tensors() -> Vec<Tensor> {
        vec![
            Tensor::from_vec(vec![1f32, 2.0], &[2]).unwrap(),
            Tensor::from_vec(vec![f64::NAN, -0.0, 5.0], &[1, 3]).unwrap(),
        ]
    }

    fn file() -> TensorFile {
        TensorFile { tensors: pack("x.", &names(), &tensors()).unwrap(), ..TensorFile::default() }
    }

    #[test]
    fn parameters_come_back_in_the_order_of_their_names() {
        let back = unpack(&file(), "x.", &names(), &tensors()).unwrap();
        assert_eq!(back[0].as_slice::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(back[1].shape(), [1, 3]);
        assert!(back[1].as_slice::<f64>().unwrap()[0].is_nan());
    }

    #[test]
    fn a_missing_a_strange_and_a_misshapen_tensor_are_named() {
        let mut missing = file();
        missing.tensors.remove("x.a.bias");
        let mut strange = file();
        strange.tensors.insert("x.c".into(), tensors()[0].clone());
        let mut misshapen = file();
        misshapen.tensors.insert("x.a.bias".into(), tensors()[0].clone());
        for (file, name) in [(missing, "'x.a.bias'"), (strange, "'x.c'"), (misshapen, "'x.a.bias'")] {
            let e = unpack(&file, "x.", &names(), &tensors()).unwrap_err().to_string();
            assert!(e.contains(name), "{e}");
        }
    }

    #[test]
    fn a_name_that_comes_twice_is_refused() {
        let twice = vec!["w".to_string(), "w".to_string()];
        assert!(pack("", &twice, &tensors()).unwrap_err().to_string().contains("'w'"));
    }
}
