use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use k8s_openapi::jiff::Timestamp;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::blocking;
use crate::{
    attach::{Origin, Record},
    crd::{VolumeAttachRequestSpec, VolumeAttachRequestStatus},
    projection::{self, Standing},
    requests::{End, Refused, Subject},
};

const API_VERSION: &str = "attachd.dev/v1alpha1";
const KIND: &str = "VolumeAttachRequest";
const STATUS_SUFFIX: &str = ".status.yaml";

/// Longer than any request can be.
const MAX_BYTES: u64 = 256 * 1024;

/// Longest text of a file that a message quotes.
const MAX_QUOTED: usize = 300;

/// What the directory holds.
pub(super) struct Scan {
    pub(super) found: Vec<Found>,
    /// Statuses that no file stands beside: what they are of was removed, or renamed.
    pub(super) left: Vec<StatusFile>,
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
        let (mut paths, mut statuses) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let yaml = matches!(path.extension().and_then(|e| e.to_str()), Some("yaml" | "yml"));
            if name.starts_with('.') {
                continue;
            }
            if let Some(stem) = name.strip_suffix(STATUS_SUFFIX) {
                statuses.push(stem.to_owned());
            } else if yaml {
                paths.push(path);
            }
        }
        paths.sort();
        let has_file = |stem: &String| paths.iter().any(|path| &stem_of(path) == stem);
        statuses.retain(|stem| !has_file(stem));
        let left = statuses.iter().map(|stem| StatusFile::found(directory, stem)).collect();
        Ok(Self { found: paths.iter().map(|path| read_one(directory, path)).collect(), left })
    }
}

fn stem_of(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

fn read_one(directory: &Path, path: &Path) -> Found {
    let stem = stem_of(path);
    match parse(path) {
        Ok((name, spec)) => {
            let status = StatusFile::new(directory, &stem, &name);
            Found::Request { name, spec: Box::new(spec), status }
        }
        Err(error) => {
            // The name that this file was served under before it broke.
            let status = StatusFile::found(directory, &stem);
            Found::Malformed { status, error }
        }
    }
}

fn parse(path: &Path) -> Result<(String, VolumeAttachRequestSpec), String> {
    request(&read_bounded(path).map_err(|error| format!("can't be read: {error}"))?)
}

/// Reads a file that may be no file, or grow while it is read.
fn read_bounded(path: &Path) -> io::Result<String> {
    // A FIFO would else be waited for.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let mut text = String::new();
    if file.metadata()?.is_file() {
        file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 <= MAX_BYTES {
            return Ok(text);
        }
    }
    Err(io::Error::other(format!("it is not a file of at most {MAX_BYTES} bytes")))
}

/// What a message quotes of a file.
fn quoted(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_QUOTED).collect()
}

/// The name and the specification of a request's text.
pub(crate) fn request(text: &str) -> Result<(String, VolumeAttachRequestSpec), String> {
    let file: RequestFile = serde_saphyr::from_str(text).map_err(|error| {
        // The lines below draw the place in the file.
        let error = quoted(error.to_string().lines().next().unwrap_or_default());
        format!("is no {KIND}: {}", error.trim_start_matches("error: "))
    })?;
    if file.api_version != API_VERSION || file.kind != KIND {
        let (version, kind) = (quoted(&file.api_version), quoted(&file.kind));
        return Err(format!("holds {version} {kind}, expected {API_VERSION} {KIND}"));
    }
    // As Kubernetes has it: the name becomes a file's and a directory's.
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    let name = file.metadata.name;
    let edges = name.as_bytes().first().zip(name.as_bytes().last());
    let proper = edges.is_some_and(|(a, b)| a.is_ascii_alphanumeric() && b.is_ascii_alphanumeric());
    if name.len() > 253 || !proper || !name.bytes().all(plain) {
        let name = quoted(&name);
        return Err(format!(
            "metadata.name {name:?} must be made of lower-case letters, digits, - and ."
        ));
    }
    Ok((name, file.spec))
}

/// The status of one request, in a file beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StatusFile {
    path: PathBuf,
    name: String,
}

impl StatusFile {
    pub(super) fn new(directory: &Path, stem: &str, name: &str) -> Self {
        Self { path: directory.join(format!("{stem}{STATUS_SUFFIX}")), name: name.to_owned() }
    }

