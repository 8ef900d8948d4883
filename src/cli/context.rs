use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::exit::Failure;
use crate::{
    attach::{Engine, EngineConfig, Ledger},
    cinder::{BlockStorage, Client, ClientConfig},
    cloud::{Cloud, CloudError, Places},
    config::Options,
    doctor::Node,
    host::{AddressSource, HostNamespaces, LinuxConfig, LinuxHost, exec::RealExecutor},
    keystone::SessionConfig,
    metrics::{Measured, Metrics},
};

/// An API server that doesn't take a connection in this time is away.
const KUBERNETES_CONNECT: Duration = Duration::from_secs(10);

/// Signals within this time of the first say the same once more: timeout(1) sends its signal to the process and
/// then to the process's group.
const ONE_STOP: Duration = Duration::from_secs(1);

/// The engine over this node and the configured Cinder.
pub(super) type NodeEngine = Engine<LinuxHost, Client>;

/// The same, measured.
pub(super) type MeasuredEngine = Engine<LinuxHost, Measured<Client>>;

/// The cloud that was asked for, looked up once: its files are read.
fn cloud(options: &Options) -> Result<Cloud, Failure> {
    Ok(Cloud::find(&options.cloud, &Places::usual(&options.cloud))?)
}

/// The Cinder of the cloud that was asked for.
pub(super) fn client(options: &Options) -> Result<Client, Failure> {
    client_of(options, cloud(options)?)
}

/// The secrets that the settings and files of the cloud hold, to be looked for where none may be.
pub(super) fn secrets(options: &Options) -> Vec<String> {
    cloud(options).map(|cloud| cloud.secrets()).unwrap_or_default()
}

/// The same for one look: it is asked once, and not waited for long.
pub(super) fn client_for_a_look(options: &Options, limit: Duration) -> Result<Client, Failure> {
    let config = ClientConfig {
        connect_timeout: limit,
        request_timeout: limit,
        tries: 1,
        ..ClientConfig::default()
    };
    client_with(options, cloud(options)?, config)
}

/// The Cinder of the cloud that was asked for, where one is named and can be used: what is on the node is
/// worth showing without it.
pub(super) fn client_if_any(options: &Options) -> Option<Client> {
    match client(options) {
        Ok(client) => Some(client),
        Err(Failure::Cloud(CloudError::Unsaid { .. })) => None,
        Err(failure) => {
            tracing::warn!("Cinder is not asked: {failure}");
            None
        }
    }
}

fn client_of(options: &Options, cloud: Cloud) -> Result<Client, Failure> {
    let (request_timeout, export_timeout) = options.cinder_timeouts();
    let config = ClientConfig { request_timeout, export_timeout, ..ClientConfig::default() };
    client_with(options, cloud, config)
}

fn client_with(
    options: &Options,
    cloud: Cloud,
    mut config: ClientConfig,
) -> Result<Client, Failure> {
    config.tls = cloud.tls.clone();
    let session =
        SessionConfig { request_timeout: config.request_timeout, ..SessionConfig::default() };
    let auth = cloud.auth(&session, Some(Cloud::reload(&options.cloud)))?;
    Ok(Client::new(auth, config)?)
}

/// The address that goes into the connector: as told, else the source address towards the cloud.
fn address(options: &Options, cloud: Option<&Cloud>) -> Result<AddressSource, Failure> {
    if let Some(which) = &options.connector_address {
        return Ok(match (which.parse(), which.parse()) {
            (Ok(address), _) => AddressSource::Fixed(address),
            (_, Ok(network)) => AddressSource::Network(network),
            _ => AddressSource::Interface(which.clone()),
        });
    }
    let url = match cloud {
        Some(cloud) => cloud.address(),
        None => self::cloud(options)?.address(),
    };
    let host = url.as_ref().and_then(|url| Some((url.host_str()?, url.port_or_known_default()?)));
    match host {
        Some((host, port)) => Ok(AddressSource::Towards { host: host.to_owned(), port }),
        None => Err(Failure::Usage(
            "which address has this node? Give --connector-address, since the cloud's settings name no host"
                .to_owned(),
        )),
    }
}

