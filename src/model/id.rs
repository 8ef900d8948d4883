use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The text is not a UUID in the hyphenated form that Cinder uses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what} id: expected a UUID such as 5c2f7a1e-03d4-4b7e-9c7a-2f1f0f6f2a10")]
pub struct IdError {
    what: &'static str,
    text: String,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// The UUID itself.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                // Only the hyphenated form: it goes into URLs and file names as it is.
                match Uuid::try_parse(text) {
                    Ok(uuid) if text.len() == 36 => Ok(Self(uuid)),
                    _ => Err(IdError { what: $what, text: text.chars().take(80).collect() }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

uuid_id! {
    /// A Cinder volume's id.
    VolumeId, "a volume"
}
uuid_id! {
    /// A Cinder attachment's id.
    AttachmentId, "an attachment"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_hyphenated_uuid_is_a_volume_id() {
        let id: VolumeId = "7A29c609-53cc-4134-830f-6d08a0b9da91".parse().unwrap();
        assert_eq!(id.to_string(), "7a29c609-53cc-4134-830f-6d08a0b9da91");
        for bad in [
            "",
            "nope",
            "7a29c60953cc4134830f6d08a0b9da91",
            "{7a29c609-53cc-4134-830f-6d08a0b9da91}",
        ] {
            assert!(bad.parse::<VolumeId>().is_err(), "{bad:?} was accepted");
        }
    }
}
