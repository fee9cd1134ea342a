#!/usr/bin/env bash
# control-plane.sh NAME...: starts etcd, kube-apiserver, kube-controller-manager or kube-scheduler unless it runs already.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/lib.sh"; mkdir -p $RUN $LOG $C/etcd

run_etcd() {
  cat >$C/etcd/etcd.yaml <<Y
name: e2e
data-dir: $C/etcd/data
listen-client-urls: http://127.0.0.1:2379
advertise-client-urls: http://127.0.0.1:2379
listen-peer-urls: http://127.0.0.1:2380
initial-advertise-peer-urls: http://127.0.0.1:2380
initial-cluster: e2e=http://127.0.0.1:2380
log-level: error
unsafe-no-fsync: true
Y
  start etcd $BIN/kube etcd $C/etcd/etcd.yaml
  wait_for 20 curl -sf http://127.0.0.1:2379/health
}

run_kube-apiserver() {
  # What our own service account asks for, so that the chart's permissions can be compared with what is used.
  cat >$C/audit.yaml <<Y
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ["system:serviceaccounts:posthouse"]}
- {level: None}
Y
  start kube-apiserver $BIN/kube-apiserver --bind-address=$HOSTIP --advertise-address=$HOSTIP --secure-port=6443 \
    --etcd-servers=http://127.0.0.1:2379 --service-cluster-ip-range=$SVC --allow-privileged=true \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --client-ca-file=$PKI/ca.crt --tls-cert-file=$PKI/apiserver.crt --tls-private-key-file=$PKI/apiserver.key \
    --kubelet-client-certificate=$PKI/apiserver-kubelet.crt --kubelet-client-key=$PKI/apiserver-kubelet.key \
    --kubelet-certificate-authority=$PKI/ca.crt --kubelet-preferred-address-types=InternalIP \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local \
    --service-account-key-file=$PKI/sa.pub --service-account-signing-key-file=$PKI/sa.key \
    --audit-policy-file=$C/audit.yaml --audit-log-path=$LOG/audit.log --profiling=false --v=1
  wait_for 60 $K get --raw /readyz
}

run_kube-controller-manager() {
  start kube-controller-manager $BIN/kube-controller-manager --bind-address=127.0.0.1 --kubeconfig=$PKI/kcm.conf \
    --authentication-kubeconfig=$PKI/kcm.conf --authorization-kubeconfig=$PKI/kcm.conf \
    --leader-elect=false --use-service-account-credentials=true --service-account-private-key-file=$PKI/sa.key \
    --root-ca-file=$PKI/ca.crt --cluster-signing-cert-file=$PKI/ca.crt --cluster-signing-key-file=$PKI/ca.key \
    --node-monitor-period=1s --node-monitor-grace-period=12s --v=1
}

run_kube-scheduler() {
  start kube-scheduler $BIN/kube-scheduler --bind-address=127.0.0.1 --kubeconfig=$PKI/scheduler.conf \
    --authentication-kubeconfig=$PKI/scheduler.conf --authorization-kubeconfig=$PKI/scheduler.conf --leader-elect=false --v=1
}

for name in "$@"; do alive $name || run_$name; done