/// Where this node's things are, and how its programs are run.
fn place(
    options: &Options,
    address: AddressSource,
) -> Result<(LinuxConfig, Option<HostNamespaces>, RealExecutor), Failure> {
    let namespaces = HostNamespaces::of(&options.host_root)?;
    let (mut config, exec) = match &namespaces {
        Some(host) => {
            (LinuxConfig::in_container(host, address, options.roots()), RealExecutor::on_host(host))
        }
        None => (LinuxConfig::here(address, options.roots()), RealExecutor::here()),
    };
    config.host.clone_from(&options.node_name);
    Ok((config, namespaces, exec))
}

fn linux(options: &Options, address: AddressSource) -> Result<LinuxHost, Failure> {
    let (config, namespaces, exec) = place(options, address)?;
    // A container's host name may be its own.
    if namespaces.is_some() && config.host.is_none() {
        let what =
            "which node is this? Beside --host-root, give --node-name or set ATTACHD_NODE_NAME";
        return Err(Failure::Usage(what.to_owned()));
    }
    Ok(LinuxHost::new(config, exec))
}

/// The node as `doctor` looks at it: as far as it can be seen, whatever the cloud's settings say.
pub(super) fn node(options: &Options) -> Result<Node, Failure> {
    let address = AddressSource::Fixed(Ipv4Addr::UNSPECIFIED.into());
    let (config, namespaces, exec) = place(options, address)?;
    Ok(Node::new(config, namespaces, exec, &options.state_dir))
}

pub(super) fn host(options: &Options) -> Result<LinuxHost, Failure> {
    linux(options, address(options, None)?)
}

/// The node for a look at its devices, which needs no address.
pub(super) fn host_for_inspection(options: &Options) -> Result<LinuxHost, Failure> {
    linux(options, AddressSource::Fixed(Ipv4Addr::UNSPECIFIED.into()))
}

pub(super) fn engine(options: &Options) -> Result<NodeEngine, Failure> {
    engine_over(options, |client| client)
}

/// The engine of a daemon, whose requests to Cinder are measured.
pub(super) fn measured_engine(
    options: &Options,
    metrics: &Metrics,
) -> Result<MeasuredEngine, Failure> {
    engine_over(options, |client| Measured::new(client, metrics.clone()))
}

fn engine_over<C: BlockStorage>(
    options: &Options,
    over: impl FnOnce(Client) -> C,
) -> Result<Engine<LinuxHost, C>, Failure> {
    let cloud = cloud(options)?;
    let host = linux(options, address(options, Some(&cloud))?)?;
    let cinder = over(client_of(options, cloud)?);
    let ledger = Ledger::open(&options.state_dir)?;
    let config = EngineConfig { patience: options.patience(), ..EngineConfig::default() };
    Ok(Engine::new(host, cinder, ledger, config))
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

/// The same, where there is one; else why not.
pub(super) async fn kubernetes_if_any() -> Result<kube::Client, String> {
    kubernetes().await.map_err(|_| {
        "there is no cluster: neither a Pod's service account nor KUBECONFIG".to_owned()
    })
}

/// Turns true at the first SIGINT or SIGTERM; one after [`ONE_STOP`] ends the process as signals do.
pub(super) fn stop_signal() -> Result<watch::Receiver<bool>, Failure> {
    let (sender, receiver) = watch::channel(false);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        let mut first: Option<Instant> = None;
        loop {
            let code = tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            };
            sender.send_replace(true);
            if first.get_or_insert_with(Instant::now).elapsed() >= ONE_STOP {
                tracing::warn!("second signal: ending now; what was begun is in the ledger");
                std::process::exit(code);
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[tokio::test]
    async fn signals_of_one_moment_ask_once_to_stop() -> Result<(), Box<dyn Error>> {
        let mut stop = stop_signal()?;
        for _ in 0..3 {
            raise(Signal::SIGINT)?;
            stop.wait_for(|&stopped| stopped).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}
