use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, future::join_all};
use nix::libc::EIO;
use tokio::sync::watch;

use crate::model::{
    Chap, Contents, DeviceId, DeviceName, DeviceNumber, Filesystem, Hctl, HostState, MultipathMap,
    Portal, Session, SessionState, Target,
};

use super::{
    AddressSource, Applied, Host, HostError, HostNamespaces, HostOp, LoginLimits, MountTarget,
    NodeFacts,
    blocking::{self, Blocking},
    connector,
    exec::{Executor, RealExecutor},
    filesystem::Filesystems,
    initiator,
    iscsiadm::OpenIscsi,
    kernel_session,
    looks::Looks,
    mount::Mounts,
    multipath::Multipath,
    multipathd::Client,
    node_records::Database,
    openers::Openers,
    propagation::{self, Propagation},
    scsi::Scsi,
    silent_portals::{SilentPortals, answers},
    sysfs::{Memory, Scope, Sysfs, map_node},
    uevent::Uevents,
};

/// One walk of sysfs and mountinfo; they don't wait for any device.
const OBSERVE_LIMIT: Duration = Duration::from_secs(20);

/// An answer that needs no device.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// The end of a session that carries nothing, or of a connection that failed.
const END_LIMIT: Duration = Duration::from_secs(20);

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
    pub(super) config: LinuxConfig,
    exec: E,
    pub(super) sysfs: Sysfs,
    client: Client,
    pub(super) database: Database,
    silent: SilentPortals,
    pub(super) openers: Openers,
    blocking: Blocking,
    uevents: Uevents,
    looks: Looks<Arc<HostState>>,
    memory: Mutex<Memory>,
    unmounting: Mutex<BTreeMap<PathBuf, DeviceNumber>>,
}

