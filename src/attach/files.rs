//! Small files that are wholly there or not at all, and on the disk when a write returns.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    mem,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
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
    let mut text = Vec::new();
    if read_text(path, &mut text)? { parsed(path, &text).map(Some) } else { Ok(None) }
}

/// Reads a file into `text`; `false` where it isn't there.
fn read_text(path: &Path, text: &mut Vec<u8>) -> Result<bool, LedgerError> {
    text.clear();
    match File::open(path).and_then(|mut file| file.read_to_end(text)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(LedgerError::Io { doing: "reading", path: path.to_owned(), source }),
    }
}

fn parsed<T: serde::de::DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, LedgerError> {
    serde_json::from_slice(text)
        .map_err(|source| LedgerError::Malformed { path: path.to_owned(), source })
}

pub(super) fn read_all<T: serde::de::DeserializeOwned>(
    directory: &Path,
) -> Result<Vec<Result<T, LedgerError>>, LedgerError> {
    Ok(all(directory)?.iter().filter_map(|path| read(path).transpose()).collect())
}

/// What was read of files, and the text that it was read from: a file of the same text says the same.
pub(super) type Known<T> = BTreeMap<PathBuf, (Box<[u8]>, Arc<T>)>;

/// [`read_all`], which makes anew only what is another than it was.
pub(super) fn read_all_anew<T: serde::de::DeserializeOwned>(
    directory: &Path,
    known: &mut Known<T>,
) -> Result<Vec<Result<Arc<T>, LedgerError>>, LedgerError> {
    let mut last = mem::take(known);
    let (mut found, mut text) = (Vec::new(), Vec::new());
    for path in all(directory)? {
        match read_text(&path, &mut text) {
            Ok(false) => {}
            Err(error) => found.push(Err(error)),
            Ok(true) => {
                let same = last.remove(&path).filter(|(seen, _)| **seen == *text);
                let made = || Ok((text.as_slice().into(), Arc::new(parsed(&path, &text)?)));
                found.push(same.map_or_else(made, Ok).map(|(seen, what)| {
                    known.insert(path, (seen, Arc::clone(&what)));
                    what
                }));
            }
        }
    }
    Ok(found)
}

fn all(directory: &Path) -> Result<Vec<PathBuf>, LedgerError> {
    let io = |source| LedgerError::Io { doing: "listing", path: directory.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The number in each file, and which of them are as they were read before.
    fn numbers(directory: &Path, known: &mut Known<u32>) -> Vec<(Option<u32>, bool)> {
        let before: Vec<_> = known.values().map(|(_, number)| Arc::clone(number)).collect();
        let same = |number: &Arc<u32>| before.iter().any(|other| Arc::ptr_eq(number, other));
        let all = read_all_anew::<u32>(directory, known).unwrap();
        all.iter().flatten().for_each(|number| assert!(known.values().any(|(_, n)| n == number)));
        all.iter().map(|one| (one.as_deref().ok().copied(), one.as_ref().is_ok_and(same))).collect()
    }

    #[test]
    fn only_a_file_of_another_text_is_made_anew() {
        let (directory, mut known) = (tempfile::tempdir().unwrap(), Known::new());
        let at = directory.path();
        let put = |name: &str, text: &str| fs::write(at.join(name), text).unwrap();
        put("a.json", "1");
        put("b.json", "2");
        put("b.tmp", "not looked at");
        assert_eq!(numbers(at, &mut known), [(Some(1), false), (Some(2), false)]);
        assert_eq!(numbers(at, &mut known), [(Some(1), true), (Some(2), true)]);
        // As long as it was, and written in the same moment.
        put("b.json", "3");
        assert_eq!(numbers(at, &mut known), [(Some(1), true), (Some(3), false)]);
        put("b.json", "x");
        assert_eq!(numbers(at, &mut known), [(Some(1), true), (None, false)]);
        fs::remove_file(at.join("b.json")).unwrap();
        assert_eq!(numbers(at, &mut known), [(Some(1), true)]);
        assert_eq!(known.len(), 1, "what is gone is forgotten");
    }
}
