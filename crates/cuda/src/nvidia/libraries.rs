//! Where the libraries of CUDA are.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// What the compiler's built-in functions are called, up to the version.
const BUILTINS: &str = "libnvrtc-builtins.so";

/// The part of cuDNN that describes convolutions and chooses kernels.
const CUDNN_GRAPH: &str = "libcudnn_graph.so.9";

/// Folders, in this order: `FEWSTEP_CUDA_LIBRARIES`, the toolkit's, and those of wheels in the usual Python environments.
fn folders() -> Vec<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    let mut all: Vec<PathBuf> =
        var("FEWSTEP_CUDA_LIBRARIES").map(|v| std::env::split_paths(&v).collect()).unwrap_or_default();
    for home in ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(var).map(PathBuf::from) {
        all.push(home.join("lib64"));
    }
    all.push("/usr/local/cuda/lib64".into());
    let python = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(var).map(PathBuf::from);
    for prefix in python.chain(["/usr/local".into(), "/usr".into(), "/opt/conda".into()]) {
        for version in children(&prefix.join("lib")) {
            for packages in ["site-packages", "dist-packages"] {
                all.extend(children(&version.join(packages).join("nvidia")).into_iter().map(|p| p.join("lib")));
            }
        }
    }
    all
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    all.sort();
    all
}

/// Makes sure that a library can be loaded by its name: the loader finds it, or it lies in one of the folders and is loaded
/// from there, after which the name finds what is loaded.
fn find(present: impl Fn() -> bool, library: &'static str, wheel: &'static str) -> Result<()> {
    if present() {
        return Ok(());
    }
    for folder in folders().into_iter().filter(|folder| folder.join(library).is_file()) {
        // The compiler looks for its built-in functions by name, too.
        let beside = children(&folder);
        let needed = |file: &&PathBuf| {
            file.file_name().is_some_and(|n| n.to_string_lossy().starts_with(BUILTINS) || n == CUDNN_GRAPH)
        };
        beside.iter().filter(needed).for_each(|file| keep_loaded(file));
        keep_loaded(&folder.join(library));
        if present() {
            return Ok(());
        }
    }
    Err(Error::Library { library, wheel })
}

/// Loads a library for the life of the process, as what is found by name is. One that cannot be loaded is not found later.
fn keep_loaded(file: &Path) {
    // SAFETY: loading runs the initialisers of a library of CUDA.
    if let Ok(loaded) = unsafe { libloading::Library::new(file) } {
        std::mem::forget(loaded);
    }
}

pub(super) fn driver() -> Result<()> {
    // SAFETY: tries to load the library and closes it again.
    if unsafe { cudarc::driver::sys::is_culib_present() } { Ok(()) } else { Err(Error::NoDriver) }
}

pub(super) fn compiler() -> Result<()> {
    // SAFETY: as above.
    find(|| unsafe { cudarc::nvrtc::sys::is_culib_present() }, "libnvrtc.so.13", "nvidia-cuda-nvrtc")
}

pub(super) fn products() -> Result<()> {
    // SAFETY: as above.
    find(|| unsafe { cudarc::cublaslt::sys::is_culib_present() }, "libcublasLt.so.13", "nvidia-cublas")
}

/// The library has parts that lie beside it and that it loads itself; without the first it would end the process.
pub(super) fn convolutions() -> Result<()> {
    // SAFETY: as above.
    let present = || unsafe { cudarc::cudnn::sys::is_culib_present() && libloading::Library::new(CUDNN_GRAPH).is_ok() };
    find(present, "libcudnn.so.9", "nvidia-cudnn-cu13")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_nowhere_is_named_with_what_brings_it() {
        let e = find(|| false, "libnvrtc.so.999", "nvidia-cuda-nvrtc").unwrap_err().to_string();
        assert!(e.contains("libnvrtc.so.999") && e.contains("pip install nvidia-cuda-nvrtc"), "{e}");
        assert!(e.contains("FEWSTEP_CUDA_LIBRARIES"), "{e}");
        assert!(find(|| true, "libnvrtc.so.999", "nvidia-cuda-nvrtc").is_ok());
    }
}
