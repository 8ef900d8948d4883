use std::time::Duration;

use kube::{Api, Client, ResourceExt, api::ListParams, core::DeserializeGuard};

use super::{Check, Finding};
use crate::{
    crd::{NodeConnector, VolumeAttachRequest},
    model::Iqn,
};

pub(super) const API_SERVER: Check = Check {
    id: "api-server",
    looks_at: "a request to the Kubernetes API server",
    why: "Requests of the cluster come from there, and their status goes there. What is attached goes on working without.",
};
pub(super) const DEFINITIONS: Check = Check {
    id: "custom-resources",
    looks_at: "whether VolumeAttachRequests and NodeConnectors can be listed",
    why: "Without the definitions, or the right to read them, no request of the cluster is served.",
};
pub(super) const INITIATOR_UNIQUE: Check = Check {
    id: "initiator-unique",
    looks_at: "the NodeConnectors of all nodes: who has this node's initiator name",
    why: "Two nodes with one name are one node to the storage: each gets the other's disks. Nodes made from one image often have one name.",
};

pub(super) const CHECKS: [&Check; 3] = [&API_SERVER, &DEFINITIONS, &INITIATOR_UNIQUE];

const LIMIT: Duration = Duration::from_secs(3);

pub(super) async fn look(
    cluster: Result<Client, String>,
    name: Option<Iqn>,
    node: Option<&str>,
) -> Vec<(&'static Check, Finding)> {
    let client = match cluster {
        Ok(client) => client,
        Err(why) => {
            return CHECKS
                .into_iter()
                .map(|check| (check, Finding::left_out(why.clone())))
                .collect();
        }
    };
    let version = asked(client.apiserver_version()).await;
    let api_server = match version {
        Ok(version) => Finding::ok(format!("it answers, Kubernetes {}", version.git_version)),
        Err(why) => {
            let failed = Finding::failed(why).advise(
                "see the API server, the network, and KUBECONFIG or the Pod's service account",
            );
            let others = Finding::left_out("see api-server");
            return vec![
                (&API_SERVER, failed),
                (&DEFINITIONS, others.clone()),
                (&INITIATOR_UNIQUE, others),
            ];
        }
    };
    let requests: Api<DeserializeGuard<VolumeAttachRequest>> = Api::all(client.clone());
    let connectors: Api<DeserializeGuard<NodeConnector>> = Api::all(client);
    let few = ListParams::default().limit(1);
    let definitions = Finding::all([
        listed("VolumeAttachRequests", asked(requests.list_metadata(&few)).await.map(drop)),
        listed("NodeConnectors", asked(connectors.list_metadata(&few)).await.map(drop)),
    ]);
    let unique = match (name, node) {
        (Some(name), Some(node)) => {
            let same = ListParams::default().fields(&format!("status.initiator={name}"));
            match asked(connectors.list_metadata(&same)).await {
                Ok(list) => judge_unique(
                    &name,
                    node,
                    &list.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(),
                ),
                Err(why) => Finding::unknown(why),
            }
        }
        _ => Finding::left_out("this node has no name; see initiator-name"),
    };
    vec![(&API_SERVER, api_server), (&DEFINITIONS, definitions), (&INITIATOR_UNIQUE, unique)]
}

async fn asked<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(LIMIT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", LIMIT.as_secs())),
    }
}

fn listed(what: &str, result: Result<(), String>) -> Finding {
    match result {
        Ok(()) => Finding::ok(format!("{what} can be listed")),
        Err(why) => Finding::failed(format!("{what}: {why}"))
            .run("attachd crd | kubectl apply --server-side -f -")
            .advise(
                "where they are defined, give the agent's service account the chart's ClusterRole",
            ),
    }
}

fn judge_unique(name: &Iqn, node: &str, nodes: &[String]) -> Finding {
    let others: Vec<&str> =
        nodes.iter().map(String::as_str).filter(|other| *other != node).collect();
    if others.is_empty() {
        return Finding::ok("no other node has it");
    }
    Finding::failed(format!("{name} is also the name of {}", others.join(", ")))
        .advise("drain one of them, detach its volumes, then give it a name of its own")
        .run("echo InitiatorName=$(iscsi-iname) > /etc/iscsi/initiatorname.iscsi && systemctl restart iscsid")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn the_same_name_on_another_node_is_named() {
        let name: Iqn = "iqn.1993-08.org.debian:01:a".parse().unwrap();
        let judged = |nodes: &[&str]| {
            judge_unique(&name, "one", &nodes.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(judged(&[]).verdict, Verdict::Ok);
        assert_eq!(judged(&["one"]).verdict, Verdict::Ok);
        let shared = judged(&["one", "two"]);
        assert_eq!(shared.verdict, Verdict::Failed);
        assert!(shared.saw[0].ends_with("the name of two"), "{shared:?}");
    }
}
