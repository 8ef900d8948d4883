use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::exit::Failure;
use crate::{
    attach::{Engine, EngineConfig, Ledger},
    cinder::{Auth, Client, ClientConfig},
    config::Options,
    host::{AddressSource, HostConfig, LinuxHost},
};

/// The engine over this node and the configured Cinder.
pub(super) type NodeEngine = Engine<LinuxHost, Client>;

pub(super) fn client(options: &Options) -> Result<Client, Failure> {
    let missing = |flag: &str, variable: &str| {
        Failure::Usage(format!("where is Cinder? Give {flag} or set {variable}"))
    };
    let endpoint = options
        .cinder_endpoint
        .as_deref()
        .ok_or_else(|| missing("--cinder-endpoint", "ATTACHD_CINDER_ENDPOINT"))?;
    let project = options
        .cinder_project
        .as_deref()
        .ok_or_else(|| missing("--cinder-project", "ATTACHD_CINDER_PROJECT"))?;
    let auth = Auth::no_auth(endpoint, project, &options.cinder_user)?;
    Ok(Client::new(auth, ClientConfig::default())?)
}

pub(super) fn host(options: &Options) -> Result<LinuxHost, Failure> {
    let address = match (&options.connector_address, &options.cinder_endpoint) {
        (Some(which), _) => AddressSource::parse(which),
        (None, Some(endpoint)) => AddressSource::towards(endpoint),
        (None, None) => Ok(AddressSource::AnyRoute),
    };
    Ok(LinuxHost::new(HostConfig {
        address: address.map_err(|error| Failure::Usage(error.to_string()))?,
        node_name: options.node_name.clone(),
        mount_roots: options.roots(),
        ..HostConfig::default()
    })?)
}

pub(super) fn engine(options: &Options) -> Result<NodeEngine, Failure> {
    let ledger = Ledger::open(&options.state_dir)?;
    let config = EngineConfig { patience: options.patience(), ..EngineConfig::default() };
    Ok(Engine::new(host(options)?, client(options)?, ledger, config))
}

/// Turns true at the first SIGINT or SIGTERM; the second ends the process as signals do.
pub(super) fn stop_signal() -> Result<watch::Receiver<bool>, Failure> {
    let (sender, receiver) = watch::channel(false);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        loop {
            let code = tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            };
            if *sender.borrow() {
                tracing::warn!("second signal: ending now; what was begun is in the ledger");
                std::process::exit(code);
            }
            sender.send_replace(true);
        }
    });
    Ok(receiver)
}
