use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use crate::model::{Chap, Contents, DeviceName, DeviceNumber, Hctl, HostState, Portal, Target};

use super::{
    AddressSource, Applied, Host, HostError, HostNamespaces, HostOp, LoginLimits, MountTarget,
    NodeFacts,
    blocking::{self, Blocking},
    connector,
    exec::{Executor, RealExecutor},
    filesystem::Filesystems,
    initiator,
    iscsiadm::OpenIscsi,
    mount::Mounts,
    multipath::Multipath,
    multipathd::Client,
    node_records::Database,
    openers::Openers,
    propagation::{self, Propagation},
    scsi::Scsi,
    sysfs::{Sysfs, map_node},
    uevent::Uevents,
};

/// One walk of sysfs and mountinfo; they don't wait for any device.
const OBSERVE_LIMIT: Duration = Duration::from_secs(20);

/// How soon an unmount ends once its I/O fails.
const AFTER_QUEUEING: Duration = Duration::from_secs(30);

/// The mounts that this process sees.
const OWN_MOUNTINFO: &str = "/proc/self/mountinfo";

/// Where this node's things are, and what can't be read from it.
#[derive(Debug, Clone)]
pub struct LinuxConfig {
    /// The host's root directory.
    pub root: PathBuf,
    /// The host's sysfs.
    pub sysfs: PathBuf,
    /// The host's devtmpfs.
    pub dev: PathBuf,
    /// The host's mounts.
    pub mountinfo: PathBuf,
    /// attachd's own mounts, where it is in another mount namespace than the host: those that it makes
    /// must reach the host.
    pub own_mountinfo: Option<PathBuf>,
    /// The node's name, where it isn't the host name.
    pub host: Option<String>,
    /// Which address is the storage address.
    pub address: AddressSource,
    /// How long logins may take.
    pub login: LoginLimits,
    /// The directories below which volumes may be mounted.
    pub mount_roots: Vec<PathBuf>,
}

impl LinuxConfig {
    /// A process on the host itself.
    pub fn here(address: AddressSource, mount_roots: Vec<PathBuf>) -> Self {
        Self {
            root: PathBuf::from("/"),
            sysfs: PathBuf::from("/sys"),
            dev: PathBuf::from("/dev"),
            mountinfo: PathBuf::from(OWN_MOUNTINFO),
            own_mountinfo: None,
            host: None,
            address,
            login: LoginLimits::default(),
            mount_roots,
        }
    }

    /// A process in a container. The container has the host's `/sys` and `/dev`, and the directories
    /// below which volumes are mounted, at the same paths.
    pub fn in_container(
        host: &HostNamespaces,
        address: AddressSource,
        mount_roots: Vec<PathBuf>,
    ) -> Self {
        Self {
            root: host.root(),
            mountinfo: host.mountinfo(),
            own_mountinfo: Some(PathBuf::from(OWN_MOUNTINFO)),
            ..Self::here(address, mount_roots)
        }
    }
}

/// The node that attachd runs on.
#[derive(Debug)]
pub struct LinuxHost<E = RealExecutor> {
    config: LinuxConfig,
    exec: E,
    sysfs: Sysfs,
    client: Client,
    database: Database,
    openers: Openers,
    blocking: Blocking,
    uevents: Uevents,
    unmounting: Mutex<BTreeMap<PathBuf, DeviceNumber>>,
}

impl<E: Executor> LinuxHost<E> {
    /// Subscribes to events; must be called within a tokio runtime.
    pub fn new(config: LinuxConfig, exec: E) -> Self {
        Self {
            sysfs: Sysfs::new(&config.sysfs),
            client: Client::new(&config.root),
            database: Database::new(&config.root),
            openers: Openers {
                proc: config.root.join("proc"),
                mountinfo: config.mountinfo.clone(),
            },
            blocking: Blocking::default(),
            uevents: Uevents::subscribe(),
            unmounting: Mutex::default(),
            exec,
            config,
        }
    }

