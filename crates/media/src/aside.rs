//! Files and folders that appear whole or not at all: written beside their place, synchronised, renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use tempfile::Builder;

use crate::error::{MediaError, Result};

const FILE_REMEDY: &str = "choose a file in an existing folder that you may write to";
const FOLDER_REMEDY: &str = "choose a folder that is new or empty, in an existing one that you may write to";

/// Writes a file, replacing one of the same name.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let parent = parent(path);
        let mut file = builder(0o666).tempfile_in(parent)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        synchronise_folder(parent)
    };
    write().map_err(failed(path, FILE_REMEDY))
}

/// Writes a folder of files, in the place of nothing or of an empty folder.
pub(crate) fn write_folder(path: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    let write = || {
        let parent = parent(path);
        let folder = builder(0o777).tempdir_in(parent)?;
        for (name, bytes) in files {
            let mut file = File::create_new(folder.path().join(name))?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        synchronise_folder(folder.path())?;
        fs::rename(folder.path(), path)?;
        // The name that it would remove is gone; the folder stays.
        let _ = folder.keep();
        synchronise_folder(parent)
    };
    write().map_err(failed(path, FOLDER_REMEDY))
}

fn failed(path: &Path, remedy: &'static str) -> impl FnOnce(io::Error) -> MediaError {
    move |source| MediaError::Write { path: path.to_owned(), remedy, source }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Temporary names with the permissions of ordinary files, the process's mask applied; the default is the owner's only.
fn builder(mode: u32) -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(".fewstep-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

/// Makes a rename last through a power cut, where the system can open a folder.
fn synchronise_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