    /// One that may be there: it knows the name of its request, which else is its own.
    fn found(directory: &Path, stem: &str) -> Self {
        let status = Self::new(directory, stem, stem);
        let name = status.read().and_then(|document| {
            document.metadata.get("name").and_then(Value::as_str).map(ToOwned::to_owned)
        });
        match name {
            Some(name) => Self { name, ..status },
            None => status,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn read(&self) -> Option<StatusDocument> {
        serde_saphyr::from_str(&read_bounded(&self.path).ok()?).ok()
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
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o644);
            file.custom_flags(OFlag::O_NOFOLLOW.bits())
                .open(&temporary)?
                .write_all(text.as_bytes())?;
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

/// Files are always at hand, and a status that can't be written is logged.
impl Subject for StatusFile {
    fn origin(&self) -> Origin {
        Origin::RequestsDir(self.name.clone())
    }

    async fn admit(&self, _: Option<&Record>) -> Result<(), Refused> {
        Ok(())
    }

    async fn report(&self, standing: Standing<'_>) -> Result<(), Refused> {
        self.write(standing).await;
        Ok(())
    }

    async fn wants_detach(&self) -> Result<bool, Refused> {
        Ok(true)
    }

    async fn release(&self, _: &End) -> Result<(), Refused> {
        self.remove().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "apiVersion: attachd.dev/v1alpha1\nkind: VolumeAttachRequest\nmetadata: {name: db, labels: {a: b}}\nspec: {nodeName: n1, volumeID: 7a29c609-53cc-4134-830f-6d08a0b9da91}\n";

    fn scan(files: &[(&str, &str)]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let shown = |found: Found| match found {
            Found::Request { name, .. } => name,
            Found::Malformed { status, error } => format!("{}: {error}", status.name()),
        };
        Scan::read(directory.path()).unwrap().found.into_iter().map(shown).collect()
    }

    #[test]
    fn only_yaml_files_that_are_no_status_are_requests() {
        let found = scan(&[
            ("db.yaml", REQUEST),
            ("db.status.yaml", "status: {}"),
            ("db.status.tmp", "x"),
            (".db.yaml.swp", "x"),
            (".hidden.yaml", "x"),
            ("notes.txt", "x"),
        ]);
        assert_eq!(found, ["db"]);
    }

    #[test]
    fn a_file_that_is_no_request_says_why_and_hides_no_other() {
        let wrong = |from: &str, to: &str| REQUEST.replace(from, to);
        let found = scan(&[
            ("a.yaml", "{{{"),
            ("b.yaml", ""),
            ("c.yaml", &wrong("v1alpha1", "v9")),
            ("d.yaml", &wrong("name: db", "name: ../db")),
            ("e.yaml", &wrong("nodeName", "nodename")),
            ("f.yml", REQUEST),
        ]);
        assert!(found[0].starts_with("a: is no VolumeAttachRequest"), "{}", found[0]);
        assert!(found[1].starts_with("b: "), "{}", found[1]);
        assert!(found[2].contains("attachd.dev/v9"), "{}", found[2]);
        assert!(found[3].contains("metadata.name \"../db\""), "{}", found[3]);
        assert!(found[4].contains("nodename"), "{}", found[4]);
        assert_eq!(found[5], "db");
    }

    #[test]
    fn a_file_that_broke_keeps_the_name_that_it_was_served_under() {
        let status = "apiVersion: a\nkind: b\nmetadata: {name: db}\nstatus: {}\n";
        let found = scan(&[("x.yaml", "{{{"), ("x.status.yaml", status)]);
        assert!(found[0].starts_with("db: "), "{}", found[0]);
    }

    #[test]
    fn statuses_without_a_file_are_left_under_the_names_of_their_requests() {
        let directory = tempfile::tempdir().unwrap();
        let status = "apiVersion: a\nkind: b\nmetadata: {name: db}\nstatus: {}\n";
        for (name, text) in [
            ("x.yaml", REQUEST),
            ("x.status.yaml", status),
            ("gone.status.yaml", status),
            ("broken.status.yaml", "{{{"),
        ] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let mut left = Scan::read(directory.path()).unwrap().left;
        left.sort_by(|a, b| a.path.cmp(&b.path));
        let status = |stem, name| StatusFile::new(directory.path(), stem, name);
        assert_eq!(left, [status("broken", "broken"), status("gone", "db")]);
    }

    #[tokio::test]
    async fn a_status_is_written_once_and_keeps_its_transition_time() {
        let directory = tempfile::tempdir().unwrap();
        let status = StatusFile::new(directory.path(), "x", "db");
        status.refuse("InvalidRequest", "first").await;
        let path = directory.path().join("x.status.yaml");
        let first = fs::read_to_string(&path).unwrap();
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        status.refuse("InvalidRequest", "first").await;
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), written);
        status.refuse("InvalidRequest", "second").await;
        let second = fs::read_to_string(&path).unwrap();
        assert_eq!(first.replace("first", "second"), second);
        status.remove().await;
        status.remove().await;
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_plain_small_file_is_not_read_and_hides_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("a.yaml")).unwrap();
        nix::unistd::mkfifo(&at("b.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("c.yaml")).unwrap();
        fs::File::create(at("d.yaml")).unwrap().set_len(1 << 40).unwrap();
        fs::write(at("e.yaml"), [0xff, 0xfe, 0]).unwrap();
        fs::write(at("f.yaml"), REQUEST).unwrap();
        let found = Scan::read(directory.path()).unwrap().found;
        let good = found.iter().filter(|found| matches!(found, Found::Request { .. })).count();
        assert_eq!((found.len(), good), (6, 1));
    }

    #[test]
    fn text_that_grows_when_it_is_read_is_refused_soon_and_quoted_briefly() {
        let bomb = (1..30).fold("a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, level| {
            let before = level - 1;
            text + &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{before}"); 9].join(","))
        });
        for (what, text) in [
            ("aliases", bomb),
            ("flow", "[".repeat(200_000)),
            ("mappings", "{a: ".repeat(50_000)),
            ("block", "- ".repeat(100_000)),
            ("a long word", "x".repeat(250_000)),
            ("a terminal's", "\"\\e[2J\": 1".to_owned()),
            ("unknown field", format!("{REQUEST}  {}: x\n", "y".repeat(100_000))),
            ("a long kind", REQUEST.replace("VolumeAttachRequest", &"K".repeat(100_000))),
            ("a long name", REQUEST.replace("name: db", &format!("name: {}", "n".repeat(100_000)))),
        ] {
            let began = std::time::Instant::now();
            let error = request(&text).expect_err(what);
            assert!(error.len() < 1500 && !error.contains(char::is_control), "{what}: {error}");
            assert!(began.elapsed().as_secs() < 20, "{what} took {:?}", began.elapsed());
        }
    }
}
