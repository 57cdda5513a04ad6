//! SHA-256 of files, as `sha256sum` prints it.

use std::fs::File;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The SHA-256 of a file's bytes, in 64 lower-case hexadecimal digits.
///
/// # Errors
/// If the file cannot be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    File::open(path).and_then(|mut f| std::io::copy(&mut f, &mut hash)).map_err(Error::io(path))?;
    Ok(hex(&hash.finalize()))
}

/// The SHA-256 of bytes, in 64 lower-case hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_its_bytes_have_the_published_digest_of_abc() {
        // FIPS 180-2, Appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "abc").unwrap();
        assert_eq!(sha256_file(&dir.path().join("f")).unwrap(), abc);
        assert_eq!(sha256(b"abc"), abc);
        assert!(sha256_file(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
