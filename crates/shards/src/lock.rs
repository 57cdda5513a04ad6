//! One builder a folder at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::{Error, Result};

const LOCK: &str = "dataset.lock";

/// Takes the folder's advisory lock, which ends with the process however that ends. The file stays: removing it would
/// let two processes lock two files of one name.
pub fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // The process number is a courtesy: a message without it is still right.
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u32>().ok());
            let owner = pid.map_or("another process".to_string(), |pid| format!("process {pid}"));
            return Err(Error::Busy { path: folder.to_path_buf(), owner });
        }
        Err(TryLockError::Error(e)) => return Err(Error::io(&path)(e)),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    // The text is a courtesy too, and must not stop a build on a full disk that has nothing left to write.
    let _ = write(&mut file);
    Ok(file)
}