    /// multipathd's opinion of each path (`active`, `failed`, …). Not part of [`Host::observe`]:
    /// multipathd answers one question at a time, and is slow while it makes maps.
    pub async fn path_states(&self) -> Result<BTreeMap<DeviceName, String>, HostError> {
        self.multipath().path_states().await
    }

    fn iscsi(&self) -> OpenIscsi<'_, E> {
        OpenIscsi { exec: &self.exec, database: &self.database, limits: self.config.login }
    }

    fn multipath(&self) -> Multipath<'_, E> {
        Multipath {
            exec: &self.exec,
            client: &self.client,
            sysfs: &self.sysfs,
            dev: &self.config.dev,
            blocking: &self.blocking,
            openers: &self.openers,
            udev_records: self.config.root.join("run/udev/data"),
            wwids: self.config.root.join("etc/multipath/wwids"),
        }
    }

    /// Deletes disks that no process has open. The kernel would delete an open one just as well, and
    /// fail the I/O of whoever uses it raw.
    async fn delete_disks(&self, devices: &[(Hctl, DeviceName)]) -> Result<Applied, HostError> {
        let (mut there, mut numbers) = (Vec::new(), Vec::new());
        for device in devices {
            // One without a number has gone already; deleting it again says so.
            let number = self.sysfs.number(&device.1)?;
            there.push((device, number));
            numbers.extend(number);
        }
        let mut users = self.openers.users_of_disks(numbers).await.into_iter();
        let (mut free, mut failures) = (Vec::new(), Vec::new());
        for (device, number) in there {
            let by = number.and_then(|_| users.next()).unwrap_or_default();
            if by.is_empty() {
                free.push(device.clone());
            } else {
                let what = device.1.to_string();
                failures.push((what.clone(), HostError::Busy { what, by }));
            }
        }
        let mut applied = self.scsi().delete(&free).await;
        applied.failures.extend(failures);
        Ok(applied)
    }

    /// Unmounts. Where that hangs, since the map queues I/O and has no path left, I/O is made to fail:
    /// after the whole time limit, in which a path may have come back.
    async fn log_out(&self, targets: &[Target]) -> Result<Applied, HostError> {
        // Without iscsid iscsiadm says that it has logged out, and the session stays.
        let sessions = self.observe().await?.sessions;
        let any = sessions.iter().any(|session| targets.iter().any(|t| session.is_to(t)));
        if any && !initiator::iscsid_answers().await {
            return Err(HostError::IscsidNotRunning);
        }
        Ok(self.iscsi().logout(targets).await)
    }

    async fn unmount(&self, target: &Path) -> Result<Applied, HostError> {
        let mounts = self.mounts();
        let below = self.device_below(target, mounts.at(target).await?.map(|mount| mount.number));
        let result = mounts.unmount(target).await;
        let Err(HostError::TimedOut { doing, .. }) = &result else {
            self.unmounting.lock().unwrap_or_else(PoisonError::into_inner).remove(target);
            return result;
        };
        let multipath = self.multipath();
        let map = match below {
            Some(number) => multipath.find(move |map| map.number == number).await?,
            None => None,
        };
        match map {
            Some(map) if multipath.stop_queueing_without_paths(&map).await? => {
                tracing::warn!(target = %target.display(), "what was not written yet is lost");
                if self.blocking.ended(doing, AFTER_QUEUEING).await {
                    return mounts.unmount(target).await.map(|_| Applied::changed());
                }
                result
            }
            _ => result,
        }
    }

    /// The device that is, or while an unmount hangs was, mounted there: the mount leaves the list
    /// before its file system has written everything.
    fn device_below(&self, target: &Path, now: Option<DeviceNumber>) -> Option<DeviceNumber> {
        let mut last = self.unmounting.lock().unwrap_or_else(PoisonError::into_inner);
        match now {
            Some(number) => {
                last.insert(target.to_owned(), number);
                Some(number)
            }
            None => last.get(target).copied(),
        }
    }

    fn scsi(&self) -> Scsi {
        Scsi {
            sysfs: self.sysfs.clone(),
            dev: self.config.dev.clone(),
            blocking: self.blocking.clone(),
        }
    }

    fn filesystems(&self) -> Filesystems<'_, E> {
        Filesystems { exec: &self.exec, dev: &self.config.dev, blocking: &self.blocking }
    }

    fn mounts(&self) -> Mounts {
        Mounts {
            roots: self.config.mount_roots.clone(),
            dev: self.config.dev.clone(),
            sysfs: self.sysfs.clone(),
            openers: self.openers.clone(),
            propagation: self.propagation(),
            blocking: self.blocking.clone(),
        }
    }

    fn propagation(&self) -> Option<Propagation> {
        let own = self.config.own_mountinfo.clone()?;
        Some(Propagation { own, host: self.config.mountinfo.clone() })
    }
}

