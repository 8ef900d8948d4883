//! How an HTTP client of `OpenStack` is built, and how an answer is read.
//!
//! Keystone and Cinder are asked in the same way: with the certificates that the cloud's settings
//! name, through the environment's proxies (never for this machine itself), without following
//! redirects, within time limits, and reading no more than is bounded.

pub(crate) mod backoff;
mod client;
mod error;
mod read;
mod watch;

pub use client::{Http, Tls};
pub use error::{Cause, HttpError};
pub(crate) use read::{Received, one_line, receive};
pub use watch::{Asked, Heard, Watch};