impl<E: Executor> LinuxHost<E> {
    /// Subscribes to events; must be called within a tokio runtime.
    pub fn new(config: LinuxConfig, exec: E) -> Self {
        Self {
            sysfs: Sysfs::new(&config.sysfs),
            client: Client::new(&config.root),
            database: Database::new(&config.root),
            silent: SilentPortals::default(),
            openers: Openers {
                proc: config.root.join("proc"),
                mountinfo: config.mountinfo.clone(),
            },
            blocking: Blocking::default(),
            uevents: Uevents::subscribe(),
            looks: Looks::default(),
            memory: Mutex::default(),
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
        OpenIscsi {
            exec: &self.exec,
            database: &self.database,
            silent: &self.silent,
            limits: self.config.login,
        }
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
        let mut users = self.openers.users_of_disks(numbers).await?.into_iter();
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

    async fn log_out(&self, targets: &[Target]) -> Result<Applied, HostError> {
        let seen = self.observe_targets(&targets.iter().cloned().collect()).await?;
        let iscsid = initiator::iscsid_answers().await;
        let end = |session: &Session| {
            let (sysfs, session) = (self.config.sysfs.clone(), session.clone());
            let doing = format!("ending session {}", session.sid);
            let end = move || {
                let what = format!("session{} of the kernel", session.sid);
                kernel_session::end(&sysfs, &session).map_err(HostError::io("end", what))
            };
            blocking::limited(doing, END_LIMIT, end).boxed()
        };
        Ok(self.iscsi().logout(targets, &seen.sessions, iscsid, &end).await)
    }

    async fn give_back_connections(&self, targets: &[Target]) -> Result<Applied, HostError> {
        if !initiator::iscsid_answers().await {
            // Nobody would take them.
            return Ok(Applied::unchanged());
        }
        let seen = self.observe_targets(&targets.iter().cloned().collect()).await?;
        let fails = |session: &&Session| session.state != SessionState::LoggedIn;
        let given = targets.iter().map(async |target| {
            let Some(session) = seen.session(target).filter(fails) else { return Ok(false) };
            // A portal that is away is iscsid's to wait for.
            if !answers(target.portal).await {
                return Ok(false);
            }
            let (sysfs, session) = (self.config.sysfs.clone(), session.clone());
            let doing = format!("giving back the connection of session {}", session.sid);
            let give_back = move || {
                let what = format!("connection{}:0 of the kernel", session.sid);
                kernel_session::give_back(&sysfs, &session).map_err(HostError::io("stop", what))
            };
            blocking::limited(doing, END_LIMIT, give_back).await
        });
        let mut applied = Applied::default();
        for (target, given) in targets.iter().zip(join_all(given).await) {
            match given {
                Ok(given) => applied.changed |= given,
                Err(error) => applied.failures.push((target.to_string(), error)),
            }
        }
        Ok(applied)
    }

    /// Unmounts. Where that hangs, since the map queues I/O and has no path left, I/O is made to fail:
    /// after the whole time limit, in which a path may have come back.
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
            Some(number) => multipath.numbered(number).await?,
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

    async fn shared_look(&self, scope: Scope) -> Result<Arc<HostState>, HostError> {
        self.looks.share(scope, async |scope| self.look(scope).await).await
    }

    async fn look(&self, mut scope: Scope) -> Result<Arc<HostState>, HostError> {
        scope.add(self.uevents.news());
        // Where the walk fails or is given up, what was heard is lost: then the next one reads everything.
        let mut memory = mem::take(&mut *self.memory());
        let (sysfs, mountinfo) = (self.sysfs.clone(), self.config.mountinfo.clone());
        let (dev, roots) = (self.config.dev.clone(), self.config.mount_roots.clone());
        let look = move || {
            let mounts = propagation::without_copies(&mountinfo, &roots)?;
            let node = |map: &MultipathMap| map_node(&dev, &map.name, map.number);
            let snapshot = sysfs.walk(&mut memory, &scope, node)?;
            let state = HostState {
                sessions: snapshot.sessions,
                devices: snapshot.devices,
                nascent: snapshot.nascent,
                maps: snapshot.maps,
                mounts,
            };
            Ok((state, memory))
        };
        let (mut state, memory) =
            blocking::limited("reading sysfs".to_owned(), OBSERVE_LIMIT, look).await?;
        *self.memory() = memory;
        self.mark_errors(&mut state).await;
        Ok(Arc::new(state))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// A file system that stopped itself after an error may look writable in the list of mounts: ext4
    /// since 2024's kernels, and XFS always. ext4 counts its errors; XFS fails all that is asked of it.
    async fn mark_errors(&self, state: &mut HostState) {
        let of_ours: Vec<bool> =
            state.mounts.iter().map(|mount| state.has_device(mount.number)).collect();
        for (mount, _) in state.mounts.iter_mut().zip(of_ours).filter(|(_, ours)| *ours) {
            mount.errors = match mount.fs_type.parse() {
                Ok(Filesystem::Ext4) => self.sysfs.ext4_errors(mount.number),
                Ok(Filesystem::Xfs) => {
                    let path = mount.target.clone();
                    let doing = format!("asking the file system on {}", path.display());
                    // The root directory is in memory: no device is read.
                    let look = move || {
                        let error = std::fs::symlink_metadata(&path).err();
                        Ok(error.and_then(|error| error.raw_os_error()) == Some(EIO))
                    };
                    self.blocking.once(doing, ASK_LIMIT, look).await.unwrap_or(false)
                }
                Err(_) => false,
            };
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
        Filesystems {
            exec: &self.exec,
            dev: &self.config.dev,
            sysfs: &self.sysfs,
            blocking: &self.blocking,
        }
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

    async fn observe(&self) -> Result<Arc<HostState>, HostError> {
        self.shared_look(Scope::everything()).await
    }

    async fn observe_targets(
        &self,
        targets: &BTreeSet<Target>,
    ) -> Result<Arc<HostState>, HostError> {
        self.shared_look(Scope { targets: targets.clone(), ..Scope::default() }).await
    }

    async fn contents(&self, device: &DeviceId) -> Result<Contents, HostError> {
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
            HostOp::GiveBackConnections { targets } => self.give_back_connections(targets).await,
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
            HostOp::ResizeMap { name, wwid, size_bytes } => {
                self.multipath().resize(name, wwid, *size_bytes).await
            }
            HostOp::GrowFilesystem { device, filesystem, target } => {
                let mounted = self.mounts().at(target).await?;
                if mounted.is_none_or(|mount| mount.number != device.number) {
                    return Err(HostError::NotGrown {
                        what: format!("{filesystem} on {}", target.display()),
                        why: format!("{device} is not mounted there any more"),
                    });
                }
                self.filesystems().grow(device, *filesystem, target).await
            }
            HostOp::StopQueueing { name } => self.multipath().stop_queueing(name).await,
            HostOp::CutDisks { devices, maps } => Ok(self.scsi().cut(devices, maps).await),
            HostOp::UnmountLazily { target } => self.mounts().unmount_lazily(target).await,
            HostOp::Unmount { target } => self.unmount(target).await,
            HostOp::RemoveDirectory { target } => self.mounts().remove_directory(target).await,
            HostOp::Logout { targets } => self.log_out(targets).await,
        }
    }
}
