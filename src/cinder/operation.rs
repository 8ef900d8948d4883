use std::fmt;

use crate::model::{AttachmentId, VolumeId};

/// What was asked of Cinder: the verb and its object, for errors and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `GET /v3/`.
    Discover,
    /// `GET /volumes/{id}`.
    ShowVolume(VolumeId),
    /// `POST /attachments` without a connector.
    Reserve(VolumeId),
    /// `POST /attachments` with a connector.
    Create(VolumeId),
    /// `PUT /attachments/{id}`.
    Update(AttachmentId),
    /// `POST /attachments/{id}/action`.
    Complete(AttachmentId),
    /// `GET /attachments/{id}`.
    Show(AttachmentId),
    /// `GET /attachments` and `GET /attachments/detail`.
    List,
    /// `DELETE /attachments/{id}`.
    Delete(AttachmentId),
}

impl Operation {
    /// The id of the object that Cinder would name in a genuine 404.
    pub(super) fn object(self) -> Option<String> {
        match self {
            Self::ShowVolume(id) | Self::Reserve(id) | Self::Create(id) => Some(id.to_string()),
            Self::Update(id) | Self::Complete(id) | Self::Show(id) | Self::Delete(id) => {
                Some(id.to_string())
            }
            Self::Discover | Self::List => None,
        }
    }

    /// Whether a second time does no harm. A second reservation does.
    pub(super) fn is_repeatable(self) -> bool {
        match self {
            Self::Reserve(_) | Self::Create(_) => false,
            Self::Discover
            | Self::ShowVolume(_)
            | Self::Update(_)
            | Self::Complete(_)
            | Self::Show(_)
            | Self::List
            | Self::Delete(_) => true,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discover => f.write_str("tell its API versions"),
            Self::ShowVolume(id) => write!(f, "show volume {id}"),
            Self::Reserve(id) => write!(f, "reserve volume {id}"),
            Self::Create(id) => write!(f, "create an attachment of volume {id}"),
            Self::Update(id) => write!(f, "update attachment {id}"),
            Self::Complete(id) => write!(f, "complete attachment {id}"),
            Self::Show(id) => write!(f, "show attachment {id}"),
            Self::List => f.write_str("list attachments"),
            Self::Delete(id) => write!(f, "delete attachment {id}"),
        }
    }
}
