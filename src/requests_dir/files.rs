use std::{
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::blocking;
use crate::{
    crd::{VolumeAttachRequestSpec, VolumeAttachRequestStatus},
    projection::{self, Standing},
};

const API_VERSION: &str = "attachd.dev/v1alpha1";
const KIND: &str = "VolumeAttachRequest";
const STATUS_SUFFIX: &str = ".status.yaml";

/// Longer than any request can be.
const MAX_BYTES: u64 = 256 * 1024;

/// What the directory holds.
pub(super) struct Scan {
    pub(super) found: Vec<Found>,
}

/// A file of the directory.
pub(super) enum Found {
    Request { name: String, spec: Box<VolumeAttachRequestSpec>, status: StatusFile },
    Malformed { status: StatusFile, error: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequestFile {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: VolumeAttachRequestSpec,
}

/// Other metadata (labels, annotations) is allowed, and not ours.
#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatusDocument {
    api_version: String,
    kind: String,
    metadata: Value,
    status: VolumeAttachRequestStatus,
}

impl Scan {
    /// Reads every request; one that can't be read or understood doesn't hide the others.
    pub(super) fn read(directory: &Path) -> io::Result<Self> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let yaml = name.ends_with(".yaml") || name.ends_with(".yml");
            if yaml && !name.starts_with('.') && !name.ends_with(STATUS_SUFFIX) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(Self { found: paths.iter().map(|path| read_one(directory, path)).collect() })
    }
}

fn read_one(directory: &Path, path: &Path) -> Found {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    match parse(path) {
        Ok((name, spec)) => {
            let status = StatusFile::new(directory, &stem, &name);
            Found::Request { name, spec: Box::new(spec), status }
        }
        Err(error) => {
            // The name that this file was served under before it broke.
            let served = StatusFile::new(directory, &stem, &stem);
            let name = served.read().and_then(|document| {
                document.metadata.get("name").and_then(Value::as_str).map(ToOwned::to_owned)
            });
            let status = match name {
                Some(name) => StatusFile::new(directory, &stem, &name),
                None => served,
            };
            Found::Malformed { status, error }
        }
    }
}

fn parse(path: &Path) -> Result<(String, VolumeAttachRequestSpec), String> {
    let metadata = fs::metadata(path).map_err(|error| format!("can't be read: {error}"))?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(format!("is not a file of at most {MAX_BYTES} bytes"));
    }
    let text = fs::read_to_string(path).map_err(|error| format!("can't be read: {error}"))?;
    let file: RequestFile =
        serde_saphyr::from_str(&text).map_err(|error| format!("is no {KIND}: {error}"))?;
    if file.api_version != API_VERSION || file.kind != KIND {
        return Err(format!(
            "holds {} {}, expected {API_VERSION} {KIND}",
            file.api_version, file.kind
        ));
    }
    // As Kubernetes has it: the name becomes a file's and a directory's.
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let name = file.metadata.name;
    let edges = name.as_bytes().first().zip(name.as_bytes().last());
    let proper = edges.is_some_and(|(a, b)| a.is_ascii_alphanumeric() && b.is_ascii_alphanumeric());
    if name.len() > 253 || !proper || !name.bytes().all(plain) {
        return Err(format!(
            "metadata.name {name:?} must be made of lower-case letters, digits, - and ."
        ));
    }
    Ok((name, file.spec))
}

/// The status of one request, in a file beside it.
#[derive(Debug, Clone)]
pub(super) struct StatusFile {
    path: PathBuf,
    name: String,
}

impl StatusFile {
    pub(super) fn new(directory: &Path, stem: &str, name: &str) -> Self {
        Self { path: directory.join(format!("{stem}{STATUS_SUFFIX}")), name: name.to_owned() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn read(&self) -> Option<StatusDocument> {
        serde_saphyr::from_str(&fs::read_to_string(&self.path).ok()?).ok()
    }

    /// Says why a file is not served. What it asked for before goes on.
    pub(super) async fn refuse(&self, reason: &str, message: &str) {
        let standing = Standing::Unfinished { record: None, reason, message };
        self.write(standing).await;
    }

    /// Writes the status where it differs from what is there. A status that can't be written is
    /// logged: it must not stop the work.
    pub(super) async fn write(&self, standing: Standing<'_>) {
        let previous = {
            let this = self.clone();
            blocking(move || Ok(this.read())).await.ok().flatten()
        };
        let previous = previous.map(|document| document.status);
        let status = projection::status(standing, None, previous.as_ref(), Timestamp::now());
        if previous.as_ref() == Some(&status) {
            return;
        }
        let document = StatusDocument {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            metadata: serde_json::json!({"name": self.name}),
            status,
        };
        let path = self.path.clone();
        let written = blocking(move || {
            let text = serde_saphyr::to_string(&document).map_err(io::Error::other)?;
            // Not `.yaml`: it must never be read as a request.
            let temporary = path.with_extension("tmp");
            fs::write(&temporary, text)?;
            fs::rename(&temporary, &path)
        });
        if let Err(error) = written.await {
            tracing::error!(path = %self.path.display(), "the status can't be written: {error}");
        }
    }

    /// Takes the status away, after the request went.
    pub(super) async fn remove(&self) {
        let path = self.path.clone();
        let removed = blocking(move || fs::remove_file(&path)).await;
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(path = %self.path.display(), "the status can't be removed: {error}");
        }
    }
}
