use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Iqn, Portal, VolumeId, Wwid};

const GIB: u64 = 1 << 30;

/// How a storage exports volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Cinder's tgt driver: a target for each volume, LUN 1, a WWID that carries the volume's UUID.
    TargetPerVolume,
    /// A bare tgtd: one target, few LUNs that other volumes get later, WWIDs made from the LUN.
    LunPool,
    /// LIO or an array: one target, LUNs that other volumes get later, WWIDs that stay unique.
    UniqueWwids,
}

/// What is on a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Zeros.
    Blank,
    /// A format that was cut short.
    Remains {
        /// By whom: a volume's attachment.
        attachment: String,
    },
    /// A file system.
    Filesystem {
        /// Its type.
        name: String,
        /// What is in its files.
        marker: u64,
    },
    /// Bytes.
    Raw {
        /// Which.
        marker: u64,
    },
}

/// The storage behind Cinder.
#[derive(Debug)]
pub struct Storage {
    /// How it exports.
    pub style: Style,
    /// Where it listens.
    pub portals: Vec<Portal>,
    /// Portals that don't answer.
    pub dead: BTreeSet<Portal>,
    /// What is on each volume.
    pub contents: BTreeMap<VolumeId, Content>,
    /// Sizes in GiB.
    pub sizes: BTreeMap<VolumeId, u64>,
    /// The size in bytes of the file system on each volume that has one.
    pub filesystem_sizes: BTreeMap<VolumeId, u64>,
    /// Volumes whose target goes on showing the size of the time of the export, as tgt does.
    pub stuck_sizes: BTreeMap<VolumeId, u64>,
    /// What each target and LUN shows now.
    pub exports: BTreeMap<(Iqn, u64), VolumeId>,
    /// Exports that this node may see.
    pub granted: BTreeSet<VolumeId>,
    /// Counts exports: a target that was taken away and made anew has other credentials.
    pub generation: u64,
    /// The generation of each target.
    pub generations: BTreeMap<Iqn, u64>,
}

impl Storage {
    pub(super) fn new(style: Style) -> Self {
        Self {
            style,
            portals: ["10.0.0.1:3260", "10.0.1.1:3260"]
                .iter()
                .filter_map(|p| p.parse().ok())
                .collect(),
            dead: BTreeSet::new(),
            contents: BTreeMap::new(),
            sizes: BTreeMap::new(),
            filesystem_sizes: BTreeMap::new(),
            stuck_sizes: BTreeMap::new(),
            exports: BTreeMap::new(),
            granted: BTreeSet::new(),
            generation: 0,
            generations: BTreeMap::new(),
        }
    }

    /// The target that a volume is exported by.
    pub fn target_of(&self, volume: VolumeId) -> Iqn {
        let name = match self.style {
            Style::TargetPerVolume => format!("iqn.2010-10.org.openstack:volume-{volume}"),
            Style::LunPool | Style::UniqueWwids => "iqn.2003-01.org.example:shared".to_owned(),
        };
        parsed(&name)
    }

    /// Where a volume is exported now.
    pub fn address_of(&self, volume: VolumeId) -> Option<(Iqn, u64)> {
        self.exports.iter().find(|(_, exported)| **exported == volume).map(|(at, _)| at.clone())
    }

    /// Exports a volume: at the lowest LUN that is free.
    pub(super) fn export(&mut self, volume: VolumeId) -> (Iqn, u64) {
        if let Some(address) = self.address_of(volume) {
            return address;
        }
        let target = self.target_of(volume);
        let lun = match self.style {
            Style::TargetPerVolume => 1,
            Style::LunPool | Style::UniqueWwids => {
                let free = |lun: &u64| !self.exports.contains_key(&(target.clone(), *lun));
                (1..u64::MAX).find(free).unwrap_or(1)
            }
        };
        self.generation += 1;
        if self.style == Style::TargetPerVolume {
            self.generations.insert(target.clone(), self.generation);
        }
        self.exports.insert((target.clone(), lun), volume);
        (target, lun)
    }

    pub(super) fn withdraw(&mut self, volume: VolumeId) {
        self.exports.retain(|_, exported| *exported != volume);
        self.granted.remove(&volume);
    }

    /// Whether a login to this target succeeds, and the credentials' generation.
    pub fn answers(&self, iqn: &Iqn, portal: Portal) -> Option<u64> {
        if self.dead.contains(&portal) || !self.portals.contains(&portal) {
            return None;
        }
        match self.style {
            Style::TargetPerVolume => {
                let exists = self.exports.keys().any(|(target, _)| target == iqn);
                exists.then(|| self.generations.get(iqn).copied().unwrap_or(0))
            }
            Style::LunPool | Style::UniqueWwids => Some(0),
        }
    }

    /// The volume behind a target and LUN, as this node sees it now.
    pub fn behind(&self, iqn: &Iqn, lun: u64) -> Option<VolumeId> {
        let volume = *self.exports.get(&(iqn.clone(), lun))?;
        // A bare tgtd shows every LUN to everybody.
        (self.style == Style::LunPool || self.granted.contains(&volume)).then_some(volume)
    }

    /// VPD page 0x83 of a LUN.
    pub fn identity(&self, volume: VolumeId, lun: u64) -> Wwid {
        let text = match self.style {
            Style::TargetPerVolume => {
                let digits = format!("6e0{}", volume.to_string().replace('-', "0"));
                format!("3{}", &digits[..32])
            }
            Style::LunPool => format!("36000000000000000000e000000001{lun:04}"),
            Style::UniqueWwids => format!("36001405{}", &volume.uuid().simple().to_string()[..25]),
        };
        parsed(&text)
    }

    /// INQUIRY's vendor.
    pub fn vendor(&self) -> &'static str {
        match self.style {
            Style::TargetPerVolume | Style::LunPool => "IET",
            Style::UniqueWwids => "LIO-ORG",
        }
    }

    /// A volume's size in bytes.
    pub fn size_of(&self, volume: VolumeId) -> u64 {
        self.sizes.get(&volume).copied().unwrap_or(1) * GIB
    }

    /// The size in bytes that its target shows.
    pub fn shown_size_of(&self, volume: VolumeId) -> u64 {
        self.stuck_sizes.get(&volume).map_or_else(|| self.size_of(volume), |gib| gib * GIB)
    }
}

#[expect(clippy::expect_used, reason = "fixed texts of the simulation")]
pub(super) fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().expect("a text of the simulation")
}
