use std::{fmt, io, path::PathBuf, sync::Arc};

/// Where a setting was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// By an option or its variable.
    Option(&'static str),
    /// In a file.
    Line {
        /// Which file.
        path: Arc<PathBuf>,
        /// Which line, from 1.
        line: u64,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option(name) => f.write_str(name),
            Self::Line { path, line } => write!(f, "{}, line {line}", path.display()),
        }
    }
}

/// The cloud's settings can't be used; nothing was sent. Carries no secret: no value of a setting that
/// may be one.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// Nothing was said.
    #[error(
        "which cloud? Name one of clouds.yaml with --os-cloud (OS_CLOUD), or give --os-auth-url with a user or an application credential, or --os-auth-type none with --os-endpoint and --os-project-id for a Cinder without Keystone{found}"
    )]
    Unsaid {
        /// What the files have.
        found: String,
    },
    /// A cloud was named that is in no file.
    #[error("there is no cloud {name:?}: {found}; see --os-cloud (OS_CLOUD)")]
    NoSuchCloud {
        /// The name.
        name: String,
        /// What the files have.
        found: String,
    },
    /// A file can't be read.
    #[error("cannot read {}; check the path and its rights", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file is not YAML.
    #[error(
        "{}, line {line}, column {column}: this is not YAML: {what}; text with special characters (: # * & ! @ % {{ [) must stand in quotes", path.display()
    )]
    NotYaml {
        /// Which file.
        path: PathBuf,
        /// Which line.
        line: u64,
        /// Which column.
        column: u64,
        /// What is wrong.
        what: String,
    },
    /// A setting is wrong.
    #[error("{}: {what}", place(origin, key))]
    Wrong {
        /// Where it was said.
        origin: Origin,
        /// Which one, as in clouds.yaml.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// A setting is missing.
    #[error("{of} lacks {what}")]
    Missing {
        /// What of.
        of: String,
        /// What is missing, and how to say it.
        what: String,
    },
}

/// An option says its own name.
fn place(origin: &Origin, key: &str) -> String {
    match origin {
        Origin::Option(_) => origin.to_string(),
        Origin::Line { .. } => format!("{origin}: {key}"),
    }
}

impl CloudError {
    /// The CamelCase word for it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unsaid { .. } | Self::NoSuchCloud { .. } => "CloudUnknown",
            Self::Unreadable { .. } => "CloudFileUnreadable",
            Self::NotYaml { .. } | Self::Wrong { .. } | Self::Missing { .. } => {
                "CloudMisconfigured"
            }
        }
    }
}
