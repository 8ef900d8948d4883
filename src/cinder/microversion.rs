use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU16, Ordering},
};

/// A microversion of Cinder's v3 API: the `54` of `3.54`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Microversion(u16);

/// What attachd asks for as long as the cloud has it.
pub const PREFERRED: Microversion = Microversion(54);

impl Microversion {
    /// The first with attachments (Ocata).
    pub const ATTACHMENTS: Self = Self(27);
    /// The first with `os-complete` (Queens).
    pub const COMPLETE: Self = Self(44);
    /// The first whose reservation takes a mode (Rocky).
    pub const MODE: Self = Self(54);

    /// `3.minor`.
    pub const fn v3(minor: u16) -> Self {
        Self(minor)
    }
}

impl fmt::Display for Microversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "3.{}", self.0)
    }
}

/// Not a microversion of the v3 API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a microversion of Cinder's v3 API, such as 3.54")]
pub struct MicroversionError(String);

impl FromStr for Microversion {
    type Err = MicroversionError;

    fn from_str(text: &str) -> Result<Self, MicroversionError> {
        text.strip_prefix("3.")
            .and_then(|minor| minor.parse().ok())
            .map(Self)
            .ok_or_else(|| MicroversionError(text.chars().take(40).collect()))
    }
}

/// What a cloud offers, as discovery tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) lowest: Microversion,
    pub(super) highest: Microversion,
}

/// Why there is no common version.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoCommonVersion {
    TooOld,
    TooNew,
}

/// The version in use. It starts at the wanted one, without asking; only a refusal lowers it.
/// It is never raised again: a cloud that was upgraded still speaks the older one.
#[derive(Debug)]
pub(super) struct InUse {
    wanted: Microversion,
    current: AtomicU16,
}

impl InUse {
    pub(super) fn new(wanted: Microversion) -> Self {
        Self { wanted, current: AtomicU16::new(wanted.0) }
    }

    pub(super) fn get(&self) -> Microversion {
        Microversion(self.current.load(Ordering::Relaxed))
    }

    /// Takes the highest version that both sides have.
    pub(super) fn agree(&self, offer: Offer) -> Result<Microversion, NoCommonVersion> {
        let common = self.wanted.min(offer.highest);
        if common < Microversion::ATTACHMENTS {
            Err(NoCommonVersion::TooOld)
        } else if common < offer.lowest {
            Err(NoCommonVersion::TooNew)
        } else {
            self.current.store(common.0, Ordering::Relaxed);
            Ok(common)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn microversions_are_read_written_and_ordered_by_number() {
        let version: Microversion = "3.71".parse().unwrap();
        assert_eq!(version.to_string(), "3.71");
        assert!(version > Microversion::v3(8));
        for bad in ["", "3", "2.1", "3.x", "3.-1", "latest"] {
            assert!(bad.parse::<Microversion>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_highest_common_version_is_taken_and_remembered() {
        let offer = |lowest, highest| Offer {
            lowest: Microversion(lowest),
            highest: Microversion(highest),
        };
        let in_use = InUse::new(PREFERRED);
        assert_eq!(in_use.get(), PREFERRED);
        assert_eq!(in_use.agree(offer(0, 43)), Ok(Microversion(43)));
        assert_eq!(in_use.get(), Microversion(43));
        assert_eq!(in_use.agree(offer(0, 71)), Ok(PREFERRED));
        assert_eq!(in_use.agree(offer(0, 26)), Err(NoCommonVersion::TooOld));
        assert_eq!(in_use.agree(offer(60, 90)), Err(NoCommonVersion::TooNew));
        assert_eq!(in_use.get(), PREFERRED);
    }
}
