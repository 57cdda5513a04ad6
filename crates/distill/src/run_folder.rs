//! An output folder belongs to one process at a time, and to one run.

use std::fs::{File, OpenOptions, TryLockError, create_dir_all};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

const LOCK: &str = "run.lock";
const CHECKPOINTS: &str = "checkpoints";
const METRICS: &str = "metrics.jsonl";
const TENSORBOARD: &str = "tensorboard";

/// Whether a folder may already hold a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A new run: the folder must hold none.
    Fresh,
    /// Go on with the folder's run; one without a run is a new one.
    Resume,
}

/// An output folder, owned until dropped.
///
/// Ownership is an advisory lock of the operating system on `run.lock`, which ends with the process however that ends;
/// the file's text is the owner's process id. The file itself stays: removing it would let two processes lock two files
/// of one name.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    _lock: File,
}

impl RunFolder {
    /// Takes the folder, creating it if need be.
    ///
    /// # Errors
    /// If the folder cannot be written, another process owns it, or a fresh run finds the files of an earlier one
    /// (which are left as they are).
    pub fn open(path: &Path, start: Start) -> Result<Self> {
        create_dir_all(path).map_err(Error::io(path))?;
        let lock = lock(path)?;
        let folder = RunFolder { path: path.to_path_buf(), _lock: lock };
        let found = folder.run_files();
        if start == Start::Fresh && !found.is_empty() {
            return Err(Error::FolderHoldsRun { path: folder.path, found });
        }
        Ok(folder)
    }

    /// Which of a run's own files the folder holds.
    pub fn run_files(&self) -> Vec<String> {
        let names = [CHECKPOINTS, METRICS, TENSORBOARD];
        names.into_iter().filter(|n| self.path.join(n).exists()).map(String::from).collect()
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the run's checkpoints go.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// Where the run's metrics go.
    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS)
    }

    /// Where the run's event files go.
    pub fn tensorboard(&self) -> PathBuf {
        self.path.join(TENSORBOARD)
    }
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let mut options = OpenOptions::new();
    // Not truncated: until the lock is ours, the text is the owner's.
    let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(Error::io(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // The process id is a courtesy: a message without it is still right.
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u32>().ok());
            let owner = pid.map_or("another process".to_string(), |pid| format!("process {pid}"));
            return Err(Error::FolderBusy { path: folder.to_path_buf(), owner });
        }
        Err(TryLockError::Error(e)) => return Err(Error::io(&path)(e)),
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(Error::io(&path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_in_the_same_folder_is_told_who_owns_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunFolder::open(dir.path(), Start::Fresh).unwrap();
        for start in [Start::Fresh, Start::Resume] {
            let e = RunFolder::open(dir.path(), start).unwrap_err().to_string();
            assert!(e.contains(&format!("process {}", std::process::id())) && e.contains("choose another"), "{e}");
        }
        drop(first);
        RunFolder::open(dir.path(), Start::Fresh).unwrap();
    }

    #[test]
    fn a_lock_file_left_by_a_killed_process_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(LOCK), "4194304999\nrubbish").unwrap();
        let folder = RunFolder::open(dir.path(), Start::Fresh).unwrap();
        let text = std::fs::read_to_string(folder.path().join(LOCK)).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
    }

    #[test]
    fn a_fresh_run_refuses_the_files_of_another_and_a_resumed_one_takes_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("notes.txt"), "the user's own").unwrap();
        let folder = RunFolder::open(&dir.path().join("new/run"), Start::Fresh).unwrap();
        std::fs::write(folder.metrics(), "{}\n").unwrap();
        std::fs::create_dir(folder.checkpoints()).unwrap();
        let path = folder.path().to_path_buf();
        drop(folder);
        let e = RunFolder::open(&path, Start::Fresh).unwrap_err().to_string();
        assert!(e.contains("checkpoints, metrics.jsonl") && e.contains("resume"), "{e}");
        assert_eq!(std::fs::read_to_string(path.join(METRICS)).unwrap(), "{}\n");
        assert_eq!(RunFolder::open(&path, Start::Resume).unwrap().run_files().len(), 2);
        RunFolder::open(dir.path(), Start::Fresh).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let path = dir.path().join("file/run");
        assert!(RunFolder::open(&path, Start::Fresh).unwrap_err().to_string().contains("file/run"));
    }
}
