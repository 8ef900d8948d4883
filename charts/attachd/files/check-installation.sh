#!/bin/sh
# `helm test`: the custom resource is served, every agent is ready, and each has published its NodeConnector.
# NAMESPACE, DAEMONSET and SELECTOR say which agents.
set -eu

kubectl get volumeattachrequests.attachd.dev --output name > /dev/null
echo "VolumeAttachRequest is served"

kubectl --namespace "$NAMESPACE" rollout status "daemonset/$DAEMONSET" --timeout 180s

nodes=$(kubectl --namespace "$NAMESPACE" get pods --selector "$SELECTOR" \
    --output 'jsonpath={range .items[*]}{.spec.nodeName}{"\n"}{end}')
if [ -z "$nodes" ]; then
    echo "no agent runs anywhere: does a node match nodeSelector, affinity and tolerations?" >&2
    exit 1
fi
published=$(kubectl get nodeconnectors.attachd.dev --output 'jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}')

missing=0
for node in $nodes; do
    if printf '%s\n' "$published" | grep -qxF "$node"; then
        echo "node $node: its NodeConnector is there"
    else
        echo "node $node: an agent runs there, but there is no NodeConnector $node; see that agent's log" >&2
        missing=1
    fi
done
exit "$missing"
