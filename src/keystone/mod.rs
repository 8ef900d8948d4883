//! Keystone v3: who we are to the cloud, for as long as the process lives.
//!
//! ```text
//! credentials.rs   who asks for what: each method and scope in Keystone's own form
//!    │ POST /v3/auth/tokens
//! token.rs         what came back: the token, its end, its roles, the catalog
//! session.rs       one token for all callers, renewed before it ends and when it was refused
//! catalog.rs       where a service is
//! ```
//!
//! Callers ask [`Session::token`] before each request. One that got 401 with a token asks for
//! another than that one: the first gets it, all others find it there. What fails is shared and
//! remembered for a moment, so that a wrong password is not tried once per waiting request.

mod catalog;
mod credentials;
mod error;
mod session;
mod token;

pub use catalog::{Catalog, Interface, InterfaceError, Offered, Wanted};
pub use credentials::{ApplicationCredential, Credentials, Domain, Method, Project, Scope, User};
pub use error::KeystoneError;
pub use session::{Reload, Session, SessionConfig};
pub use token::Token;
