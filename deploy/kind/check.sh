#!/bin/sh
# Whether policy holds on the cluster that kubectl speaks to: a default deny closes a server, an allow opens it again.
set -eu
cd "$(dirname "$0")/../.."
image=${1:-registry.k8s.io/e2e-test-images/agnhost:2.53}

kubectl create namespace policy-check
trap 'kubectl delete namespace policy-check --wait=false' EXIT
kubectl --namespace policy-check run server --image "$image" --labels app=server --port 8080 -- netexec
kubectl --namespace policy-check run client --image "$image" --labels app=client -- pause
kubectl --namespace policy-check wait --for=condition=Ready pod/server pod/client --timeout=180s
address=$(kubectl --namespace policy-check get pod server --output 'jsonpath={.status.podIP}')

expect() {
    word=$1
    for _ in 1 2 3 4 5; do
        if kubectl --namespace policy-check exec client -- /agnhost connect "$address:8080" --timeout=2s; then
            seen=open
        else
            seen=closed
        fi
        [ "$seen" = "$word" ] && { echo "ok: $2: $word"; return; }
        sleep 1
    done
    echo "error: $2: $seen, $word was expected" >&2
    exit 1
}

expect open "no policy"
kubectl --namespace policy-check apply --filename - <<POLICY
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny}
spec: {podSelector: {}, policyTypes: [Ingress]}
POLICY
expect closed "default deny"
kubectl --namespace policy-check apply --filename - <<POLICY
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-client}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: client}}}]
      ports: [{port: 8080}]
POLICY
expect open "default deny and an allow"
echo "policy holds"
