//! Who this node is to iSCSI targets, and whether iscsid is there.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::net::UnixStream;

use crate::model::Iqn;

use super::HostError;

/// Where iscsid reads its name from (`INITIATOR_NAME_FILE` in open-iscsi's `config.h`).
pub(crate) const FILE: &str = "etc/iscsi/initiatorname.iscsi";

const KEY: &str = "InitiatorName=";

/// iscsid's socket in the abstract namespace (`ISCSIADM_NAMESPACE` in `mgmt_ipc.h`), of the network
/// namespace that iscsid runs in.
const ISCSID: &str = "\0ISCSIADM_ABSTRACT_NAMESPACE";

const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// The node's initiator name.
pub(crate) fn initiator_name(host_root: &Path) -> Result<Iqn, HostError> {
    let path = host_root.join(FILE);
    let none = |path: PathBuf, fix| Err(HostError::NoInitiatorName { path, fix });
    let text = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return none(path, "install open-iscsi on this node");
        }
        Err(error) => return Err(HostError::io("read", path)(error)),
    };
    match parse(&text) {
        Some(name) => Ok(name),
        // Debian's package leaves the name to iscsid's first start.
        None if text.lines().any(|line| line.starts_with("GenerateName=yes")) => {
            none(path, "let iscsid make one: systemctl start iscsid")
        }
        None => none(
            path,
            "write one: echo InitiatorName=$(iscsi-iname) > /etc/iscsi/initiatorname.iscsi",
        ),
    }
}

/// open-iscsi's own rule (`cfg_get_string_param()` in `iscsi_util.c`): the first line that has the key
/// before any `#`, and something after it; blanks around the value don't count, a `#` in it does.
fn parse(text: &str) -> Option<Iqn> {
    let value = text.lines().find_map(|line| {
        let at = line.find(KEY)?;
        let commented = line.find('#').is_some_and(|hash| hash < at);
        let value = line[at + KEY.len()..].trim();
        (!commented && !value.is_empty()).then_some(value)
    })?;
    value.parse().ok()
}

/// Whether somebody listens on iscsid's socket: iscsid, or systemd that starts it.
pub(crate) async fn iscsid_answers() -> bool {
    let connected = tokio::time::timeout(CONNECT_LIMIT, UnixStream::connect(ISCSID)).await;
    matches!(connected, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "iqn.1993-08.org.debian:01:cad181614cec";

    fn name(text: &str) -> Result<Iqn, HostError> {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/iscsi")).unwrap();
        fs::write(root.path().join(FILE), text).unwrap();
        initiator_name(root.path())
    }

    #[test]
    fn the_name_is_read_as_open_iscsi_reads_it() {
        for text in [
            format!("InitiatorName={NAME}\n"),
            format!(
                "## DO NOT EDIT\n#InitiatorName=iqn.2000-01.com.old:x\n  InitiatorName= {NAME} \n"
            ),
            format!(
                "InitiatorName=\nInitiatorName={NAME}\nInitiatorName=iqn.2000-01.com.second:x\n"
            ),
            format!("InitiatorAlias=a\r\nInitiatorName={NAME}\r\n"),
        ] {
            assert_eq!(name(&text).unwrap().as_str(), NAME, "{text:?}");
        }
    }

    #[test]
    fn a_node_without_a_name_is_told_how_to_get_one() {
        let debian = name("GenerateName=yes\n").unwrap_err();
        assert!(debian.to_string().contains("systemctl start iscsid"), "{debian}");
        for text in ["", "# InitiatorName=iqn.2000-01.com.x:y\n", "InitiatorName=not a name\n"] {
            let error = name(text).unwrap_err();
            assert!(error.to_string().contains("iscsi-iname"), "{error}");
        }
        let none = initiator_name(Path::new("/nonexistent")).unwrap_err();
        assert_eq!(none.reason(), "NoInitiatorName");
    }
}
