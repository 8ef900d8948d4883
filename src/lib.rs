//! attachd attaches OpenStack Cinder volumes to Linux nodes without Nova.
#![forbid(unsafe_code)]

pub mod attach;
pub mod cinder;
pub mod crd;
pub mod host;
pub mod model;
