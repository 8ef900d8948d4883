use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use super::{CloudError, Settings, document::Document};

/// Where the files may be.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The directories to look in, in this order.
    pub directories: Vec<PathBuf>,
    /// The `clouds.yaml`, where one was named.
    pub clouds: Option<PathBuf>,
    /// The `secure.yaml`, where one was named.
    pub secure: Option<PathBuf>,
    /// What `~` stands for.
    pub home: Option<PathBuf>,
}

impl Places {
    /// The usual ones: the working directory, `~/.config/openstack`, `/etc/openstack`.
    pub fn usual(settings: &Settings) -> Self {
        let named = |path: &Option<String>| {
            path.as_ref().filter(|path| !path.is_empty()).map(PathBuf::from)
        };
        let home = env::home_dir().filter(|home| home.is_absolute());
        let mut directories: Vec<PathBuf> = env::current_dir().ok().into_iter().collect();
        directories.extend(home.as_ref().map(|home| home.join(".config/openstack")));
        directories.push(PathBuf::from("/etc/openstack"));
        Self {
            directories,
            clouds: named(&settings.os_client_config_file),
            secure: named(&settings.os_client_secure_file),
            home,
        }
    }

    pub(super) fn clouds(&self) -> Result<Option<Document>, CloudError> {
        self.read("clouds", self.clouds.as_deref())
    }

    pub(super) fn secure(&self) -> Result<Option<Document>, CloudError> {
        self.read("secure", self.secure.as_deref())
    }

    pub(super) fn vendors(&self) -> Result<Option<Document>, CloudError> {
        self.read("clouds-public", None)
    }

    /// The first that is there. One that can't be read is an error, and no reason to take the next:
    /// that may be another cloud.
    fn read(&self, stem: &str, named: Option<&Path>) -> Result<Option<Document>, CloudError> {
        if let Some(path) = named {
            return read(path).map(Some);
        }
        for directory in &self.directories {
            for suffix in ["yaml", "yml", "json"] {
                match read(&directory.join(format!("{stem}.{suffix}"))) {
                    Err(CloudError::Unreadable { source, .. }) if is_absence(&source) => {}
                    other => return other.map(Some),
                }
            }
        }
        Ok(None)
    }

    /// With `~` written out.
    pub(super) fn expand(&self, path: &str) -> PathBuf {
        match (path.strip_prefix("~/"), &self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(path),
        }
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn read(path: &Path) -> Result<Document, CloudError> {
    let text = fs::read_to_string(path)
        .map_err(|source| CloudError::Unreadable { path: path.to_owned(), source })?;
    Document::parse(path, &text)
}
