/// When an operation that failed may be tried again. Every error of ours answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// At once: the state changed while we looked.
    Now,
    /// After a pause that grows: the other side is away or busy.
    Backoff,
    /// Not before somebody changes the request, the node or the cloud.
    OnChange,
}
