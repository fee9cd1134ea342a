# Settings and small tools that the scripts here share. Everything of the cluster lies under $C; processes are ended only by
# the pids recorded in $C/run.
HERE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
C=${CLUSTER_DIR:-${TMPDIR:-/tmp}/posthouse-cluster}; export CLUSTER_DIR=$C
BIN=$C/bin; PKI=$C/pki; RUN=$C/run; LOG=$C/log
NODES=${NODES:-"1 2 3"}                    # node-1 node-2 node-3
BR=kbr0; NET=10.77.0; HOSTIP=$NET.1; PODNET=10.88; SVC=10.96.0.0/16; SVCIP=10.96.0.1
API=https://$HOSTIP:6443
export KUBECONFIG=$PKI/admin.conf
K=$BIN/kubectl
nodeip() { echo $NET.1$1; }                # 10.77.0.11, .12, .13
# start NAME cmd...: a daemon; the recorded pid is that of the started process itself.
start() { local n=$1; shift; setsid "$@" >>$LOG/$n.log 2>&1 </dev/null & echo $! >$RUN/$n.pid; }
alive() { [ -s $RUN/$1.pid ] && kill -0 $(cat $RUN/$1.pid) 2>/dev/null; }
# stop NAME [SIGNAL]: ends one recorded daemon and waits for it.
stop() {
  local p i; p=$(cat $RUN/$1.pid 2>/dev/null) || return 0
  kill -${2:-TERM} $p 2>/dev/null; for i in $(seq 100); do kill -0 $p 2>/dev/null || break; sleep 0.1; done
  kill -KILL $p 2>/dev/null; rm -f $RUN/$1.pid
}
nodepid() { cat $RUN/node-$1.init.pid; }   # the node's PID 1, as the host sees it
inode() { local n=$1; shift; nsenter -t $(nodepid $n) -m -u -i -n -p -- "$@"; }   # run a command "on" a node
nctr() { local n=$1; shift; inode $n ctr -n k8s.io "$@"; }
# nstart N NAME cmd...: a daemon on a node. nsenter forks once (pid namespace), so the child is recorded: it is the daemon.
nstart() {
  local n=$1 name=$2 np w i p=; shift 2
  np=$(nodepid $n)                         # expanded here: a substitution in the background job would be taken for the child
  setsid nsenter -t $np -m -u -i -n -p -- "$@" >>$LOG/node-$n.$name.log 2>&1 </dev/null & w=$!
  for i in $(seq 100); do
    p=$(cat /proc/$w/task/$w/children 2>/dev/null | tr -d ' ')
    [ -n "$p" ] && grep -qx nsenter /proc/$w/comm 2>/dev/null && break
    sleep 0.05
  done
  echo $p >$RUN/node-$n.$name.pid
}
wait_for() { local t=$1 i; shift; for i in $(seq $((t*5))); do "$@" >/dev/null 2>&1 && return 0; sleep 0.2; done; echo "timeout: $*" >&2; return 1; }
