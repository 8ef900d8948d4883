use super::Attached;

/// A volume that was grown while it is used, or needed no growth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resized {
    /// As it is now; `changed` where anything grew.
    pub attached: Attached,
    /// The device's size before.
    pub before_bytes: u64,
    /// The file system was smaller than its device, and is not any more.
    pub filesystem_grown: bool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The volume is attached.
    Attached(Box<Attached>),
    /// The volume is not attached to this node; whether anything had to be done.
    Detached {
        /// Whether there was something to detach.
        changed: bool,
    },
}
