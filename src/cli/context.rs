use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use url::Url;

use super::exit::Failure;
use crate::{
    attach::{Engine, EngineConfig, Ledger},
    cinder::{Auth, BlockStorage, Client, ClientConfig},
    config::Options,
    host::{AddressSource, HostNamespaces, LinuxConfig, LinuxHost, exec::RealExecutor},
    metrics::{Measured, Metrics},
};

/// An API server that doesn't take a connection in this time is away.
const KUBERNETES_CONNECT: Duration = Duration::from_secs(10);

/// The engine over this node and the configured Cinder.
pub(super) type NodeEngine = Engine<LinuxHost, Client>;

/// The same, measured.
pub(super) type MeasuredEngine = Engine<LinuxHost, Measured<Client>>;

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
    let (request_timeout, export_timeout) = options.cinder_timeouts();
    let config = ClientConfig { request_timeout, export_timeout, ..ClientConfig::default() };
    Ok(Client::new(auth, config)?)
}

/// The address that goes into the connector: as told, else the source address towards Cinder.
fn address(options: &Options) -> Result<AddressSource, Failure> {
    if let Some(which) = &options.connector_address {
        return Ok(match (which.parse(), which.parse()) {
            (Ok(address), _) => AddressSource::Fixed(address),
            (_, Ok(network)) => AddressSource::Network(network),
            _ => AddressSource::Interface(which.clone()),
        });
    }
    let endpoint = options.cinder_endpoint.as_deref().and_then(|text| Url::parse(text).ok());
    let host =
        endpoint.as_ref().and_then(|url| Some((url.host_str()?, url.port_or_known_default()?)));
    match host {
        Some((host, port)) => Ok(AddressSource::Towards { host: host.to_owned(), port }),
        None => Err(Failure::Usage(
            "which address has this node? Give --connector-address, or --cinder-endpoint to take the one towards Cinder"
                .to_owned(),
        )),
    }
}

fn linux(options: &Options, address: AddressSource) -> Result<LinuxHost, Failure> {
    let Some(host) = HostNamespaces::of(&options.host_root)? else {
        let mut config = LinuxConfig::here(address, options.roots());
        config.host.clone_from(&options.node_name);
        return Ok(LinuxHost::new(config, RealExecutor::here()));
    };
    // A container's host name may be its own.
    let Some(name) = &options.node_name else {
        let what =
            "which node is this? Beside --host-root, give --node-name or set ATTACHD_NODE_NAME";
        return Err(Failure::Usage(what.to_owned()));
    };
    let mut config = LinuxConfig::in_container(&host, address, options.roots());
    config.host = Some(name.clone());
    Ok(LinuxHost::new(config, RealExecutor::on_host(&host)))
}

pub(super) fn host(options: &Options) -> Result<LinuxHost, Failure> {
    linux(options, address(options)?)
}

/// The node for a look at its devices, which needs no address.
pub(super) fn host_for_inspection(options: &Options) -> Result<LinuxHost, Failure> {
    linux(options, AddressSource::Fixed(Ipv4Addr::UNSPECIFIED.into()))
}

pub(super) fn engine(options: &Options) -> Result<NodeEngine, Failure> {
    engine_over(options, client(options)?)
}

/// The engine of a daemon, whose requests to Cinder are measured.
pub(super) fn measured_engine(
    options: &Options,
    metrics: &Metrics,
) -> Result<MeasuredEngine, Failure> {
    engine_over(options, Measured::new(client(options)?, metrics.clone()))
}

fn engine_over<C: BlockStorage>(
    options: &Options,
    cinder: C,
) -> Result<Engine<LinuxHost, C>, Failure> {
    let ledger = Ledger::open(&options.state_dir)?;
    let config = EngineConfig { patience: options.patience(), ..EngineConfig::default() };
    Ok(Engine::new(host(options)?, cinder, ledger, config))
}

/// The API server of the Pod's service account, or of KUBECONFIG. Doesn't ask it anything yet.
pub(super) async fn kubernetes() -> Result<kube::Client, Failure> {
    let refused = |error: String| {
        Failure::Usage(format!(
            "which cluster? Run attachd in a Pod with a service account, or set KUBECONFIG: {error}"
        ))
    };
    let mut config = kube::Config::infer().await.map_err(|error| refused(error.to_string()))?;
    config.connect_timeout = Some(KUBERNETES_CONNECT);
    kube::Client::try_from(config).map_err(|error| refused(error.to_string()))
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
