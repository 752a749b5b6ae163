#!/bin/sh
# A kind cluster with the agent on it. Needs docker, kind, kubectl, and the archive of `cargo xtask image`.
set -eu
cd "$(dirname "$0")/../.."
archive=${1:-target/image/policy-agent.tar}
[ -f "$archive" ] || { echo "error: $archive is missing" >&2; echo "hint: cargo xtask image" >&2; exit 1; }

kind create cluster --config deploy/kind/cluster.yaml --wait 0s
kubectl config use-context kind-policy-agent

# Each node routes its own pods, and the others' through their node; the image of kind has the plugins.
for node in $(kind get nodes --name policy-agent); do
    until subnet=$(kubectl get node "$node" --output 'jsonpath={.spec.podCIDR}' 2>/dev/null) && [ -n "$subnet" ]; do
        sleep 1
    done
    docker exec --interactive "$node" sh -c 'cat > /etc/cni/net.d/10-ptp.conflist' <<CONF
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local",
    "ranges": [[{"subnet": "$subnet"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CONF
    address=$(kubectl get node "$node" --output 'jsonpath={.status.addresses[?(@.type=="InternalIP")].address}')
    for other in $(kind get nodes --name policy-agent); do
        [ "$other" = "$node" ] || docker exec "$other" ip route replace "$subnet" via "$address"
    done
done

kubectl wait --for=condition=Ready nodes --all --timeout=180s
kind load image-archive "$archive" --name policy-agent
kubectl apply --kustomize deploy/overlays/kind
kubectl --namespace policy-agent rollout status daemonset/policy-agent --timeout=180s
