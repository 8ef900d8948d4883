use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use reqwest::{Certificate, Client, ClientBuilder, Identity};
use tracing::warn;
use url::{Host, Url};

use super::{Asked, Heard, HttpError, Watch};

/// Shorter than the time after which servers close an idle connection (Apache: 5 s), so that no
/// reservation is sent into a closing one.
const IDLE: Duration = Duration::from_secs(4);

/// How a server proves itself to us, and we to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Nothing is verified: whoever answers is believed, and gets the credentials.
    pub insecure: bool,
    /// The certificates to trust (PEM), instead of the system's.
    pub ca: Option<PathBuf>,
    /// Our own certificate (PEM), for servers that ask for one.
    pub certificate: Option<PathBuf>,
    /// Its key (PEM); by default in the certificate's file.
    pub key: Option<PathBuf>,
}

/// An HTTP client: one with certificates and one without, one that uses the environment's proxies
/// and one that doesn't, each made when it is first needed.
#[derive(Debug)]
pub struct Http {
    connect_timeout: Duration,
    insecure: bool,
    roots: Option<Vec<Certificate>>,
    identity: Option<Identity>,
    plain: Pair,
    secure: Pair,
    watch: OnceLock<Arc<dyn Watch>>,
}

#[derive(Debug, Default)]
struct Pair {
    direct: OnceLock<Client>,
    proxied: OnceLock<Client>,
}

impl Http {
    /// Reads the certificates; nothing is sent yet. Who is asked is for the warning that nothing is verified.
    ///
    /// # Errors
    /// [`HttpError`]: a file can't be read, or is not what it should be.
    pub fn new(tls: &Tls, connect_timeout: Duration, whom: &str) -> Result<Self, HttpError> {
        // reqwest finds its TLS in the process-wide default. Another part of the program may have
        // set it already: to the same, since only ring is compiled in.
        let _ = rustls::crypto::ring::default_provider().install_default();
        if tls.insecure {
            warn!(
                "{whom}'s certificate is not verified, as asked for: whoever answers in its place gets the credentials"
            );
        }
        Ok(Self {
            connect_timeout,
            insecure: tls.insecure,
            roots: tls.ca.as_deref().filter(|_| !tls.insecure).map(roots).transpose()?,
            identity: identity(tls)?,
            plain: Pair::default(),
            secure: Pair::default(),
            watch: OnceLock::new(),
        })
    }

    /// Lets somebody look on; the first one who wants to.
    pub fn watched_by(&self, watch: &Arc<dyn Watch>) {
        self.watch.get_or_init(|| Arc::clone(watch));
    }

    pub(crate) fn asked(&self, asked: &Asked) {
        if let Some(watch) = self.watch.get() {
            watch.asked(asked);
        }
    }

    pub(crate) fn heard(&self, heard: &Heard<'_>) {
        if let Some(watch) = self.watch.get() {
            watch.heard(heard);
        }
    }

    /// The client for this address.
    ///
    /// # Errors
    /// [`HttpError::NoClient`]: the machine has no CA certificates.
    pub fn client(&self, url: &Url) -> Result<&Client, HttpError> {
        let is_plain = url.scheme() == "http";
        let pair = if is_plain { &self.plain } else { &self.secure };
        let direct = is_loopback(url);
        let slot = if direct { &pair.direct } else { &pair.proxied };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let mut builder = self.builder(is_plain);
        if direct {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| HttpError::NoClient(error.into()))?;
        Ok(slot.get_or_init(|| client))
    }

    fn builder(&self, is_plain: bool) -> ClientBuilder {
        let builder = Client::builder()
            .user_agent(concat!("attachd/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(IDLE);
        if is_plain {
            // Where nothing is encrypted nothing is verified: a node without CA certificates will do.
            return builder.tls_certs_only([]);
        }
        let builder = match (&self.roots, self.insecure) {
            (_, true) => builder.tls_certs_only([]).tls_danger_accept_invalid_certs(true),
            (Some(roots), false) => builder.tls_certs_only(roots.iter().cloned()),
            (None, false) => builder,
        };
        match &self.identity {
            Some(identity) => builder.identity(identity.clone()),
            None => builder,
        }
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, HttpError> {
    fs::read(path).map_err(|source| HttpError::Unreadable { what, path: path.to_owned(), source })
}

fn roots(path: &Path) -> Result<Vec<Certificate>, HttpError> {
    let what = "the CA certificates";
    match Certificate::from_pem_bundle(&read(what, path)?) {
        Ok(roots) if !roots.is_empty() => Ok(roots),
        Ok(_) | Err(_) => {
            Err(HttpError::NotPem { what, path: path.to_owned(), expected: "certificates" })
        }
    }
}

fn identity(tls: &Tls) -> Result<Option<Identity>, HttpError> {
    let what = "the client certificate";
    let Some(path) = &tls.certificate else { return Ok(None) };
    let mut pem = read(what, path)?;
    if let Some(key) = &tls.key {
        pem.push(b'\n');
        pem.extend(read("the client certificate's key", key)?);
    }
    // Its error is not shown: it may speak of the key.
    Identity::from_pem(&pem).map(Some).map_err(|_| HttpError::NotPem {
        what,
        path: path.clone(),
        expected: "a certificate and, there or in the key's file, its private key",
    })
}

/// Whether it is on this machine, where no proxy can help.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(v4)) => IpAddr::V4(v4).is_loopback(),
        Some(Host::Ipv6(v6)) => IpAddr::V6(v6).is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognised_in_all_its_forms() {
        for (text, expected) in [
            ("http://127.0.0.1:8776", true),
            ("http://127.8.0.1", true),
            ("http://[::1]:8776", true),
            ("http://localhost", true),
            ("http://10.0.0.1", false),
            ("http://localhost.example", false),
        ] {
            assert_eq!(is_loopback(&text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn certificates_that_are_none_are_refused_by_name_before_anything_is_sent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("some.pem");
        let make = |tls: &Tls| Http::new(tls, Duration::from_secs(1), "Cinder");
        let ca = Tls { ca: Some(path.clone()), ..Tls::default() };
        let own = Tls { certificate: Some(path.clone()), ..Tls::default() };
        for tls in [&ca, &own] {
            let error = make(tls).unwrap_err();
            assert!(matches!(error, HttpError::Unreadable { .. }), "{error:?}");
            assert!(error.to_string().contains("some.pem"), "{error}");
        }
        fs::write(&path, "-----BEGIN PRIVATE KEY-----\nhunter2\n").unwrap();
        for tls in [&ca, &own] {
            let error = make(tls).unwrap_err();
            assert!(matches!(error, HttpError::NotPem { .. }), "{error:?}");
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
        let insecure = Tls { insecure: true, ..ca };
        make(&insecure).unwrap().client(&"https://cloud".parse().unwrap()).unwrap();
    }
}
