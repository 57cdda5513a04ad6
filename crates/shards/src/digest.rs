//! SHA-256, as `sha256sum` prints it.

use std::fs::File;
use std::io::{Result, copy};
use std::path::Path;

use sha2::{Digest, Sha256};

pub fn sha256_file(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    File::open(path).and_then(|mut f| copy(&mut f, &mut hash))?;
    Ok(hex(&hash.finalize()))
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}
