#!/usr/bin/env bash
# up.sh: brings the whole cluster up; what runs already is left alone. NODES="1 2 3" PROXY=1 ./up.sh
# Images in $CLUSTER_DIR/images/*.tar are imported on every node.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/lib.sh"; mkdir -p $RUN $LOG $C/images; T0=$(date +%s.%N)
lap() { printf '%6.1fs %s\n' $(echo "$(date +%s.%N)-$T0" | bc) "$1"; }

[ -d /sys/fs/cgroup/memory ] || {
  echo "e2e: this machine has no cgroup v1 hierarchies, which the nodes here need; run the tests on kind or k3d (E2E_CLUSTER=existing)" >&2; exit 1; }
[ -e /sys/class/net/$BR ] || for range in $NET.0/24 $PODNET.0.0/16 $SVC; do
  [ -z "$(ip route show root $range)" ] || { echo "e2e: this machine routes $range elsewhere: $(ip route show root $range | head -n 1)" >&2; exit 1; }
done
ln -sfn "$("$HERE/build.sh")" $BIN
# The kubelet sets these for the whole machine: keep the old values for down.sh.
[ -f $RUN/sysctl.saved ] || sysctl -e vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops \
  kernel.keys.root_maxkeys kernel.keys.root_maxbytes fs.inotify.max_user_instances >$RUN/sysctl.saved
sysctl -qw fs.inotify.max_user_instances=1024
[ -x $C/images/pause ] || gcc -O2 -static -s -o $C/images/pause $HERE/pause.c
[ -f $C/images/pause.tar ] || \
  $HERE/../../images/mkimage.py --output $C/images/pause.tar --name e2e.test/pause:1 --entrypoint /pause --file /pause=$C/images/pause
ip link show $BR >/dev/null 2>&1 || { ip link add $BR type bridge; ip addr add $HOSTIP/24 dev $BR; ip link set $BR up; }
$HERE/pki.sh; lap pki
$HERE/control-plane.sh etcd; lap etcd
$HERE/control-plane.sh kube-apiserver; lap kube-apiserver
$HERE/control-plane.sh kube-controller-manager kube-scheduler
W=; for n in $NODES; do PROXY=${PROXY:-0} $HERE/node-up.sh $n & W="$W $!"; done
for pid in $W; do wait $pid; done; lap "containerd + kubelet started"
# The controller manager allocates no pod ranges (the CNI configuration of node-up.sh fixes them), so they are said here.
for n in $NODES; do
  wait_for 60 $K get node node-$n
  $K patch node node-$n --type=merge -p "{\"spec\":{\"podCIDR\":\"$PODNET.$n.0/24\",\"podCIDRs\":[\"$PODNET.$n.0/24\"]}}" >/dev/null
done
for n in $NODES; do $K wait --for=condition=Ready node/node-$n --timeout=90s >/dev/null; done; lap "nodes Ready"
wait_for 30 $K -n default get serviceaccount default; lap "default service account"
$K get nodes -o wide
