//! attachd attaches Cinder volumes (`OpenStack`'s block storage) to Linux nodes without Nova.
//!
//! ```text
//!   a request (command line, directory of YAML, custom resource)
//!       │
//!       ▼                   ┌────────► cinder   attachments API
//!   attach: observe → plan → execute ─► ledger  what can't be observed again
//!                           └────────► host     iscsiadm, sysfs, multipathd, mount
//! ```
//!
//! Imports go one way only; `tests/layering.rs` reads them and fails on an arrow that is not here:
//!
//! | module         | may use                                        |
//! |----------------|------------------------------------------------|
//! | `cli`          | everything but `testing`                       |
//! | `controller`, `requests_dir` | `attach`, `cinder`, `crd`, `health`, `host`, `model`, `projection`, `requests` |
//! | `doctor`       | `attach`, `cinder`, `cloud`, `crd`, `host`, `http`, `model` |
//! | `requests`     | `attach`, `cinder`, `health`, `host`, `metrics`, `model`, `projection` |
//! | `health`       | `metrics`                                      |
//! | `metrics`      | `attach`, `cinder`, `host`, `model`            |
//! | `projection`   | `attach`, `crd`, `model`                       |
//! | `attach`       | `cinder`, `host`, `model`                      |
//! | `config`       | `cloud`                                        |
//! | `cinder`       | `http`, `keystone`, `model`                    |
//! | `cloud`        | `cinder`, `http`, `keystone`, `model`          |
//! | `keystone`     | `http`, `model`                                |
//! | `crd`, `host`  | `model`                                        |
//! | `journal`      | `model`                                        |
//! | `http`         | nothing of ours                                |
//! | `testing`      | `attach`, `cinder`, `cloud`, `host`, `journal`, `keystone`, `model`, `requests_dir` (feature `testing`) |
//! | `model`        | nothing of ours                                |

pub mod attach;
pub mod cinder;
pub mod cli;
pub mod cloud;
pub mod config;
pub mod controller;
pub mod crd;
pub mod doctor;
pub mod health;
pub mod host;
pub mod http;
pub mod journal;
pub mod keystone;
pub mod metrics;
pub mod model;
pub mod projection;
pub mod requests;
pub mod requests_dir;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
