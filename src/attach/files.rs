//! Small files that are wholly there or not at all, and on the disk when a write returns.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

use super::LedgerError;

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, LedgerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(LedgerError::Io {
            doing: "working on",
            path: PathBuf::from("the ledger"),
            source: io::Error::other(error),
        }),
    }
}

pub(super) fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, LedgerError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(LedgerError::Io { doing: "reading", path: path.to_owned(), source });
        }
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| LedgerError::Malformed { path: path.to_owned(), source })
}

pub(super) fn read_all<T: serde::de::DeserializeOwned>(
    directory: &Path,
) -> Result<Vec<Result<T, LedgerError>>, LedgerError> {
    let io = |source| LedgerError::Io { doing: "listing", path: directory.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths.iter().filter_map(|path| read(path).transpose()).collect())
}

/// How long ago a file was written; none where the clock was set back since.
pub(super) fn age(path: &Path) -> Result<Duration, LedgerError> {
    let io = |source| LedgerError::Io { doing: "looking at", path: path.to_owned(), source };
    let written = fs::metadata(path).and_then(|file| file.modified()).map_err(io)?;
    Ok(written.elapsed().unwrap_or_default())
}

/// Where a file is written before it is renamed. One that an attachd left behind when it was killed
/// goes with the next lock.
pub(super) fn temporary(path: &Path) -> PathBuf {
    path.with_extension("tmp")
}

pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), LedgerError> {
    let io = |doing| move |source| LedgerError::Io { doing, path: path.to_owned(), source };
    let text = serde_json::to_vec_pretty(value)
        .map_err(|source| LedgerError::Malformed { path: path.to_owned(), source })?;
    let temporary = temporary(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io("writing"))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(io("writing"))?;
    fs::rename(&temporary, path).map_err(io("renaming"))?;
    sync_directory(path)
}

pub(super) fn remove(path: &Path) -> Result<(), LedgerError> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(LedgerError::Io { doing: "removing", path: path.to_owned(), source }),
    }
}

/// A rename or removal is on the disk only when its directory is.
fn sync_directory(path: &Path) -> Result<(), LedgerError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| LedgerError::Io { doing: "syncing", path: directory.to_owned(), source })
}