impl<E: Executor> Host for LinuxHost<E> {
    fn events(&self) -> watch::Receiver<u64> {
        self.uevents.counter()
    }

    async fn facts(&self) -> Result<NodeFacts, HostError> {
        let multipath = self.multipath();
        let (multipathd, iscsid) =
            futures::future::join(multipath.state(), initiator::iscsid_answers()).await;
        let connector = connector::connector(
            &self.config.root,
            &self.config.sysfs,
            self.config.host.as_deref(),
            &self.config.address,
            &multipathd,
        )
        .await?;
        Ok(NodeFacts { connector, multipathd, iscsid })
    }

    async fn observe(&self) -> Result<HostState, HostError> {
        let (sysfs, mountinfo) = (self.sysfs.clone(), self.config.mountinfo.clone());
        let (dev, roots) = (self.config.dev.clone(), self.config.mount_roots.clone());
        blocking::limited("reading sysfs".to_owned(), OBSERVE_LIMIT, move || {
            let mounts = propagation::without_copies(&mountinfo, &roots)?;
            let mut snapshot = sysfs.snapshot()?;
            for map in &mut snapshot.maps {
                map.node = map_node(&dev, &map.name, map.number);
            }
            Ok(HostState {
                sessions: snapshot.sessions,
                devices: snapshot.devices,
                nascent: snapshot.nascent,
                maps: snapshot.maps,
                mounts,
            })
        })
        .await
    }

    async fn contents(&self, device: &DeviceName) -> Result<Contents, HostError> {
        self.filesystems().contents(device).await
    }

    async fn mount_target(&self, target: &Path) -> Result<MountTarget, HostError> {
        self.mounts().target(target).await
    }

    async fn discover(
        &self,
        portal: Portal,
        chap: Option<&Chap>,
    ) -> Result<Vec<Target>, HostError> {
        self.iscsi().discover(portal, chap).await
    }

    async fn apply(&self, op: &HostOp) -> Result<Applied, HostError> {
        match op {
            HostOp::WriteNodeRecords { targets, chap } => {
                Ok(self.iscsi().write_records(targets, chap.as_ref()).await)
            }
            HostOp::Login { targets } => Ok(self.iscsi().login(targets).await),
            HostOp::ScanLuns { luns } => Ok(self.scsi().scan(luns).await),
            HostOp::Rescan { devices } => Ok(self.scsi().rescan(devices).await),
            HostOp::AddMap { wwid, devices } => self.multipath().add(wwid, devices).await,
            HostOp::RemoveMap { name, wwid } => self.multipath().remove(name, wwid).await,
            HostOp::ForgetMap { wwid } => self.multipath().forget_gone(wwid).await,
            HostOp::DeleteDevices { devices } => self.delete_disks(devices).await,
            HostOp::SetReadOnly { devices } => self.filesystems().set_read_only(devices).await,
            HostOp::Format { device, filesystem, resume } => {
                self.filesystems().format(device, *filesystem, *resume).await
            }
            HostOp::CheckFilesystem { device, filesystem } => {
                self.filesystems().check(device, *filesystem).await
            }
            HostOp::Mount { device, filesystem, target, read_only, options } => {
                self.mounts().mount(device, *filesystem, target, *read_only, options).await
            }
            HostOp::Unmount { target } => self.unmount(target).await,
            HostOp::RemoveDirectory { target } => self.mounts().remove_directory(target).await,
            HostOp::Logout { targets } => self.log_out(targets).await,
        }
    }
}
