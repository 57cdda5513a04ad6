//! Compiled kernels on disk: a file per source, options, compiler and driver, named by their hash; and the plans of products that
//! were chosen by timing.
//!
//! A file is written aside and renamed, so that processes that compile the same kernel do not disturb each other. One that
//! does not hold what its own checksum says is compiled again.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

const MAGIC: &[u8] = b"fewstep kernel 1\n";
const HASH_BYTES: usize = 32;

static PROBLEM: OnceLock<String> = OnceLock::new();

/// Why compiled kernels cannot be kept, if they cannot: every start then compiles again.
pub fn cache_problem() -> Option<&'static str> {
    PROBLEM.get().map(String::as_str)
}

/// The folder: `FEWSTEP_CACHE`, or `fewstep` in the user's cache folder.
pub(crate) fn folder() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let user = || var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
    Some(var("FEWSTEP_CACHE").or_else(|| Some(user()?.join("fewstep")))?.join("kernels"))
}

/// The name of a kernel's file: everything that its code depends on.
pub(crate) fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// The code kept under a key, or what `compile` makes, which is then kept.
pub(crate) fn get_or<E>(
    folder: Option<&Path>,
    key: &str,
    compile: impl FnOnce() -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E> {
    if let Some(code) = get(folder, key) {
        return Ok(code);
    }
    let code = compile()?;
    keep(folder, key, &code);
    Ok(code)
}

/// What is kept under a key, if it is whole.
pub(crate) fn get(folder: Option<&Path>, key: &str) -> Option<Vec<u8>> {
    let bytes = fs::read(folder?.join(key)).ok()?;
    unpacked(&bytes).map(<[u8]>::to_vec)
}

/// Keeps something under a key, in the place of what was there.
pub(crate) fn keep(folder: Option<&Path>, key: &str, code: &[u8]) {
    let Some(folder) = folder else { return };
    if let Err(e) = write(folder, &folder.join(key), code) {
        // Only a slower start: the first problem is told, and computing goes on.
        let _ = PROBLEM.set(format!("compiled kernels cannot be kept in {}: {e}", folder.display()));
    }
}

fn unpacked(bytes: &[u8]) -> Option<&[u8]> {
    let (hash, code) = bytes.strip_prefix(MAGIC)?.split_at_checked(HASH_BYTES)?;
    (hash == Sha256::digest(code).as_slice()).then_some(code)
}

fn write(folder: &Path, file: &Path, code: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut aside = tempfile::NamedTempFile::new_in(folder)?;
    aside.write_all(MAGIC)?;
    aside.write_all(&Sha256::digest(code))?;
    aside.write_all(code)?;
    aside.persist(file).map(drop).map_err(|e| e.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(folder: &Path, code: &[u8]) -> (Vec<u8>, bool) {
        let mut ran = false;
        let got = get_or::<()>(Some(folder), "key", || {
            ran = true;
            Ok(code.to_vec())
        });
        (got.unwrap(), ran)
    }

    #[test]
    fn a_kernel_is_compiled_once() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new");
        assert_eq!(compiled(&folder, b"code"), (b"code".to_vec(), true));
        assert_eq!(compiled(&folder, b"other"), (b"code".to_vec(), false));
    }

    #[test]
    fn a_file_that_is_corrupt_at_any_byte_or_cut_is_compiled_again() {
        let folder = tempfile::tempdir().unwrap();
        compiled(folder.path(), b"code");
        let whole = fs::read(folder.path().join("key")).unwrap();
        for i in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[i] ^= 1;
            for bad in [&bytes[..], &whole[..i]] {
                fs::write(folder.path().join("key"), bad).unwrap();
                assert_eq!(compiled(folder.path(), b"again"), (b"again".to_vec(), true), "byte {i}");
            }
        }
        assert_eq!(compiled(folder.path(), b"more"), (b"again".to_vec(), false));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_told_and_nothing_fails() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, b"").unwrap();
        assert_eq!(compiled(&file.join("kernels"), b"code"), (b"code".to_vec(), true));
        assert!(cache_problem().is_some_and(|p| p.contains("cannot be kept")), "{:?}", cache_problem());
    }

    #[test]
    fn two_that_compile_the_same_kernel_both_get_it() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|s| {
            let all: Vec<_> = (0..8).map(|_| s.spawn(|| compiled(folder.path(), &[7; 100_000]).0)).collect();
            all.into_iter().for_each(|t| assert_eq!(t.join().unwrap(), [7; 100_000]));
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_depends_on_every_part_and_on_where_it_ends() {
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["a"]), key(&["a", ""]));
    }
}
