use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use super::{
    Check, Finding,
    node::{Node, installed, unread},
};
use crate::host::exec::Program;

pub(super) const HOST_NAMESPACES: Check = Check {
    id: "host-namespaces",
    looks_at: "whether attachd is on the host, or in a container that may work for it",
    why: "Sessions, devices and daemons are the host's. From a container that is shut in, nothing of them is seen or reached.",
};
pub(super) const DEV: Check = Check {
    id: "dev",
    looks_at: "whether attachd's /dev is the host's",
    why: "A disk that appears later is in the host's /dev only; a container's own has what was there when it started.",
};
pub(super) const MOUNT_PROPAGATION: Check = Check {
    id: "mount-propagation",
    looks_at: "whether mounts below the allowed roots reach the host and its Pods",
    why: "Without, a volume is mounted for attachd alone: a Pod that uses the directory writes to the node's own disk.",
};
pub(super) const PROGRAMS: Check = Check {
    id: "programs",
    looks_at: "the programs of the host that attachd runs",
    why: "A missing one is found out in the middle of an attach.",
};

pub(super) fn namespaces(node: &Node) -> Finding {
    match &node.namespaces {
        Some(_) => Finding::ok("in a container, with the host's namespaces"),
        None => Finding::ok("on the host itself"),
    }
}

pub(super) async fn dev(node: &Node) -> Finding {
    let (own, host) = (node.config.dev.clone(), node.host("dev"));
    let look = move || {
        let device = |path: &Path| fs::metadata(path).map(|data| data.dev());
        (device(&own), device(&host))
    };
    match node.read("/dev", look).await {
        Ok((Ok(own), Ok(host))) if own == host => Finding::ok("it is the host's"),
        Ok((Ok(_), Ok(_))) => Finding::failed("it is the container's own")
            .advise("give the Pod a hostPath volume of /dev at /dev, as the chart does"),
        Ok((Err(error), _) | (_, Err(error))) => {
            Finding::unknown(format!("/dev can't be looked at: {error}"))
        }
        Err(error) => unread(&error),
    }
}

pub(super) async fn mount_propagation(node: &Node) -> Finding {
    let roots = node.config.mount_roots.clone();
    let propagation = node.propagation();
    let look = move || {
        let there = roots.into_iter().filter(|root| root.is_dir());
        there.map(|root| (propagation.obstacle(&root), root)).collect::<Vec<_>>()
    };
    let in_container = node.namespaces.is_some();
    match node.read("mounts", look).await {
        Ok(roots) if roots.is_empty() => Finding::left_out("none of the allowed roots is there yet"),
        Ok(roots) => Finding::all(roots.into_iter().map(|(obstacle, root)| {
            let root = root.display();
            match obstacle {
                Ok(None) => Finding::ok(format!("{root} is shared")),
                Ok(Some(why)) if in_container => Finding::failed(format!("{root}: {why}")).advise(
                    "give the Pod's hostPath volume for it mountPropagation: Bidirectional, at the same path as on the host; on the host: mount --make-rshared /",
                ),
                // Who uses the volume on the host itself sees it.
                Ok(Some(why)) => Finding::warning(format!("{root}: {why}")).run("mount --make-rshared /"),
                Err(error) => unread(&error),
            }
        })),
        Err(error) => unread(&error),
    }
}

/// Programs without which nothing is attached, and those that only some volumes take.
const NEEDED: [Program; 2] = [Program::Iscsiadm, Program::Blkid];
const WANTED: [Program; 7] = [
    Program::Multipath,
    Program::Blockdev,
    Program::MkfsExt4,
    Program::MkfsXfs,
    Program::E2fsck,
    Program::Resize2fs,
    Program::XfsGrowfs,
];

const fn package(program: Program) -> &'static str {
    match program {
        Program::Iscsiadm | Program::Iscsid => "open-iscsi (iscsi-initiator-utils on Red Hat)",
        Program::Multipath => "multipath-tools (device-mapper-multipath on Red Hat)",
        Program::Blkid | Program::Blockdev | Program::Lsblk => "util-linux",
        Program::MkfsExt4 | Program::E2fsck | Program::Resize2fs => "e2fsprogs",
        Program::MkfsXfs | Program::XfsGrowfs => "xfsprogs",
        Program::Modprobe => "kmod",
        Program::Systemctl | Program::Journalctl => "systemd",
        Program::Dmsetup => "dmsetup",
        Program::Ip => "iproute2",
    }
}

pub(super) async fn programs(node: &Node) -> Finding {
    let root = node.config.root.clone();
    let look = move || {
        let missing = |programs: &[Program]| -> Vec<Program> {
            programs.iter().copied().filter(|program| !installed(&root, program.name())).collect()
        };
        (missing(&NEEDED), missing(&WANTED))
    };
    match node.read("programs", look).await {
        Ok((needed, wanted)) if needed.is_empty() && wanted.is_empty() => {
            Finding::ok("all are there")
        }
        Ok((needed, wanted)) => {
            let told = |program: Program, finding: Finding| {
                finding.advise(format!("install {}", package(program)))
            };
            let failed = needed
                .into_iter()
                .map(|it| told(it, Finding::failed(format!("{it} is not installed"))));
            let warned = wanted
                .into_iter()
                .map(|it| told(it, Finding::warning(format!("{it} is not installed"))));
            Finding::all(failed.chain(warned))
        }
        Err(error) => unread(&error),
    }
}
